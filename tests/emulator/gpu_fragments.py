"""Compares the CPU versions of ptx.cuh with a GPU, bit for bit. Run by hand, in three steps:

    python tests/emulator/gpu_fragments.py record GPU.npz [COUNT]    on a GPU; needs NumPy and CuPy, no C++ compiler
    python tests/emulator/gpu_fragments.py compare GPU.npz           anywhere with a C++ compiler
    python tests/emulator/gpu_fragments.py keep GPU.npz              stores a part as recorded.npz, for the tests

COUNT: warps per case (default 256). `compare` prints the number of different results for each case and each candidate
rule of adding (products per group, bits kept).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from emulator.fragments import Case, cases  # noqa: E402

RULES = [(group, fraction) for group in (4, 8, 16) for fraction in (23, 24, 25, 26, 27)]


def on_gpu(runs: Iterable[Case]) -> Iterator[tuple[str, np.ndarray]]:
    """Run cases on the GPU; label and output of each."""
    import cupy

    options = ("-std=c++17", f"-I{HERE.parents[1] / 'kernels'}")
    module = cupy.RawModule(code=(HERE / "kernels" / "fragments.cu").read_text(), options=options)
    for case in runs:
        held = [cupy.asarray(a) for a in case.arrays]
        module.get_function(case.kernel)((len(case.arrays[0]),), (case.block,), tuple(held))
        yield case.label, cupy.asnumpy(held[case.output])


def record(target: str, count: int) -> None:
    """Run every case on the GPU and store the outputs."""
    import cupy

    results = {"count": np.array(count), **dict(on_gpu(cases(count)))}
    about = cupy.cuda.runtime.getDeviceProperties(0)
    results["device"] = np.array(f"{about['name'].decode()} sm_{about['major']}{about['minor']}")
    np.savez_compressed(target, **results)  # pyright: ignore[reportArgumentType]
    print(f"recorded {len(results) - 2} cases on {results['device']}")


def compare(source: str) -> None:
    """Run every case on the CPU under every candidate and count the results that differ."""
    from emulator import EmulatedDevice, build

    with np.load(source) as recorded:
        expected = {name: recorded[name] for name in recorded.files}
    print("recorded on", expected["device"])
    device = EmulatedDevice(directory=HERE / "kernels")
    count = int(expected["count"])
    for case in cases(count):
        if case.label not in expected:
            print(f"{case.label:18} was not recorded")
            continue
        for group, fraction in RULES if "run_mma" in case.kernel else [(0, 0)]:
            if group:
                build.runtime().emu_set_rules(group, fraction, group, fraction)
            held = [device.upload(a) for a in case.arrays]
            device.launch(device.kernel("fragments.cu", case.kernel), (count,), (case.block,), held)
            wanted, found = (x.view(np.uint32).reshape(-1) for x in (expected[case.label], held[case.output]))
            line = f"{case.label:18} group {group:2} fraction {fraction}: {np.mean(wanted != found):8.4%} differ"
            if case.label == "exp2":
                line += f", at most {np.abs(wanted.view(np.int32).astype(np.int64) - found.view(np.int32)).max()} ulp"
            print(line, flush=True)


def keep(source: str) -> None:
    """Store the first results of every case, and more for the corner cases, next to this file."""
    with np.load(source) as recorded:
        results = {name: recorded[name] for name in recorded.files}
    count = int(results["count"])
    for label in (case.label for case in cases(count)):
        if label in results:
            results[label] = results[label].reshape(count, -1)[: 64 if label.endswith(("small", "zero_large")) else 8]
    np.savez_compressed(HERE / "recorded.npz", **results)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    modes = {"compare": compare, "keep": keep}
    if len(sys.argv) < 3 or sys.argv[1] not in ("record", *modes):
        sys.exit(__doc__)
    if sys.argv[1] == "record":
        record(sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 256)
    else:
        modes[sys.argv[1]](sys.argv[2])
