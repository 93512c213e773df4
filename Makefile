# Everything a developer or a first-time user runs. `make demo` and `make test` need Python 3.11+ alone;
# node 20.11+ adds the explorer's assets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
EXPLORER := ekoyka/explorer
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help demo test bench chaos format schema lock assets explorer-if-node clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: .venv/runtime.stamp explorer-if-node ## serve a demonstration network (Ctrl-C stops everything)
	@exec $(BIN)/ekoyka demo

test: .venv/tests.stamp ## formatter, linters, types, layers, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

format: .venv/tests.stamp ## let the formatter and the linter mend what they can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/tests.stamp ## measure the server beside its peers (QUICK=1: under five minutes; node adds those on node)
	@QUICK=$(QUICK) $(BIN)/python -m benchmarks

chaos: .venv/tests.stamp ## kill, cut and fill things under load; nothing may be lost (SEED=1; SECONDS=600: for longer)
	@$(BIN)/python -m tests.chaos --seed $(or $(SEED),1) --seconds $(or $(SECONDS),0)

schema: .venv/tests.stamp ## write schema.graphql anew
	$(BIN)/ekoyka schema > schema.graphql

assets: ## build the explorer's assets (node 20.11 or newer)
	npm ci --prefix $(EXPLORER) --no-audit --no-fund --loglevel=error
	npm run --prefix $(EXPLORER) --silent build

explorer-if-node:
	@if compgen -G 'ekoyka/static/explorer/*/explorer.js' > /dev/null; then :; \
	elif command -v npm > /dev/null; then \
		echo '· GraphiQL: сборка, один раз · building the explorer, once'; \
		$(MAKE) --no-print-directory assets || echo '· GraphiQL не собран · the explorer was not built'; \
	else echo '· GraphiQL без node не собрать: make assets (node 20.11+) · no explorer without node'; fi

lock: .venv/python.stamp ## compile the locks, with hashes
	$(PIP) install uv
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-emit-index-url \
		--custom-compile-command 'make lock' --extra demo --extra build pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-emit-index-url \
		--custom-compile-command 'make lock' --extra demo --extra build --group dev -c requirements.lock \
		pyproject.toml -o tests/requirements.lock
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-emit-index-url \
		--custom-compile-command 'make lock' tests/external/requirements.in -o tests/external/requirements.lock

clean: ## remove the environment, built assets and the demonstration's data
	rm -rf .venv .data ekoyka/static $(EXPLORER)/node_modules

.venv/python.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'Нужен Python 3.11 или новее · Python 3.11 or newer is needed: make PYTHON=python3.12 …'; exit 1; }
	@echo '· окружение Python · the Python environment'
	$(PYTHON) -m venv .venv
	@touch $@

.venv/runtime.stamp: .venv/python.stamp requirements.lock pyproject.toml
	@echo '· зависимости · dependencies'
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

.venv/tests.stamp: .venv/python.stamp tests/requirements.lock pyproject.toml
	@echo '· зависимости тестов · the tests'\'' dependencies'
	@$(PIP) install --require-hashes -r tests/requirements.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@
