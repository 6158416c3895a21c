"""The same bits, tokens and logits, whatever the engine does in between: a warm prefix cache, none, a flushed one,
company, few pages, pages in host memory, prompts computed again, passes of another size.

And the inverse: mistakes are planted that must show, each in the way that it would be made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from configs import changed
from small import LLAMA, MODELS, request, runner

from ostinato.config import Scheduling
from ostinato.ops.cuda import CudaOps
from ostinato.ops.numpy import NumpyOps
from ostinato.run.engine import Engine
from ostinato.run.runner import Runner
from ostinato.run.scheduler import Counters, Scheduler
from ostinato.run.sequence import Request, Sequence
from ostinato.run.slots import SlotSampling

KINDS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.5},
    {"temperature": 0.9, "repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.5},
    {"temperature": 1.0, "top_p": 0.9, "min_p": 0.01},
]
Answer = list[tuple[list[int], list[np.ndarray]]]  # of each completion: tokens, logits of each


def wanted(tails: tuple[int, ...], prefix: int, tokens: int, vocab: int, n: int = 1) -> list[Request]:
    """Prompts that begin alike, two of them equal, of every kind of sampling; every other one tells its logits."""
    rng = np.random.default_rng(prefix)
    begin = rng.integers(0, vocab, prefix).tolist()
    ends = [rng.integers(0, vocab, tail).tolist() for tail in (*tails, tails[0])]
    ends[-1] = ends[0]
    return [
        request([*begin, *end], tokens, 3 * i, n=n, logprobs=0 if i % 2 else None, **KINDS[i % len(KINDS)])
        for i, end in enumerate(ends)
    ]


def answers(on: Runner, requests: list[Request], lookahead: bool = True, alone: bool = False) -> list[Answer]:
    """What the engine makes of them, together or one after the other; afterwards every page and place is free."""
    engine, found = Engine(on, lookahead), []
    for some in [[r] for r in requests] if alone else [requests]:
        handles = [engine.add(r, listen=True) for r in some]
        while not all(handle.ended for handle in handles):
            engine.step()
        for handle in handles:
            events = handle.take()
            found.append([
                (seq.tokens, [e.logits for e in events if e.seq is seq and e.logits is not None])
                for seq in handle.sequences
            ])  # fmt: skip
    assert engine.step() == [] and on.table.free == on.table.pages - 1
    assert on.swap is None or on.swap.free == on.swap.places
    answers.counters = engine.counters  # type: ignore[attr-defined]
    return found


def counters() -> Counters:
    """Of the engine that `answers` used last."""
    return answers.counters  # type: ignore[attr-defined]


def same(found: list[Answer], expected: list[Answer]) -> bool:
    """To the bit."""
    return all(
        a == b and len(x) == len(y) and all(np.array_equal(p, q) for p, q in zip(x, y, strict=True))
        for one, other in zip(found, expected, strict=True)
        for (a, x), (b, y) in zip(one, other, strict=True)
    )


# -- ways to the same answer -------------------------------------------------------------------------------------------


def cold(make: Callable[..., Runner], requests: list[Request]) -> list[Answer]:
    """Each alone, without a prefix cache, no step ahead, in a cache that is never short."""
    return answers(make(prefix_cache=False), requests, lookahead=False, alone=True)


def warm(make: Callable[..., Runner], requests: list[Request]) -> list[Answer]:
    """Alone, after all of them have run."""
    on = make()
    answers(on, requests)
    found = answers(on, requests, alone=True)
    assert counters().cached_tokens == sum((len(r.ids) - 1) // 64 * 64 * r.params.n for r in requests)
    return found


def flushed(make: Callable[..., Runner], requests: list[Request]) -> list[Answer]:
    """After all of them have run and the cache was flushed."""
    on = make()
    answers(on, requests)
    Engine(on).flush()
    assert on.table.pool.kept == 0
    return answers(on, requests)


def together(make: Callable[..., Runner], requests: list[Request]) -> list[Answer]:
    """At once: those that begin alike share pages in the very pass that writes them."""
    found = answers(make(), requests)
    assert counters().cached_tokens > 0
    return found


def without(make: Callable[..., Runner], requests: list[Request]) -> list[Answer]:
    """At once, without a prefix cache."""
    found = answers(make(prefix_cache=False), requests)
    assert counters().cached_tokens == 0
    return found


def chunked(make: Callable[..., Runner], requests: list[Request]) -> list[Answer]:
    """In passes of one tile."""
    return answers(make(prefill_rows=64), requests)


def _short(make: Callable[..., Runner], requests: list[Request], **options: Any) -> list[Answer]:
    """With pages for the longest of them and little more, and nothing set aside for those that grow."""
    longest = max(-(-r.longest // 64) for r in requests)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ostinato.run.scheduler._grows", lambda seq: False)
        return answers(make(cache_tokens=64 * (longest + 1), **options), requests)


def swapped(make: Callable[..., Runner], requests: list[Request]) -> list[Answer]:
    """Preempted to host memory."""
    found = _short(make, requests)
    assert counters().swapped > 0
    return found


def replayed(make: Callable[..., Runner], requests: list[Request]) -> list[Answer]:
    """Preempted without host memory: begun anew."""
    found = _short(make, requests, swap_gb=0)
    assert counters().replayed > 0
    return found


def swapped_in_pieces(make: Callable[..., Runner], requests: list[Request]) -> list[Answer]:
    """Preempted to host memory that consists of blocks of one page, and without a prefix cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ostinato.run.swap.BLOCK", 1)
        found = _short(make, requests, prefix_cache=False)
    assert counters().swapped > 0
    return found


WAYS = (warm, flushed, together, without, chunked, swapped, replayed, swapped_in_pieces)
SHORT = (swapped, replayed, swapped_in_pieces)  # of pages
WIDE = wanted((1, 33, 64), 140, 4, LLAMA.vocab)  # tails of one row, of part of a page, of a page
DEEP = wanted((50, 56), 70, 12, LLAMA.vocab)  # which grow by a page


ON = {name: replace(MODELS[name], layers=MODELS[name].layers[:2]) for name in ("llama", "qwen3", "smollm3")}
ON["mistral"] = changed(MODELS["mistral"], layers=2, window=100)


def on_numpy(name: str) -> Callable[..., Runner]:
    return lambda **options: runner(ON[name], **options)


@cache
def expected(name: str, deep: bool) -> list[Answer]:
    """Of WIDE or DEEP."""
    return cold(on_numpy(name), DEEP if deep else WIDE)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("name", ON)
def test_every_schedule_of_work_gives_the_same_bits(name: str, way: Callable) -> None:
    """mistral: every layer has a window, so pages behind it are let go of; smollm3: one layer has."""
    deep = way in SHORT
    assert same(way(on_numpy(name), DEEP if deep else WIDE), expected(name, deep))


@pytest.mark.parametrize("tail", [*range(1, 65, 9), 64])
def test_tails_of_a_shared_prefix(tail: int) -> None:
    requests = wanted((tail,), 192, 3, LLAMA.vocab)
    make = on_numpy("llama")
    assert same(warm(make, requests), cold(make, requests))


@pytest.mark.parametrize("way", [together, swapped, replayed], ids=lambda way: way.__name__)
def test_completions_of_one_prompt(way: Callable) -> None:
    requests = wanted((55,), 65, 12, LLAMA.vocab, n=3)
    make = on_numpy("llama")
    assert same(way(make, requests), cold(make, requests))


def test_sequences_that_grow_beyond_the_pages() -> None:
    """By more than what was set aside for each when it began."""
    requests = wanted((1, 50), 70, 140, LLAMA.vocab)
    found = answers(runner(ON["llama"], cache_tokens=6 * 64), requests)
    assert counters().swapped > 0 and same(found, cold(on_numpy("llama"), requests))


def test_n_computes_the_prompt_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 tokens: 15 pages once, and 8 tails of a page at most."""
    on, rows = runner(changed(LLAMA, max_len=2048), max_batch=8), []
    run = on.prompts.run
    monkeypatch.setattr(
        on.prompts, "run", lambda pieces, ends: (rows.append(sum(len(p.ids) for p in pieces)), run(pieces, ends))[1]
    )
    answers(on, [request([i % 131 for i in range(1000)], 2, n=8)])
    assert sum(rows) == 960 + 8 * 40 and counters().cached_tokens == 7 * 960


# -- kernels -----------------------------------------------------------------------------------------------------------

TINY = changed(LLAMA, layers=1, vocab=256, hidden=64, ffn=64, heads=4, kv_heads=2, head_dim=16, max_len=512)


@pytest.mark.parametrize("way", [warm, together, swapped, replayed], ids=lambda way: way.__name__)
@pytest.mark.parametrize("window", [0, 100], ids=["all", "window"])
def test_kernels_lead_to_the_same_bits(device: Any, way: Callable, window: int) -> None:
    def make(**options: Any) -> Runner:
        return runner(changed(TINY, window=window), CudaOps(device, "bfloat16"), graph="off", **options)

    requests = wanted((55,), 70, 6, TINY.vocab) if way in SHORT else wanted((1, 40), 70, 3, TINY.vocab)
    assert same(way(make, requests), cold(make, requests))


# -- planted mistakes --------------------------------------------------------------------------------------------------


def keep_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that decode steps have filled enter the prefix cache, under the key that they would have as a prompt."""
    grow = Scheduler.grow

    def keep(self: Scheduler, rows: list[Sequence]) -> bool:
        from ostinato.run.prefix import page_keys

        done = grow(self, rows)
        for seq in rows:
            keys = page_keys(self._beginning or b"", "", [*seq.prompt, *seq.tokens])
            for i, key in enumerate(keys[: self.table.owned(seq.slot) - 1]):
                self.table.keep(seq.slot, i, key)
        return done

    monkeypatch.setattr(Scheduler, "grow", keep)


def test_a_decoded_page_that_enters_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second turn, whose prompt has the first answer in it."""

    def second_turn() -> tuple[list[Answer], list[Answer]]:
        on = runner()
        first = answers(on, [request(list(range(60)), 90)])[0][0][0]
        turn = [request([*range(60), *first, 7], 4, logprobs=0)]
        return answers(on, turn), cold(runner, turn)

    assert same(*second_turn())
    keep_decoded(monkeypatch)
    assert not same(*second_turn())


def test_a_salt_that_is_ignored_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def cached() -> int:
        on = runner()
        for salt in ("a", "b"):
            answers(on, [replace(request(list(range(130)), 2), schedule=Scheduling(cache_salt=salt))])
        return counters().cached_tokens

    assert cached() == 0
    from ostinato.run import prefix

    page_keys = prefix.page_keys
    monkeypatch.setattr(prefix, "page_keys", lambda beginning, salt, ids: page_keys(beginning, "", ids))
    assert cached() == 128


def test_a_shared_page_that_is_written_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last page of a prompt that is not full is kept, and its first user goes on writing there."""
    prefill = Scheduler.prefill

    def keep_too_much(self: Scheduler, rows: int) -> list:
        chunks = prefill(self, rows)
        for chunk in chunks:
            if chunk.ends:
                self.table.keep(chunk.seq.slot, self.table.owned(chunk.seq.slot) - 1, b"the last one")
                chunk.seq.keys = [*chunk.seq.keys, b"the last one"]
        return chunks

    def share_too_much(self: Scheduler, seq: Sequence) -> None:
        if seq.prefilled == 0 and self.table.share(seq.slot, b"the last one"):
            seq.prefilled = 40

    def found() -> list[Answer]:
        on, prompt = runner(), list(range(40))
        answers(on, [request(prompt, 20, temperature=1.5)])
        return answers(on, [request([*prompt, 5], 20, logprobs=0), request([*prompt, 6], 20, 1, logprobs=0)])

    expected = found()
    monkeypatch.setattr(Scheduler, "prefill", keep_too_much)
    monkeypatch.setattr(Scheduler, "_share", share_too_much)
    assert not same(found(), expected)


def test_counts_that_are_lost_on_resume_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    set_sampling = SlotSampling.set

    def forget(self: SlotSampling, sequences: list[Sequence]) -> None:
        computed = [seq.computed for seq in sequences]
        for seq in sequences:
            seq.computed = 0
        set_sampling(self, sequences)
        for seq, count in zip(sequences, computed, strict=True):
            seq.computed = count

    requests = [request(r.ids, r.max_tokens, r.seed, frequency_penalty=1.5) for r in DEEP]
    make = on_numpy("llama")
    right = cold(make, requests)
    assert same(swapped(make, requests), right)
    monkeypatch.setattr(SlotSampling, "set", forget)
    assert not same(swapped(make, requests), right)


@pytest.mark.parametrize("op", ["save_pages", "load_pages"])
def test_pages_that_are_not_copied_are_caught(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NumpyOps, op, lambda *_: None)
    with np.errstate(all="ignore"):
        assert not same(swapped(on_numpy("llama"), DEEP), expected("llama", True))


def test_a_recomputation_with_other_tokens_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it may where sums depend on the company."""
    from ostinato.errors import DeviceError

    on = runner(cache_tokens=256, swap_gb=0)
    engine, restart = Engine(on), Sequence.restart

    def change(self: Sequence) -> None:
        restart(self)
        self.tokens[0] = (self.tokens[0] + 1) % 131

    monkeypatch.setattr(Sequence, "restart", change)
    handles = [engine.add(request([i] * 60, 100)) for i in range(3)]
    while not all(handle.ended for handle in handles):
        engine.step()
    errors = [handle.error for handle in handles if handle.error]
    assert errors and all(
        isinstance(e, DeviceError) and "replay after preemption: expected token" in str(e) for e in errors
    )
    assert on.table.free == on.table.pages - 1
