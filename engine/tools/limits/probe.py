"""Definition of a probe and its outcome, and the comparison with the article. Touches no device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from .article import ARTICLE, Says

Verdict = Literal["supported", "refused", "wrong", "broken", "not run"]
# supported  the replay left the right numbers
# refused    CUDA or a library returned an error
# wrong      no error, but wrong numbers
# broken     the process died or did not answer in time
# not run    a requirement is missing; the detail names it


@dataclass(frozen=True)
class Probe:
    """One question. run(lab) returns a remark for the report, or raises one of the exceptions below."""

    name: str
    feature: str  # key of ARTICLE
    asks: str
    says: Says  # the article's answer to this question
    run: Callable[[Any], str]


@dataclass(frozen=True)
class Outcome:
    """The answer to one probe."""

    probe: str
    verdict: Verdict
    error: str = ""  # name of the error: cudaErrorStreamCaptureUnsupported
    text: str = ""  # the library's text of the error
    detail: str = ""

    @property
    def supported(self) -> bool | None:
        """Whether the feature is supported; None if the probe did not run."""
        return None if self.verdict == "not run" else self.verdict == "supported"


class Refused(Exception):
    """CUDA or a library returned an error."""

    def __init__(self, error: str, text: str = "", detail: str = "") -> None:
        super().__init__(f"{error}: {text}")
        self.error, self.text, self.detail = error, text, detail


class Wrong(Exception):
    """A replay left wrong numbers."""


class CannotRun(Exception):
    """The probe needs something that is missing here."""


def probe(feature: str, asks: str, says: Says | None = None) -> Callable[[Callable[[Any], str]], Probe]:
    """Decorator: a function becomes a Probe of its name. says: the article's answer, if it differs from its row."""

    def make(run: Callable[[Any], str]) -> Probe:
        claim = ARTICLE[feature].says if says is None else says
        return Probe(run.__name__.replace("_", "-"), feature, asks, claim, run)

    return make


def agreement(probes: Iterable[Probe], outcomes: Iterable[Outcome]) -> dict[str, bool | None]:
    """Probe -> whether the article agrees; None if it says nothing or the probe did not run.

    A "partly" row agrees if some of its probes are supported and some are not."""
    answers = {o.probe: o.supported for o in outcomes}
    asked = [p for p in probes if answers.get(p.name) is not None]
    found: dict[str, bool | None] = dict.fromkeys(answers)
    for p in asked:
        if p.says == "partly":
            found[p.name] = len({answers[q.name] for q in asked if q.feature == p.feature}) == 2
        elif p.says:
            found[p.name] = answers[p.name] is (p.says == "yes")
    return found
