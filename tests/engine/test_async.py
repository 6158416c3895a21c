"""AsyncLLM: tasks get the results that threads get, and can leave at any time."""

from __future__ import annotations

import asyncio
import gc
import threading
from pathlib import Path

import numpy as np
import pytest

from ostinato import LLM, AsyncLLM, RequestError, SamplingParams
from ostinato.run.runner import Ticket

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures/llama"
HOT = SamplingParams(temperature=1.5, seed=11, max_tokens=20, ignore_eos=True)
LONG = SamplingParams(temperature=1.5, seed=11, max_tokens=120, ignore_eos=True)


def free(llm: LLM) -> bool:
    """Whether all pages are free."""
    return llm.runner.table.free == llm.runner.table.pages - 1


def test_async_calls_give_what_the_others_give(llm: LLM) -> None:
    whole, answer = llm.generate("ab", HOT)[0], llm.chat([{"role": "user", "content": "hi"}], HOT)

    async def stream(on: AsyncLLM) -> str:
        return "".join([chunk.text async for chunk in on.stream("ab", HOT)])

    async def main() -> None:
        on = AsyncLLM(llm)
        texts = await asyncio.gather(*(stream(on) for _ in range(5)))
        assert texts == [whole.text] * 5
        assert [o.outputs for o in await on.generate(["ab", "ab"], HOT)] == [whole.outputs] * 2
        assert (await on.chat([{"role": "user", "content": "hi"}], HOT)).outputs == answer.outputs
        np.testing.assert_array_equal(await on.logits([1, 2]), llm.logits([1, 2]))
        assert on._stop is not None
        on._stop()

    asyncio.run(main())


@pytest.mark.parametrize("how", ["cancelled stream", "cancelled call", "closed"])
def test_a_task_that_leaves_frees_its_pages_within_a_step(llm: LLM, how: str) -> None:
    async def read(stream, chunks: list) -> None:
        async for chunk in stream:
            chunks.append(chunk)

    async def main() -> None:
        on, chunks = AsyncLLM(llm), []
        if how == "cancelled call":
            task, stream = asyncio.create_task(on.generate("ab", LONG)), None
            while free(llm):
                await asyncio.sleep(0.001)
        else:
            stream = on.stream("ab", LONG)
            task = asyncio.create_task(read(stream, chunks))
            while len(chunks) < 3:
                await asyncio.sleep(0.001)
        if how == "closed" and stream is not None:
            await stream.aclose()
            await task
        else:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        for _ in range(200):
            if free(llm):
                break
            await asyncio.sleep(0.001)
        assert free(llm) and len(chunks) < 119
        assert on._stop is not None
        on._stop()

    asyncio.run(main())


def test_an_error_of_a_step_reaches_the_task(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Ticket) -> np.ndarray:
        raise RuntimeError("planted")

    async def main() -> None:
        on = AsyncLLM(llm)
        with monkeypatch.context() as patch:
            patch.setattr(Ticket, "tokens", fail)
            with pytest.raises(RuntimeError, match="planted"):
                await on.generate("ab", HOT)
        assert (await on.generate("ab", HOT))[0].completion_tokens == 20  # the thread continues
        assert on._stop is not None
        on._stop()

    asyncio.run(main())


def test_the_thread_ends_with_its_owner(llm: LLM) -> None:
    on = AsyncLLM(llm)
    assert any(thread.name == "ostinato" for thread in threading.enumerate())
    del on
    gc.collect()
    for thread in threading.enumerate():
        if thread.name == "ostinato":
            thread.join(5)
            assert not thread.is_alive()


def test_a_stream_keeps_its_async_llm_alive() -> None:
    async def main() -> int:
        stream = AsyncLLM(FIXTURE, backend="numpy", quiet=True).stream("ab", HOT)
        gc.collect()
        return len([chunk async for chunk in stream])

    assert asyncio.run(asyncio.wait_for(main(), 5)) == 20


def test_an_owner_may_be_collected_anywhere(llm: LLM) -> None:
    """Also while this thread holds the waiters' lock."""
    owner = [AsyncLLM(llm)]

    def collect() -> None:
        with llm.engine._turn.lock:
            owner.clear()
            gc.collect()

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()


@pytest.mark.parametrize("call", ["generate", "stream", "chat", "stream_chat"])
def test_requests_are_created_outside_the_event_loop(llm: LLM, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Tokenising a long prompt and rendering a template do not block the event loop."""
    threads, make = [], llm.request

    def noted(*args, **options):
        threads.append(threading.current_thread())
        return make(*args, **options)

    async def main() -> None:
        on, given = AsyncLLM(llm), [{"role": "user", "content": "hi"}] if "chat" in call else "ab"
        if "stream" in call:
            assert len([chunk async for chunk in getattr(on, call)(given, HOT)]) == 20
        else:
            await getattr(on, call)(given, HOT)
        assert on._stop is not None
        on._stop()

    monkeypatch.setattr(llm, "request", noted)
    asyncio.run(main())
    assert len(threads) == 1 and threading.main_thread() not in threads


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_stream_closed_before_its_request_is_made(llm: LLM, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    async def main() -> list:
        on = AsyncLLM(llm)
        stream = on.stream("ab", LONG)
        if when == "before":
            stream.close()
        else:
            make = stream._make
            stream._make = lambda: (stream.close(), make())[1]
        chunks = [chunk async for chunk in stream]
        assert on._stop is not None
        on._stop()
        return chunks

    assert asyncio.run(main()) == [] and free(llm)


def test_a_bad_request_raises_at_the_first_chunk(llm: LLM) -> None:
    async def main() -> None:
        on = AsyncLLM(llm)
        stream = on.stream("", LONG)
        with pytest.raises(RequestError, match="prompt"):
            await anext(stream)
        assert [chunk async for chunk in stream] == []
        assert on._stop is not None
        on._stop()

    asyncio.run(main())
