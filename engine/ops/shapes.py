"""Launch shapes of the GEMMs: template arguments, grid and shared memory of a kernel, as values.

CudaOps looks them up at every launch. The bits of a decode GEMM depend on `warps` of its shape alone. So `warps` is
one number a matrix, whatever the batch; everything else here changes only the speed. Prefill GEMMs give the same bits
in every shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from .formats import FORMS

_SHARED = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 110: 227, 120: 99, 121: 99}


def shared_limit(arch: int) -> int:
    """Bytes of shared memory a block may have; for GPUs not listed what every GPU since sm_80 has."""
    return _SHARED.get(arch, 99) << 10


Key = tuple[int, int, "int | str"]  # of a matrix: N, K, and its form (formats.py): bytes of T, or a name


@dataclass(frozen=True)
class Launch:
    """The launch of a decode GEMM for one range of batch sizes: 1 row, up to 8, or up to 16."""

    tiles: int  # 16-row tiles of weights a warp works on at once
    depth: int  # k tiles a warp has in flight
    blocks: int  # blocks per SM that the registers allow, counting those of the next kernel, which starts early
    grid: int  # maximum blocks of this kernel per SM
    split: int = 1  # cluster split-K: blocks of a cluster; more than 1 needs sm_90
    staged: bool = False  # copy x to shared memory first, where it fits
    ring: bool = False  # weight pipeline: a cp.async ring in shared memory, instead of registers
    once: bool = False  # weight pipeline: all weights of a block are loaded into registers first: kernels/at_once.cuh

    @property
    def way(self) -> str:
        """The weight pipeline, by its name in kernels/stream.cuh."""
        return "ONCE" if self.once else "RING" if self.ring else "REGISTERS"


@dataclass(frozen=True)
class DecodeShape:
    """The launches of one matrix. K is cut into `warps` parts, whose sums are added in the same order at every batch
    size."""

    warps: int
    single: Launch  # R = 1
    narrow: Launch  # R <= 8
    wide: Launch  # R <= 16

    def launch(self, rows: int) -> Launch:
        return self.single if rows == 1 else self.narrow if rows <= 8 else self.wide

    def template(self, rows: int) -> str:
        """The Shape of the kernel (kernels/columns.cuh), as it spells it."""
        launch, most = self.launch(rows), 1 if rows == 1 else 8 if rows <= 8 else 16
        sizes = (self.warps, launch.split, launch.tiles, most, launch.depth, launch.blocks)
        return f"Shape<{', '.join(map(str, (*sizes, launch.way)))}>"

    def threads(self, rows: int) -> int:
        """Threads of a block."""
        return 32 * (self.warps + self.launch(rows).once)

    def shared(self, rows: int, k: int, key: int | str, source: str) -> int:
        """Bytes of shared memory of a kernel that takes x from `source` (kernels/columns.cuh): where the warps' sums
        meet, the ring of weights, scales, and what the block holds of x; the LAUNCH lines of linear_decode.cu."""
        launch, cols, direct, form = self.launch(rows), 1 if rows <= 8 else 2, source == "DIRECT", FORMS[key]
        sums = 256 * self.warps * launch.tiles * cols * (1 if rows == 1 else 2)
        if launch.once:
            return sums + 64 + (0 if direct else 8 * cols * k * form.itemsize)
        ring = launch.ring * launch.depth * (launch.tiles * form.slot + 32 * cols * direct * form.columns)
        steps = 0 if direct else -(-k // form.step // self.warps) * self.warps // launch.split
        return 2 * sums + self.warps * ring + 64 + steps * form.step * rows * form.itemsize

    def source(self, rows: int, k: int, form: int | str, limit: int) -> tuple[str, int]:
        """Where a kernel takes x from, and its bytes of shared memory, of which it may have `limit`."""
        staged = self.shared(rows, k, form, "STAGED")
        if self.launch(rows).staged and staged <= limit:
            return "STAGED", staged
        return "DIRECT", self.shared(rows, k, form, "DIRECT")

    def refusal(self, key: Key, shared: int) -> str:
        """Why no GPU, or none with `shared` bytes of shared memory a block, can launch it for this matrix; "" if it
        can."""
        if self.warps not in WARPS:
            return f"warps: expected one of {WARPS}, found {self.warps}"
        for name, rows in (("single", 1), ("narrow", 8), ("wide", 16)):
            launch, where = self.launch(rows), f"{name}."
            for size, allowed in _ALLOWED.items():
                if getattr(launch, size) not in allowed:
                    return f"{where}{size}: expected one of {allowed}, found {getattr(launch, size)}"
            if reason := self._misfit(launch, rows) or (launch.once and self._misfit_once(launch, key)):
                return where + reason
            if (needed := self.shared(rows, 0, key[2], "DIRECT")) > shared:
                return f"{name}: expected at most {shared} bytes of shared memory, found {needed}"
        return ""

    def _misfit(self, launch: Launch, rows: int) -> str:
        """What of a launch does not fit the number of warps, as "split: expected ..."; "" if all fits."""
        warps, cols = self.warps, -(-rows // 8)
        if warps % launch.split:
            return f"split: expected a divisor of {warps} warps, found {launch.split}"
        if launch.tiles * cols * 64 > warps * 32:
            return f"tiles: expected at most {warps // (2 * cols)} with {warps} warps, found {launch.tiles}"
        if warps * 32 * launch.blocks > THREADS:
            return f"blocks: expected at most {THREADS // (warps * 32)} with {warps} warps, found {launch.blocks}"
        return ""

    def _misfit_once(self, launch: Launch, key: Key) -> str:
        """The same for a register-resident launch."""
        n, k, form = key
        if isinstance(form, str):
            return f"once: expected plain weights, found {form}"
        if k != 16 * self.warps * launch.depth:
            return f"depth: expected {k / 16 / self.warps:g} at once, found {launch.depth}"
        if n % (16 * launch.tiles) or launch.split > 1 or launch.ring:
            return f"once: expected tiles that divide {n / 16:g}, no split and no ring"
        return ""


# What a DecodeShape may be made of.
WARPS, TILES, DEPTHS, BLOCKS, SPLITS = (4, 8, 12, 16), (1, 2, 4), (*range(1, 9), 10, 12, 16), (1, 2, 4), (1, 2, 4, 8)
_ALLOWED = {"tiles": TILES, "depth": DEPTHS, "blocks": BLOCKS, "grid": BLOCKS, "split": SPLITS}
THREADS = 1024  # resident on a multiprocessor, of one kernel: more have too few registers each

# Measured on an H200, sorted by key; `ostinato tune` prints such lines. `warps` is that of rule(), so that GPUs without
# a table get the same bits.
MEASURED = 90  # arch of the H200
DECODE: dict[Key, DecodeShape] = {
    (576, 576, 2): DecodeShape(
        12, Launch(2, 3, 1, 1, once=True), Launch(2, 3, 1, 1, once=True), Launch(2, 3, 1, 1, once=True)
    ),
    (576, 1536, 2): DecodeShape(
        16, Launch(2, 6, 1, 1, once=True), Launch(2, 6, 1, 1, once=True), Launch(1, 6, 1, 1, once=True)
    ),
    (960, 576, 2): DecodeShape(
        12, Launch(4, 3, 1, 1, once=True), Launch(2, 3, 1, 1, once=True), Launch(2, 3, 1, 1, once=True)
    ),
    (1024, 4096, "u6 g16 nested"): DecodeShape(
        16, Launch(1, 2, 1, 1, staged=True, ring=True), Launch(1, 2, 1, 1, staged=True), Launch(1, 1, 1, 1, staged=True)
    ),
    (2048, 2048, 2): DecodeShape(16, Launch(2, 6, 1, 1), Launch(1, 4, 2, 2), Launch(2, 6, 1, 1)),
    (2048, 8192, 2): DecodeShape(
        16, Launch(1, 12, 1, 1, ring=True), Launch(2, 8, 2, 1, 2, ring=True), Launch(2, 6, 1, 1, 2)
    ),
    (3072, 576, 2): DecodeShape(
        12,
        Launch(2, 3, 1, 1, staged=True, once=True),
        Launch(2, 3, 1, 1, staged=True, once=True),
        Launch(2, 3, 1, 1, once=True),
    ),
    (3072, 2048, 2): DecodeShape(16, Launch(2, 4, 1, 1), Launch(2, 6, 1, 1), Launch(2, 6, 1, 1, 2)),
    (4096, 4096, 2): DecodeShape(16, Launch(2, 6, 1, 1), Launch(2, 6, 1, 1), Launch(2, 6, 1, 1, 2)),
    (4096, 4096, "s8 g32"): DecodeShape(
        16, Launch(2, 3, 1, 1, staged=True), Launch(2, 2, 1, 1, staged=True), Launch(1, 4, 1, 1, 2, staged=True)
    ),
    (4096, 4096, "u4 g128"): DecodeShape(
        16, Launch(2, 2, 1, 1), Launch(2, 3, 1, 1, staged=True), Launch(1, 3, 1, 1, 2, staged=True)
    ),
    (4096, 4096, "u4 g32"): DecodeShape(
        16, Launch(2, 4, 1, 1), Launch(2, 2, 1, 1, staged=True), Launch(2, 2, 1, 1, 2, staged=True)
    ),
    (4096, 4096, "u4 g32 nested min"): DecodeShape(
        16, Launch(2, 2, 1, 1), Launch(1, 2, 1, 1, staged=True), Launch(1, 1, 1, 1, 2, staged=True)
    ),
    (4096, 14336, 2): DecodeShape(
        16, Launch(2, 8, 2, 1, ring=True), Launch(2, 8, 2, 1, 2, ring=True), Launch(2, 6, 1, 1, 2, staged=True)
    ),
    (4096, 14336, "s8 g32"): DecodeShape(
        16, Launch(2, 3, 1, 1, staged=True), Launch(2, 2, 1, 1, staged=True), Launch(1, 2, 1, 1, staged=True)
    ),
    (4096, 14336, "u4 g128"): DecodeShape(
        16, Launch(2, 2, 1, 1, staged=True, ring=True), Launch(2, 2, 1, 1, staged=True), Launch(2, 2, 1, 1, staged=True)
    ),
    (4096, 14336, "u4 g32"): DecodeShape(
        16, Launch(2, 5, 1, 1, staged=True, ring=True), Launch(2, 4, 1, 1, staged=True), Launch(2, 2, 1, 1, staged=True)
    ),
    (4096, 14336, "u4 g32 nested min"): DecodeShape(
        16, Launch(2, 1, 1, 1), Launch(2, 1, 1, 1, staged=True), Launch(1, 1, 1, 1, staged=True)
    ),
    (4096, 14336, "u6 g16 nested"): DecodeShape(
        16,
        Launch(1, 2, 1, 1, staged=True, ring=True),
        Launch(2, 1, 1, 1, 2, staged=True),
        Launch(1, 1, 1, 1, staged=True),
    ),
    (5120, 4096, "u4 g32 nested min"): DecodeShape(
        16, Launch(1, 2, 1, 1, staged=True), Launch(1, 2, 1, 1, staged=True), Launch(1, 1, 1, 1, staged=True)
    ),
    (6144, 4096, 2): DecodeShape(
        16, Launch(2, 6, 1, 1), Launch(2, 6, 1, 1), Launch(2, 6, 2, 1, 8, staged=True, ring=True)
    ),
    (6144, 4096, "s8 g32"): DecodeShape(
        16, Launch(1, 6, 1, 1, staged=True), Launch(2, 2, 1, 1, staged=True), Launch(1, 2, 1, 1, staged=True)
    ),
    (6144, 4096, "u4 g128"): DecodeShape(
        16, Launch(2, 2, 1, 1, staged=True), Launch(2, 2, 1, 1, staged=True), Launch(1, 2, 1, 1, staged=True)
    ),
    (6144, 4096, "u4 g32"): DecodeShape(
        16, Launch(2, 3, 1, 1, staged=True), Launch(2, 4, 1, 1, staged=True), Launch(2, 2, 1, 1, staged=True)
    ),
    (6144, 4096, "u4 g32 nested min"): DecodeShape(
        16, Launch(1, 2, 1, 1, staged=True), Launch(1, 2, 1, 1, staged=True), Launch(1, 1, 1, 1, staged=True)
    ),
    (16384, 2048, 2): DecodeShape(16, Launch(2, 8, 2, 1, ring=True), Launch(2, 8, 2, 1, ring=True), Launch(2, 4, 1, 1)),
    (28672, 4096, 2): DecodeShape(
        16, Launch(2, 6, 1, 1), Launch(2, 8, 2, 1, ring=True), Launch(2, 6, 1, 1, staged=True)
    ),
    (28672, 4096, "s8 g32"): DecodeShape(
        16, Launch(2, 2, 1, 1, staged=True), Launch(2, 2, 1, 1, staged=True), Launch(1, 4, 1, 1, staged=True)
    ),
    (28672, 4096, "u4 g128"): DecodeShape(
        16,
        Launch(2, 2, 1, 1, staged=True, ring=True),
        Launch(2, 2, 1, 1, staged=True, ring=True),
        Launch(1, 2, 1, 1, staged=True),
    ),
    (28672, 4096, "u4 g32"): DecodeShape(
        16, Launch(2, 4, 1, 1, staged=True, ring=True), Launch(2, 4, 1, 1, staged=True), Launch(2, 2, 1, 1, staged=True)
    ),
    (28672, 4096, "u4 g32 nested min"): DecodeShape(
        16, Launch(2, 2, 1, 1, staged=True), Launch(2, 1, 1, 1, staged=True), Launch(1, 1, 1, 1, staged=True)
    ),
    (49152, 576, 2): DecodeShape(12, Launch(2, 3, 2, 2), Launch(2, 3, 2, 2), Launch(1, 3, 2, 2, staged=True)),
    (128256, 2048, 2): DecodeShape(
        16, Launch(2, 8, 2, 1, ring=True), Launch(2, 4, 1, 1, staged=True), Launch(2, 4, 1, 1, staged=True)
    ),
    (128256, 4096, 2): DecodeShape(
        16, Launch(1, 4, 2, 2), Launch(2, 8, 2, 1, ring=True), Launch(2, 4, 1, 1, staged=True)
    ),
    (128256, 4096, "s8 g32"): DecodeShape(
        16, Launch(1, 6, 1, 1, staged=True), Launch(1, 4, 1, 1, staged=True), Launch(1, 2, 1, 1, staged=True)
    ),
    (128256, 4096, "u6 g16 nested"): DecodeShape(
        16, Launch(2, 1, 1, 1, staged=True), Launch(1, 2, 1, 1, staged=True), Launch(1, 1, 1, 1, staged=True)
    ),
}


@lru_cache(maxsize=1024)
def decode_shape(n: int, k: int, form: int | str, arch: int = MEASURED) -> DecodeShape:
    """The shape for a matrix [n, k]: on the GPUs it was measured on from the table, else by the rule."""
    found = DECODE.get((n, k, form)) if arch == MEASURED else None
    return found or rule(n, k, form)


def rule(n: int, k: int, form: int | str) -> DecodeShape:
    """A shape by the number of k tiles and rows, for matrices without a measured one, on any GPU."""
    if isinstance(form, str):
        return _quantised_rule(k, form)
    warps, depth = (16, 3) if k >= 1024 else (12, 3) if k >= 384 else (4, 2)
    if form == 4:
        narrow = Launch(1, 2, 1, 1)
        return DecodeShape(warps, narrow, narrow, Launch(1, 2, 1, 1, staged=True))
    blocks = 1 if warps == 16 else 2  # two would leave a thread of 16 warps too few registers for 16 columns
    wide = (
        Launch(2, depth, 1, 1, staged=True)
        if n >= 8192 and warps >= 8
        else Launch(1, depth, blocks, blocks, staged=True)
    )
    narrow = Launch(1, depth, 2, 2)
    return DecodeShape(warps, narrow, narrow, wide)


def _quantised_rule(k: int, key: str) -> DecodeShape:
    """A step is long, so that few are in flight. Two row tiles of a warp share what is worked out of x, unless nested
    scales or mins leave no registers for that. A long K of many rows fits into shared memory by clusters only, which
    the rule does not use: those rows come from L2."""
    step, full = FORMS[key].step, "nested" in key or "min" in key
    deep = max(2, 256 // step)
    narrow = Launch(1, deep, 1, 1, staged=True)
    most = 8 if step == 256 else 16  # warps: with twice as many a thread has too few registers
    warps = next(n for n in (most, 8, 4) if k >= n * step or n == 4)
    single = narrow if full or step == 256 else replace(narrow, tiles=2, depth=deep // 2)
    return DecodeShape(warps, single, narrow, replace(narrow, depth=deep // 2))


@dataclass(frozen=True)
class Shapes:
    """The decode shape of every matrix on one device: tuned there, else the built-in one."""

    tuned: Mapping[Key, DecodeShape]
    source: str  # what doctor says of them
    arch: int = MEASURED

    def decode(self, n: int, k: int, form: int | str) -> DecodeShape:
        """The shape for a matrix [n, k]."""
        return self.tuned.get((n, k, form)) or decode_shape(n, k, form, self.arch)


@dataclass(frozen=True)
class PrefillShape:
    """How a prefill kernel cuts [N, R]: what each of a block's two by two warps takes."""

    tiles: int  # 16-row tiles of weights a warp
    cols: int  # 8-token tiles a warp
    stages: int  # steps of 128 bytes of k in flight
    steps: tuple[int, ...]  # ns that a step takes, with 1, 2, ... blocks on a multiprocessor: measured on an H100

    @property
    def shared(self) -> int:
        """Bytes of shared memory of a block."""
        return self.stages * (4096 * self.tiles + 2048 * self.cols)

    @property
    def template(self) -> str:
        """Template arguments of the kernel: TILES, COLS, STAGES."""
        return f"{self.tiles}, {self.cols}, {self.stages}"

    def grid(self, tiles: int, rows: int) -> tuple[int, int]:
        """Blocks along the tokens and along the row tiles of the weights."""
        return -(-rows // (16 * self.cols)), -(-tiles // (2 * self.tiles))


PREFILL_THREADS = 128  # of a block
PREFILL = {
    2: (
        PrefillShape(1, 2, 8, (207, 320, 364)),
        PrefillShape(2, 4, 6, (385, 544)),
        PrefillShape(2, 8, 4, (594, 802)),
        PrefillShape(4, 8, 3, (962, 1450)),
    ),
    4: (PrefillShape(1, 2, 6, (420, 730, 1000, 1090)), PrefillShape(2, 4, 3, (820, 1380, 2100, 2740))),
}


@lru_cache(maxsize=4096)
def prefill_shape(tiles: int, rows: int, itemsize: int, multiprocessors: int, shared: int) -> PrefillShape:
    """The shape that takes the least time among those that fit: full multiprocessors wave by wave, then the rest."""

    def time(shape: PrefillShape) -> int:
        resident = min(len(shape.steps), shared // shape.shared)
        waves, rest = divmod(math.prod(shape.grid(tiles, rows)), multiprocessors * resident)
        return waves * shape.steps[resident - 1] + (shape.steps[-(-rest // multiprocessors) - 1] if rest else 0)

    return min((s for s in PREFILL[itemsize] if s.shared <= shared), key=time)
