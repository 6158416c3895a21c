"""AsyncLLM: an LLM for asyncio. Usable inside a running loop, as in Jupyter; a thread of its own drives the engine."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .config import SamplingParams
from .llm import LLM, Messages, Params
from .outputs import RequestOutput
from .run.engine import Engine
from .run.requests import Prompt
from .run.sequence import Request
from .stream import AsyncStream, taken, waker


class AsyncLLM:
    """A model, ready to generate or to embed for any number of tasks at a time.

    model: an LLM that is open, or whatever LLM takes, with the keyword arguments of LLM. Loading blocks: in a loop that
    serves others meanwhile, `await asyncio.to_thread(LLM, ...)` and hand over the result."""

    def __init__(self, model: LLM | str | Path, **options: Any) -> None:
        self.llm: LLM = model if isinstance(model, LLM) else LLM(model, **options)
        self._stop: weakref.finalize | None = None
        self._process = 0  # whose thread drives
        if self.llm.config.causal:
            self._engine()

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, *, parse_special: bool = False
    ) -> AsyncStream:
        """Complete one prompt: `async for chunk in llm.stream(...)`. A request that is not acceptable raises here.

        It ends early when its task is cancelled, by `close()`, and when it is forgotten. parse_special as for
        LLM.generate."""
        return self._stream(self.llm.request(prompt, params, single=True, parse_special=parse_special))

    async def generate(
        self, prompts: Any, params: Params = None, *, parse_special: bool = False
    ) -> list[RequestOutput]:
        """Complete prompts; as LLM.generate. A task that is cancelled meanwhile ends its requests."""
        return await self._complete(self.llm.requests(prompts, params, parse_special=parse_special))

    async def _complete(self, todo: list[Request]) -> list[RequestOutput]:
        """The outputs of requests, once all have ended."""
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

    async def chat(self, messages: Messages, params: SamplingParams | None = None) -> RequestOutput:
        """The model's answer to messages; as LLM.chat."""
        request = await asyncio.to_thread(self.llm.chat_request, messages, params)  # a template may take its time
        return (await self._complete([request]))[0]

    async def stream_chat(self, messages: Messages, params: SamplingParams | None = None) -> AsyncStream:
        """Like chat, as a stream: `async for chunk in await llm.stream_chat(...)`.

        Awaited first, as a template may take its time: it is rendered in a thread, while the loop goes on."""
        request = partial(self.llm.chat_request, messages, params, single=True)
        return self._stream(await asyncio.to_thread(request))

    async def embed(self, texts: Any, pooling: str = "mean", normalize: bool = True) -> np.ndarray:
        """[N, D] float32, as LLM.embed."""
        return await asyncio.to_thread(self.llm.embed, texts, pooling, normalize)

    async def logits(self, ids: Sequence[int], decode_from: int | None = None) -> np.ndarray:
        """[T, V] float32, as LLM.logits."""
        return await asyncio.to_thread(self.llm.logits, ids, decode_from)

    def close(self) -> None:
        """End every request with an error, stop the thread and close the LLM."""
        self.llm.close()
        if self._stop is not None:
            self._stop()

    def _stream(self, request: Request) -> AsyncStream:
        return AsyncStream(self._engine(), request, driver=self)

    def _engine(self) -> Engine:
        """The engine, which a thread of this process drives: a forked child has none of its parent's threads."""
        engine = self.llm.engine
        if self._process != os.getpid():
            self._process, self._stop = os.getpid(), _drive(self, engine)
        return engine

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()


def _drive(owner: AsyncLLM, engine: Engine) -> weakref.finalize:
    """Start a thread that drives the engine, until its owner is gone. What is returned ends it now, and waits."""
    stop = threading.Event()
    thread = threading.Thread(target=engine.run, args=(stop.is_set,), name="ostinato", daemon=True)

    def leave() -> None:  # in any place of any thread, as finalizers do: it waits for nothing
        stop.set()
        engine.poke()

    def end() -> None:
        leave()
        if thread is not threading.current_thread():
            thread.join()

    thread.start()
    weakref.finalize(owner, leave)
    return weakref.finalize(engine, end)  # which the thread keeps: so it ends before the interpreter does
