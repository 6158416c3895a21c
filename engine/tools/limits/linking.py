"""Kernels that call the CUDA device runtime: compiled by NVRTC as relocatable code, linked with libcudadevrt.

The library comes with the wheel nvidia-cuda-runtime of CUDA 13, and with every CUDA toolkit.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ...ops.driver import call
from .probe import CannotRun

LIBRARY = "libcudadevrt.a"


def folders() -> Iterator[Path]:
    """Folders that may hold the library: next to the headers in use, under CUDA_HOME, next to nvcc."""
    from cuda.pathfinder import find_nvidia_header_directory

    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    if headers := find_nvidia_header_directory("cudart"):
        roots.insert(0, str(Path(headers).parent))
    if nvcc := shutil.which("nvcc"):
        roots.append(str(Path(nvcc).resolve().parents[1]))
    for root in filter(None, [*roots, "/usr/local/cuda"]):
        yield from (Path(root) / name for name in ("lib", "lib64", "targets/x86_64-linux/lib"))


def device_runtime() -> Path:
    """Path of the library. CannotRun if it is not installed."""
    found = next((folder / LIBRARY for folder in folders() if (folder / LIBRARY).is_file()), None)
    if found is None:
        raise CannotRun(f"{LIBRARY}, the CUDA device runtime, is not installed: it comes with the CUDA toolkit, or "
                        "with the wheel nvidia-cuda-runtime of CUDA 13")  # fmt: skip
    return found


def relocatable(source: str, arch: int) -> bytes:
    """Compile to relocatable machine code (a cubin). CannotRun with the compiler's messages."""
    from cuda.bindings import nvrtc

    _, program = nvrtc.nvrtcCreateProgram(source.encode(), b"device_runtime.cu", 0, [], [])
    options = [f"-arch=sm_{arch}".encode(), b"-std=c++17", b"-rdc=true"]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if int(status):
        log = bytearray(nvrtc.nvrtcGetProgramLogSize(program)[1])
        nvrtc.nvrtcGetProgramLog(program, log)
        raise CannotRun(f"NVRTC does not compile it: {' '.join(log.decode(errors='replace').split())[:300]}")
    code = bytearray(nvrtc.nvrtcGetCUBINSize(program)[1])
    nvrtc.nvrtcGetCUBIN(program, code)
    return bytes(code)


def module(cupy: Any, driver: Any, source: str, arch: int) -> Any:
    """Compile the source and link it with the device runtime; a cupy.cuda.function.Module. CannotRun if it fails."""
    library, code = device_runtime(), relocatable(source, arch)

    def failed(function: str, status: Any) -> CannotRun:
        return CannotRun(f"cannot be linked with {library.name}: {function}: {status.name}")

    ask = partial(call, failed=failed)
    kind = driver.CUjitInputType
    state = ask(driver.cuLinkCreate, 0, [], [])
    ask(driver.cuLinkAddData, state, kind.CU_JIT_INPUT_CUBIN, code, len(code), b"device_runtime", 0, [], [])
    ask(driver.cuLinkAddFile, state, kind.CU_JIT_INPUT_LIBRARY, str(library).encode(), 0, [], [])
    address, size = ask(driver.cuLinkComplete, state)
    loaded = cupy.cuda.function.Module()
    loaded.load(ctypes.string_at(int(address), size))
    ask(driver.cuLinkDestroy, state)
    return loaded
