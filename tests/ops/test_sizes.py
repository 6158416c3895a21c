"""Numbers that kernels and host code both spell are the same on both sides."""

from __future__ import annotations

import re

import pytest

from ostinato import sizes
from ostinato.ops.device import kernel_source
from ostinato.ops.shapes import PREFILL_THREADS

MIRRORED = [
    pytest.param("types.cuh", "PAGE", sizes.PAGE, id="page"),
    pytest.param("attend_prefill.cu", "ROWS", sizes.PAGE, id="rows-of-an-attention-tile"),
    pytest.param("elementwise.cu", "MAIL", sizes.MAIL, id="mail"),
    pytest.param("elementwise.cu", "THREADS", sizes.MAX_BATCH, id="rows-of-advance"),
    pytest.param("sample.cuh", "STOP_IDS", sizes.STOP_IDS, id="stop-ids"),
    pytest.param("attend_decode.cuh", "SPLITS", sizes.SPLITS, id="splits"),
    pytest.param("linear_prefill.cu", "THREADS", PREFILL_THREADS, id="threads-of-a-prefill-product"),
]


@pytest.mark.parametrize(("file", "name", "expected"), MIRRORED)
def test_kernels_and_host_have_the_same_number(file: str, name: str, expected: int) -> None:
    found = re.findall(rf"constexpr int (?:\w+ = \w+, )*{name} = (\d+)[,;]", kernel_source(file))
    assert found == [str(expected)], f"kernels/{file}: expected {name} = {expected}, found {found}"
