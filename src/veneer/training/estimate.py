"""What a run will take, before it: a few real steps, and the plan's batches counted.

    found = estimate(TrainConfig.parse({"data": {"source": "messages.csv"}}))
    found.total_seconds, found.peak_bytes, found.fits

The steps are the loop's own, at typical batches and at the heaviest of the plan, on weights that are thrown away. The
time of a step is taken as a + b * tokens, fitted to them. What was said is kept in the cache under the run's identity:
the report of the run holds it against what it took. This file knows runs and the loop; it prints nothing.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from veneer.data.choices import counted
from veneer.engine import own_kernels, own_threads
from veneer.evaluation.wording import bytes_text, duration
from veneer.files import cache_folder, write_text
from veneer.lora import quantizable
from veneer.lora.targets import base_modules
from veneer.tasks.adapted import length_batches
from veneer.training.config import TrainConfig
from veneer.training.memory import available_bytes, peak_bytes, used_bytes
from veneer.training.prepare import Run, set_up
from veneer.training.trackers import check_trackers
from veneer.training.trial import Trial, Weights, run_trial

__all__ = ["Estimate", "Option", "announced", "estimate", "estimate_run"]

_TYPICAL = (0.5, 0.1, 0.9, 0.3, 0.7, 0.5, 0.2, 0.8)
"""Places of the trial batches among all batches, by their tokens; the first one warms up."""
_FOR_BASELINES = ("sklearn.linear_model", "sklearn.feature_extraction.text")
_FOR_REPORT = ("matplotlib.figure", "matplotlib.backends.backend_svg")
_SHARE = 0.9  # of the memory there is that a run may fill


@dataclass(frozen=True)
class Option:
    """A change of the configuration with which the run would need less memory.

    Attributes:
        settings: fields of `TrainConfig` and their new values.
        flags: the same on the command line.
        effect: what else changes, in words.
        peak_bytes: predicted.
        fits: whether that fits.
    """

    settings: Mapping[str, Any]
    flags: str
    effect: str
    peak_bytes: int
    fits: bool


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Attributes:
        setup_seconds: reading, loading and tokenising; measured.
        training_seconds, evaluation_seconds: predicted; evaluations during training and the measurement after it.
        steps: of the whole run.
        tokens: that the whole run trains on.
        trial_steps: real steps that this rests on.
        longest_batch_tokens: tokens of the heaviest batch.
        peak_bytes: of the process, or of the GPU.
        peak_measured: whether the heaviest batch was run; else its memory was worked out from smaller ones.
        available_bytes: what the process can have.
        options: what would make it fit; empty where it fits.
        not_counted: parts of the run that no figure is given for.
    """

    setup_seconds: float
    training_seconds: float
    evaluation_seconds: float
    steps: int
    tokens: int
    trial_steps: int
    longest_batch_tokens: int
    peak_bytes: int
    peak_measured: bool
    available_bytes: int
    options: tuple[Option, ...] = ()
    not_counted: tuple[str, ...] = ()

    @property
    def total_seconds(self) -> float:
        """The whole run."""
        return self.setup_seconds + self.training_seconds + self.evaluation_seconds

    @property
    def fits(self) -> bool:
        """Whether it stays under nine tenths of the memory there is."""
        return self.peak_bytes <= _SHARE * self.available_bytes

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"total_seconds": self.total_seconds, "fits": self.fits}

    def lines(self) -> list[str]:
        """For people."""
        rest = f", {' and '.join(self.not_counted)} not counted" if self.not_counted else ""
        memory = f"{bytes_text(self.peak_bytes)} of {bytes_text(self.available_bytes)}"
        how = "" if self.peak_measured else " (worked out from smaller batches)"
        lines = [
            f"about {duration(self.total_seconds)}: set-up {duration(self.setup_seconds)}, training "
            f"{duration(self.training_seconds)}, evaluation {duration(self.evaluation_seconds)}{rest}",
            f"{counted(self.steps, 'step')} over {self.tokens:,} tokens; measured on {self.trial_steps} of them",
            f"memory at most {memory}{how}: {'it fits' if self.fits else 'it does not fit'}",
        ]
        for option in self.options:
            verdict = "fits" if option.fits else "does not fit either"
            lines.append(f"{option.flags}: {bytes_text(option.peak_bytes)}, {verdict}; {option.effect}")
        return lines


@own_threads()
@own_kernels()
def estimate(
    config: TrainConfig, *, device: str | None = None, say: Callable[[str], None] = lambda _: None
) -> Estimate:
    """Set a run up, try it, and say what it will take. Nothing is written but caches.

    Args:
        config: as for `train`.
        device: where to compute; None: the configuration's.
        say: told what is being done.

    Raises:
        UserMistake: what `train` would raise before its first step.
    """
    from veneer.engine.device import choose_device

    began = time.perf_counter()
    check_trackers(config.trackers)
    run = set_up(config, device=device or str(choose_device(config.device)), say=say)
    say("trying a few steps")
    found = estimate_run(run, setup_seconds=time.perf_counter() - began)
    write_text(_place(run.identity), json.dumps(found.to_json()))
    return found


def announced(identity: Mapping[str, str]) -> float | None:
    """Seconds that `estimate` predicted for the run of this identity (`Run.identity`); None: it was not asked."""
    place = _place(identity)
    if not place.is_file():
        return None
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return float(json.loads(place.read_text(encoding="utf-8"))["total_seconds"])
    return None


def _place(identity: Mapping[str, str]) -> Path:
    import hashlib

    name = hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode()).hexdigest()[:40]
    return cache_folder("estimates") / f"{name}.json"


def estimate_run(run: Run, *, setup_seconds: float = 0.0, budget_s: float = 6.0) -> Estimate:
    """The same for a run that is set up. Its weights are changed: don't train it afterwards.

    Args:
        run: what would be trained.
        setup_seconds: that setting it up took.
        budget_s: about so long the trial may take; a step that takes longer is finished.
    """
    device = run.adapted.device
    weights = Weights.of(run)
    before = used_bytes(device)
    typical = [weights.step_at(share) for share in _TYPICAL]
    trial, once = _twice(run, typical, budget_s)
    heaviest, tried = weights.heaviest, typical[: len(trial.seconds)]
    worked_out = _scaled(before, peak_bytes(device), weights.largest.max() / weights.largest[tried].max())
    available = available_bytes(device)
    measured = worked_out <= _SHARE * available
    if measured:
        trial.add(_twice(run, [heaviest], budget_s)[0])
    per_step, per_token = trial.fitted()
    evaluation = _evaluation_seconds(run, budget_s)
    peak, end = max(peak_bytes(device), 0 if measured else worked_out), _end_bytes(run)
    peak += end
    options = () if peak <= _SHARE * available else _options(run, weights, before + end, peak, available)
    return Estimate(
        setup_seconds=setup_seconds,
        training_seconds=per_step * len(weights.tokens) * weights.epochs
        + per_token * weights.all_tokens
        + once,
        evaluation_seconds=evaluation,
        steps=run.plan.steps,
        tokens=weights.all_tokens,
        trial_steps=len(trial.seconds),
        longest_batch_tokens=int(weights.largest.max()),
        peak_bytes=peak,
        peak_measured=measured,
        available_bytes=available,
        options=options,
        not_counted=("baselines", "report") if run.config.baselines else ("report",),
    )


def _twice(run: Run, steps: list[int], budget_s: float) -> tuple[Trial, float]:
    """The second of two trials of the same steps, and how many seconds longer the first one took.

    Kernels are made when a shape is first seen: that happens once, and not in each step of a run. Where the first trial
    fills the time that there is, it is taken as it is.
    """
    first = run_trial(run, steps, budget_s)
    took = sum(first.seconds)
    if took > budget_s / 2:
        return first, 0.0
    second = run_trial(run, steps[: len(first.seconds)], budget_s)
    if len(second.seconds) < len(first.seconds):
        return first, 0.0
    return second, max(0.0, took - sum(second.seconds))


def _evaluation_seconds(run: Run, budget_s: float) -> float:
    """All evaluations during training, and the measurement of validation and test after it."""
    every = run.config.eval_every or run.plan.steps_per_epoch
    times = {"validation": math.ceil(run.plan.steps / every) + 1, "test": 1}
    total = 0.0
    for name, count in times.items():
        if name in run.stores:
            total += count * _answering_seconds(run, name, budget_s / 2)
    return total


def _answering_seconds(run: Run, name: str, budget_s: float) -> float:
    """Answering all texts of a split once: batches from the longest to the shortest, until the time is up."""
    store = run.stores[name]
    lengths = store.lengths.astype(np.int64)
    batches = length_batches(lengths)
    order = np.unique(np.linspace(0, len(batches) - 1, min(len(batches), 12)).astype(int))
    seconds, tokens = 0.0, 0
    for number in order:
        rows = np.sort(batches[number])
        began = time.perf_counter()
        run.adapted.outputs_of(store, rows=rows, prefix=run.prefixes.get(name))
        seconds += time.perf_counter() - began
        tokens += int(lengths[rows].sum())
        if seconds > budget_s:
            break
    return seconds / max(1, tokens) * int(lengths.sum())


def _end_bytes(run: Run) -> int:
    """What comes on top when the weights are trained: libraries of baselines and report, and the base once more.

    The finished adapter is loaded from its folder, on an fp32 base of its own, for its golden answers.
    """
    device = run.adapted.device
    if device.type == "cuda":
        return 0
    before = used_bytes(device)
    for name in (*(_FOR_BASELINES if run.config.baselines else ()), *_FOR_REPORT):
        with contextlib.suppress(ImportError):  # the run itself says what it misses
            import_module(name)
    base = sum(4 * p.numel() for p in run.adapted.model.parameters() if not p.requires_grad)
    return max(0, used_bytes(device) - before) + base


def _scaled(before: int, peak: int, share: float) -> int:
    """Memory with activations `share` times as large; weights and libraries stay."""
    return int(before + max(0, peak - before) * share)


def _options(run: Run, weights: Weights, before: int, peak: int, available: int) -> tuple[Option, ...]:
    """What would make it fit: smaller batches in more pieces, shorter texts, half precision."""
    config, found = run.config, list[Option]()

    def option(settings: dict[str, Any], effect: str, size: int) -> Option:
        named = {key.replace("_", "-"): value for key, value in settings.items()}
        flags = " ".join(f"--{key}" if value is True else f"--{key} {value}" for key, value in named.items())
        return Option(settings, flags, effect, size, size <= _SHARE * available)

    whole = run.plan.batch_size
    program = run.adapted.runner.program
    if program is not None and not config.gradient_checkpointing:
        blocks = len(program.blocks)  # an input of C for each of them, and one of them whole: about 16 C
        kept = _scaled(before, peak, (blocks + 16) / (16 * blocks))
        found.append(option({"gradient_checkpointing": True}, "the same bits, a third slower", kept))
    for halvings in range(1, whole.bit_length()):
        size = whole >> halvings
        accumulation = math.ceil(whole * config.gradient_accumulation / size)
        settings = {"batch_size": size, "gradient_accumulation": accumulation}
        found.append(option(settings, "the same training", _scaled(before, peak, size / whole)))
        if found[-1].fits:
            break
    exact = any(each.fits for each in found)
    lengths = run.stores["train"].lengths
    for limit in (512, 256, 128, 64):
        if limit < int(lengths.max()):
            cut = int((lengths > limit).sum())
            share = min(1.0, limit * whole / int(weights.largest.max()))
            effect = f"{counted(cut, 'training text')} would lose their ends"
            found.append(option({"max_length": limit}, effect, _scaled(before, peak, share)))
            if found[-1].fits:
                break
    if config.precision == "fp32":
        frozen = sum(p.nbytes for p in run.adapted.model.parameters() if not p.requires_grad)
        size = _scaled(before, peak, 0.5) - frozen // 2
        found.append(option({"precision": "bf16"}, "not exact: 8 bits of mantissa", size))
    if not exact and not config.precision.startswith("int8"):
        model, keep = run.adapted.model, run.adapted.base.float32_modules
        modules = base_modules(model)
        held = [modules[name].get_parameter("weight") for name in quantizable(model, keep=keep)]
        saved = sum(weight.nbytes - weight.numel() for weight in held)
        found.append(option({"precision": "int8"}, "not exact: weights in 255 steps; slower", peak - saved))
    return tuple(found)
