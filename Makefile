# Targets: run, test, prove, check, bench, kafka. PYTHON=python3.12 chooses an interpreter.
SHELL := /bin/bash
PYTHON ?= $(firstword $(foreach v,3.14 3.13 3.12 3.11,$(shell command -v python$(v) >/dev/null 2>&1 && python$(v) -c 'import venv, ensurepip' >/dev/null 2>&1 && echo python$(v))))
VENV := .venv
RUN := ORT_DISABLE_TELEMETRY=1 $(VENV)/bin/python
MODELS ?= examples/models
ARGS ?=

.PHONY: run test prove check bench kafka format lock

run: $(VENV)/.run
	@exec env ORT_DISABLE_TELEMETRY=1 $(VENV)/bin/python -m gateway.cli serve $(MODELS) $(ARGS)

test: $(VENV)/.dev
	$(RUN) -m pytest $(ARGS)

prove: $(VENV)/.dev
	$(RUN) -m pytest -m prove $(ARGS)

check: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(VENV)/.dev
	$(RUN) -m bench.cli limits $(ARGS)

kafka: $(VENV)/.dev
	@exec env ORT_DISABLE_TELEMETRY=1 $(VENV)/bin/python -m bench.kafka start $(ARGS)

# Resolves for Python 3.11 to 3.14, with hashes and without an index address.
LOCK := uv pip compile --universal --generate-hashes --no-emit-index-url --no-annotate --no-header --python-version 3.11 pyproject.toml
lock:
	$(LOCK) -o requirements.lock
	$(LOCK) --extra dev -o requirements-dev.lock

$(VENV)/bin/python:
	@if [ -z "$(PYTHON)" ]; then echo "tidegate: no Python 3.11 to 3.14 with venv found: install one (Debian: python3-venv), or name it: make run PYTHON=/path/to/python"; exit 2; fi
	@$(PYTHON) -m venv $(VENV) || { echo "tidegate: $(PYTHON) cannot make a virtual environment: install its venv package (Debian: python3-venv)"; exit 2; }

# A stamp names the lock that is installed, so that a warm start installs nothing.
$(VENV)/.run: requirements.lock | $(VENV)/bin/python
	@echo "installing packages (once) …"
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock || { echo "tidegate: packages could not be installed: the package index was not reached, or does not have them"; exit 2; }
	@touch $@

$(VENV)/.dev: requirements-dev.lock | $(VENV)/bin/python
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock || { echo "tidegate: packages could not be installed: the package index was not reached, or does not have them"; exit 2; }
	@touch $@ $(VENV)/.run
