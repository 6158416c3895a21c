"""The real 135M on a GPU: random events in caches that are too small, and every answer as it is alone."""

from __future__ import annotations

import random
from typing import Any

import pytest
import soak
from soak import Load, Round

from ostinato.errors import DeviceError

MODEL = "smollm2-135m"


@pytest.fixture(scope="module")
def load() -> Load:
    try:
        make, vocab, sizes = soak.loaded(MODEL, "cuda")
    except DeviceError as e:
        pytest.skip(str(e))
    return Load.of(make, vocab, **sizes, seed=0)


@pytest.mark.gpu
@pytest.mark.timeout(600)
@pytest.mark.parametrize("graph", ["step", "off"])
@pytest.mark.parametrize(("swap_gb", "how"), [(4, "swapped"), (0, "replayed")])
def test_a_round_of_the_real_model(load: Load, graph: str, swap_gb: float, how: str) -> None:
    seed = random.SystemRandom().randrange(1 << 30)
    print(f"seed {seed}")
    pages = -(-load.longest // 64)
    options: dict[str, Any] = {"graph": graph, "swap_gb": swap_gb, "prefix_cache": True, "max_batch": 6}
    one = Round(load, seed, cache_tokens=64 * (pages + 4), **options)
    one.greedy = True
    wrong = one.run(300)
    assert not wrong, f"seed {seed}: {wrong[0]}"
    assert one.seen[how] > 0 and one.seen["cached"] > 0 and one.seen["length"] > 20
