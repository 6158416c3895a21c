"""Every quantised tensor of a GGUF file that people have, bit for bit against the gguf package.

    python tests/real_blocks.py FILE.gguf     of any architecture; of a split model any part, and all parts are read

Ends with status 1 if a number differs, or if no tensor is quantised.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np

from ostinato.weights import split
from ostinato.weights.quantised import Quantised

PIECE = 1 << 22  # numbers that are compared at a time


def pieces(stored: Quantised) -> Iterator[tuple[int, int]]:
    """First and last row of runs of rows of at most PIECE numbers, or of one row."""
    rows, columns = stored.shape
    step = max(1, PIECE // columns)
    return ((first, min(first + step, rows)) for first in range(0, rows, step))


def differing(stored: Quantised, theirs: gguf.ReaderTensor) -> int:
    """How many numbers of a matrix differ in their bits."""
    raw, count = theirs.data.reshape(stored.shape[0], -1), 0
    for first, last in pieces(stored):
        expected = gguf.dequantize(raw[first:last], theirs.tensor_type).astype("f4", copy=False)
        count += int(np.count_nonzero(stored.numbers(first, last).view("u4") != expected.view("u4")))
    return count


def main(path: Path) -> int:
    """Compare, and print a line for each type."""
    ours = split.read_model(path).tensors
    theirs = {t.name: t for part in split.parts(path) for t in gguf.GGUFReader(part).tensors}
    assert ours.keys() == theirs.keys(), sorted(ours.keys() ^ theirs.keys())
    tensors, numbers, wrong = Counter[str](), Counter[str](), Counter[str]()
    for name, tensor in ours.items():
        if (stored := tensor.stored()) is None:
            continue
        assert theirs[name].tensor_type.name == tensor.kind, name
        tensors[tensor.kind] += 1
        numbers[tensor.kind] += stored.shape[0] * stored.shape[1]
        if count := differing(stored, theirs[name]):
            wrong[tensor.kind] += count
            print(f"{name}: {count} numbers differ")
    for kind in sorted(tensors):
        print(f"{kind}: {tensors[kind]} tensors, {numbers[kind]:,} numbers, {wrong[kind]} differ")
    return int(bool(wrong) or not tensors)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
