"""Attention of the NumPy backend over the paged KV cache: decode row by row; prefill and encoders in tiles of PAGE
rows, with online softmax over blocks of keys.

The shapes of a tile's products depend on its position in its sequence only, not on the rest of the pass or on chunking.
Blocks that are hidden from all rows of a tile are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..sizes import PAGE
from .base import Cache, Step
from .threads import Team

KEYS = 512  # tokens per block of keys, so that scores stay in a core's cache
_SCORES = 1 << 19  # approximate bytes of scores per task: limits the number of heads in a task


def decode(qkv: np.ndarray, s: Step, cache: Cache, heads: int, window: int, scale: np.float32, out: np.ndarray) -> None:
    """Ops.attend for a decode step."""
    groups, d = cache.k.shape[1], cache.k.shape[3]
    queries = qkv.reshape(len(qkv), -1, d)[:, :heads].reshape(len(qkv), groups, heads // groups, d)
    results = out.reshape(queries.shape)
    for row, seq in enumerate(s.seqs.tolist()):
        if seq == len(s.table) - 1:
            out[row] = 0
            continue
        with np.errstate(over="ignore", invalid="ignore"):  # products with unwritten tokens, masked afterwards
            _row(queries[row], int(s.visible[row]), s.table[seq], cache, window, scale, results[row])


def _row(
    q: np.ndarray, visible: int, table: np.ndarray, cache: Cache, window: int, scale: np.float32, out: np.ndarray
) -> None:
    """Attention of one row.  q, out [G, H / G, d]; table: its pages"""
    groups, share, _ = q.shape
    low = max(0, visible - window) // PAGE if window else 0
    pages = table[low : -(-visible // PAGE)]
    n = len(pages)
    k, v = _pages(cache.k, pages), _pages(cache.v, pages)
    q = np.multiply(q, scale)
    score = np.empty((groups, share, n * PAGE), np.float32)
    by_page = score.reshape(groups, share, n, PAGE).transpose(2, 0, 1, 3)
    np.matmul(q, k.swapaxes(2, 3), out=by_page)
    if window:
        score[..., : max(0, visible - window - low * PAGE)] = -np.inf
    tail = visible - (low + n - 1) * PAGE  # tokens in the last page; the rest of it is unwritten
    score[..., (n - 1) * PAGE + tail :] = -np.inf
    score -= np.maximum.reduce(score, -1, keepdims=True)
    np.exp(score, out=score)
    total = np.add.reduce(score, -1, keepdims=True)
    y = np.matmul(by_page[-1, :, :, :tail], v[-1, :, :tail])
    if n > 1:
        y += np.add.reduce(np.matmul(by_page[:-1], v[:-1]), 0)
    np.divide(y, total, out=out)


def _pages(array: np.ndarray, pages: np.ndarray) -> np.ndarray:
    """array[pages], without a copy if the pages are adjacent."""
    first, count = int(pages[0]), len(pages)
    if int(pages[-1]) - first == count - 1 and (count < 3 or (np.diff(pages) == 1).all()):
        return array[first : first + count]
    return array[pages]


def prefill(
    team: Team, qkv: np.ndarray, s: Step, cache: Cache, heads: int, window: int, scale: np.float32, out: np.ndarray
) -> None:
    """Ops.attend for a prefill or encoder pass."""
    groups, d = cache.k.shape[1], cache.k.shape[3]
    queries = qkv.reshape(len(qkv), -1, d)[:, :heads].reshape(len(qkv), groups, heads // groups, d)
    results = out.reshape(queries.shape)
    tasks: list[_Texts | _Tile] = []
    texts: dict[int, list[tuple[int, int]]] = {}  # length -> (first row, page) of each text
    for first, last, seq in _runs(s.seqs):
        visible = s.visible[first:last]
        if seq == len(s.table) - 1:
            out[first:last] = 0
        elif not window and last - first <= PAGE and (visible == last - first).all():
            texts.setdefault(last - first, []).append((first, int(s.table[seq, 0])))
        else:
            tasks += _tiles(first, visible, s.table[seq], cache, heads // groups, window, scale)
    for length, found in texts.items():
        step = max(1, _SCORES // (4 * heads * length * length))
        tasks += [_Texts(cache, length, scale, *np.array(found[i : i + step]).T) for i in range(0, len(found), step)]
    if tasks:
        team.run(len(tasks), lambda i: tasks[i].attend(queries), lambda i, y: tasks[i].store(results, y))


class _Texts:
    """Texts of equal length, at most one page, with full (bidirectional) attention."""

    def __init__(self, cache: Cache, length: int, scale: np.float32, first: np.ndarray, page: np.ndarray) -> None:
        self.cache, self.scale, self.page, self.rows = cache, scale, page, first[:, None] + np.arange(length)

    def attend(self, queries: np.ndarray) -> np.ndarray:
        """Output [texts, r, G, H / G, d]."""
        n, r = self.rows.shape
        _, groups, share, d = queries.shape
        q = np.multiply(queries[self.rows].swapaxes(1, 2), self.scale)
        k, v = (array[self.page, :, :r] for array in (self.cache.k, self.cache.v))
        score = np.matmul(q.reshape(n, groups, r * share, d), k.swapaxes(2, 3))
        score -= np.maximum.reduce(score, -1, keepdims=True)
        np.exp(score, out=score)
        total = np.add.reduce(score, -1, keepdims=True)
        y = np.matmul(score, v)
        y /= total
        return y.reshape(n, groups, r, share, d).swapaxes(1, 2)

    def store(self, results: np.ndarray, y: np.ndarray) -> None:
        """Into results [R, G, H / G, d]."""
        results[self.rows] = y


@dataclass
class _Tile:
    """One task: rows first .. last - 1 of the pass, key/value heads `groups`."""

    first: int
    last: int
    groups: slice
    visible: np.ndarray  # [r]
    window: int
    scale: np.float32
    k: np.ndarray  # [G, tokens from `begin` on, d]
    v: np.ndarray
    begin: int

    def attend(self, queries: np.ndarray) -> np.ndarray:
        """Output [r, G, H / G, d]."""
        return _tile(queries[self.first : self.last, self.groups], self.visible, self, self.window)

    def store(self, results: np.ndarray, y: np.ndarray) -> None:
        """Into results [R, G, H / G, d]."""
        results[self.first : self.last, self.groups] = y


def _tiles(
    first: int, visible: np.ndarray, table: np.ndarray, cache: Cache, share: int, window: int, scale: np.float32
) -> Iterator[_Tile]:
    """The tasks of one sequence's rows, from row `first` on.  visible [r]"""
    groups, begin = cache.k.shape[1], _begin(visible, window)
    pages = table[begin // PAGE : -(-int(visible.max()) // PAGE)]
    k, v = (_in_a_row(array, pages) for array in (cache.k, cache.v))
    for a in range(0, len(visible), PAGE):
        seen = visible[a : a + PAGE]
        step = max(1, _SCORES // (4 * len(seen) * share * min(KEYS, int(seen.max()))))
        for g in range(0, groups, step):
            some = slice(g, min(g + step, groups))
            yield _Tile(first + a, first + a + len(seen), some, seen, window, scale, k, v, begin)


def _runs(seqs: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(first row, row after the last, sequence) of every run of rows with the same sequence."""
    ends = [*(np.flatnonzero(np.diff(seqs)) + 1).tolist(), len(seqs)]
    for first, last in zip([0, *ends], ends, strict=False):
        yield first, last, int(seqs[first])


def _begin(visible: np.ndarray, window: int) -> int:
    """First token of the first page that any of the rows attends to."""
    return max(0, int(visible.min()) - window) // PAGE * PAGE if window else 0


def _in_a_row(array: np.ndarray, pages: np.ndarray) -> np.ndarray:
    """The tokens of pages, concatenated per head: [G, n PAGE, d]."""
    _, groups, _, d = array.shape
    return array[pages].transpose(1, 0, 2, 3).reshape(groups, -1, d)


def _tile(q: np.ndarray, visible: np.ndarray, t: _Tile, window: int) -> np.ndarray:
    """Attention of rows of one sequence with online softmax; q and result [r, G, H / G, d]."""
    r, groups, share, d = q.shape
    q = np.multiply(q.transpose(1, 0, 2, 3), t.scale).reshape(groups, r * share, d)
    begin, end, least = _begin(visible, window), int(visible.max()), int(visible.min())
    y = np.zeros((groups, r * share, d), np.float32)
    total, top = np.zeros((groups, r * share, 1), np.float32), np.full((groups, r * share, 1), -np.inf, np.float32)
    for a in range(begin, end, KEYS):
        z = min(a + KEYS, end)
        k, v = t.k[t.groups, a - t.begin : z - t.begin], t.v[t.groups, a - t.begin : z - t.begin]
        score = np.matmul(q, k.swapaxes(1, 2))
        if z > least or (window and a < end - window):
            np.copyto(score.reshape(groups, r, share, z - a), -np.inf, where=_hidden(visible, window, a, z))
        peak = np.maximum(top, np.maximum.reduce(score, -1, keepdims=True))
        score -= peak
        np.exp(score, out=score)
        top -= peak
        shrink = np.exp(top, out=top)
        total *= shrink
        total += np.add.reduce(score, -1, keepdims=True)
        y *= shrink
        y += np.matmul(score, v)
        top = peak
    y /= total
    return y.reshape(groups, r, share, d).transpose(1, 0, 2, 3)


def _hidden(visible: np.ndarray, window: int, first: int, last: int) -> np.ndarray:
    """Mask [1, r, 1, tokens] bool of the tokens first .. last - 1 that a row must not attend to."""
    token = np.arange(first, last)
    seen = visible.reshape(1, -1, 1, 1)
    hidden = token >= seen
    return hidden | (token < seen - window) if window else hidden
