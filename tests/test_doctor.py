"""`ostinato doctor`: its report for every kind of driver, and a whole run on this machine."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ostinato.cli import main as cli
from ostinato.tools import doctor


def gpu(arch: int = 90) -> doctor.Gpu:
    return doctor.Gpu("Some GPU", arch, 2**36)


@pytest.mark.parametrize(
    ("driver", "cards", "ok", "says"),
    [
        pytest.param(doctor.Driver(problem="no libcuda"), 0, [None], "no NVIDIA GPU", id="no-gpu"),
        pytest.param(doctor.Driver(problem="no libcuda"), 1, [False], "install the NVIDIA driver", id="no-driver"),
        pytest.param(doctor.Driver(13000, problem="error 999"), 2, [False], "nvidia-smi", id="driver-fails"),
        pytest.param(doctor.Driver(11040, (gpu(),)), 1, [False, True], "update", id="old-driver"),
        pytest.param(doctor.Driver(12080, (gpu(75),)), 1, [True, False], "compute capability 8.0", id="old-gpu"),
        pytest.param(doctor.Driver(13000, (gpu(), gpu())), 2, [True, True, True], "CUDA up to 13.0", id="good"),
    ],
)
def test_doctor_on_the_driver(driver: doctor.Driver, cards: int, ok: list[bool | None], says: str) -> None:
    found = list(doctor.examine_driver(driver, cards))
    assert [f.ok for f in found] == ok
    assert all(bool(f.fix) == (f.ok is False) for f in found)
    assert says in " ".join(f.found + f.fix for f in found)


@pytest.mark.parametrize(
    ("version", "gpus", "extra"),
    [
        pytest.param(0, 0, "", id="no-driver"),
        pytest.param(13000, 0, "", id="no-gpu"),
        pytest.param(11080, 1, "", id="too-old"),
        pytest.param(12000, 1, "cuda12", id="12.0"),
        pytest.param(12090, 1, "cuda12", id="12.9"),
        pytest.param(13000, 1, "cuda13", id="13.0"),
        pytest.param(13020, 2, "cuda13", id="13.2"),
    ],
)
def test_doctor_chooses_the_wheels(version: int, gpus: int, extra: str) -> None:
    assert doctor.extra(doctor.Driver(version, (gpu(),) * gpus)) == extra


def test_doctor_counts_cards(tmp_path: Path) -> None:
    for name, vendor, kind in [("a", "0x10de", "0x030200"), ("b", "0x10de", "0x040300"), ("c", "0x8086", "0x030000")]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(vendor + "\n")
        (tmp_path / name / "class").write_text(kind + "\n")
    (tmp_path / "d").mkdir()
    assert doctor.nvidia_cards(tmp_path) == 1


def test_doctor_reports_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["doctor", "--json"])
    found = {f["name"]: f for f in json.loads(capsys.readouterr().out)}
    parts = {"python", "driver", "cupy", "bindings", "runtime", "nvrtc", "headers", "numpy", "cuda", "cublas"}
    assert parts <= set(found)
    assert found["numpy"]["ok"] is True
    assert code == int(any(f["ok"] is False for f in found.values()))
    assert cli.main(["doctor"]) == code
    lines = capsys.readouterr().out
    assert all(re.search(rf"^(ok|--|FAIL) +{name} ", lines, re.M) for name in parts)


@pytest.mark.skipif(bool(doctor.driver().gpus), reason="there is a GPU here")
def test_doctor_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["doctor", "--json"])
    found = {f["name"]: f["ok"] for f in json.loads(capsys.readouterr().out)}
    assert (code, found["driver"], found["cuda"], found["cublas"]) == (0, None, None, None)
    assert cli.main(["doctor", "--extra"]) == 0
    assert capsys.readouterr().out == "\n"
