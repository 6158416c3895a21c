"""A real transformer layer as a CUDA graph: captured once, replayed layer by layer, with our GEMMs and with cuBLAS.

two_kernels.py captures kernels of its own. This file captures the library's: `parts` below is the list of callables
that the engine itself runs in a decode step, without the LM head.

    embed      x = table[ids]
    layer 0    QKV + RoPE + KV append, attention, O + residual, gate/up + SiLU, down + residual     five kernels
    layer 1    ...

Three ways to run it give the same bits:

    eager      every part is called every time: Python launches each kernel
    layer      every part was captured once: Python launches one graph a part
    step       all parts were captured together: Python launches one graph

Python takes longer to launch a kernel than the kernel takes to run, so the eager GPU waits for Python. That is what a
graph ends, and why nothing in a part may depend on a Python number that changes: token, position and block table are
arrays on the device. The engine's last kernel advances them; here every step is the same one.
"""

import sys
from collections.abc import Callable
from functools import partial

import numpy as np
from on_gpu import on_gpu

from ostinato import ModelConfig
from ostinato.models import decoder
from ostinato.ops.base import Cache, Ops, PassKind, Step
from ostinato.ops.cublas import CublasOps
from ostinato.ops.cuda import CudaOps
from ostinato.ops.gpu import CupyDevice
from ostinato.run import load
from ostinato.sizes import PAGE
from ostinato.tools.bench import synthetic

SHAPE, CONTEXT, STEPS = "llama-3.2-1b", 128, 200
Part = Callable[[], object]


def prepared(ops: Ops, c: ModelConfig, context: int) -> tuple[list[Part], Callable[[], np.ndarray]]:
    """The parts of a decode step of one sequence, and a way to read its residual stream x [1, D] afterwards.

    Weights, and keys and values of the `context` tokens before, are random: speed depends on shapes alone."""
    device, pages = ops.device, context // PAGE + 1
    w = load.weights(ops, synthetic.checkpoint(c, device, ops.dtype), c, max_len=pages * PAGE)
    b = ops.buffers(c, PassKind.DECODE, rows=1, last=1)
    shapes = [(pages, spec.kv_heads, PAGE, spec.head_dim) for spec in c.layers]
    caches = [Cache(*(synthetic.random(device, shape, ops.dtype) for _ in "kv")) for shape in shapes]
    one = lambda value: device.upload(np.array([value], np.int32))  # noqa: E731
    table = np.zeros((2, pages), np.int32)  # block tables of sequence 0 and of the padding sequence
    table[0] = np.arange(pages)
    step = Step(
        ids=one(7), seqs=one(0), positions=one(context), visible=one(context + 1), table=device.upload(table),
        last=one(0), kind=PassKind.DECODE,
    )  # fmt: skip
    parts: list[Part] = list(decoder.parts(ops, c, w, b, step, caches))
    return parts[:-1], lambda: device.read(b.x)


def captured(stream, parts: list[Part]):
    """The graph of every kernel that the parts launch. Nothing runs: the launches are written down."""
    stream.begin_capture()
    for part in parts:
        part()
    return stream.end_capture()


def ways(stream, parts: list[Part]) -> dict[str, list[Part]]:
    """What Python calls for a step, by the way to run it."""
    by_layer, whole = [captured(stream, [part]) for part in parts], captured(stream, parts)
    return {
        "eager": parts,
        "layer": [partial(graph.launch, stream) for graph in by_layer],
        "step": [partial(whole.launch, stream)],
    }


def measure(ops: Ops, c: ModelConfig, context: int, steps: int) -> tuple[dict[str, float], np.ndarray]:
    """us a step by every way, and x [1, D], which must have the same bits by all of them."""
    device, times, results = ops.device, {}, []
    parts, result = prepared(ops, c, context)
    for part in parts:  # once before capturing: kernels are compiled, memory is allocated
        part()
    device.synchronize()
    for way, calls in ways(device.stream, parts).items():
        began = device.record_event()
        for _ in range(steps):
            for call in calls:
                call()
        times[way] = device.elapsed(began, device.record_event()) / steps * 1e3
        results.append(result())
    if not all(np.array_equal(results[0], other) for other in results):
        raise SystemExit(f"one_layer: WRONG: {ops.name} gives other bits by a graph than eagerly")
    return times, results[0]


def compare(backends: list[Ops], c: ModelConfig, context: int, steps: int) -> float:
    """Print the table; how far apart the backends are, of the largest element of x."""
    print(f"{'backend':8} {'eager':>10} {'a graph a layer':>16} {'one graph':>10}    us a step")
    found = []
    for ops in backends:
        times, x = measure(ops, c, context, steps)
        found.append(x)
        print(f"{ops.name:8} {times['eager']:10.1f} {times['layer']:16.1f} {times['step']:10.1f}")
    return max(float(np.abs(found[0] - x).max() / np.abs(x).max()) for x in found)


def example(cupy) -> int:
    """Both backends on the GPU."""
    c, device = synthetic.shape(SHAPE), CupyDevice()
    print(f"{c.layer_count} layers of {SHAPE} on {device.name}, one sequence, {CONTEXT} tokens of context")
    apart = compare([CudaOps(device, "bfloat16"), CublasOps(device, "bfloat16")], c, CONTEXT, STEPS)
    print(f"The backends agree to {apart:.1g}. The same bits eagerly, by layer graphs and by one graph: as expected")
    return int(not apart < 0.05)


if __name__ == "__main__":
    sys.exit(on_gpu(example))
