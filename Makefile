# Everything sets itself up: only git, make and Python 3.11 or later are needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# setuptools warns of every editable installation.
PIP = PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet
STAMP := $(VENV)/.installed
# The CUDA version that the driver takes, as nvidia-smi prints it: 13 (or later), or 12. An environment keeps its
# version: two of DALI's wheels in one folder break each other.
CUDA ?= 13
HAS := $(shell cat $(VENV)/.cuda 2>/dev/null)
ifneq ($(HAS),)
ifeq ($(filter command% environment%,$(origin CUDA)),)
override CUDA := $(HAS)
else ifneq ($(HAS),$(CUDA))
$(if $(filter clean,$(MAKECMDGOALS)),,$(error $(VENV) is for CUDA $(HAS): make clean first, or VENV=another folder))
endif
endif

.PHONY: demo test test-long lint docs clean
demo: $(STAMP)  ## drawn images to the table, 2 workers
	$(BIN)/torchrun --standalone --nproc-per-node 2 -m dist_train run --config demo

test: $(STAMP)  ## the whole test suite; three at a time, for much of it is waiting for ranks and jobs
	$(BIN)/python -m pytest --numprocesses 3 --dist loadscope --no-loadscope-reorder

test-long: $(STAMP)  ## what takes minutes more, on the SLURM of tools/dev_slurm.sh
	$(BIN)/python -m pytest -m long

lint: $(VENV)/.dev  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.dev  ## the documentation site, in site/
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=. $(BIN)/mkdocs build --quiet --strict

$(STAMP): pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || (echo "python venv is missing: on Debian, apt-get install python3-venv" && exit 1)
	@echo "installing into $(VENV): about 6 GB, a few minutes"
	@$(PIP) --upgrade pip  # Python 3.11's own takes ten minutes to choose versions
	@echo $(CUDA) > $(VENV)/.cuda
	$(PIP) --editable ".[cuda$(CUDA),test]"
	@touch $@

$(VENV)/.dev: $(STAMP)
	$(PIP) --editable ".[cuda$(CUDA),dev]"
	@touch $@

clean:  ## remove the environment
	rm -rf $(VENV)
