"""`veneer chat`: a conversation in the terminal, or line by line from a pipe."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from veneer.cli.console import Output
from veneer.cli.flags import OUTPUT
from veneer.cli.options import with_flags
from veneer.cli.writing import MODEL, SAMPLING, SYSTEM, cut_note, loaded_writer, printable, sampling_of
from veneer.errors import DataError

if TYPE_CHECKING:
    from veneer.tasks.chat import Chat, Side

__all__ = ["EXAMPLES", "chat"]

EXAMPLES = """\
[dim]Examples[/]
$ veneer chat adapters/letters
$ veneer chat adapters/letters --temperature 0.7 --system "You are brief."
$ veneer chat --base path/to/model
"""

HELP = """\
/reset            forget what was said
/compare          let the base answer beside the adapter; again: the adapter alone
/compare base     the base alone; also: /compare adapter, /compare both
/system TEXT      a system prompt from now on; without TEXT: none
/help             this
/quit             leave (or Ctrl-D)
Ctrl-C stops an answer. A line that begins with // is sent with one /."""


@with_flags(*SAMPLING, SYSTEM, *MODEL, *OUTPUT)
def chat(
    adapter: Annotated[
        Path | None, typer.Argument(help="An adapter folder; none: --base alone.", show_default=False)
    ] = None,
    **settings: Any,
) -> None:
    """Talk to an adapter; /help in it lists what it understands.

    Every line is a question. The history is kept, and loses its beginning when it no longer fits.
    """
    output = Output(json=settings["json"], quiet=settings["quiet"])
    if adapter is None and settings["base"] is None:
        raise typer.BadParameter("name an ADAPTER folder, or a base with --base.")
    sampling = sampling_of(settings)
    with output.working():
        from veneer.tasks.chat import Chat

        writer = loaded_writer(output, None if adapter is None else str(adapter), settings, chat=True)
        talk = _Talk(output, Chat(writer, sampling, system=settings["system"] or ""))
        talk.run()
    if output.json:
        value = {
            "adapter": None if adapter is None else str(adapter),
            "base": writer.base.name,
            "turns": talk.turns,
            "sampling": sampling.model_dump(mode="json"),
            "warnings": output.warned,
        }
        output.result(value, lambda _: None)


class _Talk:
    """Reads lines, and shows what comes of them."""

    def __init__(self, output: Output, chat: Chat) -> None:
        self.output, self.chat = output, chat
        self.turns: list[dict[str, Any]] = []
        self._person = sys.stdin.isatty() and not output.json
        self._commands: dict[str, Callable[[str], None]] = {
            "/reset": self._reset,
            "/compare": self._compare,
            "/system": self._system,
            "/help": lambda _: self._say(HELP),
        }

    def run(self) -> None:
        """Until the end of the input, or /quit."""
        if self._person:
            self._say("/help lists the commands, /quit leaves", style="dim")
        if not self.chat.remembers:
            self._say("its template has no turns: every question stands alone", style="dim")
        for line in self._lines():
            command, _, rest = line.strip().partition(" ")
            if command in ("/quit", "/exit"):
                return
            if command in self._commands:
                self._commands[command](rest.strip())
            elif command.startswith("/") and not command.startswith("//"):
                self._say(
                    f"{command} is no command; /help lists them. A line that is to begin with / begins with //."
                )
            else:
                self._ask(line.removeprefix("/") if line.startswith("//") else line)

    def _lines(self) -> Iterator[str]:
        """What is typed or piped in, without empty lines."""
        if self._person:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 - arrows and history in input()
        while True:
            try:
                line = input("> ") if self._person else sys.stdin.readline()
            except EOFError:
                sys.stdout.write("\n")
                return
            except KeyboardInterrupt:
                if not self._person:
                    raise
                sys.stdout.write("\n")
                self._say("/quit or Ctrl-D leaves", style="dim")
                continue
            except UnicodeDecodeError as error:
                raise DataError(f"standard input is not UTF-8 text ({error.reason}).") from error
            if not self._person and not line:
                return
            if line.strip():
                yield line.rstrip("\r\n")

    def _ask(self, question: str) -> None:
        turn: dict[str, Any] = {"question": question, "answers": {}}
        answers = self.chat.ask(question)
        try:
            with contextlib.closing(answers):
                for piece in answers:
                    said = turn["answers"].setdefault(
                        piece.side, {"text": "", "finish": "stopped", "dropped": 0}
                    )
                    if not piece.text and piece.answer is None:
                        said["dropped"] = piece.dropped
                        self._begin(piece.side, piece.dropped)
                    said["text"] += piece.text
                    self._write(piece.text)
                    if piece.answer is not None:
                        said["finish"] = piece.answer.finish
                        self._write("\n")
                        cut_note(self.output, [piece.answer.finish], self.chat.sampling.max_new_tokens)
        except KeyboardInterrupt:
            if not self._person:
                raise
            self._write("\n")
            self._say("stopped", style="dim")
        except DataError as error:
            self._say(f"{error}")
            turn["error"] = str(error)
        self.turns.append(turn)

    def _begin(self, side: Side, dropped: int) -> None:
        if dropped:
            exchanges = dropped // 2
            self._say(
                "the history is too long for the base: its first "
                f"{'question was' if exchanges == 1 else f'{exchanges} questions were'} dropped"
            )
        if len(self.chat.sides) > 1:
            self._write(f"[{side}] ")

    def _write(self, text: str) -> None:
        if not self.output.json:
            sys.stdout.write(printable(text))
            sys.stdout.flush()

    def _say(self, text: str, style: str = "") -> None:
        self.output.say(text, style=style)

    def _reset(self, _: str) -> None:
        self.chat.reset()
        self._say("forgotten", style="dim")

    def _system(self, text: str) -> None:
        self.chat.system = text
        self._say("a system prompt stands before everything now" if text else "no system prompt", style="dim")

    def _compare(self, what: str) -> None:
        if self.chat.writer.adapted is None:
            self._say("there is no adapter to compare with: this is the base alone")
            return
        ways: dict[str, tuple[Side, ...]] = {
            "adapter": ("adapter",),
            "base": ("base",),
            "both": ("adapter", "base"),
        }
        name = what or ("both" if self.chat.sides == ("adapter",) else "adapter")
        if name not in ways:
            self._say(f"/compare {what}: expected adapter, base or both")
            return
        self.chat.let_answer(*ways[name])
        self._say(f"answering: {' and '.join(ways[name])}", style="dim")
