# `make train` and `make test` work in a fresh clone: they create .venv and install the dependencies into it.
#   PYTHON=/path/to/python   the Python for .venv; by default the first suitable one on PATH
#   ARGS="..."               more arguments for train.py or pytest: make train ARGS="imbalance=weighted"

CANDIDATES = python3 python3.13 python3.12 python3.11
FITS = import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
BIN = .venv/bin
# One more than cores, since tests that interrupt and resume runs often wait.
WORKERS = $(shell $(BIN)/python -c 'import os; print(min(4, (os.cpu_count() or 1) + 1))' 2>/dev/null || echo 2)

.PHONY: train test test-cluster lint clean
.DELETE_ON_ERROR:

train: .venv/installed
	$(BIN)/python train.py experiment=quickstart $(ARGS)

test: .venv/installed-dev
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal $(ARGS)

# The tests of docs/cluster.md and of full disks: as root, with SLURM and munge installed (Debian: apt-get install
# slurm-wlm munge).
test-cluster: .venv/installed-dev
	$(BIN)/python -m pytest -m 'slow or not slow' -rs tests/distributed/test_faults.py -k 'disk or read_only'
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
	$(BIN)/python -m pip install --editable '.[dev,sweep,dashboard,onnx,explain]'
	touch $@ .venv/installed

# A name on PATH may not run (pyenv shims, for example), so each candidate is tried.
$(BIN)/python:
	@for python in $(or $(PYTHON),$(CANDIDATES)); do \
		if $$python -c '$(FITS)' 2>/dev/null && $$python -m venv --clear .venv; then exit 0; fi; \
	done; \
	echo 'No Python 3.11 to 3.13 with the module venv among: $(or $(PYTHON),$(CANDIDATES)).' >&2; \
	echo 'Install one, or name it: make PYTHON=/path/to/python $(MAKECMDGOALS)' >&2; \
	exit 1
