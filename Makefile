# Two commands do everything: `make demo` and `make test`. Both need Python 3.11+ and make only.
#   PYTHON=python3.12   another Python
#   TORCH_INDEX=https://download.pytorch.org/whl/cpu   another build of torch
#   VENV=.venv          another place for the virtual environment
#   MODELS="'timm/*'"    the models of `make zoo` and `make zoo-limits`, as patterns
#   TESTS=tests/machine what pytest gets besides, in `make test` and `make floor`

PYTHON ?= python3
VENV ?= .venv
PEERS ?= .venv-peers
FLOOR ?= .venv-floor
ZOO ?= .venv-zoo
FLOOR_PYTHON ?= python3.11
TORCH_INDEX ?=
TESTS ?=
MODELS ?=

BIN = $(VENV)/bin
PINNED = PIP_CONSTRAINT="$(CURDIR)/$(1)" PIP_BUILD_CONSTRAINT="$(CURDIR)/constraints.txt"
INSTALL = -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
PIP = $(call PINNED,constraints.txt) $(BIN)/python $(INSTALL)
PINS = pyproject.toml constraints.txt

.PHONY: demo test floor matrix wheel slow zoo zoo-limits studies-quick studies docs gpu lint bench bench-finite bench-infinite bench-machine bench-path bench-runs bench-gpu bench-attribution bench-counterfactuals bench-large bench-busy bench-diagnose bench-explorer scores mnist60k bench-solvers scale bench-tiles clean

demo: $(VENV)/ntkit.stamp
	$(BIN)/ntkit demo --out out/demo

# two processes of one thread: the tests' matrices are small, and threads wait for each other on a busy machine
test: $(VENV)/test.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(TESTS)

# the oldest releases that pyproject.toml admits
floor: $(FLOOR)/test.stamp
	OMP_NUM_THREADS=1 $(FLOOR)/bin/python -m pytest -n 2 --dist worksteal $(TESTS)

# every Python of this machine that ntkit supports, each in its own .venv-3.N
matrix:
	$(PYTHON) tools/matrix.py $(TESTS)

# the wheel, in dist/, used in a fresh environment outside the repository
wheel:
	OMP_NUM_THREADS=1 $(call PINNED,constraints.txt) \
	$(if $(TORCH_INDEX),PIP_EXTRA_INDEX_URL="$(TORCH_INDEX)") $(PYTHON) tools/wheel.py

slow: $(VENV)/test.stamp
	$(BIN)/python -m pytest -m slow

# models of other libraries, in an environment of their own; what is done with the same versions is kept
zoo: $(ZOO)/zoo.stamp
	OMP_NUM_THREADS=1 $(ZOO)/bin/python zoo/run.py $(MODELS)

zoo-limits: $(ZOO)/zoo.stamp
	OMP_NUM_THREADS=1 $(ZOO)/bin/python zoo/run.py --limits $(MODELS)

studies-quick: $(VENV)/test.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m study

# the site, in out/docs; its notebooks are run, its links followed
docs: $(VENV)/docs.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -q -b html docs out/docs
	$(BIN)/python -m sphinx -W --keep-going -q -b linkcheck docs out/docs-links

studies: $(VENV)/ntkit.stamp
	$(BIN)/ntkit study all --keep-going --jobs 2 --out out/studies || [ $$? -eq 2 ]  # a bar that is missed is written down
	$(BIN)/ntkit study document out/studies --page docs/studies.md

gpu: $(VENV)/test.stamp
	$(BIN)/python -m pytest -m gpu

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/pyright --pythonpath $(BIN)/python --project pyrightconfig-strict.json
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'slow or not slow' tests/test_types.py
	$(BIN)/lint-imports
	$(BIN)/numpydoc lint $$(find src -name '*.py')

bench: bench-finite bench-infinite bench-machine

bench-finite: $(VENV)/bench.stamp $(PEERS)/jax.stamp
	$(BIN)/python benchmarks/finite.py --jax-python $(PEERS)/bin/python

bench-infinite: $(VENV)/bench.stamp $(PEERS)/jax.stamp
	$(BIN)/python benchmarks/infinite.py --jax-python $(PEERS)/bin/python

bench-machine: $(VENV)/bench.stamp $(PEERS)/jax.stamp
	$(BIN)/python benchmarks/machine.py --jax-python $(PEERS)/bin/python

bench-path: $(VENV)/bench.stamp
	@$(BIN)/python -m pip install --quiet --no-deps --ignore-requires-python explaind==0.1.0
	$(BIN)/python benchmarks/path.py
	$(BIN)/python benchmarks/sweep.py

bench-runs: $(VENV)/bench.stamp
	$(BIN)/python benchmarks/runs.py

# needs a CUDA device
bench-gpu: $(VENV)/ntkit.stamp
	$(BIN)/python benchmarks/gpu.py

bench-attribution: $(VENV)/ntkit.stamp
	$(BIN)/python benchmarks/attribution.py

bench-counterfactuals: $(VENV)/ntkit.stamp
	@$(BIN)/python -m pip install --quiet --no-deps traker==0.3.2 kronfluence==1.0.1 einconv einops opt_einsum
	$(BIN)/python benchmarks/counterfactuals.py

bench-large: $(VENV)/ntkit.stamp
	$(BIN)/python benchmarks/large_run.py

# on a machine where nothing else runs: with busy processes beside it, and without
bench-busy: $(VENV)/bench.stamp
	$(BIN)/python benchmarks/busy.py

# the page that one explores, in a browser
bench-explorer: $(VENV)/test.stamp
	$(BIN)/python benchmarks/explorer.py

bench-diagnose: $(VENV)/bench.stamp
	$(BIN)/python benchmarks/diagnose.py --page docs/diagnose.md

# on a machine where nothing else runs
bench-solvers: $(VENV)/ntkit.stamp
	$(BIN)/python benchmarks/tile_solvers.py
	$(BIN)/python benchmarks/million.py

# on paper, with what is measured on this machine beside it
scale: $(VENV)/ntkit.stamp
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/scale.py --page docs/scale.md --mnist60k out/mnist60k/result.json

# on a machine where nothing else runs: 14.4 GB of memory, 17 GB of disk; killed, it goes on
mnist60k: $(VENV)/ntkit.stamp
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/mnist60k.py --folder out/mnist60k

# needs Ray: pip install -e '.[ray]'
bench-tiles: $(VENV)/bench.stamp
	$(BIN)/python benchmarks/tiles.py

scores: $(VENV)/scores.stamp
	$(BIN)/python benchmarks/scores.py

clean:
	rm -rf $(VENV) $(PEERS) $(FLOOR) $(ZOO) .venv-3.* out build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/ntkit.stamp: $(PINS) | $(BIN)/python
	@echo "installing ntkit into $(VENV)"
	@$(PIP) -e .
	@touch $@

$(FLOOR)/test.stamp: pyproject.toml constraints-floor.txt
	@echo "installing the oldest that ntkit and its tests take into $(FLOOR)"
	@$(FLOOR_PYTHON) -m venv $(FLOOR)
	@$(call PINNED,constraints-floor.txt) $(FLOOR)/bin/python $(INSTALL) -e '.[test]'
	@touch $@

$(VENV)/test.stamp: $(PINS) | $(BIN)/python
	@echo "installing ntkit and what its tests need into $(VENV)"
	@$(PIP) -e '.[test]'
	@touch $@ $(VENV)/ntkit.stamp

$(VENV)/bench.stamp: $(PINS) benchmarks/requirements.txt | $(BIN)/python
	@echo "installing ntkit and its peers in torch into $(VENV)"
	@$(PIP) -e '.[test]'
	@$(BIN)/python -m pip install --quiet --no-deps -r benchmarks/requirements.txt
	@touch $@

$(VENV)/scores.stamp: $(PINS) benchmarks/requirements-scores.txt | $(BIN)/python
	@echo "installing ntkit and the tables of make scores into $(VENV)"
	@$(PIP) -e '.[test]'
	@$(BIN)/python -m pip install --quiet --no-deps -r benchmarks/requirements-scores.txt
	@touch $@

$(PEERS)/jax.stamp: benchmarks/requirements-jax.txt
	@echo "installing neural-tangents into $(PEERS)"
	@$(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip install --quiet -r benchmarks/requirements-jax.txt
	@touch $@

$(ZOO)/zoo.stamp: $(PINS)
	@echo "installing ntkit and the libraries of the zoo into $(ZOO)"
	@$(PYTHON) -m venv $(ZOO)
	@$(call PINNED,constraints.txt) $(ZOO)/bin/python $(INSTALL) -e '.[test,zoo]'
	@touch $@

$(VENV)/docs.stamp: $(PINS) | $(BIN)/python
	@echo "installing ntkit and what its site is made with into $(VENV)"
	@$(PIP) -e '.[docs]'
	@touch $@ $(VENV)/ntkit.stamp

$(VENV)/dev.stamp: $(PINS) | $(BIN)/python
	@echo "installing ntkit and the tools of make lint into $(VENV)"
	@$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/test.stamp $(VENV)/ntkit.stamp
