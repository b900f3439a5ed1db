# `make sweep` and `make test` need nothing but Python 3.11 or newer: the first call makes .venv and fills it.
#   make sweep [ARGS="proposals=6"]   the schedule-vs-compute-budget frontier at laptop scale
#   make test                         check, then all tests and doctests
#   make check                        ruff, mypy and the arrows between the rooms
#   make fault-test                   kill -9 of every process of a sweep, ten times each, and a table
#   make cluster-test                 ray up, a sweep over two nodes, ray down, on this machine alone; needs root
#   make bench, make bench-gpu        the numbers of the README, on a CPU or on a GPU
# PYTHON=python3.12 picks the interpreter, TORCH=torch==2.13.0 the torch to install.

SHELL := bash

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
TORCH  ?=
ROOMS  := trainables search_spaces sweeps analysis
RUN    := $(VENV)/bin/python
STAMP  := $(VENV)/anabranch.stamp
CPU_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: help sweep test check cluster-test fault-test bench bench-gpu setup clean
help:
	@sed -n 's/^#   //p' Makefile

sweep: $(STAMP)
	@$(RUN) sweeps/wsd_budget.py scale=laptop $(ARGS)

# Whole clusters that start, die and come back go alone: on a busy machine Ray's own processes miss their time limits.
CLUSTERS := tests/nodes tests/faults tests/cluster
test: check
	@$(RUN) -m pytest -rs -n auto --maxprocesses 4 --dist loadfile --doctest-modules $(CLUSTERS:%=--ignore=%) tests $(ROOMS) $(ARGS)
	@$(RUN) -m pytest -rs $(CLUSTERS) $(ARGS) || [ $$? -eq 5 ]  # 5: ARGS picked none of these

check: $(STAMP)
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy
	@$(RUN) -m pytest -q tests/test_arrows.py

cluster-test: $(STAMP)
	@$(RUN) -m tests.cluster.rehearsal

fault-test: $(STAMP)
	@$(RUN) -m tests.faults $(ARGS)

bench: $(STAMP)
	@$(RUN) -m tests.benchmarks $(ARGS)

bench-gpu: $(STAMP)
	@$(RUN) -m tests.benchmarks.gpu $(ARGS)
	@$(RUN) -m tests.benchmarks.parity
	@$(RUN) -m tests.benchmarks.sequences

setup: $(STAMP)

clean:
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info

# Done once, and again when the pins change. torch goes first, because which build fits is the machine's matter.
$(STAMP): pyproject.toml constraints.txt
	@bash -euo pipefail -c "$$INSTALL"

define INSTALL
stop() { printf '%s\n' "$$@" >&2; exit 1; }
command -v $(PYTHON) >/dev/null ||
  stop "Anabranch needs Python 3.11 or newer, found no '$(PYTHON)'; install one, or name yours: make $(MAKECMDGOALS) PYTHON=python3.12"
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  stop "Anabranch needs Python 3.11 or newer, got $$($(PYTHON) --version 2>&1); name a newer one: make $(MAKECMDGOALS) PYTHON=python3.12"
[ -x $(RUN) ] || $(PYTHON) -m venv $(VENV) ||
  { rm -rf $(VENV); stop "cannot make $(VENV); on Debian and Ubuntu the module for it comes with: apt install python3-venv"; }

[ -t 1 ] && quiet= || quiet=--quiet
install() { $(RUN) -m pip --disable-pip-version-check install $$quiet "$$@"; }
offered() { $(RUN) -m pip --retries 1 --timeout 20 install --dry-run --no-deps "$$@" >/dev/null 2>&1; }

pin=$$(sed -n 's/^torch==//p' constraints.txt)
if [ -n "$(TORCH)" ]; then torch=($(TORCH)); kind="$(TORCH)"
elif nvidia-smi >/dev/null 2>&1; then torch=("torch==$$pin"); kind="CUDA torch $$pin (there is an NVIDIA GPU), about 3 GB"
elif [ "$$(uname -s)" != Linux ]; then torch=("torch==$$pin"); kind="torch $$pin, about 0.1 GB"
else
  torch=("torch==$$pin+cpu"); kind="CPU torch $$pin (there is no NVIDIA GPU), about 0.2 GB"
  offered "$${torch[@]}" || { torch+=(--extra-index-url $(CPU_INDEX)); offered "$${torch[@]}"; } ||
    stop "found no CPU build of torch $$pin for this Python, neither in pip's own sources nor at $(CPU_INDEX)." \
      "Check the network; or put the wheel in a folder: PIP_FIND_LINKS=FOLDER make $(MAKECMDGOALS)" \
      "or take the CUDA build (about 3 GB), which also runs without a GPU: make $(MAKECMDGOALS) TORCH=torch==$$pin"
fi
echo "Setting up $(VENV), once. pip downloads what it has not yet: $$kind; Ray, MLflow, Optuna and the rest, about 0.4 GB."
install "$${torch[@]}"
install -c constraints.txt -e '.[dev]'
touch $(STAMP)
endef
export INSTALL
