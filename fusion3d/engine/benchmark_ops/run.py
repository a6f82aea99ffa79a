"""``fusion3d benchmark ops``: each operation against its peers, checked equal first, then timed in turn."""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fusion3d.engine.benchmark_ops import inputs, table, timing
from fusion3d.engine.benchmark_ops.case import Case
from fusion3d.engine.benchmark_ops.table import Row
from fusion3d.engine.environment import environment, headline
from fusion3d.errors import Fusion3DError
from fusion3d.files import write_json, write_whole
from fusion3d.ops import library

FAMILIES = ("voxels", "pooling", "deformable", "windows", "boxes", "sparse")  # modules of this package with `cases`


def cases(device: str, quick: bool) -> Iterator[Case]:
    """The cases of every family, in order; each is made when it is asked for, so that few are in memory."""
    for name in FAMILIES:
        yield from importlib.import_module(f"{__package__}.{name}").cases(device, quick)


def measure(
    case: Case, device: str, rate: float, repeats: int, seconds: float, say: Callable[[str], None] = print
) -> list[Row]:
    """Check one case and time it.

    Args:
        case: what to run.
        device: "cpu" or "cuda".
        rate: copy rate [byte/s] for the bound.
        repeats: readings of each call at most.
        seconds: for each peer, after which no further round is begun.
        say: gets a line of progress before whatever may take long.

    Returns:
        A row for each peer; one row without peer where there is none.
    """

    bound = case.num_bytes / rate
    limit = case.limit if case.limit_of_bound is None else case.limit_of_bound * bound

    def row(peer: str, **values: Any) -> Row:
        target = case.target.get(peer)
        return Row(case.op, case.shape, device, peer, bound=bound, target=target, limit=limit, **values)

    say("ours once")
    try:
        ours = case.ours()
        _wait(device)
    except Exception as error:
        return [row("", note=f"ours failed: {_brief(error)}", wrong=True)]
    rows, good = [], {}
    for name, peer in case.peers.items():
        say(f"{name} once, and compared")
        try:
            case.agree(ours, peer())
            _wait(device)
            good[name] = peer
        except ImportError as error:
            rows.append(row(name, note=f"not installed ({error.name or error})"))
        except AssertionError as error:
            rows.append(row(name, note=f"disagrees: {_brief(error)}", wrong=True))
        except Exception as error:  # such as out of memory: the other peers are still worth a time
            rows.append(row(name, note=f"failed: {_brief(error)}", wrong=True))
    del ours
    for name, peer in good.items():
        say(f"timed against {name}")
        mine, theirs = timing.race([case.ours, peer], device, repeats, seconds)
        rows.append(row(name, ours=mine, theirs=theirs))
    if not good:
        rows.append(row("", ours=timing.race([case.ours], device, repeats, seconds)[0]))
    if device == "cuda" and any(r.ours for r in rows):
        say("ours as a CUDA graph")
        rows = _with_graph(rows, case, repeats, say)
    order = list(case.peers)
    return sorted(rows, key=lambda r: order.index(r.peer) if r.peer else -1)


def _with_graph(rows: list[Row], case: Case, repeats: int, say: Callable[[str], None]) -> list[Row]:
    """The rows with the time of ours as a CUDA graph, where it can be captured."""
    try:
        graph = timing.graph_time(case.ours, repeats)
    except RuntimeError as error:
        say(f"not captured: {_brief(error)}")
        torch.cuda.synchronize()  # raises where the device is lost: no figure after that could be trusted
        return rows
    return [replace(row, graph=graph) if row.ours else row for row in rows]


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _brief(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:160]}" if lines else type(error).__name__


def run(args: argparse.Namespace, source: Callable[[str, bool], Iterator[Case]] = cases) -> tuple[list[Row], float]:
    """Every row that is asked for, and the copy rate [byte/s] (0 where nothing was run).

    Raises:
        Fusion3DError: ``--ops`` names an operation that there is not.
    """
    begin = time.monotonic()
    absent = args.device == "cuda" and not torch.cuda.is_available()
    rate = 0.0 if absent else timing.copy_rate(args.device)
    rows: list[Row] = []
    known: list[str] = []
    for case in source("cpu" if absent else args.device, args.quick):
        known.append(case.op)
        if args.ops and not any(name in case.op for name in args.ops):
            continue
        prefix = f"{case.op}, {case.shape}: "
        if absent:
            note = "not run: torch sees no CUDA device"
            rows += [Row(case.op, case.shape, "cuda", peer, note) for peer in case.peers or ("",)]
            continue

        def say(what: str, prefix: str = prefix) -> None:
            print(f"[{time.monotonic() - begin:5.0f} s] {prefix}{what}", flush=True)

        found = measure(case, args.device, rate, args.repeats, args.seconds, say)
        for row in found:
            say(row.note or f"{table.duration(row.ours)}, {row.peer or 'alone'} {table.duration(row.theirs)}")
        rows += found
    if args.ops and not rows:
        raise Fusion3DError(f"--ops {' '.join(args.ops)}: no such operation; there are {', '.join(sorted({*known}))}")
    return rows, rate


def main(argv: Sequence[str]) -> int:
    """Compare and time; 1 where a peer's result is not ours or something failed, else 0."""
    parser = _parser()
    args = parser.parse_args(list(argv))
    if args.repeats < 1 or args.seconds < 0 or (args.threads or 1) < 1:
        parser.error("--repeats and --threads: expected at least 1; --seconds: at least 0")
    if args.device is None:
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.threads:
        _set_threads(args.threads)
    if args.device not in library.DEVICES and not (args.device == "cuda" and not torch.cuda.is_available()):
        print(f"note: no compiled kernels for {args.device}: what is timed as ours are the pure-torch twins")
    inputs.use_data(args.root)
    rows, rate = run(args)
    about = environment(args.device, inputs.described())
    print("\n" + headline(about, rate) + "\n" + table.text(rows))
    if args.json:
        content = {"environment": about, "copy_rate": rate, "rows": [row.as_dict() for row in rows]}
        write_json(args.json, content)
    if args.markdown:
        page = ["# Operations", headline(about, rate), table.EXPLANATION, table.markdown(rows)]
        write_whole(args.markdown, ("\n\n".join(page) + "\n").encode())
    return int(any(row.wrong for row in rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmark ops", description="Operations against what others offer.")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--ops", nargs="+", metavar="NAME", help="only operations whose name holds one of these")
    parser.add_argument("--quick", action="store_true", help="one small shape of each")
    parser.add_argument("--repeats", type=int, default=50, help="readings of each call, at most")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each peer; three readings are always taken")
    parser.add_argument("--threads", type=int, help="of torch and numba; default: torch's own choice")
    parser.add_argument("--root", help="nuScenes data root whose LiDAR is the cloud, instead of a synthetic one")
    parser.add_argument("--json", type=Path, help="file to write with every figure")
    parser.add_argument("--markdown", type=Path, help="file to write with the table")
    return parser


def _set_threads(count: int) -> None:
    import numba

    numba.set_num_threads(min(count, numba.get_num_threads()))  # which may set OpenMP's number, torch's too, to all
    torch.set_num_threads(count)
