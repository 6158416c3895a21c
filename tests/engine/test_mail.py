"""The token ring buffer: steps in flight, changed rows, buckets, groups."""

from __future__ import annotations

import numpy as np
import pytest
from configs import changed
from small import LLAMA, runner

from ostinato.ops.cuda import CudaOps
from ostinato.ops.device import Device
from ostinato.run.runner import Row, Runner
from ostinato.sizes import MAIL

SCOPES = ["off", "layer", "step"]
SMALL = changed(LLAMA, layers=1, max_len=128)


def started(on: Runner, rows: int) -> Runner:
    """A runner with `rows` sequences at position 0."""
    for slot in range(rows):
        on.table.allocate(slot, 64)
    on.set_rows([Row(slot, 3 + slot, 0) for slot in range(rows)])
    return on


def one_by_one(rows: int, steps: int) -> list[list[int]]:
    """Tokens of the steps, each read before the next is launched."""
    on = started(runner(SMALL, max_batch=rows), rows)
    return [on.decode().tokens().tolist() for _ in range(steps)]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("rows", [1, 3, 20])
def test_as_many_steps_as_ring_entries_may_be_unread(scope: str, rows: int) -> None:
    """Twenty rows are two groups, each with its own operation that writes to the ring."""
    on = started(runner(SMALL, graph=scope, max_batch=rows), rows)
    found = []
    for _ in range(2):
        tickets = [on.decode() for _ in range(MAIL)]
        found += [ticket.tokens().tolist() for ticket in tickets]
    assert found == one_by_one(rows, 2 * MAIL)


@pytest.mark.parametrize("scope", SCOPES)
def test_kernels_send_what_numpy_sends(device: Device, scope: str) -> None:
    on = started(runner(SMALL, CudaOps(device, "float32"), graph=scope, max_batch=2, cache_tokens=512), 2)
    assert [ticket.tokens().tolist() for ticket in [on.decode() for _ in range(MAIL)]] == one_by_one(2, MAIL)


def test_tokens_are_the_callers() -> None:
    """Tokens that were read do not change when the entry is written again."""
    on = started(runner(SMALL, max_batch=2), 2)
    first = on.decode().tokens()
    before = first.copy()
    for _ in range(2 * MAIL):
        on.decode()
    np.testing.assert_array_equal(first, before)


@pytest.mark.parametrize("steps", range(1, MAIL + 1))
def test_other_rows_and_buckets_continue_at_the_next_entry(steps: int) -> None:
    """Steps of rows that are set later do not overwrite an unread step."""
    on = started(runner(SMALL, max_batch=4), 3)
    *_, ticket = [on.decode() for _ in range(steps)]
    on.set_rows([Row(0, 9, 0)])
    later = [on.decode() for _ in range(MAIL - 1)]
    assert ticket.tokens().tolist() == one_by_one(3, steps)[-1]
    alone = started(runner(SMALL, max_batch=4), 1)
    alone.set_rows([Row(0, 9, 0)])
    assert [t.tokens().tolist() for t in later] == [alone.decode().tokens().tolist() for _ in later]


@pytest.mark.parametrize("steps", range(1, MAIL + 1))
def test_set_rows_restores_the_write_index(steps: int) -> None:
    """Measuring tools run a program without updating the host's copy of the write index."""
    on = started(runner(SMALL, max_batch=2), 2)
    for _ in range(steps):
        on.current.program.run()
    on.set_rows([Row(slot, 3 + slot, 0) for slot in range(2)])
    assert [on.decode().tokens().tolist() for _ in range(3)] == one_by_one(2, 3)
