"""How a conversation is written for a base: its own chat template, Alpaca's layout, another one, or none.

A template is a text in Jinja, as tokenizers carry it; it is stored with the adapter, and whoever reads the adapter
renders with it. What is asked and what is answered are told apart by rendering the conversation up to each place,
never by searching in the rendered text.

This file knows tokenizers and templates; it knows no token ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from veneer.data.conversations import Turn
from veneer.errors import ConfigError
from veneer.naming import setting

__all__ = ["ALPACA", "Piece", "Renderings", "Template", "choose_template"]

Origin = Literal["base", "alpaca", "none", "given"]

ALPACA = (
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}"
    "{% elif messages[0].input %}Below is an instruction that describes a task, paired with an input that provides "
    "further context. Write a response that appropriately completes the request."
    "{% else %}Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.{% endif %}"
    "{% for message in messages %}{% if message.role == 'user' %}"
    "{{ '\\n\\n### Instruction:\\n' + message.content }}"
    "{% if message.input %}{{ '\\n\\n### Input:\\n' + message.input }}{% endif %}{{ '\\n\\n### Response:\\n' }}"
    "{% elif message.role == 'assistant' %}{{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
"""The layout of Stanford's Alpaca (Taori et al. 2023), turns after each other; an answer ends with end of text."""


@dataclass(frozen=True)
class Piece:
    """A part of a rendered conversation, in order: asked, or answered (the answer's own end included)."""

    text: str
    answer: bool


@dataclass(frozen=True)
class Renderings:
    """A conversation as it is learnt: once, or several times where the whole does not hold every answer as it is asked.

    Attributes:
        all: pieces of each rendering; the last one is the whole.
        unread: answers that none of them holds.
    """

    all: list[list[Piece]]
    unread: int = 0


@dataclass(frozen=True)
class Template:
    """A template and where it comes from.

    Attributes:
        origin: "base": the tokenizer's own; "alpaca"; "none": prompt and answer with nothing between them; "given".
        source: Jinja; "" for "none".
    """

    origin: Origin
    source: str = ""

    @property
    def says(self) -> str:
        """In a few words, for people."""
        return {
            "base": "the base's own chat template",
            "alpaca": "Alpaca's layout",
            "none": "none: prompt and answer as they stand",
            "given": "one of your own",
        }[self.origin]

    @property
    def writes_specials(self) -> bool:
        """Whether the template itself writes the tokens that stand before a text."""
        return self.origin in ("base", "given")

    def pieces(self, turns: Sequence[Turn], tokenizer: Any) -> list[Piece]:
        """A conversation as rendered: asked, answered, asked, ...

        Where a template writes an earlier answer otherwise once another follows (as those of reasoning models do), that
        answer is part of what is asked; see `renderings`.

        Raises:
            ValueError: the template can't render these turns; the message says why, without the row.
        """
        return [piece for piece, _ in self._placed(turns, tokenizer)]

    def renderings(self, turns: Sequence[Turn], tokenizer: Any) -> Renderings:
        """The whole conversation, and before it one up to each answer that the whole writes otherwise.

        Each answer is one in a single rendering, where it stands after the very prompt that it is asked with.

        Raises:
            ValueError: as `pieces`.
        """
        whole = self._placed(turns, tokenizer)
        found = [[piece for piece, _ in whole]]
        read = {turn for piece, turn in whole if piece.answer}
        unread = 0
        for number in reversed(range(len(turns) - 1)):
            if turns[number].role != "assistant" or number in read:
                continue
            try:
                part = self._placed(turns[: number + 1], tokenizer)
            except ValueError:  # it can't be told apart from what is asked, there neither
                unread += 1
                continue
            found.append([Piece(piece.text, piece.answer and turn not in read) for piece, turn in part])
            read |= {turn for piece, turn in part if piece.answer}
        return Renderings(found[::-1], unread)

    def _placed(self, turns: Sequence[Turn], tokenizer: Any) -> list[tuple[Piece, int]]:
        """The pieces, each with the number of the turn that it ends with."""
        if self.origin == "none":
            return [(piece, number) for number, piece in enumerate(self._joined(turns))]
        whole = self._render(turns, tokenizer, asks=turns[-1].role != "assistant")
        pieces: list[tuple[Piece, int]] = []
        at = 0
        for number, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            before = self._render(turns[:number], tokenizer, asks=True)
            after = self._render(turns[: number + 1], tokenizer, asks=False)
            last = number == len(turns) - 1
            if not (whole.startswith(before) and after.startswith(before) and len(before) >= at):
                if last:
                    raise ValueError(
                        f"{self.says} writes the answer otherwise than after its own prompt, so what the model is "
                        "asked and what it answers can't be told apart; take "
                        f"{setting('options.template', 'alpaca')}, or one of your own"
                    )
                continue
            if turn.content.strip() and not after[len(before) :].strip():
                raise ValueError(
                    f"{self.says} writes nothing of the answer, so there is nothing to learn; take another one"
                )
            if not whole.startswith(after):
                continue
            pieces += [
                (Piece(whole[at : len(before)], answer=False), number - 1),
                (Piece(after[len(before) :], answer=True), number),
            ]
            at = len(after)
        if at < len(whole):
            pieces.append((Piece(whole[at:], answer=False), len(turns) - 1))
        return pieces

    def _joined(self, turns: Sequence[Turn]) -> list[Piece]:
        asked = [turn for turn in turns if turn.role != "assistant"]
        if len(turns) - len(asked) > 1 or (len(turns) > len(asked) and turns[-1].role != "assistant"):
            raise ValueError(
                f"a conversation of several turns needs a template; {setting('options.template', 'none')} joins "
                "two texts"
            )
        before = "\n\n".join(part for turn in asked for part in (turn.content, turn.input) if part)
        pieces = [Piece(before, answer=False)]
        return [*pieces, Piece(turns[-1].content, answer=True)] if len(turns) > len(asked) else pieces

    def _render(self, turns: Sequence[Turn], tokenizer: Any, *, asks: bool) -> str:
        """The turns as text; `asks`: with what comes before an answer."""
        from jinja2 import TemplateError

        try:
            rendered: str = tokenizer.apply_chat_template(
                [self._message(turn) for turn in turns],
                chat_template=self.source,
                tokenize=False,
                add_generation_prompt=asks,
            )
        except TemplateError as error:
            raise ValueError(f"{self.says} can't render it ({error})") from None
        return rendered

    def _message(self, turn: Turn) -> dict[str, str]:
        if self.origin == "alpaca":
            return {"role": turn.role, "content": turn.content, "input": turn.input}
        both = [part for part in (turn.content, turn.input) if part.strip()]
        return {"role": turn.role, "content": "\n\n".join(both) if turn.input else turn.content}

    def to_dict(self) -> dict[str, str]:
        """For veneer.json."""
        return {"origin": self.origin, "source": self.source}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Template:
        """What `to_dict` wrote."""
        return cls(facts["origin"], facts["source"])


def choose_template(asked: str, tokenizer: Any, base: str) -> tuple[Template, str, str | None]:
    """The template to train with, the reason for it, and a warning where the base has another one.

    Args:
        asked: "auto", "base", "alpaca", "none", or the path of a file with a template in Jinja.
        tokenizer: the base's.
        base: its name, for messages.

    Raises:
        ConfigError: "base" of a base without one, a file that can't be read, or that is no Jinja.
    """
    own = getattr(tokenizer, "chat_template", None)
    own = own.get("default") if isinstance(own, dict) else own
    if asked == "auto":
        asked = "base" if own else "alpaca"
        reason = f"{base} has one" if own else f"{base} has no chat template"
    else:
        reason = "asked for"
    if asked == "base":
        if not own:
            raise ConfigError(
                f"{setting('options.template')}: {base} has no chat template of its own. Take alpaca, none, or "
                f"a file with one."
            )
        return Template("base", own), reason, None
    if asked in ("alpaca", "none"):
        template = Template("alpaca", ALPACA) if asked == "alpaca" else Template("none")
    else:
        template = Template("given", _from_file(Path(asked)))
    return template, reason, _foreign(template, base, own)


def _foreign(template: Template, base: str, own: str | None) -> str | None:
    if own == template.source:
        return None
    known = f"{base} was trained with a chat template of its own" if own else f"{base} has no chat template"
    return (
        f"The template is not the base's own ({template.says}): {known}. It is stored with the adapter; "
        "whatever else reads the adapter has to write its prompts in the same way."
    )


def _from_file(path: Path) -> str:
    from jinja2 import TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if not path.is_file():
        raise ConfigError(
            f"{setting('options.template')} is {str(path)!r}; expected auto, base, alpaca, none, or a file with "
            "a template in Jinja."
        )
    try:
        source = path.read_text(encoding="utf-8")
        ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"]).parse(source)
    except (OSError, UnicodeDecodeError, TemplateSyntaxError) as error:
        raise ConfigError(
            f"{setting('options.template')}: {path} can't be read as a template in Jinja ({error})."
        ) from None
    return source
