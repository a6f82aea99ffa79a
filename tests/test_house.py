"""The rules of the house, checked on the source: one-way imports, sizes, light imports, nothing of one machine."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fusion3d"
SOURCES = sorted(PACKAGE.rglob("*.py"))
MAX_FILE, MAX_FUNCTION = 400, 60  # lines; past these a file or a function is asking to be two

BASE = ["__version__", "errors", "files", "rows", "types", "config", "geometry", "ops"]
CHAIN = [*BASE, "counts", "encoders", "bev", "heads", "model", "late", "build", "engine", "analysis", "demo"]
# What each room may import besides itself. The door (cli) leads everywhere; rooms beside the chain see its base alone.
ALLOWED = {room: set(CHAIN[:i]) for i, room in enumerate(CHAIN)}
ALLOWED |= {room: set(BASE) for room in ("data", "metrics", "synthetic")}
ALLOWED["view"] = {*BASE, "metrics"}
for room in ("engine", "analysis", "demo"):
    ALLOWED[room] |= {"data", "metrics", "synthetic", "view"}
ALLOWED["cli"] = set(CHAIN)

HEAVY = ("cv2", "matplotlib", "nuscenes", "open3d", "pandas", "shapely", "sklearn", "spconv", "tensorboard")


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(tree: ast.Module) -> set[str]:
    """The rooms of fusion3d that a module imports anywhere, inside functions too."""
    rooms = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            rooms |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("fusion3d.")}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole path"
            if node.module == "fusion3d":
                rooms |= {alias.name for alias in node.names}
            elif (node.module or "").startswith("fusion3d."):
                rooms.add((node.module or "").split(".")[1])
    return rooms


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    room = room_of(path)
    if room == "__init__":
        allowed = set()
    else:
        assert room in ALLOWED, f"{room} is no room of the house: give it a place in CONTRIBUTING.md and here"
        allowed = ALLOWED[room] | {room}
    wrong = imported_rooms(ast.parse(path.read_text())) - allowed
    assert not wrong, f"{path.name} in {room} imports {sorted(wrong)}; it may import {sorted(allowed)}"


def test_the_import_rule_catches_a_wrong_import():
    assert "model" in imported_rooms(ast.parse("def f():\n    from fusion3d.model import Fusion3D")) - ALLOWED["heads"]
    assert imported_rooms(ast.parse("import fusion3d.view.scene\nfrom fusion3d import ops")) == {"view", "ops"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    length = len(text.splitlines())
    assert length <= MAX_FILE, f"{path.name} has {length} lines: make it two"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            start = node.body[1].lineno if ast.get_docstring(node) and len(node.body) > 1 else node.lineno
            size = (node.end_lineno or start) - start + 1  # without signature and docstring
            assert size <= MAX_FUNCTION, f"{path.name}: {node.name} has {size} lines: make it two"


def test_import_is_light():
    # Whatever a module needs of these, it imports inside a function.
    names = [".".join(["fusion3d", *path.relative_to(PACKAGE).with_suffix("").parts]) for path in SOURCES]
    modules = sorted({name.removesuffix(".__init__") for name in names if not name.endswith("__main__")})
    code = f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[0] for name in done.stdout.split()} & set(HEAVY)
    assert not loaded, f"imported at module level: {sorted(loaded)}"


def test_no_statement_imports_what_setup_may_leave_out():
    # pyright would find such an import unresolved where the package is not installed.
    for path in [*SOURCES, *(ROOT / "tools").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"open3d", "spconv"}, f"{path}: use import_module"


def test_bare_import_loads_not_even_torch():
    code = "import sys, fusion3d, fusion3d.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not {"torch", "numpy"} & set(done.stdout.split())


BUILT = {"build", "dist", "runs", "data"}  # folders at the top that .gitignore names
TEXT = {".py", ".yaml", ".toml", ".md", ".txt", ".cpp", ".cu", ".h", ".sh", ""}


def own_files() -> list[Path]:
    """Every text file that belongs to the project, those without a suffix too; no git is needed."""
    found = []
    for name, folders, files in os.walk(ROOT):
        folder, top = Path(name), name == str(ROOT)
        left_out = {"__pycache__", *(BUILT if top else ())}
        folders[:] = [n for n in folders if n == ".ci" or not (n.startswith(".") or n in left_out)]
        found += [folder / file for file in files if file != ".git"]  # a file where the folder is a worktree
    return [path for path in found if path.suffix in TEXT]


def test_nothing_of_one_machine_or_person():
    files = own_files()
    names = {str(path.relative_to(ROOT)) for path in files}
    assert {"Makefile", ".ci/run", ".gitignore", "LICENSE", "setup.py", "fusion3d/types.py"} <= names
    own = re.compile(r"/(?:home|root|Users|work|mnt|tmp/[a-z]+)/[\w.]+")
    for path in files:
        text = path.read_text()
        found = own.findall(text)
        assert not found, f"{path.relative_to(ROOT)} holds a path of one machine: {found[:3]}"
        assert "install torchvision" not in text or path.suffix in {".md", ".py"}, path.name


def test_no_code_runs_from_loaded_files():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            call = ast.unparse(node.func)
            assert call.split(".")[0] not in ("pickle", "marshal", "shelve", "dill"), f"{path.name}: {call}"
            assert call not in ("yaml.load", "eval", "exec"), f"{path.name}: {call}"
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if call == "torch.load":
                assert keywords.get("weights_only") == "True", f"{path.name}: torch.load without weights_only=True"
            if call in ("np.load", "numpy.load"):
                assert keywords.get("allow_pickle", "False") == "False", f"{path.name}: np.load with pickles"
