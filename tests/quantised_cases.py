"""Random quantised matrices in every form that the kernels have, and the launches they are tested with."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from ostinato.ops.formats import FORMS, QuantisedForm
from ostinato.ops.shapes import Launch
from ostinato.weights.quantised import Planes, Quantised

KEYS = [key for key in FORMS if isinstance(key, str)]  # of quantised forms; plain ones have a number
ZEROS = {"u4": 8, "u5": 16, "u6": 32, "s8": 0}  # subtracted from codes that have no minimum


@dataclass(frozen=True)
class Given(Quantised):
    """A matrix of these planes."""

    given: Planes
    where: str = "a test"
    kind: str = "given"
    shape: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", self.given.codes.shape)

    @property
    def nbytes(self) -> int:
        return self.given.codes.nbytes

    def take(self, rows: np.ndarray) -> Quantised:
        return replace(self, given=self._rows(rows))

    def _planes(self, first: int, last: int) -> Planes | None:
        return self._rows(np.s_[first:last])

    def _rows(self, rows) -> Planes:
        fields = ("codes", "scales", "mins", "zeros", "d", "dmin")
        values = {name: getattr(self.given, name) for name in fields}
        return replace(self.given, **{name: None if v is None else v[rows] for name, v in values.items()})


def given(key: str, n: int, k: int, rng: np.random.Generator, scale: str = "float16", size: float = 1.0) -> Given:
    """A random matrix in the form of this name: all codes and bytes of scales that there are. size: of its numbers."""
    form = FORMS[key]
    assert isinstance(form, QuantisedForm)
    code, groups = form.code, k // form.group
    zero = 0 if form.mins else ZEROS[code]
    codes = rng.integers(0, 256 if code == "s8" else 1 << int(code[1]), (n, k)).astype(np.uint8)
    codes = codes.view(np.int8) if code == "s8" else codes

    def scales(width: int, about: float) -> np.ndarray:
        values = rng.uniform(0.5, 1.5, (n, width)) * about * size * rng.choice([-1, 1], (n, width))
        return values.astype(np.float16 if form.nested else np.dtype(scale))

    if not form.nested:
        planes = Planes(code, codes, form.group, scales(groups, 1 / 16), zero)
        return Given(replace(planes, mins=scales(groups, 0.5)) if form.mins else planes)
    if not form.mins:
        inner = rng.integers(-128, 128, (n, groups)).astype(np.int8)
        return Given(Planes(code, codes, form.group, inner, zero, d=scales(k // 256, 1e-3)))
    inner, mins = (rng.integers(0, 64, (n, groups)).astype(np.uint8) for _ in range(2))
    planes = Planes(code, codes, form.group, inner, mins=mins)
    return Given(replace(planes, d=scales(k // 256, 1e-3), dmin=scales(k // 256, 1e-2)))


# Of every way in which weights and x come, with steps of every length: id -> form, warps, launch.
WAYS = {
    "two-tiles": ("u4 g32", 8, Launch(2, 3, 1, 1, staged=True)),
    "ring": ("u4 g32", 8, Launch(2, 2, 1, 1, ring=True)),
    "two-blocks-ring-staged": ("u4 g32", 8, Launch(2, 2, 1, 1, 2, staged=True, ring=True)),
    "four-tiles": ("u4 g32 min", 16, Launch(4, 2, 1, 1)),
    "four-blocks-ring": ("s8 g64", 8, Launch(1, 3, 1, 1, 4, ring=True)),
    "groups-of-16-ring": ("u6 g16 nested", 4, Launch(1, 2, 1, 1, ring=True)),
    "groups-of-16-two-blocks": ("u6 g16 nested", 8, Launch(2, 1, 1, 1, 2, staged=True)),
    "steps-of-256": ("u5 g32 nested min", 8, Launch(2, 1, 1, 1)),
    "steps-of-256-ring-staged": ("u5 g32 nested min", 8, Launch(1, 2, 1, 1, staged=True, ring=True)),
}
PLAIN_WAY = Launch(1, 1, 1, 1)  # which they are compared with

# The matrices of a layer and of the head in forms that differ, as a Q4_K_M has them and worse: q, k and v; o; gate and
# up; head.
MIXED = {
    "qkv": ("u4 g32 nested min", "u4 g32 nested min", "u6 g16 nested"),
    "o": ("u5 g32 nested min",),
    "gate_up": ("u4 g32", "u4 g32"),
    "head": ("s8 g32",),
}
