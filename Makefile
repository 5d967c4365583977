# Two commands do all: `make run` and `make test`. See README.md.
PYTHON ?= python3
PROMPT ?= Explain in a few sentences why the sky is blue.
RUN_FLAGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
MODELS := saved_models/smollm2/source.json saved_models/smollm2-pruned/source.json

.PHONY: run test test-slow test-gpu measure check clean
.DELETE_ON_ERROR:

run: $(VENV)/.run $(MODELS)
	@$(BIN)/specpipe run --prompt "$$PROMPT" $(RUN_FLAGS)

test: $(VENV)/.test $(MODELS) check
	$(BIN)/python -m pytest

test-slow: $(VENV)/.test $(MODELS)
	$(BIN)/python -m pytest -m slow

test-gpu: $(VENV)/.test $(MODELS)
	$(BIN)/python -m pytest -m gpu

measure: $(VENV)/.test $(MODELS)
	$(BIN)/python -m tests.measure_handover
	$(BIN)/python -m tests.measure_pair

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist specpipe.egg-info

export PROMPT

# Plain `pip install torch` first: the same build wherever pip finds it, before anything else asks.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install torch==2.13.0
	@touch $@

$(VENV)/.run: $(VENV)/.torch pyproject.toml
	$(PIP) install --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	$(PIP) install --editable ".[dev]"
	@touch $(VENV)/.run $@

saved_models/smollm2/source.json: | $(VENV)/.run
	$(BIN)/specpipe models fetch smollm2

saved_models/smollm2-pruned/source.json: | saved_models/smollm2/source.json
	$(BIN)/specpipe models prune smollm2 --layers 0-11,18-29 --out smollm2-pruned
