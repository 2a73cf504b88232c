# One door to everything a developer or a CI job runs. `make demo` needs the runtime dependencies only.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
JOBS   ?= 2
SHARE  ?= 1
TESTS  ?=
ONLY   ?=
OUT    ?= demo-out
# Waiting threads sleep instead of spinning: two busy neighbours on two cores otherwise cost twentyfold.
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help demo test check bench results meta pictures soak coverage mutants reliability clean

help:
	@echo "make demo     the whole job on an embedded catalogue, offline (writes $(OUT)/)"
	@echo "make test     the test suite, on $(JOBS) processes"
	@echo "make check    ruff, format and mypy"
	@echo "make bench    side-by-side timings against peers: benchmarks/BENCH.md (an hour; ONLY=bench_decode: one of them)"
	@echo "make results  the numbers of the README, on the real data sets"
	@echo "make pictures the pictures of the README, from a demo (benchmarks/pictures; the page's needs chromium)"
	@echo "make meta     benchmarks/META.md: what each metric of an audit can tell (an hour of one core; continues where it was stopped)"
	@echo "make soak     the reliability tests in their long form, for hours (SHARE=0.1: a tenth of the counts)"
	@echo "make coverage the test suite again, with branch coverage and its gate"
	@echo "make mutants  mutation testing of the modules that promise most"
	@echo "make reliability   benchmarks/RELIABILITY.md, from what the four above counted"
	@echo "make clean    remove what the targets above made (the virtual environment stays)"

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(STAMP)
	@start=$$(date +%s); $(BIN)/recerase demo --out $(OUT) --force; code=$$?; \
	echo "make demo: exit $$code after $$(( $$(date +%s) - start )) s" >&2; exit $$code

# What a run counts is written where `make reliability` finds it.
test: $(STAMP)
	@mkdir -p .reliability; start=$$(date +%s); \
	RECERASE_FIGURES=.reliability/test.json $(BIN)/pytest -n $(JOBS) -q; code=$$?; \
	echo "make test: exit $$code after $$(( $$(date +%s) - start )) s" >&2; exit $$code

check: $(STAMP)
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python benchmarks/bench.py $(ONLY)
	$(BIN)/python benchmarks/scale.py

results: $(STAMP)
	$(BIN)/python benchmarks/results.py

pictures: $(STAMP)
	$(BIN)/python benchmarks/pictures.py

meta: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/meta.py --profile thorough

soak: $(STAMP)
	@mkdir -p .reliability; start=$$(date +%s); \
	RECERASE_SOAK=$(SHARE) HYPOTHESIS_PROFILE=soak RECERASE_FIGURES=.reliability/soak$(notdir $(TESTS)).json \
	$(BIN)/pytest -n $(JOBS) -q $(TESTS); code=$$?; \
	echo "make soak: exit $$code after $$(( $$(date +%s) - start )) s" >&2; exit $$code

coverage: $(STAMP)
	@mkdir -p .reliability
	$(BIN)/pytest -n $(JOBS) -q --cov --cov-report=json:.reliability/covered.json
	$(BIN)/python benchmarks/coverage_gate.py .reliability/covered.json --json .reliability/coverage.json

mutants: $(STAMP)
	@mkdir -p .reliability
	$(BIN)/pip install --quiet -c constraints.txt -e ".[mutants]"
	$(BIN)/python benchmarks/mutants.py --json .reliability/mutants.json

reliability: $(STAMP)
	$(BIN)/python benchmarks/reliability.py

clean:
	rm -rf build dist $(OUT) .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .reliability
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
