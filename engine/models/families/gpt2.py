"""GPT-2. Its end token is config.json's."""

from __future__ import annotations

from ...config import ModelConfig
from ...keys import Keys
from .decoder import HEAD, SHARED
from .family import Family, Table
from .learned import gelu, learned, size

_TABLE = Table(
    prefixes=("transformer.", ""),
    top=(
        ("embed", "weight", "rows", "", {"wte.weight": "V D"}),
        ("positions", "table", "rows", "", {"wpe.weight": "T D"}),
        ("norm", "vector", "rows", "", {"ln_f.weight": "D"}),
        ("norm_bias", "vector", "rows", "", {"ln_f.bias": "D"}),
    ),
    head=HEAD,
    shared=SHARED,
    block="h.{}.",
    layer=(
        ("attn_norm", "vector", "rows", "", {"ln_1.weight": "D"}),
        ("attn_norm_bias", "vector", "rows", "", {"ln_1.bias": "D"}),
        ("qkv", "transposed", "qkv", "", {"attn.c_attn.weight": "D QKV"}),
        ("qkv_bias", "vector", "qkv", "", {"attn.c_attn.bias": "QKV"}),
        ("o", "transposed", "rows", "", {"attn.c_proj.weight": "D D"}),
        ("o_bias", "vector", "rows", "", {"attn.c_proj.bias": "D"}),
        ("mlp_norm", "vector", "rows", "", {"ln_2.weight": "D"}),
        ("mlp_norm_bias", "vector", "rows", "", {"ln_2.bias": "D"}),
        ("up", "transposed", "rows", "", {"mlp.c_fc.weight": "D F"}),
        ("up_bias", "vector", "rows", "", {"mlp.c_fc.bias": "F"}),
        ("down", "transposed", "rows", "", {"mlp.c_proj.weight": "F D"}),
        ("down_bias", "vector", "rows", "", {"mlp.c_proj.bias": "D"}),
    ),
    ignored=r"h\.\d+\.attn\.(bias|masked_bias)",  # the causal mask and its fill value
)


def _gpt2(keys: Keys) -> ModelConfig:
    hidden = size(keys, "n_embd", "hidden_size")
    keys.skip("n_ctx", "reorder_and_upcast_attn")  # the older name of n_positions; a numerical detail of training
    return learned(
        keys, "n_embd", "n_head",
        arch="gpt2",
        family="gpt2",
        layers=size(keys, "n_layer", "num_hidden_layers"),
        ffn=size(keys, "n_inner", "intermediate_size") if keys.get("n_inner") is not None else 4 * hidden,
        activation=gelu(keys, "activation_function", "gelu_new"),
        max_len=size(keys, "n_positions", "max_position_embeddings"),
        eps=keys.real("layer_norm_epsilon", 0, 1, default=1e-5),
        tied=keys.flag("tie_word_embeddings", True),
    )  # fmt: skip


GPT2 = Family(
    name="gpt2",
    architectures=("GPT2LMHeadModel",),
    config=_gpt2,
    table=_TABLE,
    neutral={
        "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,),
    },
)  # fmt: skip
