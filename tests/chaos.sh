#!/usr/bin/env bash
# The chaos tests at full length, one file after another, with the figures that each prints, and a summary.
#
# usage: make chaos             all of them
#        tests/chaos.sh NAME…   those of these files of tests/all, with the programs as they were built last
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

names=("$@")
if [[ ${#names[@]} == 0 ]]; then
  for name in crash reload network network_errors storage failover operators rights load rolling watching; do
    [[ -e "tests/all/$name.rs" ]] && names+=("$name")
  done
fi
results="$(mktemp)"
readonly results
trap 'rm -f "$results"' EXIT
export COFFERDAM_CHAOS=full

for name in "${names[@]}"; do
  printf '\n======== %s ========\n' "$name" | tee -a "$results"
  # One at a time: these tests measure, and load the machine as much as they can.
  cargo test --locked --release -p cofferdam-tests --test all -- "$name::" --test-threads=1 --show-output 2>&1 | tee -a "$results"
done

count() { grep -cE "$1" "$results"; }
failed="$(count '^test .* FAILED$')"
printf '\n======== summary ========\n'
grep -E '^(======== |test .* FAILED$|test result: |error(:|\[)|SKIPPED)' "$results"
printf '%s passed, %s failed, %s ignored, %s skipped\n' \
  "$(count '^test .* \.\.\. ok$')" "$failed" "$(count '^test .* \.\.\. ignored')" "$(count '^SKIPPED')"
# A program that did not build or a file without a test fails too.
(( failed == 0 )) && ! grep -qE '^error|^running 0 tests' "$results"
