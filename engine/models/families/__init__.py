"""The known families of models, and the function that turns a checkpoint's configuration into a ModelConfig.

Every family is one file of data; docs/adding-a-model.md shows how to add one.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...config import ModelConfig
from ...keys import Keys
from .bert import BERT
from .family import Family
from .gpt2 import GPT2
from .granite import GRANITE
from .keys import HARMLESS
from .llama import LLAMA
from .mistral import MINISTRAL, MINISTRAL3, MISTRAL, MISTRAL3
from .phi import PHI3
from .qwen import QWEN2, QWEN3
from .smollm import SMOLLM3

FAMILIES = {
    family.name: family
    for family in (
        LLAMA, MISTRAL, MINISTRAL, MISTRAL3, MINISTRAL3, QWEN2, QWEN3, SMOLLM3, PHI3, GRANITE, GPT2, BERT,
    )
}  # fmt: skip
ARCHITECTURES = {name: family for family in FAMILIES.values() for name in family.architectures}
GGUF = {family.gguf.arch: family for family in FAMILIES.values() if family.gguf}
# Keys of text_config that may also be at the top level, where they describe the saved model and take precedence.
OF_BOTH = ("tie_word_embeddings", "bos_token_id", "eos_token_id", "dtype", "torch_dtype")

_log = logging.getLogger("ostinato")


def model_config(config: dict[str, Any], generation: dict[str, Any], source: str | Path) -> ModelConfig:
    """Make a ModelConfig.

    config: config.json, or its equivalent from GGUF metadata. generation: generation_config.json or {}; its end tokens
    come before config's. source: directory or GGUF file, for messages. CheckpointError or UnsupportedModel names file
    and key. Unknown keys are logged as a warning."""
    path = Path(source)
    gguf = path.is_file() or (path.suffix == ".gguf" and not path.is_dir())
    keys = Keys(config, str(path if gguf else path / "config.json"))
    more = Keys(generation, str(path if gguf else path / "generation_config.json"))
    family = _family(keys)
    for key in ("quantization_config", "compression_config"):
        if keys.get(key) is not None:
            keys.unsupported(key, "none (F32, F16 and BF16 tensors; quantised models as GGUF)", keys.get(key))
    text, reader = _text(keys, family)
    for key, values in reader.neutral.items():
        text.neutral(key, values)
    c = replace(reader.config(text), family=family.name)
    bos, eos = (more.token_ids(k, c.vocab) + text.token_ids(k, c.vocab) for k in ("bos_token_id", "eos_token_id"))
    if unread := text.unread(HARMLESS):
        _log.warning("%s: keys that the engine does not know, and ignores: %s", text.name, ", ".join(unread))
    return replace(c, bos_id=next(iter(bos), None), eos_ids=tuple(dict.fromkeys(eos)))


def _family(keys: Keys) -> Family:
    """The family, from architectures, from model_type, or from both if they agree."""
    listed, kind = keys.get("architectures"), keys.get("model_type")
    if listed is None and kind is None:
        keys.wrong("architectures", f"one of {', '.join(ARCHITECTURES)}", None)
    if kind is not None and (not isinstance(kind, str) or kind not in FAMILIES):
        keys.unsupported("model_type", f"one of {', '.join(FAMILIES)}", kind)
    if listed is None:
        return FAMILIES[str(kind)]
    if not isinstance(listed, (list, tuple)) or len(listed) != 1 or not isinstance(listed[0], str):
        keys.wrong("architectures", "a list of one name", listed)
    if listed[0] not in ARCHITECTURES:
        keys.unsupported("architectures", f"one of {', '.join(ARCHITECTURES)}", listed[0])
    family = ARCHITECTURES[listed[0]]
    if kind not in (None, family.name):
        keys.wrong("model_type", f"the type of {listed[0]}", kind)
    return family


def _text(keys: Keys, family: Family) -> tuple[Keys, Family]:
    """(keys, family) of the text model: for a multimodal model those of its text_config."""
    if not family.text:
        return keys, family
    inner = keys.inner("text_config")
    kind = inner.get("model_type", family.text)
    if not isinstance(kind, str) or kind not in FAMILIES or FAMILIES[kind].text:
        inner.unsupported("model_type", f"one of {', '.join(n for n, f in FAMILIES.items() if not f.text)}", kind)
    outer = {key: keys.get(key) for key in OF_BOTH if key in keys}
    return Keys({**inner.values, **outer}, inner.name), FAMILIES[kind]
