# `make` alone lists what can be done. Everything runs in $(VENV), which is made on first use.

PYTHON ?= python3
VENV ?= .venv
# What the environment holds.
LOCK ?= requirements/lock.txt
# Free disk space that a new environment asks for: CUDA's libraries, which torch brings, are most.
MIN_FREE_GB ?= 6
# Passed on to the command of a target: make test ARGS='-k fuse', make lock ARGS=--upgrade
ARGS ?=

BIN := $(VENV)/bin
SOURCES := .

# A Python that was named is insisted on. An unnamed one only serves to make the first environment.
SETUP = $(PYTHON) dev/setup_env.py --venv $(VENV) --lock $(LOCK) \
	--min-free-gb $(MIN_FREE_GB) $(if $(filter file,$(origin PYTHON)),,--exact)

.DEFAULT_GOAL := help
.PHONY: help env lock demo test test-slow test-onedl test-torch-min test-hosts test-gpu bench-gpu wheels docs fuzz chaos chaos-hosts soak lint format tables tutorial build clean

help: ## list the targets
	@echo 'make [PYTHON=python3.11] [VENV=.venv] TARGET'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

env: ## make or update the environment (a second run does nothing)
	@$(SETUP)

# Needs any uv at all, not an up-to-date environment: the lock may be what is broken.
COMPILE = $(BIN)/uv pip compile --universal --fork-strategy fewest --python-version 3.10 \
	--no-python-downloads --only-binary :all: --emit-build-options --no-emit-index-url \
	--override requirements/overrides.txt --custom-compile-command 'make lock' --quiet $(ARGS)
lock: $(BIN)/uv ## pin again what requirements/*.in ask for (ARGS=--upgrade takes newer releases)
	$(COMPILE) --output-file requirements/lock.txt requirements/dev.in
	$(COMPILE) --output-file requirements/lock-onedl.txt requirements/onedl.in
	$(COMPILE) --output-file requirements/lock-torch-min.txt \
		--override requirements/torch-min.txt requirements/openmmlab.in requirements/tests.in
	$(COMPILE) --output-file requirements/lock-hosts.txt \
		--override requirements/hosts-overrides.txt requirements/hosts.in

$(BIN)/uv:
	@$(SETUP)

demo: env ## train, test and draw on embedded data
	$(BIN)/python tools/demo.py $(ARGS)

test: env ## run the tests but the slow ones (ARGS go to pytest)
	$(BIN)/python -m pytest -m 'not slow' $(ARGS)

test-slow: env ## run the slow tests, which start whole programs or compilers
	$(BIN)/python -m pytest -m slow $(ARGS)

test-onedl: ## run the tests on the maintained fork of OpenMMLab, in .venv-onedl
	$(MAKE) test test-slow VENV=.venv-onedl LOCK=requirements/lock-onedl.txt

test-torch-min: ## run the tests on the oldest torch that is claimed, in .venv-torch-min
	$(MAKE) test test-slow VENV=.venv-torch-min LOCK=requirements/lock-torch-min.txt

test-hosts: ## try MMPose and OpenMMLab's other hosts, in .venv-hosts
	$(MAKE) env VENV=.venv-hosts LOCK=requirements/lock-hosts.txt
	.venv-hosts/bin/python -m pytest tests/hosts $(ARGS)

test-gpu: env ## ask of a GPU what only a GPU can show (ARGS=--rehearse: of the CPU)
	$(BIN)/python dev/gpu.py test $(ARGS)

bench-gpu: env ## measure on a GPU, beside other backbones
	$(BIN)/python dev/gpu.py bench $(ARGS)

wheels: env ## gather what a GPU machine without an index needs (ARGS='--python 3.12 --has numpy')
	$(BIN)/python dev/gpu.py wheels $(ARGS)

tutorial: env ## run docs/tutorial.md, and write docs/tutorial.ipynb with what it printed
	$(BIN)/python dev/tutorial.py $(ARGS)

docs: env ## build the site in build/site (ARGS=serve: show it, and follow what is edited)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs $(or $(ARGS),build)

fuzz: env ## read 10,000 odd weight files of each kind, and one with 3 GB of junk
	FUZZ_EXAMPLES=10000 JUNK_TENSORS=800 $(BIN)/python -m pytest tests/ground_floor/test_fuzz_weights.py \
		tests/ground_floor/test_hostile_files.py::test_junk_beside_the_weights_takes_no_memory $(ARGS)

chaos: env ## kill trainings 200 times, go on each time, and show that nothing is lost
	$(BIN)/python dev/chaos.py $(ARGS)

chaos-hosts: env ## the same with 60 kills, by the hosts' own train.py, a plain script and mim's
	$(BIN)/python dev/chaos.py --kills 60 --ways host plain mim $(ARGS)

soak: env ## thousands of images of random sizes: memory, threads and files have to stay flat
	$(BIN)/python dev/soak.py $(ARGS)

lint: env ## check style, types and spelling
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy hire_mlp_mm
	$(BIN)/codespell

format: env ## rewrite the files in the project's style
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

tables: env ## write the tables of docs/recipes.md from configs/metafile_*.yml
	$(BIN)/python dev/model_tables.py

build: env ## make the wheel and the source archive in dist/
	$(BIN)/uv build --offline --no-build-isolation --python $(BIN)/python --out-dir dist

clean: ## remove what the targets left, except the environment
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find hire_mlp_mm configs dev tools tests -name __pycache__ -prune -exec rm -rf {} +
