"""What stands between markers on the pages is what the JSON files and the code say; prose is free."""

from __future__ import annotations

import re

import make_docs
import measured
import pytest
from doc_pages import BLOCK, ROOT, pages, short

PAGES = [pytest.param(page, id=short(page)) for page in pages()]


def test_nothing_is_out_of_date() -> None:
    """`make docs` makes it anew."""
    assert [short(path) for path in make_docs.outdated()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_marker_belongs_to_a_block(page) -> None:
    """A marker that is misspelt would leave its table as it is for ever."""
    text = page.read_text(encoding="utf-8")
    whole = len(BLOCK.findall(text))
    lines = [line for line in text.splitlines() if line.startswith("<!--")]
    assert (sum("made:" in line for line in lines), len(lines)) == (whole, 2 * whole)


def test_every_block_is_shown() -> None:
    """A new command, or a new field's class, is missing on a page until somebody gives it a place."""
    shown = {m["name"] for page in pages() for m in BLOCK.finditer(page.read_text(encoding="utf-8"))}
    assert shown == set(make_docs.blocks())


def test_a_figure_that_was_changed_by_hand_is_found() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    changed = re.sub(r"\d\.\d{3}", "9.999", text, count=1)
    assert changed != text and make_docs.filled(changed) == text


@pytest.mark.parametrize(
    ("shape", "engine", "settings", "batch", "ms"),
    [
        pytest.param("llama-3.1-8b", "vLLM", ("full CUDA graphs", "bfloat16"), "1", 4.826, id="the-faster-of-two-runs"),
        pytest.param("llama-3.1-8b", "vLLM", "bfloat16", "1", 4.913, id="one-gpu-not-two"),
        pytest.param("llama-3.2-1b", "llama.cpp", "Q8_0", "16", 2.611, id="by-settings"),
    ],
)
def test_others(shape: str, engine: str, settings, batch: str, ms: float) -> None:
    assert measured.others(shape, engine, settings)[batch] == ms


def test_the_readme_can_be_taken_in() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
