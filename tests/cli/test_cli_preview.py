"""What the preview says and shows: lines that end between tokens, cuts, counts, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import Done, veneer
from rich.cells import cell_len
from rich.text import Text

from bases import tiny_bert
from instruction_cases import instruction_file, writing_base
from veneer.cli.preview import _broken, _styled
from veneer.data.preview import ShownToken


@pytest.mark.parametrize(
    "tokens", [["ab", "cde", "f", "ghij"] * 6, ["字字字", "b"] * 9, ["x" * 30, "y"], ["a"], []]
)
@pytest.mark.parametrize("width", [8, 11, 100])
def test_lines_are_broken_between_tokens(tokens: list[str], width: int) -> None:
    line, starts = Text(), []
    for token in tokens:
        starts.append(len(line))
        line.append(token)
    parts = [part.plain for part in _broken(line, starts, width)]
    assert "".join(parts) == "".join(tokens)
    begins = {0, *starts}
    at = 0
    for part in parts:
        assert at in begins
        assert cell_len(part) <= width or part in tokens
        at += len(part)
    assert (len(parts) > 1) == (cell_len(line.plain) > width)


def tokens_of(table: Path, base: Path, *more: object) -> Done:
    return veneer("preview", table, "--base", base, "--examples", 1, *more)


def test_a_table_in_a_text_file_is_told_why_it_is_none(tmp_path: Path) -> None:
    (tmp_path / "table.txt").write_text(
        "text\tlabel\n" + "".join(f"hello {n}\ta\n" for n in range(60)), "utf-8"
    )
    done = veneer("preview", tmp_path / "table.txt", "--base", tiny_bert(tmp_path / "base"))
    assert done.code == 2
    assert "The task is instructions because: a file of text (.txt); --task NAME says another." in done.err


def test_cuts_are_said_with_their_side_and_what_the_loss_reads_is_counted(tmp_path: Path) -> None:
    base, table = writing_base(tmp_path / "base"), instruction_file(tmp_path / "rows.json", 24)
    whole = tokens_of(table, base, "--json").json
    done = tokens_of(table, base)
    stats, loss = whole["lengths"]["train"], whole["loss_tokens"]["train"]
    assert whole["read_tokens"]["train"] == stats["total"]
    share = f"{100 * loss / stats['total']:.1f} %"
    assert f"the loss reads {loss:,} of {stats['total']:,} tokens ({share})" in done.out
    assert loss == sum(
        sum(token["target"] for token in one["tokens"])
        for one in veneer("preview", table, "--base", base, "--examples", 99, "--json").json["examples"]
    )
    cut = " ".join(tokens_of(table, base, "--max-length", 180).out.split())
    assert "that are read: the beginning of a longer example is not seen (--set options.cut=left)" in cut


def test_texts_in_blocks_are_not_said_to_be_cut(tmp_path: Path) -> None:
    base, book = writing_base(tmp_path / "base"), tmp_path / "book.txt"
    book.write_text("\n\n".join(f"A day, the {n}th of them, and a long one." for n in range(20)))
    done = tokens_of(book, base, "--max-length", 16)
    assert "longer than the 16 that are read: they are read in parts" in " ".join(done.out.split())


def test_rows_that_are_left_out_are_said(tmp_path: Path) -> None:
    base, table = writing_base(tmp_path / "base"), tmp_path / "rows.json"
    rows = [{"instruction": "" if n in (3, 7) else f"Do {n}.", "output": f"Done {n}."} for n in range(20)]
    table.write_text(json.dumps(rows))
    assert "2 rows with no text left out." in tokens_of(table, base).err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--column", "instructon=instruction"], "no column 'instructon'. Did you mean 'instruction'"),
        (["--task", "classification", "--column", "instruction=instruction"], "It is another task's (--task)"),
        (["--column", "prompt=instruction", "--column", "input=input"], "beside which input is not read"),
        (["--task", "classification", "--loss", "all"], "There are none to set here"),
        (["--test", "SAME"], "each example stands in the validation or test file as well"),
        (["--template", "EMPTY"], "writes nothing of the answer"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_refused(tmp_path: Path, more: list[str], said: str) -> None:
    base, table = writing_base(tmp_path / "base"), instruction_file(tmp_path / "rows.json", 24)
    (tmp_path / "empty.jinja").write_text("{{ messages[0].content }}")
    files = {"SAME": str(table), "EMPTY": str(tmp_path / "empty.jinja")}
    done = tokens_of(table, base, *(files.get(word, word) for word in more))
    assert done.code == 2
    assert said in done.err


def test_a_special_token_that_is_cut_off_is_struck_out() -> None:
    kept, cut = (
        _styled(ShownToken("<|im_start|>", special=True, read=read), 0, bar=False) for read in (True, False)
    )
    assert kept[0] == cut[0] == "<im_start>"
    assert ("strike" in kept[1], "strike" in cut[1]) == (False, True)


def test_whole_shows_every_token(tmp_path: Path) -> None:
    base, table = writing_base(tmp_path / "base"), instruction_file(tmp_path / "rows.json", 24)
    assert " more ... " in tokens_of(table, base).out
    done = tokens_of(table, base, "--whole")
    assert " more" not in done.out
    shown = "".join(
        "".join(line.split("|")).strip() for line in done.out.splitlines() if line.startswith("  ")
    )
    (one,) = tokens_of(table, base, "--json").json["examples"]
    prompt = "".join(token["text"] for token in one["tokens"] if not token["target"])
    assert prompt.replace(" ", "·").replace("\n", "⏎") in shown
