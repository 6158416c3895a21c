"""Tests and seconds by group, from the report of a run: the table of docs/testing.md.

pytest -m "not slow" --junitxml=FILE && python tests/seconds.py FILE
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterator


def groups(text: str) -> dict[str, tuple[int, float]]:
    """Group -> (number of tests, seconds), the longest first. A group is a folder of tests/; files beside them are one
    group. Skipped tests do not count."""
    found: dict[str, list[float]] = defaultdict(list)
    for case in ElementTree.fromstring(text).iter("testcase"):
        if case.find("skipped") is None:
            _, *below = case.get("classname", "").split(".")
            found[f"tests/{below[0]}/" if len(below) > 1 else "tests/test_*.py"].append(float(case.get("time", 0)))
    made = {group: (len(times), sum(times)) for group, times in found.items()}
    return dict(sorted(made.items(), key=lambda item: -item[1][1]))


def table(found: dict[str, tuple[int, float]]) -> Iterator[str]:
    """Markdown lines."""
    yield "| group | tests | seconds |"
    yield "|---|---|---|"
    for group, (tests, seconds) in found.items():
        yield f"| `{group}` | {tests:,} | {seconds:.0f} |"


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        print(*table(groups(file.read())), sep="\n")
