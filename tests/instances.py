"""Every kernel instance that the engine can ask a device for: file in kernels/ -> names with template arguments.

Who writes a kernel adds its instances here, exactly as ops/*.py spells them for Device.kernel. Used by test_nvrtc.py,
which compiles each for every supported GPU, and to compile what the tests run on the CPU ahead of time.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

from ostinato.ops.shapes import MEASURED

TYPES = ("bf16", "half", "float")


def each(kernel: str, *arguments: Iterable[object]) -> list[str]:
    """All combinations: each("norm", TYPES, (1, 2)) is ["norm<bf16, 1>", "norm<bf16, 2>", "norm<half, 1>", ...]."""
    return [f"{kernel}<{', '.join(map(str, chosen))}>" for chosen in product(*arguments)]


# Template arguments of DecodeShape and PrefillShape (ops/shapes.py): for up to 8 columns, for up to 16; for prompts.
# First what the rule gives; bf16 stands for half in those of the measured table.
RULE = (
    ["16, 1, 1, 3, 2", "12, 1, 1, 3, 2", "4, 1, 1, 2, 2"],
    ["16, 1, 2, 3, 1", "16, 2, 2, 3, 1", "12, 1, 2, 3, 2", "12, 2, 2, 3, 1", "4, 1, 2, 2, 2"],
)
TABLE = (
    ["12, 1, 1, 6, 1", "12, 2, 1, 3, 2", "16, 1, 1, 4, 1", "16, 1, 1, 4, 2", "16, 1, 1, 5, 2", "16, 2, 1, 3, 2",
     "16, 2, 1, 6, 1", "16, 2, 1, 8, 1"],
    ["12, 2, 2, 3, 2", "16, 1, 2, 3, 2", "16, 1, 2, 4, 2", "16, 1, 2, 6, 1", "16, 2, 2, 2, 2", "16, 2, 2, 4, 1"],
)  # fmt: skip
DECODE_SHAPES: dict[str, tuple[list[str], list[str]]] = {
    "bf16": (RULE[0] + TABLE[0], RULE[1] + TABLE[1]),
    "half": RULE,
    "float": (
        ["16, 1, 1, 2, 1", "12, 1, 1, 2, 1", "4, 1, 1, 2, 1"],
        ["16, 1, 2, 2, 1", "12, 1, 2, 2, 1", "4, 1, 2, 2, 1"],
    ),
}
PREFILL_SHAPES = {t: ["4, 2, 4, 8, 4", "4, 2, 2, 8, 4", "2, 2, 2, 4, 4"] for t in ("bf16", "half")}
PREFILL_SHAPES["float"] = ["4, 2, 2, 4, 4", "2, 2, 2, 4, 4"]

HEAD_SIZES = (16, 32, 48, 64, 80, 96, 112, 128, 192, 256)

# "file.cu": [*each("kernel", TYPES, (64, 128)), "plain_kernel"],
INSTANCES: dict[str, list[str]] = {
    "attend_decode.cu": [
        *each("attend_decode", TYPES, HEAD_SIZES, (1,)),
        *each("attend_decode", TYPES, [d for d in HEAD_SIZES if d <= 128], (2,)),
    ],
    "attend_prefill.cu": [
        *each("attend_prefill", TYPES, HEAD_SIZES, ("false",)),
        *each("attend_prefill", TYPES, [d for d in HEAD_SIZES if d <= 128], ("true",)),
    ],
    "elementwise.cu": [*each("silu_mul", TYPES, (1, 8)), *each("gelu", TYPES, (1, 8)), "advance"],
    "finish.cu": each("finish", TYPES),
    "linear_decode.cu": [
        name
        for t in TYPES
        for narrow, wide in [DECODE_SHAPES[t]]
        for kind in dict.fromkeys((t, "float"))
        for name in (
            *each("decode_store", [t], [kind], ["DIRECT"], narrow + wide),
            *each("decode_store", [t], [kind], ["STAGED"], wide),
            *(each("decode_store", [t], [kind], ["NORM"], narrow + wide) if kind == "float" else ()),
            *(each("decode_gate", [t], ["NORM", "DIRECT"], narrow + wide) if kind == "float" else ()),
            *(each("decode_gate", [t], ["STAGED"], wide) if kind == "float" else ()),
            *(each("decode_qkv", [t], ["NORM", "DIRECT"], narrow + wide) if kind == "float" else ()),
            *(each("decode_qkv", [t], ["STAGED"], wide) if kind == "float" else ()),
            *(each("decode_gelu", [t], ["DIRECT"], narrow + wide) if kind == "float" else ()),
            *(each("decode_gelu", [t], ["STAGED"], wide) if kind == "float" else ()),
        )
    ],
    "linear_prefill.cu": [
        name
        for t in TYPES
        for shapes in [PREFILL_SHAPES[t]]
        for name in (
            *each("prefill_store", [t], dict.fromkeys((t, "float")), shapes),
            *each("prefill_gate", [t], shapes),
            *each("prefill_gelu", [t], shapes),
            *each("prefill_qkv", [t], shapes),
        )
    ],
    "norm.cu": [*each("rms_norm", TYPES, ("true", "false")), *each("layer_norm", TYPES), *each("head_norm", TYPES)],
    "pack.cu": [*each("pack", TYPES), *each("embed_packed", TYPES), *each("embed_plain", TYPES)],
    "pool.cu": ["pool"],
    "read_ceiling.cu": ["read_ceiling"],
    "rope.cu": [*each("rope_append", TYPES), *each("append", TYPES)],
    "sample.cu": ["sample"],
    "synthetic.cu": each("fill_random", TYPES),
}


def on(arch: int) -> dict[str, list[str]]:
    """The instances that the engine can ask a GPU of this arch for: the measured shapes are for one kind of GPU."""
    measured = tuple(f", {shape}>" for shapes in TABLE for shape in shapes) if arch != MEASURED else ()
    return {file: [name for name in names if not name.endswith(measured)] for file, names in INSTANCES.items()}
