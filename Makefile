# `make train` and `make test` work in a bare checkout: they make .venv and install into it what they need.
#   PYTHON=/path/to/python   the Python to make .venv with, instead of the first fitting one
#   ARGS="..."               more arguments for train.py or pytest: make train ARGS="imbalance=weighted"

CANDIDATES = python3 python3.13 python3.12 python3.11
FITS = import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
BIN = .venv/bin

.PHONY: train test test-cluster lint clean
.DELETE_ON_ERROR:

train: .venv/installed
	$(BIN)/python train.py experiment=quickstart $(ARGS)

test: .venv/installed-dev
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal $(ARGS)

# As root, with SLURM and munge installed (Debian: apt-get install slurm-wlm munge), the tests of docs/cluster.md.
test-cluster: .venv/installed-dev
	$(BIN)/python -m pytest -m slow -rs tests/distributed/test_slurm.py tests/distributed/test_machines.py $(ARGS)

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache

.venv/installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --editable .
	touch $@

.venv/installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --editable '.[dev,sweep,dashboard]'
	touch $@ .venv/installed

# A name on PATH need not run (pyenv leaves such ones), so each is tried.
$(BIN)/python:
	@for python in $(or $(PYTHON),$(CANDIDATES)); do \
		if $$python -c '$(FITS)' 2>/dev/null && $$python -m venv --clear .venv; then exit 0; fi; \
	done; \
	echo 'No Python 3.11 to 3.13 with the module venv among: $(or $(PYTHON),$(CANDIDATES)).' >&2; \
	echo 'Install one, or name it: make PYTHON=/path/to/python $(MAKECMDGOALS)' >&2; \
	exit 1
