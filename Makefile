# Two commands, each enough on a fresh machine with Python 3.11 to 3.13 and a network:
#   make demo   measures the built-in model and prints what it cost
#   make test   runs every test that this machine can run
# A third sets up vLLM's CPU build in an environment of its own, which `make test` uses from then on:
#   make vllm-env

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM := $(VENV)-vllm

.PHONY: demo test test-docker vllm-env test-vllm bench-vllm floors lint format docs bench bench-smoke clean

demo: $(VENV)/.demo
	$(BIN)/llem run examples/quickstart.yaml

# A file's tests share what they set up, so a file is one process's; those that wait longest begin.
test: $(VENV)/.test
	$(BIN)/python -m pytest tests -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
	$(if $(wildcard $(VLLM)/.test),$(MAKE) test-vllm)

vllm-env: $(VLLM)/.test

# In a short directory: the path of a socket, which vLLM makes below it, has 107 characters at most.
COMMA := ,
test-vllm: $(VLLM)/.test
	LLEM_TEST_REQUIRE=vllm,gcc$(findstring $(COMMA)dockerd,$(LLEM_TEST_REQUIRE)) $(VLLM)/bin/python -m pytest tests/vllm_engine --basetemp=$$(mktemp -d)

# Experiments in containers of a daemon that the tests start themselves; needs root and docker.io. Part of `test` too.
test-docker: $(VENV)/.test
	LLEM_TEST_REQUIRE=dockerd,docker $(BIN)/python -m pytest tests/docker

# The oldest dependencies that pyproject.toml allows, with the oldest Python: make floors PYTHON=python3.10
FLOORS := $(VENV)-floors
# Published JSON schemas are as the pinned Pydantic writes them.
OF_PINNED_PYDANTIC := test_docs.py::test_generated_parts_are_what_the_code_says test_docs_settings.py::test_the_pages_are_what_the_code_says
floors:
	$(PYTHON) -m venv $(FLOORS)
	$(FLOORS)/bin/python -m pip install --disable-pip-version-check --quiet uv
	$(FLOORS)/bin/uv pip compile --quiet --resolution lowest-direct --extra pytorch --output-file $(FLOORS)/floors.txt pyproject.toml
	$(FLOORS)/bin/uv pip install --python $(FLOORS) -r $(FLOORS)/floors.txt pytest pytest-timeout hypothesis scipy pandas duckdb polars httpx
	$(FLOORS)/bin/uv pip install --python $(FLOORS) --no-deps --editable .
	$(FLOORS)/bin/python -m pytest tests/unit $(foreach test,$(OF_PINNED_PYDANTIC),--deselect tests/unit/$(test))

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/house_figures.py --budget

format: $(VENV)/.test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.test
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.hooks
	$(BIN)/python -m benchmarks.study
	$(BIN)/python -m benchmarks.cluster
	$(BIN)/python -m benchmarks.energy_accuracy

# Every benchmark in its shortest form: that they run, not what they find.
bench-smoke: $(VENV)/.test
	$(BIN)/python -m benchmarks.startup --quick
	$(BIN)/python -m benchmarks.hooks --quick
	$(BIN)/python -m benchmarks.study --quick
	$(BIN)/python -m benchmarks.cluster --quick
	$(BIN)/python -m benchmarks.energy_accuracy --quick

bench-vllm: $(VLLM)/.test
	$(VLLM)/bin/python -m benchmarks.vllm_overhead

docs: $(VENV)-docs/.docs
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build
	$(VENV)-docs/bin/python scripts/check_site.py

clean:
	rm -rf $(VENV) $(VENV)-docs $(VLLM) $(FLOORS) site .pytest_cache .mypy_cache .ruff_cache tests/nvml/_build

$(VENV)/.python:
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "The pinned environment needs Python 3.11 to 3.13; this is %d.%d. Name another: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	touch $@

# torch first and by itself: a pinned version that is there already is not looked up again with everything else.
$(VENV)/.demo: $(VENV)/.python requirements/run.txt pyproject.toml
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements/torch.txt
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements/run.txt
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --editable .
	touch $@

$(VENV)/.test: $(VENV)/.demo requirements/test.txt
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements/test.txt
	touch $@

$(VLLM)/.test: requirements/torch.txt requirements/vllm.txt pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --disable-pip-version-check --quiet -r requirements/torch.txt
	$(VLLM)/bin/python -m pip install --disable-pip-version-check --quiet --no-deps -r requirements/vllm.txt
	$(VLLM)/bin/python -m pip install --disable-pip-version-check --quiet --no-deps --editable .
	touch $@

$(VENV)-docs/.docs: requirements/docs.txt
	$(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip install --disable-pip-version-check --quiet -r requirements/docs.txt
	touch $@
