"""The examples run on NumPy. Those that use CuPy run on the emulator with a stand-in for CuPy, and on a GPU."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from configs import flat
from emulator import EmulatedDevice, build
from products import cublas

import ostinato
from ostinato.ops.cublas import CublasOps
from ostinato.ops.cuda import CudaOps
from ostinato.tools import doctor

ROOT = Path(__file__).resolve().parents[1]
LLAMA = str(ROOT / "tests" / "fixtures" / "llama")
GPUS = doctor.driver().gpus
sys.path.insert(0, str(ROOT / "examples"))  # where Python looks when it runs one of them


def load(name: str) -> ModuleType:
    """examples/<name>.py as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_demo_streams_what_generate_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert load("demo").main(LLAMA, "Hi", "12") == 0
    out = capsys.readouterr().out
    with ostinato.LLM(LLAMA, max_batch=1, quiet=True) as llm:
        expected = llm.chat([{"role": "user", "content": "Hi"}], ostinato.SamplingParams(max_tokens=12))
        assert f"> Hi\n\n{expected.text}\n\n" in out
        assert f"backend {llm.backend}, graph step" in out and f"{expected.completion_tokens} tokens: " in out


@pytest.mark.slow
def test_compare_cublas_prints_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert load("compare_cublas").main(LLAMA, *(() if GPUS else ("numpy",))) == 0
    out = capsys.readouterr().out
    assert "same top" in out and "times as fast as" in out


class Stream:
    """A CUDA stream's rules for capture: what is issued while capturing waits for the launch of the graph; another
    stream is captured as well from where it waits for an event of the first, which must wait for it before the end."""

    ptr = 0
    current: list[Stream]  # `with stream:` nests

    def __init__(self) -> None:
        self.captured: list[Callable[[], Any]] | None = None
        self.out: set[Stream] = set()  # taken into this capture and not joined since

    def issue(self, work: Callable[[], Any]) -> None:
        if self.captured is None:
            work()
        else:
            self.captured.append(work)

    def __enter__(self) -> Stream:
        self.current.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.current.pop()

    def synchronize(self) -> None:
        assert self.captured is None, "a stream that is being captured cannot be waited for"

    def record(self, event: SimpleNamespace) -> None:
        event.stream = self

    def wait_event(self, event: SimpleNamespace) -> None:
        if self.captured is None and event.stream.captured is not None:
            self.captured = event.stream.captured
            event.stream.out.add(self)
        self.out.discard(event.stream)

    def begin_capture(self) -> None:
        self.captured = []

    def end_capture(self) -> SimpleNamespace:
        assert not self.out, "cudaErrorStreamCaptureUnjoined"
        work, self.captured = self.captured or [], None
        return SimpleNamespace(launch=lambda stream: [w() for w in work], kernels=len(work))


class StandIn:
    """So much of CuPy as the examples use: their kernels run on the emulator, in the order that a GPU may run them."""

    float32 = np.float32

    def __init__(self, directory: Path, source: str) -> None:
        if not build.compiler():
            pytest.skip("no C++ compiler: install g++ (Debian: apt install g++) or clang++ to run kernels on the CPU")
        (directory / "example.cu").write_text(source)
        self.device, self.streams = EmulatedDevice(directory=directory), [Stream()]
        Stream.current = [self.streams[0]]
        runtime = SimpleNamespace(memcpyAsync=self.copy, memcpyDeviceToHost=2)
        self.cuda = SimpleNamespace(
            Stream=self.stream,
            Event=lambda disable_timing: SimpleNamespace(),
            alloc_pinned_memory=bytearray,
            runtime=runtime,
        )

    def stream(self, non_blocking: bool) -> Stream:
        assert non_blocking
        self.streams.append(Stream())
        return self.streams[-1]

    def RawModule(self, code: str) -> SimpleNamespace:
        def get_function(name: str) -> Callable[..., None]:
            kernel = self.device.kernel("example.cu", name)

            def call(grid, block, args):
                plain = [a.array if isinstance(a, SimpleNamespace) else a for a in args]
                Stream.current[-1].issue(lambda: self.device.launch(kernel, grid, block, plain))

            return call

        return SimpleNamespace(get_function=get_function)

    def asarray(self, host: np.ndarray) -> SimpleNamespace:
        array = self.device.upload(host)
        return SimpleNamespace(array=array, data=SimpleNamespace(ptr=array.ctypes.data))

    def arange(self, n: int, dtype: Any) -> SimpleNamespace:
        return self.asarray(np.arange(n, dtype=dtype))

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> SimpleNamespace:
        return self.asarray(np.zeros(shape, dtype))

    def asnumpy(self, a: SimpleNamespace) -> np.ndarray:
        return self.device.read(a.array)

    def copy(self, target: int, source: int, size: int, kind: int, stream: int) -> None:
        assert (kind, stream) == (2, 0)
        Stream.current[-1].issue(lambda: ctypes.memmove(target, source, size))


@pytest.mark.parametrize("launches", [0, 1, 3])
def test_two_kernels_on_the_emulator(tmp_path: Path, launches: int) -> None:
    example = load("two_kernels")
    host, device = example.run(StandIn(tmp_path, example.SOURCE), launches)
    right_host, right_device = example.expected(np.arange(example.N, dtype=np.float32), launches)
    np.testing.assert_array_equal(host, right_host)
    np.testing.assert_array_equal(device, right_device)


def test_two_kernels_expects_the_copy_between_them() -> None:
    host, device = load("two_kernels").expected(np.array([0.0, 5.0]), 2)
    assert (host.tolist(), device.tolist()) == ([3, 13], [6, 26])


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize(("inputs", "hidden", "layers", "steps"), [(24, 32, 2, 6), (40, 8, 1, 3), (8, 16, 3, 1)])
def test_rnn_on_the_emulator(tmp_path: Path, inputs: int, hidden: int, layers: int, steps: int, captured: bool) -> None:
    """Every step by the same graph, or one kernel after the other."""
    example = load("rnn")
    weights = example.network(inputs, hidden, layers)
    x = np.random.default_rng(2).standard_normal((steps, inputs)).astype(np.float32)
    y, _ = example.run(StandIn(tmp_path, example.SOURCE), weights, x, captured)
    assert y.shape == (steps, hidden)
    np.testing.assert_allclose(y, example.expected(weights, x), atol=1e-6)


def test_rnn_expects_an_lstm() -> None:
    """One unit by hand: i = f = o = sigmoid(1), g = tanh(1), twice."""
    weight, bias = np.zeros((4, 2), np.float32), np.ones(4, np.float32)
    s = 1 / (1 + np.exp(-1))
    c = [s * np.tanh(1), s * s * np.tanh(1) + s * np.tanh(1)]
    y = load("rnn").expected([(weight, bias)], np.zeros((2, 1), np.float32))
    np.testing.assert_allclose(y[:, 0], s * np.tanh(c))


@pytest.mark.parametrize("forked", [False, True])
def test_streams_on_the_emulator(tmp_path: Path, forked: bool) -> None:
    example = load("streams")
    a, cupy = np.linspace(1, 4, 200, dtype=np.float32), StandIn(tmp_path, example.SOURCE)
    out, _ = example.run(cupy, a, forked, 2, 1)
    np.testing.assert_allclose(out, a.astype(np.float64) ** (5 / 6), rtol=1e-6)
    used = sum(stream.captured is not None for stream in cupy.streams)
    assert used == forked  # the other stream is left in the capture, the first one has ended it


class CapturableDevice(EmulatedDevice):
    """The emulated GPU with a stream that can be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.stream = Stream()
        Stream.current = [self.stream]

    def launch(self, *args: Any, **options: Any) -> None:
        self.stream.issue(lambda: EmulatedDevice.launch(self, *args, **options))


def on_stream(device: CapturableDevice) -> CublasOps:
    """The backend cublas with NumPy's products, which are captured as well."""
    gemm = cublas(device, "float32")._gemm
    return CublasOps(device, "float32", lambda *args: device.stream.issue(lambda: gemm(*args)))


ONE_LAYER = flat(
    layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=96, vocab=80, max_len=256, eps=1e-5, tied=True
)


def test_one_layer_on_the_emulator(compiler: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The same bits by all three ways, and two backends that agree."""
    device = CapturableDevice()
    backends = [CudaOps(device, "float32"), on_stream(device)]
    assert load("one_layer").compare(backends, ONE_LAYER, context=70, steps=2) < 1e-5
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["backend", "cuda", "cublas"]


def test_one_layer_notices_other_bits(compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that changes something from run to run, which a graph must not."""
    device, example = CapturableDevice(), load("one_layer")
    ops = CudaOps(device, "float32")
    parts, result = example.prepared(ops, ONE_LAYER, 5)
    ids = iter(range(100))

    def drifting(*_: Any) -> Any:
        return [*parts, lambda: None], lambda: result() + next(ids)

    monkeypatch.setattr(example, "prepared", drifting)
    with pytest.raises(SystemExit, match="other bits"):
        example.measure(ops, ONE_LAYER, 5, 1)


def test_one_layer_captures_what_the_parts_launch(compiler: str) -> None:
    """An embedding, and five kernels a layer; nothing runs while they are captured."""
    device, example = CapturableDevice(), load("one_layer")
    parts, _ = example.prepared(CudaOps(device, "float32"), ONE_LAYER, 5)
    before = sum(device.launches.values())
    graphs = [example.captured(device.stream, [part]) for part in parts]
    assert ([graph.kernels for graph in graphs], sum(device.launches.values())) == ([1, 5, 5], before)


def test_the_stand_in_refuses_a_fork_without_a_join() -> None:
    stream, other, event = Stream(), Stream(), SimpleNamespace()
    stream.begin_capture()
    stream.record(event)
    other.wait_event(event)
    with pytest.raises(AssertionError, match="Unjoined"):
        stream.end_capture()


ON_GPU = ("two_kernels", "one_layer", "rnn", "streams")


@pytest.mark.skipif(bool(GPUS), reason="there is a GPU here")
@pytest.mark.parametrize("name", ON_GPU)
def test_example_without_a_gpu(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    example = load(name)
    assert example.on_gpu(example.example) == 2
    monkeypatch.setitem(sys.modules, "cupy", None)  # as if it were not installed
    assert example.on_gpu(example.example) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[-1].startswith(f"{name}: CuPy is not installed")


@pytest.mark.gpu
@pytest.mark.skipif(not GPUS, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(
    ("name", "says"),
    [("two_kernels", "as expected"), ("one_layer", "as expected"), ("rnn", "as NumPy"), ("streams", "as NumPy")],
)
def test_example_on_the_gpu(name: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    example = load(name)
    assert example.on_gpu(example.example) == 0
    assert says in capsys.readouterr().out
