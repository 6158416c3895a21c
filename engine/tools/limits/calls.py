"""Probes: calls to the CUDA runtime, the driver and cuBLAS during stream capture.

Each probe issues the call between two kernels, so that a replay shows whether the capture is intact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...errors import DeviceError
from .lab import Lab, N
from .probe import CannotRun, probe


def _between(lab: Lab, call: Callable[[], Any], mode: str = "RELAXED") -> str:
    """Capture add_one, the call, times_two; replay twice."""
    data = lab.array()
    graph = lab.capture(lambda: (lab.run("add_one", data), call(), lab.run("times_two", data)), mode)
    graph.launch(2)
    lab.expect("data", data, 4 * np.arange(N) + 6)
    more = len(graph.nodes()) - 2
    return f"{more} node(s)" if more else "no node: executed during capture"


# -- the runtime ------------------------------------------------------------------------------------------------------


@probe("runtime API", "cudaMemcpyAsync to pinned host memory")
def copy_to_pinned(lab: Lab) -> str:
    """At every replay the host sees the values between two kernels."""
    data = lab.array()
    host = np.frombuffer(lab.cupy.cuda.alloc_pinned_memory(data.nbytes), np.float32, N)
    host[:] = 0

    def record() -> None:
        lab.run("add_one", data)
        _copy(lab, host.ctypes.data, data.data.ptr, data.nbytes, "DeviceToHost")
        lab.run("times_two", data)

    graph = lab.capture(record)
    graph.launch(2)
    lab.expect("host", host.copy(), 2 * np.arange(N) + 3)
    return f"{len(graph.nodes('MEMCPY'))} copy node"


@probe("runtime API", "cudaMemcpyAsync from pageable host memory")
def copy_from_pageable(lab: Lab) -> str:
    """The host's array is changed between replays."""
    data, host = lab.array(), np.arange(N, dtype=np.float32)

    def record() -> None:
        _copy(lab, data.data.ptr, host.ctypes.data, host.nbytes, "HostToDevice")
        lab.run("add_one", data)

    graph = lab.capture(record)
    graph.launch()
    lab.expect("data", data, np.arange(N) + 1)
    host[:] = 5
    graph.launch()
    lab.expect("data after the host's array was changed", data, 6)
    return f"{len(graph.nodes('MEMCPY'))} copy node, which reads the host's array at every replay"


def _copy(lab: Lab, to: int, source: int, size: int, kind: str) -> None:
    direction = getattr(lab.runtime.cudaMemcpyKind, f"cudaMemcpy{kind}")
    lab.ask(lab.runtime.cudaMemcpyAsync, to, source, size, direction, lab.stream.ptr)


@probe("runtime API", "cudaMemcpy (synchronous) from pageable host memory")
def copy_that_waits(lab: Lab) -> str:
    """The copy goes to the default stream, not to the captured one. Global capture mode."""
    other, host = lab.array(), np.ones(N, np.float32)
    kind = lab.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
    args = other.data.ptr, host.ctypes.data, host.nbytes, kind
    found = _between(lab, lambda: lab.ask(lab.runtime.cudaMemcpy, *args), "GLOBAL")
    lab.settle()
    lab.expect("the array copied to", other, 1)
    return found


@probe("runtime API", "CuPy's copy of a host array to the device", says="")
def copy_by_cupy(lab: Lab) -> str:
    """array.set(host, stream)."""
    other, host = lab.array(), np.ones(N, np.float32)
    return _between(lab, lambda: other.set(host, stream=lab.stream))


@probe("runtime API", "cudaMemsetAsync")
def memset(lab: Lab) -> str:
    """A memset node clears an array at every replay."""
    data = lab.array()

    def record() -> None:
        lab.ask(lab.runtime.cudaMemsetAsync, data.data.ptr, 0, data.nbytes, lab.stream.ptr)
        lab.run("add_one", data)

    graph = lab.capture(record)
    graph.launch(3)
    lab.expect("data", data, 1)
    return f"{len(graph.nodes('MEMSET'))} memset node"


@probe("runtime API", "cudaStreamSynchronize of the captured stream")
def stream_synchronize(lab: Lab) -> str:
    """Waits for a stream on which nothing runs during capture."""
    return _between(lab, lambda: lab.ask(lab.runtime.cudaStreamSynchronize, lab.stream.ptr))


@probe("runtime API", "cudaStreamQuery of the captured stream")
def stream_query(lab: Lab) -> str:
    """The call behind CuPy's stream.done."""
    return _between(lab, lambda: lab.ask(lab.runtime.cudaStreamQuery, lab.stream.ptr))


@probe("runtime API", "cudaDeviceSynchronize")
def device_synchronize(lab: Lab) -> str:
    """Would also wait for the captured stream."""
    return _between(lab, lambda: lab.ask(lab.runtime.cudaDeviceSynchronize))


@probe("runtime API", "cudaEventSynchronize of an event of the capture")
def event_synchronize(lab: Lab) -> str:
    """During capture an event is an edge of the graph and never completes."""
    event = lab.cupy.cuda.Event(disable_timing=True)

    def call() -> None:
        lab.stream.record(event)
        lab.ask(lab.runtime.cudaEventSynchronize, event.ptr)

    return _between(lab, call)


@probe("runtime API", "a launch on the default (legacy) stream in a capture in global mode")
def legacy_stream(lab: Lab) -> str:
    """The legacy stream waits for all blocking streams, including the captured one."""
    blocking = lab.cupy.cuda.Stream()  # unlike lab.stream it synchronizes with the legacy stream
    data, apart = lab.array(), lab.array()

    def record() -> None:
        lab.run("add_one", data)
        with lab.cupy.cuda.Stream.null:
            lab.run("add_one", apart)

    lab.capture(record, "GLOBAL", stream=blocking).launch()
    lab.expect("data", data, np.arange(N) + 1)
    lab.expect("apart", apart, np.arange(N) + 1)
    return ""


@probe("runtime API", "cuBLAS through CuPy (cupy.matmul)", says="")
def cublas_by_cupy(lab: Lab) -> str:
    """CuPy checks whether the stream is being captured."""
    x, out = lab.array(np.eye(32)), lab.array(np.zeros((32, 32)))
    lab.cupy.matmul(x, x, out=out)  # creates the cuBLAS handle outside the capture
    return _between(lab, lambda: lab.cupy.matmul(x, x, out=out))


# -- the driver -------------------------------------------------------------------------------------------------------


@probe("driver API", "cuLaunchKernelEx with programmatic dependent launch (programmatic edges)")
def dependent_launch(lab: Lab) -> str:
    """Two launches of the engine's silu_mul; the second may start before the first has ended."""
    lab.needs(90)
    n = 512
    first = np.random.default_rng(0).standard_normal((1, 4 * n)).astype(np.float32)
    x, y, out = lab.array(first), lab.array(np.zeros((1, 2 * n))), lab.array(np.zeros((1, n)))
    kernel = lab.device.kernel("elementwise.cu", "silu_mul<float, 1>")

    def record() -> None:
        for source, to in ((x, y), (y, out)):
            width = to.shape[1]
            args = [source, to, np.int32(width)]
            lab.device.launch(kernel, (-(-width // 256), 1), (256,), args, dependent=True)

    record()
    right = lab.device.read(out)
    lab.device.write(out, np.zeros((1, n), np.float32))
    lab.capture(record).launch(2)
    lab.expect("out", out, right)
    silu = lambda a: a[:, : a.shape[1] // 2] / (1 + np.exp(-a[:, : a.shape[1] // 2])) * a[:, a.shape[1] // 2 :]  # noqa: E731
    if not np.allclose(right, silu(silu(first)), rtol=1e-4, atol=1e-6):
        raise CannotRun("the kernel is also wrong without a graph")
    return "same bits as the launches without a graph"


@probe("driver API", "a launch of clusters (distributed shared memory)")
def cluster_launch(lab: Lab) -> str:
    """Two blocks exchange their numbers."""
    lab.needs(90)
    data = lab.array([1, 2])
    kernel = lab.plain.get_function("swap")
    lab.capture(lambda: kernel((2,), (1,), (data,))).launch(3)
    lab.expect("data", data, [2, 1])
    return ""


@probe("driver API", "cublasGemmEx called directly, with its own workspace")
def cublas_directly(lab: Lab) -> str:
    """The call that the engine's backend cublas makes."""
    from ...ops.cublas import Cublas

    try:
        gemm = Cublas(lab.device)
    except DeviceError as e:
        raise CannotRun(str(e)) from e
    x, w = np.arange(4 * 64).reshape(4, 64) % 7, np.arange(32 * 64).reshape(32, 64) % 5
    a, b, out = lab.array(x), lab.array(w), lab.array(np.zeros((4, 32)))
    gemm(a, b, out, False, 1.0)
    lab.device.write(out, np.zeros((4, 32), np.float32))
    graph = lab.capture(lambda: gemm(a, b, out, True, 1.0))
    graph.launch(3)
    lab.expect("out", out, 3 * (x @ w.T))
    return f"{len(graph.nodes('KERNEL'))} kernel node(s)"


@probe("driver API", "cuCtxSynchronize")
def context_synchronize(lab: Lab) -> str:
    """The driver API's cudaDeviceSynchronize."""
    return _between(lab, lambda: lab.ask(lab.driver.cuCtxSynchronize))


@probe("driver API", "cuMemAlloc in a capture in global mode (strict)")
def driver_alloc(lab: Lab) -> str:
    """The driver API's cudaMalloc."""
    return _between(lab, lambda: lab.ask(lab.driver.cuMemAlloc, 4096), "GLOBAL")
