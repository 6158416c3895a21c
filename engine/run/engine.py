"""The engine: requests join and leave while others run; one scheduler and one KV cache for the model's life.

    add(request) -> Handle      from any thread, while others run
    wait(handle) -> [Event]     what happened to it; drives the engine if nobody else does
    abort(handle)               frees its slots and pages within one step
    step() -> [Event]           one pass over prompts, or one decode step, for everybody

There is no thread of the engine's own: of the callers that wait, one drives, and once it has what it waited for another
takes over (turn.py). A hand-over costs 20 to 50 us, a fifth of a decode step of a small model.
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
    """Runs requests on a runner that nobody else uses. lookahead: False for tests; now(): seconds, of any clock.

    progress(done, all) is told of the tokens of the prompts that are run together. max_queue: sequences that may be
    open beside max_batch of them; None: any number."""

    def __init__(
        self,
        runner: Runner,
        lookahead: bool = True,
        progress: Progress = silent,
        max_queue: int | None = None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.batch = Batch(runner, lookahead, progress)
        self._most = None if max_queue is None else runner.max_batch + max_queue  # sequences at a time
        self._now = now
        self._deadlines: list[tuple[float, int, Handle]] = []  # a heap
        self._dead: DeviceError | None = None  # what the device has failed with
        self._open: dict[Sequence, Handle] = {}  # taken in and not ended, in that order
        self._arrived: deque[Handle] = deque()  # added, not taken in yet
        self._aborted: deque[Handle] = deque()
        self._closed = False
        self._turn = Turn()  # its owner alone touches the batch
        self._breakable = 0  # the thread that Ctrl-C may break off in its step: nobody else has a part in it
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
        """What the device has failed with: every request ends with it, and the model must be opened again."""
        return self._dead

    @property
    def counters(self) -> Counters:
        """What has happened since the engine was made: a copy."""
        return replace(self.batch.scheduler.counters)

    def add(self, request: Request, listen: bool = False, wake: Callable[[], None] | None = None) -> Handle:
        """Queue a request: it runs once a slot and pages are free, as long as somebody drives.

        listen: keep its events for `wait`. wake(): called by the thread that drives when there are new ones, or when
        the request has ended; it must not block. CacheFull if it could never run, QueueFull if too many wait."""
        self.check(request)
        handle = Handle(request, listen, wake, self, self._now())
        with held(), self._turn.lock:
            self._expect_room(handle)
            self._arrived.append(handle)
            self._turn.wake()
        if self._closed or self._dead:  # meanwhile, and whoever saw to that may not have found this one
            self._see_to_orders()
        return handle

    def _expect_room(self, handle: Handle) -> None:
        """QueueFull if there are as many sequences as may be. The lock is held."""
        if self._most is None:
            return
        found = len(self._open) + sum(len(other.sequences) for other in list(self._arrived))
        if found + len(handle.sequences) > self._most:
            raise QueueFull(f"request: expected at most {self._most} sequences at a time (max_batch and max_queue), "
                            f"found {found} and {len(handle.sequences)} more")  # fmt: skip

    def abort(self, *handles: Handle) -> None:
        """End requests: now if nobody drives, else with the step that runs. The tokens they have stay.

        A finalizer may call it, from any place in this thread: it waits for nothing."""
        with held():
            self._aborted.extend(handle for handle in handles if not handle.ended)
            self._see_to_orders()

    def abort_all(self) -> None:
        """End every request that was added before. A signal handler may call it, as it may `abort` and `close`."""
        arrived = list(self._arrived)  # first: who leaves it meanwhile is among the open ones before
        self.abort(*dict.fromkeys([*arrived, *self._open.copy().values()]))

    def wait(self, handle: Handle, end: bool = False) -> list[Event]:
        """The events of a request since the last call, at least one unless it has ended; end: wait until it has.

        Drives meanwhile, or sleeps while another thread does. Raises the error that ended the request. Ctrl-C is raised
        between two steps where it would harm somebody else's request."""

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
        """Run one pass over prompts, or one decode step; [] if there is nothing to do. Waits for its turn."""
        while True:
            with self._alone() as caught:
                if not caught:
                    return self._step()

    def run(self, stopped: Callable[[], bool]) -> None:
        """Drive whenever there is work, until stopped(), which is asked again after `poke`: for a thread of its own.

        An error of a step ends the requests that were running, each with that error; this goes on."""
        while not stopped():
            self._turn.sleep(stopped, wants=self._has_work)
            if not stopped() and self._turn.take():
                try:
                    self._step()
                except Exception:  # the requests have it
                    continue
                finally:
                    self._pass_on()

    def poke(self) -> None:
        """Have `run` ask again whether to stop. A finalizer may call it."""
        self._turn.rouse()

    def logits(self, ids: list[int], decode_from: int | None = None) -> np.ndarray:
        """[T, V] float32, as Runner.logits, between two steps of the requests that run.

        Waits for a slot and pages, before who has not begun."""
        found = None
        while found is None:
            with self._alone() as caught:
                while found is None and not caught:
                    found = self._logits(ids, decode_from)
                    if found is None:
                        self._step(drain=True)
        return found

    def flush(self) -> None:
        """Forget the KV pages that are kept for prompts to come. Between two steps of the requests that run."""
        flushed = False
        while not flushed:
            with self._alone() as caught:
                if not caught:
                    self.batch.scheduler.table.pool.flush()
                    flushed = True

    def close(self) -> None:
        """End every request with an error, now or with the step that runs; nothing can be added any more. A finalizer
        may call it."""
        self._closed = True
        self._see_to_orders()

    # -- whose turn it is ---------------------------------------------------------------------------------------------

    @contextmanager
    def _alone(self) -> Iterator[list[int]]:
        """This thread has the turn inside, before those that wait for a request, unless what is yielded is not empty:
        Ctrl-C has come. It is raised afterwards."""
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
        """Give up the turn, and see to what was ordered in its last moments."""
        self._turn.pass_on()
        self._see_to_orders()

    def _see_to_orders(self) -> None:
        """Let go of who was aborted, unless a thread drives: it will."""
        with held(self._may_break):
            while self._ordered() and self._turn.take(first=True, wait=False):
                try:
                    self._deliver(self._orders())
                finally:
                    self._turn.pass_on()
        if self._ordered():  # who held the lock at that moment may go to sleep over it
            self._turn.rouse()

    def _ordered(self) -> bool:
        over = self._closed or self._dead is not None
        return bool(self._aborted) or (over and bool(self._open or self._arrived))

    def _has_work(self) -> bool:
        return bool(self._arrived or self._aborted) or not self.batch.idle

    def _may_break(self) -> bool:
        return self._breakable == threading.get_ident()

    def _deliver(self, events: list[Event]) -> None:
        """Hand events to their requests, and wake who waits for them."""
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

    # -- a step: by the owner of the turn -----------------------------------------------------------------------------

    def _step(self, own: Handle | None = None, drain: bool = False) -> list[Event]:
        """See `step`. If it fails, everybody who was running ends with the error, and the engine begins anew.

        own: the request for which this thread drives; Ctrl-C breaks the step off if nobody else's runs."""
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
        """Batch.logits; Ctrl-C breaks it off if nobody has begun."""
        alone = not self._open
        try:
            self._breakable = threading.get_ident() if alone else 0
            found = self.batch.logits(ids, decode_from)
            self._breakable = 0
        except BaseException:
            self._breakable = 0
            if alone:  # it may have been broken off between taking a slot and giving it back
                self.batch.clear()
            raise
        return found

    def _orders(self) -> list[Event]:
        """Take in who arrived and let go of who was aborted, or whose time is over; the ends of these."""
        while self._arrived:
            handle = self._arrived[0]
            for seq in handle.sequences:
                self._open[seq] = handle
                self.batch.scheduler.add(seq)
            if (timeout := handle.request.schedule.timeout) is not None:
                self._note_deadline(handle, handle.added + timeout)
            self._arrived.popleft()  # last: `abort_all` finds it in one place or the other
        if self._closed or self._dead is not None:
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
        if len(self._deadlines) > 64 + 2 * len(self._open):  # most of them have ended long before
            self._deadlines = [entry for entry in self._deadlines if not entry[2].ended]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (deadline, handle.sequences[0].arrival, handle))

    def _ends(self, leaving: list[Sequence], reason: str) -> list[Event]:
        """The ends of those that have not ended yet."""
        return [self.batch.end(seq, reason) for seq in dict.fromkeys(leaving) if seq.finish_reason is None]

    def _fail(self, error: BaseException) -> None:
        """End everybody who was taken in with an error, and begin anew; but not if it is the device that failed."""
        if isinstance(error, DeviceError):
            self._dead = error
        self.batch.clear()
        told = error if isinstance(error, Exception) else DeviceError(f"step: broken off by {type(error).__name__}")
        for seq in self._open:
            seq.error = seq.error or told
        self._deliver([seq.end("error") for seq in self._open])

    def _forked(self) -> None:
        """In a forked child: locks are free, whoever held them; what was running is the parent's."""
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
