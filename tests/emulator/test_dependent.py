"""Memory that a kernel may read before grid_wait: what no kernel that may still run has written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from . import EmulatedDevice, KernelFault

WRITERS = ("BEFORE_WAIT", "AFTER_WAIT", "NEVER_FENCED", "NEVER")
TOGETHER = {"dependent.cu": [[*(f"writer<{w}>" for w in WRITERS), "early_reader"]]}


def chain(first: str, second: str, read: int, element: int = 0, written: int = 32, sync: bool = False) -> np.ndarray:
    """Launch two writers of different arrays, then a kernel that reads array `read` before grid_wait; return it."""
    device = EmulatedDevice(2, Path(__file__).parent / "kernels", TOGETHER)
    source, *targets, out = (device.upload(np.zeros(32, np.float32)) for _ in range(4))
    for i, (writer, target) in enumerate(zip((first, second), targets, strict=True)):
        args = [source, target, np.int32(written)]
        device.launch(device.kernel("dependent.cu", f"writer<{writer}>"), (1,), (32,), args, dependent=i > 0)
    if sync:
        device.synchronize()
    args = [targets[read], out, np.int32(element)]
    device.launch(device.kernel("dependent.cu", "early_reader"), (1,), (32,), args, dependent=True)
    return device.read(out)


CHAINS = [  # first writer, second writer, array read, whether the early read is allowed
    pytest.param("BEFORE_WAIT", "BEFORE_WAIT", 0, False, id="the first may still run"),
    pytest.param("BEFORE_WAIT", "BEFORE_WAIT", 1, False, id="so may the second"),
    pytest.param("BEFORE_WAIT", "AFTER_WAIT", 0, True, id="the second waited for the first before it let go"),
    pytest.param("BEFORE_WAIT", "AFTER_WAIT", 1, False, id="but may still run itself"),
    pytest.param("BEFORE_WAIT", "NEVER_FENCED", 0, True, id="the second is over, and so is the first"),
    pytest.param("BEFORE_WAIT", "NEVER_FENCED", 1, True, id="the second is over"),
    pytest.param("BEFORE_WAIT", "NEVER", 1, False, id="the second is over, its writes may not be seen"),
]


@pytest.mark.parametrize(("first", "second", "read", "allowed"), CHAINS)
def test_early_read(compiler, first, second, read, allowed):
    if allowed:
        assert chain(first, second, read).tolist() == [1.0] * 32
    else:
        with pytest.raises(KernelFault, match=r"early_reader: the result depends on what is read before grid_wait"):
            chain(first, second, read)


@pytest.mark.parametrize(("element", "allowed"), [(3, False), (4, True)])
def test_only_what_was_written_counts(compiler, element, allowed):
    if allowed:
        assert chain("BEFORE_WAIT", "BEFORE_WAIT", 1, element, written=4).tolist() == [0.0] * 32
    else:
        with pytest.raises(KernelFault, match="before grid_wait"):
            chain("BEFORE_WAIT", "BEFORE_WAIT", 1, element, written=4)


def test_the_host_may_wait_instead(compiler):
    assert chain("BEFORE_WAIT", "BEFORE_WAIT", 1, sync=True).tolist() == [1.0] * 32
