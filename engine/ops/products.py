"""What the two backends with matrix products on the GPU share: names of types, and checks before a launch."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import DeviceError

_TYPES = {"bfloat16": "bf16", "float16": "half", "float32": "float"}


def c_type(dtype: np.dtype) -> str:
    """How the kernels spell a storage type."""
    return _TYPES[dtype.name]


def address(array: Any) -> int:
    """Where an array of NumPy or CuPy begins."""
    return array.data.ptr if hasattr(array.data, "ptr") else array.ctypes.data


def expect(op: str, what: str, array: Any, dtype: Any, shape: tuple[int, ...]) -> None:
    """DeviceError, naming operation and array, unless the array is contiguous with this dtype and shape."""
    if array.dtype != dtype or tuple(array.shape) != tuple(shape) or not array.flags.c_contiguous:
        found = f"{array.dtype} {list(array.shape)}" + ("" if array.flags.c_contiguous else ", not contiguous")
        raise DeviceError(f"{op}: expected {what} to be {np.dtype(dtype)} {list(shape)}, found {found}")


def check_linear(op: str, shape: tuple[int, int], dtype: np.dtype, out: Any, bias: Any, residual: Any) -> None:
    """DeviceError unless out [R, N] is T or float32, and bias [N] and residual [R, N] are None or float32."""
    expect(op, "out", out, np.float32 if out.dtype == np.float32 else dtype, shape)
    if bias is not None:
        expect(op, "bias", bias, np.float32, shape[1:])
    if residual is not None:
        expect(op, "residual", residual, np.float32, shape)
