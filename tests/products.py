"""The cublas backend for tests: cuBLAS on a GPU, NumPy products on the emulator."""

from __future__ import annotations

from typing import Any

import numpy as np

from ostinato.ops.cublas import CublasOps
from ostinato.ops.device import Device
from ostinato.ops.gpu import CupyDevice


def cublas(device: Device, dtype: Any) -> CublasOps:
    """The operations of the cublas backend on this device."""
    return CublasOps(device, dtype, None if isinstance(device, CupyDevice) else _numpy_gemm)


def _numpy_gemm(x: np.ndarray, weight: np.ndarray, out: np.ndarray, add: bool, scale: float) -> None:
    y = scale * (x.astype(np.float64) @ weight.astype(np.float64).T)
    out[...] = (y + out.astype(float) if add else y).astype(out.dtype)
