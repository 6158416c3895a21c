"""The file in the user's cache that keeps the launch shapes `ostinato tune` chose for one GPU and these kernels.

Shapes that were chosen for other kernels may be slow or not launch, so a digest of the sources is part of the file's
name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from ..errors import CheckpointError, DeviceError
from ..keys import Keys
from ..weights.fetch import cache_dir, work_folder
from ..weights.files import read_json
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
    if not file.exists():
        return {}
    try:
        keys = Keys(read_json(file), str(file))
        entries = keys.fields({"device": str, "kernels": str, "shapes": list})["shapes"]
        for key, expected in (("device", device.name), ("kernels", kernels_hash())):
            if keys.get(key) != expected:
                keys.wrong(key, repr(expected), keys.get(key))
        return dict(_entry(Keys(v, f"{file}: shapes[{i}]"), device) for i, v in enumerate(entries))
    except CheckpointError as e:
        raise DeviceError(f"{e}; remove the file, and `ostinato tune` makes a new one") from e


def save(file: Path, device: Device, chosen: Mapping[Key, DecodeShape]) -> None:
    """Write a file that `load` reads, by one rename. DeviceError if that is not possible."""
    in_order = sorted(chosen.items(), key=lambda item: (*item[0][:2], str(item[0][2])))
    entries = [{"n": n, "k": k, "form": str(form), **asdict(shape)} for (n, k, form), shape in in_order]
    content = {"device": device.name, "kernels": kernels_hash(), "shapes": entries}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with work_folder(file.parent, "tune") as work:
            new = work / file.name
            new.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            os.replace(new, file)
    except OSError as e:
        raise DeviceError(f"{file}: cannot be written: {e}") from e


def _entry(keys: Keys, device: Device) -> tuple[Key, DecodeShape]:
    keys.fields(_FIELDS)
    launches = []
    for name in ("single", "narrow", "wide"):
        launch = keys.inner(name)
        launches.append(Launch(**launch.fields(_LAUNCH)))
        if launches[-1].split > 1 and device.arch < 90:
            launch.wrong("split", "1 below sm_90", launches[-1].split)
    shape = DecodeShape(keys.get("warps"), *launches)
    if keys.get("form") not in _FORMS:
        keys.wrong("form", f"one of {', '.join(_FORMS)}", keys.get("form"))
    matrix = keys.get("n"), keys.get("k"), _FORMS[keys.get("form")]
    if reason := shape.refusal(matrix, shared_limit(device.arch)):
        raise CheckpointError(f"{keys.name}: {reason}")
    return matrix, shape
