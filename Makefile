# What a newcomer types: `make demo`, then `make test`. Everything else is for developers.
# uv is used from PATH when it is there, else installed into .tools (a private virtual environment).
.DEFAULT_GOAL := help
SHELL := /bin/sh

PYTHON ?= python3
UV := $(shell command -v uv 2>/dev/null || echo .tools/bin/uv)
RUN := $(UV) run --no-sync
# Bytecode at once: without it each start compiles torch and transformers anew where Python may not
# write it later (PYTHONDONTWRITEBYTECODE, a read-only folder), which doubles the time to a first token.
SYNC := $(UV) sync --locked --all-extras --compile-bytecode

# The docs' tools alone, into the same .venv and beside what is there; the theme's notice of its
# end is left out of the output (pyproject.toml has the date).
MKDOCS := NO_MKDOCS_2_WARNING=1 $(UV) run --locked --only-group docs mkdocs

# Options of `hack/kind run`, and the tests that `make e2e` and `make kind-test` run.
KIND_OPTIONS ?=
E2E_TESTS ?= tests/e2e
IMAGE_TOOLS := buildah:buildah skopeo:skopeo debootstrap:debootstrap
QUEUE_TOOLS := redis-check-rdb:redis-tools
DOCKER_TOOLS := dockerd:docker.io iptables:iptables

# $(call packages,tool:package …) installs the Debian packages of those tools that are missing.
define packages
@missing=; for pair in $(1); do \
  command -v "$${pair%%:*}" >/dev/null || missing="$$missing $${pair#*:}"; done; \
  [ -z "$$missing" ] && exit; \
  [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null || { \
  echo "not here:$$missing. Install them, or run this as root where there is apt-get" >&2; exit 2; }; \
  apt-get update -q && apt-get install -y -q --no-install-recommends $$missing
endef

.PHONY: help install demo test check lint types contracts rig unit e2e kind-test crd chart images docs docs-serve bench clean

help: ## This list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.tools/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "llmtaskpool needs Python >= 3.11; '$(PYTHON)' is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv .tools
	.tools/bin/python -m pip install --quiet 'uv>=0.9,<1'

install: $(filter .tools/bin/uv,$(UV)) ## Install what is needed into .venv, from the lock file
	$(SYNC)

demo: install ## A pool on this machine does a burst of real, mixed work and says what it did
	$(RUN) llmtaskpool local --demo

test: install check rig unit ## Every check, and every test that needs no root

check: lint types contracts ## Static checks

lint: ## ruff: rules and format
	$(RUN) ruff check .
	$(RUN) ruff format --check .

types: ## mypy, strict
	$(RUN) mypy

contracts: ## Who may import whom, and the rooms that this draws
	$(RUN) lint-imports
	$(RUN) python hack/rooms.py --check

rig: ## Build the test cluster's control plane and helm: 12 minutes once, then seconds
	$(RUN) python hack/cluster build --control-plane
	$(RUN) python hack/cluster build --only helm

unit: ## All tests but those of tests/e2e
	$(call packages,$(QUEUE_TOOLS))
	$(RUN) pytest --ignore=tests/e2e -n 5

e2e: install ## Our images on a real node, as root: 20 minutes once, then a few
	$(call packages,$(IMAGE_TOOLS))
	$(RUN) python hack/cluster build
	$(RUN) pytest $(E2E_TESTS)

kind-test: install ## The same on real kind, as root: where no Docker runs, one is started for it
	$(call packages,$(IMAGE_TOOLS) $(shell docker info >/dev/null 2>&1 || echo $(DOCKER_TOOLS)))
	$(RUN) python hack/cluster build --only kubectl --only helm
	$(RUN) python hack/kind run $(KIND_OPTIONS) -- pytest $(E2E_TESTS)

crd: ## Write crds/llmtaskpool.yaml and docs/reference.md anew from the model
	$(RUN) llmtaskpool crd > crds/llmtaskpool.yaml
	$(RUN) llmtaskpool crd --reference > docs/reference.md
	$(MAKE) chart

chart: ## Write what is made from crds/ and the chart: its CRD, its table of values, deploy/install.yaml
	$(RUN) python hack/chart.py

images: ## Build the operator's and the worker's image, without Docker (docs/images.md)
	$(RUN) python hack/images build operator worker

docs: $(filter .tools/bin/uv,$(UV)) ## The pages as a site, into site/; a broken link fails
	$(MKDOCS) build
	@echo "Open $(CURDIR)/site/index.html (with search: make docs-serve)"

docs-serve: $(filter .tools/bin/uv,$(UV)) ## The same at http://127.0.0.1:8000, anew at each change
	$(MKDOCS) serve

bench: ## The benchmarks behind the README's tables
	$(RUN) python benchmarks/engine.py
	$(RUN) python benchmarks/scheduler.py
	$(RUN) python benchmarks/start.py

clean: ## Remove what the targets above installed and built here
	rm -rf .venv .tools site
