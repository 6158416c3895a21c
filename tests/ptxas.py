"""Compiles kernel instances with NVRTC, without a GPU, and reads registers, spills and threads per block.

Runs in processes of its own, because NVRTC compiles one program at a time. Results are kept in the emulator's cache
directory, keyed by sources, instances, architecture and compiler version.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from emulator.build import cache_directory
from machine_code import early_loads

from ostinato.ops.device import KERNELS, headers_hash, kernel_source

STREAMED = re.compile(r"ld\.global\.L1::no_allocate\.(?:v\d\.)?u32 ([^\[]*)\[")
REGISTERS = 65536  # per SM, on every architecture


@dataclass(frozen=True)
class Usage:
    """Resources of one instance."""

    registers: int  # per thread
    stack: int  # bytes of local memory per thread: arrays that are not in registers
    spills: int  # bytes of register spills, stores and loads
    threads: int  # maximum per block: __launch_bounds__
    shared: int  # bytes of static shared memory
    early: int  # loads of weights before the first grid_wait in the machine code
    unused: int  # words that load_stream loads and that no instruction of the PTX reads


class CompileError(Exception):
    """NVRTC rejected the source; the message is its log."""


def include_directory() -> Path | None:
    """Headers of the nvidia-cuda-runtime wheel, CUDA 12 or 13; None if it is not installed."""
    for name in ("nvidia.cuda_runtime", "nvidia.cu13"):
        if _found(name):
            spec = importlib.util.find_spec(name)
            for place in spec.submodule_search_locations or () if spec else ():
                if (Path(place) / "include" / "cuda_bf16.h").exists():
                    return Path(place) / "include"
    return None


def missing() -> str:
    """Why nothing can be compiled here; "" if it can."""
    if not _found("cuda.bindings.nvrtc"):
        return "cuda-bindings is not installed: install ostinato[test]"
    if not include_directory():
        return "the headers of CUDA are not installed: install ostinato[test]"
    from cuda.bindings import nvrtc

    try:
        nvrtc.nvrtcVersion()
    except RuntimeError as e:
        return f"NVRTC is not installed: install ostinato[test] ({e})"
    return ""


def usage(file: str, names: list[str], arch: int) -> dict[str, Usage]:
    """Compile instances of kernels/<file> for sm_<arch>; name -> Usage. CompileError with the log if that fails."""
    from cuda.bindings import nvrtc

    version = nvrtc.nvrtcVersion()[1:]
    key = repr((kernel_source(file), headers_hash(), names, arch, version))
    kept = cache_directory() / f"ptxas-{hashlib.sha256(key.encode()).hexdigest()[:20]}.json"
    if kept.exists():
        return {name: Usage(**u) for name, u in json.loads(kept.read_text()).items()}
    log, ptx, cubin, lowered = _compile(file, names, arch)
    found = {name: _parse(log, ptx, cubin, lowered[name]) for name in names}
    kept.write_text(json.dumps({name: asdict(u) for name, u in found.items()}))
    return found


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a parent package
        return False


def _compile(file: str, names: list[str], arch: int) -> tuple[str, str, bytes, dict[str, str]]:
    """(log, PTX, cubin, instance -> mangled name)."""
    from cuda.bindings import nvrtc

    options = [f"--gpu-architecture=sm_{arch}", "-std=c++17", f"-I{KERNELS}", f"-I{include_directory()}"]
    options = [o.encode() for o in [*options, "--ptxas-options=-v", "-ftz=true"]]
    _, program = nvrtc.nvrtcCreateProgram(kernel_source(file).encode(), file.encode(), 0, [], [])
    try:
        for name in names:
            nvrtc.nvrtcAddNameExpression(program, name.encode())
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        log = _text(program, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog)
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise CompileError(f"{file} for sm_{arch}: {log.strip()[:3000] or status.name}")
        lowered = {name: nvrtc.nvrtcGetLoweredName(program, name.encode())[1].decode() for name in names}
        cubin = _read(program, nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
        return log, _text(program, nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX), cubin, lowered
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _read(program, size, get) -> bytes:
    buffer = b" " * size(program)[1]
    get(program, buffer)
    return buffer


def _text(program, size, get) -> str:
    return _read(program, size, get).decode(errors="replace").rstrip("\0")


def _parse(log: str, ptx: str, cubin: bytes, symbol: str) -> Usage:
    """Parse ptxas's lines about one kernel. A missing line is an error, not a zero."""
    part = log.split(f"Compiling entry function '{symbol}'", 1)[1].split("Compiling entry function", 1)[0]
    function = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
    used = re.search(r"Used (\d+) registers", part)
    shared = re.search(r"(\d+) bytes smem", part)
    head = ptx.split(f".entry {symbol}(", 1)[1].split("{", 1)[0]
    bound = re.search(r"\.maxntid (\d+)(?:, *(\d+))?(?:, *(\d+))?", head)
    if not (function and used):
        raise CompileError(f"{symbol}: expected ptxas to report registers and spills, found {part[:500]!r}")
    threads = 1024
    if bound:
        threads = int(bound[1]) * int(bound[2] or 1) * int(bound[3] or 1)
    stack, stores, loads = map(int, function.groups())
    early = early_loads(cubin, symbol)
    body = ptx.split(f".entry {symbol}(", 1)[1].split(".entry", 1)[0]
    return Usage(int(used[1]), stack, stores + loads, threads, int(shared[1]) if shared else 0, early, unused(body))


def unused(body: str) -> int:
    """Registers in the PTX of a kernel that a load_stream writes and nothing else names."""
    written = [name for group in STREAMED.findall(body) for name in re.findall(r"%r\d+", group)]
    times = Counter(re.findall(r"%r\d+", body))
    return sum(times[name] == 1 for name in written)
