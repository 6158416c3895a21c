"""From config.json to a ModelConfig for GPT-2 and BERT: learned positions, LayerNorm with bias, GELU.

Used by hf_config.py only; touches nothing.
"""

from __future__ import annotations

from typing import Any

from .config import LayerSpec, ModelConfig
from .hf_keys import LIMITS, Keys

GELUS = {  # names in transformers: ModelConfig.activation
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}


def gpt2(keys: Keys) -> ModelConfig:
    """GPT2LMHeadModel: the end token is config.json's; CheckpointError or UnsupportedModel, naming file and key."""
    for key, usual in (
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("add_cross_attention", False),
    ):
        if keys.flag(key, usual) != usual:
            keys.unsupported(key, str(usual).lower(), not usual)
    hidden = keys.integer("n_embd", 1, LIMITS["hidden_size"])
    inner = "n_inner" if keys.get("n_inner") is not None else None
    return _config(
        keys,
        arch="gpt2",
        layers=keys.integer("n_layer", 1, LIMITS["num_hidden_layers"]),
        hidden=hidden,
        head_key="n_head",
        hidden_key="n_embd",
        ffn=keys.integer(inner, 1, LIMITS["intermediate_size"]) if inner else 4 * hidden,
        max_len=keys.integer("n_positions", 1, LIMITS["max_position_embeddings"]),
        eps=keys.real("layer_norm_epsilon", 0, 1, default=1e-5),
        activation=_gelu(keys, "activation_function", "gelu_new"),
        tied=keys.flag("tie_word_embeddings", True),
    )


def bert(keys: Keys) -> ModelConfig:
    """A BertModel alone or under a masked-LM head, whose head is not used."""
    for key in ("is_decoder", "add_cross_attention"):
        if keys.flag(key, False):
            keys.unsupported(key, "false: an encoder", True)
    if keys.get("position_embedding_type", "absolute") != "absolute":
        keys.unsupported("position_embedding_type", "absolute", keys.get("position_embedding_type"))
    return _config(
        keys,
        arch="bert",
        layers=keys.integer("num_hidden_layers", 1, LIMITS["num_hidden_layers"]),
        hidden=keys.integer("hidden_size", 1, LIMITS["hidden_size"]),
        head_key="num_attention_heads",
        hidden_key="hidden_size",
        ffn=keys.integer("intermediate_size", 1, LIMITS["intermediate_size"]),
        max_len=keys.integer("max_position_embeddings", 1, LIMITS["max_position_embeddings"]),
        eps=keys.real("layer_norm_eps", 0, 1, default=1e-12),
        activation=_gelu(keys, "hidden_act", "gelu"),
        causal=False,
        segments=keys.integer("type_vocab_size", 1, 2**16),
    )


def _config(
    keys: Keys, hidden_key: str, head_key: str, layers: int, ffn: int, activation: str, **fields: Any
) -> ModelConfig:
    """The fields that both have in common, added to their own."""
    heads, hidden = keys.integer(head_key, 1, LIMITS["num_attention_heads"]), fields["hidden"]
    if hidden % heads:
        keys.wrong(hidden_key, f"a multiple of {head_key} = {heads}", hidden)
    spec = LayerSpec(heads, heads, hidden // heads, ffn, rope=None, qkv_bias=True, activation=activation)
    return ModelConfig(
        layers=(spec,) * layers,
        vocab=keys.integer("vocab_size", 1, LIMITS["vocab_size"]),
        dtype=keys.dtype(),
        **fields,
    )


def _gelu(keys: Keys, key: str, usual: str) -> str:
    name = keys.get(key, usual)
    if not isinstance(name, str) or name not in GELUS:
        keys.unsupported(key, f"one of {', '.join(GELUS)}", name)
    return GELUS[name]
