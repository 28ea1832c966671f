# Every target sets itself up: Python 3.11 and make are all a machine needs. `make help` lists them.
# The first Python that runs and is new enough: a name found on the path may be a shim of one that is not installed.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV   ?= .venv
BIN     = $(VENV)/bin
READY   = $(VENV)/.ready
PACKAGES = tailscale ts_acme ts_base ts_control ts_dataplane ts_derp ts_lock ts_mesh ts_netstack ts_proxy ts_tunnel

.DEFAULT_GOAL := help
.PHONY: help setup demo test versions check lint types coverage interop natlab bench fuzz soak lowest audit docs wheel clean

help:           ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "pytailscale needs Python 3.11 or newer: install one, or set PYTHON="; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install -q --disable-pip-version-check --group dev --group clients -e '.[cli,asgi,testing]'
	@touch $@

setup: $(READY) ## make the virtual environment (every target does this by itself)

demo: $(READY)  ## a working tailnet on this machine: control server, relay, two devices, real traffic
	@$(BIN)/pytailscale demo

test: $(READY)  ## the test suite without Go peers and without the slow tests (under two minutes)
	@$(BIN)/python -m pytest -m 'not slow and not interop and not root' -n 2 --dist worksteal

versions:       ## the test suite on every Python from 3.11 on that this machine has, each in an environment of its own
	@for p in 3.11 3.12 3.13 3.14; do python$$p -c '' 2>/dev/null || continue; echo "== Python $$p"; \
	$(MAKE) --no-print-directory test PYTHON=python$$p VENV=.venv-$$p || exit 1; done

check: lint types ## formatting, lints, types and the tests with branch coverage per room
	@$(MAKE) --no-print-directory coverage

lint: $(READY)
	@$(BIN)/ruff format --check -q . && $(BIN)/ruff check -q . && echo "lint: clean"

types: $(READY)
	@$(BIN)/mypy

coverage: $(READY)
	@$(BIN)/python -m pytest -m 'not slow and not interop and not root' -n 2 --dist worksteal --cov --cov-report=
	@$(BIN)/python tests/coverage_by_room.py

interop: $(READY) ## the suite against real Headscale, tailscaled, tsnet and derper (builds them once; needs Go); ROUNDS=20
	@bash tests/interop/install_servers.sh
	@$(BIN)/python tests/interop/build.py
	@$(BIN)/python -m pip install -q --disable-pip-version-check --group notebooks --group docs --group web --group loops
	@bash tests/interop/install_engines.sh small
ifdef ROUNDS
	@$(BIN)/python -m tests.interop.rounds $(ROUNDS)
else
	@$(BIN)/python -m pytest tests/interop $$($(BIN)/python -c 'from tests.interop.rounds import parallel; print(*parallel())')
endif

natlab: $(READY) ## every pair of NATs in network namespaces, tsnet first, then ours (root; a quarter of an hour)
	@bash tests/interop/install_servers.sh
	@$(BIN)/python tests/interop/build.py
	@NATLAB=full $(BIN)/python -m pytest tests/interop/test_natlab.py

bench: $(READY) ## one table of ratios against bare cryptography, the bare pipeline and tsnet; AGAINST=rev: against a revision
	@$(BIN)/python -m bench $(if $(AGAINST),--against $(AGAINST))

fuzz: $(READY)  ## every parser and state machine against hostile bytes: BUDGET=100000 inputs, or GUIDED=10 minutes
ifdef GUIDED
	@$(BIN)/python -m pip install -q --disable-pip-version-check atheris
	@$(BIN)/python -m tests.fuzz --atheris --minutes $(GUIDED)
else
	@$(BIN)/python -m tests.fuzz --inputs $(or $(BUDGET),100000)
endif

soak: $(READY)  ## a day of flows, restarts and roaming in minutes: MINUTES=5
	@$(BIN)/python -m tests.soak --minutes $(or $(MINUTES),5)

lowest:         ## the fast tests on the lowest versions of every dependency that pyproject.toml allows
	@sh .ci/lowest.sh

EXTRAS = import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"], sep=",")
audit: $(READY) ## look up everything that an installation with every extra holds in the advisories of PyPI
	@rm -rf build/audit && $(BIN)/python -m venv build/audit/tool && $(BIN)/python -m venv build/audit/installed
	@build/audit/tool/bin/python -m pip install -q --disable-pip-version-check pip-audit
	@build/audit/installed/bin/python -m pip install -q --disable-pip-version-check ".[$$($(BIN)/python -c '$(EXTRAS)')]"
	@build/audit/installed/bin/python -m pip freeze --exclude pytailscale > build/audit/installed.txt
	@build/audit/tool/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off -r build/audit/installed.txt

docs: $(READY)  ## the reference from docstrings, the table of metrics, and a searchable site of all pages in build/site
	@$(BIN)/python docs/generate_reference.py
	@$(BIN)/python docs/generate_metrics.py
	@$(BIN)/python -m pip install -q --disable-pip-version-check --group docs
	@$(BIN)/python docs/build_site.py

wheel: $(READY) ## build the wheel and the source archive into dist/
	@$(BIN)/python -m pip wheel -q --no-deps -w dist .

clean:          ## remove everything that can be made again
	@rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis bench/results
