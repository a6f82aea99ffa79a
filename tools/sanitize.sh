#!/bin/sh
# The CPU kernels under AddressSanitizer and UBSan: a build of its own, and the tests of the operations with it. Any
# finding ends the process with a report. `make sanitize`; arguments go to pytest.
#   SANITIZER=thread      ThreadSanitizer instead: do two threads touch the same bytes?
#   FUSION3D_EMULATE=1    the CUDA kernels on the emulator instead (see emulate.sh)
#   FUSION3D_LIBRARY=...  an instrumented library that is ready: nothing is built
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python} SANITIZER=${SANITIZER:-address}
find_library() { "${CXX:-g++}" -print-file-name="$1"; }
case $SANITIZER in
  address) runtime=$(find_library libasan.so) ;;
  thread) runtime=$(find_library libtsan.so) ;;
  *) echo "sanitize: SANITIZER=$SANITIZER; expected address or thread" >&2; exit 2 ;;
esac
case $runtime in /*) ;; *) echo "sanitize: ${CXX:-g++} has no $runtime" >&2; exit 1 ;; esac

if [ -z "${FUSION3D_LIBRARY:-}" ]; then
  FUSION3D_SANITIZE=$SANITIZER "$PYTHON" setup.py -q build_ext
  kind=sanitize
  [ "${FUSION3D_EMULATE:-}" = 1 ] && kind=emulated
  FUSION3D_LIBRARY=$PWD/build/$kind-$SANITIZER/_kernels.abi3.so
fi
export FUSION3D_LIBRARY
# Python and torch leak by design. What is not written yet is full of NaNs. They are not instrumented, so that only what the kernels do can be a race.
export ASAN_OPTIONS=detect_leaks=0:halt_on_error=1:abort_on_error=1:strict_string_checks=1
ASAN_OPTIONS=$ASAN_OPTIONS:max_malloc_fill_size=1048576:malloc_fill_byte=255
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=1:ignore_noninstrumented_modules=1:report_signal_unsafe=0:suppressions=$PWD/csrc/emulator/races.supp
# Threads of OpenMP are torch's business (see parallel_for in csrc/ops): ThreadSanitizer would misread them.
[ "$SANITIZER" = thread ] && OMP_NUM_THREADS=1
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"
# Tests of the build, and of what compiles more code of its own, have nothing to do with the kernels.
[ $# -gt 0 ] || set -- tests/ops --ignore=tests/ops/test_build.py --ignore=tests/ops/test_wheel.py \
  --ignore=tests/ops/test_sanitize.py -m "not gpu and not slow"
# The runtime comes before all of Python's libraries: it replaces malloc; libstdc++ lets it see what is thrown. Reports go
# past pytest, whose capture would die with the process.
exec env LD_PRELOAD="$runtime $(find_library libstdc++.so)" "$PYTHON" -m pytest -q --capture=sys -p no:cacheprovider "$@"
