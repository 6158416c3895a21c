"""A GGUF file in Hugging Face's words: tensor names, config.json, and rows of q and k in half-rotation order.

The families say how their conversion to GGUF is undone (models/families); every other architecture is refused.
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, UnsupportedModel, found
from ..keys import Keys
from ..models.families import GGUF
from ..models.families.family import Family, GgufForm
from .gguf import Gguf
from .kinds import PLAIN
from .tensor import Tensor

_log = logging.getLogger("ostinato")

TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ROPE_FREQS = "rope_freqs.weight"
ROPE_FACTORS = {"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"}
_LENGTH = {"original_context_length": "original_max_position_embeddings"}
_SCALING = {  # by rope.scaling.type: what follows it, and its name in rope_scaling
    "linear": _LENGTH,
    "yarn": {**_LENGTH, "yarn_log_multiplier": "mscale_all_dim",
             "yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"},
    "longrope": {**_LENGTH, "attn_factor": "attention_factor"},
}  # fmt: skip
_BLOCK = re.compile(r"blk\.(\d+)\.([a-z_]+)\.(weight|bias)", re.ASCII)


def translate(path: Path, gguf: Gguf) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config.json, tensors by Hugging Face name) of a GGUF file."""
    arch = gguf.metadata.get("general.architecture")
    if not isinstance(arch, str) or arch not in GGUF:
        Keys(gguf.metadata, str(path)).unsupported("general.architecture", f"one of {', '.join(GGUF)}", arch)
    keys, form = Keys(gguf.metadata, str(path), prefix=f"{arch}."), GGUF[arch].gguf or GgufForm(arch)
    config = _config(keys, gguf.tensors, GGUF[arch], form)
    if unread := keys.unread():
        _log.warning("%s: keys that the engine does not know, and ignores: %s", path, ", ".join(unread))
    tensors: dict[str, Tensor] = {}
    for name, tensor in gguf.tensors.items():
        if name in (ROPE_FREQS, *ROPE_FACTORS.values()):  # now in config["rope_scaling"]
            continue
        target = hf_name(name, form.names)
        if target in tensors:
            raise CheckpointError(f"{path}: tensors {tensors[target].name} and {name} are both {target}")
        tensors[target] = _ordered(tensor, config, form.paired)
    return config, tensors


def hf_name(name: str, more: dict[str, str]) -> str:
    """The Hugging Face name of a GGUF tensor; a name that is not known stays as it is, to be refused as a leftover.

    more: a family's own names, see GgufForm.names."""
    stem, _, part = name.rpartition(".")
    if stem in TOP:
        return f"{TOP[stem]}.{part}"
    block = _BLOCK.fullmatch(name)
    own = more.get(block[2], LAYER.get(block[2])) if block else None
    if block and own:
        return f"model.layers.{block[1]}.{own}.{block[3]}"
    return name


def _ordered(tensor: Tensor, config: dict[str, Any], paired: bool) -> Tensor:
    """The tensor, marked for reordering if its rows are stored in pairs for interleaved RoPE."""
    block = _BLOCK.fullmatch(tensor.name)
    if not paired or not block or block[2] not in ("attn_q", "attn_k"):
        return tensor
    if len(tensor.shape) == 1 and tensor.kind not in PLAIN:
        raise UnsupportedModel(f"{tensor.file}: tensor {tensor.name}: expected F32, F16 or BF16, found {tensor.kind}")
    key = "num_attention_heads" if block[2] == "attn_q" else "num_key_value_heads"
    heads, rows = config[key], tensor.shape[0] if tensor.shape else 0
    if type(heads) is not int or heads < 1 or rows % (2 * heads):
        raise CheckpointError(
            f"{tensor.file}: tensor {tensor.name}: expected rows for {found(heads)} heads of even size, found {rows}"
        )
    return replace(tensor, heads=heads)


def _number(keys: Keys, key: str, default: float = 0.0) -> float:
    """A float32 as the shortest decimal that rounds to it: 1e-05, not 9.999999747378752e-06."""
    value = keys.get(key, default)
    if type(value) not in (int, float):
        keys.wrong(key, "a number", value)
    with np.errstate(over="ignore"):  # a float64 key may hold more
        return float(str(np.float32(value)))


def _value(keys: Keys, key: str) -> Any:
    """The value as it is, a number with a fraction as _number gives it; None when absent."""
    return _number(keys, key) if type(keys.get(key)) is float else keys.get(key)


def _config(keys: Keys, tensors: dict[str, Tensor], family: Family, form: GgufForm) -> dict[str, Any]:
    """config.json of the model; values are as the file has them, their ranges are the engine's to check."""
    embed = tensors.get("token_embd.weight")
    if embed is None or len(embed.shape) != 2:
        what = "none" if embed is None else f"shape {list(embed.shape)}"
        raise CheckpointError(f"{keys.name}: tensor token_embd.weight: expected a matrix, found {what}")
    if keys.get("vocab_size", embed.shape[0]) != embed.shape[0]:
        keys.wrong("vocab_size", f"{embed.shape[0]}, the rows of token_embd.weight", keys.get("vocab_size"))
    vocabulary = Keys(keys.values, keys.name, prefix="tokenizer.ggml.")
    config = {
        "architectures": [family.architectures[0]],
        "model_type": family.name,
        "hidden_size": keys.needed("embedding_length"),
        "num_hidden_layers": keys.needed("block_count"),
        "num_attention_heads": keys.needed("attention.head_count"),
        "num_key_value_heads": keys.get("attention.head_count_kv", keys.get("attention.head_count")),
        "intermediate_size": keys.needed("feed_forward_length"),
        "vocab_size": embed.shape[0],
        "max_position_embeddings": keys.needed("context_length"),
        "rms_norm_eps": _number(keys, "attention.layer_norm_rms_epsilon", 1e-6),
        "rope_theta": _number(keys, "rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(keys, tensors),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in tensors,
        "torch_dtype": _dtype(tensors),
        "bos_token_id": vocabulary.get("bos_token_id"),
        "eos_token_id": _eos(vocabulary),
    }
    head_dim = keys.get("attention.key_length")
    if head_dim is not None:
        config["head_dim"] = head_dim
    if keys.get("attention.sliding_window"):
        config["sliding_window"] = keys.get("attention.sliding_window")
    if "attention_bias" in family.neutral and "blk.0.attn_q.bias" in tensors:
        config["attention_bias"] = True
    for key, name in form.keys.items():
        if keys.get(key) is not None:
            config[name] = _value(keys, key)
    _head_parts(keys, config)
    return config


def _head_parts(keys: Keys, config: dict[str, Any]) -> None:
    """What share of a head turns; and keys that would change the mathematics and have no field in config."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    if type(hidden) is not int or type(heads) is not int or heads < 1:
        return  # the engine's check of the config names these
    head_dim = config.get("head_dim", hidden // heads)
    value_length, turning = keys.get("attention.value_length", head_dim), keys.get("rope.dimension_count", head_dim)
    if value_length != head_dim:
        keys.unsupported("attention.value_length", f"the head size {head_dim}", value_length)
    if turning != head_dim:
        if type(turning) is not int or type(head_dim) is not int or not 0 < turning < head_dim:
            keys.wrong("rope.dimension_count", f"at most the head size {head_dim}", turning)
        config["partial_rotary_factor"] = turning / head_dim
    if keys.get("expert_count", 0):
        keys.unsupported("expert_count", "0, no mixture of experts", keys.get("expert_count"))


def _dtype(tensors: dict[str, Tensor]) -> str:
    """The torch_dtype nearest to what the first layer's matrices hold; quantised ones came from bfloat16, as a rule."""
    q = tensors.get("blk.0.attn_q.weight")
    return {"F32": "float32", "F16": "float16"}.get(q.kind if q else "", "bfloat16")


def _eos(vocabulary: Keys) -> Any:
    """End of sequence, and end of turn where it is another token."""
    ids = [vocabulary.get(f"{key}_token_id") for key in ("eos", "eot")]
    ids = [i for n, i in enumerate(ids) if i is not None and i not in ids[:n]]
    return ids if len(ids) > 1 else next(iter(ids), None)


def _rope_scaling(keys: Keys, tensors: dict[str, Tensor]) -> dict[str, Any] | None:
    """rope_scaling of config.json. Llama 3 keeps only the finished divisors of the frequencies, as a tensor."""
    kind, factor = keys.get("rope.scaling.type", "none"), _number(keys, "rope.scaling.factor", 1.0)
    if keys.get("rope.scale_linear") is not None:  # the older spelling
        kind, factor = "linear", _number(keys, "rope.scale_linear", 1.0)
    if ROPE_FREQS in tensors:
        if kind != "none":
            keys.unsupported("rope.scaling.type", f"none beside the tensor {ROPE_FREQS}", kind)
        return _llama3(keys, tensors[ROPE_FREQS])
    factors = {key: tensors[name] for key, name in ROPE_FACTORS.items() if name in tensors}
    if kind == "none" and factors:
        kind = "longrope"  # a converter may leave it to the tensors to say so
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return None
    scaling: dict[str, Any] = {"rope_type": kind} if factors else {"rope_type": kind, "factor": factor}
    for key, tensor in factors.items():
        scaling[key] = [float(str(x)) for x in np.asarray(tensor.numbers(), np.float32).reshape(-1)]
    keys.skip("rope.scaling.finetuned")  # says how the model was made
    for key, name in _SCALING.get(str(kind), {}).items():
        if keys.get(f"rope.scaling.{key}") is not None:
            scaling[name] = _value(keys, f"rope.scaling.{key}")
    if "mscale_all_dim" in scaling:  # llama.cpp takes mscale for 1
        scaling["mscale"] = 1.0
    return scaling


def _llama3(keys: Keys, stored: Tensor) -> dict[str, Any]:
    """The llama3 parameters whose divisors are those in rope_freqs.weight [d/2], or UnsupportedModel.

    Every Llama 3.x was released with low 1, high 4 and length 8192; the factor alone differs."""
    divisors = np.asarray(stored.numbers(), np.float64).reshape(-1)
    low, high, length, factor = 1.0, 4.0, 8192, float(divisors.max())
    theta = _number(keys, "rope.freq_base", 10000.0)
    with np.errstate(all="ignore"):  # what is not a number does not match either
        wavelength = 2 * np.pi * theta ** (np.arange(len(divisors)) / len(divisors))
        smooth = np.clip((length / wavelength - low) / (high - low), 0, 1)
        expected = 1 / ((1 - smooth) / factor + smooth)
    if not np.allclose(divisors, expected, rtol=1e-4):
        raise UnsupportedModel(f"{keys.name}: tensor {ROPE_FREQS}: expected the divisors of Llama 3's RoPE scaling")
    return {
        "rope_type": "llama3",
        "factor": float(np.float32(factor)),
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": length,
    }
