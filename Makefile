# Every target does its own set-up, so that each works on a fresh machine with Python 3.11 or later.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0 # a release with a CPU build; newer ones pull gigabytes of CUDA

.PHONY: test test-full demo train-demo format clean

test: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

# Full-size networks: the vectors beside the clone (or UNAVGLIP_PARITY), gigabytes and minutes.
test-full: test
	$(BIN)/python -m pytest -q -s -m full

# Needs no more than dubbing does, a voice and a photograph; in particular no PyTorch.
demo: $(VENV)/ready-demo
	$(BIN)/unavglip demo --output demo

# The demonstration pack from nothing, in hours; what was done is not done again.
train-demo: $(VENV)/ready
	$(BIN)/python -m unavglip_jax.training.demo --folder runs/demo

format: $(VENV)/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

define VENV_WITH_PIP
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or later is needed"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
endef

$(VENV)/ready: pyproject.toml
	$(VENV_WITH_PIP)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@ $(VENV)/ready-demo

$(VENV)/ready-demo: pyproject.toml
	$(VENV_WITH_PIP)
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
