#!/bin/sh
# The CUDA kernels without a GPU: csrc/cuda built upon csrc/emulator, for tensors of the CPU, and the tests of the operations
# with it, under several orders of threads and blocks. `make emulate`; arguments go to pytest.
#   SEEDS="1 2 3"      one run for each
#   SANITIZER=address  with AddressSanitizer and UBSan as well; thread: do two threads of a block touch the same bytes?
set -eu
cd "$(dirname "$0")/.."
export PYTHON="${PYTHON:-.venv/bin/python}" FUSION3D_EMULATE=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
[ $# -gt 0 ] || set -- tests/ops
# Those of the build, and of the instruction sets of a CPU, have nothing to do with them.
set -- "$@" --ignore=tests/ops/test_build.py --ignore=tests/ops/test_wheel.py --ignore=tests/ops/test_sanitize.py \
  --ignore=tests/ops/test_emulator.py --ignore=tests/ops/test_baseline.py -m "not gpu and not slow"
[ "${SANITIZER:-}" ] || "$PYTHON" setup.py -q build_ext
for seed in ${SEEDS:-1 2}; do
  echo "emulate: FUSION3D_EMULATOR_SEED=$seed"
  export FUSION3D_EMULATOR_SEED="$seed"
  if [ "${SANITIZER:-}" ]; then
    sh tools/sanitize.sh "$@"
  else
    FUSION3D_LIBRARY=$PWD/build/emulated/_kernels.abi3.so "$PYTHON" -m pytest -q -p no:cacheprovider "$@"
  fi
done
