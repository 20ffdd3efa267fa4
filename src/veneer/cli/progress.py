"""How a long verb shows that it is getting on: a line drawn over itself on a terminal, elsewhere a plain one at times.

It turns what the library reports into words; it knows no training.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from veneer.cli.console import Output
    from veneer.training.loop import StepInfo
    from veneer.training.prepare import Run

__all__ = ["Counter", "TrainProgress", "step_line"]

PLAIN_EVERY_S = 10.0
_QUIET_FIRST_S = 2.0  # a short piece of work shows no progress
_WIDE = 100  # columns in which the long form of the line fits


class TrainProgress:
    """A `Reporter` of training for people."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self.steps_per_epoch = 1
        self.epochs = 1
        self.form = ScoreLike()
        self._bar: Any = None
        self._task: Any = None
        self._status: Any = None
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._still()

    def say(self, text: str) -> None:
        """What is being done now."""
        if not self.output.live:
            return
        self._still()
        self._status = self.output.err.status(f"{text} ...", spinner="dots", spinner_style="dim")
        self._status.start()

    def set_up(self, run: Run, resumed_at: int) -> None:
        """What was inferred and what is adapted, once."""
        self._still()
        self.steps_per_epoch, self.epochs = run.plan.steps_per_epoch, run.plan.epochs
        deciding = run.adapted.task.deciding
        self.form = ScoreLike(deciding.key, deciding.percent, deciding.higher_is_better)
        self.output.choices(run.choices)
        for warning in run.warnings:
            self.output.warn(warning)
        report = run.adapted.report
        layers, counts = len(report.resolution.targets), report.parameters
        self.output.say(
            f"adapting {layers} {'layer' if layers == 1 else 'layers'} with r {run.adapted.lora.r}: "
            f"{counts.trainable:,} of {counts.total:,} parameters train ({counts.trainable / counts.total:.1%})"
        )
        if resumed_at:
            self.output.say(f"going on at step {resumed_at:,} of {run.plan.steps:,}")
        self._last = time.monotonic()
        if self.output.live:
            self._start_bar(run.plan.steps, resumed_at)

    def step(self, info: StepInfo) -> None:
        """The progress line."""
        epoch = min(self.epochs, (info.step - 1) // self.steps_per_epoch + 1)
        if self._bar is not None:
            wide = self.output.err.width >= _WIDE
            line = step_line(info, epoch, self.epochs, wide=wide, form=self.form)
            self._bar.update(self._task, completed=info.step, line=line)
        elif not self.output.live and time.monotonic() - self._last > PLAIN_EVERY_S:
            self._last = time.monotonic()
            self.output.say(step_line(info, epoch, self.epochs, wide=True, form=self.form))

    def entry(self, entry: Mapping[str, Any]) -> None:
        """A line for each evaluation."""
        if entry["kind"] != "evaluation":
            return
        self._last = time.monotonic()
        loss = f"loss {entry['loss']:.3f}"
        score = self.form.text(entry["score"])
        said = loss if self.form.key == "loss" else f"{entry['score_name']} {score}, {loss}"
        self.output.say(f"step {entry['step']:,}: validation {said}")

    def download(self, done: int, total: int | None) -> None:
        """How much has come."""
        of = f" of {total / 1e6:.1f}" if total else ""
        if self._status is not None:
            self._status.update(f"downloading: {done / 1e6:.1f}{of} MB ...")

    def _start_bar(self, steps: int, done: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        line = TextColumn("{task.fields[line]}", table_column=Column(no_wrap=True, overflow="ellipsis"))
        self._bar = Progress(BarColumn(8), line, console=self.output.err, transient=True)
        self._task = self._bar.add_task("", total=steps, completed=done, line="the first step ...")
        self._bar.start()

    def _still(self) -> None:
        """Take away what is being drawn."""
        for drawn in (self._status, self._bar):
            if drawn is not None:
                drawn.stop()
        self._status = self._bar = None


@dataclass(frozen=True)
class ScoreLike:
    """How a task's deciding figure is called and shown; see `veneer.tasks.base.ScoreForm`."""

    key: str = "accuracy"
    percent: bool = True
    higher_is_better: bool = True

    def text(self, value: float) -> str:
        """As people read it; a loss comes with a minus, for higher is better in the history."""
        value = value if self.higher_is_better else -value
        return f"{value:.1%}" if self.percent else f"{value:.3f}"


def step_line(
    info: StepInfo,
    epoch: int,
    epochs: int,
    *,
    wide: bool,
    form: ScoreLike = ScoreLike(),
) -> str:
    """One line about a step; the short form fits beside the bar in 80 columns."""
    left = _clock(info.seconds_left)
    if wide:
        name = "validation loss" if form.key == "loss" else form.key
        metric = f"{name} {form.text(info.metric[1])}, " if info.metric else ""
        return (
            f"step {info.step:,}/{info.steps:,}, epoch {epoch}/{epochs}, loss {info.loss:.3f}, {metric}"
            f"{info.texts_per_s:,.0f} texts/s, {info.tokens_per_s:,.0f} tokens/s, {left} left"
        )
    value = 0.0 if info.metric is None else info.metric[1] if form.higher_is_better else -info.metric[1]
    metric = f" {'val' if form.key == 'loss' else form.key[:3]} {value:.3f}" if info.metric else ""
    return (
        f"{info.step}/{info.steps} ep {epoch}/{epochs} loss {info.loss:.3f}{metric} "
        f"{_short(info.texts_per_s)} texts/s {_short(info.tokens_per_s)} tok/s {left}"
    )


class Counter:
    """Progress of a piece of work that counts something, such as rows; silent for the first two seconds."""

    def __init__(self, output: Output, what: str) -> None:
        self.output, self.what = output, what
        self._began = self._last = time.monotonic()
        self._status: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def __call__(self, done: int, total: int | None = None) -> None:
        """So many are done."""
        now = time.monotonic()
        if now - self._began < _QUIET_FIRST_S:
            return
        rate = done / (now - self._began)
        line = f"{done:,}{f' of {total:,}' if total else ''} {self.what}, {rate:,.0f} a second"
        if self.output.live:
            if self._status is None:
                self._status = self.output.err.status(line, spinner="dots", spinner_style="dim")
                self._status.start()
            self._status.update(line)
        elif now - self._last > PLAIN_EVERY_S:
            self._last = now
            self.output.say(line)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _short(number: float) -> str:
    return f"{number:.0f}" if number < 1000 else f"{number / 1000:.3g}k"
