"""The table of docs/testing.md is made of a run's report."""

from __future__ import annotations

from seconds import groups, table

REPORT = """<testsuites><testsuite>
<testcase classname="tests.engine.test_a" name="one" time="1.5"/>
<testcase classname="tests.engine.test_b" name="two" time="2.0"/>
<testcase classname="tests.engine.test_b" name="left out" time="9.0"><skipped/></testcase>
<testcase classname="tests.test_cli" name="three" time="4.0"><failure/></testcase>
</testsuite></testsuites>"""


def test_groups_are_folders_and_the_longest_is_first() -> None:
    assert list(groups(REPORT).items()) == [("tests/test_*.py", (1, 4.0)), ("tests/engine/", (2, 3.5))]


def test_the_table() -> None:
    assert list(table({"tests/text/": (1439, 6.4)})) == [
        "| group | tests | seconds |", "|---|---|---|", "| `tests/text/` | 1,439 | 6 |"
    ]  # fmt: skip
