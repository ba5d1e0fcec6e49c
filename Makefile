# `make train` and `make test` are all that a fresh machine needs; both build .venv first.
PYTHON ?= python3
JAX ?= cpu
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
ARGS ?=
ACCELERATOR := $(if $(filter-out cpu,$(JAX)),$(comma)$(JAX),)
comma := ,
ifneq ($(shell command -v uv 2>/dev/null),)
  CREATE := uv venv --quiet --allow-existing --python $(PYTHON) $(VENV)
  INSTALL := uv pip install --quiet --python $(BIN)/python -c constraints.txt
else
  CREATE := $(PYTHON) -m venv $(VENV)
  INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
endif

.PHONY: train test test-fast test-slow lint notebooks benchmark docs clean
.DEFAULT_GOAL := test

$(BIN)/python:
	$(CREATE)

# One stamp for each set of extras, so that `make train` installs only what training needs.
$(VENV)/.train-$(JAX): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e ".[train$(ACCELERATOR)]"
	@touch $@
$(VENV)/.dev-$(JAX): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e ".[dev$(ACCELERATOR)]"
	@touch $@ $(VENV)/.train-$(JAX)
$(VENV)/.benchmark: $(VENV)/.dev-$(JAX)
	$(INSTALL) -e ".[benchmark]"
	@touch $@

train: $(VENV)/.train-$(JAX)  ## train the language model on the embedded text
	$(BIN)/jaxkit train $(ARGS)

# The slow tests, and pytest by itself, compile with XLA's optimisations.
test: $(VENV)/.dev-$(JAX)  ## the whole quick test suite
	JAXKIT_QUICK_COMPILE=1 $(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

test-slow: $(VENV)/.dev-$(JAX)  ## the experiments and multi-process runs
	$(BIN)/python -m pytest -n $(WORKERS) -m slow $(ARGS)

lint: $(VENV)/.dev-$(JAX)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

notebooks: $(VENV)/.dev-$(JAX)  ## execute every notebook
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=600 -n $(WORKERS) -o addopts= notebooks

benchmark: $(VENV)/.benchmark  ## this project beside its peers
	$(BIN)/python scripts/benchmark.py $(ARGS)

docs: $(VENV)/.dev-$(JAX)  ## the site in site/, checked
	$(BIN)/python scripts/site/build.py
	$(BIN)/python scripts/site/check.py

clean:
	rm -rf $(VENV) site dist .pytest_cache .ruff_cache
