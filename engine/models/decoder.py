"""A pre-norm decoder with RoPE, grouped-query attention and a gated MLP: every decoder family but GPT-2.

c ModelConfig · spec LayerSpec · w Weights, or LayerWeights of a layer · b Buffers · s Step · caches: a Cache per layer.
The families differ in data only, which spec and c hold; see families/.
"""


def layer(ops, c, spec, w, b, s, cache, following):
    """One decoder layer: updates the residual stream b.x [R, D]. following: weight of the next layer's first norm."""
    ops.norm_qkv(c, spec, w, b, s, cache)
    ops.attend(b.qkv, s, cache, spec.heads, spec.window, b.attn, b.scratch, spec.scale)
    ops.linear_add(b.attn, w.o, b, s, w.mlp_norm, spec.residual_scale)
    ops.norm_gate_up(c, w, b, s)
    ops.linear_add(b.ffn, w.down, b, s, following, spec.residual_scale)


def head(ops, c, w, b, s):
    """Compute b.logits from rows s.last of b.x."""
    ops.norm_head(c, w, b, s)


def parts(ops, c, w, b, s, caches):
    """The forward pass as callables, to run or to capture separately or together. The result is b.logits."""
    norms = [*(lw.attn_norm for lw in w.layers), w.norm]
    yield lambda: ops.embed_tokens(s, w.embed, b, norms[0], c.embed_scale)
    for spec, lw, cache, following in zip(c.layers, w.layers, caches, norms[1:], strict=True):
        yield lambda spec=spec, lw=lw, cache=cache, following=following: layer(ops, c, spec, lw, b, s, cache, following)
    yield lambda: head(ops, c, w, b, s)
