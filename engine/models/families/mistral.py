"""Mistral 7B, Nemo and Ministral; Small 3 and Ministral 3, whose text model is the text_config of a vision model."""

from __future__ import annotations

import logging
from dataclasses import replace

from ...config import ModelConfig
from ...keys import Keys
from .decoder import NEUTRAL, TABLE, decoder, layer_types, sliding
from .family import Family, GgufForm
from .rope import LENGTH

SIZES = ("head_dim",)  # optional sizes, which follow from the others
BETA = "llama_4_scaling_beta"


def _windows(keys: Keys, layers: int) -> list[int]:
    """A window on all layers or on none."""
    types = [keys.get("sliding_window") is not None] * layers
    if layer_types(keys, layers) not in (None, types):  # transformers ignores layer_types here
        keys.unsupported("layer_types", "the window on all layers or on none", keys.get("layer_types"))
    return sliding(keys, types)


def _by_layer(keys: Keys, layers: int) -> list[int]:
    types = layer_types(keys, layers)
    return sliding(keys, types or [keys.get("sliding_window") is not None] * layers)


def _expect_window(keys: Keys) -> None:
    if "sliding_window" not in keys:  # transformers' default is 4096
        keys.wrong("sliding_window", "an integer or null", None)


def _mistral(keys: Keys) -> ModelConfig:
    _expect_window(keys)
    return decoder(keys, SIZES, _windows)


def _ministral(keys: Keys) -> ModelConfig:
    _expect_window(keys)
    return decoder(keys, SIZES, _by_layer)


def _ministral3(keys: Keys) -> ModelConfig:
    """Beyond the training length queries are scaled by a growing factor; the engine limits max_len to that length."""
    c = decoder(keys, (), _windows)
    inner = keys.inner("rope_parameters" if keys.get("rope_parameters") is not None else "rope_scaling")
    inner.skip("max_position_embeddings")
    where = keys if BETA in keys else inner  # a GGUF file has it at the top level
    if where.get(BETA) is None or not (beta := where.real(BETA, -1, 1e6)):
        return c
    length = inner.integer(LENGTH, 1, 2**24)
    if length < c.max_len:
        message = "%s: %s = %g is not supported from position %d on: sequences end there"
        logging.getLogger("ostinato").warning(message, where.name, BETA, beta, length)
    return replace(c, max_len=min(length, c.max_len))


_VISION = r"(model\.)?(vision_tower|multi_modal_projector)\..+|"
_BESIDE_VISION = TABLE._replace(
    prefixes=("model.language_model.", "language_model.model.", *TABLE.prefixes),
    ignored=_VISION + TABLE.ignored,
    old=(("lm_head.weight", "language_model.lm_head.weight"),),
)
_FORM = GgufForm("mistral3", paired=True, keys={"attention.temperature_scale": BETA})

MISTRAL = Family("mistral", ("MistralForCausalLM",), _mistral, TABLE, neutral=NEUTRAL)
MINISTRAL = Family("ministral", ("MinistralForCausalLM",), _ministral, TABLE, neutral=NEUTRAL)
MINISTRAL3 = Family("ministral3", ("Ministral3ForCausalLM",), _ministral3, TABLE, _FORM, NEUTRAL)
MISTRAL3 = Family("mistral3", ("Mistral3ForConditionalGeneration",), _mistral, _BESIDE_VISION, text="mistral")
