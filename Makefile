# Everything a fresh clone needs: Python 3.11+, git and make. Each target makes its own environment where it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two workers on two cores; one thread each, or they would fight over the cores.
WORKERS ?= 2

.PHONY: demo test test-slow check format clean
.DEFAULT_GOAL := demo

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: $(STAMP)  ## the whole method on a small world: base, three ways of tuning, table, fold
	$(BIN)/cctuning demo --output demo

test: $(STAMP)  ## the tests (a minute or two on two cores)
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/pytest -n $(WORKERS) --dist loadfile -m "not slow"

test-slow: $(STAMP)  ## what takes longer than a test may
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/pytest -m slow

check: $(STAMP)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## the environment and what the demo made; caches outside the checkout stay
	rm -rf $(VENV) demo build src/*.egg-info
