# Ocelot. `make demo` shows the main job, `make test` passes the tests; both install what they need.
SHELL := /bin/bash
.DEFAULT_GOAL := help
SPDK_PREFIX ?= /opt/spdk
export SPDK_PREFIX
PROFILE ?= release
PROFILE_DIR := $(if $(filter release,$(PROFILE)),release,debug)
BIN := target/$(PROFILE_DIR)

SECONDS_EACH ?= 3

.PHONY: help deps build demo serve bench test torture lint check-format unit e2e docs clean

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

deps: ## install what is missing: Debian packages, SPDK (once, into $(SPDK_PREFIX))
	@tests/setup

build: deps ## build ocelotd and ocelot (PROFILE=release)
	cargo build --locked $(if $(filter release,$(PROFILE)),--release) -p server -p cli

demo: build ## format a volume, copy trees in and out, kill the daemon, recover, check
	@tests/demo $(BIN)

serve: build ## leave an ocelotd running on the demo volume
	@tests/serve $(BIN)

bench: build ## what each way to a file costs, beside the raw device (SECONDS_EACH=3)
	@spdk-config/hugepages 1536
	cargo bench --locked -p server --bench paths -- $(SECONDS_EACH) $(CURDIR)/target/bench

test: deps lint unit ## what CI runs: format, clippy, all tests

torture: deps ## hours of crashes, kills, faults and fuzzing (tests/torture says what can be set)
	@tests/torture

lint: deps ## rustfmt and clippy, warnings denied
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

unit: deps ## the tests alone (tests/run unit, tests/run e2e: a part of them)
	@tests/run

docs: ## API documentation
	cargo doc --locked --workspace --no-deps

clean: ## remove what was built here (SPDK stays)
	cargo clean
	rm -rf demo
