"""One answer while it grows: its tokens, what of its text may be shown, and why it ends.

This file knows tokens and a function that decodes them; no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from veneer.engine.generation.sampling import Sampling
from veneer.engine.generation.text import StopText, TextPieces

__all__ = ["Finish", "Generated", "GrowingAnswer"]

Finish = Literal["end", "stop", "length", "context"]
"""Why an answer ends: the model's end token, a stop string, max_new_tokens, or the base reads no further."""


@dataclass(frozen=True)
class Generated:
    """One answer.

    Attributes:
        text: without special tokens; ends before a stop string.
        ids: the tokens that were drawn, without the end token; with those of a stop string.
        finish: why it ends.
        prompt_tokens: tokens of the prompt.
    """

    text: str
    ids: tuple[int, ...]
    finish: Finish
    prompt_tokens: int


class GrowingAnswer:
    """One text that is being continued.

    Args:
        row: its number.
        prompt: the tokens that it goes on from.
        sampling: the settings.
        stops: end tokens, and stop strings.
        decode: from token ids to text.
        room: tokens that the model can still read.
        random: what it draws from.
        pieces: whether its text is shown as it comes.
    """

    def __init__(
        self,
        row: int,
        prompt: Sequence[int],
        sampling: Sampling,
        stops: tuple[frozenset[int], tuple[str, ...]],
        *,
        decode: Callable[[Sequence[int]], str],
        room: int,
        random: np.random.Generator,
        pieces: bool,
    ) -> None:
        self.row, self.prompt = row, prompt
        self.finish: Finish | None = None
        self.random = random
        self._ends, strings = stops
        self._decode = decode
        self._text = TextPieces(decode)
        self._stop = StopText(strings)
        self._told: list[str] = []
        self._reads = pieces or bool(strings)
        self._shows = pieces
        self._most = min(sampling.max_new_tokens, room)
        self._full: Finish = "length" if sampling.max_new_tokens <= room else "context"

    def push(self, token: int) -> str:
        """Take the next token; what of the text may be shown now."""
        if token in self._ends:
            self.finish = "end"
            return self._close("")
        if not self._reads:
            self._text.ids.append(token)
            shown = ""
        else:
            shown = self._stop.push(self._text.push(token))
        if self._stop.stopped is None and len(self._text.ids) >= self._most:
            self.finish = self._full
            return self._close(shown)
        if self._stop.stopped is not None:
            self.finish = "stop"
        self._told.append(shown)
        return shown if self._shows else ""

    def _close(self, shown: str) -> str:
        """The text that was held back, and may be shown at the end (it may still complete a stop string)."""
        if self._reads:
            shown += self._stop.push(self._text.end())
            if self._stop.stopped is not None:
                self.finish = "stop"
            shown += self._stop.end()
        self._told.append(shown)
        return shown if self._shows else ""

    def answer(self) -> Generated:
        """The whole answer."""
        assert self.finish is not None
        ids = tuple(self._text.ids)
        text = "".join(self._told) if self._reads else self._decode(ids)
        return Generated(text, ids, self.finish, len(self.prompt))
