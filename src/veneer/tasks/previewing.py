"""What a base will read of a source: the data room's preview with the base's own tokenizer, and no weights.

It joins the two rooms; it prints nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from veneer.data.choices import Notes
from veneer.data.config import DataConfig
from veneer.data.download import Progress
from veneer.data.prepared import PreparedData
from veneer.data.preview import Preview, measured_rows, preview
from veneer.data.ragged import Ragged
from veneer.data.sources import Source
from veneer.errors import DataError
from veneer.models.skeleton import skeleton
from veneer.tasks.base import Encoded, Task
from veneer.tasks.inference import check_base, infer_kind
from veneer.tasks.kind import Making

__all__ = ["Previewed", "preview_source", "read_as"]


@dataclass(frozen=True)
class Previewed:
    """The task that the source asks for, and the data as that task reads them."""

    task: str
    preview: Preview


def preview_source(
    config: DataConfig,
    base: str,
    *,
    task: str = "auto",
    options: Mapping[str, Any] | None = None,
    max_length: int | None = None,
    examples: int = 5,
    progress: Progress | None = None,
) -> Previewed:
    """Read, split and tokenise as training would.

    Args:
        config: the data.
        base: hub name or folder; only its configuration and tokenizer are read.
        task: its name; "auto" infers it.
        options: of the task's own.
        max_length: tokens that an example is cut to; None: what the base reads.
        examples: how many to show.
        progress: told of downloads.

    Raises:
        DataError, SourceError: data that can't be used.
        BaseError: a base whose configuration or tokenizer can't be had, or that can't do this task.
    """
    source = Source(config, progress)
    kind, inferred = infer_kind(task, source, base)
    chosen = kind.options.parse(options or {}, where=f"options of the task {kind.name}")
    prepared = kind.prepare(source, chosen)
    said = check_base(kind, base, inferred=inferred)
    found = skeleton(base, head=kind.head(prepared, chosen))
    limit = found.max_length if max_length is None else min(max_length, found.max_length)
    making = Making(prepared, found, chosen)
    made, tokenizer = kind.make(making), found.tokenizer
    told, stores = _told(made, prepared, tokenizer, limit)
    seen = preview(
        prepared,
        lambda rows: made.full_lengths(rows, tokenizer),
        lambda rows, place: made.shown(rows, place, tokenizer, limit),
        max_length=limit,
        n=examples,
        known={name: store.full_lengths for name, store in stores.items() if store.full_lengths is not None},
    )
    seen = replace(seen, choices=(*seen.choices, *making.notes.choices))
    if inferred is not None and all(choice.what != "task" for choice in seen.choices):
        seen = replace(seen, choices=(inferred, *seen.choices))
    seen = replace(read_as(seen, made, stores, kind.cut_says(made)), choices=(*seen.choices, *told.choices))
    warnings = (*seen.warnings, *([said] if said else []), *making.notes.warnings, *told.warnings)
    return Previewed(kind.name, replace(seen, warnings=warnings))


def read_as(seen: Preview, task: Task, stores: Mapping[str, Encoded], lost: str) -> Preview:
    """The preview with what only the encoded examples tell: what becomes of long ones, what the loss reads.

    Args:
        seen: as measured.
        task: which encoded them.
        stores: examples as tokens, by split.
        lost: what a cut takes away (`Kind.cut_says`).
    """
    longer = ""
    if len(stores) == sum(n > 0 for n in seen.measured.values()):
        longer = lost if any(store.cut for store in stores.values()) else "they are read in parts"
    read = {name: int(store.lengths.sum()) for name, store in stores.items()}
    loss = {
        name: task.units(store.targets) for name, store in stores.items() if isinstance(store.targets, Ragged)
    }
    return replace(seen, longer=longer, read_tokens=read, loss_tokens=loss)


def _told(task: Task, prepared: PreparedData, tokenizer: Any, limit: int) -> tuple[Notes, dict[str, Encoded]]:
    """What training would say once it has read the rows as tokens, and the rows so read, by split.

    Of large splits a part is read, as for the lengths. A row that training would refuse is a warning here, so that the
    rest can be looked at; its split is then missing.
    """
    notes, stores = Notes(), {}
    for split in prepared.splits:
        if not len(split):
            continue
        try:
            store = task.encode(split.select(measured_rows(len(split))), tokenizer, limit)
        except DataError as error:
            notes.warnings.append(f"Training would stop here: {error}")
            continue
        stores[split.name] = store
        notes.choices += store.choices if split.name == "train" else ()
        notes.warnings += store.warnings
    return notes, stores
