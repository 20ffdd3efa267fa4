"""Tokens as they come, as text that may be shown: whole characters, and nothing of a stop string.

This file knows a function from token ids to text; no model, no template.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["StopText", "TextPieces"]

_HALF = "\ufffd"  # what a tokenizer writes for bytes that are not a whole character


class TextPieces:
    """Text of token ids, piece by piece; the pieces together are the text of all of them.

    Only the tokens since the last but one piece are decoded again, so that a long answer costs no more per token. They
    are decoded together with the piece before, because some tokenizers write the first token of a text differently.

    >>> pieces = TextPieces(lambda ids: bytes(ids).decode(errors="replace"))
    >>> [pieces.push(byte) for byte in "né".encode()]
    ['n', '', 'é']
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self.ids: list[int] = []
        self._decode = decode
        self._begin = self._told = 0  # the window starts at _begin; its tokens before _told were told

    def push(self, token: int) -> str:
        """The text that this token completes; "" inside a character."""
        self.ids.append(token)
        before, now = self._window()
        if len(now) <= len(before) or now.endswith(_HALF):
            return ""
        self._begin, self._told = self._told, len(self.ids)
        return now[len(before) :]

    def end(self) -> str:
        """What is left when nothing follows: U+FFFD for a character that stayed half."""
        before, now = self._window()
        self._begin = self._told = len(self.ids)
        return now[len(before) :]

    def _window(self) -> tuple[str, str]:
        return self._decode(self.ids[self._begin : self._told]), self._decode(self.ids[self._begin :])


class StopText:
    """Lets text through up to the first stop string, of which nothing is ever shown.

    The first is the one that is complete first; so the result does not depend on how the text is cut into pieces.

    >>> stop = StopText(["\\n\\n"])
    >>> [stop.push(piece) for piece in ("one", "\\n", "two\\n", "\\nthree")], stop.stopped
    (['one', '', '\\ntwo', ''], True)
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stopped: str | None = None
        self._stops = tuple(stops)
        self._held = ""

    def push(self, piece: str) -> str:
        """What may be shown now; sets `stopped` when a stop string is complete."""
        if self.stopped is not None:
            return ""
        text = self._held + piece
        ends = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            _, at, self.stopped = min(ends)
            self._held = ""
            return text[:at]
        kept = self._beginning_at_the_end(text)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def end(self) -> str:
        """What was held back, when nothing follows."""
        held, self._held = self._held, ""
        return held

    def _beginning_at_the_end(self, text: str) -> int:
        """Length of the longest end of `text` with which a stop string begins."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                return size
        return 0
