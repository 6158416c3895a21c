"""Every kernel compiles for every supported GPU, keeps its values in registers and fits its launch bound.

For sm_90 every instance is compiled, for the other architectures the largest of each kind: instances.py.
"""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from instances import INSTANCES, QUANTISED, kind, on
from ptxas import REGISTERS, CompileError, Usage, missing, usage

from ostinato.ops.device import KERNELS
from ostinato.ops.formats import FORMS, QuantisedForm

ARCHS = (80, 89, 90, 100, 120)
PART = 60  # instances compiled in one go: a program of several hundred would keep one core busy to the end


@dataclass(frozen=True)
class Compiled:
    """The instances of a file for an architecture, compiled in parts."""

    parts: list[Future[dict[str, Usage]]]

    def result(self) -> dict[str, Usage]:
        """Instance -> what it needs; CompileError if one does not compile."""
        return {name: found for part in self.parts for name, found in part.result().items()}


Jobs = dict[tuple[str, int], Compiled]


@pytest.fixture(scope="module")
def jobs() -> Iterator[Jobs]:
    """All compilations, two at a time, started with the first test."""
    if reason := missing():
        pytest.skip(reason)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield {
            (file, arch): Compiled(
                [pool.submit(usage, file, names[i : i + PART], arch) for i in range(0, len(names), PART)]
            )
            for arch in ARCHS
            for file, names in on(arch).items()
        }
        pool.shutdown(cancel_futures=True)


# Bytes that NVRTC 12.9 spills at most: nested scales at 16 rows need more registers there than 16 warps leave.
SPILLS = {
    (arch, f"decode_store<Quantised<{codes}, 128, bf16>, float, STAGED, Shape<16, 1, 1, 16, 1, 1, REGISTERS>>"): 56
    for arch in (100, 120)
    for codes in ("Nibbles, Nested<32, 0, true>", "Longer<2>, Nested<16, 32, false>")
}


@pytest.mark.parametrize("arch", ARCHS, ids=lambda arch: f"sm_{arch}")
@pytest.mark.parametrize("file", INSTANCES)
def test_instances(jobs: Jobs, file: str, arch: int):
    found = jobs[file, arch].result()
    assert set(found) == set(on(arch)[file])
    local = {name: u for name, u in found.items() if u.spills or u.stack}
    more = {name: u for name, u in local.items() if u.spills > SPILLS.get((arch, name), -1)}
    assert not more, "local memory instead of registers"
    wide = {name: u for name, u in found.items() if u.registers * -(-u.threads // 32) * 32 > REGISTERS}
    assert not wide, "more registers than a block of __launch_bounds__ threads can have"


def test_every_word_of_the_weights_is_used(jobs: Jobs):
    """A word that is loaded and never read means that the compiler has read another one in its place."""
    found = jobs["linear_decode.cu", 90].result()
    assert not {name: u.unused for name, u in found.items() if u.unused}


UNUSED = {
    "one": ("v.x + v.z + v.w", 1),
    "none": ("v.x + v.y + v.z + v.w", 0),
}


@pytest.mark.parametrize(("words", "count"), UNUSED.values(), ids=UNUSED)
def test_unused_words_are_counted(jobs: Jobs, monkeypatch, words: str, count: int):
    body = f"const uint4 v = load_stream(p); out[0] = {words};"
    source = f'#include "ptx.cuh"\nextern "C" __global__ void planted(const uint4* p, unsigned* out) {{ {body} }}'
    monkeypatch.setattr("ptxas.kernel_source", lambda file: source)
    assert usage("planted.cu", ["planted"], 90)["planted"].unused == count


def loads(key: str) -> int:
    """Of a step of a row tile of codes and scales."""
    form = FORMS[key]
    assert isinstance(form, QuantisedForm)
    lane = 2 * form.inner  # bytes of scales, of two rows
    planes = (form.slot - 32 * lane) // 512
    return planes + -(-lane // 16) + form.nested


def test_weights_are_prefetched_before_the_wait(jobs: Jobs):
    """A decode GEMM issues all loads of its pipeline before the wait: ptxas has moved none of them below it."""
    late = {}
    for name, u in jobs["linear_decode.cu", 90].result().items():
        _, _, tiles, _, depth, *_ = name.split("Shape<")[1].split(", ")
        each = next((loads(key) for key, weight in QUANTISED.items() if weight in name), 1)
        if u.early < int(tiles) * int(depth) * each:
            late[name] = u.early
    assert not late


@pytest.mark.parametrize("file", sorted(p.name for p in KERNELS.glob("*.cu")))
def test_every_kernel_has_an_instance(file: str):
    source = re.sub(r"//[^\n]*", "", (KERNELS / file).read_text())
    declared = re.findall(r"__global__\s+void\s+(?:__launch_bounds__\s*\([^;{]*?\)\s+)?(\w+)\s*\(", source)
    assert set(declared) == {name.split("<")[0] for name in INSTANCES.get(file, [])}


@pytest.mark.parametrize("arch", ARCHS, ids=lambda arch: f"sm_{arch}")
def test_clusters(jobs: Jobs, arch: int, monkeypatch):
    """The emulator's test kernel for clusters also compiles below sm_90, where a cluster is one block."""
    source = (Path(__file__).parent / "emulator" / "kernels" / "clusters.cu").read_text()
    monkeypatch.setattr("ptxas.kernel_source", lambda file: source)
    found = usage("clusters.cu", ["sum_of_cluster<1>", "sum_of_cluster<8>"], arch)
    assert not {name: u for name, u in found.items() if u.spills or u.stack}


def test_other_architectures_get_one_of_each_kind():
    for arch in (a for a in ARCHS if a != 90):
        for file, names in INSTANCES.items():
            kinds = [kind(name) for name in on(arch)[file]]
            assert sorted(kinds) == sorted({kind(name) for name in names})
    assert "attend_decode<float, 256, 1, 1>" in on(80)["attend_decode.cu"]
    assert len(on(90)["attend_decode.cu"]) > len(INSTANCES["attend_decode.cu"])


PLANTED = {
    "spill": ("__launch_bounds__(1024)", "for (int i = 0; i < 128; i++) v[i] = x[i * n]; __syncthreads(); "
              "for (int i = 0; i < 128; i++) x[i] = v[127 - i] * v[i];"),
    "stack": ("", "for (int i = 0; i < 128; i++) v[i * n % 128] += x[i]; x[0] = v[n % 64];"),
}  # fmt: skip


@pytest.mark.parametrize("kind", PLANTED)
def test_local_memory_is_found(jobs: Jobs, kind: str, monkeypatch):
    bounds, body = PLANTED[kind]
    source = f'extern "C" __global__ void {bounds} planted(float* x, int n) {{ float v[128]; {body} }}'
    monkeypatch.setattr("ptxas.kernel_source", lambda file: source)
    found = usage("planted.cu", ["planted"], 90)["planted"]
    assert found.stack > 0 and (found.spills > 0) == (kind == "spill")
    assert found.threads == 1024


def test_loads_before_the_wait_are_counted(jobs: Jobs, monkeypatch):
    body = "grid_wait(); out[threadIdx.x] = v.x;"
    for before, after, early in (("v = load_stream(x);", "", 1), ("", "v = load_stream(x);", 0)):
        source = '#include "ptx.cuh"\nextern "C" __global__ void planted(const uint4* x, unsigned* out) {'
        source += f"uint4 v; {before} {body.replace(';', f'; {after}', 1)} }}"
        monkeypatch.setattr("ptxas.kernel_source", lambda file, source=source: source)
        assert usage("planted.cu", ["planted"], 90)["planted"].early == early


def test_error_of_the_compiler_is_shown(jobs: Jobs, monkeypatch):
    monkeypatch.setattr("ptxas.kernel_source", lambda file: "__global__ void planted() { nonsense; }")
    with pytest.raises(CompileError, match=r'planted.cu for sm_90: .*identifier "nonsense" is undefined'):
        usage("planted.cu", ["planted"], 90)
