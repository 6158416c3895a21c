"""The forward pass of each ModelConfig.arch: a module whose parts(ops, c, w, b, s, caches) yields it as callables."""

from . import bert, decoder, gpt2

MODELS = {"decoder": decoder, "gpt2": gpt2, "bert": bert}
