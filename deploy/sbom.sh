#!/usr/bin/env bash
# Writes what the program is made of into dist/cofferdam.cdx.json: every crate that is compiled into it or that builds it, with
# version, checksum and licence, as CycloneDX 1.5.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly name=cofferdam.cdx file=dist/cofferdam.cdx.json

# It describes every member of the workspace, each in its own folder; only the program's is of use.
trap 'rm -f host/*/"$name.json" tests/"$name.json"' EXIT
cargo cyclonedx --quiet --format json --spec-version 1.5 --override-filename "$name"
mkdir -p dist
# Where a checkout stands is nobody's business, and would make two files differ that say the same.
sed "s|$PWD|.|g" "host/daemon/$name.json" >"$file"
python3 - "$file" <<'CHECK'
import json, sys
bom = json.load(open(sys.argv[1]))
crates = bom["components"]
without = [crate["name"] for crate in crates if not crate.get("licenses")]
if bom["bomFormat"] != "CycloneDX" or not crates or without:
    sys.exit(f"sbom: not complete; crates without a licence: {without}")
print(f"sbom: {sys.argv[1]}: {len(crates)} crates of {bom['metadata']['component']['name']} {bom['metadata']['component']['version']}")
CHECK
