"""AsyncLLM: an LLM for asyncio, also inside a running event loop as in Jupyter. A background thread runs the engine."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .config import SamplingParams, Scheduling
from .llm import LLM, Messages, Params
from .outputs import RequestOutput
from .run.engine import Engine
from .run.requests import Prompt
from .run.sequence import Request
from .stream import AsyncStream, taken, waker


class AsyncLLM:
    """A loaded model that generates or embeds for any number of asyncio tasks concurrently.

    model: an open LLM, or the arguments of LLM. Loading blocks the event loop. To avoid that, load with
    `await asyncio.to_thread(LLM, ...)` and pass the result."""

    def __init__(self, model: LLM | str | Path, **options: Any) -> None:
        self.llm: LLM = model if isinstance(model, LLM) else LLM(model, **options)
        self._stop: weakref.finalize | None = None
        self._process = 0  # id of the process that started the thread
        if self.llm.config.causal:
            self._engine()

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        parse_special: bool = False,
        schedule: Scheduling | None = None,
    ) -> AsyncStream:
        """Complete one prompt: `async for chunk in llm.stream(...)`.

        The request starts when the first chunk is requested; an invalid request raises there. It ends early when its
        task is cancelled, by `close()`, or when the stream is garbage collected. parse_special, schedule: see
        LLM.generate."""
        options = {"single": True, "parse_special": parse_special, "schedule": schedule}
        return self._stream(partial(self.llm.request, prompt, params, **options))

    async def generate(
        self, prompts: Any, params: Params = None, *, parse_special: bool = False, schedule: Scheduling | None = None
    ) -> list[RequestOutput]:
        """Complete prompts, as LLM.generate does. Cancelling the task ends its requests."""
        make = partial(self.llm.requests, prompts, params, parse_special=parse_special, schedule=schedule)
        return await self._complete(await asyncio.to_thread(make))

    async def _complete(self, todo: list[Request]) -> list[RequestOutput]:
        """Run requests to their end and return their outputs."""
        engine, news, handles = self._engine(), asyncio.Event(), []
        wake = waker(asyncio.get_running_loop(), news)
        try:
            for request in todo:
                handles.append(engine.add(request, wake=wake))
            for handle in handles:
                await taken(handle, news, end=True)
        except BaseException:
            engine.abort(*handles)
            raise
        return [handle.output() for handle in handles]

    async def chat(
        self, messages: Messages, params: SamplingParams | None = None, *, schedule: Scheduling | None = None
    ) -> RequestOutput:
        """Answer messages, as LLM.chat does."""
        request = await asyncio.to_thread(self.llm.chat_request, messages, params, schedule=schedule)
        return (await self._complete([request]))[0]

    def stream_chat(
        self, messages: Messages, params: SamplingParams | None = None, *, schedule: Scheduling | None = None
    ) -> AsyncStream:
        """Answer messages as a stream: `async for chunk in llm.stream_chat(...)`."""
        return self._stream(partial(self.llm.chat_request, messages, params, single=True, schedule=schedule))

    async def embed(self, texts: Any, pooling: str = "mean", normalize: bool = True) -> np.ndarray:
        """Embed texts, as LLM.embed does: [N, D] float32."""
        return await asyncio.to_thread(self.llm.embed, texts, pooling, normalize)

    async def logits(self, ids: Sequence[int], decode_from: int | None = None) -> np.ndarray:
        """Logits [T, V] float32, as of LLM.logits."""
        return await asyncio.to_thread(self.llm.logits, ids, decode_from)

    def close(self) -> None:
        """End every request with an error, stop the thread and close the LLM."""
        self.llm.close()
        if self._stop is not None:
            self._stop()

    def _stream(self, make: Callable[[], Request]) -> AsyncStream:
        return AsyncStream(self._engine(), make, driver=self)

    def _engine(self) -> Engine:
        """The engine; starts its thread once per process, as a forked child has none of its parent's threads."""
        engine = self.llm.engine
        if self._process != os.getpid():
            self._process, self._stop = os.getpid(), _drive(self, engine)
        return engine

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()


def _drive(owner: AsyncLLM, engine: Engine) -> weakref.finalize:
    """Start a thread that runs the engine until `owner` is collected. Calling the result ends the thread and waits."""
    stop = threading.Event()
    thread = threading.Thread(target=engine.run, args=(stop.is_set,), name="ostinato", daemon=True)

    def leave() -> None:  # a finalizer: may run anywhere in any thread, so it must not wait
        stop.set()
        engine.poke()

    def end() -> None:
        leave()
        if thread is not threading.current_thread():
            thread.join()

    thread.start()
    weakref.finalize(owner, leave)
    return weakref.finalize(engine, end)  # the thread keeps the engine alive: this runs at interpreter exit
