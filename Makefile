# Two commands do everything: `make demo` and `make test`. Both need Python 3.11+ and make only.
#   PYTHON=python3.12   another Python
#   TORCH_INDEX=https://download.pytorch.org/whl/cpu   another build of torch
#   VENV=.venv          another place for the virtual environment

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=

BIN = $(VENV)/bin
PIP = PIP_CONSTRAINT="$(CURDIR)/constraints.txt" PIP_BUILD_CONSTRAINT="$(CURDIR)/constraints.txt" \
      $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
      $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
PINS = pyproject.toml constraints.txt

.PHONY: demo test slow gpu lint bench clean

demo: $(VENV)/ntkit.stamp
	$(BIN)/ntkit demo --out out/demo

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest

slow: $(VENV)/test.stamp
	$(BIN)/python -m pytest -m "slow or study"

gpu: $(VENV)/test.stamp
	$(BIN)/python -m pytest -m gpu

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

bench: $(VENV)/test.stamp
	@if [ -e benchmarks/run.py ]; then $(BIN)/python benchmarks/run.py; \
	else echo "no benchmarks yet"; fi

clean:
	rm -rf $(VENV) out build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/ntkit.stamp: $(PINS) | $(BIN)/python
	@echo "installing ntkit into $(VENV)"
	@$(PIP) -e .
	@touch $@

$(VENV)/test.stamp: $(PINS) | $(BIN)/python
	@echo "installing ntkit and what its tests need into $(VENV)"
	@$(PIP) -e '.[test]'
	@touch $@ $(VENV)/ntkit.stamp

$(VENV)/dev.stamp: $(PINS) | $(BIN)/python
	@echo "installing ntkit and the tools of make lint into $(VENV)"
	@$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/test.stamp $(VENV)/ntkit.stamp
