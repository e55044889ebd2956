# Everything runs in .venv, which is made and kept up to date by the stamps below it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
INPUTS := pyproject.toml constraints.txt
# Processes that share the tests, one thread each.
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test lint format docs bench bench-peers clean

help:  ## Say what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

demo: $(VENV)/.core  ## Install, train on the built-in scene, write map and report
	$(BIN)/vitreous demo

test: $(VENV)/.dev  ## Run the tests
	MPLBACKEND=Agg OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

lint: $(VENV)/.dev  ## Check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.dev  ## Format the code and mend what can be mended automatically
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs  ## Rewrite the generated sections and build the site
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/.core  ## Measure again what the docs say (takes long)
	@set -e; for script in $(filter-out benchmarks/peers.py,$(wildcard benchmarks/[a-z]*.py)); do echo "$$script"; $(BIN)/python "$$script"; done

bench-peers: $(VENV)-peers/.stamp  ## Measure our architectures against timm, in an environment of its own
	$(VENV)-peers/bin/python benchmarks/peers.py

clean:  ## Remove the environment and everything that was built
	rm -rf $(VENV) $(VENV)-peers build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vitreous needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

# The stamps are touched only after a complete installation: a broken one is done again.
$(VENV)/.core: $(INPUTS) | $(VENV)/bin/python
	@echo "Installing vitreous into $(VENV) (a few minutes the first time) ..."
	$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(INPUTS) | $(VENV)/bin/python
	@echo "Installing vitreous and its tools into $(VENV) (a few minutes the first time) ..."
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.core

$(VENV)/.docs: $(INPUTS) | $(VENV)/bin/python
	$(PIP) -e '.[docs]'
	@touch $@ $(VENV)/.core

# timm needs torchvision, which loads beside the torch of its own release only: no constraints here.
$(VENV)-peers/.stamp: pyproject.toml | $(VENV)/bin/python
	$(PYTHON) -m venv $(VENV)-peers
	$(VENV)-peers/bin/python -m pip install --quiet --disable-pip-version-check -e . torchvision timm
	@touch $@
