# Each target does all set-up that it needs: Python 3.10+ and make are enough.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo docs test lint types unit cluster hostile mutants clean

demo: $(INSTALLED)  ## the whole job on drawn faces; ends with a report
	$(BIN)/sparface demo --out runs/demo

docs: $(INSTALLED)  ## the documentation, into site/; a broken link ends it
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test: lint types  ## everything that CI checks; the cluster's tests mostly wait, so they run beside the others
	$(MAKE) -j2 unit cluster

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: $(INSTALLED)
	$(BIN)/mypy

unit: $(INSTALLED)
	$(BIN)/pytest --ignore=tests/cluster --ignore=tests/hostile

cluster: $(INSTALLED)  ## and the hostile inputs, so that both halves of `test` take as long
	$(BIN)/pytest tests/cluster tests/hostile

hostile: $(INSTALLED)  ## all kinds of broken and hostile inputs, of which `test` tries a part
	SPARFACE_HOSTILE=all $(BIN)/pytest tests/hostile -s

mutants: $(INSTALLED)  ## breaks the code in small ways and lists what no test notices; goes on where it was stopped
	OMP_NUM_THREADS=1 $(BIN)/mutmut run
	$(BIN)/mutmut results | tee mutants/survivors.txt
	$(BIN)/mutmut export-cicd-stats

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) dist build runs/demo mutants site
