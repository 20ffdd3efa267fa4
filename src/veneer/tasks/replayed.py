"""Golden inputs asked of a model that left Veneer, whatever the task is: how far are its numbers, and its answers, off?

This file knows adapters in their place and numbers; it knows no file and no format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veneer.data.ragged import Ragged
from veneer.engine import Runner
from veneer.errors import DriftError
from veneer.models import Base
from veneer.tasks.adapted import Adapted
from veneer.tasks.base import Encoded, Input, Outputs
from veneer.tasks.drift import SAMPLES, Drift
from veneer.tasks.golden import GOLDEN_TOLERANCE

__all__ = ["Replay"]


@dataclass(frozen=True)
class Replay:
    """Inputs, and what the adapter gives for them in fp32.

    Attributes:
        adapted: the adapter; what is attached to its model may change afterwards.
        inputs: the golden inputs, or a few samples where there are none.
        encoded: their tokens.
        outputs: the head's numbers.
        answers: what people get, without fractions.
    """

    adapted: Adapted
    inputs: tuple[Input, ...]
    encoded: Encoded
    outputs: Outputs
    answers: list[Any]

    @classmethod
    def of(cls, adapted: Adapted) -> Replay:
        """Ask the adapter; it has to be in fp32."""
        stored = None if adapted.facts is None else adapted.facts.golden
        inputs = tuple(stored.inputs) if stored is not None and stored.inputs else _samples(adapted)
        encoded = adapted.encode_inputs(inputs)
        outputs = adapted.outputs_of(encoded)
        return cls(adapted, inputs, encoded, outputs, _plain(adapted.task.answers(outputs, encoded)))

    def drift(self, base: Base, *, half: bool, what: str) -> Drift:
        """Ask a base that carries the change in its weights.

        Args:
            base: loaded again from where it was written.
            half: weights in half precision: their rounding is allowed for.
            what: the thing, for the message.

        Raises:
            DriftError: its tokenizer reads the inputs differently, or its numbers are too far off.
        """
        other = replace(self.adapted, base=base, runner=Runner.of(base.model, mode="padded"), facts=None)
        encoded = other.encode_inputs(self.inputs)
        self.check_tokens(encoded, what=what)
        return self.compared(other.outputs_of(encoded), half=half, what=what)

    def check_tokens(self, encoded: Encoded, *, what: str) -> None:
        """Raise DriftError where another tokenizer reads the inputs differently."""
        for place in range(max(len(encoded), len(self.encoded))):
            wanted, given = (list(e[place]) if place < len(e) else [] for e in (self.encoded, encoded))
            if wanted != given:
                raise DriftError(
                    f"{what}: its stored tokenizer reads a golden input as {given[:12]}, expected {wanted[:12]}. "
                    "Nothing was written. Please report it with the base's name."
                )

    def compared(self, outputs: Outputs, *, half: bool = False, what: str) -> Drift:
        """Hold another's numbers for the same tokens against the adapter's.

        Raises:
            DriftError: they are too far off.
        """
        ours, theirs = _values(self.outputs), _values(outputs)
        limit = max(0.25 if half else 0.0, GOLDEN_TOLERANCE) * max(1.0, float(np.abs(ours).max(initial=0.0)))
        largest = float(np.abs(ours - theirs).max(initial=0.0))
        if not largest <= limit:  # so that NaN is too far as well
            raise DriftError(
                f"{what} does not answer as the adapter does: its numbers on the golden inputs differ by {largest:.2e} "
                f"(limit {limit:.1e}). Nothing was written. Please report it with the base's name."
            )
        answers = _plain(self.adapted.task.answers(outputs, self.encoded))
        changed = sum(a != b for a, b in zip(self.answers, answers, strict=True))
        return Drift(largest=largest, changed=changed, texts=len(self.inputs))


def _samples(adapted: Adapted) -> tuple[Input, ...]:
    """Inputs for an adapter without golden ones (PEFT's): what they say does not matter, their lengths do."""
    names = adapted.task.inputs
    if adapted.task.head.form == "causal":
        return tuple({"prompt": a, "completion": b} for a, b in zip(SAMPLES, reversed(SAMPLES), strict=True))
    if len(names) == 1:
        return SAMPLES
    return tuple(dict.fromkeys(names, text) for text in SAMPLES)


def _values(outputs: Outputs) -> NDArray[np.float32]:
    return outputs.values if isinstance(outputs, Ragged) else outputs


def _plain(answers: Sequence[Any]) -> list[Any]:
    """Answers without fractions, which rounding moves a little; labels, spans and counts stay."""
    return [_without_fractions(answer) for answer in answers]


def _without_fractions(value: Any) -> Any:
    if isinstance(value, float):
        return None
    if isinstance(value, dict):
        return {key: _without_fractions(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_fractions(one) for one in value]
    return value
