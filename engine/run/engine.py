"""The engine: continuous batching of requests, with one scheduler and one KV cache for the life of the model.

    add(request) -> Handle      from any thread, while other requests run
    wait(handle) -> [Event]     new events of a request; drives the engine unless another thread does
    abort(handle)               frees the request's slots and pages within one step
    step() -> [Event]           one prefill pass or one decode step, for all requests

The engine has no thread of its own. One of the threads that wait drives it; when that thread has its events, another
one takes over (turn.py). A hand-over costs 20 to 50 us, a fifth of a decode step of a small model.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from ..errors import DeviceError, QueueFull, RequestError
from ..process import forks
from ..process.interrupts import held
from .base_runner import Progress, silent
from .batch import Batch
from .handle import Handle
from .runner import Runner
from .scheduler import Counters
from .sequence import Event, Request, Sequence
from .turn import Turn


class Engine:
    """Runs requests on a runner of its own.

    lookahead: one-step-ahead scheduling; False for tests. progress(done, all): called with prompt tokens. max_queue:
    sequences that may wait beside max_batch running ones; None: any number. now(): seconds, of any clock."""

    def __init__(
        self,
        runner: Runner,
        lookahead: bool = True,
        progress: Progress = silent,
        max_queue: int | None = None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.batch = Batch(runner, lookahead, progress)
        self._most = None if max_queue is None else runner.max_batch + max_queue  # sequences that may be open
        self._now = now
        self._deadlines: list[tuple[float, int, Handle]] = []  # a heap
        self._dead: DeviceError | None = None  # the error that the device failed with
        self._open: dict[Sequence, Handle] = {}  # those that the scheduler has, by arrival
        self._arrived: deque[Handle] = deque()  # those that the scheduler does not have yet
        self._aborted: deque[Handle] = deque()
        self._closed = False
        self._turn = Turn()  # only the thread that has it touches the batch
        self._breakable = 0  # the thread whose step Ctrl-C may interrupt: it has only requests of that thread
        forks.in_child(self._forked)

    # -- requests: from any thread ------------------------------------------------------------------------------------

    def check(self, request: Request) -> None:
        """CacheFull if the request could never run, RequestError if the engine is closed, DeviceError if the device has
        failed."""
        if self._closed:
            raise _closed()
        if self._dead is not None:
            raise _failed(self._dead)
        self.batch.scheduler.table.check(request.longest)

    @property
    def dead(self) -> DeviceError | None:
        """The error that the device failed with. Every request ends with it; the model must be opened again."""
        return self._dead

    @property
    def counters(self) -> Counters:
        """Counts since the engine was made; a copy."""
        return replace(self.batch.scheduler.counters)

    def add(self, request: Request, listen: bool = False, wake: Callable[[], None] | None = None) -> Handle:
        """Queue a request. It runs when a slot and pages are free, as long as a thread drives the engine.

        listen: keep its events for `wait`. wake(): called by the driving thread when there are new events or the
        request has ended; it must not block. CacheFull if it could never run, QueueFull if too many wait."""
        self.check(request)
        handle = Handle(request, listen, wake, self, self._now())
        with held(), self._turn.lock:
            self._expect_room(handle)
            self._arrived.append(handle)
            self._turn.wake()
        if self._closed or self._dead:  # since the check: the thread that ended all requests may have missed this one
            self._see_to_orders()
        return handle

    def _expect_room(self, handle: Handle) -> None:
        """QueueFull if max_queue is reached. The caller holds the lock."""
        if self._most is None:
            return
        found = len(self._open) + sum(len(other.sequences) for other in list(self._arrived))
        if found + len(handle.sequences) > self._most:
            raise QueueFull(f"request: expected at most {self._most} sequences at a time (max_batch and max_queue), "
                            f"found {found} and {len(handle.sequences)} more")  # fmt: skip

    def abort(self, *handles: Handle) -> None:
        """End requests: now if no thread drives, else after the current step. Their tokens so far are kept.

        Safe in a finalizer, at any point of this thread: it never blocks."""
        with held():
            self._aborted.extend(handle for handle in handles if not handle.ended)
            self._see_to_orders()

    def abort_all(self) -> None:
        """End every request added so far. Safe in a signal handler, as `abort` and `close` are."""
        arrived = list(self._arrived)  # first: a request is among the open ones before it leaves this list
        self.abort(*dict.fromkeys([*arrived, *self._open.copy().values()]))

    def wait(self, handle: Handle, end: bool = False) -> list[Event]:
        """Wait for events of a request: those since the last call, at least one unless it has ended. end: until it has.

        Drives the engine, or sleeps while another thread does. Raises the error that ended the request. Ctrl-C is
        raised between two steps if other requests take part in them."""

        def ready() -> bool:
            return handle.ready(end)

        while not ready():
            with held(self._may_break, self._turn.rouse) as caught:
                self._turn.sleep(lambda: ready() or bool(caught))
                if not caught and self._turn.take():
                    try:
                        while not (ready() or caught or self._turn.asked_for):
                            self._step(handle)
                    finally:
                        self._pass_on()
        return handle.take()

    def step(self) -> list[Event]:
        """Run one prefill pass or one decode step; [] if there is nothing to do. Waits for its turn."""
        while True:
            with self._alone() as caught:
                if not caught:
                    return self._step()

    def run(self, stopped: Callable[[], bool]) -> None:
        """Drive the engine whenever there is work, until stopped() is true: the loop of a dedicated thread.

        `poke` makes it call stopped() again. An error in a step ends the running requests; the loop goes on."""
        while not stopped():
            self._turn.sleep(stopped, wants=self._has_work)
            if not stopped() and self._turn.take():
                try:
                    self._step()
                except Exception:  # it was delivered to the requests
                    continue
                finally:
                    self._pass_on()

    def poke(self) -> None:
        """Make `run` call stopped() again. Safe in a finalizer."""
        self._turn.rouse()

    def logits(self, ids: list[int], decode_from: int | None = None) -> np.ndarray:
        """[T, V] float32, as Runner.logits, between two steps of other requests.

        Waits for a slot and pages; no queued request begins before."""
        found = None
        while found is None:
            with self._alone() as caught:
                while found is None and not caught:
                    found = self._logits(ids, decode_from)
                    if found is None:
                        self._step(drain=True)
        return found

    def flush(self) -> None:
        """Empty the prefix cache, between two steps."""
        flushed = False
        while not flushed:
            with self._alone() as caught:
                if not caught:
                    self.batch.scheduler.table.pool.flush()
                    flushed = True

    def close(self) -> None:
        """End every request with an error, now or after the current step, and refuse new ones. Safe in a finalizer."""
        self._closed = True
        self._see_to_orders()

    # -- which thread drives ------------------------------------------------------------------------------------------

    @contextmanager
    def _alone(self) -> Iterator[list[int]]:
        """Take the turn before the threads that wait for requests. Yields the Ctrl-C signals caught: if there are any,
        the thread does not have the turn; KeyboardInterrupt is raised afterwards."""
        with held(self._may_break, self._turn.rouse) as caught:
            taken = False
            while not (taken or caught):
                self._turn.sleep(lambda: bool(caught), first=True)
                taken = self._turn.take(first=True)
            try:
                yield caught
            finally:
                if taken:
                    self._pass_on()

    def _pass_on(self) -> None:
        """Give up the turn, then handle aborts that came at the last moment."""
        self._turn.pass_on()
        self._see_to_orders()

    def _see_to_orders(self) -> None:
        """End aborted requests, unless another thread drives: that one will."""
        with held(self._may_break):
            while self._ordered() and self._turn.take(first=True, wait=False):
                try:
                    self._deliver(self._orders())
                finally:
                    self._turn.pass_on()
        if self._ordered():  # the thread that held the lock may have been about to sleep
            self._turn.rouse()

    def _ordered(self) -> bool:
        over = self._closed or self._dead is not None
        return bool(self._aborted) or (over and bool(self._open or self._arrived))

    def _has_work(self) -> bool:
        return bool(self._arrived or self._aborted) or not self.batch.idle

    def _may_break(self) -> bool:
        return self._breakable == threading.get_ident()

    def _deliver(self, events: list[Event]) -> None:
        """Give events to their requests and wake the threads that wait for them."""
        wakes: dict[Callable[[], None], None] = {}
        with self._turn.lock:
            now = time.perf_counter()
            for event in events:
                handle = self._open[event.seq] if event.finish_reason is None else self._open.pop(event.seq)
                handle.put(event, now)
                if handle.wake is not None:
                    wakes[handle.wake] = None
            self._turn.wake()
        for wake in wakes:
            wake()

    # -- a step: by the thread that has the turn ----------------------------------------------------------------------

    def _step(self, own: Handle | None = None, drain: bool = False) -> list[Event]:
        """As `step`. If it fails, every open request ends with the error.

        own: the request that this thread waits for. Ctrl-C interrupts the step if no other request is open."""
        try:
            events = self._orders()
            if not events:
                alone = own is not None and all(handle is own for handle in self._open.values())
                self._breakable = threading.get_ident() if alone else 0
                events = self.batch.step(drain)
                self._breakable = 0
        except BaseException as e:
            self._breakable = 0
            self._fail(e)
            raise
        self._deliver(events)
        return events

    def _logits(self, ids: list[int], decode_from: int | None) -> np.ndarray | None:
        """Batch.logits; Ctrl-C interrupts it if no request is open."""
        alone = not self._open
        try:
            self._breakable = threading.get_ident() if alone else 0
            found = self.batch.logits(ids, decode_from)
            self._breakable = 0
        except BaseException:
            self._breakable = 0
            if alone:  # interrupted, perhaps between taking a slot and giving it back
                self.batch.clear()
            raise
        return found

    def _orders(self) -> list[Event]:
        """Queue new requests; end those that were aborted or timed out. Returns the last events of the latter."""
        while self._arrived:
            handle = self._arrived[0]
            for seq in handle.sequences:
                self._open[seq] = handle
                self.batch.scheduler.add(seq)
            if (timeout := handle.request.schedule.timeout) is not None:
                self._note_deadline(handle, handle.added + timeout)
            self._arrived.popleft()  # last: `abort_all` must find it in one place or the other
        if self._closed or self._dead is not None:
            self._aborted.clear()
            for seq in self._open:
                seq.error = _closed() if self._dead is None else _failed(self._dead)
            return self._ends(list(self._open), "error")
        if not (self._aborted or self._deadlines):
            return []
        aborted = [seq for _ in range(len(self._aborted)) for seq in self._aborted.popleft().sequences]
        late = []
        while self._deadlines and (self._deadlines[0][2].ended or self._deadlines[0][0] <= self._now()):
            late += heapq.heappop(self._deadlines)[2].sequences
        return self._ends(aborted, "abort") + self._ends(late, "timeout")

    def _note_deadline(self, handle: Handle, deadline: float) -> None:
        if len(self._deadlines) > 64 + 2 * len(self._open):  # drop those of requests that have ended
            self._deadlines = [entry for entry in self._deadlines if not entry[2].ended]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (deadline, handle.sequences[0].arrival, handle))

    def _ends(self, leaving: list[Sequence], reason: str) -> list[Event]:
        """End the sequences that have not ended yet."""
        return [self.batch.end(seq, reason) for seq in dict.fromkeys(leaving) if seq.finish_reason is None]

    def _fail(self, error: BaseException) -> None:
        """End every open request with an error and reset the batch. After a DeviceError the engine stays dead."""
        if isinstance(error, DeviceError):
            self._dead = error
        self.batch.clear()
        told = error if isinstance(error, Exception) else DeviceError(f"step: broken off by {type(error).__name__}")
        for seq in self._open:
            seq.error = seq.error or told
        self._deliver([seq.end("error") for seq in self._open])

    def _forked(self) -> None:
        """In a forked child: make new locks, and end the requests, which belong to the parent."""
        self._turn, self._breakable = Turn(), 0
        told = self.batch.forked()
        while self._arrived:
            self._open.update(dict.fromkeys(self._arrived[0].sequences, self._arrived.popleft()))
        self._aborted.clear()
        self._fail(told)


def _failed(error: DeviceError) -> DeviceError:
    return DeviceError(f"engine: expected a device that works, found it failed before ({error}); open the model again")


def _closed() -> RequestError:
    return RequestError("LLM: expected an open one, found it closed")
