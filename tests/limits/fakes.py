"""Fake probes."""

from __future__ import annotations

from typing import Any

from ostinato.tools.limits.probe import Probe


def fake(name: str, feature: str = "streams", says: Any = "yes", run: Any = None) -> Probe:
    return Probe(name, feature, f"asks {name}", says, run or (lambda lab: "fine"))


def raiser(error: BaseException) -> Any:
    """A function that raises this exception for any arguments."""

    def run(*args: Any) -> Any:
        raise error

    return run
