"""A kind of task: what can be said and done before there is a task, and what is written about it afterwards.

A `Kind` is a record of plain functions; each file of a task ends with one. It recognises its data, reads them, names
the head, makes the task, and words what people read. Everything else of Veneer asks the kind and never a task by name.

Letters: N examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from veneer.adapter import AdapterFolder
from veneer.data.choices import Choice, Notes
from veneer.data.prepared import PreparedData, Rows
from veneer.data.sources import Source
from veneer.data.tables import TableOptions
from veneer.errors import AdapterError, ConfigError, nearest
from veneer.evaluation.baselines import Baseline
from veneer.evaluation.blocks import Section
from veneer.evaluation.mistakes import Mistake
from veneer.evaluation.scores import Metrics
from veneer.models.forms import HeadForm, HeadSpec
from veneer.models.heads import Pooling
from veneer.naming import setting
from veneer.strict import StrictModel
from veneer.tasks.base import Answer, Encoded, Input, Outputs, Task

if TYPE_CHECKING:
    from torch import nn

    from veneer.models import Base
    from veneer.tasks.adapted import Adapted

__all__ = [
    "BaseLike",
    "Card",
    "Findings",
    "Headline",
    "InputStream",
    "Kind",
    "Labelled",
    "Making",
    "NoOptions",
    "Settings",
    "Told",
]


class NoOptions(StrictModel):
    """The options of a task that has none."""


class BaseLike(Protocol):
    """What a task may ask of a base: a `Base`, or a `Skeleton` without weights."""

    @property
    def name(self) -> str:
        """As it was given: on the hub, or a path."""
        ...

    @property
    def tokenizer(self) -> Any:
        """transformers' tokenizer of the base."""
        ...

    @property
    def pooling(self) -> Pooling:
        """How a head on whole texts reads it."""
        ...

    @property
    def causal(self) -> bool:
        """Whether a token sees only what stands before it."""
        ...

    @property
    def max_length(self) -> int:
        """The most tokens that it reads."""
        ...


@dataclass(frozen=True)
class Settings:
    """What of a training configuration some kinds read (`Kind.uses` says which)."""

    class_weights: Literal["none", "balanced"] = "none"
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class Making:
    """What a task is made of.

    Attributes:
        prepared: the rows, as the kind's own `prepare` gave them.
        base: the base.
        options: the kind's own options, parsed.
        settings: of the training configuration.
        notes: gets what is chosen and what is to be warned of while the task is made.
    """

    prepared: Any
    base: BaseLike
    options: Any = field(default_factory=NoOptions)
    settings: Settings = field(default_factory=Settings)
    notes: Notes = field(default_factory=Notes)


@dataclass(frozen=True)
class Labelled:
    """Rows to measure an adapter on, and what was said while they were read."""

    rows: Rows
    choices: tuple[Choice, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Headline:
    """A figure of the metrics' JSON that is shown on one line: its key, its name, whether it is a share."""

    key: str
    name: str
    percent: bool = True

    def format(self, value: float) -> str:
        """As people read it: "97.1" (per cent) or "0.113"."""
        return f"{100 * value:.1f}" if self.percent else f"{value:.3f}"


@dataclass(frozen=True)
class Told:
    """What was measured on the split that decides.

    Attributes:
        adapted: what was trained.
        rows: the split's examples.
        encoded, outputs, metrics: of them.
        history: the run's entries; those of kind "evaluation" hold what `Kind.watch` gave under "samples".
    """

    adapted: Adapted
    rows: Any
    encoded: Encoded
    outputs: Outputs
    metrics: Metrics
    history: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Findings:
    """A task's own parts of the report; None: nobody looked."""

    mistakes: tuple[Mistake, ...] | None = None
    mislabelled: tuple[Mistake, ...] | None = None
    mistakes_total: int | None = None
    sections: tuple[Section, ...] = ()


@dataclass(frozen=True)
class Card:
    """What a model card says of a task.

    Attributes:
        summary: in a line: "one of 5 labels for each text".
        pipeline_tag: the hub's word for it: "text-classification".
        code: Python that gives the adapter's answers with transformers and PEFT alone.
        labels: names of the outputs, if they have any.
        limits: sentences on what the adapter is not for.
        commands: lines of the shell that use it, with ADAPTER for the folder.
    """

    summary: str
    pipeline_tag: str
    code: str
    labels: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    commands: tuple[str, ...] = ('veneer predict ADAPTER "a text"', "veneer evaluate ADAPTER more.csv")


class InputStream(Iterator[tuple[dict[str, Any], Input]], Protocol):
    """(row, input) for each row of a file that is answered; see `veneer.data.reading.TextStream`."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in the file's order."""
        ...

    @property
    def kinds(self) -> Mapping[str, str]:
        """Column -> what its cells are (see `veneer.data.tables.Stream`)."""
        ...

    @property
    def choices(self) -> tuple[Choice, ...]:
        """What was inferred."""
        ...


def _always(_: Any) -> bool:
    return True


def _not_of_peft(folder: AdapterFolder, base: Base | None) -> Task:  # noqa: ARG001
    raise AdapterError(
        "PEFT's two files do not say all that this task needs. Use the folder that Veneer wrote, with its veneer.json."
    )


@dataclass(frozen=True)
class Kind:
    """One kind of task.

    Attributes:
        name: in flags and in veneer.json.
        says: what it gives, in a few words.
        form: of the head; asked before a base is loaded.
        claims: the reason why a source looks like this task, or None; `decoder` says what the base is, if known.
        prepare: reads and splits what was named; options are the kind's own.
        head: which head the prepared data need.
        make: the task.
        from_facts: the task that `Task.facts` describes.
        labelled: rows to measure on, read as training read them; given veneer.json's `data` ({} without).
        card: what the model card says of an adapter.
        headline: figures that are shown on one line, the deciding one first.
        of_peft: the task of a folder that PEFT wrote; asked without a base for its `head`, then with it.
        findings, inspect: what the report and `inspect` say beyond the figures; `inspect` gets the facts of the task.
        uses: fields of the training configuration that it reads, of "pooling", "class_weights", "label_smoothing".
        options: its own settings.
        baselines: what simpler means reach on the held-out rows, if there are such.
        settle: called once, with the validation examples, before anything is measured: the task with what is chosen on
            them (a threshold).
        seal_: called once before saving: may fold parts of the task into the head, in place; gives the stored task.
        answer: gives the answers where they are more than what the head says in one go: a language model's are written.
        cut_says: what is lost of an example that is too long, in words.
        as_peft: whether the head's outputs are the answer's own numbers, so that PEFT alone gives it.
        watch: JSON value kept with each evaluation, e.g. generated samples.
        inputs_from: reads a file to answer that is no table; given the path, the columns by name, and how it is written
            (None: inferred).
        roles: names before = in `--column ROLE=NAME`.
    """

    name: str
    says: str
    form: HeadForm
    claims: Callable[[Source, bool | None], str | None]
    prepare: Callable[[Source, Any], PreparedData]
    head: Callable[[Any, Any], HeadSpec]
    make: Callable[[Making], Task]
    from_facts: Callable[[Mapping[str, Any]], Task]
    labelled: Callable[[Any, Mapping[str, Any], Source], Labelled]
    card: Callable[[Adapted], Card]
    headline: tuple[Headline, ...]
    of_peft: Callable[[AdapterFolder, Base | None], Task] = _not_of_peft
    findings: Callable[[Told], Findings] = lambda _: Findings()
    inspect: Callable[[Mapping[str, Any]], list[tuple[str, str]]] = lambda _: []
    uses: frozenset[str] = frozenset()
    options: type[StrictModel] = NoOptions
    baselines: Callable[[Adapted, Encoded, Encoded, Outputs, int], tuple[Baseline, ...]] | None = None
    settle: Callable[[Any, Outputs, Encoded], Task] | None = None
    seal_: Callable[[Any, nn.Module], Task] | None = None
    answer: Callable[[Adapted, Encoded], list[Answer]] | None = None
    cut_says: Callable[[Any], str] = lambda _: "the end of a longer text is not seen"
    as_peft: Callable[[Any], bool] = _always
    watch: Callable[[Adapted, Encoded], Any] | None = None
    inputs_from: Callable[[Path, Mapping[str, str], TableOptions | None], InputStream] | None = None
    roles: tuple[str, ...] = ()

    def check_roles(self, columns: Mapping[str, str], known: Iterable[str] = ()) -> None:
        """Refuse columns by roles that this kind does not have; `known`: roles of other kinds, for the mend.

        Raises:
            ConfigError: such a role, the nearest one, and the task's own.
        """
        for role, name in columns.items():
            if role in self.roles:
                continue
            own = (
                f"It has {', '.join(self.roles)}."
                if self.roles
                else f"It reads {setting('data.text_column')}, {setting('data.text_pair_column')} and "
                f"{setting('data.label_column')}."
            )
            others = set(known)
            near = (
                f"It is another task's ({setting('task')})."
                if role in others
                else nearest(role, {*self.roles, *others})
            )
            mend = " ".join(filter(None, [near, own]))
            raise ConfigError(
                f"{setting('data.columns', {role: name})}: the task {self.name} has no column {role!r}. {mend}"
            )
