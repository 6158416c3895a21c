"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini: fused qkv and gate_up tensors, longrope, partial RoPE."""

from __future__ import annotations

from ...config import ModelConfig
from ...keys import Keys
from .decoder import NEUTRAL, TABLE, decoder, sliding
from .family import Family, GgufForm
from .rope import LENGTH

_FUSED = {
    "qkv": ("qkv", "weight", "qkv", "", {"self_attn.qkv_proj.weight": "QKV D"}),
    "gate_up": ("gate_up", "weight", "gate_up", "", {"mlp.gate_up_proj.weight": "FF D"}),
}
_ABSENT = ("qkv_bias", "q_norm", "k_norm")


def _windows(keys: Keys, layers: int) -> list[int]:
    """A window on all layers or on none."""
    return sliding(keys, [keys.get("sliding_window") is not None] * layers)


def _phi3(keys: Keys) -> ModelConfig:
    keys.skip(LENGTH)  # used by longrope only
    return decoder(keys, windows=_windows, partial_rotary=True)


PHI3 = Family(
    name="phi3",
    architectures=("Phi3ForCausalLM",),
    config=_phi3,
    table=TABLE._replace(layer=tuple(_FUSED.get(row[0], row) for row in TABLE.layer if row[0] not in _ABSENT)),
    gguf=GgufForm("phi3", names={"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}),
    neutral=NEUTRAL,
)
