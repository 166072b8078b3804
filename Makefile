# Every target makes .venv first. `make help` lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3.12
JOBS ?= 2
OUT ?= runs/demo
comma := ,
BIN := .venv/bin

# One thread a process: the parallelism is in the processes, and a second OpenMP team on the same cores only waits.
export OMP_NUM_THREADS ?= 1
export MUJOCO_GL ?= egl
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

# Prints a command, then runs it.
define show
@printf '\n\033[1m$$ %s\033[0m\n' '$(strip $(1))'; PATH="$(CURDIR)/$(BIN):$$PATH" $(strip $(1))
endef

.PHONY: help setup test lint demo bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.installed .venv/.rendering ## .venv with everything in it, and a check that rendering works

.venv/bin/python:
	@command -v $(PYTHON) >/dev/null && $(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' || { \
	  echo "Volar needs Python 3.12, and $(PYTHON) is not one." >&2; \
	  echo "Install it (apt-get install python3.12 python3.12-venv, pyenv install 3.12, uv python install 3.12)," >&2; \
	  echo "or name one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; echo "apt-get install python3.12-venv brings what is missing" >&2; exit 1; }

.venv/.installed: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev,ros2,cluster]'
	@touch $@

.venv/.rendering: .venv/.installed .ci/rendering
	@.ci/rendering $(BIN)/python
	@touch $@

.venv/.browser: .ci/browser | .venv/.installed
	@.ci/browser
	@touch $@

# A test file stays in one process, so that its fixtures (a data set, a trained policy) are made once. Nodes with
# deadlines come last and alone: beside a test that trains, they would miss them.
test: setup .venv/.browser ## the whole test suite
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --durations 15 -m 'not real_time'
	$(BIN)/python -m pytest --durations 15 -m real_time

lint: .venv/.installed ## ruff, and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/mypy

# -P: the folder of the script stays off the path, where benchmarks/datasets.py would hide HuggingFace's `datasets`.
bench: setup ## the figures of docs/benchmarks.md, measured here
	@for file in benchmarks/*.py; do printf '\n%s\n' "$$file"; $(BIN)/python -P "$$file" || failed=1; done; exit $${failed:-0}

clean: ## removes caches and build outputs; keeps .venv and runs/
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# Export and control before evaluation, which ends with the table: what is evaluated is the artifact that moved the arm.
ifdef QUICK
demo: setup ## from nothing to a moving arm; QUICK=1 takes the shipped policy instead of training
	$(call show, volar-doctor timer_seconds=0)
	$(call show, volar-export output=$(OUT)/artifact overwrite=true)
	$(call show, volar-control policy=$(OUT)/artifact robot=sim/fr3 instruction="lift the red block" output=$(OUT)/control overwrite=true)
	$(call show, volar-evaluate policy=$(OUT)/artifact suite=tabletop episodes=5 output=$(OUT)/evaluation overwrite=true)
else
demo: setup ## from nothing to a moving arm; QUICK=1 takes the shipped policy instead of training
	$(call show, volar-doctor timer_seconds=0)
	$(call show, volar-collect kind=scenes scenes=20000 output=$(OUT)/scenes overwrite=true)
	$(call show, volar-train recipe=demo_grounding dataset=$(OUT)/scenes output=$(OUT)/grounding overwrite=true)
	$(call show, volar-collect tasks=reach$(comma)lift episodes=1600 output=$(OUT)/demos overwrite=true)
	$(call show, volar-train recipe=demo dataset=$(OUT)/demos scenes=$(OUT)/scenes init=$(OUT)/grounding output=$(OUT)/policy overwrite=true)
	$(call show, volar-export policy=$(OUT)/policy output=$(OUT)/artifact overwrite=true)
	$(call show, volar-control policy=$(OUT)/artifact robot=sim/fr3 instruction="lift the red block" output=$(OUT)/control overwrite=true)
	$(call show, volar-evaluate policy=$(OUT)/artifact suite=tabletop tasks=reach$(comma)lift episodes=50 output=$(OUT)/evaluation overwrite=true)
endif
