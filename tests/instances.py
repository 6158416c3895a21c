"""Every kernel instance that the engine can request: file in kernels/ -> names with template arguments.

A new kernel needs its instances here, spelled exactly as ops/*.py passes them to Device.kernel. test_nvrtc.py compiles
them with NVRTC, and conftest.py compiles the CPU versions ahead of the tests.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import product

from quantised_cases import KEYS, MIXED, PLAIN_WAY, WAYS, ZEROS

from ostinato.ops.attend_shapes import OVERLAP
from ostinato.ops.formats import FORMS, QuantisedForm
from ostinato.ops.shapes import DECODE, MEASURED, DecodeShape, Key, rule, shared_limit

TYPES = ("bf16", "half", "float")
KS = (16, 368, 384, 1008, 1024, 65536)


def each(kernel: str, *arguments: Iterable[object]) -> list[str]:
    """All combinations: each("norm", TYPES, (1, 2)) is ["norm<bf16, 1>", "norm<bf16, 2>", "norm<half, 1>", ...]."""
    return [f"{kernel}<{', '.join(map(str, chosen))}>" for chosen in product(*arguments)]


# The cases of the rule, by bytes of T: the smallest and the largest K of each class, few and many rows. And the shared
# memory limits of GPUs, which decide whether x is staged.
SHAPES = {size: [(rule(n, k, size), k) for k in KS for n in (16, 8192)] for size in (2, 4)}
LIMITS = sorted({shared_limit(arch) for arch in (80, 89, 90)})


def by_rule(kernel: str, t: str, *arguments: str) -> list[str]:
    """The instances of a decode GEMM for all shapes of the rule, without duplicates."""
    size = 4 if t == "float" else 2
    found = dict.fromkeys(
        (shape.source(rows, k, size, limit)[0], shape.template(rows))
        for shape, k in SHAPES[size] for rows in (1, 8, 16) for limit in LIMITS
    )  # fmt: skip
    return [f"{kernel}<{', '.join((t, *arguments, *source_and_template))}>" for source_and_template in found]


def measured(key: Key) -> list[str]:
    """The instances that multiply a matrix of the table: of bf16, which stands for half as well."""
    n, k, form = key
    kernel = next(kernel for kernel, sizes in MATRICES.items() if (n, k) in sizes)
    weight = "bf16" if isinstance(form, int) else QUANTISED[form]
    return _by_rows(kernel, weight, DECODE[key], k, form)


def _by_rows(kernel: str, weight: str, shape: DecodeShape, k: int, form: int | str) -> list[str]:
    """A decode kernel for 1, up to 8 and up to 16 rows, on the GPU of the table."""
    arguments = f"{weight}, float" if kernel == "decode_store" else weight
    sources = {rows: shape.source(rows, k, form, shared_limit(MEASURED))[0] for rows in (1, 8, 16)}
    return [f"{kernel}<{arguments}, {source}, {shape.template(rows)}>" for rows, source in sources.items()]


MATRICES: dict[str, list[tuple[int, int]]] = {
    "decode_qkv": [(960, 576), (3072, 2048), (6144, 4096), (5120, 4096), (1024, 4096)],
    "decode_gate": [(3072, 576), (16384, 2048), (28672, 4096)],
    "decode_add": [(n, k) for n, ks in ((576, (576, 1536)), (2048, (2048, 8192)), (4096, (4096, 14336))) for k in ks],
    "decode_store": [(49152, 576), (128256, 2048), (128256, 4096)],
}


def _spelled(key: str) -> str:
    form = FORMS[key]
    assert isinstance(form, QuantisedForm)
    zero = 128 if form.code == "s8" else 0 if form.mins else ZEROS[form.code]
    return replace(form, zero=zero).spelled("bf16")


# Quantised forms by their keys, as kernels spell them for the codes that files have.
QUANTISED = {key: _spelled(key) for key in KEYS}
KINDS = ("u4 g128", "s8 g32", "u4 g32 min", "u5 g32", "u4 g32 nested min", "u6 g16 nested")  # of codes and scales
PACKED = {
    key: each("pack_codes", [w]) + each("unpack", [w]) + each("embed_packed", [w]) for key, w in QUANTISED.items()
}


def quantised(kernel: str, key: str, k: int = 4096) -> list[str]:
    """The instances of a decode kernel that multiply by a matrix of this form and K."""
    return _by_rows(kernel, QUANTISED[key], rule(4096, k, key), k, key)


_HALVES = ["1, 2, 8", "2, 4, 6", "2, 8, 4", "4, 8, 3"]
PREFILL_SHAPES = {"bf16": _HALVES, "half": _HALVES, "float": ["1, 2, 6", "2, 4, 3"]}

HEAD_SIZES = (16, 32, 48, 64, 80, 96, 112, 128, 192, 256)

# "file.cu": [*each("kernel", TYPES, (64, 128)), "plain_kernel"],
INSTANCES: dict[str, list[str]] = {
    "attend_decode.cu": [
        *each("attend_decode", TYPES, HEAD_SIZES, (1,), (1,)),
        *each("attend_decode", TYPES, [d for d in HEAD_SIZES if d <= 128], (2,), (1,)),
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
            *by_rule("decode_store", t, "float"),
            *(by_rule("decode_store", t, t) if t != "float" else ()),
            *by_rule("decode_add", t),
            *by_rule("decode_gate", t),
            *by_rule("decode_qkv", t),
            *by_rule("decode_gelu", t),
        )
    ]
    + [name for key in KINDS for name in quantised("decode_store", key)[-1:]],
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
    "pack.cu": [
        *each("pack", TYPES),
        *each("embed_packed", TYPES),
        *each("embed_plain", TYPES),
        *(name for key in KINDS for name in PACKED[key]),
    ],
    "pages.cu": each("copy_pages", ("true", "false")),
    "pool.cu": ["pool"],
    "read_ceiling.cu": ["read_ceiling"],
    "rope.cu": [*each("rope_append", TYPES), *each("append", TYPES)],
    "sample.cu": ["sample"],
    "synthetic.cu": each("fill_random", TYPES),
}


def kind(name: str) -> str:
    """A name without its numbers: "attend_decode<bf16, 64, 1, 1>" is "attend_decode<bf16, #, #, #>".

    Instances of a kind are the same code with other sizes."""
    return re.sub(r"\b\d+\b", "#", name)


def _size(name: str) -> list[int]:
    """The numbers among its template arguments, in order: head sizes, warps, tiles."""
    return [int(a) for a in re.findall(r"\b\d+\b", name)]


def _ways(key: str) -> list[str]:
    """The launches with which tests multiply by this form."""
    shapes = [DecodeShape(warps, way, way, way) for of, warps, launch in WAYS.values() if of == key
              for way in (PLAIN_WAY, launch)]  # fmt: skip
    return list(dict.fromkeys(
        name for shape in shapes for name in _by_rows("decode_store", QUANTISED[key], shape, 1280, key)
    ))  # fmt: skip


def _mixed() -> list[str]:
    """The kernels of a layer and of the head in several forms."""
    kernels = {"qkv": "decode_qkv", "o": "decode_add", "gate_up": "decode_gate", "head": "decode_store"}
    return list(dict.fromkeys(
        name for matrix, keys in MIXED.items() for key in keys
        for name in quantised(kernels[matrix], key, k=256 if matrix == "o" else 512)
    ))  # fmt: skip


def _models() -> list[str]:
    """Decode steps of whole models (weights/test_quantised_models.py), a row at a time, and heads after prompts."""
    layers = {
        "u4 g32": 256,
        "u4 g32 min": 256,
        "u4 g32 nested min": 256,
        "u5 g32 nested min": 256,
        "u6 g16 nested": 256,
    }
    found = [
        quantised(kernel, key, k)[0] for key, k in layers.items() for kernel in MATRICES if kernel != "decode_store"
    ]
    heads = [name for key in ("u6 g16 nested", "s8 g32") for name in quantised("decode_store", key, 256)[:2]]
    return [name for name in dict.fromkeys(found + heads) if name not in _mixed()]


# Instances that tests run on the CPU and that are compiled together, which takes less than one by one.
TOGETHER: dict[str, list[list[str]]] = {
    "pack.cu": [[name for key in QUANTISED for name in PACKED[key]]],
    "linear_decode.cu": [
        *(quantised("decode_store", key, k=1280) for key in KEYS),
        *(_ways(key) for key in dict.fromkeys(key for key, _, _ in WAYS.values())),
        _mixed(),
        _models(),
    ],
}


def on(arch: int) -> dict[str, list[str]]:
    """The instances to compile for a GPU of this arch: for the measured one all, with the shapes of its table and every
    quantised form; for the others the largest of each kind, which finds instructions that an architecture lacks."""
    if arch != MEASURED:
        largest = {file: {kind(n): n for n in sorted(names, key=_size)} for file, names in INSTANCES.items()}
        return {file: list(chosen.values()) for file, chosen in largest.items()}
    more = {
        "linear_decode.cu": [
            *(name for key in DECODE for name in measured(key)),
            *(name for key in QUANTISED for kernel in MATRICES for name in quantised(kernel, key)),
        ],
        "attend_decode.cu": each("attend_decode", TYPES[:2], sorted({d for _, d, _ in OVERLAP}), (1,), (2,)),
        "pack.cu": [name for key in QUANTISED for name in PACKED[key]],
    }
    return {file: list(dict.fromkeys([*names, *more.get(file, ())])) for file, names in INSTANCES.items()}


def on_the_cpu() -> list[tuple[str, tuple[str, ...]]]:
    """File and names of what the tests run on the CPU, in the groups that are compiled at once."""
    grouped = {(file, name) for file, groups in TOGETHER.items() for names in groups for name in names}
    alone = [(file, (name,)) for file, names in INSTANCES.items() for name in names if (file, name) not in grouped]
    return alone + [(file, tuple(names)) for file, groups in TOGETHER.items() for names in groups]
