"""The text of one request as it becomes certain, for a thread that waits (Stream) or an event loop (AsyncStream)."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Any

from .engine import Engine
from .handle import Handle
from .outputs import StreamChunk
from .sequence import Event, Request


class _Chunks:
    """What both streams share: a request that leaves the engine when it is closed or forgotten.

    close() may be called from any thread, and more than once; iteration then stops."""

    def __init__(self, engine: Engine, request: Request, wake: Any = None) -> None:
        self.handle = engine.add(request, listen=True, wake=wake)
        self._events: deque[Event] = deque()
        self._done = False
        self.close = weakref.finalize(self, engine.abort, self.handle)
        self.close.atexit = False  # what the process holds goes with it

    @property
    def _ended(self) -> bool:
        """Whether there is no chunk left."""
        return self._done or not self.close.alive

    def _chunk(self) -> StreamChunk:
        """The next event as a chunk; the last one has the output."""
        event, handle = self._events.popleft(), self.handle
        self._done = event.finish_reason is not None
        tokens = [] if event.token is None else [event.token]
        return StreamChunk(event.text, tokens, handle.output() if self._done else None)


class Stream(_Chunks, Iterator[StreamChunk]):
    """An iterator of chunks, one a token. The thread that waits for a chunk drives the engine, for all requests."""

    def __init__(self, engine: Engine, request: Request) -> None:
        super().__init__(engine, request)
        self._engine = engine

    def __next__(self) -> StreamChunk:
        if not self._ended and not self._events:
            try:
                self._events.extend(self._engine.wait(self.handle))
            except BaseException:
                self.close()
                raise
        if self._ended or not self._events:
            raise StopIteration
        return self._chunk()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class AsyncStream(_Chunks, AsyncIterator[StreamChunk]):
    """The same for the event loop it was made in; a thread of somebody else's drives. A task that is cancelled while it
    waits for a chunk ends the request."""

    def __init__(self, engine: Engine, request: Request) -> None:
        self._news = news = asyncio.Event()
        super().__init__(engine, request, waker(asyncio.get_running_loop(), news))

    async def __anext__(self) -> StreamChunk:
        if not self._ended and not self._events:
            try:
                self._events.extend(await taken(self.handle, self._news))
            except BaseException:
                self.close()
                raise
        if self._ended or not self._events:
            raise StopAsyncIteration
        return self._chunk()

    async def aclose(self) -> None:
        """End the request early."""
        self.close()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()


def waker(loop: asyncio.AbstractEventLoop, news: asyncio.Event) -> Any:
    """What sets `news` from another thread; nothing once the loop is closed."""

    def wake() -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(news.set)

    return wake


async def taken(handle: Handle, news: asyncio.Event, end: bool = False) -> list[Event]:
    """Engine.wait for a task: the events of a request once there are any, or with `end` once it has ended."""
    while not handle.ready(end):
        await news.wait()
        news.clear()
    return handle.take()
