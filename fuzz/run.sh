#!/usr/bin/env bash
# Fuzzes: each target for $MINUTES minutes, one after the other, from fuzz/corpus/. New inputs go to
# fuzz/found/TARGET/, the ones that fail to fuzz/artifacts/TARGET/, and then this ends with 1.
#
# All code of ours but one file is safe Rust, so no sanitizer is built in; SANITIZER=address builds one, for half the speed.
#
# What was found and is worth keeping is brought to fuzz/corpus/TARGET/ by hand: `cargo fuzz cmin` leaves the inputs that reach
# something new; those of `guest` are turned into modules by fuzz/modules/, because the tests have nothing that makes modules; and
# of what is left small files, 500 KB in all.
#
# usage: fuzz/run.sh [TARGET...]   admission, guest, entry, text
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Apart, because another compiler builds it with other flags.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}/fuzz"

readonly minutes="${MINUTES:-10}"
readonly sanitizer="${SANITIZER:-none}"
# Longer than any of it takes on a busy machine; compiling alone may take as long as the program lets it.
readonly seconds_max=60
readonly memory_mb_max=4096

# What of a target's inputs is worth its length.
length_max() {
  case "$1" in
    admission | guest) echo 32768 ;;
    *) echo 4096 ;;
  esac
}

run() {
  local target="$1" found="fuzz/found/$1"
  mkdir -p "$found"
  echo "fuzz: $target for $minutes minutes"
  cargo +nightly fuzz run --sanitizer "$sanitizer" "$target" "$found" "fuzz/corpus/$target" -- "-max_total_time=$((minutes * 60))" \
    "-max_len=$(length_max "$target")" "-timeout=$seconds_max" "-rss_limit_mb=$memory_mb_max" -print_final_stats=1
}

targets=("$@")
(( $# )) || targets=(entry text admission guest)
for target in "${targets[@]}"; do
  run "$target"
done
