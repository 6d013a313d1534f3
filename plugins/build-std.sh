#!/usr/bin/env bash
# Builds guests where rustup has no standard library for WebAssembly: the distribution's compiler builds it from source.
#
# Debian packages a compiler (rustc-web) together with the matching source of the standard library (rust-web-src); neither
# touches a rustup installation. The target wasm32-unknown-unknown needs no libc, and rustup's own wasm-component-ld as
# linker turns cargo's output into a component at once.
#
# usage: plugins/build-std.sh [arguments of cargo build]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

readonly compiler=/usr/bin/rustc
readonly library_source=/usr/lib/rustlib/src/rust/library/Cargo.lock

if [[ ! -x "$compiler" || ! -e "$library_source" ]]; then
  echo "build-std: installing rustc-web and rust-web-src" >&2
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends rustc-web rust-web-src
fi

# The linker comes from rustup's toolchain: Debian's has no wasm-component-ld.
sysroot="$(rustc --print sysroot)"
host="$(rustc -vV | sed -n 's/^host: //p')"
readonly tools="$sysroot/lib/rustlib/$host/bin"
if [[ ! -x "$tools/wasm-component-ld" ]]; then
  echo "build-std: no wasm-component-ld in the toolchain at $sysroot; is rustup's rustc first in PATH?" >&2
  exit 1
fi

# wasm-component-ld calls wasm-ld, which lies beside it.
export PATH="$tools/gcc-ld:$PATH"
export RUSTC="$compiler"
# Building the standard library is not a stable feature, and Debian's compiler is a stable one.
export RUSTC_BOOTSTRAP=1
export CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER="$tools/wasm-component-ld"
# Apart from the ordinary target folder, because the compilers differ.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target/build-std}"

exec cargo build -Zbuild-std=std,panic_abort --target wasm32-unknown-unknown "$@"
