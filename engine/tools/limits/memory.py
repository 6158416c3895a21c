"""Probes: the memory spaces that captured kernels use."""

from __future__ import annotations

import ctypes
import time

import numpy as np

from .lab import Lab, N
from .probe import probe


@probe("global memory", "kernels that read and write device arrays")
def global_memory(lab: Lab) -> str:
    """A replay reads values written between replays, because a graph holds addresses."""
    data = lab.array()
    graph = lab.capture(lambda: (lab.run("add_one", data), lab.run("times_two", data)))
    graph.launch(2)
    lab.expect("data", data, 4 * np.arange(N) + 6)
    lab.device.write(data, np.full(N, 5, np.float32))
    graph.launch()
    lab.expect("data after it was written between replays", data, 12)
    return ""


@probe("shared memory", "static shared memory")
def static_shared_memory(lab: Lab) -> str:
    """Every block reverses its elements."""
    data = lab.array(range(512))
    lab.capture(lambda: lab.run("reverse_static", data)).launch()
    lab.expect("data", data, np.arange(512).reshape(4, 128)[:, ::-1].ravel())
    return ""


@probe("shared memory", "more dynamic shared memory than the 48 KB of an ordinary launch")
def dynamic_shared_memory(lab: Lab) -> str:
    """The function attribute is set before the capture; the launch is captured."""
    n = 20000
    data = lab.array(range(n))
    lab.plain.get_function("reverse_dynamic").max_dynamic_shared_size_bytes = 4 * n
    lab.capture(lambda: lab.run("reverse_dynamic", data, grid=1, block=1024, shared=4 * n)).launch()
    lab.expect("data", data, np.arange(n)[::-1])
    return f"{4 * n} bytes"


@probe("constant memory", "a __constant__ variable, changed between replays")
def constant_memory(lab: Lab) -> str:
    """The value is read at replay, not at capture."""
    data, factor = lab.array(np.ones(N)), lab.plain.get_global("factor")

    def put(value: float) -> None:
        host = np.array([value], np.float32)
        factor.copy_from_host(ctypes.c_void_p(host.ctypes.data), 4)
        lab.settle()

    put(3)
    graph = lab.capture(lambda: lab.run("times_constant", data))
    graph.launch()
    put(5)
    graph.launch()
    lab.expect("data", data, 15)
    return "the second replay took the new value"


@probe("texture memory", "a texture object with linear filtering")
def texture_memory(lab: Lab) -> str:
    """A CUDA array, sampled half way between its elements."""
    from_cupy, n = lab.cupy.cuda, 64
    kind = from_cupy.texture.ChannelFormatDescriptor(32, 0, 0, 0, lab.runtime.cudaChannelFormatKind(2).value)
    texels = from_cupy.texture.CUDAarray(kind, n)
    texels.copy_from(np.arange(0, 2 * n, 2, dtype=np.float32))
    lab.settle()
    resource = from_cupy.texture.ResourceDescriptor(from_cupy.runtime.cudaResourceTypeArray, cuArr=texels)
    how = from_cupy.texture.TextureDescriptor(
        (from_cupy.runtime.cudaAddressModeClamp,), from_cupy.runtime.cudaFilterModeLinear
    )
    texture, out = from_cupy.texture.TextureObject(resource, how), lab.array(np.zeros(n))
    kernel = lab.plain.get_function("between")
    graph = lab.capture(lambda: kernel((1,), (n,), (texture, out, np.int32(n))))
    graph.launch()
    right = np.minimum(2 * np.arange(n) + 1, 2 * n - 2)
    lab.expect("out", out, right)
    texels.copy_from(np.arange(0, 4 * n, 4, dtype=np.float32))
    lab.settle()
    graph.launch()
    lab.expect("out after the texture was written between replays", out, 2 * right)
    return ""


@probe("unified memory", "managed memory that the host writes between replays and reads after them")
def managed_memory(lab: Lab) -> str:
    """The host waits for the replay before it touches the array."""
    data, host = _managed(lab, N)
    host[:] = np.arange(N)
    graph = lab.capture(lambda: lab.run("add_one", data))
    graph.launch(2)
    lab.expect("managed array", host.copy(), np.arange(N) + 2)
    host[:] = 7
    graph.launch()
    lab.expect("managed array after the host wrote it", host.copy(), 8)
    return f"{N * 4} bytes"


@probe("unified memory", "managed memory that host and kernel use at the same time")
def managed_memory_at_once(lab: Lab) -> str:
    """While the graph runs, its kernel waits for a number from the host."""
    words, host = _managed(lab, 2, np.int32)
    host[:] = 0
    kernel = lab.plain.get_function("answer_host")
    graph = lab.capture(lambda: kernel((1,), (1,), (words[:1], words[1:])))
    graph.start()
    time.sleep(0.02)
    host[0] = 41
    lab.synchronize()
    lab.expect("the kernel's answer", host[1:].copy(), 42)
    return "the kernel saw what the host wrote during the replay"


@probe("unified memory", "cudaMemPrefetchAsync of managed memory in a capture")
def managed_prefetch(lab: Lab) -> str:
    """A node of the graph would move the pages to the GPU."""
    data, host = _managed(lab, N)
    host[:] = np.arange(N)
    here = lab.cupy.cuda.Device().id

    def record() -> None:
        lab.cupy.cuda.runtime.memPrefetchAsync(data.data.ptr, data.nbytes, here, lab.stream.ptr)
        lab.run("add_one", data)

    lab.capture(record).launch(2)
    lab.expect("managed array", host.copy(), np.arange(N) + 2)
    return ""


def _managed(lab: Lab, n: int, dtype: type = np.float32) -> tuple:
    """n elements of managed memory as (device array, host array)."""
    memory = lab.cupy.cuda.malloc_managed(n * 4)
    data = lab.cupy.ndarray((n,), dtype, memory)
    lab.settle()
    return data, np.ctypeslib.as_array((ctypes.c_uint32 * n).from_address(memory.ptr)).view(dtype)
