# EmberFS: the commands of README.md and CONTRIBUTING.md. `make` alone lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

CARGO ?= cargo
TARGET := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),$(CURDIR)/target)
PACKAGES := clang libclang-dev fuse3 pkg-config python3
# What tests run on a mount.
TEST_PACKAGES := git rsync
# Where `make run` keeps its cluster and mounts it.
DIR ?= $(CURDIR)/emberfs-data
MNT ?= $(CURDIR)/emberfs-mnt
SEEDS ?= 200
PREFIX ?= /usr/local

# RocksDB is compiled once per machine, not once per profile and target directory.
export ROCKSDB_STATIC := 1
ROCKSDB = ROCKSDB_LIB_DIR="$${ROCKSDB_LIB_DIR:-$$(.ci/rocksdb-archive)}"
BUILD = export $(ROCKSDB); $(CARGO)
NEXTEST := $(shell command -v cargo-nextest 2>/dev/null)

.PHONY: help deps build run test lint fmt fmt-check sim bench bench-peers soak install clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

deps: ## install the Debian packages that the build needs
	@missing=$$(for p in $(PACKAGES); do \
	    dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q '^install ok installed' || echo $$p; done); \
	missing=$$(echo $$missing); \
	if [ -n "$$missing" ]; then \
	    if [ "$$(id -u)" = 0 ]; then \
	        echo "Installing $$missing" >&2; \
	        { apt-get update && DEBIAN_FRONTEND=noninteractive \
	            apt-get install -y --no-install-recommends $$missing; } >/dev/null; \
	    else \
	        echo "Packages are missing; run: sudo apt-get install -y $$missing" >&2; exit 1; \
	    fi; \
	fi
	@command -v $(CARGO) >/dev/null || { echo "Rust is missing; see https://rustup.rs" >&2; exit 1; }

build: deps ## build target/release/emberfs
	@$(BUILD) build --release --locked -p emberfs

run: build ## bring up a cluster, mount it, write and read a file through the mount
	@.ci/first-light "$(TARGET)/release/emberfs" "$(DIR)" "$(MNT)"

# The tests of whole clusters run the `emberfs` that is built beside them.
test: PACKAGES += $(TEST_PACKAGES)
test: deps fmt-check lint ## format check, lints, and every test
	@$(BUILD) $(if $(NEXTEST),nextest run --locked --workspace --profile $(if $(CI),ci,default),test --locked --workspace)

fmt: ## format the code
	@$(CARGO) fmt --all

fmt-check:
	@$(CARGO) fmt --all --check

lint: deps ## clippy, warnings denied
	@$(BUILD) clippy --locked --workspace --all-targets -- -D warnings

sim: deps ## simulate clusters under faults: make sim SEEDS=10000, or SEED=7, FAMILY=leases (docs/simulation.md)
	@export EMBERFS_SIM_SEEDS=$(SEEDS) $(foreach v,SEED FAMILY FROM MUTANT,$(if $($v),EMBERFS_SIM_$v=$($v))); \
	$(BUILD) test --release --locked -p emberfs-storage --lib sim::tests::long_run -- --exact --ignored --nocapture

bench: build ## measure floors, then EmberFS natively and through the mount: make bench SIZE=256M ROUNDS=1
	@export OUT="$${OUT:-$(TARGET)/bench}" $(foreach v,SIZE FILES ROUNDS DURATION STORAGE REPLICAS BENCH_DIR MEMORY_DIR PAGE,$(if $($v),$v="$($v)")); \
	tools/bench/suite.py "$(TARGET)/release/emberfs"

bench-peers: build ## EmberFS beside GlusterFS, CephFS and MooseFS, as root: make bench-peers ROUNDS=1 SYSTEMS=emberfs,cephfs
	@export OUT="$${OUT:-$(TARGET)/bench}" $(foreach v,SYSTEMS SIZE FILES ROUNDS DURATION BENCH_DIR PAGE,$(if $($v),$v="$($v)")); \
	tools/bench/peers.py "$(TARGET)/release/emberfs"

soak: build ## a cluster under full load and random kills: make soak MINUTES=20
	@export $(foreach v,MINUTES STORAGE REPLICAS SEED BENCH_DIR OUT,$(if $($v),$v="$($v)")); \
	tools/bench/soak.py "$(TARGET)/release/emberfs"

install: build ## build the library for C; install emberfs and its C library under PREFIX (/usr/local), and mount(8)'s helper in /sbin
	@$(BUILD) build --release --locked -p emberfs-c
	@install -D -m 755 "$(TARGET)/release/emberfs" "$(DESTDIR)$(PREFIX)/bin/emberfs"
	@install -D -m 755 -t "$(DESTDIR)$(PREFIX)/lib" "$(TARGET)/release/libemberfs_c.so"
	@install -D -m 644 -t "$(DESTDIR)$(PREFIX)/lib" "$(TARGET)/release/libemberfs_c.a"
	@install -D -m 644 -t "$(DESTDIR)$(PREFIX)/include" client/c/include/emberfs.h
	@install -d "$(DESTDIR)/sbin"
	@ln -sfn "$(PREFIX)/bin/emberfs" "$(DESTDIR)/sbin/mount.emberfs"

clean: ## remove build results (data of `make run` stays: emberfs down --purge)
	@$(CARGO) clean
