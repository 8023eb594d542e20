# Everything a person or a CI machine types. Needs make and Python 3.11+; everything else goes into $(VENV).
#   make demo    the main job on the embedded sample, about a minute after installation
#   make test    the default test tier          make check   ruff, mypy --strict, architecture tests
#   make bench   benchmarks                     make clean   remove the environment and everything built
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
PYTHON ?= python3
PY := $(VENV)/bin/python
PIP_INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check
# Two worker processes with one thread each: 2,120 tests in 136 s on 2 cores (docs/log.md).
TEST_WORKERS ?= 2
PYTEST_ARGS ?=

.PHONY: help demo test test-slow check format bench env env-dev clean

help:
	@sed -n '2,4s/^# *//p' Makefile

demo: env
	@$(PY) -m pipelines.smoke

test: env-dev
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n $(TEST_WORKERS) --dist loadfile $(PYTEST_ARGS)

test-slow: env-dev
	@OMP_NUM_THREADS=1 $(PY) -m pytest -m slow $(PYTEST_ARGS)

check: env-dev
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check
	@$(PY) -m mypy
	@$(PY) -m pytest tests/architecture $(PYTEST_ARGS)

format: env-dev
	@$(PY) -m ruff check --fix
	@$(PY) -m ruff format

bench: env-dev
	@$(PY) -m benchmarks

env: $(VENV)/.stamp-run
env-dev: $(VENV)/.stamp-dev

# A stamp per set of packages: a second `make` installs nothing unless pyproject.toml changed.
$(VENV)/.stamp-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "kdcache needs Python 3.11 or newer; '$(PYTHON)' is: $$($(PYTHON) --version 2>&1 || true)" >&2; \
	  echo "  next: install it, then: make $(or $(MAKECMDGOALS),demo) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make virtual environments: its venv or ensurepip module is missing" >&2; \
	  echo "  next: apt-get install python3-venv (Debian, Ubuntu) or python3-pip (Fedora), then the same command again" >&2; \
	  exit 1; }
	@[ -x $(PY) ] || { echo "making $(VENV) with $$($(PYTHON) --version)" >&2; $(PYTHON) -m venv $(VENV); }
	@touch $@

$(VENV)/.stamp-run: $(VENV)/.stamp-venv pyproject.toml
	@echo "installing kdcache and its dependencies into $(VENV) (torch is large: minutes on a slow line)" >&2
	@$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-venv pyproject.toml
	@echo "installing kdcache, its dependencies and the development tools into $(VENV)" >&2
	@$(PIP_INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.stamp-run

clean:
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis runs/smoke
	@find kdcache pipelines tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "removed the environment and what was built; stores and runs of yours are kept" >&2
