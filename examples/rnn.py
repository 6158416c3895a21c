"""A recurrent network as a CUDA graph: one time step of an LSTM, captured once, launched once a step.

What changes from step to step is in device memory: the state of every layer, and which step it is. So the same graph
is right for every step, and nothing of it is updated in between. A step of two layers is five kernels:

    gates    gates[row] = bias[row] + weight[row] . (x[t], h)        a warp a row, for i, f, g, o one below the other
    cell     c = sigmoid(f) c + sigmoid(i) tanh(g),  h = y[t] = sigmoid(o) tanh(c)
    gates, cell                                                      the next layer, whose x is the y of this one
    advance  t += 1

An LSTM at batch 1 is the case that graphs are for: kernels of some microseconds, each waiting for the one before.
"""

import sys
import time
from functools import partial

import numpy as np
from on_gpu import on_gpu

INPUTS, HIDDEN, LAYERS, STEPS = 128, 256, 2, 500

SOURCE = r"""
extern "C" __global__ void gates(const float* weight, const float* bias, const float* x, const float* h, const int* t,
                                 float* out, int inputs, int hidden) {
    int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    const float* w = weight + row * (inputs + hidden);
    const float* now = x + *t * inputs;
    float sum = 0;
    for (int k = lane; k < inputs; k += 32) sum += w[k] * now[k];
    for (int k = lane; k < hidden; k += 32) sum += w[inputs + k] * h[k];
    for (int far = 16; far; far /= 2) sum += __shfl_xor_sync(0xffffffff, sum, far);
    if (lane == 0) out[row] = sum + bias[row];
}

__device__ float sigmoid(float v) { return 1.f / (1.f + expf(-v)); }

extern "C" __global__ void cell(const float* gates, const int* t, float* c, float* h, float* y, int hidden) {
    int k = blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= hidden) return;
    float i = gates[k], f = gates[hidden + k], g = gates[2 * hidden + k], o = gates[3 * hidden + k];
    c[k] = sigmoid(f) * c[k] + sigmoid(i) * tanhf(g);
    h[k] = y[*t * hidden + k] = sigmoid(o) * tanhf(c[k]);
}

extern "C" __global__ void advance(int* t) { *t += 1; }
"""

Layer = tuple[np.ndarray, np.ndarray]  # weight [4 H, inputs + H], bias [4 H]: rows of the gates i, f, g, o


def network(inputs: int, hidden: int, layers: int) -> list[Layer]:
    """Random weights, as PyTorch begins with: uniform within 1 / sqrt(hidden)."""
    rng, bound = np.random.default_rng(0), hidden**-0.5
    widths = [inputs, *[hidden] * (layers - 1)]
    draw = lambda *shape: rng.uniform(-bound, bound, shape).astype(np.float32)  # noqa: E731
    return [(draw(4 * hidden, width + hidden), draw(4 * hidden)) for width in widths]


def expected(layers: list[Layer], x: np.ndarray) -> np.ndarray:
    """The last layer's y [steps, H] for x [steps, inputs], in float64."""
    sigmoid = lambda v: 1 / (1 + np.exp(-v))  # noqa: E731
    for weight, bias in layers:
        hidden = len(bias) // 4
        h, c, y = np.zeros(hidden), np.zeros(hidden), []
        for now in x:
            i, f, g, o = np.split(weight.astype(np.float64) @ np.concatenate([now, h]) + bias, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            y.append(h)
        x = np.array(y)
    return x


def run(cupy, layers: list[Layer], x: np.ndarray, captured: bool) -> tuple[np.ndarray, float]:
    """The last layer's y [steps, H], by replays of one graph or by eager launches, and the seconds that took."""
    module = cupy.RawModule(code=SOURCE)
    gates, cell, advance = (module.get_function(name) for name in ("gates", "cell", "advance"))
    stream, steps = cupy.cuda.Stream(non_blocking=True), len(x)
    with stream:
        t, sequence, calls = cupy.zeros((1,), np.int32), cupy.asarray(x), []
        for weight, bias in layers:
            hidden = len(bias) // 4
            h, c = cupy.zeros((hidden,), np.float32), cupy.zeros((hidden,), np.float32)
            out, y = cupy.zeros((4 * hidden,), np.float32), cupy.zeros((steps, hidden), np.float32)
            sizes = np.int32(weight.shape[1] - hidden), np.int32(hidden)
            args = (cupy.asarray(weight), cupy.asarray(bias), sequence, h, t, out, *sizes)
            calls.append((gates, (4 * hidden // 8,), (256,), args))  # 8 warps a block: hidden is even
            calls.append((cell, (-(-hidden // 128),), (128,), (out, t, c, h, y, np.int32(hidden))))
            sequence = y
        calls.append((advance, (1,), (1,), (t,)))

        def step() -> None:
            for kernel, grid, block, args in calls:
                kernel(grid, block, args)

        stream.synchronize()
        launch = step
        if captured:
            stream.begin_capture()
            step()
            launch = partial(stream.end_capture().launch, stream)
        began = time.perf_counter()
        for _ in range(steps):
            launch()
        stream.synchronize()
        seconds = time.perf_counter() - began
        return cupy.asnumpy(sequence), seconds


def example(cupy) -> int:
    """Both ways, compared with NumPy and with one another."""
    layers = network(INPUTS, HIDDEN, LAYERS)
    x = np.random.default_rng(1).standard_normal((STEPS, INPUTS)).astype(np.float32)
    right, errors, seconds = expected(layers, x), [], {}
    for captured in (False, True) * 2:  # the first round compiles and warms
        y, seconds[captured] = run(cupy, layers, x, captured)
        errors.append(np.abs(y - right).max())
    if not (error := np.max(errors)) < 1e-5:
        print(f"rnn: WRONG by {error:.3g}", file=sys.stderr)
        return 1
    eager, replayed = (seconds[captured] / STEPS * 1e6 for captured in (False, True))
    print(f"{STEPS} steps of {LAYERS} LSTM layers of {HIDDEN}, as NumPy to {error:.1g}.")
    print(f"Eager: {eager:.1f} us a step. Replayed, {2 * LAYERS + 1} kernels a graph: {replayed:.1f} us, "
          f"{eager / replayed:.1f} times as fast.")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(on_gpu(example))
