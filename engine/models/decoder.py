"""Llama, Mistral, Qwen2, Qwen3, SmolLM2: pre-norm decoder with RoPE, grouped attention and a gated MLP.

c ModelConfig · w weights as weights/names.py lays them out · b Buffers · s Step · caches one Cache a layer.
"""


def layer(ops, c, w, b, s, cache, rope, following):
    """One decoder layer: reads and writes the residual stream b.x [R, D]. following: weight of the norm after it."""
    ops.norm_qkv(c, w, b, s, cache, rope)
    ops.attend(b.qkv, s, cache, c.heads, c.window, b.attn, b.scratch)
    ops.linear_add(b.attn, w.o, b, s, w.mlp_norm)
    ops.norm_gate_up(c, w, b, s)
    ops.linear_add(b.ffn, w.down, b, s, following)


def head(ops, c, w, b, s):
    """b.logits of rows s.last of b.x."""
    ops.norm_head(c, w, b, s)


def parts(ops, c, w, b, s, caches):
    """The forward pass as callables, to be run, or captured one by one or together; the result is b.logits."""
    norms = [*(lw.attn_norm for lw in w.layers), w.norm]
    yield lambda: ops.embed_tokens(s, w.embed, b, norms[0])
    for lw, cache, following in zip(w.layers, caches, norms[1:], strict=True):
        yield lambda lw=lw, cache=cache, following=following: layer(ops, c, lw, b, s, cache, w.rope, following)
    yield lambda: head(ops, c, w, b, s)
