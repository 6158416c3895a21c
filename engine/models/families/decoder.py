"""Config keys and tensor names that the families of models/decoder.py share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...config import LayerSpec, ModelConfig
from ...keys import Keys
from .family import Row, Table
from .keys import LIMITS, dtype
from .rope import rope

SHARED = "lm_head.weight"
HEAD: tuple[Row, ...] = (("head", "weight", "rows", "not tied", {SHARED: "V D"}),)

TABLE = Table(
    prefixes=("model.",),
    top=(
        ("embed", "weight", "rows", "", {"embed_tokens.weight": "V D"}),
        ("norm", "vector", "rows", "", {"norm.weight": "D"}),
    ),
    head=HEAD,
    shared=SHARED,
    block="layers.{}.",
    layer=(
        ("attn_norm", "vector", "rows", "", {"input_layernorm.weight": "D"}),
        ("qkv", "weight", "qkv", "", {
            "self_attn.q_proj.weight": "Hd D", "self_attn.k_proj.weight": "Gd D", "self_attn.v_proj.weight": "Gd D"}),
        ("qkv_bias", "vector", "qkv", "qkv_bias", {
            "self_attn.q_proj.bias": "Hd", "self_attn.k_proj.bias": "Gd", "self_attn.v_proj.bias": "Gd"}),
        ("q_norm", "vector", "rows", "qk_norm", {"self_attn.q_norm.weight": "d"}),
        ("k_norm", "vector", "rows", "qk_norm", {"self_attn.k_norm.weight": "d"}),
        ("o", "weight", "rows", "", {"self_attn.o_proj.weight": "D Hd"}),
        ("mlp_norm", "vector", "rows", "", {"post_attention_layernorm.weight": "D"}),
        ("gate_up", "weight", "gate_up", "", {"mlp.gate_proj.weight": "F D", "mlp.up_proj.weight": "F D"}),
        ("down", "weight", "rows", "", {"mlp.down_proj.weight": "D F"}),
    ),
    ignored=r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
)  # fmt: skip

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),  # two names of the same function
    "mlp_bias": (False,),
    "attention_bias": (False,),  # would also put a bias on o_proj
}


def no_windows(keys: Keys, layers: int) -> list[int]:
    """Window of each layer: 0, full attention."""
    return [0] * layers


def sliding(keys: Keys, types: list[bool]) -> list[int]:
    """Window of each layer: sliding_window where types[i] is true, else 0 (full attention)."""
    window = keys.integer("sliding_window", 1, 2**31 - 1) if keys.get("sliding_window") is not None else 0
    if any(types) and not window:
        keys.wrong("sliding_window", "an integer, because some layers have a window", None)
    return [window if slides else 0 for slides in types]


def layer_types(keys: Keys, layers: int) -> list[bool] | None:
    """Whether each layer has a sliding window, from layer_types; None without that key."""
    types = keys.get("layer_types")
    if types is None:
        return None
    if not isinstance(types, list) or len(types) != layers:
        keys.wrong("layer_types", f"a list of {layers}", types)
    for kind in types:
        if kind not in ("full_attention", "sliding_attention"):
            keys.unsupported("layer_types", "full_attention or sliding_attention", kind)
    return [kind == "sliding_attention" for kind in types]


def decoder(
    keys: Keys,
    optional: tuple[str, ...] = ("head_dim", "num_key_value_heads"),
    windows: Callable[[Keys, int], list[int]] = no_windows,
    theta: float = 10000.0,
    partial_rotary: bool = False,
    tied: bool = False,
    **every: Any,
) -> ModelConfig:
    """A ModelConfig of arch "decoder".

    optional: sizes that may be absent and then follow from the others. windows: function that gives the window of each
    layer. theta, tied: defaults of absent keys. partial_rotary: whether the family allows it. every: fields of all
    layers."""
    if "num_key_value_heads" in keys:  # may be null
        optional += ("num_key_value_heads",)
    needed = {k: v for k, v in LIMITS.items() if k not in optional or keys.get(k) is not None}
    sizes = {k: keys.integer(k, 1, high) for k, high in needed.items()}
    heads, max_len = sizes["num_attention_heads"], sizes["max_position_embeddings"]
    kv_heads, head_dim = sizes.get("num_key_value_heads", heads), _head_dim(keys, sizes)
    if heads % kv_heads:
        keys.wrong("num_key_value_heads", f"a divisor of num_attention_heads = {heads}", kv_heads)
    turn = rope(keys, head_dim, max_len, theta, partial_rotary)
    spec = LayerSpec(heads, kv_heads, head_dim, sizes["intermediate_size"], rope=turn, **every)
    seen = windows(keys, sizes["num_hidden_layers"])
    return ModelConfig(
        arch="decoder",
        layers=tuple(replace(spec, window=window if window < max_len else 0) for window in seen),
        hidden=sizes["hidden_size"],
        vocab=sizes["vocab_size"],
        max_len=max_len,
        eps=keys.real("rms_norm_eps", 0, 1),
        tied=keys.flag("tie_word_embeddings", tied),
        dtype=dtype(keys),
    )


def _head_dim(keys: Keys, sizes: dict[str, int]) -> int:
    hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    if "head_dim" not in sizes and hidden % heads:
        keys.wrong("hidden_size", f"a multiple of num_attention_heads = {heads}, as head_dim is absent", hidden)
    dim = sizes.get("head_dim", hidden // heads)
    if dim % 2:
        keys.wrong("head_dim", "an even number, as RoPE rotates pairs", dim)
    return dim
