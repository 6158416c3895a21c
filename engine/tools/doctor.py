"""`ostinato doctor`: reports the machine and its backends, and for each fault the command that fixes it.

The driver is read through ctypes, so this works before anything else is installed. Every backend runs a small product.
CuPy is never imported here.
"""

from __future__ import annotations

import ctypes
import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from ..report import print_json

OLDEST = 80  # lowest compute capability of the kernels, times ten


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    found: str
    ok: bool | None = True  # None: absent, but not a fault
    fix: str = ""  # a command, or an instruction


@dataclass(frozen=True)
class Gpu:
    """A GPU as the driver describes it."""

    name: str
    arch: int  # compute capability times ten
    memory: int  # bytes


@dataclass(frozen=True)
class Driver:
    """What libcuda reports; version 0 without libcuda."""

    version: int = 0  # newest CUDA version it supports, 13000 for 13.0
    gpus: tuple[Gpu, ...] = ()
    problem: str = ""


def driver() -> Driver:
    """Read version and GPUs from libcuda."""
    try:
        lib = ctypes.CDLL("libcuda.so.1")
    except OSError as e:
        return Driver(problem=f"libcuda.so.1 cannot be loaded ({e})")
    number = ctypes.c_int()
    lib.cuDriverGetVersion(ctypes.byref(number))
    version = number.value
    status = lib.cuInit(0) or lib.cuDeviceGetCount(ctypes.byref(number))
    if status:
        text = ctypes.c_char_p()
        lib.cuGetErrorString(status, ctypes.byref(text))
        return Driver(version, problem=f"CUDA error {status}: {(text.value or b'unknown').decode()}")
    return Driver(version, tuple(_gpu(lib, i) for i in range(number.value)))


def _gpu(lib: ctypes.CDLL, index: int) -> Gpu:
    name, major, minor, memory = ctypes.create_string_buffer(256), ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    lib.cuDeviceGetName(name, 256, index)
    lib.cuDeviceGetAttribute(ctypes.byref(major), 75, index)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    lib.cuDeviceGetAttribute(ctypes.byref(minor), 76, index)
    lib.cuDeviceTotalMem_v2(ctypes.byref(memory), index)
    return Gpu(name.value.decode(), major.value * 10 + minor.value, memory.value)


def extra(d: Driver) -> str:
    """The extra of setup.cfg for this driver: "cuda12", "cuda13", or "" without a usable GPU."""
    if not d.gpus or d.version < 12000:
        return ""
    return "cuda13" if d.version >= 13000 else "cuda12"


def install_command(extras: str) -> str:
    """The command that adds `extras` to this installation, which may be a checkout or a wheel."""
    target = f"ostinato[{extras}]"
    try:
        origin = json.loads(metadata.distribution("ostinato").read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        origin = {}
    if str(origin.get("url", "")).startswith("file://"):
        editable = "--editable " if origin.get("dir_info", {}).get("editable") else ""
        target = f'{editable}"{origin["url"].removeprefix("file://")}[{extras}]"'
    else:
        target = f'"{target}"'
    return f"{sys.executable} -m pip install {target}"


def nvidia_cards(root: Path = Path("/sys/bus/pci/devices")) -> int:
    """Number of NVIDIA display devices on the PCI bus, with or without a driver."""
    count = 0
    for device in root.glob("*"):
        try:
            vendor, kind = (device / "vendor").read_text().strip(), (device / "class").read_text().strip()
        except OSError:
            continue
        count += vendor == "0x10de" and kind.startswith("0x03")
    return count


def examine_driver(d: Driver, cards: int) -> Iterator[Finding]:
    """Check the driver and its GPUs."""
    if d.gpus:
        old = d.version < 12000
        found = f"runs CUDA up to {d.version // 1000}.{d.version % 1000 // 10}"
        yield Finding("driver", found, not old, "update the NVIDIA driver to 525 or newer" if old else "")
    elif cards:
        fix = "install the NVIDIA driver (Debian: apt-get install nvidia-driver) and reboot"
        if d.version:
            fix = "nvidia-smi   # says why the driver cannot be used; in a container, start it with --gpus all"
        yield Finding("driver", f"{cards} NVIDIA card(s), but {d.problem or 'the driver sees no GPU'}", False, fix)
    else:
        yield Finding("driver", f"no NVIDIA GPU in this machine ({d.problem or 'the driver sees none'})", None)
    for i, gpu in enumerate(d.gpus):
        found = f"{gpu.name}, compute capability {gpu.arch / 10:.1f}, {gpu.memory / 2**30:.0f} GiB"
        new_enough = gpu.arch >= OLDEST
        fix = "" if new_enough else f"the kernels need compute capability {OLDEST / 10:.1f}: use --backend numpy"
        yield Finding(f"gpu {i}", found, new_enough, fix)


def examine_wheels(d: Driver) -> Iterator[Finding]:
    """Check CuPy, cuda-bindings, the CUDA runtime, NVRTC and the CUDA headers."""
    command = install_command(extra(d) or "cuda12")
    bad = False if d.gpus else None  # without a GPU a missing wheel is not a fault
    fix = command if d.gpus else ""
    names = {p.name.lower(): p.version for p in metadata.distributions()}
    found = [f"{n} {v}" for n, v in sorted(names.items()) if n.startswith("cupy")]
    if len(found) > 1:
        remove = " ".join(n.split()[0] for n in found)
        yield Finding("cupy", " and ".join(found), False, f"{sys.executable} -m pip uninstall -y {remove} && {command}")
    else:
        yield Finding("cupy", found[0] if found else "not installed", bool(found) or bad, "" if found else fix)
    for name, package in (("bindings", "cuda-bindings"), ("runtime", "nvidia-cuda-runtime")):
        there = [f"{n} {v}" for n, v in sorted(names.items()) if n in (package, f"{package}-cu12")]
        yield Finding(name, ", ".join(there) or "not installed", bool(there) or bad, "" if there else fix)
    for name, look in (("nvrtc", _nvrtc), ("headers", _headers)):
        try:
            yield Finding(name, look())
        except Exception as e:  # whatever the libraries raise is reported
            yield Finding(name, _line(e), bad, fix)


def _nvrtc() -> str:
    from cuda.bindings import nvrtc

    status, major, minor = nvrtc.nvrtcVersion()
    return f"{major}.{minor}" if not int(status) else f"error {status}"


def _headers() -> str:
    from cuda.pathfinder import find_nvidia_header_directory

    folder = find_nvidia_header_directory("cudart")
    if not folder or not (Path(folder) / "cuda_bf16.h").is_file():
        raise FileNotFoundError(f"cuda_bf16.h not found (looked in {folder})")
    return folder


def examine_backends(d: Driver) -> Iterator[Finding]:
    """Check every backend: a small product, compared with NumPy."""
    for name in ("numpy", "cuda", "cublas"):
        try:
            yield Finding(name, try_backend(name))
        except Exception as e:  # whatever a backend raises is reported
            broken = bool(d.gpus) or name == "numpy"
            fix = install_command(extra(d) or "cuda12") if d.gpus else ""
            yield Finding(name, f"does not work: {_line(e)}", False if broken else None, fix)


def try_backend(name: str) -> str:
    """Compile, load and run one product on backend `name`; return a description. Raises any error of the backend."""
    from ..ops.base import PassKind
    from ..run.load import choose

    ops, _ = choose(name, "auto", "bfloat16")
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((64, 64), np.float32), rng.standard_normal((16, 64), np.float32).astype(ops.dtype)
    out = ops.device.empty((16, 64), np.dtype(np.float32))
    ops.linear(ops.device.upload(x), ops.weight([weight]), out, PassKind.DECODE)
    error = np.abs(ops.device.read(out) - x.astype(np.float32) @ weight.astype(ops.dtype).astype(np.float32).T).max()
    if not error < 1e-3:
        raise ArithmeticError(f"product 16 x 64 x 64: expected an error below 1e-3, found {error:.3g}")
    shapes = getattr(ops, "shapes", None)
    return (
        f"works ({ops.device.name}, {np.dtype(ops.dtype).name}{f', launch shapes {shapes.source}' if shapes else ''})"
    )


def _line(e: BaseException) -> str:
    return " ".join(f"{type(e).__name__}: {e}".split())[:300]


def examine() -> list[Finding]:
    """Run all checks."""
    d = driver()
    first = Finding("python", f"{platform.python_version()}, {platform.system()} {platform.machine()}, {_version()}")
    return [first, *examine_driver(d, nvidia_cards()), *examine_wheels(d), *examine_backends(d)]


def _version() -> str:
    try:
        return f"ostinato {metadata.version('ostinato')}"
    except metadata.PackageNotFoundError:
        return "ostinato not installed as a package"


def main(as_json: bool = False, only_extra: bool = False, graph_limits: bool = False) -> int:
    """Print the report; return 0 without faults, 1 otherwise. DeviceError if graph_limits and no GPU."""
    if only_extra:
        print(extra(driver()))
        return 0
    if graph_limits:
        from .limits import report

        return report.main(as_json)
    findings = examine()
    if as_json:
        print_json([asdict(f) for f in findings], indent=1)
    else:
        for f in findings:
            print(f"{'ok' if f.ok else '--' if f.ok is None else 'FAIL':5s} {f.name:9s} {f.found}")
            if f.fix:
                print(f"      fix: {f.fix}")
    return int(any(f.ok is False for f in findings))
