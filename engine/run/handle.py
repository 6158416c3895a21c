"""A request inside the engine: its sequences, its events that were not taken yet, and how it ended."""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from ..errors import EngineError
from ..outputs import CompletionOutput, RequestOutput
from .sequence import Event, Request, Sequence


class Driver(Protocol):
    """What a handle needs of the engine."""

    def wait(self, handle: Handle, end: bool = False) -> list[Event]:
        """See Engine.wait."""
        ...

    def abort(self, *handles: Handle) -> None:
        """See Engine.abort."""
        ...


class Handle:
    """What Engine.add returns. `ended` and `output` are public; the engine calls the other methods."""

    def __init__(
        self,
        request: Request,
        listen: bool,
        wake: Callable[[], None] | None,
        engine: Driver,
        added: float = 0.0,
    ) -> None:
        """added: when, by the clock of the engine."""
        self.request, self.added = request, added
        self.engine: Driver | None = engine  # None once it has ended: a kept handle must not keep the model
        self.sequences = [Sequence(request, i) for i in range(request.params.n)]
        self.wake = wake
        self.began = time.perf_counter()
        self._first: float | None = None  # times of its first token and of its latest
        self._last = self.began
        self._running = len(self.sequences)
        self._inbox: deque[Event] | None = deque() if listen else None

    @property
    def ended(self) -> bool:
        """Whether every completion has ended."""
        return self._running == 0

    def ready(self, end: bool) -> bool:
        """Whether there are events to take or it has ended; with `end` only whether it has ended."""
        return not self._running or (bool(self._inbox) and not end)

    def put(self, event: Event, now: float) -> None:
        """Add an event of one of its sequences. now: time.perf_counter()."""
        if event.token is not None:
            self._last = now
            if self._first is None:
                self._first = now
        if self._inbox is not None and event.finish_reason != "error":  # `take` raises it
            self._inbox.append(event)
        if event.finish_reason is not None:  # last: a thread that sees it ended takes all events
            self._running -= 1
            if not self._running:
                self.engine = None

    @property
    def error(self) -> BaseException | None:
        """The error that ended a completion, if one did."""
        return next((seq.error for seq in self.sequences if seq.error is not None), None)

    def take(self) -> list[Event]:
        """The events since the last call. Once all are taken, raises the error that ended the request."""
        events: list[Event] = []
        with suppress(IndexError):  # another thread may take events too
            while self._inbox:
                events.append(self._inbox.popleft())
        if not events and (error := self.error) is not None:
            raise _again(error) from error
        return events

    def output(self) -> RequestOutput:
        """The output, once the request has ended."""
        outputs = [
            CompletionOutput(s.index, s.text.full if s.text else "", list(s.tokens), s.finish_reason or "", s.logprobs)
            for s in self.sequences
        ]
        tokens = sum(len(o.token_ids) for o in outputs)
        first = self.began if self._first is None else self._first
        later = tokens - len(outputs)  # the tokens that came from decode steps
        rate = later / (self._last - first) if later > 0 and self._last > first else None
        ids = self.request.ids
        cached = self.sequences[0].cached
        return RequestOutput(self.request.prompt, ids, outputs, len(ids), tokens, first - self.began, rate, cached)


def _again(error: BaseException) -> BaseException:
    """A copy of the error for another thread: a traceback belongs to one thread."""
    if isinstance(error, EngineError):
        return type(error)(*error.args)
    return copy.copy(error)
