# From a clean clone, with Python 3.11 or newer and pip alone:
#   make demo     train a small ResNet in 4-bit integers beside fp32
#   make test     the tests; make test ARGS="tests/report -x"
#   make lint     ruff and mypy
#   make docs     the documentation as a site, in build/site; warnings are errors
#   make bench    the demo's step beside PyTorch, with one and two threads
#   make kernels  every kind of kernel beside PyTorch's (about five minutes)
#   make claims   the figures that README.md quotes, measured again (an hour or more)
#   make accuracy DATA=DIR   docs/accuracy.md, measured again (hours); see docs/accuracy.md
#   make clean    remove what was made, but for the environment (.venv)

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ARGS ?=

.DELETE_ON_ERROR:
.PHONY: demo test lint docs bench kernels claims accuracy clean

demo: $(READY)
	$(BIN)/sqcompile train examples/digits_resnet.py --recipe w4a4g4 --compare-fp32 \
	  --epochs 20 -o runs/digits

test: $(READY)
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal $(ARGS)

# mypy finds a package by its folder: build/typed has the layout that installation gives.
lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf build/typed && mkdir -p build/typed/sqcompile
	@ln -s $(CURDIR)/sqcompile/* $(CURDIR)/passes $(CURDIR)/backends build/typed/sqcompile/
	cd build/typed && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml \
	  --cache-dir $(CURDIR)/.mypy_cache

# The site is read from files, without a server or a network; tools/site has what mkdocs does beside.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: $(READY)
	$(BIN)/sqcompile examples/digits_resnet.py -o runs/bench
	$(BIN)/sqcompile bench runs/bench --threads 1,2

kernels: $(READY)
	$(BIN)/python tools/bench_kernels.py --threads 1,2

# The figures in README.md. What a command prints is kept in runs/claims too; the first command that
# fails ends it, and so does a bound that no longer holds. Needs two cores, an x86 CPU with AVX-512 VNNI,
# and patience for the accuracies: 21 trainings.
CLAIMS := runs/claims
DIGITS := examples/digits_resnet.py
RECIPES := w4a4g4,w4a4g4-limited,w6a6g6,w8a8g8,paper-4bit,naive-4bit
claims: SHELL := bash
claims: .SHELLFLAGS := -o pipefail -c
claims: $(READY)
	@mkdir -p $(CLAIMS)
	$(BIN)/sqcompile $(DIGITS) --verify --threads 1 -o $(CLAIMS)/digits-1 | tee $(CLAIMS)/digits-1.txt
	$(BIN)/sqcompile $(DIGITS) --verify --threads 2 -o $(CLAIMS)/digits-2 | tee $(CLAIMS)/digits-2.txt
	SQCOMPILE_MCPU=x86-64-v3 $(BIN)/sqcompile $(DIGITS) --verify -o $(CLAIMS)/digits-v3 | \
	  tee $(CLAIMS)/digits-v3.txt
	$(BIN)/sqcompile examples/resnet20.py --verify -o $(CLAIMS)/resnet20 | tee $(CLAIMS)/resnet20.txt
	$(BIN)/python tools/report_load.py $(CLAIMS)/resnet20/report.html \
	  --json $(CLAIMS)/report-load.json | tee $(CLAIMS)/report-load.txt
	$(BIN)/python tools/gradient_error.py $(DIGITS) --json $(CLAIMS)/gradient_error.json | \
	  tee $(CLAIMS)/gradient_error.txt
	$(BIN)/python tools/activation_error.py examples/gpt.py --json $(CLAIMS)/activation_error.json | \
	  tee $(CLAIMS)/activation_error.txt
	$(BIN)/python tools/accuracy.py --protocol digits --recipe $(RECIPES) --seeds 3 \
	  --json $(CLAIMS)/accuracy.json | tee $(CLAIMS)/accuracy.txt
	$(BIN)/python tools/bench_compile.py --json $(CLAIMS)/compile-resnet20.json | \
	  tee $(CLAIMS)/compile-resnet20.txt
	$(BIN)/python tools/bench_compile.py --model gpt --json $(CLAIMS)/compile-gpt.json | \
	  tee $(CLAIMS)/compile-gpt.txt
	$(BIN)/python tools/bench_memory.py --json $(CLAIMS)/memory.json | tee $(CLAIMS)/memory.txt
	$(BIN)/python tools/bench_kernels.py --threads 1,2 --compile-times \
	  --json $(CLAIMS)/kernels.json | tee $(CLAIMS)/kernels.txt
	$(BIN)/python tools/bench_step.py --threads 1,2 --json $(CLAIMS)/steps.json | \
	  tee $(CLAIMS)/steps.txt
	for hw in pynq pynq-out32 pynq-int4 pynq-int4-out32; do \
	  $(BIN)/python tools/bench_vta.py --hw $$hw --json $(CLAIMS)/vta-$$hw.json || exit 1; \
	done | tee $(CLAIMS)/vta.txt
	$(BIN)/python tools/vta_steps.py --json $(CLAIMS)/vta-steps.json | tee $(CLAIMS)/vta-steps.txt
	$(BIN)/python tools/vta_shifts.py --json $(CLAIMS)/vta-shifts.json | tee $(CLAIMS)/vta-shifts.txt
	$(BIN)/python -m pytest -m claims
	$(BIN)/python -m pytest -m exhaustive

# Every protocol's runs, two at a time; what is interrupted goes on. DATA holds what pip does not bring.
PROTOCOLS := digits resnet8-16px charlm resnet20-cifar10 vit-cifar10
# Other schedules: for the 4-bit recipes on resnet8-16px, for all of them on resnet20-cifar10, and for 6 bits on charlm.
IMAGE_SCHEDULES := lr=0.05 lr=0.2 decay=0.0001 decay=0.001 epochs=30
DEEP_SCHEDULES := epochs=8
TEXT_SCHEDULES := lr=0.001 lr=0.004
accuracy: $(READY)
	@test -n "$(DATA)" || { echo "make: give the folder of the data: make accuracy DATA=..." >&2; exit 1; }
	@mkdir -p runs/accuracy
	for name in $(PROTOCOLS); do \
	  $(BIN)/python tools/accuracy.py --protocol $$name --data "$(DATA)" --jobs 2 \
	    --json runs/accuracy/$$name.summary.json || exit 1; \
	done
	for change in $(IMAGE_SCHEDULES); do \
	  $(BIN)/python tools/accuracy.py --protocol resnet8-16px --data "$(DATA)" --jobs 2 --seeds 5 \
	    --recipe w4a4g4,w4a4g4-limited --$$change \
	    --json "runs/accuracy/resnet8-16px@$$change.summary.json" || exit 1; \
	done
	for change in $(DEEP_SCHEDULES); do \
	  $(BIN)/python tools/accuracy.py --protocol resnet20-cifar10 --data "$(DATA)" --jobs 2 --$$change \
	    --json "runs/accuracy/resnet20-cifar10@$$change.summary.json" || exit 1; \
	done
	for change in $(TEXT_SCHEDULES); do \
	  $(BIN)/python tools/accuracy.py --protocol charlm --data "$(DATA)" --jobs 2 --seeds 3 --recipe w6a6g6 --$$change \
	    --json "runs/accuracy/charlm@$$change.summary.json" || exit 1; \
	done
	$(BIN)/python tools/accuracy_page.py $(PROTOCOLS:%=runs/accuracy/%.summary.json) \
	  $(IMAGE_SCHEDULES:%=runs/accuracy/resnet8-16px@%.summary.json) \
	  $(DEEP_SCHEDULES:%=runs/accuracy/resnet20-cifar10@%.summary.json) \
	  $(TEXT_SCHEDULES:%=runs/accuracy/charlm@%.summary.json)

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
