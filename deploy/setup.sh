#!/usr/bin/env bash
# Installs what building and testing need beyond Rust, Python and a C compiler: a Redis server, redis-py, cargo-deny. The target
# for guests is plugins/build.sh's affair. Says what it does; does nothing when everything is there. With --run-only it leaves out
# what only the checks need.
set -euo pipefail

as_root() {
  if [[ "$(id -u)" == 0 ]]; then "$@"; else sudo "$@"; fi
}

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

if [[ "${1:-}" != --run-only ]] && ! command -v cargo-deny >/dev/null; then
  echo "setup: installing cargo-deny (some minutes, once)"
  CARGO_TARGET_DIR="${XDG_CACHE_HOME:-$HOME/.cache}/cofferdam/cargo-deny" cargo install --quiet --locked cargo-deny@0.19.0
fi
