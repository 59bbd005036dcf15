# Needs Python 3.11+ and make; everything else is set up here.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test test-real demo bench lint audit contracts clean

run: $(VENV)/.run
	@exec $(BIN)/gateway serve

test: $(VENV)/.dev lint
	$(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder -m "not real" tests

test-real: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m real tests

demo: $(VENV)/.run
	@$(BIN)/python -m tests.demo

bench: $(VENV)/.run
	@$(BIN)/python -m tests.bench

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Exits 1 for a known vulnerability with a fix, 75 where the advisory database could not be asked.
audit: $(VENV)/.dev
	@$(BIN)/python -m tests.audit $(AUDIT)

contracts: $(VENV)/.dev
	$(BIN)/python contracts/compile.py

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, this is " + sys.version if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --disable-pip-version-check -q --require-hashes -r requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.run
	$(BIN)/python -m pip install --disable-pip-version-check -q --require-hashes -r requirements-dev.txt
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
