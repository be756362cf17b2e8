# Two commands on a fresh machine: `make sweep` (the default temperature sweep) and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/PbTiO3

# Without compiled modules every process would compile jax, scipy and matplotlib anew: 6 s in place of 2 to start one.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help sweep test test-fast test-slow campaign lint tables lock clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# The environment is complete once the stamp is newer than the pinned requirements.
$(VENV)/.complete: requirements.txt pyproject.toml
	@command -v uv >/dev/null 2>&1 || $(PYTHON) -m pip install --quiet --user uv || $(PYTHON) -m pip install --quiet --break-system-packages uv
	@test -x $(BIN)/python || { uv=$$(command -v uv || echo "$(PYTHON) -m uv"); $$uv venv --quiet --python '>=3.11,<3.14' $(VENV); }
	@uv=$$(command -v uv || echo "$(PYTHON) -m uv"); \
	  $$uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.txt && \
	  $$uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

sweep: $(VENV)/.complete ## run the default temperature sweep of PbTiO3 into runs/PbTiO3 (continues it if it was interrupted)
	@$(BIN)/python -m jaxpto.sweep --out $(OUT) $$(test -d $(OUT) && echo --resume)

# The tests of a file share compiled programs, and so a process. tests/conftest.py has the longest files begin.
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.complete lint ## lint, type-check and run the tests
	@$(PYTEST)

test-fast: $(VENV)/.complete ## the unit tests, for every commit
	@$(PYTEST) -m 'not slow and not long'

test-slow: $(VENV)/.complete ## the statistical tests as well (about an hour)
	@$(PYTEST) -m ''

campaign: $(VENV)/.complete ## kill, signal, damage and starve runs for MINUTES=10 and report what did not hold
	@$(BIN)/python -m benchmarks.campaign --minutes $(or $(MINUTES),10) --seed $(or $(SEED),0)

lint: $(VENV)/.complete ## ruff and ty
	@$(BIN)/ruff check --quiet . && $(BIN)/ruff format --quiet --check . && $(BIN)/ty check --quiet jaxpto converters

tables: $(VENV)/.complete ## renew the tables of models in README.md and docs/models.md from the manifest
	@$(BIN)/python docs/model_tables.py

lock: ## renew the pinned requirements from pyproject.toml
	@$$(command -v uv || echo "$(PYTHON) -m uv") pip compile --universal --fork-strategy fewest --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header --no-annotate --group dev pyproject.toml -o requirements.txt

clean: ## remove the environment
	@rm -rf $(VENV)
