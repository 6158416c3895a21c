"""A wrapper around an Ops that sees every operation, for recordings, NVTX ranges and measurements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .base import Ops


class OpsObserver:
    """Passes every operation through `around`; other attributes are those of the wrapped Ops."""

    def __init__(self, ops: Ops) -> None:
        self._ops = ops

    def around(self, name: str, operation: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run one operation. Subclasses override this."""
        return operation(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._ops, name)
        if not callable(operation):
            return operation

        def call(*args: Any, **kwargs: Any) -> Any:
            return self.around(name, operation, args, kwargs)

        setattr(self, name, call)  # __getattr__ runs once per name
        return call
