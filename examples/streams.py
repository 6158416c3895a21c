"""Two streams in one CUDA graph: the work forks, runs on both at the same time, and joins.

    a --+--> root: x = (x + a / x) / 2, again and again       --+--> product = root * inverse = 1 / sqrt(a)
        +--> inverse: x = x (2 - a x), again and again        --+

Events draw the edges. An event recorded on the captured stream and waited for on another one takes that stream into
the capture: from there its launches go into the same graph. A second event brings it back, and must: a capture that
ends with a stream still out is an error. In the graph nothing is left of streams and events but who waits for whom.

The kernels are a few blocks each, so two branches fit on the GPU side by side. They calculate longer than they need to:
what is shown is the time.
"""

import sys
import time

import numpy as np
from on_gpu import on_gpu

N, THREADS, KERNELS, LAUNCHES = 1024, 128, 10, 200  # KERNELS: on each branch

SOURCE = r"""
extern "C" __global__ void root(const float* a, float* x, int n, int rounds) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float v = x[i];
    for (int r = 0; r < rounds; r++) v = 0.5f * (v + a[i] / v);
    x[i] = v;
}

extern "C" __global__ void inverse(const float* a, float* x, int n, int rounds) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float v = x[i];
    for (int r = 0; r < rounds; r++) v = v * (2.f - a[i] * v);
    x[i] = v;
}

extern "C" __global__ void product(const float* x, const float* y, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = x[i] * y[i];
}
"""


def run(cupy, a: np.ndarray, forked: bool, launches: int, rounds: int) -> tuple[np.ndarray, float]:
    """1 / sqrt(a) by a graph with or without a fork, and the seconds a launch of it takes."""
    module = cupy.RawModule(code=SOURCE)
    root, inverse, product = (module.get_function(name) for name in ("root", "inverse", "product"))
    stream, other = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    fork, join = (cupy.cuda.Event(disable_timing=True) for _ in range(2))
    grid, block, n = (-(-len(a) // THREADS),), (THREADS,), np.int32(len(a))
    with stream:
        given, out = cupy.asarray(a), cupy.zeros((len(a),), np.float32)
        x, y = cupy.asarray(np.ones_like(a)), cupy.asarray(np.full_like(a, 0.1))
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
            branch(inverse, y)
        branch(root, x)
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
        return cupy.asnumpy(out), (time.perf_counter() - began) / max(1, launches)


def example(cupy) -> int:
    """Both graphs, compared with NumPy and with one another."""
    a = np.linspace(1, 4, N, dtype=np.float32)
    times = {}
    for forked in (False, True):
        out, times[forked] = run(cupy, a, forked, LAUNCHES, rounds=200)
        error = np.abs(out * np.sqrt(a.astype(np.float64)) - 1).max()
        if not error < 1e-6:
            print(f"streams: WRONG by {error:.3g}", file=sys.stderr)
            return 1
    one, two = (times[forked] * 1e6 for forked in (False, True))
    print(f"{2 * KERNELS + 1} kernels in one graph, as NumPy to {error:.1g}. On one stream: {one:.0f} us; "
          f"forked to two: {two:.0f} us, {one / two:.2f} times as fast")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(on_gpu(example))
