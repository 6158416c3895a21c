"""The CPU versions of ptx.cuh give the bits of a GPU; gpu_fragments.py recorded recorded.npz on an H200."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ostinato.errors import DeviceError
from ostinato.ops.gpu import CupyDevice

from . import EmulatedDevice
from .fragments import KINDS, PRODUCTS, cases
from .gpu_fragments import on_gpu

HERE = Path(__file__).parent
with np.load(HERE / "recorded.npz") as file:
    RECORDED = {name: file[name] for name in file.files}
CASES = {case.label: case for case in cases(int(RECORDED.pop("count")))}
DEVICE = str(RECORDED.pop("device"))
KERNELS = [*PRODUCTS.values(), "run_ldmatrix", "run_cp_async", "run_to_tf32", "run_mma_float", "run_exp2"]


@pytest.fixture(scope="module")
def emulated(compiler) -> EmulatedDevice:
    return EmulatedDevice(directory=HERE / "kernels", together={"fragments.cu": [KERNELS]})


def run(device: EmulatedDevice, label: str) -> np.ndarray:
    """Run the recorded part of a case on the CPU; return the bits."""
    case, count = CASES[label], len(RECORDED[label])
    held = [device.upload(a[:count]) for a in case.arrays]
    device.launch(device.kernel("fragments.cu", case.kernel), (count,), (case.block,), held)
    return device.read(held[case.output]).view(np.uint32).reshape(count, -1)


def test_every_case_was_recorded():
    assert set(RECORDED) == set(CASES) and len(CASES) == len(KINDS) * len(PRODUCTS) + 5
    assert "H200" in DEVICE


@pytest.mark.parametrize("label", [label for label in CASES if label != "exp2"])
def test_bits(emulated, label):
    np.testing.assert_array_equal(run(emulated, label), RECORDED[label].view(np.uint32))


def test_exp2_is_within_two_units_in_the_last_place(emulated):
    found, recorded = (x.view(np.int32).astype(np.int64) for x in (run(emulated, "exp2"), RECORDED["exp2"]))
    assert np.abs(found - recorded).max() <= 2


@pytest.mark.gpu
def test_bits_of_this_gpu():
    try:
        arch = CupyDevice().arch
    except DeviceError as e:
        pytest.skip(str(e))
    if arch != 90:
        pytest.skip(f"recorded.npz was made on sm_90, this GPU is sm_{arch}; its tensor cores may add in another order")
    parts = [c._replace(arrays=[a[: len(RECORDED[c.label])] for a in c.arrays]) for c in CASES.values()]
    for label, found in on_gpu(parts):
        np.testing.assert_array_equal(
            found.reshape(-1).view(np.uint32), RECORDED[label].reshape(-1).view(np.uint32), label
        )
