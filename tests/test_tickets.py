"""Every ticket by which blocks find the last one stands behind a fence: the emulator shows writes to all at once, so it
cannot miss one."""

from __future__ import annotations

import re

import pytest

from ostinato.ops.device import KERNELS

TICKET = re.compile(r"^.*atomicAdd\(tickets?\b.*$", re.MULTILINE)
TICKETS = [
    pytest.param(source[: match.start()], id=f"{path.name}:{source.count(chr(10), 0, match.start()) + 1}")
    for path in sorted(KERNELS.glob("*.cu*"))
    for source in [path.read_text(encoding="utf-8")]
    for match in TICKET.finditer(source)
]


def test_tickets_are_found():
    assert len(TICKETS) == 2


@pytest.mark.parametrize("before", TICKETS)
def test_ticket_behind_a_fence(before):
    """The last line before the ticket that is neither a barrier nor an if."""
    lines = [line.split("//")[0].strip() for line in before.rstrip().splitlines()]
    lines = [line for line in lines if not line.startswith(("__syncthreads()", "if (")) and line]
    assert lines[-1] == "__threadfence();"
