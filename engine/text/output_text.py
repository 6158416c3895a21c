"""The text of a completion as its tokens arrive, cut at the first stop text."""

from __future__ import annotations

from .detokenizer import Decoder
from .stop_search import StopSearch


class Text:
    """The text of a growing completion, cut at the first stop text.

    Stop texts are searched for in what the tokens spell; control tokens are then left out of the text."""

    def __init__(self, decoder: Decoder, stops: StopSearch | None = None) -> None:
        """stops: shared by the completions of a request; None = no stop texts."""
        self.stopped = False  # a stop text was found
        self._decoder, self._stops = decoder, stops
        self._state = ""  # what the tokens spell that may begin a stop text: held back
        self._held: list[tuple[str, bool]] = []  # the same in pieces, each with whether it is part of the text
        self._final: list[str] = []  # the text that is certain, in pieces
        self._taken = 0  # pieces of it that `take` has given out

    @property
    def full(self) -> str:
        """The text that is certain; all of it after `flush`."""
        return "".join(self._final)

    def take(self) -> str:
        """The text that has become certain since the last call."""
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
        """Add a stop token: no part of the text, but a stop text may end with what it spells."""
        self._add(self._decoder.flush(), True, search)
        self._add(self._decoder.spelled(token), False, search)

    def flush(self) -> None:
        """No more tokens: what was held back is certain."""
        self._add(self._decoder.flush(), True, True)
        self._release(len(self._state))
        self._state = ""

    def _add(self, new: str, shown: bool, search: bool) -> None:
        """Add what a token spells; shown: whether it is part of the text."""
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
        """Let the first `size` characters of what is held back go."""
        while size:
            piece, shown = self._held[0]
            if shown:
                self._final.append(piece[:size])
            if size < len(piece):
                self._held[0] = (piece[size:], shown)
            else:
                del self._held[0]
            size -= min(size, len(piece))
