"""Text that goes on: a causal base, with or without an adapter, and the template that its prompts are put into.

    writer = load_writer("adapters/letters")
    writer.generate(["Write to Ada."], max_new_tokens=60)[0].text

A prompt is a text, a row such as {"instruction": ..., "input": ...}, or a conversation: a list of {"role", "content"}.
This file joins a loaded base with `veneer.engine.generation`; it knows no terminal and no file of prompts.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from veneer.engine.device import choose_device
from veneer.engine.generation import Generated, Memory, Piece, Sampling, TextGenerator
from veneer.engine.precision import Precision, PrecisionName, choose_precision
from veneer.errors import DataError, UserMistake
from veneer.lora import disabled
from veneer.models import Base, cast_frozen_, load_base
from veneer.models.forms import HeadSpec
from veneer.naming import setting
from veneer.tasks.adapted import Adapted
from veneer.tasks.loading import load
from veneer.tasks.prompting import Prompt, answer_ends, only_text, rendered_prompt, text_ids, turns_of
from veneer.tasks.rendered import Rendered, Rendering, hidden_note
from veneer.tasks.rounded import round_base_
from veneer.tasks.templates import Template, choose_template

__all__ = ["Writer", "load_writer", "warn_of_hidden", "writer_of"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True)
class Writer:
    """A causal base that is ready to write.

    Attributes:
        base: the base, with the adapter on its model where there is one.
        template: how prompts are written down.
        precision: dtype of the frozen weights.
        adapted: the adapter in its place; None for a base alone.
    """

    base: Base
    template: Template
    precision: Precision
    adapted: Adapted | None = None

    @property
    def plain(self) -> bool:
        """Whether there are no questions and answers: a text goes on as it stands."""
        task: Any = None if self.adapted is None else self.adapted.task
        return self.template.origin == "none" if task is None else task.data == "text"

    @cached_property
    def generator(self) -> TextGenerator:
        """What continues token ids."""
        tokens, texts = answer_ends(self.template, self.base.tokenizer)
        return TextGenerator(
            self.base.model,
            self.base.tokenizer,
            limit=self.base.max_length,
            stop_tokens=tokens,
            stop=texts,
        )

    def ids(self, prompt: Prompt, *, raw: bool = False) -> list[int]:
        """The tokens of a prompt; `raw`: of the text as it stands, without the template.

        Raises:
            DataError: it is no prompt, is empty, or the template can't show it.
        """
        return self.rendered(prompt, raw=raw).parts[-1].ids

    def rendered(self, prompt: Prompt, *, raw: bool = False) -> Rendering:
        """As `ids`, with whose words the template writes nothing of. Errors as there."""
        turns = turns_of(prompt)
        if raw or self.plain:
            ids = text_ids(only_text(turns), self.base.tokenizer)
            return Rendering([Rendered(ids, [False] * len(ids))])
        return rendered_prompt(self.template, turns, self.base.tokenizer)

    def all_ids(self, prompts: Sequence[Prompt], *, raw: bool = False) -> list[list[int]]:
        """The tokens of many prompts; an error names the prompt, counted from 1.

        Words that the template writes nothing of are logged as a warning: the same words of a writer once.
        """
        found = []
        hidden: Counter[str] = Counter()
        told = len(self._told)
        for row, prompt in enumerate(prompts, start=1):
            try:
                one = self.rendered(prompt, raw=raw)
            except DataError as error:
                raise DataError(f"prompt {row}: {error}") from error
            found.append(one.parts[-1].ids)
            hidden.update(one.hidden)
            self._told.update(turn.content for turn in turns_of(prompt) if turn.role in one.hidden)
        if len(self._told) > told:
            warn_of_hidden(hidden, len(prompts))
        return found

    @cached_property
    def _told(self) -> set[str]:
        """Hidden words of which a warning was given."""
        return set()

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | None = None,
        *,
        adapter: bool = True,
        raw: bool = False,
        progress: Callable[[int, int], None] | None = None,
        **settings: Any,
    ) -> list[Generated]:
        """An answer to each prompt, in order.

        Args:
            prompts: see `Prompt`.
            sampling: how; default: greedy, 128 tokens at most.
            adapter: False: the base alone answers.
            raw: prompts are texts that go on as they stand.
            progress: called with the answers done, and all.
            settings: fields of `Sampling`, which win.

        Raises:
            TypeError: one string was given, not a sequence of prompts.
            ConfigError: a setting that does not exist or can't be.
            DataError: a prompt that is empty or too long.
        """
        if isinstance(prompts, str):
            raise TypeError("generate() takes a sequence of prompts; put the one prompt into a list")
        chosen = _sampling(sampling, settings)
        ids = self.all_ids(prompts, raw=raw)
        with self._side(adapter):
            return self.generator.generate(ids, chosen, progress=progress)

    def stream(
        self,
        prompt: Prompt,
        sampling: Sampling | None = None,
        *,
        adapter: bool = True,
        raw: bool = False,
        memory: Memory | None = None,
        row: int = 0,
        **settings: Any,
    ) -> Iterator[Piece]:
        """The answer to one prompt as it comes; the last piece carries the whole. Arguments and errors as `generate`.

        With `adapter=False` the adapter is off while a piece is computed, and on again whenever one is given out.
        """
        chosen = _sampling(sampling, settings)
        pieces = self.generator.stream(self.all_ids([prompt], raw=raw), chosen, rows=[row], memory=memory)
        return _stepwise(pieces, lambda: self._side(adapter))

    def _side(self, adapter: bool) -> AbstractContextManager[None]:
        if adapter or self.adapted is None:
            return nullcontext()
        return disabled(self.base.model)


def warn_of_hidden(hidden: Mapping[str, int], prompts: int) -> None:
    """Log whose words the template writes nothing of; `hidden`: in how many of so many prompts, by role."""
    for role, n in hidden.items():
        mend = {
            "system": "Put it into the question.",
            "user": f"Let the text go on without the template ({setting('call.raw', True)}).",
        }
        _log.warning(
            hidden_note(role, f" in {n:,} of {prompts:,} prompts" if prompts > 1 else "", mend[role])
        )


def load_writer(
    adapter: str | Path | None = None,
    *,
    base: str | None = None,
    precision: PrecisionName = "auto",
    device: str = "auto",
    verify: bool = True,
    chat: bool = False,
) -> Writer:
    """A causal adapter on its base, or a causal base alone.

    Args:
        adapter: an adapter folder, ours or PEFT's; None: the base alone.
        base: hub name or folder; with an adapter: where its base lies now.
        precision: dtype of the frozen weights; "auto" measures.
        device: where to compute; "auto": a GPU where there is one.
        verify: replay the adapter's golden answers.
        chat: a base alone that has no chat template gets Alpaca's layout, so that there can be turns.

    Raises:
        UserMistake: neither is given, or the adapter is not for writing.
        AdapterError, BaseError, DriftError: as for `load`; an encoder can't go on with a text.
    """
    if adapter is not None:
        _refuse_model(Path(adapter))
        return writer_of(load(adapter, base=base, precision=precision, device=device, verify=verify))
    if base is None:
        raise UserMistake(f"name an adapter folder, or a base with {setting('base')}.")
    place = choose_device(device)
    found = load_base(base, head=HeadSpec("causal"))
    chosen = round_base_(found, choose_precision(precision, place))
    found.model.requires_grad_(False)
    cast_frozen_(found.model, chosen.dtype)
    found.model.to(place)
    return Writer(found, _template_of(found, chat=chat), chosen)


def writer_of(adapted: Adapted) -> Writer:
    """The writer in a loaded adapter.

    Raises:
        UserMistake: it is for another task.
    """
    task: Any = adapted.task
    if task.head.form != "causal":
        raise UserMistake(
            f"This adapter is for {task.name}, which writes no text. Ask it with: veneer predict ADAPTER"
        )
    return Writer(adapted.base, task.template, adapted.precision, adapted)


def _refuse_model(folder: Path) -> None:
    if (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
        raise UserMistake(
            f"{folder} holds a whole model and no adapter. Give it as the base: {setting('base', repr(str(folder)))}"
        )


def _template_of(base: Base, *, chat: bool) -> Template:
    """The base's own chat template, else none: then the text goes on as it stands."""
    if chat or getattr(base.tokenizer, "chat_template", None):
        return choose_template("auto", base.tokenizer, base.name)[0]
    return Template("none")


def _sampling(sampling: Sampling | None, settings: Mapping[str, Any]) -> Sampling:
    return (sampling or Sampling()).replace(**settings) if settings else sampling or Sampling()


def _stepwise(pieces: Iterator[_T], inside: Callable[[], AbstractContextManager[None]]) -> Iterator[_T]:
    """The same pieces, each computed inside of its own `inside()`, which is left before the piece is given out."""
    while True:
        with inside():
            found = next(pieces, None)
        if found is None:
            return
        yield found
