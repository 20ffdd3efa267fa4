"""A conversation with a writer: its history, for the adapter and for the base beside it.

A history that no longer fits loses its oldest question with its answer. An answer that is stopped halfway stays as far
as it came. This file knows turns and a writer; it knows no terminal.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal

from veneer.data.conversations import Turn
from veneer.engine.generation import Generated, Memory, Sampling
from veneer.errors import DataError
from veneer.tasks.writing import Writer

__all__ = ["Chat", "ChatPiece", "Side"]

Side = Literal["adapter", "base"]


@dataclass(frozen=True)
class ChatPiece:
    """Text that has come.

    Attributes:
        side: who says it.
        text: what; "" when an answer begins.
        dropped: at the beginning of an answer: turns that no longer fitted and were left out from now on.
        answer: with the last piece: the whole answer.
    """

    side: Side
    text: str
    dropped: int = 0
    answer: Generated | None = None


class _History:
    """What one side has seen."""

    def __init__(self, turns: tuple[Turn, ...] = ()) -> None:
        self.turns = list(turns)
        self.memory = Memory()


class Chat:
    """Questions and answers.

    Attributes:
        sides: who answers, in this order; set with `let_answer`.
        remembers: False where the template has no turns: then every question stands alone.
        system: what stands before everything, "" for nothing.
    """

    def __init__(self, writer: Writer, sampling: Sampling | None = None, *, system: str = "") -> None:
        self.writer = writer
        self.sampling = sampling or Sampling()
        self.system = system
        self.sides: tuple[Side, ...] = ("adapter",) if writer.adapted is not None else ("base",)
        self._histories: dict[Side, _History] = {side: _History() for side in self.sides}
        self.remembers = not writer.plain and writer.template.origin != "none"
        self._asked = 0

    def reset(self) -> None:
        """Forget all that was said; the system prompt stays."""
        self._histories = {side: _History() for side in self.sides}

    def let_answer(self, *sides: Side) -> None:
        """Let these sides answer from now on; one that was silent has heard what the first one said."""
        heard = tuple(self._histories[self.sides[0]].turns)
        self._histories = {
            side: self._histories[side] if side in self.sides else _History(heard) for side in sides
        }
        self.sides = sides

    def turns(self, side: Side) -> tuple[Turn, ...]:
        """What one side has seen, without the system prompt."""
        return tuple(self._histories[side].turns)

    def ask(self, text: str) -> Generator[ChatPiece, None, None]:
        """The answer of each side, one after the other, as it comes.

        Close the iterator to stop an answer; what has come of it stays in the history.

        Raises:
            DataError: the question is empty or too long, or the template can't show the system prompt. Nothing of it
                stays.
        """
        row, self._asked = self._asked, self._asked + 1
        question = Turn("user", text)
        for side in self.sides:  # before the first one answers: they all can
            self._fitting(side, question)
        for side in self.sides:
            history = self._histories[side]
            kept, turns = self._fitting(side, question)
            dropped, history.turns = len(history.turns) - len(kept), kept
            yield ChatPiece(side, "", dropped)
            said: list[str] = []
            whole = False
            pieces = self.writer.stream(
                turns, self.sampling, adapter=side == "adapter", memory=history.memory, row=row
            )
            try:
                for piece in pieces:
                    said.append(piece.text)
                    whole = piece.answer is not None
                    if piece.answer is not None:
                        yield ChatPiece(side, piece.text, answer=piece.answer)
                    elif piece.text:
                        yield ChatPiece(side, piece.text)
            finally:  # also when the answer is stopped
                if self.remembers and (whole or "".join(said).strip()):
                    history.turns += [question, Turn("assistant", "".join(said))]

    def _fitting(self, side: Side, question: Turn) -> tuple[list[Turn], list[Turn]]:
        """The history from where it fits together with the question, and all turns that are to be read."""
        limit = self.writer.base.max_length
        room = max(1, limit - min(self.sampling.max_new_tokens, limit // 4))
        system = [Turn("system", self.system)] if self.system else []
        kept = list(self._histories[side].turns)
        while True:
            turns = [*system, *kept, question]
            tokens = len(self.writer.ids(turns))
            if tokens <= room or not kept:
                break
            kept = kept[2:]
        if tokens >= limit:
            raise DataError(
                f"the question has {tokens:,} tokens with its template; the base reads {limit:,} at most, answer and "
                "all. Shorten it."
            )
        return kept, turns
