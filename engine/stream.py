"""The text of one request as a stream of chunks: Stream for threads, AsyncStream for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from .outputs import StreamChunk
from .process.interrupts import held
from .run.engine import Engine
from .run.handle import Handle
from .run.sequence import Event, Request


class _Chunks:
    """Base of both streams: a request that ends when the stream is closed or garbage collected.

    close() may be called from any thread and repeatedly; iteration then stops."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._done = False
        self._leave: Any = None  # the finalizer that aborts the request; None before it is the engine's

    def _begin(self, engine: Engine, request: Request, wake: Any = None) -> None:
        """Give the request to the engine, unless the stream was closed before."""
        with held():  # no Ctrl-C between adding the request and registering its finalizer
            if self._done:
                return
            self.handle: Handle = engine.add(request, listen=True, wake=wake)
            self._leave = weakref.finalize(self, _abort, self.handle)
        self._leave.atexit = False  # nothing to release at interpreter exit
        if self._done:  # another thread closed the stream meanwhile
            self._leave()

    def close(self) -> None:
        """End the request early."""
        with held():
            if self.begun:
                self._leave()
            else:
                self._done = True

    @property
    def begun(self) -> bool:
        """Whether the engine has the request."""
        return self._leave is not None

    @property
    def _ended(self) -> bool:
        """Whether no chunk is left."""
        return self._done or (self.begun and not self._leave.alive)

    def _chunk(self) -> StreamChunk | None:
        """The next event as a chunk, or None. The last chunk has the output."""
        try:
            event, handle = self._events.popleft(), self.handle
        except IndexError:  # another thread has taken it
            return None
        last = event.finish_reason is not None
        self._done = self._done or last
        tokens = [] if event.token is None else [event.token]
        return StreamChunk(event.text, tokens, handle.output() if last else None)


class Stream(_Chunks, Iterator[StreamChunk]):
    """An iterator of chunks, one per token. A thread that waits for a chunk runs the engine for all requests."""

    def __init__(self, engine: Engine, request: Request) -> None:
        super().__init__()
        self._begin(engine, request)

    def __next__(self) -> StreamChunk:
        while not self._ended:
            if (chunk := self._chunk()) is not None:
                return chunk
            engine, over = self.handle.engine, self.handle.ended
            try:
                events = self.handle.take() if engine is None else engine.wait(self.handle)
            except BaseException:
                self.close()
                raise
            self._events.extend(events)
            if over and not events:  # another thread has taken the rest
                break
        raise StopIteration

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class AsyncStream(_Chunks, AsyncIterator[StreamChunk]):
    """An asynchronous iterator of chunks. AsyncLLM's thread runs the engine. Cancelling a task that waits for a chunk
    ends the request.

    The request starts when the first chunk is requested; an invalid request raises there. A thread creates the request,
    so that tokenising a long prompt or rendering a slow chat template does not block the event loop."""

    def __init__(self, engine: Engine, make: Callable[[], Request], driver: object) -> None:
        """driver: the AsyncLLM; kept alive because its thread runs the engine."""
        super().__init__()
        self._engine, self._make, self._driver = engine, make, driver
        self._news, self._beginning = asyncio.Event(), asyncio.Lock()

    async def __anext__(self) -> StreamChunk:
        try:
            async with self._beginning:
                if not (self.begun or self._done):
                    request = await asyncio.to_thread(self._make)
                    self._begin(self._engine, request, waker(asyncio.get_running_loop(), self._news))
            return await self._next()
        except StopAsyncIteration:
            raise
        except BaseException:
            self.close()
            raise

    async def _next(self) -> StreamChunk:
        while not self._ended:
            if (chunk := self._chunk()) is not None:
                return chunk
            over = self.handle.ended
            events = await taken(self.handle, self._news)
            self._events.extend(events)
            if over and not events:  # another task has taken the rest
                break
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End the request early."""
        self.close()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()


def _abort(handle: Handle) -> None:
    if (engine := handle.engine) is not None:
        engine.abort(handle)


def waker(loop: asyncio.AbstractEventLoop, news: asyncio.Event) -> Any:
    """A function that sets `news` from another thread; it does nothing once the loop is closed."""

    def wake() -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(news.set)

    return wake


async def taken(handle: Handle, news: asyncio.Event, end: bool = False) -> list[Event]:
    """Engine.wait for a task: wait for events of a request, or with `end` for its end; return the events."""
    while not handle.ready(end):
        await news.wait()
        news.clear()
    return handle.take()
