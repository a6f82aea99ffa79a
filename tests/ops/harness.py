"""What the tests of all kernels share: on which devices, and what is asked of every operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fusion3d.ops import library

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
EMULATED = library.LIBRARY.parent.name.startswith("emulated")  # kernels for CUDA, run on the CPU
compiled = pytest.mark.skipif("cpu" not in library.DEVICES, reason=f"no compiled kernel: {library.PROBLEM}")

reads_values = pytest.mark.skipif(EMULATED, reason="on CUDA nothing waits for values to check them")


def needs_kernel(device: str) -> None:
    """Skip the test where what would run is the twin."""
    if device not in library.DEVICES:
        pytest.skip(f"no compiled kernel for {device}: {library.PROBLEM or 'compiled without'}")


def assert_same_bits(run: Callable[[], Any], threads: Sequence[int] = (1, 2, 3, 4)) -> None:
    """Everything that ``run`` returns is the same to the bit for any number of threads, and for a second run."""
    before = torch.get_num_threads()
    try:
        found = []
        for count in (threads[0], *threads):
            torch.set_num_threads(count)
            found.append([leaf.detach().clone() for leaf in tree_leaves(run()) if isinstance(leaf, Tensor)])
    finally:
        torch.set_num_threads(before)
    assert found[0], "run() returned no tensor"
    for count, leaves in zip(threads, found[1:], strict=True):
        same = [_bits_equal(a, b) for a, b in zip(found[0], leaves, strict=True)]
        assert all(same), f"with {count} threads the results {[i for i, ok in enumerate(same) if not ok]} differ"


def _bits_equal(a: Tensor, b: Tensor) -> bool:
    """Equal in shape and bytes, so that a NaN equals itself and -0 is not 0."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))


def opcheck(op: Any, *args: Any, **kwargs: Any) -> None:
    """Schema, fake kernel and gradient are as torch wants them; failures name the check."""
    torch.library.opcheck(op.default if hasattr(op, "default") else op, args, kwargs)


def assert_traces(run: Callable[..., Any], *args: Any) -> None:
    """``torch.compile`` makes one graph of it, with autograd's too, and ``torch.export`` takes it; the same results."""
    want = run(*args)
    for backend in ("eager", "aot_eager"):
        torch.compiler.reset()
        torch.testing.assert_close(torch.compile(run, backend=backend, fullgraph=True)(*args), want, rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(exported(run, *args)(*args), want, rtol=0, atol=0)


def exported(run: Callable[..., Any], *args: Any, dynamic_shapes: Any = None) -> Callable[..., Any]:
    """What ``torch.export`` makes of it."""

    class Module(torch.nn.Module):
        def forward(self, *inputs: Any) -> Any:
            return run(*inputs)

    shapes = None if dynamic_shapes is None else (tuple(dynamic_shapes),)  # all inputs are one argument, *inputs
    return torch.export.export(Module(), args, dynamic_shapes=shapes, strict=False).module()


def assert_twin_warns_once(
    monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any], rtol: float = 1e-5, atol: float = 1e-6
) -> None:
    """Where nothing is compiled ``run`` gives the same by the pure-torch twins, and one warning however often it is."""
    want = run()
    monkeypatch.setattr(library, "DEVICES", frozenset())
    monkeypatch.setattr(library, "_warned", set())
    with pytest.warns(RuntimeWarning, match="pure-torch") as caught:
        found = [run() for _ in range(2)]
    assert len(caught) == 1
    torch.testing.assert_close(found[0], want, rtol=rtol, atol=atol)


def untouched(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A contiguous CPU tensor that may be larger than memory: its pages cost nothing until they are written or read.

    For offsets past 2^31 and 2^32: write some far rows and let the kernel visit these alone.
    """
    try:
        return torch.empty(shape, dtype=dtype)
    except RuntimeError as error:
        return pytest.skip(f"the system does not lend that much address space: {error}")


def spread(rows: Tensor, num_bytes: int = (1 << 32) + 4096) -> Tensor:
    """The same rows, so far apart that first and last are ``num_bytes`` from one another: for kernels with strides."""
    step = -(-num_bytes // (rows.element_size() * max(len(rows) - 1, 1)))
    far = untouched(step * (len(rows) - 1) + rows[0].numel(), dtype=rows.dtype)
    view = far.as_strided(rows.shape, (step, *rows[0].stride()))
    return view.copy_(rows)
