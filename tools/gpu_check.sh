#!/bin/sh
# Everything that needs a GPU, in one command: build, CUDA tests, compute-sanitizer, the table of the operations, a short
# training. Uses the Python that has torch (PYTHON, default python3) as it is: nothing is installed, and no network is needed.
#   sh tools/gpu_check.sh [build] [tests] [sanitize] [benchmark] [training]    only these steps
#   RESULTS=folder        where the tables go (default docs/benchmarks)
#   QUICK=1               the benchmark's small shapes alone
#   SANITIZE_SECONDS=240  for each tool of compute-sanitizer
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3} RESULTS=${RESULTS:-docs/benchmarks}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

skip() { echo "gpu-check: skipped: $*"; exit 0; }
say() { echo "== $(date +%T) $*"; }
has() { "$PYTHON" -c "import $1" 2>/dev/null; }
steps=" ${*:-build tests sanitize benchmark training} "
asked() { case $steps in *" $1 "*) ;; *) false ;; esac; }
for step in $steps; do
  case $step in build | tests | sanitize | benchmark | training) ;; *) echo "gpu-check: no step $step" >&2; exit 2 ;; esac
done

has torch || skip "$PYTHON has no torch (name another: make gpu-check PYTHON=...)"
"$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || skip "torch sees no CUDA device"
"$PYTHON" -c 'import torch; print("torch", torch.__version__, "on", torch.cuda.get_device_name())'
can_test=1 failed= incomplete=
has pytest && has hypothesis || { can_test=; echo "pytest or hypothesis is missing: no tests"; }

if asked build; then
  say "kernels"
  if command -v "${NVCC:-nvcc}" >/dev/null || [ -x /usr/local/cuda/bin/nvcc ]; then
    arch=$("$PYTHON" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
    FUSION3D_CUDA=1 FUSION3D_CUDA_ARCHS="$arch" "$PYTHON" setup.py -q build_ext --inplace
  else
    echo "nvcc is missing: the CUDA kernels are not compiled, the pure-torch operations run on the GPU"
  fi
fi

if asked tests && [ "$can_test" ]; then
  say "tests"
  workers=
  has xdist && workers="-n 4"
  # shellcheck disable=SC2086  # lists of words, here and below
  OMP_NUM_THREADS=2 "$PYTHON" -m pytest -q -p no:cacheprovider $workers tests/ops -m "not slow"
  others=$(grep -rlE "mark\.gpu" tests --include='test_*.py' | grep -v '^tests/ops/' || true)
  # shellcheck disable=SC2086
  [ -z "$others" ] || "$PYTHON" -m pytest -q -p no:cacheprovider $others -m gpu
fi

if asked sanitize && [ "$can_test" ]; then
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || true)
  [ "$sanitizer" ] || echo "compute-sanitizer is missing: no check of memory and races on the GPU"
  for tool in ${sanitizer:+memcheck racecheck synccheck}; do
    say "compute-sanitizer $tool"
    only= # races and barriers are looked at in our own kernels alone: torch's take most of the time
    [ $tool != memcheck ] && "$sanitizer" --help | grep -q kns && only="--kernel-regex kns=fusion3d"
    # Without torch's cache every tensor is an allocation of its own, with an end that can be overrun.
    # shellcheck disable=SC2086
    status=0
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout "${SANITIZE_SECONDS:-240}" \
      "$sanitizer" --tool $tool --error-exitcode 86 $only "$PYTHON" -m pytest -q -x -p no:cacheprovider tests/ops \
      -m "gpu and not slow" -k "not trace and not compile and not graph and not gradcheck and not opcheck" || status=$?
    case $status in
      0) ;;
      124)
        echo "$tool: INCOMPLETE: not finished in ${SANITIZE_SECONDS:-240} s (SANITIZE_SECONDS); nothing was found until then"
        incomplete="$incomplete $tool"
        ;;
      *) echo "gpu-check: $tool failed ($status; 86 is its own finding)" >&2; exit 1 ;;
    esac
  done
fi

if asked benchmark; then
  say "operations against their peers"
  name=ops-$("$PYTHON" -c 'import torch; print(torch.cuda.get_device_name().lower().replace(" ", "-"))')
  "$PYTHON" tools/benchmark.py ops --device cuda ${QUICK:+--quick} --json "$RESULTS/$name.json" \
    --markdown "$RESULTS/$name.md" || failed="a peer of an operation disagrees or failed: see the table"
  say "the model's stages on the GPU"
  "$PYTHON" tools/describe.py configs/demo.yaml --device cuda
fi

if ! asked training; then
  :
elif has numba && has PIL && has scipy && has safetensors; then
  say "a short training on the GPU"
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  cat >"$folder/train.py" <<'PY'
import dataclasses
import sys

from fusion3d.config import load_config
from fusion3d.engine.train import train
from fusion3d.synthetic.writer import make_dataset

if __name__ == "__main__":
    folder = sys.argv[1]
    root = make_dataset(f"{folder}/data", scenes=3, keyframes=6, image_size=(99, 176), val_scenes=1)
    config = load_config("configs/demo.yaml")
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, root=str(root)),
        train=dataclasses.replace(config.train, epochs=2, precision="bfloat16"),
    )
    print("trained:", train(config, f"{folder}/run", device="cuda"))
PY
  "$PYTHON" "$folder/train.py" "$folder"
else
  echo "numba, Pillow, scipy or safetensors is missing: no training"
fi
[ -z "$failed" ] || { echo "gpu-check: $failed" >&2; exit 1; }
[ -z "$incomplete" ] || { echo "gpu-check: incomplete:$incomplete did not finish; all else passed"; exit 0; }
echo "gpu-check: passed"
