"""A run of the whole suite fails if a kernel was never executed."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
from executed import never_launched, whole_suite

SOURCE = """
// __global__ void in_a_comment(int n)
template <class T>
__global__ void __launch_bounds__(32 * sizeof(T), 2) one(const T* x) {}
extern "C" __global__ void two() {}
"""


@pytest.mark.parametrize(
    ("launched", "missing"),
    [
        ({}, ["a.cu one", "a.cu two"]),
        ({("a.cu", "one"): 3}, ["a.cu two"]),
        ({("b.cu", "one"): 3, ("a.cu", "two"): 1}, ["a.cu one"]),
        ({("a.cu", "one"): 1, ("a.cu", "two"): 1}, []),
    ],
)
def test_never_launched(tmp_path, monkeypatch, launched, missing):
    (tmp_path / "a.cu").write_text(SOURCE)
    monkeypatch.setattr("executed.launched", Counter(launched))
    assert never_launched(tmp_path) == missing


@pytest.mark.parametrize(
    ("source", "options", "whole"),
    [
        ("TESTPATHS", {}, True),
        ("ARGS", {}, False),
        ("TESTPATHS", {"keyword": "norm"}, False),
        ("TESTPATHS", {"markexpr": "gpu"}, False),
        ("TESTPATHS", {"deselect": ["tests/ops"]}, False),
    ],
)
def test_whole_suite(source, options, whole):
    config = SimpleNamespace(args_source=pytest.Config.ArgsSource[source], getoption=options.get)
    assert whole_suite(config) is whole  # pyright: ignore[reportArgumentType]
