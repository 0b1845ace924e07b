# `make demo` and `make test` work on a fresh clone with Python 3.11 and make; nothing else is needed.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
RUNS ?= runs

.PHONY: install demo test test-slow check fixtures schemas clean

install: $(VENV)/installed

# constraints.txt pins every package, torch first, so that no resolver can move it.
$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	OMP_NUM_THREADS=1 $(BIN)/mechsafety run experiments/concentration.yaml experiments/similarity.yaml experiments/locality.yaml --out $(RUNS)

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m slow

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(MAKE) test

# Trains the small organisms of tests/fixtures again; the same machine gives the same bits.
fixtures: install
	OMP_NUM_THREADS=1 $(BIN)/python -m mechsafety.organisms.fixtures

# What editors check and complete experiments with; a test says that the files are current.
schemas: install
	OMP_NUM_THREADS=1 $(BIN)/python -m mechsafety.execution.schemas experiments/schemas

clean:
	rm -rf $(VENV) build *.egg-info
