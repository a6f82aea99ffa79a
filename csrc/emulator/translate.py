"""CUDA's own syntax as C++: launches, shared variables and launch bounds, for the emulator; all else is left as it is.

    python translate.py csrc/cuda/NAME.cu build/NAME.cu

Lines keep their numbers. What is not understood is an error, never passed on.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

PAIRS = {"(": ")", "[": "]", "{": "}"}


def error(text: str, at: int, problem: str) -> ValueError:
    """What is wrong, and in which line."""
    return ValueError(f"line {text.count(chr(10), 0, at) + 1}: {problem}")


def blank(text: str) -> str:
    """The same with comments and strings as spaces, so that what stands in them is not taken for code."""
    pattern = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"'
    return re.sub(pattern, lambda found: re.sub(r"[^\n]", " ", found[0]), text, flags=re.DOTALL)


def closing(code: str, at: int, end: str) -> int:
    """Where ``end`` stands, from ``at`` on and outside of brackets."""
    expected: list[str] = []
    for i in range(at, len(code)):
        if not expected and code.startswith(end, i):
            return i
        if code[i] in PAIRS:
            expected.append(PAIRS[code[i]])
        elif code[i] in PAIRS.values() and (not expected or expected.pop() != code[i]):
            break
    raise error(code, at, f"no {end} follows")


def split(code: str) -> list[str]:
    """Parts between the commas outside of brackets."""
    parts, depth = [""], 0
    for letter in code:
        depth += (letter in "([{<") - (letter in ")]}>")
        parts[-1] += letter
        if letter == "," and depth == 0:
            parts[-1] = parts[-1][:-1]
            parts.append("")
    return parts


def kernel_before(code: str, at: int) -> int:
    """Where the name of the kernel begins that is launched at ``at``: a name, perhaps with template arguments."""
    i = len(code[:at].rstrip())
    if code[i - 1] == ">":
        depth = 0
        while i > 0:
            i -= 1
            depth += (code[i] == ">") - (code[i] == "<")
            if depth == 0:
                break
    name = re.search(r"\w+\s*$", code[:i])
    if not name or re.fullmatch(r"\d.*", name[0].strip()):
        raise error(code, at, "<<< does not follow the name of a kernel")
    return name.start()


def launches(code: str, templates: set[str]) -> list[tuple[int, int, str]]:
    """``kernel<<<configuration>>>`` as an object that is called with the arguments."""
    edits = []
    for found in re.finditer("<<<", code):
        begin, end = kernel_before(code, found.start()), closing(code, found.end(), ">>>")
        kernel, configuration = code[begin : found.start()], code[found.end() : end]
        if not 2 <= len(split(configuration)) <= 4 or not code[end + 3 :].lstrip().startswith("("):
            raise error(code, begin, "a launch is kernel<<<grid, block, shared, stream>>>(arguments)")
        name = " ".join(kernel.split())
        address = "nullptr" if name in templates else f"reinterpret_cast<const void*>({name})"
        call = f"[&](const auto&... arguments) {{ {name}(arguments...); }}"
        lines = "\n" * kernel.count("\n")
        edits.append((begin, end + 3, f'::emulator::Launch({configuration}){lines}.of("{name}", {address}, {call})'))
    return edits


def shared_variables(code: str) -> list[tuple[int, int, str]]:
    """``__shared__`` declarations as references into the block's memory."""
    edits = []
    for found in re.finditer(r"(\bextern\s+)?\b__shared__\b", code):
        end = closing(code, found.end(), ";")
        declared = code[found.end() : end]
        plain = re.sub(r"__align__\s*\([^()]*\)", " ", declared)
        names = [re.search(r"(\w+)\s*(\[.*)?$", part, re.DOTALL) for part in split(plain)]
        if not all(names) or "=" in plain:
            raise error(code, found.start(), "a shared declaration is TYPE NAME[SIZE], NAME...;")
        if found[1]:
            array = re.fullmatch(r"\s*(.+?)\s+(\w+)\s*\[\s*\]", plain, re.DOTALL)
            if not array:
                raise error(code, found.start(), "extern __shared__ is TYPE NAME[];")
            kind, name = array.groups()
            memory = f"static_cast<{kind}*>(::emulator::dynamic_shared())"
            edits.append((found.start(), end, f"{kind}* const {name} = {memory}"))
            continue
        owner = f"Shared{found.start()}"
        text = f"struct {owner} {{{declared}; }}"
        for number, name in enumerate(names):
            assert name
            kind = f"decltype({owner}::{name[1]})"
            text += f"; {kind}& {name[1]} = ::emulator::shared<{owner}, {number}, {kind}>()"
        edits.append((found.start(), end, text))
    return edits


def launch_bounds(code: str) -> list[tuple[int, int, str]]:
    """``__launch_bounds__`` as a check where the kernel begins."""
    edits = []
    for found in re.finditer(r"\b__launch_bounds__\s*\(", code):
        end = closing(code, found.end(), ")")
        most = split(code[found.end() : end])[0]
        body = closing(code, end + 1, "{") + 1
        edits += [(found.start(), end + 1, ""), (body, body, f" ::emulator::check_launch_bounds({most});")]
    return edits


def translate(text: str, name: str) -> str:
    """The whole of a source or header of that name."""
    code = blank(text)
    templates = set(re.findall(r">\s*__global__\s+void\s+(?:__launch_bounds__\s*\(.*?\)\s+)?(\w+)\s*\(", code))
    edits = [*launches(code, templates), *shared_variables(code), *launch_bounds(code)]
    for begin, end, new in sorted(edits, reverse=True):
        text = text[:begin] + new + text[end:]
    left = re.search(r"<<<|>>>|\b(__shared__|__launch_bounds__|__constant__|__managed__|asm)\b", blank(text))
    if left:
        raise error(text, left.start(), f"{left[0]} is not understood")
    return f'#line 1 "{name}"\n{text}'


if __name__ == "__main__":
    source, target = sys.argv[1:]
    try:
        done = translate(Path(source).read_text(), source)
    except ValueError as problem:
        raise SystemExit(f"{source}: {problem}") from None
    Path(target).write_text(done)
