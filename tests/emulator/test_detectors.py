"""Every detector of the emulator catches its planted mistake, and passes the same kernel without the mistake."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from . import EmulatedDevice, KernelFault

KERNELS = Path(__file__).parent / "kernels"
PLANTED = {  # file by kernel
    kernel: file
    for file in ("planted.cu", "planted_clusters.cu", "planted_memory.cu")
    for kernel in re.findall(r"__launch_bounds__\(64\)\s+(\w+)", (KERNELS / file).read_text())
}
TOGETHER = {
    file: [[f"{kernel}<{wrong}>" for kernel in PLANTED if PLANTED[kernel] == file for wrong in ("true", "false")]]
    for file in PLANTED.values()
}


def emulated(schedules: int = 1) -> EmulatedDevice:
    return EmulatedDevice(schedules, KERNELS, TOGETHER)


def case(kernel: str, message: str, schedules: int = 1, **launch):
    return pytest.param(kernel, message, schedules, launch, id=kernel)


def pair(kernel: str, message: str, schedules: int = 1, **launch):
    """A cluster of two blocks."""
    return case(kernel, message, schedules, grid=2, cluster=2, **launch)


PAIRS = [
    pair("neighbour_not_started", r"thread \(0, 0, 0\): in_cluster .* before the first cluster_sync: block 1 may not"),
    pair("neighbour_has_ended", r"block \(0, 0, 0\): in_cluster \(.*cu:\d+\) is not followed by a cluster_sync"),
    pair("neighbour_still_writes", "depends on the order of threads", 3),
    pair("neighbour_still_reads", "depends on the order of threads", 3),
    pair("behind_the_neighbour", r"thread \(63, 0, 0\): writes 0 bytes behind the shared memory"),
    pair("neighbour_missing", r"block \(1, 0, 0\): waits at cluster_sync .* 1 of 2 blocks do not come"),
    pair("threads_have_ended", r"32 threads wait at cluster_sync .* and the other 32 have ended"),
    pair("two_kinds_of_barrier", r"thread 0 waits at cluster_sync .* and thread 32 at __syncthreads"),
    pair("outside_the_cluster", r"block \(1, 0, 0\).*: in_cluster .*: rank 2 is outside a cluster of 2"),
    pair("not_of_the_cluster", r"in_cluster .*: address .* is not in the block's shared memory"),
    pair("cluster_writes_early", r"block \(1, .*: writes argument 1 \(out\).* before grid_wait", after_first=True),
    pair("cluster_reads_early", r"depends on what is read before grid_wait: argument 1", 2, after_first=True),
]
CASES = [
    case(
        "read_behind", r"thread \(63, 0, 0\): reads 0 bytes behind the end of argument 0 \(x\).*planted_memory.cu:\d+"
    ),
    case("read_in_front", r"thread \(0, 0, 0\): reads 8192 bytes in front of argument 0 \(x\)"),
    case("write_behind", r"thread \(63, 0, 0\): writes 0 bytes behind the end of argument 1 \(out\)"),
    case("write_in_front", r"writes 1 bytes in front of argument 1 \(out\)"),
    case("write_behind_odd", r"writes 1 bytes behind argument 1 \(odd\), int16 \[5\]", out=np.zeros(5, np.int16)),
    case("null_pointer", r"thread \(0, 0, 0\): reads through a null pointer"),
    case("misaligned", r"planted_memory.cu:\d+: misaligned access"),
    case("fixed_array", r"thread \(4, 0, 0\): .*planted_memory.cu:\d+: index 4 is outside a fixed-size array"),
    case("static_shared", r"shared memory written 0 bytes behind a static __shared__ variable of 256 bytes"),
    case("dynamic_shared", r"thread \(63, 0, 0\): writes 0 bytes behind the shared memory"),
    case("dynamic_shared_front", r"shared memory written 1 bytes in front of the launch's 256 dynamic bytes"),
    case("division", "integer division by zero", x=np.ones(1, np.int32)),
    case("unwritten_shared", "differs at element 5", 3),
    case("missing_barrier", "depends on the order of threads", 3),
    case("reused_too_soon", "depends on the order of threads", 3),
    case("warp_runs_ahead", "depends on the order of threads", 3),
    case("missing_warp_barrier", "depends on the order of threads", 3),
    case("atomic_order", "depends on the order of threads", 3),
    case("block_order", "depends on the order of threads", 3, grid=3),
    case("ticket_too_early", "depends on the order of threads", 3, grid=3, out=np.zeros(257, np.float32)),
    case("copy_not_awaited", "depends on the order of threads", 3),
    case("copy_not_committed", "depends on the order of threads", 3),
    case("two_barriers", r"divergent barrier: thread 0 waits .*planted.cu:\d+\) and thread 48 at"),
    case("named_too_early", "depends on the order of threads", 3),
    case("named_and_nobody_comes", r"thread \(0, 0, 0\): deadlock: waits for ever at barrier_wait"),
    case("named_once_too_often", r"ended while barrier 1 waits for 32 of its 64 threads"),
    case("named_for_two_sizes", r"barrier_wait .*: barrier 1 is for 32 threads here and for 64 where others came"),
    case("named_for_half_a_warp", r"expected barrier 1 to 15 and a multiple of 32 threads .* barrier 1 and 16 threads"),
    case("barrier_and_shuffle", r"thread 0 waits at __syncthreads .* and thread 16 at __shfl_sync"),
    case("mask_without_caller", r"thread \(16, 0, 0\): __shfl_xor_sync .*: mask 0xffff lacks the calling lane 16"),
    case("mask_of_absent_lanes", r"warp collectives differ: .*__shfl_xor_sync .*__syncwarp"),
    case("shuffle_from_outside", r"__shfl_down_sync .*: lane 15 reads lane 16, which does not take part"),
    case("half_a_warp_mma", r"mma_f16_m16n8k16 .* with lanes 0xffff of a warp"),
    case("matrix_not_shared", r"ldmatrix_x4_trans: address .* is not 16 bytes of the block's shared memory"),
    case("matrix_misaligned", r"ldmatrix_x4_trans: address .* is not a multiple of 16"),
    case("reads_early", r"depends on what is read before grid_wait: argument 1 \(out\)", 2, after_first=True),
    case("writes_early", r"thread \(0, 0, 0\): writes argument 1 \(out\).* before grid_wait", after_first=True),
    case("never_waits", r"launched as dependent, and no thread of the block calls grid_wait", after_first=True),
    case("grid_barrier", r"grid sync .* 1 of 5 blocks do not come", grid=5, out=np.zeros(10, np.float32)),
    *PAIRS,
]


def run(kernel: str, schedules: int, grid=1, cluster=1, after_first=False, x=None, out=None) -> np.ndarray:
    """Launch one of the planted kernels and return what it wrote."""
    device = emulated(schedules)
    held = device.upload(np.arange(64 * cluster, dtype=np.float32) if x is None else x)
    target = device.upload(np.zeros(64 * cluster, np.float32) if out is None else out)
    if after_first:  # a preceding kernel writes this kernel's input and reads its output
        device.launch(device.kernel("planted.cu", "first"), (grid,), (64,), [target, held])
    function = device.kernel(PLANTED[kernel.split("<")[0]], kernel)
    device.launch(function, (grid,), (64,), [held, target], 256, dependent=after_first, cluster=cluster)
    return device.read(target)


@pytest.mark.parametrize(("kernel", "message", "schedules", "launch"), CASES)
def test_planted_mistake_is_caught(compiler, kernel, message, schedules, launch):
    with pytest.raises(KernelFault, match=message) as caught:
        run(f"{kernel}<true>", schedules, **launch)
    assert str(caught.value).startswith(f"{PLANTED[kernel]} {kernel}<true>: ")


@pytest.mark.parametrize(("kernel", "message", "schedules", "launch"), CASES)
def test_kernel_without_the_mistake_runs(compiler, kernel, message, schedules, launch):
    assert np.isfinite(run(f"{kernel}<false>", 3, **launch)).all()


def test_every_planted_kernel_is_a_case():
    assert {c.id for c in CASES} == set(PLANTED)


def test_grid_barrier_adds_what_all_blocks_wrote(compiler):
    assert run("grid_barrier<false>", 3, grid=5, out=np.zeros(10, np.float32))[:5].tolist() == [10.0] * 5


def test_the_block_that_comes_last_adds_what_all_blocks_wrote(compiler):
    found = run("ticket_too_early<false>", 3, grid=3, out=np.zeros(257, np.float32))
    np.testing.assert_array_equal(found[:64], 3 * np.arange(64))


@pytest.mark.parametrize(("kernel", "message", "schedules", "launch"), PAIRS)
def test_neighbours_of_a_cluster_exchange_what_they_have(compiler, kernel, message, schedules, launch):
    times, numbers = 3 if kernel == "neighbour_still_reads" else 1, np.arange(128, dtype=np.float32)
    first, second = (0 * numbers, numbers) if "after_first" in launch else (numbers, 0 * numbers)
    found = run(f"{kernel}<false>", 3, **launch, x=first, out=second)
    np.testing.assert_array_equal(found, times * np.roll(numbers, 64))


DEVICE = "device"  # stands for a device array of 64 float32
HOST = np.zeros(64, np.float32)


@pytest.mark.parametrize(
    ("args", "grid", "block", "shared", "message"),
    [
        pytest.param([DEVICE] * 3, 1, 64, 0, r"expected 2 arguments \('x', 'out'\), found 3", id="count"),
        pytest.param([HOST, DEVICE], 1, 64, 0, r"0 \(x\): expected a device array, found one of the host", id="host"),
        pytest.param([None, np.float32(1)], 1, 64, 0, r"1 \(out\): expected .* or None, found float32", id="scalar"),
        pytest.param([DEVICE] * 2, 1, 65, 0, "at most 64 threads", id="launch bound"),
        pytest.param([DEVICE] * 2, 0, 64, 0, r"grid \(0,\) is out of range", id="empty grid"),
        pytest.param([DEVICE] * 2, 1, 64, 232449, "232449 bytes of shared memory, at most 232448", id="shared memory"),
    ],
)
def test_wrong_launch(compiler, args, grid, block, shared, message):
    device = emulated()
    arrays = [device.upload(HOST) if a is DEVICE else a for a in args]
    with pytest.raises(KernelFault, match=message):
        device.launch(device.kernel("planted_memory.cu", "read_behind<false>"), (grid,), (block,), arrays, shared)


@pytest.mark.parametrize(("grid", "cluster"), [(3, 2), (16, 16), (1, 0)])
def test_wrong_cluster(compiler, grid, cluster):
    with pytest.raises(KernelFault, match=rf"grid \({grid},\) in clusters of {cluster}: expected 1 to 8, a divisor"):
        run("read_behind<false>", 1, grid=grid, cluster=cluster)


@pytest.mark.parametrize("dtype", [np.float16, np.int32])
def test_array_of_another_type(compiler, dtype):
    device = emulated()
    arrays = [device.empty((64,), np.dtype(dtype)), device.empty((64,), np.dtype(np.float32))]
    with pytest.raises(KernelFault, match=rf"0 \(x\): expected float32, found {np.dtype(dtype).name}"):
        device.launch(device.kernel("planted_memory.cu", "read_behind<false>"), (1,), (64,), arrays)


def test_memory_of_a_dead_array(compiler):
    device = emulated()
    array, out = (device.empty((n,), np.dtype(np.float32)) for n in (1 << 20, 64))
    view = array[:64]
    del array
    device.launch(
        device.kernel("planted_memory.cu", "read_behind<false>"), (1,), (64,), [view, out]
    )  # a view keeps it alive
    assert np.isnan(out).all()  # unwritten memory
