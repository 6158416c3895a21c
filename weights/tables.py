"""Which checkpoint tensors form which weight of the engine: a table for each architecture. names.py reads them.

Tables give sizes in letters: V vocabulary, D hidden, Hd query columns, Gd key/value columns, QKV all three together, d
head size, F feed-forward, T positions, S segments.
"""

from __future__ import annotations

from typing import NamedTuple

# path, kind, layout, condition (a field of the configuration, "not" before it reverses), tensors with their sizes
Row = tuple[str, str, str, str, dict[str, str]]


class Table(NamedTuple):
    """The tensors of an architecture. Names are those of transformers."""

    top: tuple[Row, ...]  # beside the layers
    layer: tuple[Row, ...]
    block: str  # what the names of a layer's tensors begin with, {} its number
    prefixes: tuple[str, ...]  # before all of them: the first that the checkpoint has, or else the last
    spare: str  # tensors (a regular expression) that are computed, not learned, or serve a task the engine has not
    old: tuple[tuple[str, str], ...] = ()  # endings of names, and what older files have in their place
    head: tuple[Row, ...] = ()  # without the prefix
    shared: str = ""  # without the prefix: another name of the embedding in a model whose weights are tied


_SHARED = "lm_head.weight"
_HEAD: tuple[Row, ...] = (("head", "weight", "rows", "not tied", {_SHARED: "V D"}),)

DECODER = Table(
    prefixes=("model.",),
    top=(
        ("embed", "weight", "rows", "", {"embed_tokens.weight": "V D"}),
        ("norm", "vector", "rows", "", {"norm.weight": "D"}),
    ),
    head=_HEAD,
    shared=_SHARED,
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
    spare=r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
)  # fmt: skip

GPT2 = Table(
    prefixes=("transformer.", ""),
    top=(
        ("embed", "weight", "rows", "", {"wte.weight": "V D"}),
        ("positions", "table", "rows", "", {"wpe.weight": "T D"}),
        ("norm", "vector", "rows", "", {"ln_f.weight": "D"}),
        ("norm_bias", "vector", "rows", "", {"ln_f.bias": "D"}),
    ),
    head=_HEAD,
    shared=_SHARED,
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
    spare=r"h\.\d+\.attn\.(bias|masked_bias)",  # the causal mask and what stands where it hides
)

BERT = Table(
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
    # numbers of rows; and what BERT was trained with: the pooled first token, masked words, the next sentence
    spare=r"embeddings\.(position_ids|token_type_ids)|pooler\.dense\.(weight|bias)"
    r"|cls\.predictions\.(bias|decoder\.(weight|bias)|transform\.(dense|LayerNorm)\.(weight|bias|gamma|beta))"
    r"|cls\.seq_relationship\.(weight|bias)",
    shared="cls.predictions.decoder.weight",
    old=(("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")),
)  # fmt: skip
