# Each target does the setup that it needs; only Python 3.10+ and make are required.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# more threads than cores wait for each other: a test can take 20 times as long
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest
# The parts in which `make test` runs the tests: folders, long ones first, and the files beside the folders.
LONG := training cluster hostile
FOLDERS := $(filter-out __pycache__,$(patsubst tests/%/,%,$(wildcard tests/*/)))
PARTS := $(LONG:%=part-%) part-files $(patsubst %,part-%,$(filter-out $(LONG),$(FOLDERS)))
# each part's output in one piece, where make can do that
SYNC := $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

.PHONY: demo docs test lint types unit cluster hostile mutants clean $(PARTS)

demo: $(INSTALLED)  ## run the whole workflow on drawn faces, up to a report
	$(BIN)/sparface demo --out runs/demo

docs: $(INSTALLED)  ## build the documentation in site/; fails on broken links
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test: $(INSTALLED)  ## run all CI checks, three at a time: tests wait half of the time for processes that they start
	$(MAKE) -j3 --keep-going $(SYNC) lint types $(PARTS)

part-files: $(INSTALLED)
	$(PYTEST) tests/test_*.py

$(filter-out part-files,$(PARTS)): part-%: $(INSTALLED)
	$(PYTEST) tests/$*

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: $(INSTALLED)
	$(BIN)/mypy

unit: $(INSTALLED)
	$(PYTEST) --ignore=tests/cluster

cluster: $(INSTALLED)
	$(PYTEST) tests/cluster

hostile: $(INSTALLED)  ## try all kinds of broken and hostile inputs; `test` tries only some
	SPARFACE_HOSTILE=all $(PYTEST) tests/hostile -s

mutants: $(INSTALLED)  ## break the code in small ways and list changes that no test detects; resumes when rerun
	OMP_NUM_THREADS=1 $(BIN)/mutmut run
	$(BIN)/mutmut results | tee mutants/survivors.txt
	$(BIN)/mutmut export-cicd-stats

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	# tests compare with it; it asks for requests 2.25, which mlflow does not take
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps torchattacks==3.5.1
	touch $@

clean:
	rm -rf $(VENV) dist build runs/demo mutants site
