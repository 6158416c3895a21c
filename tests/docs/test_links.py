"""Links of the pages lead somewhere: files that are there, headings that are there; and every page is linked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from doc_pages import FENCE, ROOT, pages, short

LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(r"`((?:engine|weights|kernels|tests|examples|docs)/[\w./*-]+)`")
PAGES = [pytest.param(page, id=short(page)) for page in pages()]


def prose(page: Path) -> str:
    """The text without fences."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Its headings as GitHub links to them."""
    heads = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES)
def test_links(page: Path) -> None:
    broken = []
    for target in LINK.findall(prose(page)):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES)
def test_paths_in_backticks(page: Path) -> None:
    """`engine/...` and the like are paths from the root; a star stands for anything."""
    base = [ROOT, page.parent]  # a folder's README may name its own files
    missing = [p for p in PATH.findall(prose(page)) if not any(list(b.glob(p)) for b in base)]
    assert missing == []


@pytest.mark.parametrize("page", [p for p in pages() if p.parent == ROOT / "docs"], ids=short)
def test_the_readme_links_every_page(page: Path) -> None:
    assert f"](docs/{page.name})" in (ROOT / "README.md").read_text(encoding="utf-8")
