# Everything runs in .venv of this checkout; both `make demo` and `make test` make it first.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help env demo test lint types check proto bench clean

help: ## say what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

env: $(STAMP) ## make the environment in .venv

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@echo "== environment: $(VENV) (first time: about two minutes)"
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 10) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --constraint constraints.txt pip setuptools
	@# setuptools warns of every editable install whose package lies in the root.
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[azure,gcs,embedded,dev]'
	@touch $(STAMP)

demo: $(STAMP) ## two embedded clusters, and a V1 -> V2 conversion by a real Airflow DAG
	@$(BIN)/tikvbr demo

test: $(STAMP) ## run all tests
	@$(BIN)/python -m pytest

lint: $(STAMP) ## check style
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .

types: $(STAMP) ## check types
	@$(BIN)/mypy

check: lint types test ## everything that CI checks

# The generator is old on purpose: what it writes runs on protobuf 4.25 to 7. It needs Python 3.12 at most.
proto: ## generate the messages from proto/
	@test -x .venv-proto/bin/python || $(PYTHON) -m venv .venv-proto
	@.venv-proto/bin/python -m pip install --quiet --disable-pip-version-check 'grpcio-tools==1.62.3' 'setuptools<81'
	@.venv-proto/bin/python proto/generate.py

bench: $(STAMP) ## time backup, checksum and restore of a million pairs
	@$(BIN)/python bench/pipeline.py

clean: ## remove the environment and what runs left behind
	rm -rf $(VENV) .venv-proto .demo .hypothesis .mypy_cache .pytest_cache .ruff_cache
