# Two commands: `make demo` and `make test`. Both set up what a fresh machine lacks. `make chaos` takes hours, `make fuzz` most of one.
.PHONY: demo test build setup guests check unit mutants mutants-table sandbox-table end-to-end soak chaos fuzz sbom bench clean

target := $(or $(CARGO_TARGET_DIR),target)
export CARGO_TARGET_DIR := $(abspath $(target))
cargo := cargo --quiet

demo: build
	$(CARGO_TARGET_DIR)/release/cofferdam demo

# Everything that has to hold before a change lands.
test: check build unit end-to-end
	@echo "make test: everything passed"

setup:
	@./deploy/setup.sh --run-only

guests: setup
	@./plugins/build.sh

# The guests first: the program carries them for its demo and its benchmark.
build: guests
	cargo build --locked --release -p cofferdam

check: guests
	@./deploy/setup.sh
	cargo fmt --all --check
	cd plugins && CARGO_TARGET_DIR=target cargo fmt --all --check
	cargo clippy --locked --release --workspace --all-targets -- -D warnings
	cd plugins && CARGO_TARGET_DIR=target $(cargo) clippy --locked --all-targets -- -D warnings
# The fuzz targets take some files of the program as they are. libFuzzer is C++.
	@if command -v c++ >/dev/null; then cd fuzz && cargo check --quiet --locked --release; else echo "SKIPPED: the fuzz targets need a C++ compiler"; fi
	cargo deny --all-features check --hide-inclusion-graph bans licenses sources
	@./deploy/advisories.sh

unit: guests
	cargo test --locked --release -p cofferdam-model -p cofferdam-sandbox -p cofferdam-streams -p cofferdam
# Apart, because its paused clock is a feature of tokio that the program is built without.
	cargo test --locked --release -p cofferdam-delivery -p cofferdam-simulation
	cd plugins && CARGO_TARGET_DIR=target cargo test --locked --release
	cd plugins && CARGO_TARGET_DIR=target cargo test --locked --release -p labcheck --features flaky-v1

# The program with the bugs that the tests must catch is built beside the one that users have.
mutants: build
	cargo build --locked --release -p cofferdam --features mutants
	cp -f $(CARGO_TARGET_DIR)/release/cofferdam $(CARGO_TARGET_DIR)/release/cofferdam-mutants
	cargo build --locked --release -p cofferdam

# Which test catches which of these bugs, as a table.
mutants-table: mutants
	cargo build --locked --release -p cofferdam-simulation --features mutants
	@./tests/mutants.sh

# What each hostile guest did, into docs/sandbox.md.
sandbox-table: mutants
	@./tests/sandbox_table.sh

end-to-end: mutants
	cargo test --locked --release -p cofferdam-tests -- --test-threads=$(or $(TEST_THREADS),2)

# Kills, bad networks, operators, restarts and file patterns, each for as long and as often as it takes to believe the result.
chaos: mutants
	@./tests/chaos.sh

# The simulation for MINUTES minutes (a night), from a seed that no soak before it has used.
soak:
	cargo run --locked --release -p cofferdam-simulation -- --minutes $(or $(MINUTES),480) --from $(or $(FROM),$(shell date +%s)000000)

# Each fuzz target for MINUTES minutes, from what has been found so far; what is new goes to fuzz/found/, what fails to
# fuzz/artifacts/. `make test` runs fuzz/corpus/ without any of this.
fuzz: guests
	@./deploy/setup.sh --fuzz
	MINUTES=$(or $(MINUTES),10) ./fuzz/run.sh $(FUZZ_TARGETS)

# What the program is made of, with licences, as CycloneDX: dist/cofferdam.cdx.json.
sbom:
	@./deploy/setup.sh --sbom
	@./deploy/sbom.sh

bench: build
	$(CARGO_TARGET_DIR)/release/cofferdam bench

clean:
	rm -rf $(CARGO_TARGET_DIR) plugins/target plugins/dist
