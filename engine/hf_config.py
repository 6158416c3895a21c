"""From the files of a checkpoint to a ModelConfig: what is missing, wrong or not supported is refused by name.

ModelConfig.from_hf calls model_config; nothing else here is public. Takes dicts of config.json's and
generation_config.json's form (a GGUF reader makes the same dict from its metadata) and touches no file.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from .config import LayerSpec, ModelConfig
from .hf_keys import LIMITS, Keys
from .hf_learned import bert, gpt2
from .hf_rope import rope

TYPES = {  # model_type: architectures that are it
    "llama": ("LlamaForCausalLM",),
    "mistral": ("MistralForCausalLM",),
    "qwen2": ("Qwen2ForCausalLM",),
    "qwen3": ("Qwen3ForCausalLM",),
    "gpt2": ("GPT2LMHeadModel",),
    "bert": ("BertModel", "BertForMaskedLM", "BertForPreTraining"),
}
ARCHITECTURES = {name: kind for kind, names in TYPES.items() for name in names}


def model_config(config: dict[str, Any], generation: dict[str, Any], source: str | Path) -> ModelConfig:
    """The ModelConfig these dicts describe.

    config: config.json; generation: generation_config.json, {} when there is none, whose end tokens come before
    config's; source: directory or GGUF file, for messages. CheckpointError or UnsupportedModel, naming file and key."""
    gguf = str(source).endswith(".gguf")
    keys = Keys(config, str(source) if gguf else str(Path(source) / "config.json"))
    more = Keys(generation, str(source) if gguf else str(Path(source) / "generation_config.json"))
    arch = _architecture(keys)
    for key in ("quantization_config", "compression_config"):
        if keys.get(key) is not None:
            keys.unsupported(key, "none (F32, F16 and BF16 tensors; quantised models as GGUF)", keys.get(key))
    kind = ARCHITECTURES[arch]
    c = gpt2(keys) if kind == "gpt2" else bert(keys) if kind == "bert" else _decoder(keys, arch)
    bos, eos = (more.token_ids(k, c.vocab) + keys.token_ids(k, c.vocab) for k in ("bos_token_id", "eos_token_id"))
    return replace(c, bos_id=next(iter(bos), None), eos_ids=tuple(dict.fromkeys(eos)))


def _decoder(keys: Keys, arch: str) -> ModelConfig:
    """Llama, Mistral, Qwen2, Qwen3."""
    needed = _needed(keys, arch)
    sizes = {k: keys.integer(k, 1, high) for k, high in LIMITS.items() if k in needed or keys.get(k) is not None}
    heads = sizes["num_attention_heads"]
    kv_heads = sizes.get("num_key_value_heads", heads)
    if heads % kv_heads:
        keys.wrong("num_key_value_heads", f"a divisor of num_attention_heads = {heads}", kv_heads)
    _refuse_variants(keys, arch)
    every = LayerSpec(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_head_dim(keys, sizes),
        ffn=sizes["intermediate_size"],
        rope=rope(keys),
        qkv_bias=arch == "Qwen2ForCausalLM",
        qk_norm=arch == "Qwen3ForCausalLM",
    )
    windows = _windows(keys, arch, sizes["num_hidden_layers"], sizes["max_position_embeddings"])
    return ModelConfig(
        arch="decoder",
        layers=tuple(replace(every, window=window) for window in windows),
        hidden=sizes["hidden_size"],
        vocab=sizes["vocab_size"],
        max_len=sizes["max_position_embeddings"],
        eps=keys.real("rms_norm_eps", 0, 1),
        tied=keys.flag("tie_word_embeddings", False),
        dtype=keys.dtype(),
    )


def _architecture(keys: Keys) -> str:
    """One of ARCHITECTURES, from architectures, from model_type, or from both when they agree."""
    listed, kind = keys.get("architectures"), keys.get("model_type")
    if listed is None and kind is None:
        keys.wrong("architectures", f"one of {', '.join(ARCHITECTURES)}", None)
    if kind is not None and (not isinstance(kind, str) or kind not in TYPES):
        keys.unsupported("model_type", f"one of {', '.join(TYPES)}", kind)
    if listed is None:
        return TYPES[str(kind)][0]
    if not isinstance(listed, (list, tuple)) or len(listed) != 1 or not isinstance(listed[0], str):
        keys.wrong("architectures", "a list of one name", listed)
    if listed[0] not in ARCHITECTURES:
        keys.unsupported("architectures", f"one of {', '.join(ARCHITECTURES)}", listed[0])
    if kind not in (None, ARCHITECTURES[listed[0]]):
        keys.wrong("model_type", f"the type of {listed[0]}", kind)
    return listed[0]


def _needed(keys: Keys, arch: str) -> set[str]:
    """Sizes that must be given. The other two follow from the rest, where transformers has no default of its own."""
    follows = set() if arch == "Qwen3ForCausalLM" else {"head_dim"}
    if arch == "LlamaForCausalLM" or "num_key_value_heads" in keys.values:  # as null, for instance
        follows.add("num_key_value_heads")
    return set(LIMITS) - follows


def _head_dim(keys: Keys, sizes: dict[str, int]) -> int:
    hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    if "head_dim" not in sizes and hidden % heads:
        keys.wrong("hidden_size", f"a multiple of num_attention_heads = {heads}, as head_dim is not given", hidden)
    dim = sizes.get("head_dim", hidden // heads)
    if dim % 2:
        keys.wrong("head_dim", "an even number, as RoPE turns pairs", dim)
    return dim


def _refuse_variants(keys: Keys, arch: str) -> None:
    """Keys with which transformers builds another network than the decoder here does."""
    if keys.get("hidden_act", "silu") not in ("silu", "swish"):  # two names of one function
        keys.unsupported("hidden_act", "silu", keys.get("hidden_act"))
    if arch != "Qwen2ForCausalLM" and keys.flag("attention_bias", False):  # Qwen2: always on q, k, v; no such key
        keys.unsupported("attention_bias", "false (it puts a bias on o_proj too)", True)
    if keys.flag("mlp_bias", False):
        keys.unsupported("mlp_bias", "false", True)


def _windows(keys: Keys, arch: str, layers: int, max_len: int) -> list[int]:
    """Of each layer, how many tokens a token sees; 0 = all."""
    if arch == "MistralForCausalLM" and "sliding_window" not in keys.values:  # transformers would take 4096
        keys.wrong("sliding_window", "an integer or null", None)
    window = keys.integer("sliding_window", 1, 2**31 - 1) if keys.get("sliding_window") is not None else 0
    if arch == "LlamaForCausalLM" and window:
        keys.unsupported("sliding_window", "null for Llama", window)
    if arch.startswith("Qwen"):
        slides = _sliding(keys, layers) if keys.flag("use_sliding_window", False) else [False] * layers
    else:
        slides = [window > 0] * layers if keys.get("layer_types") is None else _sliding(keys, layers)
    if any(slides) and not window:
        keys.wrong("sliding_window", "an integer, as layers have a window", None)
    return [window if slide and window < max_len else 0 for slide in slides]


def _sliding(keys: Keys, layers: int) -> list[bool]:
    """Which layers have the window: by layer_types, or Qwen's rule that the first max_window_layers have none."""
    types = keys.get("layer_types")
    if types is None:
        return [i >= keys.integer("max_window_layers", 0, 2**31 - 1) for i in range(layers)]
    if not isinstance(types, list) or len(types) != layers:
        keys.wrong("layer_types", f"a list of {layers}", types)
    for kind in types:
        if kind not in ("full_attention", "sliding_attention"):
            keys.unsupported("layer_types", "full_attention or sliding_attention", kind)
    return [kind == "sliding_attention" for kind in types]
