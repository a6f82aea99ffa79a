#!/bin/sh
# Does the compiled library, one file, load and compute right under other Pythons and older torches? Each pair gets an
# environment of its own under ABI_FOLDER (default build/abi), with pip as it is set up here.
#   sh tools/try_abi.sh python3.10:2.10.0 python3.13:2.11.0
# PyPI's torch brings CUDA's libraries as packages of several GB. They are not installed: small stand-ins take their names
# and fail every call, so that torch runs on the CPU. The tests of the operations run too.
set -eu
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || { sed -n '2,6s/^# *//p' "$0"; exit 2; }
library=${FUSION3D_LIBRARY:-$PWD/fusion3d/_kernels.abi3.so}
folder=${ABI_FOLDER:-$PWD/build/abi}
mkdir -p "$folder"

stand_ins() { # of the libraries that torch in environment $1 names and nobody has
  lib=$("$1/bin/python" -c 'import importlib.util as u, pathlib; print(pathlib.Path(u.find_spec("torch").origin).parent / "lib")')
  mkdir -p "$1/stand_ins"
  nm -D --undefined-only "$lib"/*.so | sed -n 's/^ *U \([A-Za-z_0-9]*\).*/\1/p' |
    grep -E '^(__)?(cu|nv|nccl)[A-Za-z_]*' | sort -u | sed 's/.*/int &() { return 100; }/' >"$1/stand_ins/all.c"
  readelf -d "$lib"/*.so | sed -n 's/.*NEEDED.*\[\(.*\)\]/\1/p' | sort -u | while read -r name; do
    [ -e "$lib/$name" ] || ldconfig -p | grep -qF "$name" && continue
    version=$name # CUDA's libraries name their symbols' versions after themselves, but for one
    case $name in libnvshmem*) version=NVSHMEM ;; esac
    echo "$version { global: *; };" >"$1/stand_ins/versions"
    [ -e "$1/stand_ins/$name" ] || gcc -w -shared -fPIC -fno-builtin -Wl,-soname,"$name" \
      -Wl,--version-script="$1/stand_ins/versions" -o "$1/stand_ins/$name" "$1/stand_ins/all.c"
  done
}

failed=0
for pair in "$@"; do
  python=${pair%%:*} torch=${pair##*:}
  place=$folder/$(basename "$python")-torch$torch
  echo "== $python, torch $torch"
  if [ ! -e "$place/ready" ]; then
    "$python" -m venv "$place"
    "$place/bin/python" -m pip install -q --no-deps "torch==$torch"
    "$place/bin/python" -m pip install -q numpy typing-extensions filelock sympy networkx jinja2 fsspec setuptools \
      hypothesis numba pytest scipy shapely
    touch "$place/ready"
  fi
  stand_ins "$place"
  export LD_LIBRARY_PATH="$place/stand_ins" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
  export FUSION3D_LIBRARY="$library" PYTHONPATH="$PWD"
  "$place/bin/python" -W error::RuntimeWarning - <<'PY' || { failed=1; echo "FAILED: it does not load and compute"; continue; }
import platform

import torch

from fusion3d import ops
from fusion3d.ops import library

assert not library.PROBLEM, library.PROBLEM
depth, feat = torch.rand(2, 3, 2, 2, requires_grad=True), torch.randn(2, 5, 2, 2)
cell = torch.arange(24).reshape(2, 3, 2, 2) % 7
pooled = ops.bev_pool(depth, feat, ops.bev_pool_plan(cell, 7))
pooled.square().sum().backward()
want = torch.zeros(7, 5)
for m, d, h, w in torch.cartesian_prod(*map(torch.arange, cell.shape)).tolist():
    want[cell[m, d, h, w]] += depth[m, d, h, w].detach() * feat[m, :, h, w]
torch.testing.assert_close(pooled, want)
assert depth.grad is not None and depth.grad.abs().sum() > 0
names = sorted(n.split("::")[1] for n in torch._C._dispatch_get_all_op_names() if n.startswith("fusion3d::"))
print("python", platform.python_version(), "torch", torch.__version__, "loads and computes:", *names)
PY
  "$place/bin/python" -m pytest -q -p no:cacheprovider tests/ops -m "not gpu and not slow" \
    --ignore=tests/ops/test_build.py --ignore=tests/ops/test_wheel.py --ignore=tests/ops/test_sanitize.py ||
    { failed=1; echo "FAILED: tests"; }
done
exit $failed
