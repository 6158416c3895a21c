"""Memory of a mapped file: given back tensor by tensor, read again when touched."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ostinato.models.families import model_config
from ostinato.ops.numpy import NumpyOps
from ostinato.run.load import weights
from ostinato.weights.checkpoint import Checkpoint, open_checkpoint
from ostinato.weights.files import let_go, map_file

STATUS = Path("/proc/self/status")
FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


def mapped() -> int:
    """Bytes of files that this process has in memory."""
    return next(1024 * int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith("RssFile"))


@pytest.mark.skipif(not STATUS.exists(), reason="no /proc")
def test_pages_that_were_let_go_take_no_memory_and_are_read_again(tmp_path: Path) -> None:
    path, size = tmp_path / "weights", 32 << 20
    path.write_bytes(bytes(range(256)) * (size // 256))
    data = map_file(path)
    view = data[1000 : size - 1000].view(np.uint16)[::1]
    expected = int(view.sum(dtype=np.uint64))
    before = mapped()
    let_go(view)
    assert before - mapped() > 0.9 * size
    assert int(view.sum(dtype=np.uint64)) == expected


@pytest.mark.parametrize("array", [np.zeros(9), np.zeros(0), np.frombuffer(b"abcd", np.uint8), np.zeros((4, 4))[:, 1]])
def test_arrays_of_other_memory_are_left_alone(array: np.ndarray) -> None:
    before = array.copy()
    let_go(array)
    np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_every_tensor_is_released_after_reading(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = SimpleNamespace(read=[], gone=[])
    with open_checkpoint(FIXTURES / name) as ck:
        read = ck.tensor
        monkeypatch.setattr(Checkpoint, "tensor", lambda self, n: (calls.read.append(n), read(n))[1])
        monkeypatch.setattr(Checkpoint, "let_go", lambda self, n: calls.gone.append(n))
        weights(NumpyOps(), ck, model_config(ck.config, ck.generation_config, ck.source))
    assert calls.gone == calls.read != []
