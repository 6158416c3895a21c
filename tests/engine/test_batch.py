"""Batches over time: one-step-ahead scheduling changes no result, slots are reused, nothing leaks."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from configs import changed
from small import LLAMA, complete, events, logits, prompts, request, runner, sequence

import ostinato
from ostinato.errors import CacheFull, DeviceError
from ostinato.run.batch import Batch
from ostinato.run.engine import Engine
from ostinato.run.runner import Runner, Ticket
from ostinato.run.sequence import Sequence

MIXED = [  # one request of each kind; some reach their stop tokens early
    {},
    {"temperature": 0.7},
    {"temperature": 1.5, "top_k": 20},
    {"temperature": 1.0, "top_p": 0.8, "min_p": 0.02},
    {"temperature": 0.9, "repetition_penalty": 1.3, "frequency_penalty": 0.4},
    {"presence_penalty": 1.5},
    {"temperature": 2.0, "min_tokens": 12},
]


def mixed(count: int) -> list[Sequence]:
    """Requests of every kind and of many lengths; about half reach a stop token."""
    lengths = np.random.default_rng(3).integers(1, 40, count)
    return [
        sequence(p, max(int(n), kind.get("min_tokens", 0)), seed=i, stop=tuple(range(0, 131, 20)), **kind)
        for i, (p, n) in enumerate(zip(prompts(count), lengths, strict=True))
        for kind in [MIXED[i % len(MIXED)]]
    ]


@pytest.fixture(scope="module")
def on() -> Runner:
    return runner()


@pytest.mark.slow
def test_one_step_ahead_changes_nothing(on: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, results, decode = [], [], Runner.decode
    monkeypatch.setattr(Runner, "decode", lambda self: (steps.append(1), decode(self))[1])
    for lookahead in (True, False):
        steps.clear()
        wanted = mixed(40)
        tokens = complete(on, wanted, lookahead)
        results.append((tokens, [seq.finish_reason for seq in wanted], len(steps)))
    ahead, plain = results
    assert ahead[:2] == plain[:2] and set(plain[1]) == {"stop", "length"}
    assert ahead[2] > plain[2]  # more steps: some extra tokens were dropped, so steps were launched ahead


def test_at_most_two_steps_are_open_and_the_second_comes_before_the_first_is_read(
    on: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    decode, tokens = Runner.decode, Ticket.tokens
    monkeypatch.setattr(Runner, "decode", lambda self: (log.append("decode"), decode(self))[1])
    monkeypatch.setattr(Ticket, "tokens", lambda self: (log.append("tokens"), tokens(self))[1])
    assert len(list(events(on, [sequence([1, 2], 6)]))) == 6
    assert log == ["tokens", "decode", *["decode", "tokens"] * 4, "tokens"]  # prefill, then 5 steps, none unused


def test_a_sequence_that_wants_logprobs_is_not_run_ahead(on: Runner) -> None:
    seq = sequence([1, 2], 5, logprobs=1)
    found = list(events(on, [seq]))
    again = logits(on, [1, 2, *seq.tokens])
    for i, event in enumerate(found):
        assert event.logits is not None and event.logprobs == (seq.logprobs or [])[i]
        np.testing.assert_allclose(event.logits, again[1 + i], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2, 5, 16])
def test_requests_do_not_depend_on_the_batch(batch: int, on: Runner) -> None:
    alone = [complete(on, [seq])[0] for seq in mixed(20)]
    assert complete(runner(max_batch=batch), mixed(20)) == alone


def test_scarce_pages_delay_but_do_not_change(on: Runner) -> None:
    assert complete(runner(cache_tokens=192), mixed(20)) == complete(on, mixed(20))


def test_the_slot_of_a_finished_sequence_is_reused_immediately(on: Runner) -> None:
    """Four slots, six sequences of different lengths: when one ends, the next joins the batch immediately."""
    wanted = [sequence([i + 1], n) for i, n in enumerate((3, 20, 20, 20, 20, 20))]
    order = [event.seq for event in events(on, wanted)]
    last_of_first = max(i for i, seq in enumerate(order) if seq is wanted[0])
    first_of_fifth = order.index(wanted[4])
    assert 0 < first_of_fifth - last_of_first <= 2 * 4  # at most the step in flight and the rest of this one


@pytest.mark.parametrize("passes", [1, 2, 9])
def test_a_late_request_has_a_first_token_within_two_steps(on: Runner, passes: int) -> None:
    """The queue is checked before another step is launched ahead."""
    batch, early, late = Batch(on), sequence([1], 60), sequence([2, 3], 3)
    batch.scheduler.add(early)
    for _ in range(passes):
        batch.step()
    batch.scheduler.add(late)
    before = len(early.tokens)
    while not late.tokens:
        batch.step()
    assert len(early.tokens) - before <= 2
    batch.clear()


def test_waiting_for_pages_does_not_stop_launching_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second can start only when the first has ended; until then steps are still launched ahead."""
    log, decode, tokens = [], Runner.decode, Ticket.tokens
    monkeypatch.setattr(Runner, "decode", lambda self: (log.append("decode"), decode(self))[1])
    monkeypatch.setattr(Ticket, "tokens", lambda self: (log.append("tokens"), tokens(self))[1])
    complete(runner(cache_tokens=64), [sequence([1], 8), sequence([2], 8)])
    assert log == ["tokens", "decode", *["decode", "tokens"] * 6, "tokens"] * 2


@pytest.mark.parametrize("after", [1, 2, 9])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, DeviceError])
def test_a_failed_step_ends_all_sequences_and_frees_their_pages(
    after: int, kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    on = runner()
    engine = Engine(on)
    handles = [engine.add(seq.request) for seq in mixed(10)]
    for _ in range(after):
        engine.step()

    def fail(*_: object) -> None:
        raise kind

    with monkeypatch.context() as patch, pytest.raises(kind):
        patch.setattr("ostinato.run.runner.Ticket.tokens", fail)
        patch.setattr("ostinato.run.runner.Runner.prefill", fail)
        while True:
            engine.step()
    open_ = [handle for handle in handles if any(seq.finish_reason == "error" for seq in handle.sequences)]
    assert open_ and all(handle.ended for handle in handles)
    for handle in open_:
        with pytest.raises(DeviceError):
            engine.wait(handle)
    assert on.table.free == on.table.pages - 1
    assert complete(on, mixed(10)) == complete(runner(), mixed(10))  # the runner works as before


def test_what_can_never_fit_is_refused_when_it_is_added(on: Runner) -> None:
    engine = Engine(on)
    with pytest.raises(CacheFull):
        engine.add(request([1] * 500, 4000))
    assert engine.step() == [] and on.table.free == on.table.pages - 1


def test_logits_that_are_no_numbers_end_that_request_alone() -> None:
    untied = changed(LLAMA, tied=False)
    bad = runner(untied)
    engine = Engine(bad)
    ill, well = engine.add(request([7, 2], 4)), engine.add(request([1, 2], 4))
    bad.w.embed[7] = np.nan
    with pytest.raises(
        DeviceError, match="expected finite logits, found none after 2 tokens of prompt and 0 generated"
    ):
        engine.wait(ill, end=True)
    engine.wait(well, end=True)
    assert [seq.tokens for seq in well.sequences] == complete(runner(untied), [sequence([1, 2], 4)])
    assert bad.table.free == bad.table.pages - 1


def engine_memory() -> int:
    """Bytes allocated by the engine's code, without those of other threads of the test run."""
    ours = tracemalloc.Filter(True, str(Path(ostinato.__file__).parent / "*"))
    return sum(s.size for s in tracemalloc.take_snapshot().filter_traces([ours]).statistics("filename"))


@pytest.mark.slow
def test_ten_thousand_steps_take_no_memory() -> None:
    on = runner(changed(LLAMA, layers=1), max_batch=1)
    steps = 0

    def work(until: int) -> None:
        nonlocal steps
        while steps < until:
            steps += len(complete(on, [sequence([steps % 131], 400)])[0])

    work(800)
    tracemalloc.start()
    try:
        work(1200)
        before = engine_memory()
        work(10_000)
        grown = engine_memory() - before
    finally:
        tracemalloc.stop()
    assert grown < 20_000


def test_longest_possible_sequence(on: Runner) -> None:
    tokens = complete(on, [sequence([1] * 500, 12)])[0]
    assert len(tokens) == 12 and LLAMA.max_len == 512
