"""Time and memory of reading a safetensors file with the safetensors package and with weights/safetensors.py.

    python tests/safetensors_rates.py [GB]     a file of 0.8 GB of bfloat16 by default, read three times per method

Every tensor becomes the float32 matrix that the NumPy backend keeps. Each run is a process of its own; memory is its
peak (VmHWM) minus the float32 matrix, that is, pages of the file and copies.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np

ROWS, COLUMNS = 4096, 8192  # shape of a tensor of 64 MiB
SLICE = 256  # rows per read
WAYS = ("package: whole tensors", "package: slices of rows", "ours: views of the mapped file")


def write(file: Path, tensors: int) -> None:
    """Write a checkpoint of random numbers."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    new = lambda: rng.standard_normal((ROWS, COLUMNS), np.float32).astype(ml_dtypes.bfloat16)  # noqa: E731
    save_file({f"layers.{i}.weight": new() for i in range(tensors)}, file)


def read(way: str, file: Path) -> None:
    """Read every tensor into one float32 matrix."""
    out = np.empty((ROWS, COLUMNS), np.float32)
    if way == WAYS[2]:
        from ostinato.weights import files, safetensors

        for tensor in safetensors.read_file(file).values():
            out[...] = tensor.numbers()
            files.let_go(tensor.raw)
        return
    from safetensors import safe_open

    with safe_open(file, "numpy") as opened:
        for name in opened.keys():  # noqa: SIM118  not a dict
            if way == WAYS[0]:
                out[...] = opened.get_tensor(name)
                continue
            part = opened.get_slice(name)
            for row in range(0, ROWS, SLICE):
                out[row : row + SLICE] = part[row : row + SLICE]


def once(way: str, file: Path) -> None:
    """Read once and print time and memory as JSON."""
    began = time.perf_counter()
    read(way, file)
    seconds = time.perf_counter() - began
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"seconds": seconds, "mb": int(peak.split()[1]) / 1000 - ROWS * COLUMNS * 4 / 1e6}))


def main(gigabytes: float) -> None:
    """Measure each method three times, alternating."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        write(file, max(1, round(gigabytes * 1e9 / (ROWS * COLUMNS * 2))))
        found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(3):
            for way in WAYS:
                command = [sys.executable, __file__, "--once", way, str(file)]
                found[way].append(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
    for way, runs in found.items():
        print(f"{way:32} {min(run['seconds'] for run in runs):5.2f} s, {min(run['mb'] for run in runs):5.0f} MB")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--once"]:
        once(sys.argv[2], Path(sys.argv[3]))
    else:
        main(float(sys.argv[1]) if len(sys.argv) > 1 else 0.8)
