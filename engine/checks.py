"""Checks of a caller's values. Each returns the value in its final type, or raises RequestError naming the field."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Collection
from typing import Any, NoReturn

from .errors import RequestError, found

_SURROGATE = re.compile("[\ud800-\udfff]")


def refuse(field: str, expected: str, value: Any) -> NoReturn:
    """Raise RequestError: `field`: expected ..., found ..."""
    raise RequestError(f"{field}: expected {expected}, found {found(value)}")


def unicode(field: str, text: str) -> str:
    """A text without lone surrogates, which Python makes from undecodable bytes and tokenizers do not accept."""
    if half := _SURROGATE.search(text):
        raise RequestError(f"{field}: expected Unicode text, found half a surrogate pair at character {half.start()}")
    return text


def integer(field: str, value: Any, low: int, high: int) -> int:
    """An integer (NumPy's too) in [low, high]; no booleans, no floats."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not low <= int(value) <= high:
        refuse(field, f"an integer in [{low}, {high}]", value)
    return int(value)


def real(field: str, value: Any, low: float, high: float, open_low: bool = False) -> float:
    """A finite number (NumPy's too) in [low, high], or in (low, high] with open_low; no booleans."""
    try:
        number = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
    except OverflowError:  # an integer beyond every float
        number = math.inf
    if not low <= number <= high or (open_low and number == low):  # NaN fails the first
        refuse(field, f"a number in {'(' if open_low else '['}{low:g}, {high:g}]", value)
    return number


def flag(field: str, value: Any) -> bool:
    """True or False; no other truthy or falsy value."""
    if not isinstance(value, bool):
        refuse(field, "True or False", value)
    return value


def choice(field: str, value: Any, allowed: Collection[str]) -> str:
    """One of the allowed strings."""
    if not isinstance(value, str) or value not in allowed:
        refuse(field, "one of " + ", ".join(allowed), value)
    return value
