#!/bin/sh
# Runs the hostile guests and writes what they did into docs/sandbox.md, between its two marks. From the top of the source tree.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
COFFERDAM_SANDBOX_TABLE="$folder" cargo test --locked --release -p cofferdam-tests --test all -- --test-threads=1 \
    hostile_guests_that files_that_must_not_become_plugins
{
    sed '/<!-- table -->/q' docs/sandbox.md
    echo '| # | guest | what stops it | how it ends | ms | its MiB | host MiB |'
    echo '|---|---|---|---|---|---|---|'
    cat "$folder"/* | sort -t '|' -k 2 -n
    sed -n '/<!-- end of table -->/,$p' docs/sandbox.md
} > "$folder.md"
mv "$folder.md" docs/sandbox.md
echo "docs/sandbox.md: written"
