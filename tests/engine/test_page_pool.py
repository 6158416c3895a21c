"""Pages that are shared by a key, counted and evicted; keys of prompts; places in host memory."""

from __future__ import annotations

import random

import pytest

from ostinato.run.cache import PageTable
from ostinato.run.pages import PagePool
from ostinato.run.prefix import page_keys, root
from ostinato.run.swap import SwapSpace

# -- the pool ----------------------------------------------------------------------------------------------------------


def test_a_kept_page_is_free_and_found_until_its_place_is_needed() -> None:
    pool = PagePool(4)
    kept = pool.take()
    pool.keep(kept, b"a")
    pool.give_back(kept)
    assert pool.free == 3 and pool.kept == 1
    assert [pool.take(), pool.take()] == [2, 3]  # the others first
    assert pool.share(b"a") == kept and pool.free == 0
    pool.give_back(kept)
    assert pool.take() == kept and pool.share(b"a") is None and pool.kept == 0


def test_pages_are_evicted_in_the_order_in_which_they_were_given_back() -> None:
    pool = PagePool(4)
    for key in (b"a", b"b", b"c"):
        pool.keep(pool.take(), key)
    for page in (2, 3, 1):
        pool.give_back(page)
    assert pool.share(b"b") == 2  # used once more: it is the youngest now
    pool.give_back(2)
    assert [pool.take() for _ in range(3)] == [3, 1, 2]


def test_a_shared_page_stays_until_its_last_user_has_left() -> None:
    pool = PagePool(2)
    page = pool.take()
    pool.keep(page, b"a")
    assert pool.used(b"a") and not pool.used(b"b")
    assert pool.share(b"a") == page
    pool.give_back(page)
    assert pool.free == 0 and pool.used(b"a")
    pool.give_back(page)
    assert pool.free == 1 and not pool.used(b"a")


def test_of_two_pages_of_one_key_the_first_is_kept() -> None:
    pool = PagePool(3)
    first, second = pool.take(), pool.take()
    pool.keep(first, b"a")
    pool.keep(second, b"a")
    assert pool.share(b"a") == first and pool.kept == 1


def test_flush_forgets_keys_and_leaves_pages_to_their_users() -> None:
    pool = PagePool(4)
    used, idle = pool.take(), pool.take()
    pool.keep(used, b"a")
    pool.keep(idle, b"b")
    pool.give_back(idle)
    pool.flush()
    assert pool.kept == 0 and pool.free == 2 and pool.share(b"a") is None
    pool.give_back(used)
    assert sorted(pool.take() for _ in range(3)) == [1, 2, 3]


def test_no_page_is_lost_in_a_long_random_run() -> None:
    rng, table = random.Random(3), PageTable(slots=6, max_len=640, pages=23)
    running: set[int] = set()
    for _ in range(3000):
        slot = rng.randrange(6)
        if slot not in running:
            table.allocate(slot)
            running.add(slot)
        elif rng.random() < 0.2:
            table.release(slot)
            running.remove(slot)
        elif rng.random() < 0.3 and table.owned(slot) < 10:
            table.share(slot, bytes([rng.randrange(9)]))
        elif rng.random() < 0.1:
            table.let_go(slot, rng.randrange(64 * (table.owned(slot) + 1)))
        elif table.grow(slot, min(640, 64 * table.owned(slot) + 1)) and table.owned(slot):
            table.keep(slot, table.owned(slot) - 1, bytes([rng.randrange(9)]))
        used = {page for row in table.host.tolist() for page in row if page}
        assert len(used) == 22 - table.free and table.pool.kept <= 9
        for slot in running:
            own = [page for page in table.host[slot].tolist() if page]
            assert own == [page for _, page in table.in_use(slot)]
    for slot in running:
        table.release(slot)
    assert table.free == 22 and not table.host.any()


@pytest.mark.parametrize(("tokens", "left"), [(0, 4), (63, 4), (64, 3), (130, 2), (256, 0)])
def test_let_go_gives_back_whole_pages(tokens: int, left: int) -> None:
    table = PageTable(slots=1, max_len=256, pages=5)
    table.allocate(0, 256)
    table.let_go(0, tokens)
    table.let_go(0, tokens)
    assert len(table.in_use(0)) == left and table.free == 4 - left and table.owned(0) == 4


# -- keys --------------------------------------------------------------------------------------------------------------

IDS = list(range(200))
OTHERS = [
    pytest.param(root("m"), "", IDS[:130], [True, True], id="another tail"),
    pytest.param(root("m"), "", [*IDS[:100], 5, *IDS[101:]], [True, False, False], id="another token in page 1"),
    pytest.param(root("m"), "", [5, *IDS[1:]], [False] * 3, id="another first token"),
    pytest.param(root("m"), "s", IDS, [False] * 3, id="another salt"),
    pytest.param(root("n"), "", IDS, [False] * 3, id="another model"),
    pytest.param(root("m"), "", IDS[64:], [False] * 2, id="the same page elsewhere"),
    pytest.param(root("m"), "", IDS[:63], [], id="no full page"),
]


@pytest.mark.parametrize(("beginning", "salt", "ids", "equal"), OTHERS)
def test_a_key_stands_for_all_tokens_up_to_its_end(beginning: bytes, salt: str, ids: list, equal: list[bool]) -> None:
    keys = page_keys(root("m"), "", IDS)
    assert len(set(keys)) == 3
    assert [a == b for a, b in zip(page_keys(beginning, salt, ids), keys, strict=False)] == equal


def test_parts_of_the_root_do_not_run_into_one_another() -> None:
    assert root("ab", "c") != root("a", "bc")


# -- host memory -------------------------------------------------------------------------------------------------------


def test_places_are_given_out_once_and_blocks_made_when_needed() -> None:
    made: list[int] = []
    space = SwapSpace(5, 128 << 20, lambda n: (made.append(n), f"block {len(made)}")[1])
    assert space.take(6) is None and space.free == 5
    first = space.take(1)
    assert first == [0] and made == []
    rest = space.take(4)
    assert rest is not None and space.take(1) is None
    moves = [*space.by_block([10, 11, 12, 13], rest)]
    assert moves == [("block 1", [10], [1]), ("block 2", [11, 12], [0, 1]), ("block 3", [13], [0])]
    assert made == [2, 2, 1]
    space.give_back([1, 2])
    assert sorted(space.take(2) or []) == [1, 2]
