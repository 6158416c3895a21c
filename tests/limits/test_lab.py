"""The Lab: capture, comparison of arrays, the CUDA code, and linking."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fakes import raiser
from ptxas import missing

from ostinato.errors import DeviceError
from ostinato.tools.limits import lab, linking, sources
from ostinato.tools.limits.probe import CannotRun, Refused, Wrong

PROBE_SOURCE = "\n".join(p.read_text(encoding="utf-8") for p in sorted(Path(lab.__file__).parent.glob("*.py")))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Refused("A", "b"), ("A", "b")),
        (RuntimeError("cudaErrorX: not permitted"), ("cudaErrorX", "not permitted")),
        (RuntimeError("CUDA_ERROR_Y: no\nmore"), ("CUDA_ERROR_Y", "no more")),
        (RuntimeError("cuBLAS is unsupported"), ("RuntimeError", "cuBLAS is unsupported")),
        (DeviceError("cublasGemmEx failed"), ("DeviceError", "cublasGemmEx failed")),
        (TypeError("wrong argument"), None),
    ],
    ids=str,
)
def test_what_counts_as_refused(error: Exception, expected: tuple[str, str] | None) -> None:
    refused = lab.refusal(error)
    assert (refused and (refused.error, refused.text)) == expected


def test_expect_names_the_first_number_that_is_wrong() -> None:
    bare = object.__new__(lab.Lab)
    bare.expect("data", np.array([1.0, 2.0]), [1, 2])
    bare.expect("data", np.array([3, 3]), 3)
    with pytest.raises(Wrong, match="data: expected 2 at 1, found 5"):
        bare.expect("data", np.array([1.0, 5.0]), [1, 2])
    with pytest.raises(Wrong, match="found nan"):
        bare.expect("data", np.array([np.nan]), 1)


class Status(int):
    name = property(lambda self: f"STATUS_{int(self)}")


@pytest.mark.parametrize(("end", "became"), [(0, "the capture goes on"), (901, "the capture is lost")])
def test_a_refused_call_reports_the_state_of_the_capture(end: int, became: str) -> None:
    bare, entered = object.__new__(lab.Lab), []
    bare.plain = SimpleNamespace(get_function=lambda name: None)
    bare.driver = SimpleNamespace(
        CUstreamCaptureMode=SimpleNamespace(CU_STREAM_CAPTURE_MODE_RELAXED=2),
        cuStreamSynchronize=lambda stream: (Status(0),),
        cuStreamBeginCapture=lambda stream, mode: entered.append(mode) or (Status(0),),
        cuStreamEndCapture=lambda stream: entered.append("end") or (Status(end), "graph"),
        cuGraphDestroy=entered.append,
    )
    bare.stream = type("S", (), {"ptr": 7, "__enter__": lambda s: s, "__exit__": lambda s, *e: None})()
    with pytest.raises(Refused) as caught:
        bare.capture(raiser(RuntimeError("cudaErrorX: no")))
    assert (caught.value.error, caught.value.detail) == ("cudaErrorX", became)
    once = [2, "end", "graph"] if end == 0 else [2, "end"]  # a graph without an owner is destroyed
    assert entered == once
    with pytest.raises(TypeError):  # a bug of the probe is raised as it is, and the capture is ended
        bare.capture(raiser(TypeError("mine")))
    assert entered == once * 2


def test_a_missing_device_runtime_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linking, "folders", lambda: iter([tmp_path / "lib", tmp_path / "lib64"]))
    with pytest.raises(CannotRun, match=r"^libcudadevrt\.a, the CUDA device runtime, is not installed: it comes with"):
        linking.device_runtime()
    (tmp_path / "lib64").mkdir()
    (tmp_path / "lib64" / "libcudadevrt.a").touch()
    assert linking.device_runtime().parent.name == "lib64"


@pytest.mark.parametrize("arch", [80, 90, 120])
@pytest.mark.parametrize("source", ["PLAIN", "DEVICE_RUNTIME"])
def test_the_cuda_code_compiles(source: str, arch: int) -> None:
    if reason := missing():
        pytest.skip(reason)
    assert linking.relocatable(getattr(sources, source), arch).startswith(b"\x7fELF")
    with pytest.raises(CannotRun, match=r'NVRTC does not compile it: .*identifier "nonsense" is undefined'):
        linking.relocatable("__global__ void f() { nonsense; }", arch)


def test_every_kernel_is_launched_by_a_probe() -> None:
    declared = re.findall(r"__global__ void (?:__cluster_dims__\(2\) )?(\w+)\(", sources.PLAIN + sources.DEVICE_RUNTIME)
    assert len(declared) > 10
    assert [name for name in declared if f'"{name}"' not in PROBE_SOURCE] == []


def test_the_bindings_have_what_probes_call() -> None:
    """In the version that is installed here: a probe that asks whether it is there may go without."""
    for name in ("driver", "runtime"):
        bindings = pytest.importorskip(f"cuda.bindings.{name}")
        used = set(re.findall(rf"\b(?:lab|self)\.{name}\.(cu\w+)", PROBE_SOURCE, re.I))
        assert len(used) > 5
        assert [function for function in sorted(used) if not hasattr(bindings, function)] == []
