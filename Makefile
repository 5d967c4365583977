# Two commands do all: `make run` and `make test`. See README.md.
PYTHON ?= python3
RUN_FLAGS ?=

# Only `make run PROMPT="…"` counts, since shells export a PROMPT of their own, and it counts as it
# stands: `value` and `:=` keep make from reading `$5` as a variable.
ifeq ($(origin PROMPT),command line)
override PROMPT := $(value PROMPT)
else
override PROMPT := Explain in a few sentences why the sky is blue.
endif
export PROMPT
unexport SPECPIPE_MODELS  # here models lie in saved_models/

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TARGET := saved_models/smollm2/source.json
TEST_MODELS := $(TARGET) saved_models/smollm2-pruned/source.json

.PHONY: run test test-slow test-gpu fuzz chaos soak bad-input measure measure-drafters measure-peers bench \
	distill verify simulate-grid simulate-fleet monitoring check clean
.DELETE_ON_ERROR:
.NOTPARALLEL:  # one pip at a time

run: $(VENV)/.run $(TARGET)
	@$(BIN)/specpipe run --prompt "$$PROMPT" $(RUN_FLAGS)

# What computes alone, on two cores at once; programs and Ray use both themselves.
test: check $(TEST_MODELS)
	$(BIN)/python -m pytest tests/cli
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile tests/lossless tests/unit
	$(BIN)/python -m pytest tests/ray

test-slow: $(VENV)/.test $(TEST_MODELS)
	$(BIN)/python -m pytest -m slow

test-gpu: $(VENV)/.test $(TEST_MODELS)
	$(BIN)/python -m pytest -m gpu

# Generated input, so many times as much as in `make test`, and other each time.
TIMES ?= 50

fuzz: $(VENV)/.test $(TEST_MODELS)
	SPECPIPE_FUZZ=$(TIMES) $(BIN)/python -m pytest -m fuzz --timeout 0

# Generations while workers are killed and stopped: the report goes into docs/faults.
chaos: $(VENV)/.test $(TARGET)
	$(BIN)/python -m tests.chaos --out docs/faults/chaos.md

# The table of all bad input that the tests try.
bad-input: $(VENV)/.test $(TEST_MODELS)
	$(BIN)/python -m pytest tests/unit tests/cli -p tests.refusals \
		--refusals docs/faults/bad-input.md

# An hour of mixed load, or as many minutes as are named.
MINUTES ?= 60

soak: $(VENV)/.test $(TARGET)
	$(BIN)/python -m tests.soak --minutes $(MINUTES) --out docs/faults/soak.md

measure: $(VENV)/.test $(TARGET)
	$(BIN)/python -m tests.measure_handover
	$(BIN)/python -m tests.measure_pair
	$(BIN)/python -m tests.measure_monitoring

measure-drafters: $(VENV)/.test $(TARGET)
	$(BIN)/python -m tests.measure_lookup
	$(BIN)/python -m tests.measure_drafters

measure-peers: $(VENV)/.test $(TARGET)
	$(PIP) install --editable ".[dev,peers]"
	$(BIN)/python -m tests.measure_peers

# Long, on an idle machine; the same command goes on where it was interrupted. To measure anew, remove
# docs/bench/measurements.jsonl.
bench: $(VENV)/.run $(TARGET)
	$(BIN)/specpipe bench --output-dir docs/bench

# Ray's dashboard, Prometheus (Debian's package) and a pipeline at work, until Ctrl-C.
monitoring: $(VENV)/.run $(TARGET)
	@command -v prometheus > /dev/null || \
		{ echo "there is no prometheus: apt install prometheus" >&2; exit 1; }
	@$(BIN)/python -m tests.monitoring

# A draft like the default one, under another name: 1.35 hours of two cores, or, as that was made, some
# minutes of an H100 (DEVICE=cuda:0 HOURS=0.14).
DEVICE ?= cpu
HOURS ?= 1.35

distill: $(VENV)/.run $(TARGET)
	$(BIN)/specpipe distill smollm2 --out my-draft --device $(DEVICE) --hours $(HOURS)

# Hours; the same command goes on where it was interrupted.
verify: $(VENV)/.run $(TARGET)
	$(if $(PROMPTS),,$(error name a file of JSON lines, as in `make verify PROMPTS=my.jsonl`))
	@for dtype in float16 float32; do for temperature in 0 0.7 1.0; do \
		echo "$$dtype, temperature $$temperature"; \
		$(BIN)/specpipe verify --prompts "$(PROMPTS)" --max-tokens 128 \
			--policy take_all --dtype $$dtype --temperature $$temperature --json || exit; \
	done; done

# About a quarter of an hour of one core; JOBS=4 uses four.
JOBS ?= 1
GRID := $(BIN)/specpipe simulate --grid --tokens 8000 --jobs $(JOBS)

simulate-grid: $(VENV)/.run
	$(GRID) --out docs/simulation/exact
	$(GRID) --jitter 0.05 --policy take_all --policy elastic --out docs/simulation/dropped
	$(GRID) --jitter 0.05 --grain 1 --out docs/simulation/not-dropped

# Minutes of one core.
simulate-fleet: $(VENV)/.run
	$(BIN)/python -m tests.simulate_fleet docs/simulation

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist specpipe.egg-info

define require_python
$(if $(shell $(PYTHON) -c 'import sys; print(sys.version_info >= (3, 11) or "")' 2>/dev/null),,\
$(error specpipe needs Python 3.11 or later, but `$(PYTHON) --version` says \
"$(shell $(PYTHON) --version 2>&1; true)": name another, as in `make run PYTHON=python3.12`))
endef

# pip calls a package installed that it was killed in the middle of copying, but the file INSTALLER
# comes last: what lacks it is forgotten, and so installed again.
define forget_unfinished
@for info in $(VENV)/lib/python3*/site-packages/*.dist-info; do \
	test -e "$$info/INSTALLER" || rm -rf "$$info"; \
done
endef

# Each of these files says that its step went through: it is made last.
# Plain `pip install torch` first: the same build wherever pip finds it, before anything else asks.
$(VENV)/.torch:
	$(require_python)
	$(forget_unfinished)
	$(PYTHON) -m venv $(VENV)
	$(PIP) install torch==2.13.0
	@touch $@

$(VENV)/.run: $(VENV)/.torch pyproject.toml
	$(forget_unfinished)
	$(PIP) install --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	$(forget_unfinished)
	$(PIP) install --editable ".[dev]"
	@touch $(VENV)/.run $@

$(TARGET): | $(VENV)/.run
	$(BIN)/specpipe models fetch smollm2

saved_models/smollm2-pruned/source.json: | $(TARGET)
	$(BIN)/specpipe models prune smollm2 --layers 0-11,18-29 --out smollm2-pruned
