# `make demo` and `make test` do all their own set-up; a second run starts in seconds.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test slow lint clean install

help:  ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-9s %s\n", $$1, $$2}'

# torch goes in alone and first: a range that another package resolves may bring CUDA's gigabytes.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install -q torch==2.13.0
	$(BIN)/python -m pip install -q -e '.[dev]'
	touch $@

install: $(STAMP)  ## set up .venv

# With MODEL=smollm2-135m on that model, which is fetched where it is missing; a path is taken as it is.
demo: $(STAMP)  ## the whole of pfi on made-up people, in three to six minutes; REAL=1: a real model and real people
	$(if $(MODEL),$(if $(findstring /,$(MODEL)),,$(BIN)/pfi models get $(MODEL)))
	$(BIN)/pfi demo $(if $(REAL),--real) $(if $(MODEL),--backbone $(MODEL))

lint: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# Side by side, a file in one process; each computes with one thread, or they would get in each
# other's way.
test: $(STAMP) lint  ## lint, types and the tests (minutes)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses=4 --dist loadfile

slow: $(STAMP)  ## the checks that take long
	$(BIN)/pytest -m slow

clean:  ## remove what the above made
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
