"""The worker process of probes, and its replacement after a fatal error."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import fake, raiser

from ostinato.errors import DeviceError
from ostinato.tools.limits import runner, worker
from ostinato.tools.limits.probe import CannotRun, Outcome, Refused, Wrong

MACHINE = {"device": "Some GPU", "driver": "1.2.3"}

LOST = Refused("cudaErrorX", "not permitted", "the capture is lost")


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        pytest.param(lambda lab: "fine", Outcome("a", "supported", detail="fine"), id="supported"),
        pytest.param(raiser(LOST), Outcome("a", "refused", "cudaErrorX", "not permitted", LOST.detail), id="refused"),
        pytest.param(raiser(Wrong("data: 1")), Outcome("a", "wrong", detail="data: 1"), id="wrong"),
        pytest.param(raiser(CannotRun("no library")), Outcome("a", "not run", detail="no library"), id="cannot-run"),
        pytest.param(
            raiser(KeyError("x")),
            Outcome("a", "not run", detail="the probe fails: KeyError: 'x'"),
            id="its-own-mistake",
        ),
    ],
)
def test_outcome_of_a_probe(run: Any, expected: Outcome) -> None:
    assert worker.outcome(fake("a", run=run), lab=None) == expected


class FakeLab:
    made = 0
    sick: tuple[int, ...] = ()  # labs that no longer work, by number

    def __init__(self) -> None:
        type(self).made += 1
        self.device, self.entered = SimpleNamespace(about=lambda: MACHINE), False

    def __enter__(self) -> FakeLab:
        self.entered = True
        return self

    def __exit__(self, *error: object) -> None:
        self.entered = False

    def healthy(self) -> None:
        assert self.entered
        if self.made in self.sick:
            raise Refused("CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access")


@pytest.fixture
def fake_lab() -> type[FakeLab]:
    return type("Fresh", (FakeLab,), {})


def test_a_worker_uses_a_new_lab_for_each_probe(fake_lab: type[FakeLab]) -> None:
    seen: list[Any] = []
    probes = {n: fake(n, run=lambda lab: seen.append((lab, lab.entered)) or "fine") for n in "ab"}
    first, *answers = worker.serve("ab", probes, fake_lab)
    assert first == {"machine": MACHINE}
    assert [(a["outcome"]["probe"], a["outcome"]["verdict"], a["spoiled"]) for a in answers] == [
        ("a", "supported", ""), ("b", "supported", "")]  # fmt: skip
    assert [entered for _, entered in seen] == [True, True] and seen[0][0] is not seen[1][0]


def test_a_worker_stops_when_the_gpu_no_longer_works_for_it(fake_lab: type[FakeLab]) -> None:
    fake_lab.sick = (3,)  # of the machine, of the probe, of the look after it
    _, answer, *others = worker.serve("ab", {n: fake(n) for n in "ab"}, fake_lab)
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in answer["spoiled"] and others == []


@pytest.mark.parametrize(("where", "verdict"), [("__enter__", "not run"), ("__exit__", "refused")])
def test_an_answer_outlives_a_lab_that_fails(fake_lab: type[FakeLab], where: str, verdict: str) -> None:
    setattr(fake_lab, where, raiser(RuntimeError("cudaErrorLaunchFailure")))
    _, answer, *others = worker.serve("ab", {n: fake(n, run=raiser(LOST)) for n in "ab"}, fake_lab)
    assert (answer["outcome"]["verdict"], answer["spoiled"]) == (verdict, "RuntimeError: cudaErrorLaunchFailure")
    assert others == []


def test_a_worker_without_a_gpu_says_so() -> None:
    assert list(worker.serve("a", {}, raiser(DeviceError("no GPU")))) == [{"failed": "no GPU"}]


SCRIPT = """
import json, os, signal, sys, time
def say(**answer): print(json.dumps(answer), flush=True)
open({log!r}, "a").write("start ")
{begin}
say(machine={{"device": "Some GPU"}})
for line in sys.stdin:
    name = json.loads(line)
    if name == "dies": os.kill(os.getpid(), signal.SIGSEGV)
    if name == "exits": sys.exit("last words")
    if name == "hangs": time.sleep(60)
    say(outcome=dict(probe=name, verdict="supported", error="", text="", detail="fine"),
        spoiled="Refused: CUDA_ERROR" if name == "spoils" else "")
"""


def start(tmp_path: Path, begin: str = "") -> list[str]:
    return [sys.executable, "-c", SCRIPT.format(log=str(tmp_path / "log"), begin=begin)]


@pytest.mark.parametrize(
    ("name", "verdict", "detail", "starts"),
    [
        ("works", "supported", "fine", 1),
        ("spoils", "supported", "fine; leaves the process unusable (Refused: CUDA_ERROR)", 2),
        ("dies", "broken", "the process was ended by SIGSEGV", 2),
        ("exits", "broken", "the process ended with status 1: last words", 2),
        ("hangs", "broken", "no answer within 2 s", 2),
    ],
)
def test_the_next_probe_has_a_process_that_works(
    tmp_path: Path, name: str, verdict: str, detail: str, starts: int
) -> None:
    told: list[str] = []
    found = runner.run(["first", name, "after"], told.append, start(tmp_path), seconds=2)
    assert told == ["first", name, "after"] and found.machine == {"device": "Some GPU"}
    assert [(o.probe, o.verdict) for o in found.outcomes] == [
        ("first", "supported"), (name, verdict), ("after", "supported")]  # fmt: skip
    assert found.outcomes[1].detail == detail
    assert (tmp_path / "log").read_text().split() == ["start"] * starts


@pytest.mark.parametrize(
    ("begin", "message"),
    [
        ("say(failed='no GPU'); sys.exit()", "--graph-limits: no GPU"),
        ("sys.exit('no module')", "does not start: the process ended with status 1: no module"),
        ("time.sleep(60)", "does not start: no answer within 1 s"),
    ],
)
def test_no_worker(tmp_path: Path, begin: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "START_SECONDS", 1.0)
    with pytest.raises(DeviceError, match=message):
        runner.run(["a"], start=start(tmp_path, begin))


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(DeviceError, match=r"does not start: .*no-such-python"):
        runner.run(["a"], start=["no-such-python"])


def test_a_lost_gpu_is_reported_without_waiting(tmp_path: Path) -> None:
    begin = f"open({str(tmp_path / 'log')!r}).read().count('start') == 2 and sys.exit('fell off the bus')"
    first, dies, *others = runner.run(["first", "dies", "a", "b"], start=start(tmp_path, begin)).outcomes
    assert (first.verdict, dies.verdict) == ("supported", "broken")
    assert [(o.probe, o.verdict) for o in others] == [("a", "not run"), ("b", "not run")]
    assert all("does not start: the process ended with status 1: fell off the bus" in o.detail for o in others)
    assert (tmp_path / "log").read_text().split() == ["start"] * 2
