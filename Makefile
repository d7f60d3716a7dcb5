# make install: virtual environment.   make demo: install, then the three stages on the embedded digits.   make test: install, lint, test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo test slow matrix clean

install: $(VENV)/.installed

demo: $(VENV)/.installed
	PYTHON=$(BIN)/python bash runs/demo.sh

test: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m pytest

slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

# the suite at the lower bounds and at the newest releases: make matrix OLD=python3.10 NEW=python3.13
matrix:
	bash tests/matrix.sh

$(VENV)/.installed: requirements.txt
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 10) else f"Python {v[0]}.{v[1]} found, 3.10 or later expected: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV)
