"""How much of the device's memory the KV cache takes, and what is said if there is too little."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest
from configs import changed
from small import LLAMA, model, runner

from ostinato import LLM, EngineConfig, RequestError
from ostinato.errors import DeviceError
from ostinato.run.memory import nbytes
from ostinato.run.runner import Runner

SMALL = changed(LLAMA, layers=1, max_len=128)
PAGE_BYTES = 2 * 2 * 64 * 16 * 4  # of SMALL: keys and values of 64 tokens, 2 heads of 16, float32


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """10 MB in all, of which 8 are free."""
    monkeypatch.setattr("ostinato.ops.device.HostDevice.total_memory", lambda self: 10_000_000)
    monkeypatch.setattr("ostinato.ops.device.HostDevice.free_memory", lambda self: 8_000_000)
    yield


def taken(on: Runner) -> int:
    return on.memory.weights + on.memory.activations


@pytest.mark.parametrize(("gpu_memory", "total"), [(0.5, 5_000_000), (0.004, None), (1, 10_000_000)])
def test_gpu_memory_is_what_the_model_takes_in_all(gpu_memory: float, total: int | None) -> None:
    """Weights and activations included; never more than is free."""

    def make() -> Runner:
        return runner(SMALL, gpu_memory=gpu_memory, cache_tokens=None, max_batch=256, prefill_rows=64)

    if total is None:
        with pytest.raises(DeviceError, match=r"change gpu_memory, or fewer max_batch or prefill_rows"):
            make()
        return
    on = make()
    room = min(total - taken(on), 8_000_000)
    assert on.memory.pages == min(room // PAGE_BYTES, 1 + 256 * 2)
    assert on.pool.nbytes == on.memory.pages * PAGE_BYTES <= room


def test_gpu_memory_above_one_is_gb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ostinato.ops.device.HostDevice.free_memory", lambda self: 80_000_000_000)
    on = runner(SMALL, gpu_memory=2, cache_tokens=None, max_batch=4)
    assert on.memory.pages == 1 + 4 * 2  # what they can need is less


def test_two_models_share_a_device() -> None:
    """Each within its own part, the second in what the first has left."""
    pages = [runner(SMALL, gpu_memory=0.25, cache_tokens=None, max_batch=200).memory.pages for _ in range(2)]
    assert pages[0] == pages[1] < 1 + 200 * 2


REFUSED = [
    pytest.param({"cache_tokens": 100_000}, r"KV cache: expected .* MB free on CPU, found 8.0 MB; change cache_tokens"),
    pytest.param(
        {"cache_tokens": 6400, "gpu_memory": 0.1}, r"of 8.0 MB free and gpu_memory=0.1, which is 1.0 MB, less"
    ),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=["cache_tokens", "both"])
def test_the_error_names_the_knob(options: dict, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        runner(SMALL, **options)


@pytest.mark.parametrize("value", [0, -1, float("nan"), "0.9", True])
def test_gpu_memory_is_checked(value: object) -> None:
    with pytest.raises(RequestError, match="gpu_memory: expected a number"):
        EngineConfig(gpu_memory=value)  # pyright: ignore[reportArgumentType]


def test_bytes_are_counted_once() -> None:
    a, b = np.zeros(10, np.float32), np.zeros(3, np.int64)
    assert nbytes([(a, b), a, None, "text", 7]) == 64
    _, c, w = model(SMALL)
    assert nbytes(w) > 4 * c.vocab * c.hidden  # the table, which is the head as well
    assert nbytes(w) < 2 * 4 * c.vocab * c.hidden + 100_000


def test_host_memory_is_bounded() -> None:
    on = runner(SMALL, swap_gb=0.0001)
    assert on.swap is not None and on.swap.places == 100_000 // PAGE_BYTES
    assert runner(SMALL, swap_gb=0).swap is None


def test_the_plan_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    from test_engine import FIXTURE

    with LLM(FIXTURE, backend="numpy", cache_tokens=640, max_batch=2):
        pass
    said = capsys.readouterr().err
    assert re.search(r"memory: weights \S+ MB, activations \S+ MB, KV cache \S+ MB in 10 pages of 64: 640 tokens", said)
