"""Two streams in one CUDA graph: the work forks, runs on both at the same time, and joins.

    a --+--> square_root:  x = (x + a / x) / 2,         again and again --+--> product: square root * cube root
        +--> cube_root:    x = (2 x + a / x^2) / 3,     again and again --+

Events draw the edges. An event recorded on the captured stream and waited for on another one takes that stream into
the capture: from there its launches go into the same graph. A second event brings it back, and must: a capture that
ends with a stream still out is an error. The graph itself has no streams and events, only the order of its kernels.

The kernels are a few blocks each, so two branches fit on the GPU side by side. They calculate longer than they need to:
what is shown is the time.
"""

import sys
import time

import numpy as np
from on_gpu import on_gpu

N, THREADS, KERNELS, LAUNCHES = 1024, 128, 10, 200  # KERNELS: on each branch

SOURCE = r"""
extern "C" __global__ void square_root(const float* a, float* x, int n, int rounds) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float v = x[i];
    for (int r = 0; r < rounds; r++) v = 0.5f * (v + a[i] / v);
    x[i] = v;
}

extern "C" __global__ void cube_root(const float* a, float* x, int n, int rounds) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float v = x[i];
    for (int r = 0; r < rounds; r++) v = (2.f * v + a[i] / (v * v)) * (1.f / 3.f);
    x[i] = v;
}

extern "C" __global__ void product(const float* x, const float* y, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = x[i] * y[i];
}
"""


def run(cupy, a: np.ndarray, forked: bool, launches: int, rounds: int) -> tuple[np.ndarray, float]:
    """a^(1/2) * a^(1/3) by a graph with or without a fork, and the seconds a launch of it takes."""
    module = cupy.RawModule(code=SOURCE)
    names = "square_root", "cube_root", "product"
    square_root, cube_root, product = (module.get_function(name) for name in names)
    stream, other = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    fork, join = (cupy.cuda.Event(disable_timing=True) for _ in range(2))
    grid, block, n = (-(-len(a) // THREADS),), (THREADS,), np.int32(len(a))
    with stream:
        given, out = cupy.asarray(a), cupy.zeros((len(a),), np.float32)
        x, y = cupy.asarray(np.ones_like(a)), cupy.asarray(np.ones_like(a))
    stream.synchronize()

    def branch(kernel, array) -> None:
        for _ in range(KERNELS):
            kernel(grid, block, (given, array, n, np.int32(rounds)))

    with stream:
        stream.begin_capture()
        if forked:
            stream.record(fork)
            other.wait_event(fork)  # from here on `other` is captured as well
        with other if forked else stream:
            branch(cube_root, y)
        branch(square_root, x)
        if forked:
            other.record(join)
            stream.wait_event(join)
        product(grid, block, (x, y, out, n))
        graph = stream.end_capture()

        graph.launch(stream)
        stream.synchronize()
        began = time.perf_counter()
        for _ in range(launches):
            graph.launch(stream)
        stream.synchronize()
        seconds = time.perf_counter() - began
        return cupy.asnumpy(out), seconds / launches


def example(cupy) -> int:
    """Both graphs, compared with NumPy and with one another."""
    a = np.linspace(1, 4, N, dtype=np.float32)
    times, errors = {}, []
    for forked in (False, True):
        out, times[forked] = run(cupy, a, forked, LAUNCHES, rounds=200)
        errors.append(np.abs(out / a.astype(np.float64) ** (5 / 6) - 1).max())
    if not (error := np.max(errors)) < 1e-6:
        print(f"streams: WRONG by {error:.3g}", file=sys.stderr)
        return 1
    one, two = (times[forked] * 1e6 for forked in (False, True))
    print(f"{2 * KERNELS + 1} kernels in one graph, as NumPy to {error:.1g}.")
    print(f"On one stream: {one:.0f} us. Forked to two: {two:.0f} us, {one / two:.2f} times as fast.")
    return 0


if __name__ == "__main__":
    sys.exit(on_gpu(example))
