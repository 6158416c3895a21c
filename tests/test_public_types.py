"""tests/public_types.py finds what it looks for in pyright's report."""

from __future__ import annotations

from typing import Any

import pytest
from public_types import problems

import ostinato

GUESSED = "Type is missing type annotation and could be inferred differently by type checkers"
UNKNOWN = 'Return type is partially unknown\n  Return type is "Runner"'


def report(name: str, known: bool, ambiguous: bool, *messages: str) -> dict[str, Any]:
    said = [{"severity": "error", "message": text} for text in messages]
    symbol = {"name": name, "isTypeKnown": known, "isTypeAmbiguous": ambiguous, "diagnostics": said}
    return {"typeCompleteness": {"pyTypedPath": "ostinato/py.typed", "symbols": [symbol]}}


@pytest.mark.parametrize(
    ("found", "count"),
    [
        pytest.param(report("ostinato.llm.LLM.chat", True, False), 0, id="known"),
        pytest.param(report("ostinato.llm.LLM.runner", False, True, UNKNOWN), 0, id="an-inner-attribute-is-inferred"),
        pytest.param(report("ostinato.llm.LLM.runner", False, False, UNKNOWN), 1, id="unknown"),
        pytest.param(report("ostinato.llm.LLM.load_s", False, True, GUESSED), 1, id="an-own-attribute-is-inferred"),
        pytest.param(report("ostinato.LLM", False, False), 1, id="an-exported-name"),
        pytest.param(report("ostinato.ops.cuda.CudaOps.linear", False, False, GUESSED), 0, id="not-public"),
        pytest.param({"typeCompleteness": {"pyTypedPath": "", "symbols": []}}, 1, id="no-package"),
    ],
)
def test_problems(found: dict[str, Any], count: int) -> None:
    assert len(list(problems(found))) == count


def test_every_public_name_is_of_a_module_that_is_looked_at() -> None:
    from public_types import MODULES

    homes = {getattr(ostinato, name).__module__ for name in ostinato.__all__ if name != "__version__"}
    assert homes == {f"ostinato.{name}" for name in MODULES}
