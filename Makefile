# What a contributor can do here. `make help` lists it; `make demo` and `make test` set everything up first.
# Other places and choices:  make test VENV=/tmp/v PYTHON=python3.12 PYTEST_ARGS="tests/linalg -x"

PYTHON ?= python3
VENV ?= .venv
SITE ?= site
JOBS ?= 2
PYTEST_ARGS ?=
# Without training, a module of another script, and one that asks for arguments.
BENCH ?= $(filter-out %/train_cifar_vgg.py %/torch_pruning_peer.py %/selection.py,$(wildcard benchmarks/*.py))
BENCH_ARGS ?=
VGG_ARGS ?= --steps 11730 --out runs/vgg16

BIN := $(VENV)/bin
# One thread in each process: reproducible sums, and JOBS test processes do not fight for the cores.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help demo test check duplicates bench vgg docs clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# An installed set of extras is a file in the environment, remade when pyproject.toml changes.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	@touch $@

demo: $(VENV)/.installed-demo ## train, compress, recover, save and reload a small network (under 2 minutes)
	$(BIN)/rankwise demo

test: $(VENV)/.installed-test ## run the tests (with RANKWISE_DATA set: also those on real data)
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) $(PYTEST_ARGS)

check: $(VENV)/.installed-dev duplicates ## lint, format, types, import floors, duplicated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict src
	$(BIN)/lint-imports

duplicates: $(VENV)/.installed-dev ## look for copied code
	$(BIN)/pylint --jobs=$(JOBS) --disable=all --enable=duplicate-code src/rankwise

bench: $(VENV)/.installed-bench ## run the benchmarks (hours; BENCH="benchmarks/allocate.py" BENCH_ARGS=... for one)
	set -e; for script in $(BENCH); do $(BIN)/python $$script $(BENCH_ARGS); done

vgg: $(VENV)/.installed-bench ## train the CIFAR-10 VGG-16-BN of the channel study (hours, resumable, RANKWISE_DATA)
	$(BIN)/python benchmarks/train_cifar_vgg.py $(VGG_ARGS)

docs: $(VENV)/.installed-docs ## build the documentation into site/, warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir $(abspath $(SITE))

clean: ## remove what the targets above wrote, but no results
	rm -rf $(VENV) $(SITE) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
