"""advance: the next step's inputs, and the token ring buffer in host memory."""

from __future__ import annotations

import numpy as np
import pytest
from rows import EPS, F32, I32, Memory, RowOps, close, scratch, step

from ostinato.errors import DeviceError
from ostinato.ops.base import Mail
from ostinato.sizes import MAIL


def advance(device) -> np.ndarray:
    """Two steps of four rows; row 2 is a padding row, row 3 has no token. Returns the host's ring buffer."""
    s = step(device, [2, 0, 3, 1], [5, 9, 0, 0], [6, 10, 1, 1], np.zeros((4, 1)))
    s.ids = device.upload(np.array([1, 2, 3, 4], I32))
    host, box = device.pinned((4, MAIL), I32)
    host[...] = 5
    mail = Mail(box, device.upload(np.array([0, MAIL - 1, 0, MAIL - 2], I32)))
    for tokens in ([70, 80, 90, -1], [71, 81, 91, -1]):
        RowOps(device, F32).advance(s, device.upload(np.array(tokens, I32)), mail)
    device.wait(device.record_event())
    found = host.copy()
    np.testing.assert_array_equal(device.read(s.ids), [71, 81, 3, 0])
    np.testing.assert_array_equal(device.read(s.positions), [7, 11, 0, 2])
    np.testing.assert_array_equal(device.read(s.visible), [8, 12, 1, 3])
    np.testing.assert_array_equal(device.read(mail.place), [2, 1, 0, 0])
    return found


SENT = [[70, 71, 5, 5], [81, 5, 5, 80], [5, 5, 5, 5], [5, 5, -1, -1]]


def test_two_steps(device):
    np.testing.assert_array_equal(advance(device), SENT)


def test_order_of_threads_does_not_matter(shuffled):
    np.testing.assert_array_equal(advance(shuffled), SENT)


def test_the_ring_buffer_wraps_around(device):
    """The ring buffer holds the last MAIL steps, for the maximum number of rows."""
    rows, steps = 256, 3 * MAIL + 1
    s = step(device, range(rows), [0] * rows, [1] * rows, np.zeros((rows + 1, 1)))
    host, box = device.pinned((rows, MAIL), I32)
    mail = Mail(box, device.upload(np.zeros(rows, I32)))
    for i in range(steps):
        RowOps(device, F32).advance(s, device.upload(np.arange(rows, dtype=I32) + 1000 * i), mail)
    device.wait(device.record_event())
    for i in range(steps - MAIL, steps):
        np.testing.assert_array_equal(host[:, i % MAIL], np.arange(rows) + 1000 * i)
    np.testing.assert_array_equal(device.read(mail.place), [steps % MAIL] * rows)


def test_pinned_memory_is_one_memory(device):
    """The host sees writes to the device view of pinned memory, also to rows of it."""
    host, box = device.pinned((3, MAIL), I32)
    assert (host.shape, host.dtype, box.shape, box.dtype) == ((3, MAIL), I32, (3, MAIL), I32)
    host[...] = 5
    s = step(device, [0], [0], [1], np.zeros((2, 1)))
    mail = Mail(box[1:2], device.upload(np.array([2], I32)))
    RowOps(device, F32).advance(s, device.upload(np.array([7], I32)), mail)
    device.wait(device.record_event())
    assert host.tolist() == [[5, 5, 5, 5], [5, 5, 7, 5], [5, 5, 5, 5]]


def test_next_kernel_may_read_positions_early(device):
    """advance's writes are in memory when it ends: attention reads positions and visible before its grid_wait."""
    rng = np.random.default_rng(1)
    memory = Memory.of(device, rng, [70], 1, 32, F32)
    s, mail = (
        step(device, [0], [68], [69], memory.table),
        Mail(device.pinned((1, MAIL), I32)[1], device.empty((1,), I32)),
    )
    device.write(mail.place, np.zeros(1, I32))
    query, out = rng.standard_normal((1, 3, 32)).astype(F32), device.empty((1, 32), F32)
    qkv, work = device.upload(query.reshape(1, -1)), scratch(device, 1, 1, 1, 32, F32, memory.table.shape[1])
    ops, token = RowOps(device, F32), device.upload(np.array([7], I32))
    ops.advance(s, token, mail)
    ops.attend(qkv, s, memory.cache, 1, 0, out, work)
    close(device.read(out), memory.attend(query[0, :1], 0, 70, 0), EPS["float32"] * 2)


@pytest.mark.parametrize(
    ("rows", "tokens", "box", "place", "message"),
    [
        pytest.param(1, 2, (2, MAIL), 2, r"expected seqs to be int32 \[2\], found int32 \[1\]", id="tokens"),
        pytest.param(1, 1, (1, 3), 1, r"expected mail.box to be int32 \[1, 4\], found int32 \[1, 3\]", id="places"),
        pytest.param(2, 2, (1, MAIL), 2, r"expected mail.box to be int32 \[2, 4\], found int32 \[1, 4\]", id="box"),
        pytest.param(1, 1, (1, MAIL), 2, r"expected mail.place to be int32 \[1\], found int32 \[2\]", id="place"),
        pytest.param(257, 257, (257, MAIL), 257, "expected at most 256 rows, found 257", id="rows"),
    ],
)
def test_errors_name_the_argument(device, rows, tokens, box, place, message):
    s = step(device, [0] * rows, [0] * rows, [1] * rows, np.zeros((2, 1)))
    mail = Mail(device.pinned(box, I32)[1], device.empty((place,), I32))
    with pytest.raises(DeviceError, match=f"^advance: {message}"):
        RowOps(device, F32).advance(s, device.empty((tokens,), I32), mail)


def test_a_strided_ring_buffer_is_refused(device):
    """The kernel has no stride parameter."""
    mail = Mail(device.pinned((2, 2 * MAIL), I32)[1][:, :MAIL], device.empty((2,), I32))
    s = step(device, [0, 0], [0, 0], [1, 1], np.zeros((2, 1)))
    with pytest.raises(DeviceError, match=r"^advance: expected mail.box to be .*, not contiguous"):
        RowOps(device, F32).advance(s, device.empty((2,), I32), mail)
