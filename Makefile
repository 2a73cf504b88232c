# One door to everything a developer or a CI job runs. `make demo` needs the runtime dependencies only.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
JOBS   ?= 2
OUT    ?= demo-out
# Waiting threads sleep instead of spinning: two busy neighbours on two cores otherwise cost twentyfold.
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help demo test check bench results soak clean

help:
	@echo "make demo     the whole job on an embedded catalogue, offline (writes $(OUT)/)"
	@echo "make test     the test suite, on $(JOBS) processes"
	@echo "make check    ruff, format and mypy"
	@echo "make bench    side-by-side timings against brute-force and peer implementations"
	@echo "make results  the numbers of the README, on the real data sets"
	@echo "make soak     the reliability tests, repeated"
	@echo "make clean    remove what the targets above made (the virtual environment stays)"

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(STAMP)
	@start=$$(date +%s); $(BIN)/recerase demo --out $(OUT) --force; code=$$?; \
	echo "make demo: exit $$code after $$(( $$(date +%s) - start )) s" >&2; exit $$code

test: $(STAMP)
	@start=$$(date +%s); $(BIN)/pytest -n $(JOBS) -q; code=$$?; \
	echo "make test: exit $$code after $$(( $$(date +%s) - start )) s" >&2; exit $$code

check: $(STAMP)
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/mypy

bench: $(STAMP)
	@for script in benchmarks/bench_*.py; do \
		test -e "$$script" || { echo "no benchmarks yet"; break; }; \
		echo "== $$script"; time $(BIN)/python $$script || exit 1; \
	done

results: $(STAMP)
	$(BIN)/python benchmarks/results_erasure.py
	$(BIN)/python benchmarks/readme.py

soak: $(STAMP)
	@start=$$(date +%s); for round in 1 2 3 4 5; do \
		HYPOTHESIS_PROFILE=soak $(BIN)/pytest -n $(JOBS) -q || exit 1; \
	done; echo "make soak: 5 rounds in $$(( $$(date +%s) - start )) s" >&2

clean:
	rm -rf build dist $(OUT) .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
