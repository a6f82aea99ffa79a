# fusion3d. `make demo` shows what it does, `make test` that it works. Both set up .venv first, the first time.
#   PYTHON=python3.12         which Python the environment is made with (3.11 or newer)
#   STEPS="build tests"       which steps of gpu-check (see tools/gpu_check.sh; default: all)
#   FUSION3D_CUDA_ARCHS="90"  GPU architectures to compile for, where nvcc is (default: of the GPUs here, else 80 and 90)

PY := .venv/bin/python
FUSION3D_CUDA_ARCHS ?= native
export FUSION3D_CUDA_ARCHS

.PHONY: help demo test test-all lint setup sanitize emulate gpu-check clean

help:
	@echo "make demo       synthetic data, training, evaluation, report: runs/demo/report.html"
	@echo "make test       lint, types and the quick tests"
	@echo "make test-all   the slow tests too"
	@echo "make sanitize   the CPU kernels' tests under AddressSanitizer and UBSan"
	@echo "make emulate    the CUDA kernels' tests without a GPU, on an emulator; SANITIZER=address or thread: sanitized too"
	@echo "make gpu-check  on a machine with an NVIDIA GPU: build, CUDA tests, compute-sanitizer, benchmark, a short training"
	@echo "make setup      .venv and the compiled kernels, nothing more"
	@echo "make lint       ruff and pyright"
	@echo "make clean      remove what was built (not .venv, data or runs)"

setup:
	@sh tools/setup.sh

demo: setup
	@$(PY) tools/demo.py

lint: setup
	@sh tools/lint.sh

test: lint
	@$(PY) -m pytest -q -n 2 -m "not slow and not gpu"
	@echo "make test: passed"

test-all: lint
	@$(PY) -m pytest -q -n 2 -m "not gpu"
	@echo "make test-all: passed"

sanitize: setup
	@sh tools/sanitize.sh
	@echo "make sanitize: passed"

emulate: setup
	@sh tools/emulate.sh
	@echo "make emulate: passed"

gpu-check:
	@sh tools/gpu_check.sh $(STEPS)

clean:
	rm -rf build dist *.egg-info fusion3d/*.so .venv/build.stamp .pytest_cache .ruff_cache .hypothesis
	find fusion3d tests tools -name __pycache__ -type d -exec rm -rf {} +
