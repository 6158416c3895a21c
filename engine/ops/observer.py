"""Something that stands before an Ops and sees every operation: recordings, ranges for profilers, measurements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .base import Ops


class OpsObserver:
    """The same operations, each of which goes through `around`; what cannot be called is the Ops' own."""

    def __init__(self, ops: Ops) -> None:
        self._ops = ops

    def around(self, name: str, operation: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run one operation, or do something else instead."""
        return operation(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._ops, name)
        if not callable(operation):
            return operation

        def call(*args: Any, **kwargs: Any) -> Any:
            return self.around(name, operation, args, kwargs)

        setattr(self, name, call)  # looked up once
        return call
