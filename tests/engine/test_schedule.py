"""Who runs when there is not room for all: pages on demand, preemption, prompts in between, priority, deadlines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from configs import changed
from small import LLAMA, complete, request, runner, sequence

from ostinato import QueueFull, Scheduling
from ostinato.ops.cublas import CublasOps
from ostinato.ops.numpy import NumpyOps
from ostinato.run.batch import Batch
from ostinato.run.cache import PageTable
from ostinato.run.engine import Engine
from ostinato.run.handle import Handle
from ostinato.run.prefix import root
from ostinato.run.runner import Runner
from ostinato.run.scheduler import HEADROOM, Copies, Scheduler
from ostinato.run.sequence import Sequence
from ostinato.run.swap import SwapSpace

SMALL = changed(LLAMA, layers=1, hidden=24, heads=3, kv_heads=1, head_dim=8, ffn=24, max_len=4096)


def scheduler(slots: int = 4, pages: int = 9, places: int = 0, prefixes: bool = False, window: int = 0) -> Scheduler:
    swap = SwapSpace(places, 1, lambda n: n) if places else None
    return Scheduler(slots, PageTable(slots, 1024, pages), swap, root("test") if prefixes else None, window)


def add(s: Scheduler, *lengths: int, tokens: int = 500, **schedule: int) -> list[Sequence]:
    """Prompts of different tokens."""
    made = [Sequence(replace(request([i] * n, tokens), schedule=Scheduling(**schedule))) for i, n in enumerate(lengths)]  # pyright: ignore[reportArgumentType]
    for seq in made:
        s.add(seq)
    return made


def decode(s: Scheduler, steps: int) -> None:
    """Run decode steps of all sequences, while there are pages."""
    for seq in s.running:
        if seq.filled and not seq.computed:
            seq.tokens, seq.computed = [0], 1
    for _ in range(steps):
        if not s.grow(s.decoding):
            return
        for seq in s.decoding:
            seq.tokens.append(0)
            seq.computed += 1


# -- pages on demand ---------------------------------------------------------------------------------------------------


def test_a_sequence_takes_the_pages_of_its_prompt_and_grows() -> None:
    s = scheduler()
    (seq,) = add(s, 100)
    s.admit()
    s.prefill(2048)
    assert s.table.owned(seq.slot) == 2
    decode(s, 28)
    assert s.table.owned(seq.slot) == 2  # the last of them at position 127
    decode(s, 1)
    assert s.table.owned(seq.slot) == 3


def test_a_page_is_left_for_each_that_can_grow() -> None:
    """8 pages, prompts of one page: room for three sequences that can grow, two pages each, and two that cannot."""
    s = scheduler(slots=8)
    grown = add(s, 10, 10, 10, 10, 10)
    assert s.admit() == grown[:4]
    s.release(grown[4])
    s.release(grown[3])
    fixed = add(s, 10, 10, 10, tokens=50)
    assert s.admit() == fixed[:2]


def test_sixteen_requests_without_max_tokens_run_together() -> None:
    engine = Engine(runner(SMALL, max_batch=16, cache_tokens=4096))
    for i in range(16):
        engine.add(request([i], 4000))
    engine.step()
    assert len(engine.batch.scheduler.running) == 16
    engine.abort_all()


def test_windows_let_pages_go() -> None:
    """A sequence of 700 tokens in 8 pages."""
    s = scheduler(window=100)
    (seq,) = add(s, 500)
    s.admit()
    while not seq.filled:
        assert s.prefill(128)
        assert len(s.table.in_use(seq.slot)) <= 2 + 2 + 1
    decode(s, 200)
    assert len(seq.tokens) == 201 and len(s.table.in_use(seq.slot)) <= 3
    s.release(seq)
    assert s.table.free == 8


# -- preemption --------------------------------------------------------------------------------------------------------


def pressed(s: Scheduler, *sequences: Sequence) -> Copies | None:
    """Let them run until the pages are spent, then preempt."""
    assert [*s.admit()] == [*sequences]
    s.prefill(2048)
    decode(s, 1000)
    return s.preempt()


@pytest.mark.parametrize(("priorities", "victim"), [((0, 0, 0), 2), ((0, 5, 0), 1), ((1, 0, 0), 0), ((1, 1, 0), 1)])
def test_the_least_urgent_and_latest_is_preempted(priorities: tuple[int, ...], victim: int) -> None:
    s = scheduler()
    sequences = [seq for i, p in enumerate(priorities) for seq in add(s, 10, priority=p)]
    s.admit()
    s.prefill(2048)
    decode(s, 1000)
    s.preempt()
    assert [seq.preempted for seq in sequences] == [i == victim for i in range(3)]
    assert sequences[victim] in s.waiting and sequences[victim].slot == -1


def test_pages_go_to_places_and_come_back_to_other_pages() -> None:
    s = scheduler(places=8)
    a, b = add(s, 10, 10)
    before = s.table.host[:2].copy()
    copies = pressed(s, a, b)
    assert copies is not None and len(copies.pages) == len(copies.places) == 4 and b.computed == 247
    assert s.swap is not None and s.swap.free == 4 and s.counters.swapped == 1
    s.release(a)
    s.table.allocate(3, 70)  # somebody else has the lowest pages now
    assert s.admit() == [b]
    back = s.resume(b)
    assert back is not None and back.places == copies.places and back.pages == [3, 4, 5, 6]
    assert s.table.host[b.slot, :5].tolist() == [*back.pages, 0] and s.swap.free == 8 and b.swapped is None
    assert not np.array_equal(s.table.host[:2], before)


def test_resuming_too_early_would_preempt_again() -> None:
    """Hysteresis: a preempted sequence waits for more than its own pages, but not for ever."""
    s = scheduler(places=8)
    a, b = add(s, 10, 10)
    pressed(s, a, b)  # 4 pages each
    s.table.let_go(a.slot, 64 * 3)
    assert s.table.free == 7 and s.admit() == []  # 4, a page for each to grow, and HEADROOM
    assert HEADROOM == 4
    s.release(a)
    assert s.admit() == [b]


def test_without_swap_space_a_sequence_is_recomputed() -> None:
    s = scheduler(places=3)
    a, b = add(s, 10, 10)
    assert pressed(s, a, b) is None
    assert (b.prefilled, b.computed, len(b.tokens)) == (0, 0, 247) and s.counters.replayed == 1
    assert s.swap is not None and s.swap.free == 3


def test_a_prompt_that_is_not_complete_is_not_swapped() -> None:
    s = scheduler(places=8)
    a, b = add(s, 10, 300)
    s.admit()
    s.prefill(128)
    decode(s, 1)
    assert s.preempt() is None and b.prefilled == 0 and s.swap is not None and s.swap.free == 8
    assert (s.counters.preempted, s.counters.replayed) == (1, 0) and a.slot >= 0


# -- the prefix cache --------------------------------------------------------------------------------------------------


def shared(s: Scheduler, ids: list[int]) -> int:
    """Tokens that a prompt finds in the cache."""
    seq = sequence(ids, 1)
    s.add(seq)
    s.admit()
    while not seq.filled:
        s.prefill(2048)
    s.release(seq)
    return seq.cached


@pytest.mark.parametrize(
    ("length", "cached"), [(63, 0), (64, 0), (65, 64), (128, 64), (129, 128), (200, 192)], ids=lambda n: str(n)
)
def test_one_token_at_least_is_computed(length: int, cached: int) -> None:
    s = scheduler(prefixes=True)
    assert shared(s, [*range(length)]) == 0
    assert shared(s, [*range(length)]) == cached


def test_a_prompt_finds_what_is_left_of_its_prefix() -> None:
    s = scheduler(pages=6, prefixes=True)  # 5 pages
    assert shared(s, [*range(256)]) == 0
    assert shared(s, [*range(1000, 1130)]) == 0  # takes the empty one, and the end of the first prompt
    assert shared(s, [*range(256)]) == 128


def test_pages_are_shared_within_a_pass_and_counted_once() -> None:
    """Eight prompts of 130 tokens in 12 pages: two pages once, and one each."""
    s = scheduler(slots=8, pages=13, prefixes=True)
    wanted = [sequence([*range(130)], 10) for _ in range(8)]
    for seq in wanted:
        s.add(seq)
    assert s.admit() == wanted
    chunks = s.prefill(2048)
    assert [(chunk.first, chunk.last) for chunk in chunks] == [(0, 130), *[(128, 130)] * 7]
    assert s.table.free == 12 - 2 - 8
    for seq in wanted:
        s.release(seq)
    assert s.table.free == 12


@pytest.mark.parametrize("ops", [CublasOps, NumpyOps])
def test_the_prefix_cache_is_off_without_batch_invariance(ops: type) -> None:
    assert ops.exact is (ops is NumpyOps)


# -- long prompts in between -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on() -> Runner:
    return runner(SMALL, cache_tokens=16384, max_batch=4)


def launches(on: Runner, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each pass that is launched from now on; 0 for a decode step."""
    log: list[int] = []
    prefill, decode = Runner.prefill, Runner.decode
    monkeypatch.setattr(Runner, "prefill", lambda r, c: (log.append(sum(k.rows for k in c)), prefill(r, c))[1])
    monkeypatch.setattr(Runner, "decode", lambda r: (log.append(0), decode(r))[1])
    return log


def test_a_stream_waits_for_one_pass_of_few_rows_at_most(on: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ostinato.run.batch.BETWEEN", 128)
    log, engine = launches(on, monkeypatch), Engine(on)
    early = engine.add(request([1], 200))
    for _ in range(4):
        engine.step()
    late = engine.add(request([*range(131)] * 6, 2))  # 786 tokens
    before = len(log)
    while not late.sequences[0].tokens:
        engine.step()
    passes = log[before:]
    assert [rows for rows in passes if rows] == [*[128] * 6, 64]
    assert all(a == 0 or b == 0 for a, b in pairwise(passes))
    assert passes.count(0) <= 9  # the prompt's own first token waits for no more steps than there are passes
    engine.abort(early, late)
    engine.step()


def test_alone_a_prompt_runs_in_large_passes(on: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ostinato.run.batch.BETWEEN", 128)
    log = launches(on, monkeypatch)
    complete(on, [sequence([*range(129)] * 24, 2)])  # 3,096 tokens
    assert log[0] == on.prefill_rows == 512


def test_a_prompt_in_between_does_not_stop_launching_ahead(on: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next pass is always launched before the one before is read."""
    batch, open_ = Batch(on), []
    batch.scheduler.add(sequence([1], 40))
    for _ in range(3):
        batch.step()
    batch.scheduler.add(sequence([*range(130)] * 16, 2))  # 2,080 tokens
    for _ in range(8):
        batch.step()
        open_.append(len(batch._flight))
    assert open_ == [1] * 8
    batch.clear()


# -- priority, queue, deadlines, fairness ------------------------------------------------------------------------------


def firsts(engine: Engine, handles: list[Handle]) -> list[int]:
    """Numbers of the handles in the order of their first tokens."""
    order: list[int] = []
    while not all(handle.ended for handle in handles):
        engine.step()
        order += [i for i, h in enumerate(handles) if h.sequences[0].tokens and i not in order]
    return order


def test_priority_and_keys_decide_the_order() -> None:
    engine = Engine(runner(SMALL, max_batch=1))
    orders = [Scheduling(key="a"), Scheduling(key="a"), Scheduling(key="b"), Scheduling(-1, key="c")]
    handles = [engine.add(replace(request([i], 3), schedule=order)) for i, order in enumerate(orders)]
    assert firsts(engine, handles) == [3, 0, 2, 1]


def test_the_queue_has_a_limit() -> None:
    engine = Engine(runner(SMALL, max_batch=2), max_queue=1)
    handles = [engine.add(request([i], 3)) for i in range(3)]
    with pytest.raises(QueueFull, match=r"expected at most 3 sequences at a time \(max_batch and max_queue\), found 3"):
        engine.add(request([4], 3))
    engine.step()
    with pytest.raises(QueueFull):
        engine.add(request([4], 3))
    while not handles[0].ended:
        engine.step()
    with pytest.raises(QueueFull, match="found 1 and 3 more"):
        while True:
            engine.step()
            if handles[2].sequences[0].tokens:
                engine.add(request([4], 3, n=3))
    engine.abort_all()
    assert engine.add(request([4], 3, n=3)).sequences


def test_a_deadline_ends_waiting_and_running_requests() -> None:
    now = [0.0]
    engine = Engine(runner(SMALL, max_batch=1), now=lambda: now[0])
    runs = engine.add(replace(request([1], 100), schedule=Scheduling(timeout=5)))
    waits = engine.add(replace(request([2], 100), schedule=Scheduling(timeout=4)))
    later = engine.add(replace(request([3], 3), schedule=Scheduling(timeout=1000)))
    for _ in range(6):
        engine.step()
    now[0] = 4.5
    engine.step()
    assert (waits.ended, runs.ended) == (True, False) and waits.output().finish_reason == "timeout"
    now[0] = 5.0
    engine.step()
    assert runs.ended and 3 < len(runs.output().token_ids) < 100 and runs.output().finish_reason == "timeout"
    engine.wait(later, end=True)
    assert later.output().finish_reason == "length"


def test_deadlines_of_those_that_have_ended_are_forgotten() -> None:
    engine = Engine(runner(SMALL))
    for _ in range(120):
        engine.wait(engine.add(replace(request([1], 1), schedule=Scheduling(timeout=1e6))), end=True)
    assert len(engine._deadlines) < 100


# -- abort at every stage ----------------------------------------------------------------------------------------------

Stage = Callable[[Sequence], bool]
STAGES: dict[str, Stage] = {
    "waiting": lambda seq: seq.slot < 0 and not seq.preempted,
    "begun": lambda seq: 0 < seq.prefilled < len(seq.prompt),
    "prompt under way": lambda seq: seq.filled and not seq.computed,
    "decoding": lambda seq: seq.computed > 3,
    "swapped": lambda seq: seq.swapped is not None,
    "to be replayed": lambda seq: seq.preempted and seq.swapped is None and seq.slot < 0,
    "replayed": lambda seq: 0 < seq.computed < len(seq.tokens),
    "back again": lambda seq: seq.preempted and seq.slot >= 0 and seq.computed > 0,
}


@pytest.mark.parametrize("stage", STAGES)
def test_abort_at_every_stage(stage: str) -> None:
    """Nothing is lost, and those that go on have their answers."""
    on = runner(SMALL, cache_tokens=64 * 9, max_batch=3, prefill_rows=64, swap_gb=0 if "repl" in stage else 1)
    engine = Engine(on)
    requests = [request([i, *range(100)], 150, seed=i, temperature=1.5) for i in range(4)]
    handles = [engine.add(r) for r in requests]
    victim, steps = None, 0
    while victim is None:
        engine.step()
        steps += 1
        assert steps < 3000, "nobody ever came to this stage"
        victim = next((h for h in reversed(handles) if not h.ended and STAGES[stage](h.sequences[0])), None)
    engine.abort(victim)
    assert victim.ended and victim.output().finish_reason == "abort"
    if stage in ("waiting", "decoding"):
        for handle in handles:
            engine.wait(handle, end=True)
        alone = [complete(runner(SMALL), [sequence(r.ids, 150, r.seed, temperature=1.5)])[0] for r in requests]
        for handle, tokens in zip(handles, alone, strict=True):
            found = handle.sequences[0].tokens
            assert found == tokens if handle is not victim else found == tokens[: len(found)]
    engine.abort_all()
    engine.step()
    assert on.table.free == on.table.pages - 1 and engine.batch.idle
    assert on.swap is None or on.swap.free == on.swap.places
