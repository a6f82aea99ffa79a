#!/bin/sh
# Everything that needs a GPU, in one command: build, CUDA tests, a short training. Uses the Python that has torch
# (PYTHON, default python3) as it is: nothing is installed, and no network is needed.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

skip() { echo "gpu-check: skipped: $*"; exit 0; }
say() { echo "== $*"; }
has() { "$PYTHON" -c "import $1" 2>/dev/null; }

has torch || skip "$PYTHON has no torch (name another: make gpu-check PYTHON=...)"
"$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || skip "torch sees no CUDA device"
"$PYTHON" -c 'import torch; print("torch", torch.__version__, "on", torch.cuda.get_device_name())'

say "kernels"
if command -v "${NVCC:-nvcc}" >/dev/null || [ -x /usr/local/cuda/bin/nvcc ]; then
  arch=$("$PYTHON" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
  FUSION3D_CUDA=1 FUSION3D_CUDA_ARCHS="$arch" "$PYTHON" setup.py -q build_ext --inplace
else
  echo "nvcc is missing: the CUDA kernels are not compiled, the pure-torch operations run on the GPU"
fi

say "tests"
if has pytest && has hypothesis; then
  "$PYTHON" -m pytest -q -p no:cacheprovider tests/ops -m "not slow"
  others=$(grep -rlE "mark\.gpu" tests --include='test_*.py' | grep -v '^tests/ops/' || true)
  # shellcheck disable=SC2086  # a list of files
  [ -z "$others" ] || "$PYTHON" -m pytest -q -p no:cacheprovider $others -m gpu
else
  echo "pytest or hypothesis is missing: no tests"
fi

say "the model's stages on the GPU"
"$PYTHON" tools/benchmark.py model --config configs/demo.yaml --device cuda

if has numba && has PIL && has scipy && has safetensors; then
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
echo "gpu-check: passed"
