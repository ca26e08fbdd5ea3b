# Everything runs in .venv, which is created when first needed. Variables: PYTHON (the interpreter that creates it),
# TORCH (the torch to install), VENV (the folder), SIZE (small: a demo of half a minute), OUT (the demo's folder); for
# bench-compare BASE (the revision to compare with), THRESHOLD (percent), ONLY (one bench file), PLANT (1.15: slow this
# tree down by 15%, which must be caught); for new-op NAME; for wheel-rocm ROCM_VERSION (if ROCm is not installed); for
# test-abi TORCH_OLD (the torch to run on); DIST (where wheels go).

PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_OLD ?= torch==2.11.0
VENV ?= .venv
SIZE ?= 1b
OUT ?= out/demo
DIST ?= dist
BASE ?= HEAD
THRESHOLD ?= 10
ONLY ?=
PLANT ?= 1
NAME ?=
ROCM_VERSION ?= 7.2

python := $(VENV)/bin/python
pip := $(python) -m pip --disable-pip-version-check
torch := $(VENV)/.$(subst =,,$(notdir $(TORCH)))
sources := pyproject.toml setup.py CMakeLists.txt $(shell find csrc -type f 2>/dev/null)
native := $(shell find csrc tests tools -name '*.cpp' -o -name '*.c' -o -name '*.h' -o -name '*.cu' -o -name '*.hip' 2>/dev/null)
# Two worker processes of one thread each; tests about threads set their own number.
pytest := OMP_NUM_THREADS=1 $(python) -m pytest

.DELETE_ON_ERROR:
.PHONY: help demo doctor test test-full test-abi bench bench-growth bench-repeat bench-compare wheel-cpu wheel-cuda \
	wheel-rocm lint new-op clean

help:
	@echo 'make demo        upstream and openmythos side by side on mythos_1b (SIZE=small: half a minute)'
	@echo 'make doctor      what this machine has, and which backend serves which op'
	@echo 'make test        the tests, without the slow ones'
	@echo 'make test-full   all tests'
	@echo 'make test-abi    the tests of a wheel built here on another torch, TORCH_OLD (downloads it)'
	@echo 'make bench       the benchmarks, with a report under bench/results'
	@echo 'make bench-growth   cost over loops, cache, batch and experts'
	@echo 'make bench-repeat   the quoted ratios twice, and how far they move'
	@echo 'make bench-compare BASE=<revision>   this tree against another one'
	@echo 'make wheel-cpu   a wheel in dist/ without GPU code; wheel-cuda needs nvcc, wheel-rocm clang 18 or newer and lld'
	@echo 'make lint        ruff, clang-format and the rules of CONTRIBUTING.md'
	@echo 'make new-op NAME=x  the files of a new operation'
	@echo 'make clean       remove what was built ($(VENV) stays)'

# Torch is installed first and alone: the build compiles against it, and a version range could pull in a newer one.
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

# --no-deps, since upstream pins an older torch; its other dependencies are in our extra `test`.
$(VENV)/.upstream: $(VENV)/.build-tools
	$(pip) install --no-deps open-mythos
	@touch $@

demo: $(VENV)/.installed $(VENV)/.upstream
	$(VENV)/bin/openmythos demo --size $(SIZE) --out $(OUT)

doctor: $(VENV)/.installed
	$(VENV)/bin/openmythos doctor

# The second run interprets the Triton kernels on the CPU, as far as that is quick.
test: $(VENV)/.installed $(VENV)/.upstream
	$(pytest) -n 2
	TRITON_INTERPRET=1 $(pytest) -n 2 tests/ops/test_rms_norm.py -k triton
	$(python) -m pytest bench --benchmark-disable

# Slow tests that measure memory or hold big models run one at a time; compiling and interpreting do neither.
test-full: test
	$(pytest) -m slow --ignore tests/aot
	$(pytest) -n 2 -m slow tests/aot
	TRITON_INTERPRET=1 $(pytest) -n 2 -m 'slow or not slow' tests/ops -k triton

# Builds a wheel against TORCH and tests it, away from the source tree, under TORCH_OLD. Not part of test-full, because
# that torch and its libraries are gigabytes to download.
old := build/abi/venv/bin/python
test-abi:
	rm -rf build/abi/dist build/abi/tree
	$(MAKE) wheel-cpu DIST=build/abi/dist
	test -x $(old) || $(PYTHON) -m venv build/abi/venv
	$(old) -m pip --disable-pip-version-check install '$(TORCH_OLD)' "$$(echo build/abi/dist/*.whl)[test]"
	$(old) -m pip --disable-pip-version-check install --no-deps --force-reinstall build/abi/dist/*.whl open-mythos
	mkdir build/abi/tree
	git ls-files -z ':!openmythos' ':!triton_kernels' | xargs -0 cp --parents -t build/abi/tree
	cd build/abi/tree && ../venv/bin/python -c 'import openmythos, torch; print(torch.__version__, openmythos.__file__)'
	cd build/abi/tree && OMP_NUM_THREADS=1 ../venv/bin/python -m pytest -n 2

bench: $(VENV)/.installed $(VENV)/.upstream
	$(python) -m bench

bench-growth: $(VENV)/.installed $(VENV)/.upstream
	$(python) -m bench.growth

bench-repeat: $(VENV)/.installed $(VENV)/.upstream
	$(python) -m bench.repeat

bench-compare: $(VENV)/.installed $(VENV)/.upstream
	$(python) -m bench.compare --base $(BASE) --threshold $(THRESHOLD) --only '$(ONLY)' --plant-slowdown $(PLANT)

# File times come from the commit, so that two builds give the same wheel. Leftovers of other wheels are removed first.
wheel-cpu wheel-cuda wheel-rocm: wheel-%: $(VENV)/.build-tools
	rm -rf build/lib* build/bdist* openmythos.egg-info
	OPENMYTHOS_BUILD=$* OPENMYTHOS_ROCM_VERSION=$${OPENMYTHOS_ROCM_VERSION:-$(ROCM_VERSION)} \
	SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct 2>/dev/null || echo 1700000000)} \
	$(pip) wheel --no-build-isolation --no-deps -w $(DIST) .

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(if $(native),$(VENV)/bin/clang-format --dry-run -Werror $(native))
	$(python) -m tools.lint

new-op: $(VENV)/.installed
	$(python) -m tools.new_op '$(NAME)'

clean:
	rm -rf build dist out openmythos.egg-info openmythos/_lib openmythos/_native*.so $(VENV)/.installed
	rm -rf .pytest_cache .ruff_cache .benchmarks .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
