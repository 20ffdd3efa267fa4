"""How far a model that left Veneer is from the adapter that it was made of, on the golden inputs.

This file knows adapters in their place and numbers; it knows no file and no format.

Shapes: N texts, K labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from veneer.errors import DriftError, UserMistake
from veneer.tasks.adapted import Adapted
from veneer.tasks.classification import Classification
from veneer.tasks.golden import golden_of

__all__ = ["SAMPLES", "Drift", "Reference", "classification_of"]

SAMPLES = (  # for adapters without golden inputs (PEFT's): what they say does not matter, their lengths do
    "Thanks",
    "You won a prize, call now to claim it",
    "The film was neither good nor bad, and I would not watch it a second time with my family or without it.",
    "My order is late: where is it, and when do I get my money back?",
)


@dataclass(frozen=True)
class Drift:
    """The difference seen.

    Attributes:
        largest: the largest absolute difference of a logit.
        changed: texts whose answer is another one.
        texts: N.
    """

    largest: float
    changed: int
    texts: int


@dataclass(frozen=True)
class Reference:
    """Texts and the logits that the adapter gives for them in fp32.

    Attributes:
        texts: the golden inputs, or a few samples where there are none.
        ids: their tokens.
        logits: (N, K).
        tolerance: largest difference in fp32, for logits up to 1; larger logits have a larger one.
    """

    texts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    logits: NDArray[np.float32]
    tolerance: float

    @classmethod
    def of(cls, adapted: Adapted) -> Reference:
        """The golden answers of an adapter, or fresh ones; `adapted` has to be in fp32."""
        stored = None if adapted.facts is None else adapted.facts.golden
        golden = stored if stored is not None and stored.inputs else golden_of(adapted, SAMPLES)
        texts = tuple(str(text) for text in golden.inputs)
        ids = tuple(tuple(row) for row in adapted.encode(texts))
        logits = np.asarray(golden.outputs, dtype=np.float32)
        return cls(texts, ids, logits, golden.tolerance)

    def drift(self, logits: NDArray[np.float32], *, half: bool = False, what: str) -> Drift:
        """Compare (N, K) logits of `what` with these.

        Args:
            logits: of the same texts.
            half: weights in half precision: their rounding is allowed for.
            what: the thing, for the message.

        Raises:
            DriftError: they are too far off.
        """
        off = np.abs(logits - self.logits)
        limit = max(0.25 if half else 0.0, self.tolerance) * max(1.0, float(np.abs(self.logits).max()))
        found = Drift(
            largest=float(off.max()),
            changed=int((logits.argmax(axis=1) != self.logits.argmax(axis=1)).sum()),
            texts=len(self.texts),
        )
        if not found.largest <= limit:
            row = int(off.max(axis=1).argmax())
            raise DriftError(
                f"{what} does not answer as the adapter does: golden input {row} gives "
                f"{np.round(logits[row], 4).tolist()}, expected {np.round(self.logits[row], 4).tolist()} (limit "
                f"{limit:.1e}). Nothing was written. Please report it with the base's name."
            )
        return found

    def check_tokens(self, ids: Sequence[Sequence[int]], *, what: str) -> None:
        """Raise DriftError where the tokenizer that was stored reads the texts differently."""
        for text, wanted, given in zip(self.texts, self.ids, ids, strict=True):
            if list(wanted) != list(given):
                raise DriftError(
                    f"{what}: its stored tokenizer reads {text[:60]!r} as {list(given)[:12]}, expected "
                    f"{list(wanted)[:12]}. Nothing was written. Please report it with the base's name."
                )


def classification_of(adapted: Adapted, verb: str) -> Classification:
    """The task of an adapter that is about to leave.

    Raises:
        UserMistake: it is no classification.
    """
    if not isinstance(adapted.task, Classification):
        raise UserMistake(
            f"{verb} works for classification; this adapter is for {adapted.task.name}. Use it with PEFT: "
            "its folder is an ordinary PEFT adapter."
        )
    return adapted.task
