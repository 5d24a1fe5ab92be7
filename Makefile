# The two commands of the README do all the set-up on a machine that has CPython >= 3.11, pip and make.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
JOBS   ?= 2

.PHONY: demo test lint types docs fuzz bench clean

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev,hf]"
	touch $@

demo: $(VENV)/.ready            ## the main job on the bundled samples, with a report in out/demo/
	$(BIN)/laconic demo -o out/demo

test: lint types                ## lint, types of core/, tests
	$(BIN)/python -m pytest -n $(JOBS)

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready
	$(BIN)/mypy

bench: $(VENV)/.ready           ## every figure of the rate-distortion table beside its peer
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[bench]"
	$(BIN)/laconic bench rd --json out/bench-rd.json

docs: $(VENV)/.ready            ## site/: guides, rooms, and a card a recipe
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[docs]"
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build -q --strict

fuzz: $(VENV)/.ready            ## coverage-guided fuzzing of every decoder; FUZZ_SECONDS=120 by default
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[fuzz]"
	$(BIN)/python tests/fuzz/fuzz_decoders.py --seconds $${FUZZ_SECONDS:-120}

clean:
	rm -rf $(VENV) site out .pytest_cache .ruff_cache .mypy_cache
