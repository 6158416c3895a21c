"""The file of tuned launch shapes: what is written is read again, and what is damaged or foreign is an error."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ostinato.errors import DeviceError
from ostinato.ops import tuned
from ostinato.ops.device import Device, HostDevice
from ostinato.ops.shapes import DecodeShape, Key, Launch, decode_shape

SHAPE = DecodeShape(16, Launch(1, 4, 2, 2), Launch(2, 6, 2, 1), Launch(1, 4, 2, 2, staged=True))
FAST = DecodeShape(8, Launch(2, 3, 4, 2), Launch(2, 8, 1, 1, 4, ring=True), Launch(2, 2, 1, 1, 8, staged=True))
A, B = (960, 576, 2), (576, 1536, 2)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory of the test's own."""
    monkeypatch.setenv("OSTINATO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def gpu() -> Device:
    """A device that has a name and nothing to launch on."""
    device = HostDevice()
    device.name, device.arch = "Some GPU, 80 GB", 90
    return device


def test_file_round_trip(gpu: Device, cache: Path) -> None:
    file = tuned.path(gpu)
    chosen: dict[Key, DecodeShape] = {B: FAST, A: SHAPE}
    assert tuned.load(file, gpu) == {} and tuned.shapes(gpu).source == "built in"
    tuned.save(file, gpu, chosen)
    assert file == cache / "tune" / f"Some-GPU-80-GB-{tuned.kernels_hash()}.json"
    assert [p.name for p in file.parent.iterdir()] == [file.name]
    assert tuned.load(file, gpu) == chosen
    found = tuned.shapes(gpu)
    assert found.decode(*A) == SHAPE and str(file) in found.source
    assert found.decode(576, 576, 2) == decode_shape(576, 576, 2)


def test_file_belongs_to_its_kernels(gpu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned.save(tuned.path(gpu), gpu, {A: FAST})
    monkeypatch.setattr(tuned, "kernel_source", lambda file: "another kernel")
    assert tuned.shapes(gpu).decode(*A) == decode_shape(*A)


def changed(path: str, value: Any) -> Any:
    """What sets the value at "shapes.0.warps" of a file's content; None takes the key away."""

    def change(content: Any) -> None:
        *where, last = (int(p) if p.isdigit() else p for p in path.split("."))
        for part in where:
            content = content[part]
        if value is None:
            del content[last]
        else:
            content[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(changed("device", "Other"), "device: expected 'Some GPU, 80 GB', found 'Other'", id="gpu"),
        pytest.param(changed("kernels", "0"), "kernels: expected", id="kernels"),
        pytest.param(changed("shapes", {}), "json: shapes: expected list", id="no-list"),
        pytest.param(changed("shapes.0", 3), "shapes[0]: expected a JSON object", id="no-object"),
        pytest.param(changed("shapes.1.warps", None), "shapes[1]: expected an object of n, k,", id="missing"),
        pytest.param(changed("shapes.1.more", 1), "found one of form, k, more,", id="unknown"),
        pytest.param(changed("shapes.0.warps", "16"), "shapes[0]: warps: expected int, found '16'", id="type"),
        pytest.param(changed("shapes.0.n", True), "shapes[0]: n: expected int, found True", id="bool"),
        pytest.param(changed("shapes.0.wide.staged", 1), "shapes[0]: wide: staged: expected bool", id="staged"),
        pytest.param(changed("shapes.0.single", [1, 4]), "shapes[0]: single: expected dict", id="no-launch"),
        pytest.param(changed("shapes.0.form", "u3"), "shapes[0]: form: expected one of 2, 4, u4", id="form"),
        pytest.param(
            changed("shapes.0.narrow.ring", None), "shapes[0]: narrow: expected an object of tiles,", id="ring"
        ),
        pytest.param(changed("shapes.0.narrow.once", True), "shapes[0]: narrow.depth: expected 12 at once", id="once"),
        pytest.param(
            changed("shapes.0.single.grid", 2.0), "shapes[0]: single: grid: expected int, found 2.0", id="grid"
        ),
        pytest.param(changed("shapes.0.narrow.split", True), "shapes[0]: narrow: split: expected int", id="split"),
        pytest.param(changed("shapes.0.narrow.split", 3), "shapes[0]: narrow.split: expected one of", id="clusters"),
        pytest.param(changed("shapes.0.wide.depth", 99), "shapes[0]: wide.depth: expected one of", id="cannot-launch"),
    ],
)
def test_damaged_file(gpu: Device, change: Any, says: str) -> None:
    file = tuned.path(gpu)
    tuned.save(file, gpu, {A: SHAPE, B: FAST})
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(DeviceError) as e:
        tuned.shapes(gpu)
    assert str(file) in str(e.value) and says in str(e.value)


@pytest.mark.parametrize(
    ("arch", "says"),
    [
        pytest.param(89, "shapes[0]: narrow: split: expected 1 below sm_90, found 4", id="no-clusters"),
        pytest.param(90, "", id="clusters"),
        pytest.param(120, "", id="clusters-and-less-memory"),
    ],
)
def test_clusters_need_a_gpu_that_has_them(gpu: Device, arch: int, says: str) -> None:
    file, gpu.arch = tuned.path(gpu), arch
    shape = replace(FAST, narrow=replace(FAST.narrow, depth=4), wide=SHAPE.wide)
    tuned.save(file, gpu, {B: shape, A: SHAPE})
    if not says:
        assert tuned.load(file, gpu) == {B: shape, A: SHAPE}
        return
    with pytest.raises(DeviceError) as e:
        tuned.load(file, gpu)
    assert str(file) in str(e.value) and says in str(e.value)


@pytest.mark.parametrize("data", [b"", b'{"device": ', b"\xff\xfe", b"[]"], ids=["empty", "cut", "no-text", "list"])
def test_file_that_is_no_object(gpu: Device, data: bytes) -> None:
    file = tuned.path(gpu)
    file.parent.mkdir(parents=True)
    file.write_bytes(data)
    with pytest.raises(DeviceError, match=r"Some-GPU-80-GB-\w+\.json: "):
        tuned.shapes(gpu)


def test_file_that_cannot_be_written(gpu: Device, cache: Path) -> None:
    cache.write_text("a file where the directory should be")
    with pytest.raises(DeviceError, match="cannot be written"):
        tuned.save(tuned.path(gpu), gpu, {A: SHAPE})
