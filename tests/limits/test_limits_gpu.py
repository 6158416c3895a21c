"""All probes on this GPU: no probe has a bug, and CUDA answers as the engine needs it."""

from __future__ import annotations

import pytest

from ostinato.tools import doctor
from ostinato.tools.limits import runner
from ostinato.tools.limits.probe import Outcome
from ostinato.tools.limits.table import PROBES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not doctor.driver().gpus, reason="needs an NVIDIA GPU"),
]

SUPPORTED = (
    "fork-and-join", "beside-other-work", "event-as-dependency", "external-event-times", "external-event-wait",
    "global-memory", "static-shared-memory", "dynamic-shared-memory", "constant-memory", "texture-memory",
    "managed-memory", "copy-to-pinned", "memset", "pool-temporary", "malloc-relaxed", "malloc-async", "cublas-directly",
    "kernel-arguments", "kernel-grid", "whole-graph", "node-disabled", "sizes-at-run-time", "child-graph",
    "host-function",
)  # fmt: skip
LOST = "the capture is lost"
REFUSED = {  # probe -> (error, state of the capture)
    "fork-without-join": ("CUDA_ERROR_STREAM_CAPTURE_UNJOINED", ""),
    "copy-by-cupy": ("RuntimeError", "the capture goes on"),
    "stream-synchronize": ("cudaErrorStreamCaptureUnsupported", LOST),
    "stream-query": ("cudaErrorStreamCaptureUnsupported", LOST),
    "device-synchronize": ("cudaErrorStreamCaptureUnsupported", LOST),
    "event-synchronize": ("cudaErrorCapturedEvent", LOST),
    "legacy-stream": ("CUDA_ERROR_STREAM_CAPTURE_IMPLICIT", LOST),
    "malloc-global": ("cudaErrorStreamCaptureUnsupported", LOST),
    "context-synchronize": ("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", LOST),
    "driver-alloc": ("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", LOST),
    "node-added": ("CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE", "such a graph is instantiated anew"),
    "node-removed": ("CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE", "such a graph is instantiated anew"),
}


@pytest.fixture(scope="module")
def answers() -> dict[str, Outcome]:
    """The outcomes of one run of all probes."""
    return {o.probe: o for o in runner.run(PROBES).outcomes}


def test_every_probe_answers(answers: dict[str, Outcome]) -> None:
    assert list(answers) == list(PROBES)
    assert not {n: o for n, o in answers.items() if o.verdict == "broken" or o.detail.startswith("the probe fails")}


@pytest.mark.parametrize("name", SUPPORTED)
def test_supported(answers: dict[str, Outcome], name: str) -> None:
    assert answers[name].verdict == "supported", answers[name]


@pytest.mark.parametrize("name", REFUSED)
def test_refused(answers: dict[str, Outcome], name: str) -> None:
    assert (answers[name].verdict, answers[name].error, answers[name].detail) == ("refused", *REFUSED[name])


def test_the_pool_gives_away_what_a_capture_took(answers: dict[str, Outcome]) -> None:
    """Why the engine forbids allocation while it captures."""
    assert answers["pool-temporary-is-kept"].verdict == "wrong"
    assert "reused the memory" in answers["pool-temporary-is-kept"].detail


@pytest.mark.parametrize("name", ["dynamic-parallelism", "while-node", "if-node", "switch-node", "device-side-launch"])
def test_what_needs_the_device_runtime(answers: dict[str, Outcome], name: str) -> None:
    if answers[name].verdict == "not run":
        pytest.skip(answers[name].detail)
    assert answers[name].verdict == "supported", answers[name]
