"""`veneer inspect`: what an adapter folder is, or what would be adapted of a base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from veneer.cli.console import Output, facts_table, table
from veneer.cli.flags import LABELS, OUTPUT
from veneer.cli.options import nested, with_flags
from veneer.cli.settings import ADAPTER, TASK

if TYPE_CHECKING:
    from rich.console import Console

    from veneer.adapter import Facts
    from veneer.tasks.describe import AdapterDescription, BaseDescription, LayerGroup

__all__ = ["EXAMPLES", "inspect"]

EXAMPLES = """\
[dim]Examples[/]
$ veneer inspect adapters/messages
$ veneer inspect openai-community/gpt2 --target-modules all-linear --r 16
$ veneer inspect path/to/a/base --target-modules query,value --labels 5 --json
"""


@with_flags(*ADAPTER, LABELS, TASK, *OUTPUT)
def inspect(
    what: Annotated[
        str, typer.Argument(help="An adapter folder, or a base: hub name or folder.", show_default=False)
    ],
    **settings: Any,
) -> None:
    """Say what an adapter is, or what would be adapted of a base.

    No weight of the base is loaded for either.
    """
    output = Output(json=settings["json"], quiet=settings["quiet"])
    with output.working():
        from veneer.tasks.describe import describe_adapter, describe_base, is_adapter
        from veneer.training.config import resolved_lora

        given = nested(ADAPTER, settings).get("lora", {})
        if is_adapter(what):
            if given or settings["labels"] or settings["task"]:
                raise typer.BadParameter(f"{what} is an adapter; flags of the adapter go with a base.")
            adapter = describe_adapter(what)
            for each in adapter.folder.changed:
                output.warn(f"{each}; to answer, it has to be loaded with --no-verify.")
            value, show = adapter.to_json(), lambda console: _show_adapter(console, adapter)
        else:
            task = settings["task"] or "classification"
            base = describe_base(what, resolved_lora(given), labels=settings["labels"] or 2, task=task)
            value, show = base.to_json(), lambda console: _show_base(console, base)
    output.result(value, show)


def _show_adapter(console: Console, adapter: AdapterDescription) -> None:
    from veneer.evaluation.wording import bytes_text

    folder, facts = adapter.folder, adapter.folder.facts
    made = "Veneer" if adapter.made_by == "veneer" or folder.ours else "PEFT"
    made += "" if facts is not None else " (no veneer.json: labels and metrics are not known)"
    rows = [("adapter", str(folder.path)), ("made by", made), ("base", adapter.base or "not said")]
    if facts is not None:
        rows[2] = ("base", f"{facts.base.name}, {facts.base.family}, {facts.base.content_hash[:19]}...")
        rows += [*_task_rows(facts), *_metric_rows(facts)]
        rows += [
            ("data", _data_line(facts.data)),
            ("exactness", _exactness(facts.exactness)),
            ("made with", ", ".join(f"{name} {version}" for name, version in facts.versions.items())),
        ]
    saved = ", ".join(adapter.saved) or "none"
    size = f"{adapter.parameters:,} ({bytes_text(folder.size_bytes)})"
    rows += [("parameters", size), ("lora", _lora_line(adapter.lora)), ("saved whole", saved)]
    rows.append(("files", ", ".join(adapter.files)))
    console.print(facts_table(rows))
    console.print()
    console.print(_layers(adapter.groups))


def _show_base(console: Console, base: BaseDescription) -> None:
    from veneer.evaluation.wording import bytes_text

    kept = f"{', '.join(base.saved)} ({base.saved_parameters:,} parameters)" if base.saved else "none"
    rows = [
        ("base", f"{base.name}, {base.family}"),
        (
            "reads",
            f"{base.max_length} tokens at most" + (f", {base.pooling} pooling" if base.pooling else ""),
        ),
        ("head", _head(base, kept)),
        ("lora", _lora_line(base.lora)),
        ("parameters", f"{base.parameters:,}"),
        ("would train", f"{base.trainable:,} ({base.share:.2%} of all)"),
        ("adapter", f"{bytes_text(base.size_bytes)} on disk"),
    ]
    if base.not_adapted:
        rows.append(("left out", f"{', '.join(base.not_adapted)} (no output depends on it)"))
    console.print(facts_table(rows))
    console.print()
    console.print(_layers(base.groups))


def _head(base: BaseDescription, kept: str) -> str:
    if base.labels:
        return f"{base.labels} labels; trained whole: {kept}"
    return f"of the task {base.task}; trained whole: {kept}"


def _layers(groups: Sequence[LayerGroup]) -> Any:
    found = table("layers", "", "in", "out", "r", "parameters", numbers=(1, 2, 3, 4, 5))
    for group in groups:
        sizes = (f"{n:,}" for n in (group.in_features, group.out_features, group.r, group.parameters))
        found.add_row(group.pattern, f"{group.layers} ×", *sizes)
    return found


def _task_rows(facts: Facts) -> list[tuple[str, str]]:
    """The task's own lines; of one that this Veneer does not know, its name alone."""
    from veneer.tasks.registry import KINDS

    pooling = facts.task_facts.get("pooling")
    said = [facts.task, *([f"{pooling} pooling"] if pooling else []), f"{facts.max_length} tokens at most"]
    kind = next((kind for kind in KINDS if kind.name == facts.task), None)
    return [("task", ", ".join(said)), *([] if kind is None else kind.inspect(facts.task_facts))]


def _metric_rows(facts: Facts) -> list[tuple[str, str]]:
    from veneer.tasks.registry import KINDS

    headline = next((kind.headline for kind in KINDS if kind.name == facts.task), ())
    rows = []
    for split, found in facts.metrics.items():
        said = []
        for one in headline:
            if found.get(one.key) is None:
                continue
            bounds = found.get("intervals", {}).get(one.key)
            between = f" ({one.format(bounds['low'])} – {one.format(bounds['high'])})" if bounds else ""
            said.append(f"{one.name} {one.format(found[one.key])}{' %' if one.percent else ''}{between}")
        rows.append((split, f"{', '.join(said)}, {found['n']:,} {found.get('unit', 'texts')}"))
    return rows


def _data_line(data: dict[str, Any]) -> str:
    sizes = ", ".join(f"{name} {n:,}" for name, n in data.get("sizes", {}).items() if n)
    return f"{data.get('source', 'not said')} ({sizes}), sha256 {str(data.get('content_hash', ''))[:12]}..."


def _exactness(found: dict[str, Any]) -> str:
    return f"{found.get('precision')}, {found.get('mode')}; base dropout {found.get('base_dropout')}"


def _lora_line(lora: Any) -> str:
    targets = (
        lora.target_modules if isinstance(lora.target_modules, str) else _listed(lora.target_modules or ())
    )
    more = [f"bias {lora.bias}"] if lora.bias != "none" else []
    more += ["rslora"] if lora.use_rslora else []
    more += ["DoRA"] if lora.use_dora else []
    more += [f"init {lora.init_lora_weights}"] if lora.init_lora_weights is not True else []
    return ", ".join([f"r {lora.r}, alpha {lora.lora_alpha:g}, on {targets}", *more])


def _listed(names: Sequence[str], most: int = 12) -> str:
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
