# SPDX-License-Identifier: Apache-2.0
#
# `make` lists the targets. Each target stands alone: it builds what it needs.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

GO ?= go
ifeq ($(origin CC),default)
CC := gcc
endif
CROSS_CC ?= aarch64-linux-gnu-gcc

PREFIX ?= /usr/local
DESTDIR ?=
BIN := $(CURDIR)/bin
TOOLS := $(CURDIR)/tools/bin

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -X pno/internal/buildinfo.version=$(VERSION)
GOBUILD := $(GO) build -trimpath -ldflags '$(LDFLAGS)'

# These need the binaries, and the end-to-end suite root, too: they are not unit
# tests.
UNIT_PKGS = $$($(GO) list ./... | grep -Ev '^pno/(e2e|bench/hotcalls|shim/conformance|shim/difffuzz)')
RACE_PKGS = $$($(GO) list ./... | grep -E '^pno/(offload|shim|host|dpu|sim|crypto|internal)(/|$$)' | grep -Ev '^pno/shim/(conformance|difffuzz)')
ARM64_PKGS = ./offload/... ./dpu/...
# The C tests: as many at once as there are processors, each one's output together.
SIDE_BY_SIDE = $(MAKE) --no-print-directory -j$(shell nproc) --output-sync=target

export FUZZTIME ?= 10s

##@ Build

.PHONY: help
help: ## list the targets
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@/ { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z0-9-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: all
all: build arm64 ## everything, for this machine and for the DPU

.PHONY: build
build: deps-build shim provider ## every command, libpno.so and pno.so, into bin/
	@mkdir -p $(BIN)
	$(GOBUILD) -o $(BIN)/ ./cmd/...

.PHONY: shim
shim: ## libpno.so alone, into bin/
	@mkdir -p $(BIN)
	$(MAKE) -C shim all OUT=$(BIN) CC="$(CC)"

.PHONY: provider
provider: ## the OpenSSL provider pno.so alone, into bin/
	@mkdir -p $(BIN)
	$(MAKE) -C crypto/provider all OUT=$(BIN) CC="$(CC)"

.PHONY: arm64
arm64: provider-arm64 ## cross-build every command, libpno.so and pno.so for the DPU, into bin/arm64/
	@mkdir -p $(BIN)/arm64
	GOOS=linux GOARCH=arm64 CGO_ENABLED=0 $(GOBUILD) -o $(BIN)/arm64/ ./cmd/...
	$(MAKE) -C shim all OUT=$(BIN)/arm64 CC="$(CROSS_CC)"

.PHONY: provider-arm64
provider-arm64:
	@mkdir -p $(BIN)/arm64
	scripts/sysroot-arm64.sh $(BIN)/arm64/sysroot
	$(MAKE) -C crypto/provider all OUT=$(BIN)/arm64 CC="$(CROSS_CC)" SYSROOT=$(BIN)/arm64/sysroot

.PHONY: clean
clean: ## remove what was built
	-$(MAKE) -C shim clean OUT=$(BIN)
	-$(MAKE) -C shim/conformance clean OUT=$(BIN)/conformance
	-$(MAKE) -C crypto/provider clean OUT=$(BIN)
	rm -rf $(BIN) $(TOOLS)

##@ Run

.PHONY: demo
demo: ## nginx behind a simulated DPU, checked with curl (ONCE=1: exit after the checks)
	@scripts/deps.sh demo
	@$(MAKE) --no-print-directory build
	@ONCE=$(ONCE) scripts/demo.sh

##@ Test

.PHONY: test
test: ## the whole suite; installs what it needs
	@scripts/test.sh

.PHONY: unit
unit: ## Go unit tests
	$(GO) test $(UNIT_PKGS)

.PHONY: race
race: ## the concurrent packages under the race detector
	$(GO) test -race $(RACE_PKGS)

.PHONY: test-shim
test-shim: ## the C tests of the shim, plain and under the sanitizers
	$(SIDE_BY_SIDE) -C shim test asan tsan OUT=$(BIN) CC="$(CC)"

.PHONY: conformance
conformance: build ## small C programs on kernel sockets and on offloaded ones, transcripts compared
	$(GO) test -count=1 -v ./shim/conformance

.PHONY: hotcalls
hotcalls: build ## instructions of the shim's hot calls against their table (UPDATE=1: write the table)
	$(GO) test -count=1 -v ./bench/hotcalls $(if $(UPDATE),-update)

.PHONY: fuzz-diff
fuzz-diff: build ## random programs of socket calls on kernel and shim, compared: DURATION=1h SEED=n
	$(GO) test -count=1 -v -timeout 0 ./shim/difffuzz -fuzz-for $(or $(DURATION),60s) -fuzz-seed $(or $(SEED),1)

.PHONY: test-provider
test-provider: ## the C tests of the OpenSSL provider, plain and under the sanitizers
	$(SIDE_BY_SIDE) -C crypto/provider test asan tsan OUT=$(BIN) CC="$(CC)"

.PHONY: test-arm64
test-arm64: ## the unit tests of offload/ and dpu/ as arm64 binaries under qemu-user
	GOOS=linux GOARCH=arm64 CGO_ENABLED=0 $(GO) test -exec qemu-aarch64-static $(ARM64_PKGS)
	$(MAKE) test-provider-arm64

# OpenSSL's and the cross compiler's libraries, under qemu-user.
.PHONY: test-provider-arm64
test-provider-arm64: provider-arm64
	$(SIDE_BY_SIDE) -C crypto/provider test OUT=$(BIN)/arm64 CC="$(CROSS_CC)" SYSROOT=$(BIN)/arm64/sysroot \
	  RUN="qemu-aarch64-static -L /usr/aarch64-linux-gnu -E LD_LIBRARY_PATH=$(BIN)/arm64/sysroot/usr/lib/aarch64-linux-gnu"

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (10s)
	@scripts/fuzz.sh

.PHONY: e2e
e2e: build ## real proxies through the offload (root)
	$(GO) test -count=1 -timeout 20m -v ./e2e/...

.PHONY: suites
suites: build ## other people's test suites, natively and offloaded, into docs/suites.md (root; an hour and more; ONLY=glob)
	@scripts/deps.sh suites
	nice -n 10 $(GO) test -count=1 -timeout 3h -v -run TestAll ./e2e/suites -args -all \
	  $(if $(ONLY),-only '$(ONLY)',-record $(CURDIR)/docs/suites.md)

.PHONY: soak
soak: build ## race tests and the end-to-end suite again and again for SOAK (1h)
	@scripts/soak.sh $(or $(SOAK),1h)

##@ Measure

.PHONY: bench
bench: build ## offload and crypto cluster against doing without: into bench/results/ (root, under 20 min)
	@scripts/deps.sh test
	$(BIN)/pno bench table --pairs 5 --duration 2s --readme README.md
	$(BIN)/pno bench handshake --duration 3s -o json >$(BIN)/handshake.json
	$(BIN)/pno bench cryptorpc --duration 2s -o json >$(BIN)/cryptorpc.json
	mv $(BIN)/handshake.json $(BIN)/cryptorpc.json bench/results/

.PHONY: bench-go
bench-go: ## every Go benchmark
	$(GO) test -run '^$$' -bench . -benchmem $(UNIT_PKGS)

.PHONY: bench-compare
bench-compare: ## Go benchmarks of BASE=rev and of this tree, side by side (PKGS, BENCH, COUNT)
	@scripts/bench-compare.sh "$(BASE)"

##@ Keep in order

.PHONY: lint
lint: ## golangci-lint, for both machines, buf lint and shellcheck
	@scripts/lint.sh

.PHONY: gen
gen: ## rewrite what is generated: shim/abi.h, host/counters.go, proto/, docs/compat.md, docs/deps/
	@scripts/gen.sh

.PHONY: check-gen
check-gen: ## fail when generated code is not what `make gen` writes
	@scripts/gen.sh check

.PHONY: deps-build
deps-build:
	@scripts/deps.sh build

##@ Install

.PHONY: install
install: ## copy bin/ below DESTDIR/PREFIX (run make build first)
	@scripts/install.sh install "$(DESTDIR)$(PREFIX)"

.PHONY: uninstall
uninstall: ## remove what install copied
	@scripts/install.sh uninstall "$(DESTDIR)$(PREFIX)"
