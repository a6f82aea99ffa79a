#!/bin/sh
# The CPU kernels under AddressSanitizer and UBSan: a build of its own, and the tests of the operations with it. Any
# finding ends the process with a report. `make sanitize`; arguments go to pytest.
#   FUSION3D_LIBRARY=...  an instrumented library that is ready: nothing is built
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
asan=$("${CXX:-g++}" -print-file-name=libasan.so)
stdcxx=$("${CXX:-g++}" -print-file-name=libstdc++.so)
case $asan in /*) ;; *) echo "sanitize: ${CXX:-g++} has no libasan" >&2; exit 1 ;; esac

if [ -z "${FUSION3D_LIBRARY:-}" ]; then
  FUSION3D_SANITIZE=address "$PYTHON" setup.py -q build_ext
  FUSION3D_LIBRARY=$PWD/build/sanitize-address/_kernels.abi3.so
fi
export FUSION3D_LIBRARY
# Both come before Python's own libraries: the first replaces malloc, the second lets it see what is thrown.
# Python and torch leak by design. Reports go past pytest, whose capture would die with the process.
export ASAN_OPTIONS=detect_leaks=0:halt_on_error=1:abort_on_error=1:strict_string_checks=1
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"
# Tests of the build, and of what compiles more code of its own, have nothing to do with the kernels.
[ $# -gt 0 ] || set -- tests/ops --ignore=tests/ops/test_build.py --ignore=tests/ops/test_wheel.py \
  --ignore=tests/ops/test_sanitize.py -m "not gpu and not slow"
# shellcheck disable=SC2086
exec env LD_PRELOAD="$asan $stdcxx" "$PYTHON" -m pytest -q --capture=sys -p no:cacheprovider "$@"
