"""From trained weights to an adapter folder: measured, compared, explained, written, and loaded again.

The folder is first written beside its place, loaded as a stranger would load it, and asked for its golden answers;
only then is it put into place. This file knows the rooms below it and no terminal.
"""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

import veneer
from veneer.adapter import AdapterFolder, BaseFacts, Facts, read_adapter, write_adapter
from veneer.data.choices import counted
from veneer.evaluation.baselines import Baseline
from veneer.evaluation.facts import BaseFacts as ReportedBase
from veneer.evaluation.facts import ReportFacts
from veneer.evaluation.scores import Metrics
from veneer.evaluation.verdict import Verdict, verdict_of
from veneer.lora import adapter_state_dict, peft_config_dict
from veneer.models.forms import HEAD_CLASSES
from veneer.models.heads import native_pooling
from veneer.tasks.adapted import Adapted
from veneer.tasks.base import Input, Outputs
from veneer.tasks.golden import golden_of, stored_drift
from veneer.tasks.kind import Findings, Told
from veneer.tasks.loading import load
from veneer.training.loop import Trained
from veneer.training.pages import pages
from veneer.training.prepare import Run

__all__ = ["Finished", "finish", "measure"]

GOLDEN_TEXTS = 8


@dataclass(frozen=True)
class Measured:
    """What was measured of a run.

    Attributes:
        metrics: by split name ("validation", "test").
        outputs: of the head, by split name.
        baselines: on the split that decides.
        seconds: that measuring took.
    """

    metrics: dict[str, Metrics]
    outputs: dict[str, Outputs]
    baselines: tuple[Baseline, ...]
    seconds: float

    @property
    def decisive(self) -> str | None:
        """The split that decides: test before validation."""
        return next((name for name in ("test", "validation") if name in self.metrics), None)


@dataclass(frozen=True)
class Finished:
    """A finished run.

    Attributes:
        path: the adapter folder.
        folder: as read from there.
        measured: metrics and baselines.
        seconds: the whole run.
        commands: lines of the shell that use it.
    """

    path: Path
    folder: AdapterFolder
    measured: Measured
    seconds: float
    commands: tuple[str, ...] = ()

    @property
    def facts(self) -> Facts:
        """veneer.json."""
        assert self.folder.facts is not None  # it was written by `finish`
        return self.folder.facts

    @property
    def verdict(self) -> Verdict:
        """What the numbers say, against the best baseline."""
        found = self.measured
        return verdict_of(
            ReportFacts(
                title=self.path.name,
                task=self.facts.task,
                base=ReportedBase(self.facts.base.name),
                validation=found.metrics.get("validation"),
                test=found.metrics.get("test"),
                baselines=found.baselines,
            )
        )


def measure(run: Run) -> Measured:
    """Metrics of the trained adapter on validation and test, and what simpler means reach on the same rows.

    What the task chooses on the validation rows is chosen first, and is part of the run's task from then on.
    """
    began = time.perf_counter()
    metrics: dict[str, Metrics] = {}
    outputs: dict[str, Outputs] = {}
    for name in ("validation", "test"):
        if name not in run.stores:
            continue
        outputs[name] = run.adapted.outputs_of(run.stores[name], prefix=run.prefixes.get(name))
        settle = run.adapted.kind.settle
        if name == "validation" and settle is not None:
            task = settle(run.adapted.task, outputs[name], run.stores[name])
            run.adapted = replace(run.adapted, task=task)
        metrics[name] = run.adapted.task.metrics(outputs[name], run.stores[name], seed=run.config.seed)
    adapted = run.adapted
    found = Measured(metrics, outputs, (), 0.0)
    baselines: tuple[Baseline, ...] = ()
    compare, decisive = adapted.kind.baselines, found.decisive
    if run.config.baselines and decisive is not None and compare is not None:
        train, held_out = run.stores["train"], run.stores[decisive]
        baselines = compare(adapted, train, held_out, outputs[decisive], run.config.seed)
    return replace(found, baselines=baselines, seconds=time.perf_counter() - began)


def finish(
    run: Run,
    trained: Trained,
    measured: Measured,
    out: Path,
    *,
    began: float,
    first_step_s: float,
    overwrite: bool,
) -> Finished:
    """Write the adapter folder, with golden answers taken from the folder itself and held against the trained model's.

    Args:
        run, trained, measured: what was done.
        out: the adapter folder's place.
        began: `time.monotonic()` at the start of the run.
        first_step_s: seconds from the start to the end of the first step.
        overwrite: whether an adapter there may be replaced.

    Raises:
        DriftError: what was written does not answer as what was trained.
    """
    found = findings_of(run, trained, measured)
    if run.adapted.kind.seal_ is not None:
        run.adapted = replace(run.adapted, task=run.adapted.kind.seal_(run.adapted.task, run.adapted.model))
    adapted = run.adapted
    tensors = adapter_state_dict(adapted.model)
    peft_config = peft_config_dict(
        adapted.lora,
        adapted.model,
        base_model_name_or_path=adapted.base.name,
        task_type=task_type(adapted),
    )
    peft_config["revision"] = run.config.base_revision  # PEFT's Auto classes load this one as well
    facts = facts_of(run, trained, measured, first_step_s)
    staging = out.parent / f".{out.name}.run" / "final"
    shutil.rmtree(staging, ignore_errors=True)
    write_adapter(staging, peft_config=peft_config, tensors=tensors, facts=facts)
    again = load(staging, base=str(adapted.base.folder), precision="fp32", mode=run.config.mode)
    inputs = _golden_inputs(run)
    facts = facts.replace(golden=golden_of(again, inputs))
    drift = stored_drift(adapted, again, inputs)
    facts = facts.replace(exactness={**facts.exactness, "stored": _says_of_stored(drift, len(inputs))})
    size = read_adapter(staging).size_bytes
    seconds = time.monotonic() - began
    facts = facts.replace(speed={**facts.speed, "seconds": round(seconds, 3)})
    extra: dict[str, str | bytes] = dict(pages(run, trained, measured, facts, found, size))
    extra["config.yaml"] = run.config.to_yaml()
    write_adapter(
        out, peft_config=peft_config, tensors=tensors, facts=facts, extra_files=extra, overwrite=overwrite
    )
    commands = tuple(line.replace("ADAPTER", str(out)) for line in adapted.kind.card(adapted).commands)
    return Finished(out, read_adapter(out), measured, time.monotonic() - began, commands)


def task_type(adapted: Adapted) -> str | None:
    """PEFT's task type, where transformers' own class computes what the adapter was trained with.

    With another pooling there is none: PEFT's Auto classes then refuse the folder instead of answering wrongly, and
    `PeftModel.from_pretrained` loads it with the code of the model card.
    """
    form = adapted.base.spec.form
    if form == "sequence" and native_pooling(adapted.model) != adapted.base.pooling:
        return None
    if not adapted.kind.as_peft(adapted.task):
        return None
    return HEAD_CLASSES[form].peft_task


def facts_of(run: Run, trained: Trained, measured: Measured, first_step_s: float) -> Facts:
    """veneer.json, without the golden answers."""
    adapted, base = run.adapted, run.adapted.base
    return Facts(
        task=adapted.task.name,
        task_facts=adapted.task.facts(),
        base=BaseFacts(
            name=base.name,
            content_hash=base.content_hash,
            tokenizer_hash=base.tokenizer_hash,
            family=base.family,
        ),
        lora=adapted.lora.to_dict(),
        max_length=adapted.max_length,
        data={**run.prepared.summary(), "choices": [vars(c) for c in run.choices], "warnings": run.warnings},
        training=run.config.model_dump(mode="json"),
        metrics={name: found.to_json() for name, found in measured.metrics.items()},
        baselines=[baseline.to_json() for baseline in measured.baselines],
        speed={
            "training_seconds": round(trained.train_seconds, 3),
            "evaluation_seconds": round(trained.evaluation_seconds, 3),
            "measuring_seconds": round(measured.seconds, 3),
            "first_step_seconds": round(first_step_s, 3),
            "texts_per_second": round(trained.texts / max(trained.train_seconds, 1e-9), 1),
            "tokens_per_second": round(trained.tokens / max(trained.train_seconds, 1e-9), 1),
            "steps": trained.step,
            "best_step": trained.best_step,
            "kept_step": trained.kept_step,
            "machine": machine(),
        },
        exactness=_exactness(run),
        versions=versions(),
    )


def versions() -> dict[str, str]:
    """Versions of what computed the adapter."""
    import transformers

    return {
        "veneer": veneer.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def machine() -> str:
    """This machine in a few words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = counted(torch.get_num_threads(), "thread")
    return f"{platform.machine()}, {threads}, {torch.backends.cpu.get_cpu_capability()}"


def _says_of_stored(drift: float, inputs: int) -> str:
    same = f"the same numbers as the model in memory, for {inputs} inputs"
    return same if drift == 0 else f"{same}, but for {drift:.0e}"


def _exactness(run: Run) -> dict[str, str]:
    reasons: Mapping[str, str] = {choice.what: choice.reason for choice in run.choices}
    return {
        "precision": run.adapted.precision.name,
        "precision_reason": reasons.get("precision", "asked for"),
        "mode": run.config.mode,
        "mode_reason": run.adapted.runner.reason,
        "base_dropout": "on" if run.config.base_dropout else "off",
    }


def _golden_inputs(run: Run) -> list[Input]:
    """A few inputs of the split that decides (or of training), spread over it."""
    parts = run.prepared
    split = next(s for s in (parts.test, parts.validation, parts.train) if len(s))
    places = np.unique(np.linspace(0, len(split) - 1, GOLDEN_TEXTS).astype(np.int64))
    return run.adapted.task.inputs_of(split, [int(place) for place in places])


def findings_of(run: Run, trained: Trained, measured: Measured) -> Findings:
    """What the task found on the split that decides."""
    name = measured.decisive
    if name is None:
        return Findings()
    rows = {split.name: split for split in run.prepared.splits}[name]
    told = Told(
        run.adapted, rows, run.stores[name], measured.outputs[name], measured.metrics[name], trained.history
    )
    return run.adapted.kind.findings(told)
