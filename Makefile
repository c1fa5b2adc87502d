# Each target sets up what it needs: a virtual environment in .venv, with torch pinned by constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
PEERS := .venv-bench/bin

.PHONY: demo test slow lint docs bench clean

demo: .venv/ready
	$(BIN)/pyrovae compare examples/digits.toml

test: .venv/ready lint
	$(BIN)/pytest -n 2 --dist worksteal

slow: .venv/ready
	$(BIN)/pytest -n 2 -m "slow or grid"

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/ready
	$(BIN)/python -c 'from pathlib import Path; from pyrovae.catalogue import filled; \
		readme = Path("README.md"); readme.write_text(filled(readme.read_text("utf-8")), "utf-8")'

bench: .venv-bench/ready
	$(PEERS)/python benchmarks/train.py --rounds 1 --rows 12800 --batch 128
	$(PEERS)/python benchmarks/train.py --case variety --rounds 1 --rows 12800
	$(PEERS)/python benchmarks/evaluate.py --rounds 1
	$(PEERS)/python benchmarks/mixture.py --rounds 1
	$(PEERS)/python benchmarks/scaling.py --quick
	$(PEERS)/python benchmarks/logs.py --rounds 1

clean:
	rm -rf .venv .venv-bench .mypy_cache .ruff_cache .pytest_cache

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pyrovae needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev
	touch .venv/ready

.venv-bench/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-bench
	$(PEERS)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(PEERS)/python -m pip install --quiet --constraint constraints.txt --editable . --group bench
	touch .venv-bench/ready
