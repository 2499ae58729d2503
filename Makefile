# `make` lists the targets. Every target sets the environment up first if it is not there yet.
VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
PYTEST := pytest -n logical --maxprocesses 8 --dist worksteal

# uv honours a wheel folder that pip was set up with.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-fast attack coverage check format constraints clean

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## create .venv with everything in it

$(READY): pyproject.toml constraints.txt
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: python3 is older than 3.11; install Python 3.11 or newer"; exit 2; }
	@if command -v uv >/dev/null; then test -x $(PYTHON) || uv venv --quiet --python "$$(command -v python3)" $(VENV); \
	  else test -x $(VENV)/bin/uv || { python3 -m venv $(VENV) && $(PYTHON) -m pip install --quiet uv; } \
	  || { echo "error: python3 cannot make a virtual environment (Debian, Ubuntu: apt install python3-venv)"; exit 2; }; fi
	@echo "installing into $(VENV) (a minute, once)"
	@PATH="$(VENV)/bin:$$PATH" uv pip install --quiet --compile-bytecode --python $(PYTHON) -e ".[dev]" -c constraints.txt
	@touch $@

quickstart: $(READY)  ## train, evaluate, sample and rank a small transformer on real text (2 minutes)
	@$(PYTHON) projects/custom_transformer/train.py --config configs/quickstart.yaml $(OVERRIDES)
	@$(PYTHON) tools/query_experiments.py --best perplexity

test: $(READY)  ## the whole test suite, a process per core
	@$(PYTHON) -m $(PYTEST)

test-fast: $(READY)  ## the tests that take less than two seconds each
	@$(PYTHON) -m $(PYTEST) -m "not slow"

attack: $(READY)  ## the tests that kill, crowd and draw at random, with their full budgets (15 minutes)
	@FULL_BUDGET=1 $(PYTHON) -m $(PYTEST) -m attack

coverage: $(READY)  ## which lines and branches of common/ the tests run, with the commands they start
	@$(VENV)/bin/coverage erase
	@$(VENV)/bin/coverage run -m $(PYTEST); status=$$?; $(VENV)/bin/coverage combine --quiet; \
	  $(VENV)/bin/coverage report --skip-covered --sort=cover; exit $$status

check: $(READY)  ## black, ruff, mypy --strict and the one-way import contract
	@$(VENV)/bin/black --check --quiet . || { $(VENV)/bin/black --check .; exit 1; }
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy --strict common apps tools
	@$(VENV)/bin/lint-imports

format: $(READY)  ## let black and ruff rewrite what they can
	@$(VENV)/bin/black --quiet .
	@$(VENV)/bin/ruff check --fix --quiet .

constraints: $(READY)  ## pin the newest versions that fit pyproject.toml
	@PATH="$(VENV)/bin:$$PATH" UV_FIND_LINKS= uv pip compile --quiet --universal --no-emit-index-url \
	  --no-header --no-annotate --upgrade --python-version 3.11 --extra dev pyproject.toml -o constraints.txt

clean:  ## remove the environment and the caches (assets/ stays)
	rm -rf $(VENV) .coverage* .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
