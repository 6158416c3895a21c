"""Backend "cublas": GEMMs by cuBLAS, everything else by this project's kernels.

`ostinato compare` compares the cuda backend with it. cublasGemmEx is called through ctypes, because CuPy refuses cuBLAS
calls during capture; cuBLAS itself can be captured once its stream and workspace are set.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import DeviceError
from ..weights.quantised import Quantised
from . import dequantise
from .device_ops import DeviceOps
from .driver import call
from .products import address, c_type, check_linear, expect

Gemm = Callable[[Any, Any, Any, bool, float], None]  # (x [R, K], weight [N, K], out [R, N], add to out, scale)

_WORKSPACE = 32 << 20  # bytes; cuBLAS's own default on Hopper
_DATA_TYPE = {"float32": 0, "float16": 2, "bfloat16": 14}  # cudaDataType
_COMPUTE_32F, _DEFAULT_ALGO = 68, -1  # float32 sums and products, no TF32
_OP_N, _OP_T = 0, 1


class CublasOps(DeviceOps):
    """Weights stay plain [N, K] in T."""

    name, exact = "cublas", False  # cuBLAS's order of sums depends on the number of rows

    def __init__(self, device: Any, dtype: Any, gemm: Gemm | None = None) -> None:
        """gemm: replaces cuBLAS, for tests without the library."""
        super().__init__(device, dtype)
        self._gemm = gemm or Cublas(device)

    def weight(self, parts: Sequence[Any], layout: str = "rows", head_dim: int = 0) -> Any:
        """Stack the parts as one matrix in T; the layout has no effect. parts: host arrays, device arrays in T, or
        quantised matrices."""
        n, k = sum(len(p) for p in parts), parts[0].shape[1]
        out, first = self.device.empty((n, k), self.dtype), 0
        for i, part in enumerate(parts):
            if len(part.shape) != 2 or part.shape[1] != k:
                raise DeviceError(f"weight: expected part {i} to be [rows, {k}], found {list(part.shape)}")
            rows = out[first : first + len(part)]
            if isinstance(part, Quantised):
                for at, piece in dequantise.pieces(part, self.dtype):
                    self.device.write(rows[at : at + len(piece)], piece)
            elif isinstance(part, np.ndarray):
                self.device.write(rows, np.ascontiguousarray(part, self.dtype))
            else:
                with self.device.stream:
                    rows[...] = part
            first += len(part)
        return out

    def embed(self, ids, table, out, scale=1.0):
        self._look_up(ids, table, out, scale, None, None)

    def embed_at(self, ids, table, at, places, out):
        self._look_up(ids, table, out, 1.0, at, places)

    def _look_up(self, ids, table, out, scale, at, places):
        expect("embed", "out", out, np.float32, (len(out), table.shape[1]))
        self._embed(f"embed_plain<{c_type(self.dtype)}>", table, ids, out, scale, at, places)

    def linear(self, x, weight, out, kind, bias=None, residual=None, scale=1.0):
        n, k = weight.shape
        expect("linear", "x", x, self.dtype, (len(x), k))
        check_linear("linear", (len(x), n), self.dtype, out, bias, residual)
        in_place = residual is not None and address(residual) == address(out)
        self._gemm(x, weight, out, in_place, scale)
        left = None if in_place else residual
        if bias is None and left is None:
            return
        kernel = self.device.kernel("finish.cu", f"finish<{c_type(out.dtype)}>")
        self.device.launch(kernel, (-(-n // 256), len(x)), (256,), [out, bias, left, np.int32(n)])


class Cublas:
    """out = scale x @ weight.T, or out += scale x @ weight.T, on the device's stream."""

    def __init__(self, device: Any) -> None:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        self._launches = device.launches
        try:
            self._lib = ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)
        except (RuntimeError, OSError) as e:
            raise DeviceError("backend cublas needs the library libcublas, which was not found; install "
                              f"ostinato[cuda12] or ostinato[cuda13] ({e})") from e  # fmt: skip
        self._handle = ctypes.c_void_p()
        self._call("cublasCreate_v2", ctypes.byref(self._handle))
        self._call("cublasSetStream_v2", self._handle, ctypes.c_void_p(device.stream.ptr))
        # Lives as long as this object: captured graphs use it at every replay.
        self._workspace = device.empty((_WORKSPACE,), np.dtype(np.uint8))
        size = ctypes.c_size_t(_WORKSPACE)
        self._call("cublasSetWorkspace_v2", self._handle, ctypes.c_void_p(self._workspace.data.ptr), size)

    def __call__(self, x: Any, weight: Any, out: Any, add: bool, scale: float = 1.0) -> None:
        self._launches["cublasGemmEx"] += 1
        # cuBLAS is column-major: it computes out^T [N, R] from weight^T and x^T.
        (rows, k), n = x.shape, len(weight)
        alpha, beta = ctypes.c_float(scale), ctypes.c_float(1 if add else 0)
        pointer, size = (lambda a: ctypes.c_void_p(a.data.ptr)), ctypes.c_int
        kind, out_kind = size(_DATA_TYPE[x.dtype.name]), size(_DATA_TYPE[out.dtype.name])
        sizes = (size(n), size(rows), size(k))
        left = (ctypes.byref(alpha), pointer(weight), kind, sizes[2], pointer(x), kind, sizes[2])
        right = (ctypes.byref(beta), pointer(out), out_kind, sizes[0], size(_COMPUTE_32F), size(_DEFAULT_ALGO))
        self._call("cublasGemmEx", self._handle, size(_OP_T), size(_OP_N), *sizes, *left, *right)

    def _call(self, function: str, *args: Any) -> None:
        call(getattr(self._lib, function), *args)
