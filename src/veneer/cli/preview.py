"""`veneer preview`: what the model will read of a source, before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from veneer.cli.colours import tag_colour
from veneer.cli.console import Output, table
from veneer.cli.flags import EXAMPLE_COUNT, OUTPUT, RUN
from veneer.cli.options import Flag, assignments, nested, with_flags
from veneer.cli.settings import BASE, DATA, TASK

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from veneer.data.preview import Preview, PreviewText, ShownToken

__all__ = ["EXAMPLES", "preview"]

EXAMPLES = """\
[dim]Examples[/]
$ veneer preview messages.csv
$ veneer preview example --examples 10
$ veneer preview sms-spam --variant balanced --base openai-community/gpt2
"""
SET = next(flag for flag in RUN if flag.name == "set")
WHOLE = Flag("whole", None, bool, "Every token of them, however many.", "Output")
_BAR = 30  # columns of the longest bar
_MOST_TOKENS = 60  # of an example that are shown
_MOST_LABELS = 20
_NO_TAG = ("", "O")


@with_flags(TASK, *DATA, *BASE, EXAMPLE_COUNT, WHOLE, SET, *OUTPUT)
def preview(
    source: Annotated[
        str, typer.Argument(help="A file, a named source, or a data set of the hub.", show_default=False)
    ],
    **settings: Any,
) -> None:
    """Show what the model will read, down to the tokens.

    Labels, lengths, cuts and repeats; only the tokenizer and the configuration of the base are loaded.
    """
    output = Output(json=settings["json"], quiet=settings["quiet"])
    given = merged_flags(settings)
    with output.working():
        from veneer.data.config import DataConfig
        from veneer.models.locate import DEFAULT_BASE
        from veneer.tasks.previewing import preview_source

        config = DataConfig.parse(given.get("data", {}) | {"source": source}, where="the command line")
        base = given.get("base", DEFAULT_BASE)
        shown = 5 if settings["examples"] is None else settings["examples"]
        seen = preview_source(
            config,
            base,
            task=given.get("task", "auto"),
            options=given.get("options"),
            max_length=given.get("max_length"),
            examples=shown,
        )
        found = seen.preview
        output.choices(found.choices)
        for warning in found.warnings:
            output.warn(warning)
    output.result(
        {"task": seen.task, **_as_json(source, base, found)},
        lambda console: _show(console, found, settings["whole"]),
    )


def merged_flags(settings: dict[str, Any]) -> dict[str, Any]:
    """--set, then the flags, as keys of a training configuration; those of training itself are not read here."""
    from veneer.training.config import merged

    return merged(assignments(settings["set"] or ()), nested((TASK, *DATA, *BASE), settings))


def _as_json(source: str, base: str, found: Preview) -> dict[str, Any]:
    return {
        "source": source,
        "base": base,
        "labels": {split: dict(counts) for split, counts in found.label_counts.items()},
        "lengths": {split: vars(stats) for split, stats in found.lengths.items()},
        "histogram": [{"up_to": bound, "texts": n} for bound, n in found.histogram],
        "max_length": found.max_length,
        "cut": dict(found.cut),
        "measured": dict(found.measured),
        "read_tokens": dict(found.read_tokens),
        "loss_tokens": dict(found.loss_tokens),
        "counts": dict(found.counts),
        "choices": [vars(choice) for choice in found.choices],
        "warnings": list(found.warnings),
        "examples": [_text_as_json(text) for text in found.examples],
        "shortest": found.shortest and _text_as_json(found.shortest),
        "longest": found.longest and _text_as_json(found.longest),
    }


def _text_as_json(text: PreviewText) -> dict[str, Any]:
    return vars(text) | {"labels": list(text.labels), "tokens": [vars(token) for token in text.tokens]}


def _show(console: Console, found: Preview, whole: bool) -> None:
    console.print()
    if any(found.label_counts.values()):
        console.print(_label_table(found))
        console.print()
    console.print("tokens of a training text, special tokens included", style="dim")
    bins = found.bins()
    for low, bound, n in bins:
        bar = "█" * round(_BAR * n / max(n for *_, n in bins)) or ("▏" if n else "")
        console.print(f"{low:>6}-{bound:<6} {bar}{' ' if bar else ''}{n:,}")
    for said in found.says():
        console.print(said)
    named = [("shortest", found.shortest), ("longest", found.longest)]
    console.print(
        f"\ntexts as tokens: · a blank, | a break, <> a special token{_legend(found, console)}", style="dim"
    )
    for text in found.examples:
        _show_text(console, ", ".join(text.labels), text, whole)
    for name, one in named:
        if one is not None:
            title = ": ".join([f"the {name}", *([", ".join(one.labels)] if one.labels else [])])
            _show_text(console, title, one, whole)


def _label_table(found: Preview) -> Any:
    from rich.text import Text

    splits = [split for split, counts in found.label_counts.items() if sum(counts.values())]
    shown = table("label", *splits, numbers=range(1, len(splits) + 1))
    labels = list(found.label_counts["train"])
    for label in labels[:_MOST_LABELS]:
        shown.add_row(Text(label), *(f"{found.label_counts[split][label]:,}" for split in splits))
    if len(labels) > _MOST_LABELS:
        shown.add_row(Text(f"and {len(labels) - _MOST_LABELS} more", style="dim"))
    return shown


def _show_text(console: Console, title: str, text: PreviewText, whole: bool) -> None:
    from rich.text import Text

    from veneer.data.preview import copies

    console.print(Text.assemble((title or "nothing marked", "bold"), (f"  {text.length:,} tokens", "dim")))
    for begins, tokens in copies(text.tokens):
        if begins:
            console.print(f"  {begins}", style="dim")
        _show_tokens(console, tokens, whole)


def _show_tokens(console: Console, tokens: Sequence[ShownToken], whole: bool) -> None:
    from rich.text import Text

    line = Text()
    starts: list[int] = []  # where a line may be broken
    before: ShownToken | None = None
    left_out = 0
    for place, token in enumerate(tokens):
        if not (whole or _is_shown(tokens, place)):
            left_out += 1
            continue
        if left_out:
            line.append(
                f"{'' if console.is_terminal else _edge(before, None)} ... {left_out:,} more ... ",
                style="dim",
            )
            before, left_out = None, 0
        starts.append(len(line))
        if not console.is_terminal:
            line.append(_edge(before, token))
        bare = console.is_terminal or before is None or before.special
        line.append(*_styled(token, place, bar=not bare))
        if token.tag not in _NO_TAG:
            line.append(f"/{token.tag}", style=f"dim {_colour(token.tag)}")
        before = token
    if not console.is_terminal:
        line.append(_edge(before, None))
    if left_out:
        line.append(f" ... and {left_out:,} more", style="dim")
    for part in _broken(line, starts, console.width - 2):
        console.print(Text.assemble("  ", part), overflow="fold")


def _broken(line: Text, starts: Iterable[int], width: int) -> Iterable[Text]:
    """A long line in parts of at most `width` cells, broken before a token; one longer than that stays whole."""
    from rich.cells import cell_len

    offsets, begin, last = [], 0, 0
    for place in (*starts, len(line)):
        if cell_len(line.plain[begin:place]) > width and last > begin:
            offsets.append(last)
            begin = last
        last = place
    return line.divide(offsets)


def _is_shown(tokens: Sequence[ShownToken], place: int) -> bool:
    """Of a long example the beginning; less of it, where what the loss reads comes later, and what is around that."""
    first = next((at for at, token in enumerate(tokens) if token.target), 0)
    if len(tokens) <= _MOST_TOKENS or first < _MOST_TOKENS - 10:
        return place < _MOST_TOKENS
    return place < _MOST_TOKENS // 3 or -10 <= place - first < _MOST_TOKENS // 2


def _styled(token: ShownToken, place: int, *, bar: bool) -> tuple[str, str]:
    """A token, with a bar before it if it needs one, and its colour; what is cut off is struck out."""
    shown = "".join("·" if c == " " else "⏎" if c == "\n" else "→" if c == "\t" else c for c in token.text)
    if token.special:
        style = "bold magenta on yellow" if token.target else "dim magenta"
        return f"<{shown.strip('<>[]|')}>", style if token.read else "dim strike magenta"
    if bar and not shown.startswith(("·", "⏎", "→")):
        shown = f"|{shown}"
    style = "cyan" if place % 2 else "green"
    if token.tag not in _NO_TAG:
        style = f"bold {_colour(token.tag)}"
    elif token.target and not token.tag:
        style = "bold black on yellow" if place % 2 else "bold black on bright_yellow"
    return shown, style if token.read else "dim strike"


def _colour(tag: str) -> str:
    """The same for all tags of a type."""
    return tag_colour(tag.partition("-")[2] or tag)


def _edge(before: ShownToken | None, token: ShownToken | None) -> str:
    """Without colour: where begins and ends what the loss reads, or what is cut off. Tags say it themselves."""
    was, now = (_marked(one) for one in (before, token))
    ends = {"cut": "}}", "target": "]]", "": ""}[was]
    begins = {"cut": "{{", "target": "[[", "": ""}[now]
    return "" if was == now else ends + begins


def _marked(token: ShownToken | None) -> str:
    if token is None:
        return ""
    return "cut" if not token.read else "target" if token.target and not token.tag else ""


def _legend(found: Preview, console: Console) -> str:
    """What else is marked in the examples."""
    shown = [*found.examples, *(one for one in (found.shortest, found.longest) if one is not None)]
    tokens = [token for text in shown for token in text.tokens]
    cut = "struck out" if console.is_terminal else "{{ }}"
    return _says_of_targets(tokens, console) + (
        f", {cut} what is cut off" if any(not token.read for token in tokens) else ""
    )


def _says_of_targets(tokens: Sequence[ShownToken], console: Console) -> str:
    if any(token.tag for token in tokens):
        return ", / the label of a word that has one (the loss reads every word, at its first token)"
    if any(token.target for token in tokens):
        return f", {'on yellow' if console.is_terminal else '[[ ]]'} what the loss reads"
    return ""
