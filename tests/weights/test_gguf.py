"""GGUF: what is read equals what the gguf package wrote; every broken file is refused by name."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf as package
import ml_dtypes
import numpy as np
import pytest
from checkpoint_files import array, flipped, in_memory, info, refused, text, u32, u64, write_gguf
from checkpoint_files import gguf as made

from ostinato.errors import EngineError, UnsupportedModel
from ostinato.weights import gguf as reader
from ostinato.weights.blocks import BLOCKS
from ostinato.weights.gguf import read_file
from ostinato.weights.kinds import GGUF_KINDS, PLAIN

METADATA: dict[str, Any] = {
    "a.string": "Ġ héllo",
    "a.bool": True,
    "a.float": 0.5,
    "a.strings": ["<s>", "", "½"],
    "a.ints": [1, -2, 3],
    "a.floats": [0.5, -1.0],
    "a.bools": [True, False],
}


def test_reads_what_the_package_writes(tmp_path: Path) -> None:
    path, rng = tmp_path / "x.gguf", np.random.default_rng(0)
    writer = package.GGUFWriter(path, "llama")
    writer.add_string("a.string", METADATA["a.string"])
    writer.add_bool("a.bool", True)
    writer.add_float32("a.float", 0.5)
    for key in ("a.strings", "a.ints", "a.floats", "a.bools"):
        writer.add_array(key, METADATA[key])
    numbers = {
        "a.u8": 255, "a.i8": -128, "a.u16": 65535, "a.i16": -32768, "a.u32": 2**32 - 1, "a.i32": -(2**31),
        "a.u64": 2**64 - 1, "a.i64": -(2**63), "a.f64": 1e300,
    }  # fmt: skip
    types = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float64"]
    for (key, number), kind in zip(numbers.items(), types, strict=True):
        getattr(writer, f"add_{kind}")(key, number)
    kinds = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]
    expected = {}
    for kind in kinds:
        number = package.GGMLQuantizationType[kind]
        raw = package.quantize(rng.standard_normal((3, 64)).astype("f4"), number)
        writer.add_tensor(f"t.{kind}", raw, raw_dtype=number)
        expected[kind] = package.dequantize(raw, number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    found = read_file(path)
    assert found.metadata == {"general.architecture": "llama", **METADATA, **numbers}
    assert {type(v) for v in found.metadata.values()} == {str, bool, float, int, list}
    assert list(found.tensors) == [f"t.{k}" for k in kinds]
    for kind in kinds:
        tensor = found.tensors[f"t.{kind}"]
        assert (tensor.kind, tensor.shape) == (kind, (3, 64))
        np.testing.assert_array_equal(tensor.numbers().astype("f4"), expected[kind])
    assert found.tensors["t.BF16"].dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [1, 32, 4096])
def test_versions_and_alignments(tmp_path: Path, version: int, alignment: int) -> None:
    step = -(-4 // alignment) * alignment
    data = np.array([1.5], "f4").tobytes() + bytes(step - 4) + np.array([2.5], "f4").tobytes()
    infos = [info("a", (1,)), info("b", (1,), offset=step)]
    keys = [("general.alignment", alignment)]
    (tmp_path / "x.gguf").write_bytes(made(keys, infos, data, version=version, alignment=alignment))
    assert [t.numbers().tolist() for t in read_file(tmp_path / "x.gguf").tensors.values()] == [[1.5], [2.5]]


OTHERS = {number: kind for number, (kind, _, _) in GGUF_KINDS.items() if kind not in {*PLAIN, *BLOCKS}}


@pytest.mark.parametrize("number", sorted(OTHERS), ids=OTHERS.get)
def test_other_types_are_refused_when_asked_for(tmp_path: Path, number: int) -> None:
    _, numbers, size = GGUF_KINDS[number]
    (tmp_path / "x.gguf").write_bytes(made([], [info("a", (numbers,), kind=number)], bytes(-(-size // 32) * 32)))
    tensor = read_file(tmp_path / "x.gguf").tensors["a"]
    assert (tensor.shape, tensor.stored()) == ((numbers,), None)
    refused(tensor.numbers, "x.gguf", "tensor a", f"type {OTHERS[number]} ", "Q4_K", error=UnsupportedModel)


U8, I32, STRING, ARRAY = 0, 5, 8, 9
KEY = [("a", 1)]
DATA = bytes(32)


def one(**change: Any) -> bytes:
    """A file whose one tensor is changed."""
    return made([], [info(**{"name": "t", **change})], DATA)


def two(*infos: bytes, data: bytes = bytes(64), **more: Any) -> bytes:
    return made(more.pop("keys", []), list(infos), data, **more)


BROKEN = [
    pytest.param(b"", "empty", id="empty file"),
    pytest.param(b"GGU", "magic", id="magic cut"),
    pytest.param(made(magic=b"GGML"), "magic", "b'GGML'", id="bad magic"),
    pytest.param(made()[:20], "key count", id="header cut"),
    pytest.param(made(counts=(-1, 0)), "tensor count 18446744073709551615", id="-1 tensors"),
    pytest.param(made(counts=(0, -1)), "key count 18446744073709551615", id="-1 keys"),
    pytest.param(made(counts=(2**63, 0)), "tensor count 9223372036854775808", id="2^63 tensors"),
    pytest.param(made(counts=(0, 2**63)), "key count 9223372036854775808", id="2^63 keys"),
    pytest.param(made(KEY, counts=(0, 2)), "key count 2", id="a key too many counted"),
    pytest.param(made([("", 1)]), "key number 0", "''", id="empty key"),
    pytest.param(made([("a b", 1)]), "key number 0", "'a b'", id="key with a space"),
    pytest.param(made([("a\n", 1)]), "key number 0", "'a\\n'", id="key with a line feed"),
    pytest.param(made([(text(b"\xff"), 1)]), "key number 0", "UTF-8", id="key not UTF-8"),
    pytest.param(made([("a" * 1025, 1)]), "key number 0", "1024", id="key of 1025 characters"),
    pytest.param(made([(text("a", 2**63), 1)]), "key number 0", "9223372036854775808", id="key of 2^63 bytes"),
    pytest.param(made([(text("a", -1), 1)]), "key number 0", "18446744073709551615", id="key of -1 bytes"),
    pytest.param(made(KEY + KEY), "key a", "twice", id="duplicate key"),
    pytest.param(made([("a", u32(13) + u64(0))]), "key a", "13", id="bad value type"),
    pytest.param(made([("a", u32(2**32 - 1) + u64(0))]), "key a", "4294967295", id="value type -1"),
    pytest.param(made([("a", u32(4) + b"\0")]), "key a", "4 bytes", id="number cut"),
    pytest.param(made([("a", u32(7) + b"\x02")]), "key a", "found 2", id="boolean 2"),
    pytest.param(made([("a", array(7, 2, b"\0\xff"))]), "key a", "found 255", id="boolean 255 in an array"),
    pytest.param(made([("a", u32(STRING) + text("x", 2**63))]), "key a", "9223372036854775808", id="string of 2^63"),
    pytest.param(made([("a", u32(STRING) + text("x", 2))]), "key a", "2 bytes", id="string cut"),
    pytest.param(made([("a", u32(STRING) + text(b"\xc3("))]), "key a", "UTF-8", id="string not UTF-8"),
    pytest.param(made([("a", array(U8, 2**63, b""))]), "key a", "9223372036854775808", id="array of 2^63 numbers"),
    pytest.param(made([("a", array(STRING, 2**63, b""))]), "key a", "9223372036854775808", id="array of 2^63 strings"),
    pytest.param(made([("a", array(I32, 2**62, b"1234"))]), "key a", str(2**62), id="array whose bytes overflow"),
    pytest.param(made([("a", array(I32, 2, b"1234"))]), "key a", "8 bytes", id="array cut"),
    pytest.param(made([("a", array(STRING, 3, text("x") * 2))]), "key a", "24 bytes", id="array of strings cut"),
    pytest.param(made([("a", array(STRING, 1, text("x", 2**63)))]), "key a", str(2**63), id="array of a 2^63 string"),
    pytest.param(made([("a", array(ARRAY, 1, array(U8, 1, b"1")[4:]))]), "key a", "arrays", id="array of arrays"),
    pytest.param(made([("a", array(ARRAY, 2**63, b""))]), "key a", "arrays", id="array of 2^63 arrays"),
    pytest.param(made([("a", array(77, 1, bytes(8)))]), "key a", "77", id="bad element type"),
    pytest.param(made([("general.alignment", 0)]), "general.alignment", "found 0", id="alignment 0"),
    pytest.param(made([("general.alignment", 24)]), "general.alignment", "found 24", id="alignment no power of two"),
    pytest.param(made([("general.alignment", "32")]), "general.alignment", "'32'", id="alignment a string"),
    pytest.param(made([("general.alignment", True)]), "general.alignment", "True", id="alignment a boolean"),
    pytest.param(
        made([("general.alignment", u32(11) + u64(-32))]), "general.alignment", "-32", id="alignment negative"
    ),
    pytest.param(
        two(info("t"), keys=[("general.alignment", 2**31)]), "tensor t", "2147483664", id="alignment past the end"
    ),
    pytest.param(one(sizes=(0,)), "tensor t", "[0]", id="dimension 0"),
    pytest.param(one(sizes=(4, 0)), "tensor t", "[0, 4]", id="outer dimension 0"),
    pytest.param(one(sizes=(-1,)), "tensor t", "18446744073709551615", id="dimension -1"),
    pytest.param(
        one(sizes=(2**62, 4)), "tensor t", "[4, 4611686018427387904]", "the file at 128", id="size overflows 64 bits"
    ),
    pytest.param(
        one(sizes=(2**32, 2**32, 2**32, 4)), "tensor t", "ends at", "the file at 128", id="size overflows 64 bits to 0"
    ),
    pytest.param(one(sizes=(1,) * 5), "tensor t", "at most 4", "found 5", id="five dimensions"),
    pytest.param(one(dims=2**32 - 1), "tensor t", "4294967295", id="-1 dimensions"),
    pytest.param(one(kind=4), "tensor t", "type 4", id="withdrawn type"),
    pytest.param(one(kind=999), "tensor t", "type 999", id="bad type"),
    pytest.param(one(kind=2**32 - 1), "tensor t", "type 4294967295", id="type -1"),
    pytest.param(one(kind=8), "tensor t", "Q8_0", "multiple of 32", id="row is no whole block"),
    pytest.param(one(sizes=(16, 2), kind=8), "tensor t", "multiple of 32", id="rows split a block"),
    pytest.param(one(sizes=(), kind=8), "tensor t", "multiple of 32", id="scalar of a block type"),
    *(
        pytest.param(one(sizes=(n - n // 2, 2), kind=i), "tensor t", kind, f"multiple of {n}", id=f"{kind} split")
        for i, (kind, n, _) in GGUF_KINDS.items()
        if kind in BLOCKS
    ),
    *(
        pytest.param(one(sizes=(2**62 // n * n, 4), kind=i), "tensor t", kind, "ends at", id=f"{kind} overflows")
        for i, (kind, n, _) in GGUF_KINDS.items()
        if kind in BLOCKS
    ),
    *(
        pytest.param(one(sizes=(n, 9), kind=i), "tensor t", kind, "the file at", id=f"{kind} cut")
        for i, (kind, n, _) in GGUF_KINDS.items()
        if kind in BLOCKS
    ),
    pytest.param(one(sizes=(9,)), "tensor t", "[9]", id="data cut"),
    pytest.param(made([], [info("t")]), "tensor t", id="no data"),
    pytest.param(made([], [info("t")], DATA, counts=(2, None)), "tensor", id="a tensor too many counted"),
    pytest.param(one(offset=4), "tensor t", "offset 0, found 4", id="offset not aligned"),
    pytest.param(one(offset=32), "tensor t", "offset 0, found 32", id="first tensor not at 0"),
    pytest.param(one(offset=-32), "tensor t", str(2**64 - 32), id="offset -32"),
    pytest.param(two(info("a"), info("b")), "tensor b", "offset 32, found 0", id="tensors overlap"),
    pytest.param(two(info("a"), info("b", offset=64)), "tensor b", "offset 32, found 64", id="hole between tensors"),
    pytest.param(two(info("a"), info("b", offset=16)), "tensor b", "offset 32, found 16", id="second not aligned"),
    pytest.param(two(info("a"), info("a", offset=32)), "tensor a", "twice", id="duplicate tensor"),
    pytest.param(two(info("a"), data=bytes(33)), "1 more", id="trailing byte"),
    pytest.param(made() + b"x" * 33, "more", id="trailing bytes without tensors"),
    pytest.param(one(name=""), "name ''", id="empty tensor name"),
    pytest.param(one(name="../x"), "'../x'", id="tensor name is a path"),
    pytest.param(one(name="a\n"), "'a\\n'", id="tensor name with a line feed"),
    pytest.param(one(name=b"\xff"), "tensor number 0", "UTF-8", id="tensor name not UTF-8"),
    pytest.param(made([], [text("t", 2**63)], DATA), "tensor number 0", str(2**63), id="tensor name of 2^63 bytes"),
]


@pytest.mark.parametrize("case", [pytest.param(p.values, id=p.id) for p in BROKEN])
def test_broken_file_is_refused(tmp_path: Path, case: tuple) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(case[0])
    refused(lambda: read_file(path), str(path), *case[1:])


UNSUPPORTED = [
    pytest.param(made(version=0), "version", "found 0", id="version 0"),
    pytest.param(made(version=1), "version", "found 1", id="version 1"),
    pytest.param(made(version=4), "version", "found 4", id="version of the future"),
    pytest.param(b"GGUF" + struct.pack(">I", 3) + bytes(16), "version", "big-endian", id="big-endian"),
]


@pytest.mark.parametrize("case", [pytest.param(p.values, id=p.id) for p in UNSUPPORTED])
def test_what_is_not_supported_is_refused(tmp_path: Path, case: tuple) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(case[0])
    refused(lambda: read_file(path), str(path), *case[1:], error=UnsupportedModel)


def test_elements_of_arrays_are_bounded_in_all(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(made([(f"k{i}", array(U8, 600_000, bytes(600_000))) for i in range(8)]))
    with pytest.raises(EngineError, match="k6: expected at most 4194304 elements"):
        read_file(path)


def test_every_flipped_bit_and_cut_is_refused_or_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.gguf"
    keys = {"general.architecture": "llama", "a": 7, "b": ["x", "yz"], "c": [1, 2], "d": True}
    write_gguf(path, keys, {"t": np.ones((2, 4), "f4"), "u": np.ones(3, "f2")})
    sound = path.read_bytes()
    for n in range(1, len(sound) - 26):  # the last 26 bytes are padding that writers may leave out
        in_memory(monkeypatch, reader, sound[:n])
        with pytest.raises(EngineError):
            read_file(path)
    for n in range(8 * (len(sound) - 64)):
        in_memory(monkeypatch, reader, flipped(sound, n))
        try:
            for tensor in read_file(path).tensors.values():
                tensor.numbers()
        except EngineError as e:
            assert str(path) in str(e)
