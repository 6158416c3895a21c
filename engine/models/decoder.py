"""Llama, Mistral, Qwen2, Qwen3, SmolLM2: pre-norm decoder with RoPE, grouped attention and a gated MLP.

c ModelConfig · w weights as weights/names.py lays them out · b Buffers · s Step · caches one Cache a layer.
"""


def layer(ops, c, w, b, s, cache, rope, out, norm):
    """One decoder layer: the residual stream from b.x to out [R, D]; norm is the weight of the norm behind it."""
    ops.norm_qkv(c, w, b, s, cache, rope)
    ops.attend(b.qkv, s, cache, c.heads, c.window, b.attn, b.scratch)
    ops.linear(b.attn, w.o, b.mid, residual=b.x, norm=w.mlp_norm)
    ops.all_reduce(b.mid)
    ops.norm_gate_up(c, w, b)
    ops.linear(b.ffn, w.down, out, residual=b.mid, norm=norm)
    ops.all_reduce(out)


def parts(ops, c, w, b, s, caches):
    """The forward pass as callables, to be run, or captured one by one or together; the result is b.logits."""
    each = b.layers or [b] * (c.layers + 1)
    norms = [lw.attn_norm for lw in w.layers] + [w.norm]
    yield lambda: ops.embed(s.ids, w.embed, each[0].x, norm=norms[0])
    for i, (lw, cache) in enumerate(zip(w.layers, caches, strict=True)):
        yield lambda i=i, lw=lw, cache=cache: layer(ops, c, lw, each[i], s, cache, w.rope, each[i + 1].x, norms[i + 1])
    yield lambda: ops.norm_head(c, w, each[-1], s)
