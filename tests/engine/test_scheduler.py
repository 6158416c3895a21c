"""The scheduler: admission, chunked prefill, ends of sequences, reuse of slots."""

from __future__ import annotations

import pytest
from small import sequence

from ostinato.run.cache import PageTable
from ostinato.run.scheduler import Scheduler
from ostinato.run.sequence import Sequence


def scheduler(slots: int = 2, pages: int = 9) -> Scheduler:
    return Scheduler(slots, PageTable(slots, 512, pages))


def add(s: Scheduler, lengths: list[int], max_tokens: int = 8) -> list[Sequence]:
    sequences = [sequence([1] * n, max_tokens) for n in lengths]
    for seq in sequences:
        s.add(seq)
    return sequences


ADMISSION = [  # slots, pages, reserves (prompt + 8), number admitted at first
    pytest.param(2, 9, [10, 10, 10], 2, id="slots"),
    pytest.param(4, 4, [64, 64, 64], 1, id="pages: 2 each, 3 there"),
    pytest.param(4, 5, [56, 56, 120, 56], 3, id="the third takes the last two"),
    pytest.param(4, 4, [56, 120, 10], 2, id="exactly full"),
    pytest.param(4, 4, [56, 180, 10], 1, id="nobody overtakes who waits for pages"),
]


@pytest.mark.parametrize(("slots", "pages", "lengths", "admitted"), ADMISSION)
def test_admission(slots: int, pages: int, lengths: list[int], admitted: int) -> None:
    s = scheduler(slots, pages=pages)
    sequences = add(s, lengths)
    assert s.admit() == sequences[:admitted] and s.running == sequences[:admitted]
    assert [seq.slot for seq in sequences] == [*range(admitted), *[-1] * (len(lengths) - admitted)]
    assert s.admit() == []


CHUNKS = [  # prompt lengths, prefill_rows, [[(sequence, first, last), ...] a step]
    pytest.param([5, 64], 128, [[(0, 0, 5), (1, 0, 64)]], id="two in one step"),
    pytest.param([65, 5], 128, [[(0, 0, 65)], [(1, 0, 5)]], id="whole tiles count"),
    pytest.param([300], 128, [[(0, 0, 128)], [(0, 128, 256)], [(0, 256, 300)]], id="longer than a step"),
    pytest.param([10, 100], 128, [[(0, 0, 10), (1, 0, 64)], [(1, 64, 100)]], id="the rest of a step is used"),
    pytest.param([128, 1], 128, [[(0, 0, 128)], [(1, 0, 1)]], id="exactly a step"),
]


@pytest.mark.parametrize(("lengths", "rows", "steps"), CHUNKS)
def test_chunks(lengths: list[int], rows: int, steps: list[list[tuple[int, int, int]]]) -> None:
    s = scheduler()
    sequences = add(s, lengths)
    s.admit()
    for expected in steps:
        chunks = s.prefill(rows)
        assert [(sequences.index(k.seq), k.first, k.last) for k in chunks] == expected
        assert sum(k.rows for k in chunks) <= rows and all(k.rows % 64 == 0 for k in chunks)
        assert all(k.first % 64 == 0 and k.ends == (k.last == len(k.seq.prompt)) for k in chunks)
    assert s.prefill(rows) == []


def test_at_most_sixteen_prompts_in_a_step() -> None:
    s = Scheduler(20, PageTable(20, 64, 21))
    add(s, [1] * 20)
    s.admit()
    assert len(s.prefill(64 * 20)) == 16


def test_a_free_slot_is_reused_immediately_and_others_stay() -> None:
    s = scheduler(slots=3)
    a, b, c, d = add(s, [5, 5, 5, 5])
    s.admit()
    s.release(b)
    assert s.admit() == [d] and (a.slot, c.slot, d.slot) == (0, 2, 1)


def test_clear_frees_everything() -> None:
    s = scheduler(slots=2)
    add(s, [5, 100, 5])
    s.admit()
    s.clear()
    assert (s.running, len(s.waiting), s.table.free) == ([], 0, 8)
    assert len(s.admit()) == 0 and [seq.slot for seq in add(s, [1])] == [-1]


def test_clear_begins_anew_after_what_was_broken_off() -> None:
    """Ctrl-C between taking pages and slot, and between leaving the queue and joining the running sequences."""
    s = scheduler(slots=2)
    s.table.allocate(0, 5)
    (gone,) = add(s, [5])
    s.waiting.remove(gone)
    s.clear()
    assert s.table.free == 8
    add(s, [5, 5])
    assert [seq.slot for seq in s.admit()] == [0, 1]
