"""The table of KV pages: owners, and that no page is lost or handed out twice."""

from __future__ import annotations

import random

import pytest

from ostinato.errors import CacheFull
from ostinato.run.cache import PageTable, pages_of


@pytest.mark.parametrize(("tokens", "pages"), [(1, 1), (63, 1), (64, 1), (65, 2), (128, 2), (129, 3)])
def test_pages_of(tokens: int, pages: int) -> None:
    assert pages_of(tokens) == pages


def test_allocate_gives_the_lowest_pages_and_release_takes_them_back() -> None:
    table = PageTable(slots=2, max_len=256, pages=6)
    table.allocate(0, 65)
    table.allocate(1, 128)
    assert table.host.tolist() == [[1, 2, 0, 0], [3, 4, 0, 0], [0, 0, 0, 0]]
    assert table.free == 1 and table.fits(64) and not table.fits(65)
    table.release(0)
    table.allocate(0, 192)
    assert table.host.tolist() == [[1, 2, 5, 0], [3, 4, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("slot", "tokens"), [pytest.param(0, 64, id="slot taken"), pytest.param(1, 200, id="not enough pages")]
)
def test_allocate_refuses_what_it_cannot_give(slot: int, tokens: int) -> None:
    table = PageTable(slots=2, max_len=256, pages=5)
    table.allocate(0, 100)
    with pytest.raises(CacheFull, match=f"slot {slot}: expected a free slot"):
        table.allocate(slot, tokens)


@pytest.mark.parametrize(("tokens", "ok"), [(256, True), (257, False)])
def test_check_is_about_the_whole_cache(tokens: int, ok: bool) -> None:
    table = PageTable(slots=2, max_len=512, pages=5)
    table.allocate(0, 200)  # taken now, but not for ever
    if ok:
        table.check(tokens)
    else:
        with pytest.raises(CacheFull, match=r"expected at most 256 tokens.*found 257"):
            table.check(tokens)


def test_stale_has_the_rows_that_the_device_lacks() -> None:
    table = PageTable(slots=2, max_len=128, pages=4)
    table.stale.clear()
    table.allocate(1, 1)
    assert table.stale == {1}
    table.stale.clear()
    assert table.grow(1, 64) and table.stale == set()  # it has that page
    assert table.grow(1, 65) and table.stale == {1}


def test_no_page_is_lost_or_shared_in_a_long_random_run() -> None:
    rng, table, held = random.Random(0), PageTable(slots=5, max_len=640, pages=23), set()
    for _ in range(2000):
        slot, tokens = rng.randrange(5), rng.randint(1, 640)
        if slot in held:
            table.release(slot)
            held.remove(slot)
        elif table.fits(tokens):
            table.allocate(slot, tokens)
            held.add(slot)
        owned = [page for row in table.host.tolist() for page in row if page]
        assert len(owned) == len(set(owned)) == 22 - table.free
        assert all(1 <= page < 23 for page in owned) and not table.host[-1].any()
    for slot in held:
        table.release(slot)
    assert table.free == 22 and not table.host.any()
