"""Typed access to a mapping from a file: every value has its type and range, or an error names file and key."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from .errors import CheckpointError, EngineError, UnsupportedModel, found

_NOTHING = re.compile(r"(?!)")


class Keys:
    """A mapping that records which keys were read.

    name: for messages. prefix: put before every key, such as "llama." in GGUF metadata. error: raised for wrong
    values."""

    def __init__(self, values: Any, name: str, prefix: str = "", error: type[EngineError] = CheckpointError):
        self.name, self.prefix, self._error = name, prefix, error
        if not isinstance(values, dict):
            raise error(f"{name}: expected a JSON object, found {found(values)}")
        self.values: dict[str, Any] = values
        self._read: set[str] = set()
        self._inner: dict[str, Keys] = {}

    def __contains__(self, key: str) -> bool:
        return self.prefix + key in self.values

    def get(self, key: str, default: Any = None) -> Any:
        """The value, unchecked; default if the key is absent or null."""
        self._read.add(self.prefix + key)
        value = self.values.get(self.prefix + key)
        return default if value is None else value

    def needed(self, key: str) -> Any:
        """The value, unchecked; an error if the key is absent or null."""
        value = self.get(key)
        if value is None:
            self.wrong(key, "a value", value)
        return value

    def inner(self, key: str) -> Keys:
        """The JSON object under a key."""
        if key not in self._inner:
            self._inner[key] = Keys(self.get(key), f"{self.name}: {self.prefix}{key}", error=self._error)
        return self._inner[key]

    def skip(self, *names: str) -> None:
        """Mark keys as read: they have no effect here."""
        self._read.update(self.prefix + name for name in names)

    def unread(self, harmless: re.Pattern[str] = _NOTHING) -> list[str]:
        """Keys with the prefix that were not read and do not match `harmless`, as "a" or "a.b", sorted."""
        keys = [key for key in self.values if key.startswith(self.prefix) and key not in self._read]
        own = [key for key in keys if not harmless.fullmatch(key)]
        return sorted(
            own + [f"{self.prefix}{key}.{name}" for key, keys in self._inner.items() for name in keys.unread(harmless)]
        )

    def wrong(self, key: str, expected: str, value: Any) -> NoReturn:
        """Raise the error for a damaged or contradictory file."""
        what = found(value) if value is not None or key in self else "nothing"
        raise self._error(f"{self.name}: {self.prefix}{key}: expected {expected}, found {what}")

    def unsupported(self, key: str, expected: str, value: Any) -> NoReturn:
        """Raise UnsupportedModel: the file is valid, but the engine does not have the feature."""
        what = f"not supported: expected {expected}, found {found(value)}"
        raise UnsupportedModel(f"{self.name}: {self.prefix}{key}: {what}")

    def typed(self, key: str, kind: type, default: Any = None) -> Any:
        """A value of exactly this type (True is not an int); default if absent."""
        value = self.get(key, default)
        if value is not default and type(value) is not kind:
            self.wrong(key, kind.__name__, value)
        return value

    def array(self, key: str, kind: type, length: int | None = None) -> list[Any]:
        """A list of values of one type. length: required length, if given."""
        values = self.get(key)
        if type(values) is not list or any(type(v) is not kind for v in values):
            self.wrong(key, f"a list of {kind.__name__}", values)
        if length is not None and len(values) != length:
            self.wrong(key, f"a list of {length}, one per token", values)
        return values

    def fields(self, kinds: Mapping[str, type]) -> dict[str, Any]:
        """The mapping, checked to have exactly these keys with values of exactly these types."""
        if self.values.keys() != kinds.keys():
            have = ", ".join(sorted(self.values))
            raise self._error(f"{self.name}: expected an object of {', '.join(kinds)}, found one of {have}")
        for key, kind in kinds.items():
            if self.typed(key, kind) is None:
                self.wrong(key, kind.__name__, None)
        return self.values

    def integer(self, key: str, low: int, high: int) -> int:
        """An integer in [low, high]; booleans and floats, even 8.0, are errors."""
        value = self.get(key)
        if type(value) is not int or not low <= value <= high:
            self.wrong(key, f"an integer in [{low}, {high}]", value)
        return value

    def real(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """A finite number in (low, high]."""
        value = self.get(key, default)
        if type(value) not in (int, float) or not low < value <= high or not math.isfinite(value):
            self.wrong(key, f"a number in ({low:g}, {high:g}]", value)
        return float(value)

    def reals(self, key: str, low: float, high: float, count: int) -> tuple[float, ...]:
        """A list of `count` finite numbers in (low, high]."""
        values = self.get(key)
        if not isinstance(values, list) or len(values) != count:
            self.wrong(key, f"a list of {count} numbers", values)
        if any(type(v) not in (int, float) or not low < v <= high or not math.isfinite(v) for v in values):
            self.wrong(key, f"numbers in ({low:g}, {high:g}]", values)
        return tuple(map(float, values))

    def flag(self, key: str, default: bool) -> bool:
        """True or False; default if absent or null."""
        value = self.get(key, default)
        if type(value) is not bool:
            self.wrong(key, "true or false", value)
        return value

    def neutral(self, key: str, values: tuple[Any, ...]) -> None:
        """UnsupportedModel unless the key has one of these values, or is absent."""
        value = self.flag(key, values[0]) if type(values[0]) is bool else self.get(key, values[0])
        if value not in values:
            self.unsupported(key, _either(values), value)

    def token_id(self, key: str, vocab: int) -> int | None:
        """One token id in [0, vocab); None if absent."""
        self.typed(key, int)
        return next(iter(self.token_ids(key, vocab)), None)

    def token_ids(self, key: str, vocab: int) -> tuple[int, ...]:
        """Token ids in [0, vocab), from an integer, a list of integers, or an absent key."""
        value = self.get(key, [])
        ids = value if isinstance(value, list) else [value]
        for i in ids:
            if type(i) is not int or not 0 <= i < vocab:
                self.wrong(key, f"token ids in [0, {vocab})", value)
        return tuple(ids)


def _either(values: tuple[Any, ...]) -> str:
    """The values in JSON notation: "false", "silu or swish"."""
    words = {None: "null", False: "false", True: "true"}
    return " or ".join(words[v] if v is None or type(v) is bool else str(v) for v in values)
