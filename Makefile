# Two commands: `make demo` sets up and runs the main job, `make test` sets up and passes the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# Waiting threads that spin make a busy machine several times slower.
export OMP_WAIT_POLICY = PASSIVE
export MPLBACKEND = Agg

.PHONY: demo test test-all lint benchmark clean

demo: $(VENV)/.installed
	$(BIN)/camkit demo --output camkit-demo

test: lint
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal

test-all: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.developing
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

benchmark: $(VENV)/.developing
	$(BIN)/python benchmarks/explain.py
	$(BIN)/python benchmarks/methods.py

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'camkit needs Python 3.11 or later; set PYTHON=/path/to/python3.11 or newer.' >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo 'The module venv is missing; install it first (on Debian and Ubuntu: apt-get install python3-venv).' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

# grad-cam and quantus ask for opencv-python, which needs a screen's libraries, and torchattacks for an old requests;
# without their dependencies they run on ours
$(VENV)/.developing: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps grad-cam ttach torchattacks quantus
	@touch $@

clean:
	rm -rf $(VENV) build dist camkit-demo camkit-output .mypy_cache .ruff_cache .pytest_cache
