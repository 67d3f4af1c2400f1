# `make help` lists the targets.
SHELL := /bin/sh
GO := scripts/go
BUILD := build
FUZZTIME ?= 10s
TESTFLAGS ?= -race
LINT_VERSION := v2.15.0
VULN_VERSION := v1.1.4
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

export VANTAGE_CACHE ?= $(CURDIR)/.cache
export CGO_ENABLED = 1

.PHONY: all build setup demo test lint bench fuzz clean help

all: build ## Build ./vantage

help: ## List the targets
	@sed -n 's/^\([a-z][a-z]*\):.*## /\1\t/p' Makefile | sort

setup: ## Install the packages that are missing (root)
	@scripts/setup

build: ## Build ./vantage (installs compiler and libyara when missing)
	@scripts/setup --build-only
	@$(GO) build -ldflags "-X main.version=$(VERSION)" -o vantage ./cmd/vantage

demo: setup build ## Three real guests, one infected: found, reported, paused. KEEP=1 leaves them running
	@./vantage demo $(if $(KEEP),--keep)

test: setup ## All tests, real guests included
	@$(GO) vet ./...
	@$(GO) test $(TESTFLAGS) -timeout 40m ./...

lint: setup ## gofmt, go vet, golangci-lint with the walls between packages, govulncheck where it can run
	@scripts/lint $(LINT_VERSION) $(VULN_VERSION)

bench: setup build ## Measure every figure in docs/SPECIFICATION.md, in one run. ONLY=core: a part
	@scripts/bench $(if $(ONLY),-only "$(ONLY)")

fuzz: setup ## Run each fuzz test for FUZZTIME (default 10s)
	@scripts/fuzz $(FUZZTIME)

clean: ## Remove what was built (the cache of kernels stays: .cache)
	@rm -rf vantage $(BUILD)
