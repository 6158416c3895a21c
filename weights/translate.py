"""A GGUF file in Hugging Face's words: tensor names, config.json, and rows of q and k in half-rotation order.

Called by checkpoint. Knows the architectures whose conversion to GGUF it can undo; every other one is refused.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, UnsupportedModel
from .files import shown
from .gguf import Gguf
from .quant import PLAIN
from .tensor import Tensor

# architecture: (class name in Hugging Face, q and k rows were put in pairs for interleaved RoPE)
ARCHITECTURES = {
    "llama": ("LlamaForCausalLM", True),
    "qwen2": ("Qwen2ForCausalLM", False),
    "qwen3": ("Qwen3ForCausalLM", False),
}

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
_BLOCK = re.compile(r"blk\.(\d+)\.([a-z_]+)\.(weight|bias)", re.ASCII)


def translate(path: Path, gguf: Gguf) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config.json, tensors by Hugging Face name) of a GGUF file."""
    arch = gguf.metadata.get("general.architecture")
    if not isinstance(arch, str) or arch not in ARCHITECTURES:
        expected = ", ".join(ARCHITECTURES)
        raise UnsupportedModel(f"{path}: key general.architecture: expected {expected}, found {shown(arch)}")
    keys = _Keys(path, gguf.metadata, arch)
    config = _config(keys, gguf.tensors)
    tensors: dict[str, Tensor] = {}
    for name, tensor in gguf.tensors.items():
        if name == ROPE_FREQS:  # now in config["rope_scaling"]
            continue
        target = hf_name(name)
        if target in tensors:
            raise CheckpointError(f"{path}: tensors {tensors[target].name} and {name} are both {target}")
        tensors[target] = _ordered(tensor, config, ARCHITECTURES[arch][1])
    return config, tensors


def hf_name(name: str) -> str:
    """The Hugging Face name of a GGUF tensor; a name that is not known stays as it is, to be refused as a leftover."""
    stem, _, part = name.rpartition(".")
    if stem in TOP:
        return f"{TOP[stem]}.{part}"
    block = _BLOCK.fullmatch(name)
    if block and block[2] in LAYER:
        return f"model.layers.{block[1]}.{LAYER[block[2]]}.{block[3]}"
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
            f"{tensor.file}: tensor {tensor.name}: expected rows for {shown(heads)} heads of even size, found {rows}"
        )
    return replace(tensor, heads=heads)


class _Keys:
    """Metadata of one architecture: keys are read by their part after "<arch>."."""

    def __init__(self, path: Path, metadata: dict[str, Any], arch: str) -> None:
        self.path, self.all, self.arch = path, metadata, arch

    def __call__(self, key: str, default: Any = None) -> Any:
        return self.all.get(f"{self.arch}.{key}", default)

    def needed(self, key: str) -> Any:
        value = self(key)
        if value is None:
            raise CheckpointError(f"{self.path}: key {self.arch}.{key} is missing")
        return value

    def number(self, key: str, default: float) -> float:
        """A float32 as the shortest decimal that rounds to it: 1e-05, not 9.999999747378752e-06."""
        value = self(key, default)
        if type(value) not in (int, float):
            raise CheckpointError(f"{self.path}: key {self.arch}.{key}: expected a number, found {shown(value)}")
        with np.errstate(over="ignore"):  # a float64 key may hold more
            return float(str(np.float32(value)))


def _config(keys: _Keys, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """config.json of the model; values are as the file has them, their ranges are the engine's to check."""
    embed = tensors.get("token_embd.weight")
    if embed is None or len(embed.shape) != 2:
        found = "none" if embed is None else f"shape {list(embed.shape)}"
        raise CheckpointError(f"{keys.path}: tensor token_embd.weight: expected a matrix, found {found}")
    if keys("vocab_size", embed.shape[0]) != embed.shape[0]:
        raise CheckpointError(
            f"{keys.path}: key {keys.arch}.vocab_size: expected {embed.shape[0]}, the rows of token_embd.weight, "
            f"found {shown(keys('vocab_size'))}"
        )
    config = {
        "architectures": [ARCHITECTURES[keys.arch][0]],
        "model_type": keys.arch,
        "hidden_size": keys.needed("embedding_length"),
        "num_hidden_layers": keys.needed("block_count"),
        "num_attention_heads": keys.needed("attention.head_count"),
        "num_key_value_heads": keys("attention.head_count_kv", keys("attention.head_count")),
        "intermediate_size": keys.needed("feed_forward_length"),
        "vocab_size": embed.shape[0],
        "max_position_embeddings": keys.needed("context_length"),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon", 1e-6),
        "rope_theta": keys.number("rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(keys, tensors),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in tensors,
        "torch_dtype": _dtype(tensors),
        "bos_token_id": keys.all.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": _eos(keys.all),
    }
    head_dim = keys("attention.key_length")
    if head_dim is not None:
        config["head_dim"] = head_dim
    if keys("attention.sliding_window"):
        config["sliding_window"] = keys("attention.sliding_window")
    if keys.arch == "llama" and "blk.0.attn_q.bias" in tensors:
        config["attention_bias"] = True
    _refuse_partial(keys, config)
    return config


def _refuse_partial(keys: _Keys, config: dict[str, Any]) -> None:
    """Keys that would change the mathematics and have no field in config."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    if type(hidden) is not int or type(heads) is not int or heads < 1:
        return  # the engine's check of the config names these
    head_dim = config.get("head_dim", hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys(key, head_dim) != head_dim:
            raise UnsupportedModel(
                f"{keys.path}: key {keys.arch}.{key}: expected the head size {head_dim}, found {shown(keys(key))}"
            )
    if keys("expert_count", 0):
        raise UnsupportedModel(f"{keys.path}: key {keys.arch}.expert_count: mixtures of experts are not supported")


def _dtype(tensors: dict[str, Tensor]) -> str:
    """The torch_dtype nearest to what the first layer's matrices hold; quantised ones came from bfloat16, as a rule."""
    q = tensors.get("blk.0.attn_q.weight")
    return {"F32": "float32", "F16": "float16"}.get(q.kind if q else "", "bfloat16")


def _eos(metadata: dict[str, Any]) -> Any:
    """End of sequence, and end of turn where it is another token."""
    ids = [metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot")]
    ids = [i for n, i in enumerate(ids) if i is not None and i not in ids[:n]]
    return ids if len(ids) > 1 else next(iter(ids), None)


def _rope_scaling(keys: _Keys, tensors: dict[str, Tensor]) -> dict[str, Any] | None:
    """rope_scaling of config.json. Llama 3 keeps only the finished divisors of the frequencies, as a tensor."""
    kind, factor = keys("rope.scaling.type", "none"), keys.number("rope.scaling.factor", 1.0)
    if keys("rope.scale_linear") is not None:  # the older spelling
        kind, factor = "linear", keys.number("rope.scale_linear", 1.0)
    if ROPE_FREQS in tensors:
        if kind != "none":
            raise UnsupportedModel(
                f"{keys.path}: tensor {ROPE_FREQS}: expected no rope.scaling.type, found {shown(kind)}"
            )
        return _llama3(keys, tensors[ROPE_FREQS])
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return None
    scaling = {"rope_type": kind, "factor": factor}
    if keys("rope.scaling.original_context_length") is not None:
        scaling["original_max_position_embeddings"] = keys("rope.scaling.original_context_length")
    return scaling


def _llama3(keys: _Keys, stored: Tensor) -> dict[str, Any]:
    """The llama3 parameters whose divisors are those in rope_freqs.weight [d/2], or UnsupportedModel.

    Every Llama 3.x was released with low 1, high 4 and length 8192; the factor alone differs."""
    divisors = np.asarray(stored.numbers(), np.float64).reshape(-1)
    low, high, length, factor = 1.0, 4.0, 8192, float(divisors.max())
    theta = keys.number("rope.freq_base", 10000.0)
    with np.errstate(all="ignore"):  # what is not a number does not match either
        wavelength = 2 * np.pi * theta ** (np.arange(len(divisors)) / len(divisors))
        smooth = np.clip((length / wavelength - low) / (high - low), 0, 1)
        expected = 1 / ((1 - smooth) / factor + smooth)
    if not np.allclose(divisors, expected, rtol=1e-4):
        raise UnsupportedModel(f"{keys.path}: tensor {ROPE_FREQS}: expected the divisors of Llama 3's RoPE scaling")
    return {
        "rope_type": "llama3",
        "factor": float(np.float32(factor)),
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": length,
    }
