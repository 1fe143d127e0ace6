# From a clean clone, with Python 3.11 or newer and pip alone:
#   make demo     train a small ResNet in 4-bit integers beside fp32
#   make test     the tests; make test ARGS="tests/report -x"
#   make lint     ruff and mypy
#   make bench    the demo's step beside PyTorch, with one and two threads
#   make claims   the full-size figures behind what the documentation says (long)
#   make clean    remove what was made, but for the environment (.venv)

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ARGS ?=

.DELETE_ON_ERROR:
.PHONY: demo test lint bench claims clean

demo: $(READY)
	$(BIN)/sqcompile train examples/digits_resnet.py --recipe w4a4g4 --compare-fp32 \
	  --epochs 20 -o runs/digits

test: $(READY)
	$(BIN)/python -m pytest $(ARGS)

# mypy finds a package by its folder: build/typed has the layout that installation gives.
lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf build/typed && mkdir -p build/typed/sqcompile
	@ln -s $(CURDIR)/sqcompile/* $(CURDIR)/passes $(CURDIR)/backends build/typed/sqcompile/
	cd build/typed && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml \
	  --cache-dir $(CURDIR)/.mypy_cache

bench: $(READY)
	$(BIN)/sqcompile examples/digits_resnet.py -o runs/bench
	$(BIN)/sqcompile bench runs/bench --threads 1,2

claims: $(READY)
	$(BIN)/python -m pytest -m claims -s $(ARGS)

clean:
	rm -rf build dist runs *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# The environment: made once, and again when pyproject.toml changes.
$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: no Python found; install Python 3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: $(PYTHON) is too old: sqcompile needs Python 3.11 or newer;" \
	    "name one with make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev,demo]'
	@touch $@
