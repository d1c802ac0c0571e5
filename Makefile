# Targets: run, demo, test, prove, check, format, docs, bench, kafka, train, lock, lock-peers. PYTHON=python3.12 chooses an interpreter.
SHELL := /bin/bash
PYTHON ?= $(firstword $(foreach v,3.14 3.13 3.12 3.11,$(shell command -v python$(v) >/dev/null 2>&1 && python$(v) -c 'import venv, ensurepip' >/dev/null 2>&1 && echo python$(v))))
VENV := .venv
RUN := ORT_DISABLE_TELEMETRY=1 $(VENV)/bin/python
MODELS ?= examples/models
ARGS ?=

.PHONY: run demo test prove check bench kafka format docs train lock lock-peers

run: $(VENV)/.run
	@exec env ORT_DISABLE_TELEMETRY=1 $(VENV)/bin/python -m gateway.cli serve $(MODELS) $(ARGS)

# SEED= draws another fault, KAFKA=1 goes through a real broker.
demo: $(VENV)/.run
	@exec env ORT_DISABLE_TELEMETRY=1 $(VENV)/bin/python -m examples.flights.demo $(if $(SEED),--seed $(SEED)) $(if $(KAFKA),--kafka) $(ARGS)

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

# The pages that are made from code.
docs: $(VENV)/.dev
	$(RUN) -m docs.generate

bench: $(VENV)/.dev
	$(RUN) -m bench.cli limits $(ARGS)

kafka: $(VENV)/.dev
	@exec env ORT_DISABLE_TELEMETRY=1 $(VENV)/bin/python -m bench.kafka start $(ARGS)

# The models of examples/flights, from the data: they are committed, so this only shows that they come out again.
train: $(VENV)/.dev
	$(RUN) -m examples.flights.train

# Resolves for Python 3.11 to 3.14, with hashes and without an index address. Development holds the extra `train`
# too, since tests retrain; it comes first and binds the other, so that what is tested is what runs (protobuf 6).
LOCK := uv pip compile --universal --generate-hashes --no-emit-index-url --no-annotate --no-header --python-version 3.11 pyproject.toml
lock:
	$(LOCK) --extra dev --extra train --extra fast-json --extra plots --extra parquet -o requirements-dev.lock
	$(LOCK) --constraint requirements-dev.lock -o requirements.lock

# What the environment of each product holds that `bench peers` compares. A list that says --no-deps is whole as it is.
lock-peers:
	cd bench/peers/locks && for file in *.in; do uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header $$(grep -o -e --no-deps $$file) -o $${file%.in}.lock $$file || exit; done

# pip, not python: a virtual environment that was only half made has the one without the other.
$(VENV)/bin/pip:
	@if [ -z "$(PYTHON)" ]; then echo "tidegate: no Python 3.11 to 3.14 with venv found: install one (Debian: python3-venv), or name it: make run PYTHON=/path/to/python" >&2; exit 2; fi
	@$(PYTHON) -m venv $(VENV) >/dev/null || { echo "tidegate: $(PYTHON) cannot make a virtual environment: install its venv package (Debian: python3-venv)" >&2; exit 2; }

# $(1): a lock. A stamp is newer than the lock that is installed, so that a warm start installs nothing. Hashes are
# required; the source tree itself is put on the search path, which needs no index.
define install
	@echo "installing packages of $(1) (once) …"
	@$(VENV)/bin/pip install --quiet --quiet --quiet --progress-bar off --log $(VENV)/pip.log --disable-pip-version-check --require-hashes -r $(1) || { echo "tidegate: packages could not be installed (the package index was not reached, or does not have them): see $(VENV)/pip.log" >&2; exit 2; }
	@$(VENV)/bin/python -c 'import pathlib, sysconfig; here = pathlib.Path.cwd(); pathlib.Path(sysconfig.get_path("purelib"), "tidegate.pth").write_text(f"{here}\n"); script = here / "$(VENV)/bin/tidegate"; script.write_text(f"#!{here}/$(VENV)/bin/python\nfrom gateway.cli import main\n\nmain()\n"); script.chmod(0o755)'
endef

$(VENV)/.run: requirements.lock | $(VENV)/bin/pip
	$(call install,requirements.lock)
	@touch $@

# The lock for development holds all of the other one, at the same versions.
$(VENV)/.dev: requirements-dev.lock requirements.lock | $(VENV)/bin/pip
	$(call install,requirements-dev.lock)
	@touch $@ $(VENV)/.run
