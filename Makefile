# Each target does the setup that it needs; only Python 3.10+ and make are required.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# the tests that `make test` runs beside all others
SECOND_HALF := tests/cluster tests/hostile tests/study

.PHONY: demo docs test lint types unit cluster hostile mutants clean

demo: $(INSTALLED)  ## run the whole workflow on drawn faces, up to a report
	$(BIN)/sparface demo --out runs/demo

docs: $(INSTALLED)  ## build the documentation in site/; fails on broken links
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test: lint types  ## run all CI checks; the cluster tests mostly wait, so they run in parallel with the others
	$(MAKE) -j2 unit cluster

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: $(INSTALLED)
	$(BIN)/mypy

unit: $(INSTALLED)
	$(BIN)/pytest $(SECOND_HALF:%=--ignore=%)

cluster: $(INSTALLED)  ## includes other tests, to balance the two halves of `test`
	$(BIN)/pytest $(SECOND_HALF)

hostile: $(INSTALLED)  ## try all kinds of broken and hostile inputs; `test` tries only some
	SPARFACE_HOSTILE=all $(BIN)/pytest tests/hostile -s

mutants: $(INSTALLED)  ## break the code in small ways and list changes that no test detects; resumes when rerun
	OMP_NUM_THREADS=1 $(BIN)/mutmut run
	$(BIN)/mutmut results | tee mutants/survivors.txt
	$(BIN)/mutmut export-cicd-stats

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) dist build runs/demo mutants site
