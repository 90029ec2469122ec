PYTHON ?= python3
VENV ?= .venv
PORT ?= 8000
HOST ?= 127.0.0.1
PYTEST ?=
TRAIN ?=
SAEDASHBOARD ?= sae-dashboard==0.8.0
DELPHI ?= eai-delphi==0.1.3
BENCH_THREADS ?= 1
BIN := $(VENV)/bin
LAUNCH := exec $(BIN)/python -m sae_backend.launch --stop-with-parent
export PORT HOST

.DEFAULT_GOAL := help
.PHONY: help setup demo run worker shell test test-core lint types check bench bench-pairs bench-million bench-pages bench-peers train-demo

help:  ## list what can be made
	@awk -F ':.*  ## ' '/^[a-z-]+:.*  ## /{printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  PORT=8001 make demo takes another port; PYTHON=python3.12 make setup another Python (3.11 or newer)"

setup: $(VENV)/.installed  ## create the virtual environment and install the pinned requirements

demo: $(VENV)/.installed  ## start everything, load and compute the demo, print the address; Ctrl-C stops it
	@$(LAUNCH) demo

run: $(VENV)/.installed  ## start everything with the data that is there
	@$(LAUNCH) site

worker: $(VENV)/.installed  ## start one more worker for a site that runs
	@$(LAUNCH) worker

shell: $(VENV)/.installed  ## open Django's shell with the servers up
	@$(LAUNCH) command shell

test: $(VENV)/.installed-tests  ## run all tests (PYTEST="-k words" passes options on)
	@$(BIN)/python -m pytest $(PYTEST)

test-core: $(VENV)/.installed-tests  ## run the tests that need no server
	@$(BIN)/python -m pytest tests/core $(PYTEST)

lint: $(VENV)/.installed-tests  ## check style
	@$(BIN)/ruff check .
	@$(BIN)/yamllint --strict --config-data '{extends: default, rules: {document-start: disable, line-length: {max: 120}}}' docker-compose.yml docker-compose.worker.yml

types: $(VENV)/.installed-tests  ## check types
	@$(BIN)/mypy

check: lint types test  ## what continuous integration runs

train-demo: $(VENV)/.installed  ## train the demo's model and SAEs again, about 90 minutes (TRAIN="--quick" proves the script in one)
	@$(BIN)/python -m demo.train $(TRAIN)

bench: $(VENV)/.installed  ## time the computation beside its floor, about 40 minutes
	@$(BIN)/python -m bench

bench-pairs: $(VENV)/.installed  ## time all pairs of 131,072 directions of 768 over their matmul, about 5 minutes
	@$(BIN)/python -m bench.directions

bench-million: $(VENV)/.installed  ## time and size an SAE of 1,048,576 latents, about 10 minutes and 20 GB of disk
	@$(BIN)/python -m bench.million

bench-pages: $(VENV)/.installed  ## time pages at 1,048,576 latents, every table in every order, about 10 minutes
	@$(BIN)/python -m bench.crowd

bench-peers: $(VENV)/.installed  ## compare with SAEDashboard and delphi, each in an environment of its own (bench/README.md)
	@$(MAKE) --no-print-directory --keep-going $(VENV)-peers-saedashboard/.installed $(VENV)-peers-delphi/.installed || true
	@OMP_NUM_THREADS=$(BENCH_THREADS) $(BIN)/python -m bench.peers

$(VENV)-peers-saedashboard/.installed: PEER = $(SAEDASHBOARD)
$(VENV)-peers-delphi/.installed: PEER = $(DELPHI)
$(VENV)-peers-%/.installed: bench/peers/requirements-%.txt .ci/install
	@.ci/install "$(PYTHON)" "$(@D)" $<
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "$(PEER)"
	@touch $@

$(VENV)/.installed: requirements.txt .ci/install
	@.ci/install "$(PYTHON)" "$(VENV)" requirements.txt
	@touch $@

$(VENV)/.installed-tests: tests/requirements.txt $(VENV)/.installed .ci/install
	@.ci/install "$(PYTHON)" "$(VENV)" tests/requirements.txt
	@touch $@
