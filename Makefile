# Needs Python 3.11 or newer with venv and pip. PYTHON=python3.12 make test chooses another one.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test test-all lint chromium

demo: $(INSTALLED)
	$(BIN)/depth-control demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow"

test-all: test chromium
	$(BIN)/python -m pytest -m slow

# The browser tests drive the system's Chromium; where it cannot be installed they are skipped.
chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null \
		|| { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; } \
		|| echo "no Chromium here: the browser tests will be skipped"

lint: $(INSTALLED)
	$(BIN)/ruff check .

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@
