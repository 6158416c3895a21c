"""A round of tests/engine/soak.py for each kind of arithmetic: random events, and every answer as it is alone."""

from __future__ import annotations

import random
from typing import Any

import pytest
import soak
from soak import Load, Round

GREEDY = {"cache_tokens": 64 * 5, "max_batch": 4, "prefix_cache": True}


def run(backend: str, events: int, **options: Any) -> Round:
    """A round of a seed of its own, which a failure tells."""
    seed = random.SystemRandom().randrange(1 << 30)
    print(f"seed {seed}")
    make, vocab, sizes = soak.small(backend)
    one = Round(Load.of(make, vocab, **sizes, seed=0), seed, **{**GREEDY, **options})
    one.greedy = True
    wrong = one.run(events)
    assert not wrong, f"seed {seed}: {wrong[0]}"
    return one


@pytest.mark.parametrize(("swap_gb", "how"), [(1, "swapped"), (0, "replayed")])
def test_numpy(swap_gb: float, how: str) -> None:
    one = run("numpy", 150, swap_gb=swap_gb)
    assert one.seen[how] > 0 and one.seen["cached"] > 0 and one.seen["length"] > 20 and one.seen["abort"] > 0


def test_emulated(compiler: str) -> None:
    assert run("emulated", 20, swap_gb=1, cache_tokens=64 * 3).seen["length"] > 0


def test_a_wrong_answer_is_reported() -> None:
    """What request 0 gives alone is noted down wrongly."""
    make, vocab, sizes = soak.small("numpy")
    one = Round(Load.of(make, vocab, **sizes, seed=0), 7, **GREEDY)
    tokens, _ = one.load.alone(0)[0]
    tokens[0] += 1
    one._add(0)
    assert one.run(0)[0].startswith("request 0: expected [")
