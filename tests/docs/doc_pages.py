"""The pages for readers, and what is in them: blocks that a program makes, and fences of code.

A made block stands between `<!-- made: NAME -->` and `<!-- end -->`. A fence's info string is its language and, after
a space, what it needs beside a checkout: "console gpu".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"(<!-- made: (?P<name>[\w .:-]+) -->\n)(?P<text>.*?)(<!-- end -->)", re.DOTALL)
FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)


class Fence(NamedTuple):
    """A fenced block of a page."""

    page: str  # path from the root
    line: int
    language: str
    needs: str  # the rest of the info string: "", "gpu", "network", ...
    text: str

    @property
    def commands(self) -> list[str]:
        """The shell commands of a console fence: its lines that begin with "$ "."""
        return [line[2:] for line in self.text.splitlines() if line.startswith("$ ")]


def pages() -> list[Path]:
    """README.md, CHANGELOG.md, docs/*.md and the READMEs of folders."""
    found = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [*found, ROOT / "kernels/README.md", *sorted((ROOT / "tests").rglob("README.md"))]


def short(page: Path) -> str:
    """Its path from the root."""
    return page.relative_to(ROOT).as_posix()


def fences() -> Iterator[Fence]:
    """All fences of all pages."""
    for page in pages():
        text = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            language, _, needs = match["info"].strip().partition(" ")
            yield Fence(short(page), text.count("\n", 0, match.start()) + 1, language, needs, match["text"])
