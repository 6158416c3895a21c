"""Translates a GGUF file to Hugging Face form: tensor names, config.json, and the row order of q and k.

Each family says how its conversion to GGUF is undone (engine/models/families). Other architectures are refused.
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, UnsupportedModel, found
from ..keys import Keys
from ..models.families import GGUF
from ..models.families.family import Family, GgufForm
from . import gguf_rope
from .gguf import Gguf, number, value
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
_BLOCK = re.compile(r"blk\.(\d+)\.([a-z_]+)\.(weight|bias)", re.ASCII)


def translate(path: Path, gguf: Gguf) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config.json, tensors by Hugging Face name) of a GGUF file."""
    arch = gguf.metadata.get("general.architecture")
    if not isinstance(arch, str) or arch not in GGUF:
        Keys(gguf.metadata, str(path)).unsupported("general.architecture", f"one of {', '.join(GGUF)}", arch)
    keys, form = Keys(gguf.metadata, str(path), prefix=f"{arch}."), GGUF[arch].gguf or GgufForm(arch)
    config = _config(keys, gguf.tensors, GGUF[arch], form)
    unread = keys.unread()
    if rope := [key for key in unread if key.startswith(f"{arch}.rope.")]:
        keys.unsupported(rope[0].removeprefix(f"{arch}."), "nothing", keys.values[rope[0]])
    if unread:
        _log.warning("%s: keys that the engine does not know, and ignores: %s", path, ", ".join(unread))
    tensors: dict[str, Tensor] = {}
    for name, tensor in gguf.tensors.items():
        if name in gguf_rope.TENSORS:  # now in config["rope_scaling"]
            continue
        target = hf_name(name, form.names)
        if target in tensors:
            raise CheckpointError(f"{path}: tensors {tensors[target].name} and {name} are both {target}")
        tensors[target] = _ordered(tensor, config, form.paired)
    return config, tensors


def hf_name(name: str, more: dict[str, str]) -> str:
    """The Hugging Face name of a GGUF tensor. An unknown name is returned unchanged, and refused later as a leftover.

    more: names that only this family has, see GgufForm.names."""
    stem, _, part = name.rpartition(".")
    if stem in TOP:
        return f"{TOP[stem]}.{part}"
    block = _BLOCK.fullmatch(name)
    own = more.get(block[2], LAYER.get(block[2])) if block else None
    if block and own:
        return f"model.layers.{block[1]}.{own}.{block[3]}"
    return name


def _ordered(tensor: Tensor, config: dict[str, Any], paired: bool) -> Tensor:
    """The tensor, marked for row permutation if its rows are stored for interleaved RoPE."""
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


def _config(keys: Keys, tensors: dict[str, Tensor], family: Family, form: GgufForm) -> dict[str, Any]:
    """config.json of the model. Ranges of values are checked by the engine."""
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
        "rms_norm_eps": number(keys, "attention.layer_norm_rms_epsilon", 1e-6),
        "rope_theta": number(keys, "rope.freq_base", 10000.0),
        "rope_scaling": gguf_rope.rope_scaling(keys, tensors),
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
            config[name] = value(keys, key)
    _head_parts(keys, config)
    return config


def _head_parts(keys: Keys, config: dict[str, Any]) -> None:
    """Partial rotary factor, and the refusal of keys that change the numbers but have no field in config.json."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    if type(hidden) is not int or type(heads) is not int or heads < 1:
        return  # the engine's check of the config refuses these
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
    """torch_dtype by the type of the first layer's matrices. Quantised models mostly come from bfloat16."""
    q = tensors.get("blk.0.attn_q.weight")
    return {"F32": "float32", "F16": "float16"}.get(q.kind if q else "", "bfloat16")


def _eos(vocabulary: Keys) -> Any:
    """The end-of-sequence id, and the end-of-turn id if it differs."""
    ids = [vocabulary.get(f"{key}_token_id") for key in ("eos", "eot")]
    ids = [i for n, i in enumerate(ids) if i is not None and i not in ids[:n]]
    return ids if len(ids) > 1 else next(iter(ids), None)
