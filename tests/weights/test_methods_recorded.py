"""Matrices that compressed-tensors, bitsandbytes, GPTQModel, AutoGPTQ and ModelOpt wrote are read as they read them.

See tests/fixtures/quantised.py. A package computes in the type of its model: its numbers are ours rounded to it.
"""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from ostinato.weights.checkpoint import open_checkpoint

RECORDED = Path(__file__).parents[1] / "fixtures" / "quantised"
TYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype("f2"), "float32": np.dtype("f4")}
NAMES = sorted(folder.name for folder in RECORDED.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_those_of_the_package(name: str) -> None:
    known = np.load(RECORDED / name / "expected.npz")
    with open_checkpoint(RECORDED / name) as ck:
        assert ck.names() == ["x.weight"] and ck.quantised("x.weight") is not None
        found = ck.tensor("x.weight")
    assert found.shape == known["numbers"].shape and found.std() > 0.5
    rounded = found.astype(TYPES[str(known["dtype"])]).astype("f4")
    np.testing.assert_array_equal(rounded, known["numbers"])


def test_every_package_is_there() -> None:
    made = {json.loads((RECORDED / name / "config.json").read_text())["_made_by"].split()[0] for name in NAMES}
    assert made == {"auto-gptq", "gptqmodel", "compressed-tensors", "bitsandbytes", "nvidia-modelopt"}
