"""Safetensors: what is read equals what the safetensors package wrote; every broken file is refused by name."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from checkpoint_files import entry, flipped, in_memory, refused, write_safetensors
from checkpoint_files import safetensors as made

from ostinato.errors import CheckpointError, EngineError, UnsupportedModel
from ostinato.weights import files
from ostinato.weights import safetensors as reader
from ostinato.weights.safetensors import read_directory, read_file

A = entry()
FOUR = b"\0\0\x80?"  # 1.0


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=["F32", "F16", "BF16"])
@pytest.mark.parametrize("shape", [(), (1,), (5, 3), (2, 3, 4, 5)], ids=str)
def test_reads_what_the_package_writes(tmp_path: Path, dtype: type, shape: tuple[int, ...]) -> None:
    numbers = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    other = np.arange(7).astype(np.float16)  # 14 bytes: what follows is not aligned
    safetensors.numpy.save_file(
        {"a": other, "b.weight": np.asarray(numbers)}, tmp_path / "x.safetensors", {"format": "pt"}
    )
    tensor = read_file(tmp_path / "x.safetensors")["b.weight"]
    assert (tensor.shape, tensor.dtype) == (shape, np.dtype(dtype))
    assert tensor.numbers().tobytes() == numbers.tobytes()


def test_data_stays_in_the_file(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"a": np.ones((16, 16), "f4")}, tmp_path / "x.safetensors")
    tensor = read_file(tmp_path / "x.safetensors")["a"]
    assert np.shares_memory(tensor.numbers(), tensor.raw)
    assert not tensor.numbers().flags.writeable


@pytest.mark.parametrize("shift", range(4))
def test_unaligned_data_is_read_aligned(tmp_path: Path, shift: int) -> None:
    header = json.dumps({"a": entry(shape=(3,), span=(0, 12))}).encode() + b" " * shift
    numbers = np.array([1.5, -2, 3e8], "f4")
    (tmp_path / "x.safetensors").write_bytes(made(header, numbers.tobytes()))
    found = read_file(tmp_path / "x.safetensors")["a"].numbers()
    assert found.flags.aligned and found.tolist() == numbers.tolist()


def test_not_numbers_are_what_the_file_says(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", {"a": np.array([np.nan, np.inf, -np.inf, 0], "f2")})
    np.testing.assert_array_equal(read_file(tmp_path / "x.safetensors")["a"].numbers(), [np.nan, np.inf, -np.inf, 0])


@pytest.mark.parametrize(("kind", "size"), [("I64", 8), ("BOOL", 1), ("F8_E4M3", 1), ("F64", 8)])
def test_other_types_are_refused_when_asked_for(tmp_path: Path, kind: str, size: int) -> None:
    (tmp_path / "x.safetensors").write_bytes(made({"a": entry(kind, (1,), (0, size))}, bytes(size)))
    tensor = read_file(tmp_path / "x.safetensors")["a"]
    assert tensor.shape == (1,)
    refused(tensor.numbers, "x.safetensors", "tensor a", kind, error=UnsupportedModel)


BROKEN = [
    pytest.param(b"", "empty", id="empty file"),
    pytest.param(b"\x02\0\0\0\0\0\0", "7", id="no room for the header length"),
    pytest.param(made({}, length=3), "header of 3 bytes", "2 left", id="header past the end"),
    pytest.param(made({}, length=2**63), "9223372036854775808", id="header length 2^63"),
    pytest.param(made({}, length=2**64 - 1), "18446744073709551615", id="header length -1"),
    pytest.param(made(b'{"\xff":1}'), "UTF-8", "0xff", id="header not UTF-8"),
    pytest.param(made(b""), "JSON", id="header empty"),
    pytest.param(made(b"{'a':1}"), "JSON", id="header not JSON"),
    pytest.param(made(b'{"a":'), "JSON", id="header cut"),
    pytest.param(made(b"[]"), "object", "list", id="header an array"),
    pytest.param(made(b"[" * 20000), "nested", id="header nested deeply"),
    pytest.param(made(b'{"a":' + b"9" * 5000 + b"}"), "JSON", id="integer of 5000 digits"),
    pytest.param(made(b'{"a":1,"a":2}'), "'a'", "twice", id="tensor twice"),
    pytest.param(made({"__metadata__": {"n": 1}}), "__metadata__", id="metadata not strings"),
    pytest.param(made({"__metadata__": []}), "__metadata__", id="metadata not an object"),
    pytest.param(made({"a": 1}), "tensor a", id="entry not an object"),
    pytest.param(made({"a": {**A, "layout": "x"}}, FOUR), "tensor a", "layout", id="extra key"),
    pytest.param(made({"a": {"dtype": "F32", "shape": [1]}}, FOUR), "tensor a", id="key missing"),
    pytest.param(made({"a": entry("Q4_1")}, FOUR), "tensor a", "'Q4_1'", id="unknown dtype"),
    pytest.param(made({"a": {**A, "dtype": ["F32"]}}, FOUR), "tensor a", "dtype", id="dtype not a string"),
    pytest.param(made({"a": {**A, "shape": 1}}, FOUR), "tensor a", "shape", id="shape not a list"),
    pytest.param(made({"a": entry(shape=[True])}, FOUR), "tensor a", "[True]", id="boolean dimension"),
    pytest.param(made({"a": entry(shape=[1.0])}, FOUR), "tensor a", "[1.0]", id="fractional dimension"),
    pytest.param(made({"a": entry(shape=[-1])}, FOUR), "tensor a", "[-1]", id="negative dimension"),
    pytest.param(made({"a": entry(shape=[0], span=(0, 0))}), "tensor a", "[0]", id="dimension 0"),
    pytest.param(made({"a": entry(shape=[0, 2**62], span=(0, 0))}), "tensor a", "[0, ", id="huge dimension beside 0"),
    pytest.param(made({"a": entry(shape=[1] * 9)}, FOUR), "tensor a", "at most 8", id="nine dimensions"),
    pytest.param(made({"a": entry(shape=[2**62, 4])}, FOUR), "tensor a", str(2**66), id="size overflows 64 bits"),
    pytest.param(made({"a": entry(shape=[10**4000] * 8)}, FOUR), "tensor a", "2^63", id="dimension of 4000 digits"),
    pytest.param(made({"a": entry(shape=[2])}, FOUR), "tensor a", "8", "found 4", id="span shorter than the shape"),
    pytest.param(made({"a": entry("F4", [3], (0, 2))}, b"ab"), "tensor a", "F4", id="bits that fill no byte"),
    pytest.param(made({"a": entry(span=[0])}, FOUR), "tensor a", "data_offsets", id="one offset"),
    pytest.param(made({"a": entry(span=[-4, 0])}, FOUR), "tensor a", "-4", id="negative offset"),
    pytest.param(made({"a": entry(span=["0", "4"])}, FOUR), "tensor a", "data_offsets", id="offsets not numbers"),
    pytest.param(made({"a": entry(span=[4, 0])}, FOUR), "tensor a", "-4", id="end before begin"),
    pytest.param(made({"a": entry(span=[4, 8])}, 2 * FOUR), "tensor a", "at 0", "found 4", id="first not at 0"),
    pytest.param(made({"a": A, "b": entry(span=[2, 6])}, 2 * FOUR), "tensor b", "at 4", "found 2", id="overlap"),
    pytest.param(made({"a": A, "b": A}, FOUR), "tensor b", "at 4", "found 0", id="same place twice"),
    pytest.param(made({"a": A, "b": entry(span=[8, 12])}, 3 * FOUR), "tensor b", "found 8", id="hole"),
    pytest.param(made({"a": A}, FOUR[:3]), "tensor a", "at 4", "at 3", id="data cut"),
    pytest.param(made({"a": entry(span=[2**63 - 4, 2**63])}, FOUR), "tensor a", "2^63", id="offset past 2^63"),
    pytest.param(made({"a": A}, FOUR + b"\0"), "1 more", id="trailing byte"),
    pytest.param(made({"": A}, FOUR), "name ''", id="empty name"),
    pytest.param(made({"../../etc/passwd": A}, FOUR), "'../../etc/passwd'", id="name is a path"),
    pytest.param(made({"/a": A}, FOUR), "'/a'", id="name is an absolute path"),
    pytest.param(made({"a..b": A}, FOUR), "'a..b'", id="name with two dots"),
    pytest.param(made({"a\nb": A}, FOUR), "'a\\nb'", id="name with a line feed"),
    pytest.param(made({"a\0": A}, FOUR), "'a\\x00'", id="name with a zero byte"),
    pytest.param(made({"é": A}, FOUR), "'é'", id="name not ASCII"),
    pytest.param(made({"a" * 256: A}, FOUR), "255", id="name of 256 characters"),
]


@pytest.mark.parametrize("case", [pytest.param(p.values, id=p.id) for p in BROKEN])
def test_broken_file_is_refused(tmp_path: Path, case: tuple) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(case[0])
    refused(lambda: read_file(path), str(path), *case[1:])


def test_header_over_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with open(path, "wb") as f:
        f.write((1 << 30).to_bytes(8, "little"))
        f.truncate(2 << 30)  # sparse
    refused(lambda: read_file(path), str(path), "1073741824")


def test_every_flipped_bit_and_cut_is_refused_or_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": np.ones((2, 3), "f4"), "b.c": np.ones(4, "f2")})
    sound = path.read_bytes()
    for n in range(1, len(sound)):  # a cut always loses something
        in_memory(monkeypatch, reader, sound[:n])
        with pytest.raises(EngineError):
            read_file(path)
    for n in range(8 * (len(sound) - 32)):
        in_memory(monkeypatch, reader, flipped(sound, n))
        try:
            for tensor in read_file(path).values():
                tensor.numbers()
        except EngineError as e:
            assert str(path) in str(e)


ONE = {"a": np.ones(2, "f4")}
TWO = {"b": np.ones(3, "f4")}


def index(weight_map: object) -> str:
    return json.dumps({"metadata": {"total_size": 20}, "weight_map": weight_map})


def _directory(folder: Path, files: dict) -> Path:
    for name, content in files.items():
        if isinstance(content, str):
            (folder / name).write_text(content)
        else:
            write_safetensors(folder / name, content)
    return folder


INDEX = "model.safetensors.index.json"
S1, S2 = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def test_shards_are_one_set_of_tensors(tmp_path: Path) -> None:
    _directory(tmp_path, {INDEX: index({"a": S1, "b": S2}), S1: ONE, S2: TWO})
    assert {n: t.shape for n, t in read_directory(tmp_path).items()} == {"a": (2,), "b": (3,)}


BROKEN_DIRECTORIES = [
    pytest.param({}, "model.safetensors", "no weights", id="no weights"),
    pytest.param({"pytorch_model.bin": ""}, "pytorch_model.bin", id="only a pickle"),
    pytest.param({INDEX: "{}"}, "weight_map", "None", id="no weight_map"),
    pytest.param({INDEX: index([])}, "weight_map", id="weight_map not an object"),
    pytest.param({INDEX: index({})}, "weight_map", id="weight_map empty"),
    pytest.param({INDEX: "{"}, INDEX, "JSON", id="index not JSON"),
    pytest.param({INDEX: f'{{"weight_map":{{"a":"{S1}","a":"{S2}"}}}}'}, "'a'", "twice", id="index has a tensor twice"),
    pytest.param({INDEX: index({"a": S1, "b": S2}), S1: ONE}, S2, "missing", id="shard missing"),
    pytest.param({INDEX: index({"a": S1, "b": S2}), S1: TWO, S2: ONE}, S1, "tensor b", S2, id="wrong shard"),
    pytest.param({INDEX: index({"a": S1, "b": S1}), S1: ONE}, S1, "tensor b", "missing", id="tensor missing"),
    pytest.param({INDEX: index({"a": S1}), S1: {**ONE, **TWO}}, S1, "tensor b", "nowhere", id="not in the index"),
    pytest.param({INDEX: index({"a": S1, "b": S2}), S1: ONE, S2: {**ONE, **TWO}}, S2, "tensor a", id="in two shards"),
    pytest.param({INDEX: index({"../a": S1}), S1: ONE}, "'../a'", id="name is a path"),
    *(
        pytest.param({INDEX: index({"a": file})}, INDEX, "tensor a", "plain file name", id=f"shard {label}")
        for label, file in {
            "above": "../model.safetensors", "absolute": "/model.safetensors", "in a folder": "x/model.safetensors",
            "with a backslash": "..\\model.safetensors", "hidden": ".model.safetensors", "empty": "", "a number": 1,
            "a pickle": "model.bin", "with a zero byte": "a\0.safetensors", "null": None,
        }.items()
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", [pytest.param(p.values, id=p.id) for p in BROKEN_DIRECTORIES])
def test_broken_directory_is_refused(tmp_path: Path, case: tuple) -> None:
    folder = _directory(tmp_path, case[0])
    refused(lambda: read_directory(folder), str(tmp_path), *case[1:])


def test_a_file_that_cannot_be_mapped_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mmap(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    (tmp_path / "x.safetensors").write_bytes(b"x")
    monkeypatch.setattr(files.mmap, "mmap", mmap)
    with pytest.raises(CheckpointError, match=r"x\.safetensors: cannot be mapped: Too many open files"):
        files.map_file(tmp_path / "x.safetensors")
