# The everyday commands. Without make: see CONTRIBUTING.md, each target is one or two lines.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.nextscale-ready

.PHONY: demo test lint bench bench-full bench-infinity bench-precision bench-gpu setup

demo: $(READY)
	$(BIN)/nextscale demo

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Every benchmark is a script that prints its table: benchmarks/bench_*.py --help.
# Eight minutes on two quiet cores of an EPYC.
bench: $(READY)
	$(BIN)/python benchmarks/bench_suite.py --quick

# Above two hours, 40 GB of disk: VAR-d16 alone took 40 to 51 minutes on two quiet cores, the d36 shape 65.
bench-full: $(READY)
	$(BIN)/python benchmarks/bench_suite.py --accuracy 2000
	$(BIN)/python benchmarks/bench_export.py
	$(BIN)/python benchmarks/bench_build.py
	$(BIN)/python benchmarks/bench_packed.py

# An hour, 20 GB of disk.
bench-infinity: $(READY)
	$(BIN)/python benchmarks/bench_infinity.py
	$(BIN)/python benchmarks/bench_large_export.py
	$(BIN)/python benchmarks/bench_text_tokens.py
	$(BIN)/python benchmarks/bench_build.py --recipe infinity-2b-1m infinity-2b-1m-fastvar --precision bf16 --out benchmarks/results/infinity_build.json

# An hour and more.
bench-precision: $(READY)
	$(BIN)/python benchmarks/bench_int8.py
	$(BIN)/python benchmarks/bench_precision.py
	$(BIN)/python benchmarks/bench_precision_graphs.py

# Without a GPU each says so and stops.
bench-gpu: $(READY)
	$(BIN)/python benchmarks/bench_scatter_restore.py
	$(BIN)/python benchmarks/bench_gpu.py

setup: $(READY)

# Installs again only when the metadata or the exact versions changed.
$(READY): pyproject.toml constraints/ci.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14) and "Python 3.11 to 3.13 is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints/ci.txt -e ".[cpu,export,compare,dev]"
	touch $@
