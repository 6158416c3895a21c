"""Whole models of quantised tensors: each backend has the numbers of the model in float32, and says what it took."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from checkpoint_files import llama_keys, random_blocks, refused, write_gguf
from loading import bits, loaded, logits
from products import cublas

from ostinato.errors import DeviceError
from ostinato.ops import dequantise
from ostinato.ops.cuda import CudaOps
from ostinato.ops.device import Device, HostDevice
from ostinato.ops.formats import form_of
from ostinato.ops.numpy import NumpyOps
from ostinato.run.footprint import Footprint
from ostinato.run.memory import nbytes
from ostinato.weights import names
from ostinato.weights.blocks import BLOCKS, Blocks
from ostinato.weights.checkpoint import Checkpoint, open_checkpoint

HIDDEN, FFN, HEADS, KV, HEAD, VOCAB, LAYERS = 256, 288, 4, 2, 64, 40, 2


def shapes(ffn: int = FFN) -> dict[str, tuple[int, int]]:
    """Of the matrices of a layer; 288 is no multiple of 256."""
    return {
        "attn_q": (HEADS * HEAD, HIDDEN), "attn_k": (KV * HEAD, HIDDEN), "attn_v": (KV * HEAD, HIDDEN),
        "attn_output": (HIDDEN, HEADS * HEAD), "ffn_gate": (ffn, HIDDEN), "ffn_up": (ffn, HIDDEN),
        "ffn_down": (HIDDEN, ffn),
    }  # fmt: skip


DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
Q4_K_M = {"attn_v": "Q6_K", "ffn_down": "Q5_0", "token_embd": "Q6_K"}
MIXES = [  # the type of every matrix, and of some
    *(pytest.param(kind, {"ffn_down": "Q8_0"}, id=kind) for kind in sorted(BLOCKS)),
    pytest.param("Q4_K", Q4_K_M, id="Q4_K_M"),
    pytest.param("Q5_K", {**Q4_K_M, "ffn_down": "Q5_1", "output": "Q6_K"}, id="Q5_K_M, untied"),
    pytest.param("Q8_0", {"token_embd": None, "attn_k": None}, id="Q8_0, some in float32"),
]


def write(
    folder: Path,
    kind: str,
    others: Mapping[str, str | None],
    layers: int = LAYERS,
    ffn: int = FFN,
    vocab: int = VOCAB,
    size: float = 0.2,
    **keys: Any,
) -> tuple[Path, Path]:
    """A llama of random blocks, and the same one in float32."""
    matrices = {"token_embd": (vocab, HIDDEN)}
    matrices |= {f"blk.{i}.{n}": s for i in range(layers) for n, s in shapes(ffn).items()}
    matrices |= {"output": (vocab, HIDDEN)} if "output" in others else {}
    rng = np.random.default_rng(1)
    arrays: dict[str, np.ndarray | Blocks] = {}
    for i, (name, (n, k)) in enumerate(matrices.items()):
        of = others.get(name.split(".")[-1], kind)
        random = rng.standard_normal((n, k)).astype("f4") * np.float32(0.05)
        arrays[f"{name}.weight"] = random_blocks(of, n, k, i, size if name.startswith("blk") else 0.2) if of else random
    norms = ["output_norm", *(f"blk.{i}.{n}_norm" for i in range(layers) for n in ("attn", "ffn"))]
    arrays |= {f"{n}.weight": 1 + rng.standard_normal(HIDDEN).astype("f4") / 8 for n in norms}
    sizes = {"embedding_length": HIDDEN, "feed_forward_length": ffn, "block_count": layers, "context_length": 128,
             "attention__head_count": HEADS, "attention__head_count_kv": KV}  # fmt: skip
    every = llama_keys(**{f"llama__{k}": v for k, v in sizes.items()}, **keys)
    write_gguf(folder / "quantised.gguf", every, arrays)
    plain = {n: a.numbers() if isinstance(a, Blocks) else a for n, a in arrays.items()}
    write_gguf(folder / "plain.gguf", every, plain)
    return folder / "quantised.gguf", folder / "plain.gguf"


@pytest.mark.parametrize(("kind", "others"), MIXES)
def test_the_logits_are_those_of_the_model_in_float32(tmp_path: Path, kind: str, others: dict[str, Any]) -> None:
    quantised, plain = write(tmp_path, kind, others)
    expected = logits(plain, NumpyOps())
    assert np.isfinite(expected).all() and expected.std() > 0.01
    np.testing.assert_array_equal(logits(quantised, NumpyOps()), expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("backend", [CudaOps, cublas], ids=["cuda", "cublas"])
def test_a_gpu_has_the_numbers_rounded_to_its_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: Device, backend: Any, dtype: str
) -> None:
    """The same bits as of the model in float32, and pieces of a few rows."""
    monkeypatch.setattr(dequantise, "PIECE", 5 * HIDDEN)
    quantised, numbers = write(tmp_path, "Q4_K", Q4_K_M)
    ops = backend(device, DTYPES[dtype])
    found, expected = (bits(ops, loaded(path, ops)[1]) for path in (quantised, numbers))
    assert found.keys() == expected.keys()
    for name, array in found.items():
        assert array.dtype.name == dtype and array.tobytes() == expected[name].tobytes(), name


FORMS_OF_TYPES = {
    "Q4_0": "u4 g32", "Q4_1": "u4 g32 min", "Q5_0": "u5 g32", "Q5_1": "u5 g32 min", "Q8_0": "s8 g32",
    "Q2_K": "u4 g16 nested min", "Q3_K": "u4 g16 nested", "Q4_K": "u4 g32 nested min", "Q5_K": "u5 g32 nested min",
    "Q6_K": "u6 g16 nested", "IQ4_NL": "s8 g32", "IQ4_XS": "s8 g32 nested", "MXFP4": None, "NVFP4": None,
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(BLOCKS))
def test_types_that_cuda_keeps(kind: str) -> None:
    """The table of docs/loading.md."""
    planes = random_blocks(kind, 2, 512).planes(0, 0)
    assert planes is not None
    form = form_of(planes, 512)
    assert (form and form.key) == FORMS_OF_TYPES[kind]


NATIVE = [  # the type of every matrix and of some: those of a form, and in one matrix of several
    pytest.param("Q4_0", {"token_embd": "Q6_K"}, id="Q4_0"),
    pytest.param("Q4_1", {"token_embd": "Q8_0"}, id="Q4_1"),
    pytest.param("Q4_K", {**Q4_K_M, "ffn_down": "Q6_K"}, id="Q4_K_M"),
    pytest.param("Q5_K", {"attn_v": "Q6_K", "output": "Q6_K"}, id="Q5_K_M, untied"),
]


@pytest.mark.parametrize(("kind", "others"), NATIVE)
def test_cuda_multiplies_what_is_stored(tmp_path: Path, device: Device, kind: str, others: dict[str, Any]) -> None:
    """Four layers, a prompt and decode steps: nearer to the model in float32 than with weights rounded to bfloat16."""
    quantised, numbers = write(tmp_path, kind, others, layers=4, ffn=512, size=0.03)
    lines: list[str] = []
    ops = CudaOps(device, "bfloat16")
    _, w = loaded(quantised, ops, tell=lines.append)
    assert lines == [] and all(m.stored_bytes for m in (w.embed, w.layers[0].qkv, w.layers[0].down))
    expected = logits(numbers, NumpyOps())
    found, rounded = (np.abs(logits(path, ops) - expected) / expected.std() for path in (quantised, numbers))
    assert found.max() < 0.03
    assert np.square(found).mean() < np.square(rounded).mean()


def test_room_to_unpack_is_counted_before_loading(tmp_path: Path, device: Device) -> None:
    """That of the largest matrix of a layer, gate and up; the head is larger, and is never unpacked."""
    path = write(tmp_path, "Q4_K", {}, ffn=512, vocab=1100)[0]
    ops = CudaOps(device, "bfloat16")
    c, w = loaded(path, ops)
    footprint = Footprint(ops)
    with open_checkpoint(path) as ck:
        for entry in names.check(ck, c):
            footprint.add(ck, entry, HEAD)
    assert footprint.room == ops.workspace.nbytes == 2 * 512 * HIDDEN * 2 < w.head.n * HIDDEN * 2
    assert nbytes((w, ops.workspace)) >= footprint.bytes + footprint.room


def test_a_tied_head_is_the_embedding_and_not_a_second_copy(tmp_path: Path) -> None:
    _, w = loaded(write(tmp_path, "Q4_K", Q4_K_M)[0], NumpyOps())
    assert w.head is w.embed


def test_one_line_reports_dequantised_tensors(tmp_path: Path) -> None:
    quantised, plain = write(tmp_path, "Q4_K", Q4_K_M)
    lines: list[str] = []
    loaded(quantised, NumpyOps(), tell=lines.append)
    loaded(plain, NumpyOps(), tell=lines.append)
    assert lines == ["Q6_K, Q4_K, Q5_0 dequantised to float32: 15 tensors, 0.5 MB in the file, 3.4 MB in memory"]


@pytest.mark.parametrize("which", [0, 1], ids=["quantised", "plain"])
def test_a_model_that_does_not_fit_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    path = write(tmp_path, "Q4_K", Q4_K_M)[which]
    exact = 4 * (VOCAB * HIDDEN + LAYERS * sum(n * k for n, k in shapes().values()) + (1 + 2 * LAYERS) * HIDDEN)
    monkeypatch.setattr(Checkpoint, "tensor", lambda *_: pytest.fail("a tensor was read"))
    monkeypatch.setattr(Blocks, "numbers", lambda *_: pytest.fail("a tensor was read"))
    monkeypatch.setattr(HostDevice, "free_memory", lambda _: exact - 1)
    about = r" \(Q6_K, Q4_K, Q5_0 dequantised to float32: 15 tensors, .*\)" if which == 0 else ""
    with pytest.raises(DeviceError, match=rf"weights: expected 3\.4 MB free on CPU, found 3\.4 MB{about}$"):
        loaded(path, NumpyOps())
    monkeypatch.undo()
    monkeypatch.setattr(HostDevice, "free_memory", lambda _: exact)
    loaded(path, NumpyOps())


def test_a_scale_that_is_no_number_names_the_tensor(tmp_path: Path) -> None:
    path = write(tmp_path, "Q4_K", Q4_K_M)[0]
    raw = bytearray(path.read_bytes())
    with open_checkpoint(path) as ck:
        at = raw.index(ck.spans("model.layers.1.self_attn.q_proj.weight")[0].tobytes())
    raw[at + 144 * 7 : at + 144 * 7 + 2] = np.float16(np.nan).tobytes()
    path.write_bytes(raw)
    refused(lambda: loaded(path, NumpyOps()), str(path), "tensor blk.1.attn_q.weight", "d of row", "found nan")
