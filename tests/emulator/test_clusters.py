"""Kernels that use distributed shared memory give the same bits in every order of threads and blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from . import EmulatedDevice, KernelFault

SIZES = (1, 2, 4, 8)
COLUMNS, TURNS = 64, 5
TOGETHER = {"clusters.cu": [[f"sum_of_cluster<{blocks}>" for blocks in SIZES]]}


def emulated() -> EmulatedDevice:
    return EmulatedDevice(3, Path(__file__).parent / "kernels", TOGETHER)


def add(compiled_for: int, cluster: int, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """(result, expected result) of a sum over numbers whose sum depends on the order of adding."""
    device = emulated()
    x = np.random.default_rng(compiled_for).normal(size=(groups, TURNS, compiled_for, COLUMNS)).astype(np.float32)
    out = device.empty((groups, TURNS, COLUMNS), np.dtype(np.float32))
    kernel = device.kernel("clusters.cu", f"sum_of_cluster<{compiled_for}>")
    args, grid = [device.upload(x), out, np.int32(TURNS)], (compiled_for * groups,)
    device.launch(kernel, grid, (COLUMNS,), args, dependent=True, cluster=cluster)
    return device.read(out), np.add.accumulate(x, axis=2)[:, :, -1]


@pytest.mark.parametrize("groups", [1, 3, 33])
@pytest.mark.parametrize("blocks", SIZES)
def test_sum_of_cluster(compiler, blocks, groups):
    found, expected = add(blocks, blocks, groups)
    np.testing.assert_array_equal(found, expected)


def test_smaller_cluster_than_the_kernel_is_made_for(compiler):
    with pytest.raises(KernelFault, match=r"in_cluster \(.*clusters.cu:\d+\): rank [23] is outside a cluster of 2"):
        add(4, 2, 2)


@pytest.mark.parametrize("clusters", [1, 2, 5])
def test_barriers_of_clusters_and_of_the_grid(compiler, clusters):
    device, x = emulated(), np.arange(clusters * 4 * 32, dtype=np.float32).reshape(clusters, 4, 32)
    between, out = (device.empty(x.shape, x.dtype) for _ in range(2))
    kernel, args = device.kernel("clusters_and_grid.cu", "hand_on"), [device.upload(x), between, out]
    device.launch(kernel, (4 * clusters,), (32,), args, cluster=4)
    np.testing.assert_array_equal(device.read(out), np.roll(x, (-1, 2), axis=(0, 1)))
