"""Probes: allocation of device memory during capture."""

from __future__ import annotations

import numpy as np

from .lab import Graph, Lab, N, free
from .probe import Wrong, probe


@probe("allocation", "a temporary from CuPy's pool, freed before the capture ends")
def pool_temporary(lab: Lab) -> str:
    """The replay alone leaves the right numbers."""
    data, out = lab.array(), lab.array()
    _with_temporary(lab, data, out).launch(2)
    lab.expect("out", out, np.arange(N) + 1)
    return ""


@probe("allocation", "... whose memory the pool does not reuse while the graph lives", says="")
def pool_temporary_is_kept(lab: Lab) -> str:
    """Arrays made after the capture keep their values over a replay."""
    data, out = lab.array(), lab.array()
    graph = _with_temporary(lab, data, out)
    later = [lab.array(np.full(N, -1)) for _ in range(4)]
    graph.launch()
    lab.expect("out", out, np.arange(N) + 1)
    hurt = sum(bool((lab.device.read(array) != -1).any()) for array in later)
    if hurt:
        raise Wrong(f"the pool reused the memory: the replay overwrote {hurt} of {len(later)} arrays allocated later")
    return ""


def _with_temporary(lab: Lab, data, out) -> Graph:
    def record() -> None:
        temporary = lab.cupy.empty(N, np.float32)
        lab.run("copy", data, temporary)
        lab.run("add_one", temporary)
        lab.run("copy", temporary, out)

    lab.cupy.empty(N, np.float32)  # leaves a block of that size in the pool
    return lab.capture(record)


@probe("allocation", "cudaMalloc in a capture in global mode (strict)")
def malloc_global(lab: Lab) -> str:
    """Global is the default capture mode in C++."""
    return _malloc(lab, "GLOBAL")


@probe("allocation", "cudaMalloc in a capture in relaxed mode (CuPy's)")
def malloc_relaxed(lab: Lab) -> str:
    """The call does not become a node: it runs once, at capture."""
    return _malloc(lab, "RELAXED")


def _malloc(lab: Lab, mode: str) -> str:
    data, given = lab.array(), []

    def record() -> None:
        given.append(lab.ask(lab.runtime.cudaMalloc, N * 4))
        memory = lab.cupy.cuda.UnownedMemory(given[0], N * 4, None)
        mine = lab.cupy.ndarray((N,), np.float32, lab.cupy.cuda.MemoryPointer(memory, 0))
        lab.run("copy", data, mine)
        lab.run("add_one", mine)
        lab.run("copy", mine, data)

    try:
        lab.capture(record, mode).launch(2)
        lab.expect("data", data, np.arange(N) + 2)
    finally:
        for address in given:
            free(lab, address)
    return "no node: allocated once, at capture"


@probe("allocation", "cudaMallocAsync and cudaFreeAsync as nodes")
def malloc_async(lab: Lab) -> str:
    """Every replay allocates and frees."""
    data = lab.array()

    def record() -> None:
        address = lab.ask(lab.runtime.cudaMallocAsync, N * 4, lab.stream.ptr)
        memory = lab.cupy.cuda.UnownedMemory(int(address), N * 4, None)
        mine = lab.cupy.ndarray((N,), np.float32, lab.cupy.cuda.MemoryPointer(memory, 0))
        lab.run("copy", data, mine)
        lab.run("add_one", mine)
        lab.run("copy", mine, data)
        lab.ask(lab.runtime.cudaFreeAsync, address, lab.stream.ptr)

    graph = lab.capture(record)
    graph.launch(3)
    lab.expect("data", data, np.arange(N) + 3)
    return f"{len(graph.nodes('MEM_ALLOC'))} allocation node, {len(graph.nodes('MEM_FREE'))} free node"
