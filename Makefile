# Every target works on a fresh machine: `.venv` and the pinned packages come by themselves.
SHELL := /bin/bash
PY ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install run up test test-debian check format docs report lock clean bench bench-micro bench-peers faults soak

help: ## show this help
	@echo "Rushgate: takes the orders of a flash sale. Targets:"
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12 | sed 's/^/  make /'
	@echo "  Settings: docs/operations.md.  The command: $(BIN)/rushgate --help"

$(STAMP): requirements.lock pyproject.toml
	@command -v $(PY) >/dev/null || { echo "make: $(PY) not found: install Python 3.11, or name yours with PY=..."; exit 2; }
	@test -x $(BIN)/python || $(PY) -m venv $(VENV)
	@echo "installing the pinned packages into $(VENV) (the first time takes a minute)"
	@$(BIN)/pip install -q --require-hashes -r requirements.lock
	@$(BIN)/pip install -qq --no-deps --no-build-isolation -e .
	@touch $@

install: $(STAMP) ## make .venv with the pinned packages

run: $(STAMP) ## the main job: the stack, the sample campaign, a real rush, the audit (ONCE=1: then exit)
	@exec $(BIN)/rushgate demo $(if $(filter 1,$(ONCE)),--once)

up: $(STAMP) ## only the stack, in the foreground
	@exec $(BIN)/rushgate up

test: $(STAMP) ## all tests, against real services that the tests start themselves (JOBS=2 processes)
	@$(BIN)/python -m pytest -m "$$(tests/tools.sh)" -n $(or $(JOBS),2) --dist loadfile --no-loadscope-reorder

test-debian: $(STAMP) ## the tests of store and ledger on Debian's Redis 7.0 and Postgres 15
	@tests/debian.sh

check: $(STAMP) ## ruff, mypy --strict, the import rules, the dependency audit
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@said=$$($(BIN)/lint-imports 2>&1) || { echo "$$said"; exit 1; }
	@$(BIN)/python -m tests.dependencies

format: $(STAMP) ## let ruff format and mend what it can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

docs: $(STAMP) ## make the tables of docs/operations.md from the code
	@$(BIN)/python -m ops.documents

faults: $(STAMP) ## the stack under drawn faults, judged: SEED=… MINUTES=… (10), or ROUNDS=…; FAULTS=a,b names them
	@$(BIN)/python -m tests.faults.nemesis $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES)) \
		$(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(FAULTS),--faults $(FAULTS))

soak: $(STAMP) ## steady load with restarts, judged, flat after each drain? MINUTES=… (30) SEED=…
	@$(BIN)/python -m tests.faults.soak $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES))

bench: $(STAMP) ## the figures of docs/performance.md on this machine
	@$(BIN)/python -m bench

bench-peers: $(STAMP) ## Rushgate beside FastAPI, Fastify, nginx + Lua and a bare echo, one run (20 minutes)
	@$(BIN)/python -m bench.peers.install
	@$(BIN)/python -m bench peers sold_out

bench-micro: $(STAMP) ## the hot functions against their stored ratios; fails at more than 20 %
	@$(BIN)/python -m bench.micro

report: $(STAMP) ## the tables of docs/performance.md and of the README from bench/results
	@$(BIN)/python -m bench.report

lock: $(STAMP) ## resolve the dependencies again and pin them with hashes
	@$(BIN)/pip-compile -q --all-extras --generate-hashes --allow-unsafe --strip-extras \
		--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-header --output-file requirements.lock pyproject.toml
	@$(BIN)/pip-compile -q --extra console --extra tracing --extra build --constraint requirements.lock --generate-hashes \
		--allow-unsafe --strip-extras --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-header \
		--output-file deploy/container/requirements.lock pyproject.toml

clean: ## remove .venv and the embedded services' data (stop the stack first)
	@rm -rf $(VENV) .rushgate build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
