"""What a probe is, what comes out of it, and whether the article agrees with that.

The modules of probes use the decorator; worker.py runs them; report.py shows outcomes. Touches no device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from .article import ARTICLE, Says

Verdict = Literal["supported", "refused", "wrong", "broken", "not run"]
# supported  replay left the right numbers
# refused    CUDA or a library answered with an error
# wrong      no error, but other numbers
# broken     the process died of it, or did not answer in time
# not run    the question could not be put; the detail says why


@dataclass(frozen=True)
class Probe:
    """One question. run(lab) returns what was found worth telling, or raises one of the exceptions below."""

    name: str
    feature: str  # of ARTICLE
    asks: str
    says: Says  # what the article says about this very question
    run: Callable[[Any], str]


@dataclass(frozen=True)
class Outcome:
    """The answer to one probe."""

    probe: str
    verdict: Verdict
    error: str = ""  # its name: cudaErrorStreamCaptureUnsupported
    text: str = ""  # its text, by the library that raised it
    detail: str = ""

    @property
    def supported(self) -> bool | None:
        """None: not known."""
        return None if self.verdict == "not run" else self.verdict == "supported"


class Refused(Exception):
    """CUDA, or a library, refuses what the probe asked for."""

    def __init__(self, error: str, text: str = "", detail: str = "") -> None:
        super().__init__(f"{error}: {text}")
        self.error, self.text, self.detail = error, text, detail


class Wrong(Exception):
    """A replay left other numbers than it must."""


class CannotRun(Exception):
    """Something that the question needs is not there."""


def probe(feature: str, asks: str, says: Says | None = None) -> Callable[[Callable[[Any], str]], Probe]:
    """Make the function below a Probe named after it. says: of this question, if not what the article's row says."""

    def make(run: Callable[[Any], str]) -> Probe:
        claim = ARTICLE[feature].says if says is None else says
        return Probe(run.__name__.replace("_", "-"), feature, asks, claim, run)

    return make


def agreement(probes: Iterable[Probe], outcomes: Iterable[Outcome]) -> dict[str, bool | None]:
    """By probe: does the article agree? None where it says nothing or nothing is known.

    A row that says "partly" agrees when of its probes some are supported and some are not."""
    answers = {o.probe: o.supported for o in outcomes}
    asked = [p for p in probes if answers.get(p.name) is not None]
    found: dict[str, bool | None] = dict.fromkeys(answers)
    for p in asked:
        if p.says == "partly":
            found[p.name] = len({answers[q.name] for q in asked if q.feature == p.feature}) == 2
        elif p.says:
            found[p.name] = answers[p.name] is (p.says == "yes")
    return found
