"""The examples run on NumPy; two_kernels on the emulator with a stand-in for CuPy, and on a GPU if there is one."""

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
from emulator import EmulatedDevice, build

import ostinato
from ostinato import doctor

ROOT = Path(__file__).resolve().parents[1]
LLAMA = str(ROOT / "tests" / "fixtures" / "llama")
GPUS = doctor.driver().gpus


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


def test_compare_cublas_prints_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert load("compare_cublas").main(LLAMA, *(() if GPUS else ("numpy",))) == 0
    out = capsys.readouterr().out
    assert "same top" in out and "times as fast as" in out


class Stream:
    """A CUDA stream's rules for capture: what is issued while capturing waits for the launch of the graph."""

    ptr = 0

    def __init__(self) -> None:
        self.captured: list[Callable[[], Any]] | None = None

    def issue(self, work: Callable[[], Any]) -> None:
        if self.captured is None:
            work()
        else:
            self.captured.append(work)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def synchronize(self) -> None:
        assert self.captured is None, "a stream that is being captured cannot be waited for"

    def begin_capture(self) -> None:
        self.captured = []

    def end_capture(self) -> SimpleNamespace:
        work, self.captured = self.captured or [], None
        return SimpleNamespace(launch=lambda stream: [w() for w in work])


class StandIn:
    """So much of CuPy as two_kernels uses: its kernels run on the emulator, in the order that a GPU would run them."""

    float32 = np.float32

    def __init__(self, device: Any, file: str) -> None:
        self.device, self.file, self.stream = device, file, Stream()
        runtime = SimpleNamespace(memcpyAsync=self.copy, memcpyDeviceToHost=2)
        self.cuda = SimpleNamespace(
            Stream=lambda non_blocking: self.stream, alloc_pinned_memory=bytearray, runtime=runtime
        )

    def RawModule(self, code: str) -> SimpleNamespace:
        def get_function(name: str) -> Callable[..., None]:
            kernel = self.device.kernel(self.file, name)

            def call(grid, block, args):
                plain = [a.array if isinstance(a, SimpleNamespace) else a for a in args]
                self.stream.issue(lambda: self.device.launch(kernel, grid, block, plain))

            return call

        return SimpleNamespace(get_function=get_function)

    def arange(self, n: int, dtype: Any) -> SimpleNamespace:
        array = self.device.upload(np.arange(n, dtype=dtype))
        return SimpleNamespace(array=array, data=SimpleNamespace(ptr=array.ctypes.data))

    def asnumpy(self, a: SimpleNamespace) -> np.ndarray:
        return self.device.read(a.array)

    def copy(self, target: int, source: int, size: int, kind: int, stream: int) -> None:
        assert (kind, stream) == (2, 0)
        self.stream.issue(lambda: ctypes.memmove(target, source, size))


@pytest.mark.parametrize("launches", [0, 1, 3])
def test_two_kernels_on_the_emulator(tmp_path: Path, launches: int) -> None:
    example = load("two_kernels")
    (tmp_path / "two_kernels.cu").write_text(example.SOURCE)
    if not build.compiler():
        pytest.skip("no C++ compiler: install g++ (Debian: apt install g++) or clang++ to run kernels on the CPU")
    host, device = example.run(StandIn(EmulatedDevice(directory=tmp_path), "two_kernels.cu"), launches)
    right_host, right_device = example.expected(np.arange(example.N, dtype=np.float32), launches)
    np.testing.assert_array_equal(host, right_host)
    np.testing.assert_array_equal(device, right_device)


def test_two_kernels_expects_the_copy_between_them() -> None:
    host, device = load("two_kernels").expected(np.array([0.0, 5.0]), 2)
    assert (host.tolist(), device.tolist()) == ([3, 13], [6, 26])


@pytest.mark.skipif(bool(GPUS), reason="there is a GPU here")
def test_two_kernels_without_a_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    example = load("two_kernels")
    assert example.main() == 2
    monkeypatch.setitem(sys.modules, "cupy", None)  # as if it were not installed
    assert example.main() == 2
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[-1].startswith("two_kernels: CuPy is not installed")


@pytest.mark.gpu
@pytest.mark.skipif(not GPUS, reason="needs an NVIDIA GPU")
def test_two_kernels_on_the_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert load("two_kernels").main() == 0
    assert "as expected" in capsys.readouterr().out
