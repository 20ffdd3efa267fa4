"""Answers to a file of prompts: each kept as soon as it stands, the whole file written at the end or not at all.

    write_file(lambda: load_writer("adapters/letters"), "new.jsonl", "answers.jsonl", sampling=Sampling())

Writing takes long, so the answers of a run that is stopped wait beside the file (`.answers.jsonl.partial`), and the
same command goes on from there. Every prompt draws by its own row number; where an answer stands in a batch does not
matter. This file knows rows and writers; it knows no terminal.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from veneer.data.choices import Choice
from veneer.data.conversations import Turn
from veneer.data.prompts import PromptFile, read_prompts
from veneer.data.tables import TableOptions
from veneer.engine.generation import Sampling
from veneer.errors import CheckpointError, DataError, Interrupted
from veneer.files import replacing_file, writing_to
from veneer.models.hashing import file_hash
from veneer.naming import setting
from veneer.tasks.answering import check_out
from veneer.tasks.rendered import Rendering
from veneer.tasks.row_files import free_name, row_writer
from veneer.tasks.writing import Writer, warn_of_hidden

__all__ = ["Written", "write_file"]

CHUNK = 256
"""Prompts that are in memory, and sorted by their length, at a time."""

_KEYS = ("answer", "finish")


@dataclass(frozen=True)
class Written:
    """What was done.

    Attributes:
        rows: of the file.
        empty: of which had no prompt, and got no answer.
        resumed: answers that an earlier run had left.
        new_tokens: of all answers.
        finish: how many answers ended for which reason.
        columns: names of the new columns.
    """

    rows: int
    empty: int
    resumed: int
    new_tokens: int
    finish: Mapping[str, int]
    columns: tuple[str, ...]


def write_file(
    load: Callable[[], Writer],
    source: str | Path,
    out: str | Path,
    *,
    sampling: Sampling,
    columns: Mapping[str, str] | None = None,
    options: TableOptions | None = None,
    system: str = "",
    raw: bool = False,
    overwrite: bool = False,
    fresh: bool = False,
    say: Callable[[Sequence[Choice]], None] = lambda _: None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Written:
    """Write the rows of `source` with an answer to each prompt to `out`, whose suffix tells the format.

    Args:
        load: gives the writer; called when `source` and `out` were looked at.
        source: see `read_prompts`.
        out: .csv, .tsv or .jsonl.
        sampling: how answers are made.
        columns: role -> column, where names don't say.
        options: how `source` is written; None: inferred.
        system: a system prompt for every row that has none of its own.
        raw: prompts are texts that go on as they stand.
        overwrite: replace a file that stands there.
        fresh: discard what an earlier run left.
        say: told what was inferred about the file.
        progress: told the rows that are done and their number.

    Raises:
        DataError: `source` can't be read, or a prompt is too long: before any is answered.
        UserMistake: `out` exists, or its suffix is not known.
        CheckpointError: an earlier run with other settings was stopped.
        Interrupted: Ctrl-C; what was answered is kept.
    """
    source, out = Path(source), Path(out)
    check_out(out, source, overwrite=overwrite)
    prompts = read_prompts(source, columns, options)
    say(prompts.choices)
    writer = load()
    rows = _Rows(prompts, writer, system, raw)
    total = rows.check()
    identity = _identity(rows, sampling)
    kept = _Kept(out.with_name(f".{out.name}.partial"), identity, fresh=fresh)
    resumed = len(kept.answers)
    try:
        with kept:
            _answer(rows, sampling, kept, lambda done: progress(done, total))
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped with {len(kept.answers):,} of {total:,} prompts answered. They are kept; the same command goes "
            "on."
        ) from None
    names = _finish(prompts, out, kept.answers)
    kept.path.unlink()
    answered = kept.answers.values()
    return Written(
        rows=total,
        empty=total - len(kept.answers),
        resumed=resumed,
        new_tokens=sum(answer["new_tokens"] for answer in answered),
        finish=dict(Counter(answer["finish"] for answer in answered)),
        columns=names,
    )


class _Rows:
    """The prompts of a file as token ids."""

    def __init__(self, prompts: PromptFile, writer: Writer, system: str, raw: bool) -> None:
        self.prompts, self.writer, self.system, self.raw = prompts, writer, system, raw

    def __iter__(self) -> Iterator[tuple[int, Rendering | None]]:
        """(row from 0, tokens) of each prompt; None where there is none."""
        for row, (_, turns) in enumerate(self.prompts):
            try:
                yield row, self.writer.rendered(self._with_system(turns), raw=self.raw) if turns else None
            except DataError as error:
                raise DataError(f"{self.prompts.path}, row {row + 1:,}: {error}") from error

    def check(self) -> int:
        """The number of rows; raises `DataError` for a prompt that can't be answered, before hours of others are.

        Words that the template writes nothing of are logged as a warning.
        """
        limit, rows = self.writer.base.max_length, 0
        hidden: Counter[str] = Counter()
        for row, prompt in self:
            rows += 1
            if prompt is None:
                continue
            hidden.update(prompt.hidden)
            tokens = len(prompt.parts[-1].ids)
            if tokens >= limit:
                raise DataError(
                    f"{self.prompts.path}, row {row + 1:,}: the prompt has {tokens:,} tokens; the base reads "
                    f"{limit:,} at most, answer and all. Shorten or remove it."
                )
        warn_of_hidden(hidden, rows)
        return rows

    def _with_system(self, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
        if not self.system or turns[0].role == "system":
            return turns
        return (Turn("system", self.system), *turns)


class _Kept:
    """Answers on disk, a line of JSON each, behind a line that says what they belong to."""

    def __init__(self, path: Path, identity: Mapping[str, Any], *, fresh: bool) -> None:
        self.path = path
        self.answers: dict[int, dict[str, Any]] = {}
        self._file: IO[str] | None = None
        if fresh or not self._read(identity):
            self.answers = {}
            with writing_to(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(identity) + "\n", encoding="utf-8")

    def __enter__(self) -> _Kept:
        self._file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()

    def put(self, row: int, answer: dict[str, Any]) -> None:
        """Keep the answer of a row."""
        assert self._file is not None
        with writing_to(self.path):
            self._file.write(json.dumps({"row": row, **answer}) + "\n")
            self._file.flush()
        self.answers[row] = answer

    def _read(self, identity: Mapping[str, Any]) -> bool:
        """Take over what an earlier run left; False where there is nothing of use."""
        if not self.path.is_file():
            return False
        lines = self.path.read_text(encoding="utf-8").split("\n")
        try:
            found = json.loads(lines[0])
        except ValueError:
            return False  # killed before it had said what it is
        differs = [key for key in identity if found.get(key) != identity[key]]
        if differs:
            raise CheckpointError(
                f"{self.path} holds the answers of a run that was stopped, with another {', '.join(differs)}. Give "
                f"the same command as then to go on, or {setting('call.fresh', True)} to discard them."
            )
        for line in lines[1:-1]:  # the last one is empty, or half a line
            answer = json.loads(line)
            self.answers[answer.pop("row")] = answer
        if lines[-1]:
            whole = "".join(f"{line}\n" for line in lines[:-1])
            with replacing_file(self.path) as path:
                path.write_text(whole, encoding="utf-8")
        return True


def _identity(rows: _Rows, sampling: Sampling) -> dict[str, Any]:
    """What answers depend on: those of a run that was stopped are gone on from where all of it is the same."""
    prompts, writer = rows.prompts, rows.writer
    return {
        "source": file_hash(prompts.path),
        "columns": dict(prompts.roles),
        "written": [*(vars(prompts.options) if prompts.options else {}).values()],
        "system": rows.system,
        "raw": rows.raw,
        "base": writer.base.content_hash,
        "adapter": None if writer.adapted is None else _adapter_hash(writer),
        "template": writer.template.to_dict(),
        "sampling": sampling.model_dump(mode="json"),
    }


def _answer(rows: _Rows, sampling: Sampling, kept: _Kept, progress: Callable[[int], None]) -> None:
    """Answer the prompts that have no answer yet; `progress` is told how many have one."""
    waiting = (
        (row, prompt.parts[-1].ids) for row, prompt in rows if prompt is not None and row not in kept.answers
    )
    done = len(kept.answers)
    while chunk := list(islice(waiting, CHUNK)):
        numbers, prompts = [row for row, _ in chunk], [ids for _, ids in chunk]
        for piece in rows.writer.generator.stream(prompts, sampling, rows=numbers, pieces=False):
            if piece.answer is not None:
                answer = piece.answer
                kept.put(
                    numbers[piece.row],
                    {"answer": answer.text, "finish": answer.finish, "new_tokens": len(answer.ids)},
                )
                done += 1
                progress(done)


def _finish(prompts: PromptFile, out: Path, answers: Mapping[int, Mapping[str, Any]]) -> tuple[str, ...]:
    """Write the file; the names of the new columns."""
    names = {key: free_name(key, prompts.columns) for key in _KEYS}
    nothing = dict.fromkeys(_KEYS)
    with replacing_file(out) as path, path.open("w", encoding="utf-8", newline="") as file:
        put = row_writer(file, out.suffix.lower(), prompts.columns, prompts.kinds, tuple(names.values()))
        for row, (cells, _) in enumerate(prompts):
            answer = answers.get(row, nothing)
            put(cells, {names[key]: answer[key] for key in _KEYS})
    return tuple(names.values())


def _adapter_hash(writer: Writer) -> str:
    """Of the adapter's weights as they are attached."""
    import hashlib

    from veneer.lora import adapter_state_dict

    digest = hashlib.sha256()
    for name, tensor in adapter_state_dict(writer.base.model).items():
        digest.update(name.encode())
        digest.update(tensor.float().cpu().numpy().tobytes())
    return "sha256:" + digest.hexdigest()
