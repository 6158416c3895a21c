"""Compiles kernels for the CPU with the system's C++ compiler, and keeps the results in a cache directory.

The key of a result covers all its inputs: the kernel, its headers, the emulator's headers, flags, compiler and CPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from ostinato.ops.device import KERNELS

from .rewrite import kernel_parameters, rewrite

HERE = Path(__file__).resolve().parent
FLAGS = ["-std=c++17", "-fPIC", "-g1", "-DOSTINATO_EMULATOR", "-ffp-contract=off", "-fno-strict-aliasing"]
KERNEL_FLAGS = [
    *FLAGS, "-O1", "-Wl,-Bsymbolic", "-fno-gnu-unique", "-fno-threadsafe-statics", "-w",
    "-fsanitize=alignment,bounds,shift-exponent,integer-divide-by-zero", "-fno-sanitize-recover=all",
]  # fmt: skip
RUNTIME_FLAGS = [*FLAGS, "-O3", "-march=native", "-Wall", "-Wextra", "-Werror"]
KEPT = 30 * 86400
_locks: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)  # one per library
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.M)


class CompileError(Exception):
    """The C++ compiler rejected a kernel; the message is the compiler's."""


@cache
def compiler() -> str | None:
    """The C++ compiler: $CXX, g++ or clang++; None if there is none."""
    names = [name for name in (os.environ.get("CXX"), "g++", "clang++") if name]
    return next((found for name in names if (found := shutil.which(name))), None)


@cache
def cache_directory() -> Path:
    """The directory of compiled kernels, ostinato/emulator in the user's cache directory; files stay KEPT seconds."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(base) / "ostinato" / "emulator"
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process may delete it first
            if time.time() - old.stat().st_mtime > KEPT:
                old.unlink()
    return directory


@cache
def runtime() -> ctypes.CDLL:
    """The compiled scheduler, which kernels are linked to when they are loaded."""
    sources = sorted((HERE / "runtime").glob("*.cpp"))
    target = cache_directory() / f"runtime-{_digest(_machine(), *(p.read_bytes() for p in sources))}.so"
    if not target.exists():
        _compile([*RUNTIME_FLAGS, f"-I{HERE}", *map(str, sources)], target)
    return ctypes.CDLL(str(target), mode=ctypes.RTLD_GLOBAL)


def shared_object(file: str, names: tuple[str, ...], directory: Path = KERNELS) -> Path:
    """The shared library with the instances `names` of <directory>/<file>; compiles it if necessary."""
    sources, entries = _sources(file, directory), _entries(names)
    key = _digest(_machine(), *KERNEL_FLAGS, *sources.values(), entries)
    target = cache_directory() / f"{Path(file).stem}-{key}.so"
    with _locks[target]:  # a background thread may be compiling it
        if target.exists():
            return target
        with tempfile.TemporaryDirectory() as work:
            headers = _write(work, file, sources, entries)
            _compile([*KERNEL_FLAGS, *headers, "-x", "c++", f"{work}/{file}"], target)
    return target


def machine_code(file: str, names: tuple[str, ...], directory: Path) -> str:
    """The instances `names` of <directory>/<file> as optimised assembly, without checks and line numbers. Two versions
    of a kernel with the same meaning usually give the same text."""
    sources, entries = _sources(file, directory), _entries(names)
    flags = [flag for flag in KERNEL_FLAGS if not flag.startswith(("-fsanitize", "-fno-sanitize", "-g", "-O"))]
    with tempfile.TemporaryDirectory() as work:
        headers = _write(work, file, sources, entries)
        command = [str(compiler()), *flags, "-O2", "-g0", "-S", *headers, "-x", "c++", file, "-o", "-"]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True)
    if done.returncode:
        raise CompileError(done.stderr[:6000])
    return done.stdout


def compile_all(instances: Iterable[tuple[str, tuple[str, ...]]], stop: Callable[[], bool]) -> None:
    """Compile instances (file, names) one by one until `stop`. Errors are ignored; whoever uses one will see them."""
    for file, names in instances:
        if stop():
            return
        with contextlib.suppress(CompileError, OSError, ValueError):
            shared_object(file, names)


def source_line(library: Path, offset: int) -> str:
    """FILE:LINE of the code at `offset` of a compiled kernel; "" without binutils."""
    if not (tool := shutil.which("addr2line")):
        return ""
    shown = subprocess.run([tool, "-i", "-e", str(library), hex(offset)], capture_output=True, text=True).stdout
    return next(iter(re.findall(r"kernels/\S+", shown)), "")


@cache
def parameter_names(file: str, directory: Path = KERNELS) -> dict[str, list[str]]:
    """Kernel name -> its parameter names, for every kernel in a file and its headers."""
    found = {}
    for name in _sources(file, directory):
        found |= kernel_parameters(_path(name, directory).read_text(encoding="utf-8"))
    return found


def _path(name: str, directory: Path) -> Path:
    return directory / name if (directory / name).exists() else KERNELS / name


def _sources(file: str, directory: Path) -> dict[str, str]:
    """The rewritten kernel and the headers it includes, by name."""
    found: dict[str, str] = {}
    waiting = [file]
    while waiting:
        name = waiting.pop()
        path = _path(name, directory)
        if name in found or not path.exists():
            continue
        found[name] = rewrite(path.read_text(encoding="utf-8"), name)
        waiting += _INCLUDE.findall(found[name])
    return found


def _entries(names: tuple[str, ...]) -> str:
    """C++ source of a library's entries: its instances, by name."""
    entries = ", ".join(f"EMU_ENTRY({name})" for name in names)
    return f'\nextern "C" const emu::Entry* const emu_entries[] = {{{entries}}};\n'


def _write(work: str, file: str, sources: dict[str, str], entries: str) -> list[str]:
    """Write a kernel, its headers and its entries to a directory; return the compiler's arguments."""
    for name, text in sources.items():
        Path(work, name).write_text(text + (entries if name == file else ""), encoding="utf-8")
    return ["-include", "emu/cuda.h", f"-I{work}", f"-I{HERE}"]


@cache
def _machine() -> str:
    """Digest of the emulator's headers, the compiler and the CPU."""
    sources = [p.read_bytes() for p in sorted(HERE.rglob("*.h"))]
    version = subprocess.run([str(compiler()), "--version"], capture_output=True).stdout
    info = Path("/proc/cpuinfo")
    cpu = re.search(r"^flags.*$", info.read_text(), re.M) if info.exists() else None
    return _digest(*sources, version, cpu.group() if cpu else "", *RUNTIME_FLAGS)


def _digest(*parts: str | bytes) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(part.encode() if isinstance(part, str) else part)
        total.update(b"\0")
    return total.hexdigest()[:20]


def _compile(arguments: list[str], target: Path) -> None:
    part = target.with_suffix(f".{os.getpid()}.{threading.get_ident()}.part")
    done = subprocess.run([str(compiler()), "-shared", *arguments, "-o", str(part)], capture_output=True, text=True)
    if done.returncode:
        raise CompileError(done.stderr[:6000])
    os.replace(part, target)
