"""One reader of typed keys: what it says of a wrong value, and which keys it has seen."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from ostinato.errors import CheckpointError, TokenizerError, UnsupportedModel, found
from ostinato.keys import Keys

VALUES = {"a.n": 3, "a.on": True, "a.names": ["x", 1], "a.none": None, "b": 1, "a.inner": {"deep": 1}}


@pytest.mark.parametrize(
    ("read", "says"),
    [
        pytest.param(lambda k: k.typed("n", str), "a.n: expected str, found 3", id="type"),
        pytest.param(lambda k: k.typed("on", int), "a.on: expected int, found True", id="bool-is-no-int"),
        pytest.param(lambda k: k.needed("m"), "a.m: expected a value, found nothing", id="absent"),
        pytest.param(lambda k: k.needed("none"), "a.none: expected a value, found None", id="null"),
        pytest.param(lambda k: k.array("names", str), "a.names: expected a list of str, found ['x', 1]", id="array"),
        pytest.param(lambda k: k.array("m", str), "a.m: expected a list of str, found nothing", id="no-array"),
        pytest.param(lambda k: k.token_id("n", 3), "a.n: expected token ids in [0, 3), found 3", id="token"),
        pytest.param(lambda k: k.token_id("names", 3), "a.names: expected int, found ['x', 1]", id="one-token"),
        pytest.param(lambda k: k.fields({"n": int}), "expected an object of n, found one of a.inner", id="fields"),
        pytest.param(lambda k: k.inner("inner").real("deep", 1, 2), "a.inner: deep: expected a number", id="inner"),
        pytest.param(lambda k: k.inner("n"), "a.n: expected a JSON object, found 3", id="no-inner"),
    ],
)
def test_a_wrong_value_is_named(read: Callable[[Keys], Any], says: str) -> None:
    with pytest.raises(TokenizerError, match="^x.gguf: " + re.escape(says)):
        read(Keys(VALUES, "x.gguf", prefix="a.", error=TokenizerError))


def test_what_the_engine_lacks_is_another_error() -> None:
    with pytest.raises(UnsupportedModel, match=r"^x: b: not supported: expected 2, found 1$"):
        Keys(VALUES, "x").neutral("b", (2,))
    with pytest.raises(CheckpointError, match=r"^x: b: expected an integer in \[2, 3\], found 1$"):
        Keys(VALUES, "x").integer("b", 2, 3)


def test_unread_keys() -> None:
    keys = Keys(VALUES, "x", prefix="a.")
    assert keys.typed("m", int, 7) == 7 and keys.get("none", 8) == 8 and keys.token_id("n", 4) == 3
    keys.inner("inner")
    keys.skip("on")
    assert keys.unread() == ["a.inner.deep", "a.names"]
    assert keys.unread(re.compile("a.*")) == ["a.inner.deep"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param("a\nb\x00\u202e", r"'a\nb\x00\u202e'", id="escaped"),
        pytest.param("ä", "'ä'", id="legible"),
        pytest.param("x" * 200, "'" + "x" * 75 + "...'", id="cut"),
        pytest.param(list(range(81)), "list of 81", id="long-list"),
        pytest.param(10**5000, "a number of thousands of digits", id="long-number"),
    ],
)
def test_a_found_value_is_one_short_line(value: Any, text: str) -> None:
    assert found(value) == text
