"""The table of probes of `doctor --graph-limits`, and when the article agrees with an outcome."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock

import pytest
from fakes import fake
from idle import Library, idle_lab

from ostinato.tools.limits import article, worker
from ostinato.tools.limits.probe import Outcome, agreement
from ostinato.tools.limits.table import PROBES


def test_every_row_of_the_article_has_probes_and_they_are_in_its_order() -> None:
    features = [p.feature for p in PROBES.values()]
    assert list(dict.fromkeys(features)) == list(article.ARTICLE)
    assert all(name == p.name and p.asks and p.run.__doc__ for name, p in PROBES.items())


@pytest.mark.parametrize("name", PROBES)
def test_no_probe_believes_a_gpu_that_does_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a fake GPU without errors or effects no probe may report "supported"."""
    driver, runtime = (pytest.importorskip(f"cuda.bindings.{module}") for module in ("driver", "runtime"))
    monkeypatch.setattr("ctypes.CDLL", Library)
    monkeypatch.setattr("cuda.pathfinder.load_nvidia_dynamic_lib", MagicMock())
    found = worker.outcome(PROBES[name], idle_lab(driver, runtime))
    assert found.verdict in ("wrong", "not run"), found
    assert not found.detail.startswith("the probe fails"), found.detail


@pytest.mark.parametrize(
    ("says", "verdict", "agrees"),
    [
        ("yes", "supported", True), ("yes", "refused", False), ("yes", "wrong", False), ("yes", "broken", False),
        ("yes", "not run", None), ("no", "supported", False), ("no", "refused", True), ("no", "not run", None),
        ("", "supported", None), ("", "refused", None), ("partly", "supported", False), ("partly", "not run", None),
    ],
)  # fmt: skip
def test_agreement_with_the_article(says: Any, verdict: Any, agrees: bool | None) -> None:
    assert agreement([fake("a", says=says)], [Outcome("a", verdict)]) == {"a": agrees}


def test_partly_agrees_when_the_row_holds_both() -> None:
    probes = [fake("a", says="partly"), fake("b", says="partly"), fake("c", "events", "partly"), fake("d", says="")]
    outcomes = [Outcome("a", "supported"), Outcome("b", "refused"), Outcome("c", "supported"), Outcome("d", "wrong")]
    assert agreement(probes, outcomes) == {"a": True, "b": True, "c": False, "d": None}
