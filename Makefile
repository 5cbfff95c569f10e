# The two commands of the README are `make up` and `make test`; the rest is for who works on unidle.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed
JOBS   ?= auto

.PHONY: up test test-all lint bench docs clean
.DEFAULT_GOAL := help

help:           ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

$(STAMP): pyproject.toml
	@echo "unidle: creating the environment in $(VENV) (about a minute, once)"
	@$(PYTHON) -c 'import sys; sys.exit("unidle: needs Python 3.11 or newer, found " + sys.version.split()[0] + "; set PYTHON=python3.11") if sys.version_info < (3, 11) else 0'
	@$(PYTHON) -m venv $(VENV) || { echo "unidle: python3 -m venv failed; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[all]' --group dev
	@touch $(STAMP)

up: $(STAMP)    ## start agent, collector, alerts and dashboard here; Ctrl-C stops all
	@exec $(BIN)/unidle up $(ARGS)

test: $(STAMP)  ## the fast tests
	@$(BIN)/python -m pytest -n $(JOBS) -m 'not slow' $(ARGS)

test-all: $(STAMP) ## every test: real servers, browser, whole fleet
	@$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

lint: $(STAMP)  ## ruff, mypy --strict, import-linter, stale docs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m docs.generate --check

bench: $(STAMP) ## every benchmark that gives its figures as JSON, one after another
	@for module in $$(grep -l -e '"--json"' benchmarks/*.py | sed 's|/|.|; s|\.py$$||'); do \
	  echo "$$module" >&2; $(BIN)/python -m $$module --json $(ARGS) || exit 1; done

docs: $(STAMP)  ## write the generated pages of docs/
	@$(BIN)/python -m docs.generate

clean:          ## remove the environment and the local data
	rm -rf $(VENV) .unidle
