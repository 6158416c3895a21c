"""The mathematics: a module for each ModelConfig.arch, whose parts(ops, c, w, b, s, caches) yields the forward pass."""

from . import bert, decoder, gpt2

MODELS = {"decoder": decoder, "gpt2": gpt2, "bert": bert}
