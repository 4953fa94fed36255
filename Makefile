# make train       trains on handwritten digits
# make lint        ruff, mypy and codespell
# make test        all tests
# make test-fast   the quick tests: neither slow, nor of several processes, nor compiled
# make notebooks   executes the notebooks
# make docs        builds the site into docs/_build
#
# Each target makes .venv if it does not exist.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# One worker more than cores, since some tests wait for processes; with compiled files, which the processes read.
WORKERS := $(shell $(PYTHON) -c 'import os; print(min(4, os.cpu_count() + 1))')
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

# make test PYTHON=python3.12 replaces a .venv of another Python version.
ifneq ($(filter command environment,$(firstword $(origin PYTHON))),)
version = $(shell $(1) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
ifneq ($(call version,$(PYTHON)),$(call version,$(BIN)/python))
$(shell rm -rf .venv)
endif
endif

.PHONY: train lint test test-fast notebooks docs clean

train: $(INSTALLED)
	$(BIN)/pyro-vae train --config experiments/digits.yaml

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

test: $(INSTALLED)
	$(PYTEST)

test-fast: $(INSTALLED)
	$(PYTEST) -m "not slow and not processes and not inductor"

notebooks: $(INSTALLED)
	$(BIN)/python notebooks/execute.py

docs: $(INSTALLED)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --jobs auto docs docs/_build

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev,docs]'
	@touch $@

clean:
	rm -rf .venv
