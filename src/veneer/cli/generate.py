"""`veneer generate`: text that goes on, for prompts, for standard input, or for a file of any size."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from veneer.cli.console import Output
from veneer.cli.flags import OUTPUT
from veneer.cli.options import Flag, with_flags
from veneer.cli.predict import written_as
from veneer.cli.settings import WRITTEN
from veneer.cli.writing import (
    MODEL,
    SAMPLING,
    SYSTEM,
    columns_of,
    cut_note,
    is_adapter,
    loaded_writer,
    printable,
    sampling_of,
)
from veneer.errors import AdapterError, DataError

if TYPE_CHECKING:
    from veneer.engine.generation import Generated, Sampling
    from veneer.tasks.writing import Writer

__all__ = ["EXAMPLES", "generate"]

EXAMPLES = r"""[dim]Examples[/]
$ veneer generate adapters/letters "Write to Ada that the parcel is late."
$ veneer generate adapters/letters "A haiku" --temperature 0.8 --seed 3
$ veneer generate adapters/letters --file new.jsonl --out answers.jsonl
$ veneer generate --base path/to/gpt2 "Every effort moves you" --stop "\n"
"""

_BATCH = (
    Flag("file", None, Path, "csv, tsv, json, jsonl, parquet or txt.", "Data", "f", metavar="FILE"),
    Flag(
        "column",
        None,
        list[str],
        "Column of --file to read, such as prompt=body.",
        "Data",
        metavar="ROLE=NAME",
    ),
    Flag("out", None, Path, "--file with its answers: .csv .tsv .jsonl", "Output", "o", metavar="FILE"),
    Flag("overwrite", None, bool, "Replace --out.", "Output"),
    Flag("fresh", None, bool, "Discard answers of a run that was stopped.", "Output"),
    Flag("raw", None, bool, "Go on with the text itself, without template.", "Answer"),
)


@with_flags(*_BATCH, *WRITTEN, *SAMPLING, SYSTEM, *MODEL, *OUTPUT)
def generate(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="An adapter folder (none: --base alone), then prompts; - reads one a line from standard input.",
            metavar="[ADAPTER] [PROMPTS]...",
            show_default=False,
        ),
    ] = None,
    **settings: Any,
) -> None:
    """Let an adapter, or a base alone, write.

    A prompt is put into the template that the adapter was trained with.
    With --out a run that was stopped goes on with the same command.
    """
    output = Output(json=settings["json"], quiet=settings["quiet"])
    adapter, prompts = _adapter_and_prompts(words or [], settings)
    sampling = sampling_of(settings)
    if settings["file"] is not None and settings["out"] is not None:
        _write_file(output, adapter, sampling, settings)
        return
    with output.working():
        from veneer.cli.progress import Counter

        began = time.perf_counter()
        asked = _asked(output, prompts, settings)
        writer = loaded_writer(output, adapter, settings)
        if not output.json and len(asked) == 1:
            _stream(output, writer, asked[0], sampling, settings)
            return
        with Counter(output, "prompts") as counter:
            answers = writer.generate(asked, sampling, raw=settings["raw"], progress=counter)
        cut_note(output, [answer.finish for answer in answers], sampling.max_new_tokens)
    seconds = time.perf_counter() - began
    if output.json:
        output.result(_as_json(output, adapter, writer, asked, answers, sampling, seconds), lambda _: None)
    else:
        _print(asked, answers)


def _adapter_and_prompts(words: Sequence[str], settings: Mapping[str, Any]) -> tuple[str | None, list[str]]:
    """The first word is the adapter, unless there is a --base to write alone."""
    adapter, prompts = None, list(words)
    if words and (settings["base"] is None or is_adapter(words[0])):
        adapter, prompts = words[0], prompts[1:]
    elif not words and settings["base"] is None:
        raise typer.BadParameter("name an ADAPTER folder and prompts, or a base with --base.")
    elif words and "/" in words[0] and not any(char.isspace() for char in words[0]):
        raise AdapterError(
            f"There is no adapter folder {words[0]}. If it is a prompt for the base alone, give it by standard input "
            "(-) or with --file."
        )
    if (settings["file"] is None) == (not prompts):
        ways = "prompts, --file FILE, or - for standard input"
        raise typer.BadParameter(f"give {ways}." if not prompts else f"give only one of: {ways}.")
    of_files = ("out", "column", "fresh", *(flag.parameter for flag in WRITTEN))
    if settings["file"] is None and any(settings[name] for name in of_files):
        raise typer.BadParameter(
            "--out, --column, --fresh and --encoding go with --file, and so do --delimiter and --no-header."
        )
    if settings["raw"] and settings["system"]:
        raise typer.BadParameter("--system needs a template, and --raw leaves it out.")
    return adapter, prompts


def _asked(output: Output, prompts: list[str], settings: Mapping[str, Any]) -> list[Any]:
    """The prompts, each as `Writer.generate` takes it."""
    if settings["file"] is not None:
        from veneer.data.prompts import read_prompts

        found = read_prompts(settings["file"], columns_of(settings["column"]), written_as(settings))
        output.choices(found.choices)
        rows: list[Any] = [list(turns) for _, turns in found if turns]
        if not rows:
            raise DataError(f"{settings['file']} holds no prompt; every row is empty.")
    elif prompts == ["-"]:
        try:
            rows = [text for text in (line.rstrip("\r\n") for line in sys.stdin) if text.strip()]
        except UnicodeDecodeError as error:
            raise DataError(
                f"standard input is not UTF-8 text ({error.reason}); save it as UTF-8."
            ) from error
        if not rows:
            raise DataError("standard input holds no text; a prompt in each line was expected.")
    else:
        rows = list(prompts)
    system = settings["system"]
    return [_with_system(row, system) for row in rows] if system else rows


def _with_system(prompt: Any, system: str) -> Any:
    if isinstance(prompt, str):
        return {"prompt": prompt, "system": system}
    from veneer.data.conversations import Turn

    return prompt if prompt[0].role == "system" else [Turn("system", system), *prompt]


def _stream(
    output: Output, writer: Writer, prompt: Any, sampling: Sampling, settings: Mapping[str, Any]
) -> None:
    """One answer, as it comes."""
    for piece in writer.stream(prompt, sampling, raw=settings["raw"]):
        sys.stdout.write(printable(piece.text))
        sys.stdout.flush()
        if piece.answer is not None:
            sys.stdout.write("\n")
            cut_note(output, [piece.answer.finish], sampling.max_new_tokens)


def _print(asked: Sequence[Any], answers: Sequence[Generated]) -> None:
    """Each prompt behind a >, and its answer."""
    for number, (prompt, answer) in enumerate(zip(asked, answers, strict=True)):
        sys.stdout.write(("\n" if number else "") + f"> {_shown(prompt)}\n{printable(answer.text)}\n")


def _shown(prompt: Any) -> str:
    """A prompt as one line."""
    return " ".join(_text(prompt).split())


def _text(prompt: Any) -> str:
    """What is asked, without what came before."""
    if isinstance(prompt, dict):
        return str(prompt["prompt"])
    if isinstance(prompt, str):
        return prompt
    last = prompt[-1]
    return f"{last.content}\n{last.input}" if last.input else str(last.content)


def _as_json(
    output: Output,
    adapter: str | None,
    writer: Writer,
    asked: Sequence[Any],
    answers: Sequence[Generated],
    sampling: Sampling,
    seconds: float,
) -> dict[str, Any]:
    new = sum(len(answer.ids) for answer in answers)
    return {
        "adapter": adapter,
        "base": writer.base.name,
        "template": writer.template.says,
        "precision": writer.precision.name,
        "answers": [
            {
                "prompt": _text(prompt),
                "text": answer.text,
                "finish": answer.finish,
                "prompt_tokens": answer.prompt_tokens,
                "new_tokens": len(answer.ids),
            }
            for prompt, answer in zip(asked, answers, strict=True)
        ],
        "sampling": sampling.model_dump(mode="json"),
        "seconds": round(seconds, 3),
        "new_tokens": new,
        "warnings": output.warned,
    }


def _write_file(output: Output, adapter: str | None, sampling: Sampling, settings: Mapping[str, Any]) -> None:
    out: Path = settings["out"]
    with output.working():
        from veneer.cli.progress import Counter
        from veneer.tasks.written_file import write_file

        with Counter(output, "prompts") as counter:
            done = write_file(
                lambda: loaded_writer(output, adapter, settings),
                settings["file"],
                out,
                sampling=sampling,
                columns=columns_of(settings["column"]),
                options=written_as(settings),
                system=settings["system"] or "",
                raw=settings["raw"],
                overwrite=settings["overwrite"],
                fresh=settings["fresh"],
                say=output.choices,
                progress=counter,
            )
    if done.empty:
        output.warn(f"{done.empty:,} of the rows have no prompt, and no answer.")
    cut_note(output, (name for name, n in done.finish.items() for _ in range(n)), sampling.max_new_tokens)
    if done.resumed:
        output.say(f"{done.resumed:,} answers of an earlier run were kept.")
    value = {
        "adapter": adapter,
        "out": str(out),
        "rows": done.rows,
        "empty": done.empty,
        "resumed": done.resumed,
        "new_tokens": done.new_tokens,
        "finish": done.finish,
        "columns": list(done.columns),
        "warnings": output.warned,
    }
    columns = ", ".join(done.columns)
    output.result(
        value,
        lambda console: console.print(f"{out}: {done.rows:,} rows, with {columns} added", soft_wrap=True),
    )
