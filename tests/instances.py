"""Every kernel instance that the engine can ask a device for: file in kernels/ -> names with template arguments.

Who writes a kernel adds its instances here, exactly as ops/*.py spells them for Device.kernel. Used by test_nvrtc.py,
which compiles each for every supported GPU, and to compile what the tests run on the CPU ahead of time.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

from ostinato.ops.shapes import DECODE, MEASURED, DecodeShape, rule

TYPES = ("bf16", "half", "float")


def each(kernel: str, *arguments: Iterable[object]) -> list[str]:
    """All combinations: each("norm", TYPES, (1, 2)) is ["norm<bf16, 1>", "norm<bf16, 2>", "norm<half, 1>", ...]."""
    return [f"{kernel}<{', '.join(map(str, chosen))}>" for chosen in product(*arguments)]


# What the rule can give: by K and N, for 16 bits and for 32.
RULES = {size: [rule(n, k, size) for k in (1024, 384, 16) for n in (16, 8192)] for size in (2, 4)}


def templates(shapes: Iterable[DecodeShape]) -> tuple[list[str], list[str]]:
    """Template arguments of shapes, without repetition: for up to 8 columns, for up to 16."""
    listed = list(shapes)
    narrow = dict.fromkeys(shape.template(rows) for shape in listed for rows in (1, 8))
    return list(narrow), list(dict.fromkeys(shape.template(16) for shape in listed))


# The measured matrices that are not multiplied by decode_store.
MATRICES = {
    "decode_qkv": [(960, 576, 2), (3072, 2048, 2), (6144, 4096, 2)],
    "decode_gate": [(3072, 576, 2), (16384, 2048, 2), (28672, 4096, 2)],
}


def measured(kernel: str) -> list[DecodeShape]:
    """The shapes of the table that a kernel is launched with."""
    others = [key for keys in MATRICES.values() for key in keys]
    keys = MATRICES.get(kernel, [key for key in DECODE if key not in others] if kernel == "decode_store" else [])
    return [DECODE[key] for key in keys]


def decode_shapes(kernel: str, t: str) -> tuple[list[str], list[str]]:
    """Template arguments for up to 8 columns and for up to 16: by the rule, and for bf16, which stands for half, the
    table."""
    return templates([*RULES[4 if t == "float" else 2], *(measured(kernel) if t == "bf16" else ())])


def sources(template: str, normalises: bool) -> list[str]:
    """Where a product with these template arguments may take x from."""
    warps, split, _, cols, *_ = template.split(", ")
    short = normalises and split == "1" and warps != "16"  # K <= 640
    staged = cols == "2" or template in STAGED
    return ["DIRECT", *["STAGED"] * staged, *["NORM"] * normalises, *["ROWS"] * short]


STAGED = {shape.template(rows) for shape in DECODE.values() for rows in (1, 8) if shape.launch(rows).staged}


def products(kernel: str, arguments: str, t: str, normalises: bool) -> list[str]:
    """The instances of a decode product for all its shapes and sources of x."""
    narrow, wide = decode_shapes(kernel, t)
    return [f"{kernel}<{arguments}, {x}, {shape}>" for shape in narrow + wide for x in sources(shape, normalises)]


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
        for name in (
            *products("decode_store", f"{t}, float", t, True),
            *(products("decode_store", f"{t}, {t}", t, False) if t != "float" else ()),
            *products("decode_gate", t, t, True),
            *products("decode_qkv", t, t, True),
            *products("decode_gelu", t, t, False),
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
    by_rule = {template for shapes in RULES.values() for part in templates(shapes) for template in part}
    table = {template for part in templates(DECODE.values()) for template in part} - by_rule
    measured = tuple(f", {template}>" for template in table) if arch != MEASURED else ()
    return {file: [name for name in names if not name.endswith(measured)] for file, names in INSTANCES.items()}
