"""The process that one side runs in: it is set up, then measures the steps that it is told to.

    python -m benchmarks.side '{"side": "b", "workload": "spam-gpt2", ...}'

It reads "LOW HIGH" (steps) line by line and answers with a line of JSON each; at the end of the input it answers with
its peak memory. Whatever libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

__all__ = ["Commands", "Measured", "SideSpec", "main"]


@dataclass(frozen=True)
class SideSpec:
    """What a side needs to know.

    Attributes:
        side: "a", "b", "c" or "ours".
        workload: its name.
        materials: `Materials.to_json()`.
        precision: "fp32" or "bf16", where the side has the choice.
        off: techniques of ours that are switched off (see `switches`).
    """

    side: str
    workload: str
    materials: dict[str, Any]
    precision: Literal["fp32", "bf16"]
    off: tuple[str, ...] = ()

    def to_json(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> SideSpec:
        """The opposite of `to_json`."""
        given = json.loads(text)
        return cls(**given | {"off": tuple(given["off"])})


@dataclass
class Measured:
    """What some steps took.

    Attributes:
        seconds: of each step.
        losses: of each step; empty for a prediction.
        lengths: real tokens of each text of each step.
        computed: tokens that this side computed, padding included.
        labelled: tokens that the loss of each step reads, and how many they see together; empty for a classifier.
    """

    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    lengths: list[list[int]] = field(default_factory=list)
    computed: int = 0
    labelled: list[tuple[int, int]] = field(default_factory=list)

    def add(
        self,
        seconds: float,
        lengths: Iterable[int],
        computed: int,
        loss: float | None = None,
        labelled: tuple[int, int] | None = None,
    ) -> None:
        """Note a step."""
        if labelled is not None:
            self.labelled.append(labelled)
        self.seconds.append(seconds)
        self.lengths.append([int(n) for n in lengths])
        self.computed += int(computed)
        if loss is not None:
            self.losses.append(loss)


class Commands:
    """The steps that are asked for, and the way back for what was measured."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)  # what libraries print must not stand between the answers

    def ready(self, computed_per_epoch: int, once_s: float = 0.0, parameters: int = 0) -> None:
        """Say that the side is set up.

        Args:
            computed_per_epoch: tokens that this side computes in one pass over all texts, padding included.
            once_s: seconds of work that is done once for a whole run (the frozen prefix).
            parameters: trained ones.
        """
        self._say({"computed_per_epoch": computed_per_epoch, "once_s": once_s, "parameters": parameters})

    def next(self) -> range | None:
        """The next steps to measure; None: it is over."""
        words = sys.stdin.readline().split()
        return range(int(words[0]), int(words[1])) if words else None

    def answer(self, measured: Measured) -> None:
        """Hand over what some steps took."""
        self._say(asdict(measured))

    def finish(self) -> None:
        """Say what the process needed at most."""
        from benchmarks.machine import peak_bytes

        self._say({"peak_bytes": peak_bytes(), "cpu_s": time.process_time()})

    def _say(self, what: dict[str, Any]) -> None:
        self._out.write(json.dumps(what) + "\n")
        self._out.flush()


class Side(Protocol):
    """A way to do a workload."""

    def serve(self, commands: Commands) -> None:
        """Set up, say so, then measure until there are no more commands."""
        ...


def main(arguments: Sequence[str]) -> None:
    """Run one side."""
    commands = Commands()
    spec = SideSpec.from_json(arguments[0])
    side: Side
    if spec.side == "ours":
        from benchmarks.ours import Ours

        side = Ours(spec)
    else:
        from benchmarks.baselines import Baseline

        side = Baseline(spec)
    side.serve(commands)
    commands.finish()


if __name__ == "__main__":
    main(sys.argv[1:])
