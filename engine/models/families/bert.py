"""BERT, an encoder that embeds texts. A masked-LM head in the checkpoint is ignored."""

from __future__ import annotations

from ...config import ModelConfig
from ...keys import Keys
from .family import Family, Table
from .learned import gelu, learned, size

_TABLE = Table(
    prefixes=("bert.", ""),
    top=(
        ("embed", "weight", "rows", "", {"embeddings.word_embeddings.weight": "V D"}),
        ("positions", "table", "rows", "", {
            "embeddings.position_embeddings.weight": "T D", "embeddings.token_type_embeddings.weight": "S D"}),
        ("norm", "vector", "rows", "", {"embeddings.LayerNorm.weight": "D"}),
        ("norm_bias", "vector", "rows", "", {"embeddings.LayerNorm.bias": "D"}),
    ),
    block="encoder.layer.{}.",
    layer=(
        ("qkv", "weight", "qkv", "", {
            "attention.self.query.weight": "Hd D", "attention.self.key.weight": "Gd D",
            "attention.self.value.weight": "Gd D"}),
        ("qkv_bias", "vector", "qkv", "", {
            "attention.self.query.bias": "Hd", "attention.self.key.bias": "Gd", "attention.self.value.bias": "Gd"}),
        ("o", "weight", "rows", "", {"attention.output.dense.weight": "D Hd"}),
        ("o_bias", "vector", "rows", "", {"attention.output.dense.bias": "D"}),
        ("attn_norm", "vector", "rows", "", {"attention.output.LayerNorm.weight": "D"}),
        ("attn_norm_bias", "vector", "rows", "", {"attention.output.LayerNorm.bias": "D"}),
        ("up", "weight", "rows", "", {"intermediate.dense.weight": "F D"}),
        ("up_bias", "vector", "rows", "", {"intermediate.dense.bias": "F"}),
        ("down", "weight", "rows", "", {"output.dense.weight": "D F"}),
        ("down_bias", "vector", "rows", "", {"output.dense.bias": "D"}),
        ("mlp_norm", "vector", "rows", "", {"output.LayerNorm.weight": "D"}),
        ("mlp_norm_bias", "vector", "rows", "", {"output.LayerNorm.bias": "D"}),
    ),
    # index buffers; and the training heads: pooler, masked words, next sentence
    ignored=r"embeddings\.(position_ids|token_type_ids)|pooler\.dense\.(weight|bias)"
    r"|cls\.predictions\.(bias|decoder\.(weight|bias)|transform\.(dense|LayerNorm)\.(weight|bias|gamma|beta))"
    r"|cls\.seq_relationship\.(weight|bias)",
    shared="cls.predictions.decoder.weight",
    old=(("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")),
)  # fmt: skip


def _bert(keys: Keys) -> ModelConfig:
    return learned(
        keys, "hidden_size", "num_attention_heads",
        arch="bert",
        family="bert",
        layers=size(keys, "num_hidden_layers"),
        ffn=size(keys, "intermediate_size"),
        activation=gelu(keys, "hidden_act", "gelu"),
        max_len=size(keys, "max_position_embeddings"),
        eps=keys.real("layer_norm_eps", 0, 1, default=1e-12),
        causal=False,
        tied=keys.flag("tie_word_embeddings", True),
        segments=keys.integer("type_vocab_size", 1, 2**16),
    )  # fmt: skip


BERT = Family(
    name="bert",
    architectures=("BertModel", "BertForMaskedLM", "BertForPreTraining"),
    config=_bert,
    table=_TABLE,
    neutral={
        "is_decoder": (False,), "add_cross_attention": (False,), "position_embedding_type": ("absolute",),
    },
)  # fmt: skip
