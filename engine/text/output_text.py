"""The text of a completion while its tokens arrive."""

from __future__ import annotations

from .detokenizer import Decoder
from .stop_search import StopSearch


class Text:
    """The text of a growing completion, cut at the first stop text.

    Stop texts are searched in the text of all tokens, control tokens included. Control tokens are omitted from the
    output."""

    def __init__(self, decoder: Decoder, stops: StopSearch | None = None) -> None:
        """stops: shared by all completions of a request; None = no stop texts."""
        self.stopped = False  # a stop text was found
        self._decoder, self._stops = decoder, stops
        self._state = ""  # the end of the searched text that may begin a stop text; held back
        self._held: list[tuple[str, bool]] = []  # the same in pieces: (text, whether it is output)
        self._final: list[str] = []  # final text, in pieces
        self._taken = 0  # pieces of _final that take() has returned

    @property
    def full(self) -> str:
        """The final text so far; the whole text after `flush`."""
        return "".join(self._final)

    def take(self) -> str:
        """The text that became final since the last call."""
        pieces, self._taken = self._final[self._taken :], len(self._final)
        return "".join(pieces)

    def push(self, token: int, search: bool = True) -> None:
        """Add a token. search: whether a stop text that it completes ends the completion."""
        decoder = self._decoder
        if token in decoder.left_out:
            self._add(decoder.spelled(token), False, search)
        else:
            self._add(decoder.push(token), True, search)

    def end(self, token: int, search: bool = True) -> None:
        """Add a stop token. Its text is not output, but a stop text may end in it."""
        self._add(self._decoder.flush(), True, search)
        self._add(self._decoder.spelled(token), False, search)

    def flush(self) -> None:
        """There are no more tokens: text that was held back becomes final."""
        self._add(self._decoder.flush(), True, True)
        self._release(len(self._state))
        self._state = ""

    def _add(self, new: str, shown: bool, search: bool) -> None:
        """Add the text of a token. shown: whether it is output."""
        if not new or self.stopped:
            return
        if self._stops is None or self._stops.idle(self._state, new):
            if shown:
                self._final.append(new)
            return
        length = len(self._state) + len(new)
        self._state, end, match = self._stops.advance(self._state, new, search)
        self._held.append((new, shown))
        if match:
            self._release(length - len(new) + end - match)
            self._held, self._state, self.stopped = [], "", True
        else:
            self._release(length - len(self._state))

    def _release(self, size: int) -> None:
        """Make the first `size` characters of the held-back text final."""
        while size:
            piece, shown = self._held[0]
            if shown:
                self._final.append(piece[:size])
            if size < len(piece):
                self._held[0] = (piece[size:], shown)
            else:
                del self._held[0]
            size -= min(size, len(piece))
