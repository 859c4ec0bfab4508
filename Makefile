# Two commands matter: `make demo` and `make test`. Both set up what is missing first.

# Another Python: make PYTHON=python3.13 …
PYTHON ?= python3
# Another kernel source than the distribution's package: make KERNEL_SOURCE=~/src/linux …
KERNEL_SOURCE ?=
# One benchmark only: make bench ONLY=mi
ONLY ?=
# More for pytest: make test PYTEST_ARGS='-k console -x'
PYTEST_ARGS ?=

# `nix develop` brings the Python packages itself and sets VMDEBUG_NO_VENV.
ifdef VMDEBUG_NO_VENV
BIN :=
VENV :=
else
BIN := .venv/bin/
VENV := .venv/installed
endif
ON_PATH := PATH="$(if $(BIN),$(CURDIR)/$(BIN):)$$PATH"

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help setup host kernel demo test lint bench clean

help:
	@echo 'make demo    set up everything, then debug the builtin guest as an example'
	@echo 'make test    set up everything, then lint and all tests'
	@echo 'make setup   install what is missing: packages through apt, a .venv from requirements.txt'
	@echo 'make lint    ruff, mypy, import-linter'
	@echo 'make bench   figures against their baselines; ONLY=NAME runs one'
	@echo 'make clean   remove what make made here (built kernels stay in ~/.cache/vmdebug)'

setup: host $(VENV)
	@$(BIN)vmdebug doctor --quiet

host:
	@scripts/apt-setup

# pip's own settings on this machine may name other indexes; the hashes hold whatever they are.
.venv/installed: requirements.txt pyproject.toml | host
	@echo 'setup: installing the Python packages of requirements.txt into .venv'
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"setup: Python 3.11 or newer is needed, this is {sys.version.split()[0]}: make PYTHON=… names another")'
	@.venv/bin/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	@PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 .venv/bin/python -m pip install -q --require-hashes -r requirements.txt
	@PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 .venv/bin/python -m pip install -q --no-deps -e .
	@touch $@

kernel: setup
	@$(BIN)vmdebug kernel build --quiet $(if $(KERNEL_SOURCE),--source $(KERNEL_SOURCE))

demo: kernel
	@$(ON_PATH) examples/demo

test: setup lint kernel
	$(BIN)pytest $(PYTEST_ARGS)

lint: setup
	$(BIN)ruff check
	$(BIN)ruff format --check
	$(if $(VENV),$(BIN)mypy,@echo 'lint: types are not checked: nixpkgs has no types-gdb')
	$(BIN)lint-imports

bench: kernel
	@$(ON_PATH) python -m bench.run $(ONLY)

clean:
	rm -rf .venv .make dist bench/out .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
