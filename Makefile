.PHONY: help install run test lint bench chaos lock clean
.DEFAULT_GOAL := help

BIN := .venv/bin
# How many tests run at a time: more than two cores, for many of them wait.
JOBS ?= 3
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist worksteal
COMPILE = pip compile pyproject.toml --quiet --generate-hashes --no-emit-index-url --python-version 3.11 --universal --custom-compile-command "make lock"

help:  ## Show this
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/installed  ## Make .venv with what it takes to run

run: install  ## Install what is missing and start everything: API, worker, Temporal
	@exec $(BIN)/perdure up

test: .venv/installed-dev  ## Lint, then the whole suite on SQLite and on Postgres
	@deploy/packages.sh nodejs || $(MAY_SKIP) "the tests with packages from npm"
	@deploy/packages.sh redis-server || $(MAY_SKIP) "the tests with a Redis"
	@deploy/packages.sh bubblewrap || $(MAY_SKIP) "the tests of the shell's sandbox"
	@deploy/packages.sh chromium || $(MAY_SKIP) "the tests in a browser"
	@$(MAKE) --no-print-directory lint
	PERDURE_TEST_DATABASE=sqlite $(PYTEST)
	@if deploy/packages.sh postgresql; then \
		echo 'PERDURE_TEST_DATABASE=postgres $(PYTEST) -m "not single_database"'; \
		PERDURE_TEST_DATABASE=postgres $(PYTEST) -m "not single_database"; \
	else $(MAY_SKIP) "the round on Postgres"; fi

lint: .venv/installed-dev  ## Style, formatting, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: .venv/installed-dev  ## Measure, and print the figures
	$(BIN)/python -m benchmarks

chaos: .venv/installed-dev  ## Kill at random for five minutes, run the proofs, print what held (ARGS="--seconds 60")
	@deploy/packages.sh postgresql || true
	@deploy/packages.sh redis-server || true
	$(BIN)/python -m tests.chaos $(ARGS)

lock: .venv/installed-dev  ## Resolve the dependencies anew into the lock files (UPGRADE=1: to the latest)
	@command -v uv >/dev/null || $(BIN)/python -m pip install --quiet uv
	PATH="$$PATH:$(BIN)" uv $(COMPILE) --group dev $(if $(UPGRADE),--upgrade) -o requirements-dev.lock
	PATH="$$PATH:$(BIN)" uv $(COMPILE) --group build --constraint requirements-dev.lock -o requirements.lock

clean:  ## Remove what was installed and cached; data folders stay
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache tests/node/node_modules

# In CI nothing is skipped; elsewhere it is said loudly.
MAY_SKIP = sh -c 'printf "*** SKIPPED: %s\n\n" "$$1" >&2; [ "$$CI" != true ]' sh

.venv/installed: requirements.lock pyproject.toml deploy/install.sh
	@deploy/install.sh requirements.lock
	@touch $@

# Holds all of requirements.lock in the same versions, so `make run` has nothing left to do after it.
.venv/installed-dev: requirements-dev.lock requirements.lock pyproject.toml deploy/install.sh
	@deploy/install.sh requirements-dev.lock
	@touch .venv/installed $@
