"""`ostinato bench decode`: numbers against their definitions, proof of the path, whole runs on NumPy and emulated."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from configs import changed, flat
from emulator import EmulatedDevice

import ostinato
from ostinato.cli import main as cli
from ostinato.errors import CaptureError, DeviceError, RequestError
from ostinato.graph.capture import CaptureReport
from ostinato.ops.cublas import CublasOps
from ostinato.ops.cuda import CudaOps
from ostinato.ops.device import Device, HostDevice
from ostinato.ops.numpy import NumpyOps
from ostinato.run import load
from ostinato.tools.bench import decode, operations, report, synthetic
from ostinato.tools.bench.ceiling import STEP, Reader
from ostinato.tools.bench.session import Load, Session

LLAMA = str(Path(__file__).parent / "fixtures" / "llama")
TINY = flat(layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=96, vocab=80, max_len=256, eps=1e-5,
            tied=True, dtype="float32")  # fmt: skip
LAYER = ["norm_qkv", "attend", "linear_add o", "norm_gate_up", "linear_add down"]
KINDS = ["embed_tokens", *LAYER, "norm_head", "sample", "advance"]

# -- random weights ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=lambda t: np.dtype(t).name)
@pytest.mark.parametrize("start", [0, 5 * 0x9E3779B9], ids=["from-0", "beyond-32-bits"])
def test_random_numbers_are_the_same_on_every_device(device: Device, dtype: Any, start: int) -> None:
    shape, dtype = (31, 700), np.dtype(dtype)
    found = device.read(synthetic.random(device, shape, dtype, start))
    expected = synthetic.random(HostDevice(), shape, dtype, start)
    assert found.shape == shape and found.dtype == dtype
    assert np.array_equal(found.view(np.uint8), expected.view(np.uint8))


def test_random_numbers_are_nearly_normal() -> None:
    x = synthetic.random(HostDevice(), (1500, 1000), np.dtype(np.float32), 3)
    assert abs(x.mean()) < 1e-4 and x.std() == pytest.approx(synthetic.DEVIATION, rel=5e-3)
    assert np.abs(x).max() < 4 * synthetic.DEVIATION
    assert abs(np.corrcoef(x[:-1].ravel(), x[1:].ravel())[0, 1]) < 5e-3


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param({}, id="tied"),
        pytest.param({"tied": False}, id="with-head"),
        pytest.param({"qkv_bias": True}, id="bias"),
        pytest.param({"qk_norm": True}, id="head-norm"),
    ],
)
def test_a_random_model_has_every_weight(variant: dict) -> None:
    c, ops = changed(TINY, **variant), NumpyOps()
    w = load.weights(ops, synthetic.checkpoint(c, ops.device, ops.dtype), c)
    assert w.embed.shape == (80, 64) and (w.head is w.embed) == c.tied
    for layer in w.layers:
        assert layer.qkv.shape == (128, 64) and layer.gate_up.shape == (192, 64)
        assert layer.o.shape == (64, 64) and layer.down.shape == (64, 96)
        assert (layer.qkv_bias is not None, layer.q_norm is not None) == (c.sizes.qkv_bias, c.sizes.qk_norm)
        assert (layer.attn_norm == 1).all() and (layer.qkv_bias is None or not layer.qkv_bias.any())
    matrices = [w.embed, *(getattr(layer, name) for layer in w.layers for name in ("qkv", "o", "gate_up", "down"))]
    assert len({m[0, :32].tobytes() for m in matrices}) == len(matrices)
    other = load.weights(ops, synthetic.checkpoint(c, ops.device, ops.dtype, seed=1), c)
    assert not np.array_equal(other.embed, w.embed)


# -- bytes and the ceiling --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "gigabytes"),
    [
        pytest.param("smollm2-135m", 0.269, id="smollm2-135m"),
        pytest.param("llama-3.2-1b", 2.472, id="llama-3.2-1b"),
        pytest.param("llama-3.1-8b", 15.010, id="llama-3.1-8b"),
    ],
)
def test_a_step_reads_the_weights_once(shape: str, gigabytes: float) -> None:
    c = synthetic.shape(shape)
    one, two = (operations.step_bytes(c, 2, Load(batch, 128, 128)) for batch in (1, 2))
    of = c.sizes  # tokens 129 to 256: 192.5 on average
    sequence = 192.5 * 2 * of.kv_heads * of.head_dim * 2 * c.layer_count + 2 * c.hidden
    assert two - one == sequence
    assert (one - sequence) / 1e9 == pytest.approx(gigabytes, rel=5e-4)


def test_a_window_bounds_what_is_read() -> None:
    load, c = Load(4, 128, 128), changed(TINY, window=32)
    full, cut = (operations.bytes_read(config, 4, load)["attend"] for config in (TINY, c))
    assert full == 4 * 192.5 * 2 * 2 * 16 * 4 and cut == 4 * 32 * 2 * 2 * 16 * 4


def test_the_reader_reads_every_byte(device: Device) -> None:
    reader = Reader(device, 2 * STEP + 1)
    assert reader.bytes == 3 * STEP
    reader.read(2)
    words = device.read(reader.source).view(np.uint32)
    sums = device.read(reader.sums)[: 2 * device.multiprocessors * 512]
    assert words.nbytes == reader.bytes and sums.sum(dtype=np.uint32) == words.sum(dtype=np.uint32)


def test_the_ceiling_is_bytes_by_time() -> None:
    class Clock(HostDevice):
        """A device on which one second passes between two events."""

        now = 0.0

        def record_event(self):
            self.now += 1
            return self.now

    assert Reader(Clock(), 1 << 20).ceiling(passes=3) == pytest.approx(3 * 2**20 / 1e9)


# -- sessions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", ["off", "step"])
def test_the_measured_steps_are_the_loops(graph: str) -> None:
    ops, load_ = NumpyOps(), Load(batch=3, prompt_len=7, max_tokens=5, seed=2)
    w = load.weights(ops, synthetic.checkpoint(TINY, ops.device, ops.dtype), TINY)
    session = Session(ops, TINY, w, graph, load_)
    served = [event.token for events in session.run() for event in events]
    session.prefill()
    for _ in range(2):
        session.restart()
        assert [token for _ in range(5) for token in session.runner.decode().tokens().tolist()] == served[3:]
    times = session.step_times()
    assert len(times) == 5 and min(times) > 0


# -- the proof --------------------------------------------------------------------------------------------------------

OURS, LIBRARY = Counter({"decode_qkv<bf16>": 4, "norm": 1}), Counter({"cublasGemmEx": 4, "norm": 1})
NONE: Counter[str] = Counter()


@pytest.mark.parametrize(
    ("backend", "graph", "recorded", "stepped", "graphs", "error"),
    [
        pytest.param("cuda", "step", OURS, NONE, 2, "", id="cuda-step"),
        pytest.param("cuda", "layer", OURS, NONE, 8, "", id="cuda-layer"),
        pytest.param("cuda", "off", NONE, OURS, 0, "", id="cuda-off"),
        pytest.param("cublas", "step", LIBRARY, NONE, 2, "", id="cublas-step"),
        pytest.param("cuda", "step", OURS, NONE, 0, "expected 2 captured graphs", id="not-recorded"),
        pytest.param("cuda", "layer", OURS, NONE, 2, "expected 8 captured graphs", id="a-step-for-a-layer"),
        pytest.param("cuda", "off", NONE, OURS, 2, "expected 0 captured graphs", id="recorded-unasked"),
        pytest.param("cuda", "step", OURS, OURS, 2, "replay it, found launches of decode_qkv", id="not-replayed"),
        pytest.param("cuda", "step", LIBRARY, NONE, 2, r"launches of decode_\*.*found cublasGemmEx", id="library"),
        pytest.param("cuda", "off", NONE, OURS + LIBRARY, 0, "no cublasGemmEx", id="both"),
        pytest.param("cublas", "step", OURS, NONE, 2, "expected launches of cublasGemmEx", id="not-the-library"),
        pytest.param("cuda", "off", NONE, NONE, 0, "found none", id="nothing"),
    ],
)
def test_the_path_is_proved(
    backend: str, graph: str, recorded: Counter, stepped: Counter, graphs: int, error: str
) -> None:
    ops: Any = SimpleNamespace(name=backend, device=SimpleNamespace(multiprocessors=132, is_gpu=True))
    expected = 2 if graph == "step" else 8
    if not error:
        decode.prove(ops, graph, recorded, stepped, CaptureReport(graphs), expected)
        return
    kind = CaptureError if "graphs" in error or "replay" in error else DeviceError
    with pytest.raises(kind, match=error):
        decode.prove(ops, graph, recorded, stepped, CaptureReport(graphs), expected)


# -- whole runs -------------------------------------------------------------------------------------------------------


def settings(**options: Any) -> decode.Settings:
    small = {"batches": (1, 3), "backends": ("numpy",), "prompt_len": 9, "max_tokens": 4, "repeats": 1}
    return decode.Settings("tiny", TINY, **{**small, "read_bytes": 1 << 20, **options})


def test_numpy_rows_agree_with_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    found = decode.decode(settings())
    assert [(r.batch, r.graph, r.graphs) for r in found.rows] == [
        (1, "off", 0), (1, "layer", 4), (1, "step", 1), (3, "off", 0), (3, "layer", 12), (3, "step", 3),
    ]  # fmt: skip
    for r in found.rows:
        assert 0 < r.p10_ms <= r.step_ms <= r.p90_ms and r.ttft_ms > 0
        assert r.tokens_per_s == pytest.approx(r.batch * 1e3 / r.wall_ms)
        assert r.bytes == operations.step_bytes(TINY, 4, Load(r.batch, 9, 4))
        assert r.gb_per_s == pytest.approx(r.bytes / r.step_ms / 1e6)
        assert r.percent == pytest.approx(100 * r.gb_per_s / found.ceilings["numpy"])
    assert [(r.batch, r.kind) for r in found.operations] == [(b, kind) for b in (1, 3) for kind in KINDS]
    for r in found.operations:
        assert r.calls == (TINY.layer_count if r.kind in LAYER else 1)
        assert (r.gb_per_s is None) == (r.percent is None) == (r.us < operations.SEEN)
        assert r.gb_per_s is None or r.gb_per_s == pytest.approx(r.bytes / r.us / 1e3)
    written = json.loads(json.dumps(report.record(found)))
    assert written["machine"] == {"device": "CPU"} and written["weights"] == "random"
    assert [row["step_ms"] for row in written["rows"]] == [r.step_ms for r in found.rows]
    found.operations[0] = replace(found.operations[0], gb_per_s=None, percent=None)  # too fast for a rate
    report.print_tables(found)
    out = capsys.readouterr().out
    assert f"{found.rows[-1].step_ms:.3f}" in out and "linear_add down" in out


def emulated(ops: Any) -> decode.Choose:
    return lambda backend, dtype, stored: (ops, "")


@pytest.mark.usefixtures("compiler")
def test_kernels_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    ops = CudaOps(EmulatedDevice(), "bfloat16")
    asked = settings(batches=(1,), backends=("cuda",), graphs=("step",), max_tokens=2, read_bytes=STEP)
    found = decode.decode(asked, emulated(ops))
    kernels = {r.kind: {name.split("<")[0]: n for name, n in r.kernels.items()} for r in found.operations}
    layer = {"norm_qkv": {"decode_qkv": 2}, "norm_gate_up": {"decode_gate": 2}, "linear_add o": {"decode_add": 2}}
    assert list(kernels) == KINDS and {kind: kernels[kind] for kind in layer} == layer
    written = json.loads(json.dumps(report.record(found)))["operations"]
    assert [row["kernels"] for row in written] == [r.kernels for r in found.operations]
    assert any(name.startswith("decode_qkv<bf16") for name in found.rows[0].kernels)
    report.print_tables(found)
    out = capsys.readouterr().out
    assert "cuda, graph step, batch 1: launched embed_packed, " in out
    assert f"{sum(n for names in kernels.values() for n in names.values())} launches per step" in out


@pytest.mark.usefixtures("compiler")
def test_a_backend_without_its_library_is_no_result() -> None:
    def product(x: Any, weight: Any, out: Any, add: bool, scale: float) -> None:
        out[...] = x.astype(np.float32) @ weight.astype(np.float32).T + (out if add else 0)

    ops = CublasOps(EmulatedDevice(), "float32", product)
    asked = settings(batches=(1,), backends=("cublas",), graphs=("off",), max_tokens=2, read_bytes=STEP)
    with pytest.raises(DeviceError, match="backend cublas, graph off: expected launches of cublasGemmEx"):
        decode.decode(asked, emulated(ops))


# -- the command ------------------------------------------------------------------------------------------------------


def test_command_measures_a_checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    options = f"--backend numpy --batch 2 --graph off,step --prompt-len 5 --max-tokens 3 --no-operations --json {file}"
    assert cli.main(["bench", "decode", LLAMA, *options.split()]) == 0
    out, err = capsys.readouterr()
    assert "ms/step" in out and "batch 2, graph step" in err
    found = json.loads(file.read_text())
    assert found["weights"] == "checkpoint" and found["operations"] == []
    assert {"date", "command", "version", "machine", "ceiling_gb_per_s"} <= set(found)
    assert [(r["batch"], r["graph"], r["graphs"]) for r in found["rows"]] == [(2, "off", 0), (2, "step", 2)]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        pytest.param([], "expected MODEL or --shape, found neither", id="nothing"),
        pytest.param([LLAMA, "--shape", "llama-3.2-1b"], "found both", id="both"),
        pytest.param(["--shape", "llama-9"], "shape: expected smollm2-135m or", id="unknown-shape"),
        pytest.param([LLAMA, "--batch", "1,many"], "--batch", id="not-a-number"),
        pytest.param([LLAMA, "--batch", "17"], "batch: expected an integer in [1, 16], found 17", id="batch"),
        pytest.param([LLAMA, "--backend", "abacus"], "backend: expected one of", id="backend"),
        pytest.param([LLAMA, "--graph", "off,half"], "graph: expected one of", id="graph"),
        pytest.param([LLAMA, "--max-tokens", "1"], "max_tokens: expected", id="max-tokens"),
        pytest.param([LLAMA, "--prompt-len", "0"], "prompt_len: expected", id="prompt-len"),
        pytest.param([LLAMA, "--backend", "numpy"], "prompt_len + max_tokens: expected fewer than the", id="too-long"),
        pytest.param([LLAMA, "--json", "no/such/directory.json"], "json: expected a file in a directory", id="json"),
    ],
)
def test_command_refuses(capsys: pytest.CaptureFixture[str], args: list[str], says: str) -> None:
    assert cli.main(["bench", "decode", *args]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("option", ["plot", "png"])
def test_a_picture_needs_its_extra(monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=rf"{option}: matplotlib is not installed.*pip install .*plot\]"):
        report.check_outputs(None, None, **{option: "found.png"})


def test_a_plot(tmp_path: Path) -> None:
    found = decode.decode(settings(graphs=("step",), operations=False))
    report.draw(found, str(tmp_path / "found.png"))
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_to_measure() -> None:
    with pytest.raises(ostinato.RequestError, match="at least one of each"):
        settings(graphs=())
