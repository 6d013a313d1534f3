#!/usr/bin/env bash
# Installs what building and testing need beyond Rust, Python and a C compiler: a Redis server, redis-py, cargo-deny. The target
# for guests is plugins/build.sh's affair. Says what it does; does nothing when everything is there. With --run-only it leaves out
# what only the checks need. With --fuzz or --sbom it installs what `make fuzz` or `make sbom` needs, and nothing else.
set -euo pipefail

as_root() {
  if [[ "$(id -u)" == 0 ]]; then "$@"; else sudo "$@"; fi
}

# One of cargo's commands, built once and kept out of the way of the project's own builds.
install_cargo() {
  local tool="$1" version="$2"
  command -v "$tool" >/dev/null && return
  echo "setup: installing $tool (some minutes, once)"
  CARGO_TARGET_DIR="${XDG_CACHE_HOME:-$HOME/.cache}/cofferdam/$tool" cargo install --quiet --locked "$tool@$version"
}

case "${1:-}" in
  --fuzz)
    if ! cargo +nightly --version >/dev/null 2>&1; then
      echo "setup: installing the nightly compiler, which libFuzzer needs"
      rustup toolchain install nightly --profile minimal
    fi
    install_cargo cargo-fuzz 0.13.2
    exit ;;
  --sbom)
    install_cargo cargo-cyclonedx 0.5.9
    exit ;;
esac

install_redis() {
  echo "setup: installing a Redis server from the system's packages"
  if command -v apt-get >/dev/null; then
    as_root apt-get update -qq
    # The server that is started by the system is not ours to use: it is installed and left stopped.
    as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends redis-server redis-tools
  elif command -v dnf >/dev/null; then
    as_root dnf install -y -q valkey valkey-compat-redis
  elif command -v apk >/dev/null; then
    as_root apk add valkey valkey-cli
  elif command -v pacman >/dev/null; then
    as_root pacman -S --noconfirm valkey
  elif command -v brew >/dev/null; then
    brew install valkey
  else
    echo "setup: install Redis 7.0 or Valkey 7.2 (server and redis-cli) yourself; no package manager is known here" >&2
    exit 3
  fi
}

if ! command -v redis-server >/dev/null && ! command -v valkey-server >/dev/null; then
  install_redis
fi

# For the arm "python" of the benchmark, and for the test that a consumer of the original's format reads our events.
if ! python3 -c 'import redis' 2>/dev/null; then
  echo "setup: installing redis-py"
  python3 -m pip install --quiet --disable-pip-version-check redis 2>/dev/null \
    || python3 -m pip install --quiet --disable-pip-version-check --break-system-packages redis
fi

if [[ "${1:-}" != --run-only ]]; then
  install_cargo cargo-deny 0.19.0
fi
