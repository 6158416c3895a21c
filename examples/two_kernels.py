"""The smallest CUDA graph worth having: two kernels and a copy to the host between them.

What happens, in stream order, every time the graph is launched:

    add_one      data[i] += 1
    copy         host[i] = data[i]
    times_two    data[i] *= 2

so the host sees what stood between the kernels, and the device carries its array on to the next launch. Nothing of this
runs while it is recorded: the first launch starts from the data as it was before.
"""

import sys

import numpy as np
from on_gpu import on_gpu

N, THREADS, LAUNCHES = 1000, 128, 3  # N is no multiple of THREADS: the last block has idle threads

SOURCE = r"""
extern "C" __global__ void add_one(float* data, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) data[i] += 1.0f;
}

extern "C" __global__ void times_two(float* data, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) data[i] *= 2.0f;
}
"""


def expected(data: np.ndarray, launches: int) -> tuple[np.ndarray, np.ndarray]:
    """What the host and the device hold after so many launches, computed the plain way."""
    host = np.zeros_like(data)
    for _ in range(launches):
        host = data + 1
        data = host * 2
    return host, data


def run(cupy, launches: int) -> tuple[np.ndarray, np.ndarray]:
    """Capture once, launch `launches` times; what the host and the device then hold."""
    module = cupy.RawModule(code=SOURCE)
    add_one, times_two = module.get_function("add_one"), module.get_function("times_two")
    stream = cupy.cuda.Stream(non_blocking=True)  # the legacy default stream cannot be captured
    grid, block = ((N + THREADS - 1) // THREADS,), (THREADS,)
    with stream:
        data = cupy.arange(N, dtype=cupy.float32)
        memory = cupy.cuda.alloc_pinned_memory(N * 4)  # a copy from pageable memory would not be asynchronous
        host = np.frombuffer(memory, np.float32, N)
        args = (data, np.int32(N))
        stream.synchronize()

        stream.begin_capture()
        add_one(grid, block, args)
        cupy.cuda.runtime.memcpyAsync(
            host.ctypes.data, data.data.ptr, N * 4, cupy.cuda.runtime.memcpyDeviceToHost, stream.ptr
        )
        times_two(grid, block, args)
        graph = stream.end_capture()  # instantiated here, ready to launch

        for _ in range(launches):
            graph.launch(stream)
        stream.synchronize()
        return host.copy(), cupy.asnumpy(data)


def example(cupy) -> int:
    """Launch the graph and compare."""
    host, device = run(cupy, LAUNCHES)
    right_host, right_device = expected(np.arange(N, dtype=np.float32), LAUNCHES)
    if not (np.array_equal(host, right_host) and np.array_equal(device, right_device)):
        print("two_kernels: WRONG result", file=sys.stderr)
        return 1
    print(f"{LAUNCHES} launches of one graph of 3 nodes: host {host[:4]}, device {device[:4]}: as expected")
    return 0


if __name__ == "__main__":
    sys.exit(on_gpu(example))
