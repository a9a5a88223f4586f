# `make run` trains the default experiment, `make test` checks everything. Both set up .venv first.
.DEFAULT_GOAL := help
.PHONY: help install run test test-long lint types bench docs docs-serve clean

PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	$$python -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
# Processes that share the tests.
WORKERS ?= 2
INSTALLED := .venv/installed
export FLWR_TELEMETRY_ENABLED = 0
export FLWR_DISABLE_UPDATE_CHECK = 1
# Of Material's authors, whose next tool is another: mkdocs<2 is what the group docs asks for.
export NO_MKDOCS_2_WARNING = 1
# Compiled once, not again by every process of a test.
export PYTHONDONTWRITEBYTECODE =

help:
	@echo "make run        train the default experiment (OVERRIDES='rounds=5 seed=1' changes it)"
	@echo "make test       lint, types, tests, one real run: under 10 minutes on 2 cores"
	@echo "make test-long  the tests that need real runs of minutes"
	@echo "make bench      measure speed and sizes into benchmarks/RESULTS.md (ONLY='server_step attacks')"
	@echo "make docs       build the site into build/site; make docs-serve shows it"
	@echo "make install    only set up .venv"
	@echo "make clean      remove .venv and caches"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11 to 3.13 with venv found: install one (on" \
	"Debian also python3-venv), or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable ".[app]" --group dev --group docs
	@touch $(INSTALLED)

run: install
	$(BIN)/fedpw $(OVERRIDES)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

test: lint types
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-long: install
	$(BIN)/python -m pip install --quiet --group lora
	$(BIN)/python -m pytest -m long

bench: install
	$(BIN)/python benchmarks/run.py $(ONLY) $(if $(DATA),--data $(DATA))

docs: install
	$(BIN)/mkdocs build --strict

docs-serve: install
	$(BIN)/mkdocs serve

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
