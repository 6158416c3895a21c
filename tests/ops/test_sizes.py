"""Numbers that kernels and host code both spell are the same on both sides."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from executed import NO_COMPILER

from ostinato import sizes
from ostinato.ops.device import kernel_source
from ostinato.ops.sampling import RULES
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


def test_rules_have_the_same_layout_in_kernels(tmp_path: Path) -> None:
    """struct Rules, compiled: every field of RULES is there, at its offset and in its type, and nothing else."""
    compiler = next((found for name in ("g++", "clang++") if (found := shutil.which(name))), None)
    if compiler is None:
        pytest.skip(NO_COMPILER)
    (struct,) = re.findall(r"^struct Rules \{.*?^\};", kernel_source("sample.cuh"), re.M | re.S)
    kinds = {"f": "float", "i": "int", "u": "u64"}
    lines = [f"static_assert(sizeof(Rules) == {RULES.itemsize});"]
    for name, (kind, offset, *_) in (RULES.fields or {}).items():
        lines.append(f"static_assert(offsetof(Rules, {name}) == {offset} && sizeof(Rules::{name}) == {kind.itemsize});")
        lines.append(f"static_assert(std::is_same_v<std::remove_all_extents_t<decltype(Rules::{name})>, "
                     f"{kinds[kind.base.kind]}>);")  # fmt: skip
    head = ["#include <cstddef>", "#include <type_traits>", "typedef unsigned long long u64;"]
    head.append(f"constexpr int STOP_IDS = {sizes.STOP_IDS};")
    (tmp_path / "rules.cpp").write_text("\n".join([*head, struct, *lines]), encoding="utf-8")
    command = [compiler, "-std=c++17", "-fsyntax-only", str(tmp_path / "rules.cpp")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
