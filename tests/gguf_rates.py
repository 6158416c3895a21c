"""What loading a Q4_K_M file costs, by the load path of a GPU that dequantises: seconds, and memory of the host.

    python tests/gguf_rates.py [layers]     of the shape of Llama 3.1 8B, 4 of its 32 layers by default

The file is made of random blocks. Its weights go through the backend cublas to a device that keeps nothing, in
bfloat16. Memory is what the process held at most (VmHWM) less what it held before. Seconds of the processor are those
of all threads; divided by the cores they are what an idle machine takes, if reading the file is no slower.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np

HIDDEN, FFN, HEADS, KV_HEADS, HEAD, VOCAB, LAYERS = 4096, 14336, 32, 8, 128, 128256, 32
SHAPES = {
    "attn_q": (HEADS * HEAD, HIDDEN), "attn_k": (KV_HEADS * HEAD, HIDDEN), "attn_v": (KV_HEADS * HEAD, HIDDEN),
    "attn_output": (HIDDEN, HEADS * HEAD), "ffn_gate": (FFN, HIDDEN), "ffn_up": (FFN, HIDDEN),
    "ffn_down": (HIDDEN, FFN),
}  # fmt: skip
ALL = 2 * VOCAB * HIDDEN + LAYERS * sum(n * k for n, k in SHAPES.values())  # numbers of the whole model


def matrices(layers: int) -> dict[str, tuple[str, int, int]]:
    """(type, rows, columns) of every matrix: every second layer has v and down in Q6_K."""
    found = {"token_embd": ("Q4_K", VOCAB, HIDDEN), "output": ("Q6_K", VOCAB, HIDDEN)}
    for i in range(layers):
        for name, shape in SHAPES.items():
            found[f"blk.{i}.{name}"] = ("Q6_K" if i % 2 and name in ("attn_v", "ffn_down") else "Q4_K", *shape)
    return found


def write(path: Path, layers: int) -> None:
    """A GGUF file whose matrices repeat some random rows."""
    sys.path.insert(0, str(Path(__file__).parent / "weights"))
    from checkpoint_files import (  # pyright: ignore[reportMissingImports]
        NUMBERS,
        gguf,
        info,
        llama_keys,
        random_blocks,
    )  # fmt: skip

    sizes = {"embedding_length": HIDDEN, "feed_forward_length": FFN, "block_count": layers, "context_length": 2048,
             "attention__head_count": HEADS, "attention__head_count_kv": KV_HEADS}  # fmt: skip
    norms = ["output_norm", *(f"blk.{i}.{n}_norm" for i in range(layers) for n in ("attn", "ffn"))]
    rows = {(kind, k): random_blocks(kind, 64, k, size=0.1).raw for kind, _, k in matrices(layers).values()}
    infos, at = [], 0
    for name, (kind, n, k) in matrices(layers).items():
        infos.append(info(f"{name}.weight", (k, n), NUMBERS[kind], at))
        at += n * rows[kind, k].shape[1]
    for name in norms:
        infos.append(info(f"{name}.weight", (HIDDEN,), NUMBERS["F32"], at))
        at += 4 * HIDDEN
    with open(path, "wb") as out:
        out.write(gguf(list(llama_keys(**{f"llama__{k}": v for k, v in sizes.items()}).items()), infos))
        for kind, n, k in matrices(layers).values():
            for first in range(0, n, 64):
                out.write(rows[kind, k][: n - first].tobytes())
        out.write(np.ones(HIDDEN * len(norms), "<f4").tobytes())


def held(key: str) -> int:
    """Bytes of this process by /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def load(path: Path) -> None:
    """Print what loading took, as JSON."""
    from ostinato.models.families import model_config
    from ostinato.ops.cublas import CublasOps
    from ostinato.ops.device import HostDevice
    from ostinato.run.load import weights
    from ostinato.weights.checkpoint import open_checkpoint

    class Nowhere(HostDevice):
        """A device whose arrays are one row."""

        def empty(self, shape, dtype):
            row = np.empty(shape[-1:], dtype)
            return np.lib.stride_tricks.as_strided(row, shape, (0,) * (len(shape) - 1) + row.strides)

        def write(self, array, host):
            """A copy, as into the pinned memory that uploads go through."""
            raw = host.reshape(-1).view(np.uint8)
            self.staged[: len(raw)] = raw

        def free_memory(self):
            return 1 << 40

        staged = np.empty(64 << 20, np.uint8)

    ops = CublasOps(Nowhere(), ml_dtypes.bfloat16, gemm=lambda *_: None)
    with open_checkpoint(path) as ck:
        c = model_config(ck.config, ck.generation_config, ck.source)
        before, began, cpu = held("VmRSS"), time.perf_counter(), time.process_time()
        weights(ops, ck, c)
        found = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}
    print(json.dumps({**found, "mb": (held("VmHWM") - before) / 1e6}))


def main(layers: int) -> None:
    """Measure three times; the smallest of each counts."""
    numbers = sum(n * k for _, n, k in matrices(layers).values())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write(path, layers)
        size = path.stat().st_size
        command = [sys.executable, __file__, "--load", str(path)]
        runs = [json.loads(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(3)]
    best = {key: min(run[key] for run in runs) for key in runs[0]}
    cores = len(os.sched_getaffinity(0))
    print(f"{layers} layers, {size / 1e9:.2f} GB, {numbers / 1e9:.2f} G numbers, {cores} cores: "
          f"{best['seconds']:.1f} s, {best['cpu']:.1f} s of the processor, {best['mb']:.0f} MB beside")  # fmt: skip
    print(f"scaled to {LAYERS} layers: {best['seconds'] * ALL / numbers:.1f} s, "
          f"{best['cpu'] * ALL / numbers:.1f} s of the processor")  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["--load"]:
        load(Path(sys.argv[2]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 4)
