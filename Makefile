# Four verbs: train, test, lint, notebooks. Each makes .venv if it is not there.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

# Naming a Python (make test PYTHON=python3.12) makes .venv anew where it was made by another version.
ifneq ($(filter command environment,$(firstword $(origin PYTHON))),)
version = $(shell $(1) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
ifneq ($(call version,$(PYTHON)),$(call version,$(BIN)/python))
$(shell rm -rf .venv)
endif
endif

.PHONY: train test lint notebooks clean

train: $(INSTALLED)
	$(BIN)/pyro-vae train --config experiments/digits.yaml

test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

notebooks: $(INSTALLED)
	$(BIN)/python notebooks/execute.py

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv
