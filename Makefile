# make demo   from a bare clone to a trained, exported model on the shipped text
# make test   everything that is checked: make check, then all tests
# make check  lint, format, types, import directions
# make bench  our speed beside what a user would take instead -> build/bench.json
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: demo test check format bench clean
.DELETE_ON_ERROR:

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch setuptools
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/python launch/demo.py

check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

test: check
	$(BIN)/python -m pytest

bench: $(INSTALLED)
	$(BIN)/python -m tests.bench

clean:
	rm -rf build $(VENV)
