"""How the examples start that drive CuPy by themselves: on a GPU, or with one line that says what is missing."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def on_gpu(example: Callable[[Any], int]) -> int:
    """example(cupy), or exit status 2 where there is no GPU for it."""
    name = Path(example.__code__.co_filename).stem
    try:
        import cupy
    except ImportError:
        print(f"{name}: CuPy is not installed; `ostinato doctor` says how to get it", file=sys.stderr)
        return 2
    if not cupy.cuda.is_available():
        print(f"{name}: needs an NVIDIA GPU and its driver; `ostinato doctor` says what is missing", file=sys.stderr)
        return 2
    return example(cupy)
