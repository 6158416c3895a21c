"""Llama, Mistral, Qwen2, Qwen3, SmolLM2: pre-norm decoder with RoPE, grouped attention and a gated MLP.

c ModelConfig · w weights as weights/names.py lays them out · b Buffers · s Step · caches one Cache a layer.
"""


def layer(ops, c, w, b, s, cache, rope):
    """One decoder layer: reads and writes the residual stream b.x [R, D]."""
    ops.norm_qkv(c, w, b, s, cache, rope)
    ops.attend(b.qkv, s, cache, c.heads, c.window, b.attn, b.scratch)
    ops.linear(b.attn, w.o, b.x, residual=b.x)
    ops.all_reduce(b.x)
    ops.norm_gate_up(c, w, b)
    ops.linear(b.ffn, w.down, b.x, residual=b.x)
    ops.all_reduce(b.x)


def head(ops, c, w, b, s):
    """b.logits of rows s.last of b.x."""
    ops.norm_head(c, w, b, s)


def parts(ops, c, w, b, s, caches):
    """The forward pass as callables, to be run, or captured one by one or together; the result is b.logits."""
    yield lambda: ops.embed(s.ids, w.embed, b.x)
    for lw, cache in zip(w.layers, caches, strict=True):
        yield lambda lw=lw, cache=cache: layer(ops, c, lw, b, s, cache, w.rope)
    yield lambda: head(ops, c, w, b, s)
