"""BERT: an encoder with learned positions, "add & norm" after each half of a layer, and a GELU MLP.

c ModelConfig · spec LayerSpec · w Weights, or LayerWeights of a layer · b Buffers · s Step · caches: of one layer.

Every token sees its whole sequence, so the keys and values of a layer are scratch, which all layers share: visible[r]
is the length of row r's sequence, all of whose tokens are rows of this step. There are no logits: the result is
b.x [R, D].
"""


def layer(ops, c, spec, w, b, s, cache):
    """One encoder layer: reads and writes the residual stream b.x [R, D], and b.h, the same in T."""
    ops.linear_append(spec, w, b, s, cache)
    ops.attend(b.qkv, s, cache, spec.heads, spec.window, b.attn, b.scratch, spec.scale)
    ops.linear(b.attn, w.o, b.x, s.kind, bias=w.o_bias, residual=b.x)
    ops.layer_norm(b.x, w.attn_norm, w.attn_norm_bias, c.eps, b.h, keep=b.x)
    ops.linear_gelu(spec, w, b, s)
    ops.linear(b.ffn, w.down, b.x, s.kind, bias=w.down_bias, residual=b.x)
    ops.layer_norm(b.x, w.mlp_norm, w.mlp_norm_bias, c.eps, b.h, keep=b.x)


def embed(ops, c, w, b, s):
    """Token, position and segment 0, which the positions hold, added and normalised."""
    ops.embed_at(s.ids, w.embed, s.positions, w.positions, b.x)
    ops.layer_norm(b.x, w.norm, w.norm_bias, c.eps, b.h, keep=b.x)


def parts(ops, c, w, b, s, caches):
    """The forward pass as callables, to be run, or captured one by one or together; the result is b.x."""
    yield lambda: embed(ops, c, w, b, s)
    for spec, lw in zip(c.layers, w.layers, strict=True):
        yield lambda spec=spec, lw=lw: layer(ops, c, spec, lw, b, s, caches[0])
