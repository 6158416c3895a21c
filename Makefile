# Each target makes .venv and installs what it needs; a stamp file in .venv makes the second time fast.
# PYTHON=python3.12 make test   takes another interpreter.   MODEL=... make demo   takes another model.
# make mutants RANDOM=40 SEED=1 JOBS=2   makes random changes in kernels/ instead of the known ones.

PYTHON ?= python3
MODEL ?= smollm2-135m
RANDOM ?= 0
SEED ?= 1
JOBS ?= 2
SECONDS ?= 600
BACKEND ?= numpy
BIN := .venv/bin
TYPES := build/types
# Imports that are not installed everywhere, or are compiled without a description: pyright takes all of them as Any.
UNTYPED := cupy cupy/cuda cuda cuda/bindings cuda/pathfinder huggingface_hub \
  matplotlib matplotlib/figure matplotlib/lines matplotlib/patches matplotlib/pyplot

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c

.PHONY: demo test test-fast check format docs mutants soak clean

demo: .venv/.demo
	$(BIN)/python examples/demo.py $(MODEL)

# One BLAS thread: kernels are compiled on the other core meanwhile, and BLAS threads that share a core wait by spinning.
test: .venv/.test
	OPENBLAS_NUM_THREADS=1 $(BIN)/pytest

# One to three minutes: what compiles no kernel and loads no real model. See docs/testing.md.
test-fast: .venv/.test
	OPENBLAS_NUM_THREADS=1 $(BIN)/pytest -m "not slow"

# pyright does not follow setup.cfg's mapping of folders to packages: it gets a copy that is laid out as installed.
check: .venv/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	@rm -rf $(TYPES) && mkdir -p $(TYPES)
	@cp -r engine $(TYPES)/ostinato && cp -r weights $(TYPES)/ostinato/weights && cp -r tests examples pyproject.toml $(TYPES)
	@for name in $(UNTYPED); do mkdir -p $(TYPES)/$$name && \
	  printf 'from typing import Any\n\ndef __getattr__(name: str) -> Any: ...\n' > $(TYPES)/$$name/__init__.py; done
	cd $(TYPES) && ../../$(BIN)/pyright --warnings --pythonpath ../../$(BIN)/python ostinato tests examples \
	  | sed -e 's,build/types/ostinato/weights/,weights/,; s,build/types/ostinato/,engine/,; s,build/types/,,'
	cd $(TYPES) && ../../$(BIN)/python tests/public_types.py ../../$(BIN)/pyright ../../$(BIN)/python

format: .venv/.test
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# The tables and figures of README.md and docs/, from examples/results and the code.
docs: .venv/.test
	$(BIN)/python tests/docs/make_docs.py

mutants: .venv/.test
	$(BIN)/python tests/mutants.py --random $(RANDOM) --seed $(SEED) --jobs $(JOBS)

# Random requests for so many seconds; every answer must be what it is alone. BACKEND=cuda SOAK_MODEL=... on a GPU.
soak: .venv/.test
	OPENBLAS_NUM_THREADS=1 $(BIN)/python tests/engine/soak.py --seconds $(SECONDS) --backend $(BACKEND) $(if $(SOAK_MODEL),--model $(SOAK_MODEL))

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv .venv || { rm -rf .venv; echo "no virtual environment: on Debian, apt-get install python3-venv" >&2; exit 1; }

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable

# Which CUDA wheels: cuda12 or cuda13 by the driver's version, none where there is no GPU.
.venv/.demo: $(BIN)/python setup.cfg pyproject.toml
	@echo "installing into .venv"
	@$(PIP) .
	@extra=$$($(BIN)/ostinato doctor --extra) && if [ -n "$$extra" ]; then \
	  echo "installing the CUDA wheels, $$extra: some 2.5 GB"; $(PIP) ".[$$extra]"; fi
	@touch $@

.venv/.test: .venv/.demo
	@echo "installing what the tests need"
	@extra=$$($(BIN)/ostinato doctor --extra) && if [ -n "$$extra" ]; then $(PIP) ".[$$extra,tools]"; else $(PIP) ".[test]"; fi
	@touch $@
