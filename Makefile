# Two commands do everything on a fresh machine:
#   make demo    set up, and train on the example data that ships with the project
#   make test    set up, and run the tests
# Both make a virtual environment in .venv; PYTHON=python3.12 chooses another interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
TORCH := torch==2.13.0
WORKERS ?= 2

.PHONY: demo test check format bench clean

demo: $(VENV)/.demo
	$(BIN)/veneer train example --out adapters/support --overwrite --fresh
	$(BIN)/veneer predict adapters/support "the parcel says delivered but nothing is here" "please close my account today"

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache

# torch goes first, by its exact version: an open range would take gigabytes of CUDA on a machine without a GPU.
$(VENV)/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install $(TORCH)
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) install -c constraints.txt -e '.[offline]'
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(PIP) install -c constraints.txt -e '.[offline,dev]'
	touch $@ $(VENV)/.demo
