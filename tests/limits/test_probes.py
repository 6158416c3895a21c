"""The table of probes of `doctor --graph-limits`, and when the article agrees with an outcome."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from fakes import fake

from ostinato.limits import article, lab
from ostinato.limits.probe import Outcome, agreement
from ostinato.limits.table import PROBES


def test_every_row_of_the_article_has_probes_and_they_are_in_its_order() -> None:
    features = [p.feature for p in PROBES.values()]
    assert list(dict.fromkeys(features)) == list(article.ARTICLE)
    assert all(name == p.name and p.asks and p.run.__doc__ for name, p in PROBES.items())


def test_every_probe_compares_numbers() -> None:
    """A probe that only looks for errors would call a graph that does nothing supported."""
    for path in Path(lab.__file__).parent.glob("*.py"):
        functions = {n.name: n for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef)}
        calls = {name: {_called(c) for c in ast.walk(f) if isinstance(c, ast.Call)} for name, f in functions.items()}
        for name, function in functions.items():
            if any(_called(d) == "probe" for d in function.decorator_list):
                reached = calls[name].union(*(calls.get(c, set()) for c in calls[name]))
                assert reached & {"expect", "Wrong"} and reached & {"launch", "start", "attempt"}, f"{path.name} {name}"


def _called(node: ast.AST) -> str:
    function = node.func if isinstance(node, ast.Call) else node
    return getattr(function, "attr", getattr(function, "id", ""))


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
