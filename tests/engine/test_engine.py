"""Requests that join and leave from any thread while others run: each gets its result alone, and nothing leaks."""

from __future__ import annotations

import gc
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from configs import changed
from small import LLAMA, complete, prompts, request, runner, sequence

from ostinato import LLM, DeviceError, RequestError, SamplingParams
from ostinato.run.engine import Engine
from ostinato.run.runner import Ticket
from ostinato.run.sequence import Event, Request

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures/llama"
SMALL = changed(LLAMA, layers=1, hidden=24, heads=3, kv_heads=1, head_dim=8, ffn=24)
HOT = SamplingParams(temperature=1.5, seed=11, max_tokens=20, ignore_eos=True)
LONG = SamplingParams(temperature=1.5, seed=11, max_tokens=120, ignore_eos=True)


@pytest.fixture
def engine() -> Iterator[Engine]:
    """An engine with four slots; after the test all pages must be free and no request may be left."""
    made = Engine(runner(SMALL))
    yield made
    table = made.batch.runner.table
    assert table.free == table.pages - 1 and made.batch.idle and made.step() == []


# -- threads -----------------------------------------------------------------------------------------------------------


def test_twenty_threads_get_what_they_get_alone(llm: LLM) -> None:
    params = [SamplingParams(temperature=1.5, seed=i, max_tokens=3 + i % 7, ignore_eos=True) for i in range(20)]
    alone = [llm.generate("ab", p)[0].token_ids for p in params]
    with ThreadPoolExecutor(20) as pool:
        together = list(pool.map(lambda p: llm.generate("ab", p)[0].token_ids, params))
    assert together == alone


def test_streams_in_threads_and_calls_between_their_chunks(llm: LLM) -> None:
    whole = llm.generate("ab", HOT)[0]
    stream = llm.stream("ab", HOT)
    text = next(stream).text
    assert llm.generate("ab", HOT)[0].outputs == whole.outputs
    assert llm.logits([1, 2]).shape == (2, llm.config.vocab)
    other = list(llm.stream("ab", HOT))
    with ThreadPoolExecutor(1) as pool:
        text += "".join(chunk.text for chunk in pool.submit(list, stream).result())
    assert text == whole.text == "".join(chunk.text for chunk in other)


def test_a_forgotten_stream_does_not_block_others() -> None:
    """The stream holds the only slot; the next request runs it to its end, and then itself."""
    with LLM(FIXTURE, backend="numpy", max_batch=1, quiet=True) as llm:
        alone = llm.generate("ab", HOT)[0].token_ids
        forgotten = llm.stream("c", HOT)
        next(forgotten)
        assert llm.generate("ab", HOT)[0].token_ids == alone
        assert llm.logits([1]).shape == (1, llm.config.vocab)
        assert len(list(forgotten)) == 19


@pytest.mark.slow
def test_fuzz_of_arrivals_aborts_and_stops(engine: Engine) -> None:
    """300 requests at random times, a fifth aborted at random times: outputs are prefixes of those alone."""
    rng = np.random.default_rng(5)
    texts, requests = prompts(300, seed=2, longest=40), []
    for i, prompt in enumerate(texts):
        kind = {"temperature": float(rng.choice([0.0, 0.9, 1.8])), "top_k": int(rng.choice([0, 5]))}
        stops = tuple(rng.integers(0, LLAMA.vocab, 6).tolist())
        requests.append(request(prompt, int(rng.integers(1, 12)), seed=i, stop=stops, **kind))
    handles, aborted = [], set()
    while len(handles) < len(requests) or not all(handle.ended for handle in handles):
        for _ in range(int(rng.integers(0, 4))):
            if len(handles) < len(requests):
                handles.append(engine.add(requests[len(handles)]))
        if rng.random() < 0.2 and handles:
            victim = int(rng.integers(max(0, len(handles) - 8), len(handles)))
            engine.abort(handles[victim])
            aborted.add(victim)
        for _ in range(int(rng.integers(1, 5))):
            engine.step()
    on = runner(SMALL)
    for i, (handle, wanted) in enumerate(zip(handles, requests, strict=True)):
        (seq,) = handle.sequences
        alone = sequence(wanted.ids, wanted.max_tokens, wanted.seed, wanted.stop_ids, **_sampling(wanted.params))
        tokens = complete(on, [alone])[0]
        assert seq.tokens == tokens[: len(seq.tokens)]
        assert seq.finish_reason == "abort" or (seq.tokens, seq.finish_reason) == (tokens, alone.finish_reason)
        assert seq.finish_reason != "abort" or i in aborted
    reasons = {handle.sequences[0].finish_reason for handle in handles}
    assert reasons == {"abort", "stop", "length"}


def _sampling(params: SamplingParams) -> dict[str, Any]:
    return {"temperature": params.temperature, "top_k": params.top_k}


# -- leaving -----------------------------------------------------------------------------------------------------------


def free(llm: LLM) -> bool:
    """Whether all pages are free."""
    return llm.runner.table.free == llm.runner.table.pages - 1


@pytest.mark.parametrize("how", ["closed", "dropped", "aborted", "with"])
def test_a_closed_stream_frees_its_pages_immediately(llm: LLM, how: str) -> None:
    stream = llm.stream("ab", HOT)
    next(stream)
    assert not free(llm)
    if how == "closed":
        stream.close()
        stream.close()
        assert list(stream) == []
    elif how == "aborted":
        llm.abort(stream)
        (last,) = stream
        assert last.output is not None and last.output.finish_reason == "abort" and last.output.completion_tokens >= 1
    elif how == "with":
        with stream:
            pass
    del stream
    gc.collect()
    assert free(llm)


def test_another_thread_closes_a_stream_that_is_waited_for(llm: LLM) -> None:
    stream, chunks = llm.stream("ab", LONG), []
    reader = threading.Thread(target=lambda: chunks.extend(stream))
    reader.start()
    while len(chunks) < 3:
        time.sleep(0.001)
    stream.close()
    reader.join(5)
    assert not reader.is_alive() and len(chunks) < 119 and free(llm)


def test_abort_ends_what_other_threads_wait_for(llm: LLM) -> None:
    whole = llm.generate("ab", LONG)[0]
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(llm.generate, "ab", LONG) for _ in range(3)]
        while llm.runner.table.free > llm.runner.table.pages - 4:
            time.sleep(0.001)
        llm.abort()
        outputs = [call.result(5)[0] for call in calls]
    for out in outputs:
        assert out.finish_reason == "abort" and out.token_ids == whole.token_ids[: len(out.token_ids)]
    assert free(llm)


@pytest.mark.parametrize("leave", [Engine.abort_all, Engine.close], ids=["abort", "close"])
def test_a_signal_handler_may_end_everything(leave: Callable[[Engine], None]) -> None:
    """The handler interrupts this thread anywhere, even while it holds a lock."""
    engine = Engine(runner(SMALL))
    handle = engine.add(request([1], 100))
    engine.step()

    def handler() -> None:
        with engine._turn.lock:
            leave(engine)

    thread = threading.Thread(target=handler, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive() and not handle.ended
    engine.step()
    assert handle.ended


def test_close_ends_what_runs_with_an_error() -> None:
    llm = LLM(FIXTURE, backend="numpy", quiet=True)
    stream = llm.stream("ab", HOT)
    next(stream)
    llm.close()
    llm.close()
    for use in (lambda: list(stream), lambda: llm.generate("a", HOT), lambda: llm.stream("a", HOT)):
        with pytest.raises(RequestError, match="found it closed"):
            use()


def test_close_while_an_abort_is_pending(engine: Engine) -> None:
    """Both come while another thread has the turn."""
    handle = engine.add(request([1], 100))
    engine.step()
    assert engine._turn.take()
    engine.abort(handle)
    engine.close()
    engine._pass_on()
    assert handle.ended and not engine._aborted


def test_a_kept_stream_does_not_keep_the_model() -> None:
    """Closing frees a GPU's memory, even if a notebook still holds the streams."""
    llm = LLM(FIXTURE, backend="numpy", quiet=True)
    done, begun = llm.stream("ab", HOT), llm.stream("ab", LONG)
    assert len(list(done)) == 20 and next(begun).token_ids
    model = weakref.ref(llm.runner)
    llm.close()
    gc.collect()
    assert model() is None
    with pytest.raises(RequestError, match="found it closed"):
        list(begun)


def test_a_handle_has_ended_when_its_last_event_is_there() -> None:
    """Another thread that polls the handle sees the last event no later than its end."""
    engine = Engine(runner(SMALL))
    handle, seen = engine.add(request([1], 2), listen=True), []

    class Inbox(deque):
        def append(self, event: Event) -> None:
            seen.append(handle.ended)
            super().append(event)

    handle._inbox = Inbox()
    while not handle.ended:
        engine.step()
    assert seen == [False, False] and [event.finish_reason for event in handle.take()] == [None, "length"]


def test_a_request_added_while_the_engine_closes_ends(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request was checked before the close, and no other request may come that would end it."""
    check = Engine.check

    def close_meanwhile(self: Engine, request: Request) -> None:
        check(self, request)
        self.close()

    monkeypatch.setattr(Engine, "check", close_meanwhile)
    assert engine.add(request([1])).ended


def test_logits_get_free_pages_before_waiting_requests() -> None:
    """Otherwise a steady flow of requests would never leave enough free pages."""
    engine = Engine(runner(SMALL, cache_tokens=256))
    handles = [engine.add(request([1], 3 + i)) for i in range(12)]
    engine.step()
    assert engine.logits([1] * 200).shape == (200, SMALL.vocab)
    assert [handle.ended for handle in handles] == [True] * 4 + [False] * 8
    while not all(handle.ended for handle in handles):
        engine.step()


def test_a_device_error_reaches_waiting_and_later_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(3)
    tokens, calls = Ticket.tokens, []

    def fail(self: Ticket) -> np.ndarray:
        calls.append(1)
        if len(calls) < 60:
            return tokens(self)
        raise DeviceError("planted")

    def call(_: int) -> str:
        together.wait()
        try:
            return str(llm.generate("ab", LONG))
        except DeviceError as e:
            return str(e)

    with LLM(FIXTURE, backend="numpy", max_batch=3, quiet=True) as llm:
        waits = llm.stream("ab", LONG)
        assert llm.engine.dead is None
        with monkeypatch.context() as patch, ThreadPoolExecutor(3) as pool:
            patch.setattr(Ticket, "tokens", fail)
            assert list(pool.map(call, range(3))) == ["planted"] * 3
        with pytest.raises(DeviceError, match="planted"):
            list(waits)
        assert free(llm) and str(llm.engine.dead) == "planted"
        with pytest.raises(DeviceError, match=r"found it failed before \(planted\); open the model again"):
            llm.generate("ab", LONG)


def test_an_error_that_is_not_the_devices_leaves_the_engine_alive(engine: Engine, monkeypatch: Any) -> None:
    def fail(self: Ticket) -> np.ndarray:
        raise RuntimeError("planted")

    handle = engine.add(request([1], 5))
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="planted"):
        patch.setattr(Ticket, "tokens", fail)
        engine.wait(handle)
    assert handle.ended and engine.dead is None
    again = engine.add(request([1], 5))
    engine.wait(again, end=True)
    assert len(again.sequences[0].tokens) == 5


# -- Ctrl-C ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("others", [False, True], ids=["alone", "with others"])
def test_ctrl_c_ends_only_the_callers_requests(llm: LLM, others: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal comes during a step that this thread runs for all requests."""
    alone = llm.generate("ab", HOT)[0].token_ids
    stream = llm.stream("ab", HOT) if others else None
    first = [] if stream is None else next(stream).token_ids
    tokens, calls = Ticket.tokens, []

    def interrupted(self: Ticket) -> np.ndarray:
        calls.append(1)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)
            calls.append(2)
        return tokens(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Ticket, "tokens", interrupted)
        llm.generate(["a", "b"] if others else "a", HOT)
    assert (2 in calls) == others  # alone the step is interrupted immediately
    if stream is not None:
        assert first + [t for chunk in stream for t in chunk.token_ids] == alone
    assert free(llm) and signal.getsignal(signal.SIGINT) is signal.default_int_handler
