#!/usr/bin/env bash
# Builds every plugin as a WebAssembly component and places it, with its manifest, in plugins/dist/.
#
# Way 1: the ordinary one, cargo with the target wasm32-wasip2, which rustup is asked to install first.
# Way 2: build-std.sh, for a machine that cannot get that target: the same sources, and components without WASI imports.
#
# usage: plugins/build.sh                       way 1, and way 2 when rustup cannot provide the target in time
#        COFFERDAM_BUILD_STD=1 plugins/build.sh way 2
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# A machine without a network must find out soon, not after rustup's own retries.
readonly target_seconds_max=30
readonly dist=dist
# The two ways use different compilers, and cargo would rebuild everything at each change of them.
readonly target_dir="${CARGO_TARGET_DIR:-target}"

choose_way() {
  if [[ "${COFFERDAM_BUILD_STD:-}" == 1 ]]; then
    way=2 why="COFFERDAM_BUILD_STD=1"
  elif timeout "$target_seconds_max" rustup target add wasm32-wasip2 >/dev/null 2>&1; then
    way=1 why="rustup has the target wasm32-wasip2"
  else
    way=2 why="rustup did not provide wasm32-wasip2 within ${target_seconds_max} s"
  fi
}

build() {
  if [[ "$way" == 1 ]]; then
    CARGO_TARGET_DIR="$target_dir" cargo build --locked --release --target wasm32-wasip2 "$@"
  else
    CARGO_TARGET_DIR="$target_dir/build-std" ./build-std.sh --locked --release "$@"
  fi
}

# A host may be watching the folder, so a file appears there whole or not at all.
place() {
  local from="$1" to="$dist/$2"
  cp "$from" "$to.partial"
  chmod 644 "$to.partial"
  mv -f "$to.partial" "$to"
}

# Panic messages name source files. Without this, where a machine keeps its crates would be in the plugin, and so in its digest.
remap_paths() {
  local crates
  cargo fetch --locked --quiet
  RUSTFLAGS="${RUSTFLAGS:-} --remap-path-prefix=$(rustc --print sysroot)/lib/rustlib/src/rust=rust"
  RUSTFLAGS+=" --remap-path-prefix=/usr/lib/rustlib/src/rust=rust"
  RUSTFLAGS+=" --remap-path-prefix=$(cd .. && pwd)=."
  for crates in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/; do
    RUSTFLAGS+=" --remap-path-prefix=${crates%/}=crates"
  done
  export RUSTFLAGS
}

choose_way
remap_paths
case "$way" in
  1) built="$target_dir/wasm32-wasip2/release" ;;
  2) built="$target_dir/build-std/wasm32-unknown-unknown/release" ;;
esac
echo "plugins: way $way ($why)"
mkdir -p "$dist/test"

# Version 1 of flaky first: both versions come out under one name, and what is left in the target folder should be the right one.
build -p flaky --features flaky/v1
place "$built/flaky.wasm" flaky-v1.wasm
build -p normalize -p classify -p ioc -p flaky -p bench
place "$built/flaky.wasm" flaky-v2.wasm
place flaky/flaky.toml flaky.toml
for name in normalize classify ioc bench; do
  place "$built/$name.wasm" "$name.wasm"
  place "$name/$name.toml" "$name.toml"
done

# The guests of the host's own tests, and one that the documents take in from outside.
build -p actor -p vendor
for name in actor vendor; do
  place "$built/$name.wasm" "test/$name.wasm"
done

for file in "$dist"/*.wasm "$dist"/test/*.wasm; do
  printf '%8d bytes  %s\n' "$(stat -c %s "$file")" "plugins/$file"
done
