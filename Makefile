# Everything stays in .venv; nothing but Python 3.10+ and make is needed.
# Works with the GNU make 3.81 that macOS brings.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

help:  ## this list
	@awk -F ':.*## *' '/^[a-z-]+:.*##/ { printf "%-16s %s\n", $$1, $$2 }' Makefile

setup: $(VENV)/.dev  ## a .venv with everything

loop: $(VENV)/.run  ## play the shipped lamp
	@$(BIN)/mlxlava loop

train: $(VENV)/.run  ## learn the built-in lamp
	$(BIN)/mlxlava train

gallery: $(VENV)/.run  ## the shipped lamps and a flame as web pages in docs/gallery
	@$(BIN)/python tools/gallery.py $(LAMPS)

test: $(VENV)/.dev  ## quick tests
	$(BIN)/python -m pytest

test-slow: $(VENV)/.dev  ## all tests, also the long ones
	$(BIN)/python -m pytest -m "slow or not slow"

test-reliability: $(VENV)/.dev  ## kills, full disks, lost power (minutes; MLXLAVA_RELIABILITY=20: hours)
	$(BIN)/python -m pytest -m "slow or not slow" tests/reliability

test-gpu-path: $(VENV)/.dev  ## the tests that compute, on the code that GPUs take
	MLXLAVA_GPU_PATH=1 $(BIN)/python -m pytest -m "device and not slow"

test-minimum: $(VENV)-minimum/.dev  ## quick tests with the oldest version of each dependency
	$(VENV)-minimum/bin/python -m pytest

check: $(VENV)/.dev  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

reference: $(VENV)/.dev  ## docs/reference.md, written from the code
	$(BIN)/python tools/reference.py

audit: $(VENV)/.dev $(VENV)-audit/.run  ## known holes in the dependencies: those installed here, and the oldest allowed
	@$(BIN)/python -m pip freeze --exclude-editable > $(VENV)-audit/installed.txt
	@$(PYTHON) tools/minimum_versions.py > $(VENV)-audit/oldest.txt
	for list in installed oldest; do \
	  $(VENV)-audit/bin/pip-audit --strict --disable-pip --no-deps --requirement $(VENV)-audit/$$list.txt || exit 1; \
	done

bench: $(VENV)/.dev  ## everything measured on this machine, and saved
	$(BIN)/mlxlava bench --save

bench-peer: $(VENV)/.peer  ## training steps beside the same in PyTorch (installs PyTorch)
	$(BIN)/mlxlava bench --only peer --save

bench-compare: $(VENV)/.run  ## the last saved benchmark against the one before, or WITH=FILE
	@$(BIN)/python -m benchmarks.compare $(WITH)

clean:  ## remove what can be made again; runs stay
	rm -rf $(VENV) $(VENV)-minimum $(VENV)-audit dist .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# pip is told `cpu` on every system: the extra is empty outside Linux.
$(VENV)/.run: pyproject.toml
	@command -v $(PYTHON) > /dev/null || \
	  { echo "there is no $(PYTHON): install Python 3.10 or newer, or name it: make PYTHON=python3.13 ..."; exit 1; }
	@$(PYTHON) tools/check_python.py
	@$(PYTHON) -m venv $(VENV) || { echo "no venv module: on Debian and Ubuntu, apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[cpu,window]"
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[all,dev]"
	@touch $@

$(VENV)-minimum/.dev: pyproject.toml tools/minimum_versions.py
	@$(PYTHON) tools/check_python.py
	@$(PYTHON) -m venv $(VENV)-minimum
	@$(PYTHON) tools/minimum_versions.py > $(VENV)-minimum/constraints.txt
	$(VENV)-minimum/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint $(VENV)-minimum/constraints.txt --editable ".[all,dev]"
	@touch $@

$(VENV)-audit/.run:
	@$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --quiet --disable-pip-version-check "pip-audit>=2.9"
	@touch $@

# On Linux pip may bring the CUDA build of PyTorch, some GB; the CPU build is enough.
$(VENV)/.peer: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[peer]"
	@touch $@

.PHONY: help setup loop train gallery test test-slow test-reliability test-gpu-path test-minimum check reference audit bench bench-peer bench-compare clean
