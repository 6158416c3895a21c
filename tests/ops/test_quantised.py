"""Quantised weights in the kernels of the cuda backend: packed without loss, multiplied without rounding, same bits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from configs import changed
from quantised_cases import KEYS, MIXED, PLAIN_WAY, WAYS, Given, given
from sides import SMALL, case, close, decode_step, everywhere, prefill_step, ready, same_numbers

from ostinato.ops.base import PassKind
from ostinato.ops.cuda import CudaOps
from ostinato.ops.device import Device
from ostinato.ops.formats import QuantisedForm
from ostinato.ops.packing import PackedWeight
from ostinato.ops.shapes import Launch
from ostinato.weights.quantised import Planes

F32, BF16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)
K = 1280  # five steps of the longest
Q4_K, Q6_K = "u4 g32 nested min", "u6 g16 nested"


def ops_of(device: Device) -> CudaOps:
    return CudaOps(device, BF16)


def unwritten(device: Device, shape: tuple[int, ...]) -> Any:
    """A device array of NaN: what an operation leaves out shows."""
    return device.upload(np.full(shape, np.nan, F32))


def random(rng: np.random.Generator, rows: int, k: int = K) -> np.ndarray:
    """Rows x with a large mean."""
    return (rng.standard_normal((rows, k)) + 0.5).astype(BF16)


def product(ops: CudaOps, weight: PackedWeight, x: np.ndarray, kind: PassKind = PassKind.DECODE) -> np.ndarray:
    """x W^T by the kernels."""
    out = unwritten(ops.device, (len(x), weight.n))
    ops.linear(ops.device.upload(x), weight, out, kind)
    return ops.device.read(out)


def plain(ops: CudaOps, weight: PackedWeight) -> np.ndarray:
    """The whole packed matrix as plain numbers of T, as float32."""
    return ops.device.read(ops._plain(weight)[0])[: weight.tiles * 16 * weight.k].astype(F32)


def relative(found: np.ndarray, x: np.ndarray, w: np.ndarray) -> tuple[float, float]:
    """How far products are off, in units of sqrt(sum (w x)^2): root mean square, and the largest."""
    x, w = x.astype(np.float64), w.astype(np.float64)
    error = (found - x @ w.T) / np.sqrt(x**2 @ (w**2).T)
    return float(np.sqrt((error**2).mean())), float(np.abs(error).max())


# -- packing ----------------------------------------------------------------------------------------------------------

LAYOUTS = [
    pytest.param("rows", 0, (49,), id="rows-49"),
    pytest.param("qkv", 32, (64, 32, 32), id="qkv"),
    pytest.param("gate_up", 0, (24, 24), id="gate_up-48"),
]


@pytest.mark.parametrize(("layout", "head_dim", "sizes"), LAYOUTS)
@pytest.mark.parametrize("key", KEYS)
def test_packed_without_loss(device, key, layout, head_dim, sizes):
    """Every row that is looked up is the definition, bit for bit; so is what prompts multiply, rounded to T, with
    zeros in the rows that fill the last tile."""
    rng, k, ops = np.random.default_rng(3), 512, ops_of(device)
    parts = [given(key, n, k, rng) for n in sizes]
    expected = np.concatenate([part.numbers() for part in parts])
    weight = ops.weight(parts, layout, head_dim)
    assert [part.form.key for part in weight.segments] == [key]
    np.testing.assert_array_equal(plain(ops, weight), plain(ops, ops.weight([expected], layout, head_dim)))
    assert not ops._plain(weight)[1]
    if layout == "rows":
        ids = device.upload(np.arange(len(expected), dtype=np.int32))
        out = unwritten(device, expected.shape)
        ops.embed(ids, weight, out)
        np.testing.assert_array_equal(device.read(out), expected)


def test_pieces_of_a_matrix(device, monkeypatch):
    """Packed some rows at a time, and the last piece ends in the middle of a tile."""
    monkeypatch.setattr("ostinato.ops.packing._CHUNK", 20 * 512)
    ops, part = ops_of(device), given(Q4_K, 49, 512, np.random.default_rng(3))
    np.testing.assert_array_equal(plain(ops, ops.weight([part])), plain(ops, ops.weight([part.numbers()])))


def other_scales(key: str) -> Given:
    return given(key, 49, K, np.random.default_rng(5), "bfloat16")


def one_scale_a_row() -> Given:
    part = given("u4 g128", 49, K, np.random.default_rng(5))
    return Given(replace(part.given, group=K, scales=part.given.scales[:, :1]))


@pytest.mark.parametrize(
    ("part", "key"),
    [
        pytest.param(other_scales("u4 g128"), "u4 g128", id="u4-scales-in-bf16"),
        pytest.param(other_scales("s8 g32"), "s8 g32", id="s8-scales-in-bf16"),
        pytest.param(other_scales("u4 g32 min"), "u4 g32 min", id="scales-and-mins-in-bf16"),
        pytest.param(one_scale_a_row(), "u4 g128", id="one-scale-a-row"),
    ],
)
def test_scales_of_other_types_and_groups(device, part, key):
    ops, x = ops_of(device), random(np.random.default_rng(6), 9)
    weight = ops.weight([part])
    assert [segment.form.key for segment in weight.segments] == [key]
    np.testing.assert_array_equal(plain(ops, weight), plain(ops, ops.weight([part.numbers()])))
    rms, largest = relative(product(ops, weight, x), x, part.numbers())
    assert rms < 3e-6 and largest < 2e-5


# -- products ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
def test_products_round_nothing(device, key):
    """Against float64 of the definition, with x of a large mean."""
    rng, ops = np.random.default_rng(5), ops_of(device)
    part, x = given(key, 49, K, rng), random(rng, 9)
    rms, largest = relative(product(ops, ops.weight([part]), x), x, part.numbers())
    assert rms < 3e-6 and largest < 2e-5


@pytest.mark.parametrize("key", ["u4 g32", Q6_K])
def test_products_of_long_rows_round_nothing(device, key):
    """Longer than what a block can hold of x."""
    rng, ops, k = np.random.default_rng(5), ops_of(device), 14336
    part, x = given(key, 16, k, rng), random(rng, 9, k)
    rms, largest = relative(product(ops, ops.weight([part]), x), x, part.numbers())
    assert rms < 3e-6 and largest < 2e-5


def in_bf16(values: np.ndarray) -> np.ndarray:
    return values.astype(BF16).astype(values.dtype)


@pytest.mark.parametrize(("key", "field"), [("u4 g32", "scales"), ("u4 g32 min", "mins"), (Q6_K, "d"), (Q4_K, "dmin")])
def test_rounded_scales_would_show(device, key, field):
    """The bound of these tests is tight enough to find scales that were rounded to bf16."""
    rng, ops = np.random.default_rng(5), ops_of(device)
    part, x = given(key, 49, K, rng), random(rng, 9)
    rounded = Given(replace(part.given, **{field: in_bf16(getattr(part.given, field))}))
    rms, _ = relative(product(ops, ops.weight([rounded]), x), x, part.numbers())
    assert rms > 1e-4


@pytest.mark.parametrize("key", KEYS)
def test_bits_do_not_depend_on_the_rows_beside(device, key):
    """A row alone, and in every size of batch for which there is a kernel of its own, gives the same bits."""
    rng, ops = np.random.default_rng(7), ops_of(device)
    weight, x = ops.weight([given(key, 33, K, rng)]), random(rng, 16)
    everyone = product(ops, weight, x)
    for count in (1, 2, 8, 9, 15):
        rows = rng.permutation(16)[:count]
        np.testing.assert_array_equal(product(ops, weight, x[rows]), everyone[rows], err_msg=f"batch of {count}")


def test_every_row_alone(device):
    rng, ops = np.random.default_rng(7), ops_of(device)
    weight, x = ops.weight([given(Q4_K, 17, K, rng)]), random(rng, 16)
    alone = np.concatenate([product(ops, weight, x[r : r + 1]) for r in range(16)])
    for count in range(2, 17):
        np.testing.assert_array_equal(product(ops, weight, x[:count]), alone[:count], err_msg=f"batch of {count}")


@pytest.mark.parametrize(("key", "warps", "launch"), WAYS.values(), ids=WAYS)
def test_launches_do_not_change_bits(device, key: str, warps: int, launch: Launch):
    """How weights and x come, tiles, depth and clusters: the sums that a plain launch gives, which are right."""
    if launch.split > 1 and device.arch < 90:
        pytest.skip("clusters need a GPU of compute capability 9.0")
    rng, ops = np.random.default_rng(9), ops_of(device)
    part = given(key, 49, K, rng)
    weight, x, found = ops.weight([part]), random(rng, 16), []
    for used in (PLAIN_WAY, launch):
        ops.shapes = everywhere(warps, used)
        found.append([product(ops, weight, x[:rows]) for rows in (1, 5, 16)])
    for expected, seen in zip(*found, strict=True):
        rms, _ = relative(expected, x[: len(expected)], part.numbers())
        assert rms < 3e-6
        np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize("way", ["two-blocks-ring-staged", "groups-of-16-ring"])
def test_every_schedule_gives_the_same_bits(shuffled, way):
    key, warps, launch = WAYS[way]
    rng, ops = np.random.default_rng(9), ops_of(shuffled)
    ops.shapes = everywhere(warps, launch)
    product(ops, ops.weight([given(key, 49, K, rng)]), random(rng, 5))


def test_columns_do_not_mix(device):
    """A row of NaN and one of infinity leave the others as they are."""
    rng, ops = np.random.default_rng(7), ops_of(device)
    weight, x = ops.weight([given(Q4_K, 17, K, rng)]), random(rng, 16)
    clean = product(ops, weight, x)
    x[1], x[15] = np.nan, np.inf
    dirty = product(ops, weight, x)
    np.testing.assert_array_equal(dirty[2:15], clean[2:15])
    assert np.isnan(dirty[1]).all()


# -- matrices of several forms, and fused kernels ---------------------------------------------------------------------

HEADS = changed(SMALL, hidden=512, heads=4, kv_heads=2, head_dim=64)


@pytest.fixture
def numbers() -> None:
    """The same numbers, alone and in any company."""
    same_numbers()


def test_parts_in_forms_of_their_own(device):
    """q and k in one form and v in another: the bits of three matrices, by decode steps and by prompts."""
    rng, ops = np.random.default_rng(11), ops_of(device)
    parts = [given(key, n, 512, rng) for key, n in zip(MIXED["qkv"], (64, 32, 32), strict=True)]
    weight, x = ops.weight(parts, "qkv", 32), random(rng, 64, 512)
    assert [(s.form.key, s.first, s.tiles) for s in weight.segments] == [(Q4_K, 0, 6), (Q6_K, 6, 2)]
    alone = [ops.weight([part], "qkv", 32) for part in parts]
    for rows, kind in ((1, PassKind.DECODE), (5, PassKind.DECODE), (16, PassKind.DECODE), (64, PassKind.PREFILL)):
        expected = np.concatenate([product(ops, part, x[:rows], kind) for part in alone], axis=1)
        np.testing.assert_array_equal(product(ops, weight, x[:rows], kind), expected)


def test_prompts_have_the_bits_of_plain_weights(device):
    """Products of many rows are those of the numbers, rounded to T."""
    rng, ops = np.random.default_rng(11), ops_of(device)
    part, x = given(Q6_K, 49, 512, rng), random(rng, 128, 512)
    found, expected = (product(ops, ops.weight([w]), x, PassKind.PREFILL) for w in (part, part.numbers()))
    np.testing.assert_array_equal(found, expected)


STEPS = [pytest.param(n, id=f"decode-{n}") for n in (1, 5, 16)] + [pytest.param(64, id="prefill-64")]


@pytest.mark.parametrize("rows", STEPS)
def test_fused_products(device, numbers, rows):
    """All kernels of a layer and the head with weights in different forms, against NumPy on their numbers."""
    c = HEADS
    t = case(device, "bfloat16", c, decode_step(rows) if rows <= 16 else prefill_step(rows, range(5)), MIXED)
    assert [s.form.key for s in t.gpu.w.qkv.segments] == [Q4_K, Q6_K]
    for side in (t.host, t.gpu):
        ready(side, side.w.attn_norm)
        side.ops.norm_qkv(c, c.sizes, side.w, side.b, side.s, side.cache)
    queries = c.sizes.heads * c.sizes.head_dim
    found = device.read(t.gpu.b.qkv)[:, :queries]
    close(found, t.host.b.qkv[:, :queries], "bfloat16")
    for mine, expected in ((t.gpu.cache.k, t.host.cache.k), (t.gpu.cache.v, t.host.cache.v)):
        close(device.read(mine)[1:], expected[1:], "bfloat16")  # page 0 belongs to the spare sequence
    for side in (t.host, t.gpu):
        side.ops.device.write(side.b.attn, found.astype(side.b.attn.dtype))
        side.ops.linear_add(side.b.attn, side.w.o, side.b, side.s, side.w.mlp_norm)
    close(device.read(t.gpu.b.x), t.host.b.x, "bfloat16")
    for side in (t.host, t.gpu):
        side.ops.norm_gate_up(c, side.w, side.b, side.s)
    close(device.read(t.gpu.b.ffn), t.host.b.ffn, "bfloat16", factors=2)
    for side in (t.host, t.gpu):
        ready(side, side.w.norm)
        side.ops.norm_head(c, side.w, side.b, side.s)
    close(device.read(t.gpu.b.logits), t.host.b.logits, "bfloat16")


# -- what is kept as it is stored, and what is not --------------------------------------------------------------------


@dataclass(frozen=True)
class Reordered(Given):
    """A matrix whose numbers are known and whose planes are not, as GPTQ's with act-order."""

    def _planes(self, first: int, last: int) -> None:
        return None

    def _numbers(self, first: int, last: int, out: np.ndarray) -> None:
        self._rows(np.s_[first:last]).numbers(out)


def some(key: str, n: int = 48, k: int = 512, **fields: Any) -> Given:
    part = given(key, n, k, np.random.default_rng(13))
    return Given(replace(part.given, **fields))


def floats(values: np.ndarray | None) -> np.ndarray:
    assert values is not None
    return values.astype(F32)


def of_groups(planes: Planes) -> np.ndarray:
    return np.random.default_rng(13).integers(0, 16, planes.scales.shape).astype(np.uint8)


U4, MIN = some("u4 g32"), some("u4 g32 min")
KEPT = [  # parts, layout, head size, forms
    pytest.param([U4], "rows", 0, ["u4 g32"], id="rows"),
    pytest.param([U4, U4, U4], "qkv", 16, ["u4 g32"], id="qkv-of-one-form"),
    pytest.param([U4, U4, MIN], "qkv", 16, ["u4 g32", "u4 g32 min"], id="qkv-of-two-forms"),
    pytest.param([some("u4 g32", 24), some("u4 g32", 24)], "gate_up", 0, ["u4 g32"], id="gate_up-of-one-form"),
    pytest.param([some("u4 g32", 24), some("u4 g32", 24)], "qkv", 24, ["u4 g32"], id="part-of-a-tile-of-one-form"),
]
NOT_KEPT = [
    pytest.param([some("u4 g128", zeros=of_groups(some("u4 g128").given))], "rows", 0, id="zeros-of-groups"),
    pytest.param([Reordered(U4.given)], "rows", 0, id="no-planes"),
    pytest.param([some("u4 g32", scales=floats(U4.given.scales))], "rows", 0, id="float32-scales"),
    pytest.param([some("u4 g32 min", mins=floats(MIN.given.mins))], "rows", 0, id="float32-mins"),
    pytest.param([some("u4 g32", k=96)], "rows", 0, id="part-of-a-step"),
    pytest.param([U4, MIN], "gate_up", 0, id="gate_up-of-two-forms"),
    pytest.param([some("u4 g32", 24), some("u4 g32 min", 24)], "qkv", 24, id="part-of-a-tile-of-two-forms"),
]


@pytest.mark.parametrize(("parts", "layout", "head_dim", "forms"), KEPT)
def test_kept_as_stored(device, parts, layout, head_dim, forms):
    ops = ops_of(device)
    assert ops.keeps(parts, layout, head_dim)
    weight = ops.weight(parts, layout, head_dim)
    assert [segment.form.key for segment in weight.segments] == forms
    expected = sum(s.form.unit * s.tiles * weight.k // s.form.step for s in weight.segments)
    assert weight.stored_bytes == expected


@pytest.mark.parametrize(("parts", "layout", "head_dim"), NOT_KEPT)
def test_dequantised(device, parts, layout, head_dim):
    """What there is no form for becomes numbers of T."""
    ops = ops_of(device)
    assert not ops.keeps(parts, layout, head_dim)
    weight, expected = (
        ops.weight(given, layout, head_dim) for given in (parts, [np.concatenate([part.numbers() for part in parts])])
    )
    assert [type(segment.form) is QuantisedForm for segment in weight.segments] == [False]
    assert weight.stored_bytes == 0
    np.testing.assert_array_equal(plain(ops, weight), plain(ops, expected))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_dequantised_where_t_is_not_bf16(device, dtype):
    ops = CudaOps(device, dtype)
    assert not ops.keeps([U4])
    np.testing.assert_array_equal(plain(ops, ops.weight([U4])), plain(ops, ops.weight([U4.numbers()])))


def test_plain_parts_are_not_kept(device):
    """One part of plain numbers makes all of its matrix plain."""
    ops = ops_of(device)
    assert not ops.keeps([U4, None, U4], "qkv", 16)
    weight = ops.weight([U4, U4.numbers(), U4], "qkv", 16)
    assert not isinstance(weight.segments[0].form, QuantisedForm) and len(weight.segments) == 1
    np.testing.assert_array_equal(
        plain(ops, weight), plain(ops, ops.weight([np.tile(U4.numbers(), (3, 1))], "qkv", 16))
    )
