# Everything runs in .venv of this checkout; both `make demo` and `make test` make it first.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help env demo test chaos standalone servers lint types check proto bench clean

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

# Runs mostly wait, so that there may be more of them at a time than processors.
RUNS ?= 1000
KILLS ?= 200
SEED ?= 0
JOBS ?= 3

chaos: $(STAMP) ## RUNS random fault schedules, and KILLS kill -9 at random instants, JOBS at a time, seeds from SEED on
	@$(BIN)/python -m tests.chaos --runs $(RUNS) --seed $(SEED) --jobs $(JOBS); found=$$?; \
	$(BIN)/python -m tests.chaos.kills --kills $(KILLS) --seed $(SEED) --jobs $(JOBS) && exit $$found

standalone: $(STAMP) ## prove in a whole Airflow what only that can prove: about five minutes
	@$(BIN)/python -m tests.standalone

# What the tests of storages run if it is there: Azurite (by npm) and Hadoop's own jars (by Maven).
AZURITE := azurite@3.37.0
HADOOP := $(foreach part,api runtime minicluster,org.apache.hadoop:hadoop-client-$(part):3.4.1) \
	$(foreach part,api simple,org.slf4j:slf4j-$(part):1.7.36) commons-logging:commons-logging:1.2 ch.qos.reload4j:reload4j:1.2.25

servers: .azurite/.installed .hadoop/.installed ## fetch Azurite and Hadoop, so that tests use them; needs npm, java and mvn

.azurite/.installed: Makefile
	@echo "== Azurite"
	@npm install --silent --no-audit --no-fund --prefix .azurite $(AZURITE)
	@touch $@

.hadoop/.installed: Makefile
	@echo "== Hadoop"
	@for jar in $(HADOOP); do mvn -q -B dependency:copy -Dartifact=$$jar -DoutputDirectory=.hadoop || exit 1; done
	@touch $@

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
	rm -rf $(VENV) .venv-proto .azurite .hadoop .demo .hypothesis .mypy_cache .pytest_cache .ruff_cache
