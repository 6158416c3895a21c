"""How fast quantised safetensors are decoded on one core, by kind: what loading them costs where they are dequantised.

    python tests/quantised_rates.py [KIND ...]

A matrix of 4096 x 4096 random codes, the best of three. Seconds are those of the processor for the 8e9 numbers of an 8B
model; divided by the cores they are what an idle machine takes.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from ostinato.weights.checkpoint import open_checkpoint

N = K = 4096
GROUP, ALL, SEED = 128, 8e9, np.random.default_rng(0)
BF16, E4M3 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP}
FP4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}


def words(*shape: int) -> np.ndarray:
    return SEED.integers(-(2**31), 2**31, shape, dtype=np.int64).astype(np.int32)


def scales(*shape: int, dtype: Any = np.float16) -> np.ndarray:
    return (SEED.random(shape, np.float32) + 0.5).astype(dtype)


def compressed(form: str, weights: dict[str, Any]) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}


def nf4() -> dict[str, np.ndarray]:
    state = json.dumps({"blocksize": 64, "shape": [N, K]}).encode()
    return {
        "weight": SEED.integers(0, 256, (N * K // 2, 1), np.uint8),
        "weight.absmax": scales(N * K // 64, dtype=np.float32),
        "weight.quant_map": np.linspace(-1, 1, 16, dtype="f4"),
        "weight.quant_state.bitsandbytes__nf4": np.frombuffer(state, np.uint8),
    }


def kinds() -> dict[str, tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """quantization_config and entries of each kind."""
    groups, of = K // GROUP, (np.arange(K, dtype=np.int32) // GROUP)
    one_zero, zeros = np.full((groups, N // 8), 0x77777777, np.int32), words(groups, N // 8)
    gptq = {"qweight": words(K // 8, N), "scales": scales(groups, N)}
    ct = {
        "weight_packed": words(N, K // 8),
        "weight_scale": scales(N, groups, dtype=BF16),
        "weight_shape": np.array([N, K]),
    }
    fp4 = {"weight_packed": SEED.integers(0, 256, (N, K // 2), np.uint8), "weight_global_scale": np.ones(1, "f4"),
           "weight_scale": scales(N, K // 16, dtype=E4M3)}  # fmt: skip
    fp8 = {"weight": scales(N, K, dtype=E4M3), "weight_scale_inv": scales(N // 128, K // 128, dtype="f4")}
    return {
        "gptq symmetric": (GPTQ, {**gptq, "qzeros": one_zero}),
        "gptq": (GPTQ, {**gptq, "qzeros": zeros}),
        "gptq act-order": (GPTQ, {**gptq, "qzeros": zeros, "g_idx": SEED.permutation(of)}),
        "awq": ({"quant_method": "awq", "group_size": GROUP}, {**gptq, "qzeros": zeros, "qweight": words(K, N // 8)}),
        "ct int4": (compressed("pack-quantized", INT4), ct),
        "ct nvfp4": (compressed("nvfp4-pack-quantized", FP4), fp4),
        "fp8": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, fp8),
        "nf4": ({"quant_method": "bitsandbytes"}, nf4()),
    }


def seconds(config: dict[str, Any], entries: dict[str, np.ndarray]) -> tuple[str, float]:
    """What the reader calls a matrix, and seconds to decode it."""
    out, best = np.empty((N, K), np.float32), float("inf")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps({"quantization_config": config}))
        save_file({f"x.{s}": np.ascontiguousarray(a) for s, a in entries.items()}, Path(folder) / "model.safetensors")
        with open_checkpoint(folder) as ck:
            matrix = ck.quantised("x.weight")
            assert matrix is not None
            for _ in range(3):
                began = time.process_time()
                matrix.numbers(out=out)
                best = min(best, time.process_time() - began)
    return matrix.kind, best


if __name__ == "__main__":
    for name, case in kinds().items():
        if not sys.argv[1:] or name in sys.argv[1:]:
            kind, took = seconds(*case)
            print(f"{name:15} {kind:28} {N * K / took / 1e6:5.0f} M numbers/s {took * ALL / (N * K):6.1f} s")
