"""GPT-2: pre-norm decoder with learned positions, LayerNorm with bias, and a GELU MLP.

c ModelConfig · spec LayerSpec · w Weights, or LayerWeights of a layer · b Buffers · s Step · caches: a Cache per layer.
"""


def layer(ops, c, spec, w, b, s, cache):
    """One decoder layer: updates the residual stream b.x [R, D]."""
    ops.layer_norm(b.x, w.attn_norm, w.attn_norm_bias, c.eps, b.h)
    ops.linear_append(spec, w, b, s, cache)
    ops.attend(b.qkv, s, cache, spec.heads, spec.window, b.attn, b.scratch, spec.scale)
    ops.linear(b.attn, w.o, b.x, s.kind, bias=w.o_bias, residual=b.x)
    ops.layer_norm(b.x, w.mlp_norm, w.mlp_norm_bias, c.eps, b.h)
    ops.linear_gelu(spec, w, b, s)
    ops.linear(b.ffn, w.down, b.x, s.kind, bias=w.down_bias, residual=b.x)


def head(ops, c, w, b, s):
    """Compute b.logits from rows s.last of b.x."""
    last = b.h[: len(s.last)]
    ops.layer_norm(b.x, w.norm, w.norm_bias, c.eps, last, rows=s.last)
    ops.head(last, w.head, b.logits, w.head_bias)


def parts(ops, c, w, b, s, caches):
    """The forward pass as callables, to run or to capture separately or together. The result is b.logits."""
    yield lambda: ops.embed_at(s.ids, w.embed, s.positions, w.positions, b.x)
    for spec, lw, cache in zip(c.layers, w.layers, caches, strict=True):
        yield lambda spec=spec, lw=lw, cache=cache: layer(ops, c, spec, lw, b, s, cache)
    yield lambda: head(ops, c, w, b, s)
