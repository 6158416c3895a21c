"""The file in the user's cache that keeps the launch shapes `ostinato tune` chose for one GPU and these kernels.

Shapes that were chosen
for other kernels may be slow or not launch, so a digest of the sources is part of the file's name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import DeviceError
from ..weights.fetch import cache_dir
from .device import Device, headers_hash, kernel_source
from .formats import FORMS
from .shapes import DecodeShape, Key, Launch, Shapes, shared_limit

_FIELDS = {"n": int, "k": int, "form": str, "warps": int, "single": dict, "narrow": dict, "wide": dict}
_FORMS = {str(form): form for form in FORMS}
_SIZES, _SWITCHES = ("tiles", "depth", "blocks", "grid", "split"), ("staged", "ring", "once")
_LAUNCH = {**dict.fromkeys(_SIZES, int), **dict.fromkeys(_SWITCHES, bool)}


def kernels_hash() -> str:
    """Digest of the decode products' source and of all headers."""
    return hashlib.sha256(f"{headers_hash()} {kernel_source('linear_decode.cu')}".encode()).hexdigest()[:16]


def path(device: Device) -> Path:
    """Where the shapes of a device are kept, whether or not there are any."""
    return cache_dir() / "tune" / f"{re.sub('[^A-Za-z0-9.]+', '-', device.name)}-{kernels_hash()}.json"


def shapes(device: Device) -> Shapes:
    """The shapes to use on a device; reads its file, if there is one."""
    file = path(device)
    tuned = load(file, device)
    return Shapes(tuned, f"tuned ({file})" if tuned else "built in", device.arch)


def load(file: Path, device: Device) -> dict[Key, DecodeShape]:
    """The shapes in a file, none if it is not there. DeviceError names the file and the key that is wrong."""
    try:
        text = file.read_text(encoding="utf-8").removeprefix("\ufeff")  # some editors put a byte order mark there
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as e:
        raise _bad(file, f"cannot be read: {e}") from e
    try:
        content = json.loads(text)
    except ValueError as e:
        raise _bad(file, f"expected JSON, found {e}") from e
    _fields(file, "the file", content, {"device": str, "kernels": str, "shapes": list})
    for key, expected in (("device", device.name), ("kernels", kernels_hash())):
        if content[key] != expected:
            raise _bad(file, f"{key}: expected {expected!r}, found {content[key]!r}")
    return dict(_entry(file, f"shapes[{i}]", v, device) for i, v in enumerate(content["shapes"]))


def save(file: Path, device: Device, chosen: Mapping[Key, DecodeShape]) -> None:
    """Write a file that `load` reads, by one rename. DeviceError if that is not possible."""
    in_order = sorted(chosen.items(), key=lambda item: (*item[0][:2], str(item[0][2])))
    entries = [{"n": n, "k": k, "form": str(form), **asdict(shape)} for (n, k, form), shape in in_order]
    content = {"device": device.name, "kernels": kernels_hash(), "shapes": entries}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tune-", dir=file.parent) as work:
            new = Path(work) / file.name
            new.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            os.replace(new, file)
    except OSError as e:
        raise DeviceError(f"{file}: cannot be written: {e}") from e


def _entry(file: Path, key: str, value: Any, device: Device) -> tuple[Key, DecodeShape]:
    _fields(file, key, value, _FIELDS)
    launches = []
    for name in ("single", "narrow", "wide"):
        _fields(file, f"{key}.{name}", value[name], _LAUNCH)
        launches.append(Launch(**value[name]))
        if launches[-1].split > 1 and device.arch < 90:
            raise _bad(file, f"{key}.{name}.split: expected 1 below sm_90, found {launches[-1].split}")
    shape = DecodeShape(value["warps"], *launches)
    if value["form"] not in _FORMS:
        raise _bad(file, f"{key}.form: expected one of {', '.join(_FORMS)}, found {value['form']!r}")
    matrix = value["n"], value["k"], _FORMS[value["form"]]
    if reason := shape.refusal(matrix, shared_limit(device.arch)):
        raise _bad(file, f"{key}.{reason}")
    return matrix, shape


def _fields(file: Path, key: str, value: Any, fields: Mapping[str, type]) -> None:
    """DeviceError unless value is an object of exactly these fields and types."""
    found = sorted(value) if isinstance(value, dict) else type(value).__name__
    if found != sorted(fields):
        raise _bad(file, f"{key}: expected an object of {', '.join(fields)}, found {found}")
    for name, kind in fields.items():
        if type(value[name]) is not kind:  # True is an int as well
            raise _bad(file, f"{key}.{name}: expected {kind.__name__}, found {value[name]!r}")


def _bad(file: Path, problem: str) -> DeviceError:
    return DeviceError(f"{file}: {problem}; remove the file, and `ostinato tune` makes a new one")
