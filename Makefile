# make demo   install, then de-duplicate the built-in sample through the whole asset graph
# make test   install what tests need; lint, types, the suite
# make ui     Dagster's UI on the demo's output
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= out/demo

.PHONY: demo test test-dask test-s3 test-gs test-postgres test-e2e faults ui lint types venv clean

demo: venv
	$(BIN)/snip shards sync --out $(OUT)
	$(BIN)/snip dedup --out $(OUT)

test: $(VENV)/.test lint types
	$(BIN)/python -m pytest

ui: venv
	$(BIN)/snip shards sync --out $(OUT)
	$(BIN)/snip ui --out $(OUT)

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.test
	$(BIN)/mypy

venv: $(VENV)/.installed

$(VENV)/.python:
	$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13) and "Python 3.10 to 3.13 is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: $(VENV)/.python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

# Shards on Dask workers, processes on loopback, one killed in mid-run: the same bytes as here.
test-dask: $(VENV)/.test
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dask]'
	$(BIN)/python -m pytest -v snip_assets_tests/engine/test_fanout.py

# Sources and outputs in object stores, servers on loopback.
test-s3 test-gs: test-%: $(VENV)/.test
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$*]' $(SERVER_$*)
	$(BIN)/python -m pytest -v snip_assets_tests/engine/storage/test_remote_files.py \
		snip_assets_tests/engine/test_remote_outputs.py

SERVER_s3 = 'moto[server]>=5'
SERVER_gs = gcp-storage-emulator

# PostgreSQL as Dagster's storage, really: exit code 3 where there is no server to start.
test-postgres: $(VENV)/.test
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[postgres]'
	$(BIN)/python -m snip_assets_tests.e2e.postgres

# With real services: from arrival to clean output, and backfills whose daemon and code server are
# killed (some ten minutes each); and the table of faults.
test-e2e: $(VENV)/.test
	$(BIN)/python -m snip_assets_tests.e2e.arrivals --kill
	$(BIN)/python -m snip_assets_tests.e2e.backfill --times 5

faults: $(VENV)/.test
	$(BIN)/python -m benchmarks.faults

clean:
	rm -rf $(VENV) out build *.egg-info
