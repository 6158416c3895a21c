"""The mistakes of `make mutants` still apply to the kernels, and a surviving mistake is reported."""

from __future__ import annotations

import mutants
import pytest
from mutants import MUTANTS, Mutant, Survived

from ostinato.ops.device import KERNELS


def test_every_mistake_is_another_one():
    assert len(MUTANTS) == len({m.kind for m in MUTANTS}) >= 20


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.kind)
def test_original_occurs_once(mutant: Mutant):
    assert (KERNELS / mutant.file).read_text(encoding="utf-8").count(mutant.original) == 1
    assert mutant.original != mutant.replacement


@pytest.mark.parametrize(
    ("original", "failed", "message"),
    [
        ("if (column >= n) return;", "", "all tests passed"),
        ("no such line", "x", "occurs 0 times in kernels/finish.cu"),
    ],
)
def test_survivor_is_reported(monkeypatch, original, failed, message):
    monkeypatch.setattr(mutants, "run_tests", lambda target, tests: failed)
    mutant = Mutant("a bound", "finish.cu", original, "", ("tests/ops",))
    with pytest.raises(Survived, match=message):
        mutants.check(mutant)
    caught, lines = mutants.report(1, mutant)
    assert not caught and "SURVIVED" in lines
