#!/usr/bin/env bash
# The table of the bugs that are planted on purpose: for each, which seed of the simulation found it and which promise that named,
# and which test with real processes saw it, with what it counted.
#
# usage: make mutants-table
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly target="${CARGO_TARGET_DIR:-target}/release"
results="$(mktemp)"
readonly results
trap 'rm -f "$results"' EXIT

COFFERDAM_CHAOS=full cargo test --quiet --locked --release -p cofferdam-tests --test all -- \
  mutants:: --test-threads=1 --show-output >"$results" 2>&1
readonly ended=$?
missed=0

printf '| Bug | Found by the simulation at | Promise | Seen with real processes |\n|---|---|---|---|\n'
while read -r name; do
  # Where the order of keys is broken, among failovers.
  for from in 0 1000000000000; do
    found="$(COFFERDAM_MUTANT="$name" "$target/simulate" --from "$from" --seeds 5000 --failures 1 --threads 1 2>&1)" || break
  done
  seed="$(sed -nE 's/.*seed ([0-9]+) failed;.*/seed \1/p' <<<"$found" | head -n 1)"
  promise="$(sed -nE 's/^ +([^:]+): .*/\1/p' <<<"$found" | head -n 1)"
  seen="$(sed -nE "s/.*MUTANT $name \| \[(.*)\]\$/\1/p" "$results" | tail -n 1)"
  [[ -n "$seed" && -n "$seen" ]] || missed=1
  printf '| `%s` | %s | %s | %s |\n' "$name" "${seed:-NOT FOUND}" "${promise:-–}" "${seen:-NOT SEEN}"
done < <(sed -nE '/^pub const MUTANTS/,/^\];/s/^ +"([a-z-]+)",$/\1/p' host/streams/src/mutants.rs)

if (( ended != 0 || missed )); then
  grep -E '^test .* FAILED$|panicked at|^error' "$results" >&2
  exit 1
fi
