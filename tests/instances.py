"""Every kernel instance that the engine can ask a device for: file in kernels/ -> names, template arguments written out.

Who writes a kernel adds its instances here, exactly as ops/*.py spells them for Device.kernel. Used by test_nvrtc.py,
which compiles each for every supported GPU, and to compile what the tests run on the CPU ahead of time.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

TYPES = ("bf16", "half", "float")


def each(kernel: str, *arguments: Sequence[object]) -> list[str]:
    """All combinations: each("norm", TYPES, (1, 2)) is ["norm<bf16, 1>", "norm<bf16, 2>", "norm<half, 1>", ...]."""
    return [f"{kernel}<{', '.join(map(str, chosen))}>" for chosen in product(*arguments)]


# "file.cu": [*each("kernel", TYPES, (64, 128)), "plain_kernel"],
INSTANCES: dict[str, list[str]] = {}
