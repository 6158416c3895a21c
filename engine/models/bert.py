"""BERT: an encoder with learned positions, "add & norm" after each half of a layer, and a GELU MLP.

c ModelConfig · spec LayerSpec · w Weights, or LayerWeights of a layer · b Buffers · s Step · caches: one Cache.

Every token attends to its whole sequence, all of whose tokens are rows of this pass; visible[r] is the length of row
r's sequence. Keys and values are needed within one layer only, so all layers share one cache. There are no logits: the
result is b.x [R, D].
"""


def layer(ops, c, spec, w, b, s, cache):
    """One encoder layer: updates the residual stream b.x [R, D] float32 and its copy b.h [R, D] in T."""
    ops.linear_append(spec, w, b, s, cache)
    ops.attend(b.qkv, s, cache, spec.heads, spec.window, b.attn, b.scratch, spec.scale)
    ops.linear(b.attn, w.o, b.x, s.kind, bias=w.o_bias, residual=b.x)
    ops.layer_norm(b.x, w.attn_norm, w.attn_norm_bias, c.eps, b.h, keep=b.x)
    ops.linear_gelu(spec, w, b, s)
    ops.linear(b.ffn, w.down, b.x, s.kind, bias=w.down_bias, residual=b.x)
    ops.layer_norm(b.x, w.mlp_norm, w.mlp_norm_bias, c.eps, b.h, keep=b.x)


def embed(ops, c, w, b, s):
    """Token, position and segment embeddings, added and normalised. w.positions includes segment 0."""
    ops.embed_at(s.ids, w.embed, s.positions, w.positions, b.x)
    ops.layer_norm(b.x, w.norm, w.norm_bias, c.eps, b.h, keep=b.x)


def parts(ops, c, w, b, s, caches):
    """The forward pass as callables, to run or to capture separately or together. The result is b.x [R, D]."""
    yield lambda: embed(ops, c, w, b, s)
    for spec, lw in zip(c.layers, w.layers, strict=True):
        yield lambda spec=spec, lw=lw: layer(ops, c, spec, lw, b, s, caches[0])
