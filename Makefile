# Every target does its own set-up, so that each works on a fresh machine with Python 3.11 or later.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0 # a release with a CPU build; newer ones pull gigabytes of CUDA

.PHONY: test test-full demo format clean

test: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

# Full-size networks: the vectors beside the clone (or UNAVGLIP_PARITY), gigabytes and minutes.
test-full: test
	$(BIN)/python -m pytest -q -s -m full

# Until the demo pack is trained: the networks against what the original PyTorch ones computed.
demo: $(VENV)/ready
	$(BIN)/unavglip parity tests/vectors

format: $(VENV)/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/ready: pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or later is needed"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
