# Everything runs in .venv, which is made when it is first needed. Variables: PYTHON (the interpreter to make it with),
# TORCH (the torch to install), VENV (the folder), SIZE (small: a demo of half a minute), OUT (the demo's folder).

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
SIZE ?= 1b
OUT ?= out/demo

python := $(VENV)/bin/python
pip := $(python) -m pip --disable-pip-version-check
torch := $(VENV)/.$(subst =,,$(notdir $(TORCH)))
sources := pyproject.toml setup.py CMakeLists.txt $(shell find csrc -type f 2>/dev/null)
native := $(shell find csrc tests -name '*.cpp' -o -name '*.c' -o -name '*.h' -o -name '*.hip' 2>/dev/null)
# Two worker processes of one thread each; tests about threads ask for theirs.
pytest := OMP_NUM_THREADS=1 $(python) -m pytest

.DELETE_ON_ERROR:
.PHONY: help demo doctor test test-full bench lint clean

help:
	@echo 'make demo        upstream and openmythos side by side on mythos_1b (SIZE=small: half a minute)'
	@echo 'make doctor      what this machine has, and which backend serves which op'
	@echo 'make test        the tests, without the slow ones'
	@echo 'make test-full   all tests'
	@echo 'make bench       the benchmarks'
	@echo 'make lint        ruff and clang-format'
	@echo 'make clean       remove what was built ($(VENV) stays)'

# Torch comes first and alone: the build compiles against it, and a range would take a newer one.
$(torch):
	test -x $(python) || $(PYTHON) -m venv $(VENV)
	$(pip) install '$(TORCH)'
	@touch $@

$(VENV)/.build-tools: $(torch)
	$(pip) install 'cmake>=3.24' ninja 'pybind11>=2.13' 'setuptools>=77' wheel
	@touch $@

$(VENV)/.installed: $(VENV)/.build-tools $(sources)
	$(pip) install --no-build-isolation -e '.[test,lint]'
	@touch $@

# Upstream pins an older torch; what it imports besides is in our extra `test`.
$(VENV)/.upstream: $(VENV)/.build-tools
	$(pip) install --no-deps open-mythos
	@touch $@

demo: $(VENV)/.installed $(VENV)/.upstream
	$(VENV)/bin/openmythos demo --size $(SIZE) --out $(OUT)

doctor: $(VENV)/.installed
	$(VENV)/bin/openmythos doctor

# The second run interprets Triton's kernels on the CPU.
test: $(VENV)/.installed $(VENV)/.upstream
	$(pytest) -n 2
	TRITON_INTERPRET=1 $(pytest) -n 2 tests/ops -k triton

# The slow tests measure memory or hold big models: one at a time.
test-full: test
	$(pytest) -m slow
	TRITON_INTERPRET=1 $(pytest) -m slow tests/ops -k triton

bench: $(VENV)/.installed $(VENV)/.upstream
	folder=bench/results/$$($(python) -m bench.device) && mkdir -p $$folder && \
	$(python) -m pytest bench --benchmark-json=$$folder/bench.json && echo "Wrote $$folder/bench.json"

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(if $(native),$(VENV)/bin/clang-format --dry-run -Werror $(native))

clean:
	rm -rf build dist out openmythos.egg-info openmythos/_lib openmythos/_native*.so $(VENV)/.installed
	rm -rf .pytest_cache .ruff_cache .benchmarks .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
