"""Every kernel instance that the engine can ask a device for: file in kernels/ -> names with template arguments.

Who writes a kernel adds its instances here, exactly as ops/*.py spells them for Device.kernel. Used by test_nvrtc.py,
which compiles each for every supported GPU, and to compile what the tests run on the CPU ahead of time.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

from ostinato.ops.shapes import DECODE, MEASURED, DecodeShape, Key, rule, shared_limit

TYPES = ("bf16", "half", "float")


def each(kernel: str, *arguments: Iterable[object]) -> list[str]:
    """All combinations: each("norm", TYPES, (1, 2)) is ["norm<bf16, 1>", "norm<bf16, 2>", "norm<half, 1>", ...]."""
    return [f"{kernel}<{', '.join(map(str, chosen))}>" for chosen in product(*arguments)]


# What the rule can give: by K and N, for 16 bits and for 32.
RULES = {size: [rule(n, k, size) for k in (1024, 384, 16) for n in (16, 8192)] for size in (2, 4)}


def templates(shapes: Iterable[DecodeShape]) -> list[str]:
    """Template arguments of shapes, without repetition, for every number of rows."""
    return list(dict.fromkeys(shape.template(rows) for shape in shapes for rows in (1, 8, 16)))


def by_rule(kernel: str, t: str, *arguments: str, normalises: bool) -> list[str]:
    """The instances of a decode product for all shapes of the rule, and all that x may come from."""
    found = []
    for template in templates(RULES[4 if t == "float" else 2]):
        warps, _, _, cols, *_ = template.split(", ")
        norms = [*["NORM"] * (warps != "4"), *["ROWS"] * (warps != "16")] if normalises else []  # ROWS: K <= 640
        for source in ("DIRECT", *["STAGED"] * (cols == "2"), *norms):
            found.append(f"{kernel}<{', '.join((t, *arguments, source, template))}>")
    return found


def measured(key: Key) -> list[str]:
    """The instances that multiply a matrix of the table: of bf16, which stands for half as well."""
    (n, k, size), shape, limit = key, DECODE[key], shared_limit(MEASURED)
    kernel = next((kernel for kernel, keys in MATRICES.items() if key in keys), "decode_store")
    arguments = "bf16, float" if kernel == "decode_store" else "bf16"
    norm = shape.norm(k, size, limit) if n > HEAD or kernel != "decode_store" else ""
    found = []
    for rows in (1, 8, 16):
        staged = shape.launch(rows).staged and shape.shared(rows, k, size, "STAGED") <= limit
        for source in filter(None, ("STAGED" if staged else "DIRECT", norm)):
            found.append(f"{kernel}<{arguments}, {source}, {shape.template(rows)}>")
    return found


MATRICES: dict[str, list[Key]] = {
    "decode_qkv": [(960, 576, 2), (3072, 2048, 2), (6144, 4096, 2)],
    "decode_gate": [(3072, 576, 2), (16384, 2048, 2), (28672, 4096, 2)],
}
HEAD = 40000  # rows of a matrix, and more, that make it a head

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
            *by_rule("decode_store", t, "float", normalises=True),
            *(by_rule("decode_store", t, t, normalises=False) if t != "float" else ()),
            *by_rule("decode_gate", t, normalises=True),
            *by_rule("decode_qkv", t, normalises=True),
            *by_rule("decode_gelu", t, normalises=False),
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
    table = [name for key in DECODE for name in measured(key)] if arch == MEASURED else []
    more = {"linear_decode.cu": table}
    return {file: list(dict.fromkeys([*names, *more.get(file, ())])) for file, names in INSTANCES.items()}
