# Every target does its own set-up: packages, kernel, build, and the test bed where there is no
# hardware virtualisation. `make help` lists them.

PREFIX ?= /usr/local
DESTDIR ?=
CARGO ?= cargo

# The binaries are static: they start faster, run in any mount namespace, and the agent has no
# libraries to load from in a guest. The explicit target keeps the flag off build scripts.
TARGET := x86_64-unknown-linux-gnu
STATIC := RUSTFLAGS="-C target-feature=+crt-static"
OUT := target/$(TARGET)/release
IMAGE := target/guest-image
STAGE := target/stage

.PHONY: help setup build image install deb stage demo test bed fuzz bench clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

setup: ## install the packages that building and testing need
	@tests/setup

build: setup image ## build every binary and the guest image

# One call builds all of them, so that shared dependencies are compiled once.
binaries: setup
	$(STATIC) $(CARGO) build --locked --release --target $(TARGET) \
		-p cloister -p cloister-vmm -p cloister-fs -p cloister-agent
.PHONY: binaries install-programs

image: binaries
	$(CARGO) run --locked --quiet -p cloister-guest-image -- \
		build --agent $(OUT)/cloister-agent --output $(IMAGE)

install: build install-programs ## install below DESTDIR and PREFIX (default /usr/local)
	$(CARGO) run --locked --quiet -p cloister --example manual -- $(DESTDIR)$(PREFIX)/share

install-programs: build
	install -D -m 0755 $(OUT)/cloister $(DESTDIR)$(PREFIX)/bin/cloister
	install -D -m 0755 $(OUT)/containerd-shim-cloister-v2 $(DESTDIR)$(PREFIX)/bin/containerd-shim-cloister-v2
	install -D -m 0755 $(OUT)/cloister-pause $(DESTDIR)$(PREFIX)/libexec/cloister/cloister-pause
	install -D -m 0755 $(OUT)/cloister-vmm $(DESTDIR)$(PREFIX)/libexec/cloister/cloister-vmm
	install -D -m 0755 $(OUT)/cloister-fs $(DESTDIR)$(PREFIX)/libexec/cloister/cloister-fs
	install -D -m 0644 $(IMAGE)/vmlinux $(DESTDIR)$(PREFIX)/share/cloister/vmlinux
	install -D -m 0644 $(IMAGE)/initramfs.cpio $(DESTDIR)$(PREFIX)/share/cloister/initramfs.cpio
	install -D -m 0644 $(IMAGE)/manifest.json $(DESTDIR)$(PREFIX)/share/cloister/manifest.json

DEB_ROOT := target/deb

deb: ## build a Debian package below target
	rm -rf $(DEB_ROOT)
	@$(MAKE) --no-print-directory install DESTDIR=$(DEB_ROOT) PREFIX=/usr
	printf '# See /usr/share/doc/cloister/configuration.md.\n' >$(DEB_ROOT)-config
	install -D -m 0644 $(DEB_ROOT)-config $(DEB_ROOT)/etc/cloister/config.toml
	install -D -m 0644 -t $(DEB_ROOT)/usr/share/doc/cloister docs/*.md LICENSE
	install -D -m 0644 -t $(DEB_ROOT)/usr/share/doc/cloister/deploy/containerd deploy/containerd/*.toml
	install -D -m 0644 -t $(DEB_ROOT)/usr/share/doc/cloister/deploy deploy/*.yaml
	@deploy/debian/build $(DEB_ROOT) target

# What the bed puts on its PATH.
stage:
	@$(MAKE) --no-print-directory install-programs DESTDIR=$(STAGE) PREFIX=/usr/local

demo: stage ## run a BusyBox container in a virtual machine
	@tests/demo

test: stage ## run every test
	@tests/run

bed: stage ## open a shell in the test bed
	@tests/bed shell

SECONDS ?= 60

fuzz: ## run every fuzz target for SECONDS (default 60)
	@tests/setup --fuzz
	@tests/fuzz $(SECONDS)

bench: stage ## measure against runc and crun, in the bed, by counting instructions
	@tests/setup --bench
	@tests/bench

clean: ## remove what was built (the kernel stays in its cache)
	-tests/bed down
	$(CARGO) clean
