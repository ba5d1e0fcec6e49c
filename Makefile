# `make train` and `make test` are all that a fresh machine needs; both build .venv first.
PYTHON ?= python3
JAX ?= cpu
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
ARGS ?=
comma := ,
ACCELERATOR := $(if $(filter-out cpu,$(JAX)),$(comma)$(JAX),)
ifneq ($(shell command -v uv 2>/dev/null),)
  CREATE := uv venv --quiet --allow-existing --python $(PYTHON) $(VENV)
  INSTALL := uv pip install --quiet --python $(BIN)/python -c constraints.txt
else
  CREATE := $(PYTHON) -m venv $(VENV)
  INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
endif

# One room (make test ROOM=federated), or all.
ROOM ?=
PATHS := $(if $(ROOM),$(wildcard tests/$(ROOM) jaxkit/$(ROOM)))
# What each room is for, as its examples show it.
FAST := tests/test_files.py tests/test_logs.py tests/test_validation.py tests/test_readme.py \
  $(addprefix jaxkit/, schedules/profile_schedules.py width/adamw.py losscurves/curves.py \
  privacy/clipped_gradients.py federated/simulation.py lexinvariant/objective.py \
  continual/stream_runs.py submodular/cardinality.py subrl/fitting.py models/generation.py \
  training/driver.py datasets jobs/sampling.py experiments/evidence.py)

.PHONY: help train test test-fast test-slow test-tpu lint notebooks benchmark docs clean
.DEFAULT_GOAL := test

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12
	@echo 'JAX=cuda13, cuda12 or tpu installs for a device; WORKERS=8 tests in 8 processes; ARGS is passed on.'

$(BIN)/python:
	$(CREATE)

# One stamp for each set of extras, so that `make train` installs only what training needs.
$(VENV)/.train-$(JAX): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e ".[train$(ACCELERATOR)]"
	@touch $@
$(VENV)/.dev-$(JAX): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e ".[dev$(ACCELERATOR)]"
	@touch $@ $(VENV)/.train-$(JAX)
# Apart from the other packages, so that nothing else takes this machine for a TPU's host.
$(VENV)/.tpu: $(VENV)/.dev-$(JAX)
	$(INSTALL) --target $(VENV)/tpu --no-deps libtpu
	@touch $@
$(VENV)/.benchmark: $(VENV)/.dev-$(JAX)
	$(INSTALL) -e ".[benchmark]"
	@touch $@

train: $(VENV)/.train-$(JAX)  ## train the language model on the embedded text
	$(BIN)/jaxkit train $(ARGS)

# The slow tests, and pytest by itself, compile with XLA's optimisations and check each call against
# its annotations, which takes a sixth of the time.
QUICKLY := JAXKIT_QUICK_COMPILE=1 JAXTYPING_DISABLE=1
test: $(VENV)/.dev-$(JAX)  ## every quick test, or those of one room: make test ROOM=federated
	$(if $(ROOM),$(if $(PATHS),,$(error ROOM=$(ROOM) is no room)))
	$(QUICKLY) $(BIN)/python -m pytest -n $(WORKERS) $(PATHS) $(ARGS)

test-fast: $(VENV)/.dev-$(JAX)  ## a smoke of every room, under a minute
	$(QUICKLY) $(BIN)/python -m pytest -n $(WORKERS) $(FAST) $(ARGS)

test-slow: $(VENV)/.dev-$(JAX)  ## the experiments and multi-process runs
	$(BIN)/python -m pytest -n $(WORKERS) -m slow $(ARGS)

# Skipped, saying why, where the TPU's compiler cannot be installed.
test-tpu: $(VENV)/.dev-$(JAX)  ## the programs for TPU pods, compiled without a TPU
	-@$(MAKE) --no-print-directory $(VENV)/.tpu
	PYTHONPATH=$(VENV)/tpu $(BIN)/python -m pytest -n $(WORKERS) -m tpu -rs $(ARGS)

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

clean:  ## remove what was built
	rm -rf $(VENV) site dist .pytest_cache .ruff_cache
