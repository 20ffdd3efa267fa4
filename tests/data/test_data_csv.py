"""Delimited files: what is inferred, what comes back, and the error of every bad one."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from veneer.data import csv_rows
from veneer.data.tables import Table, TableOptions, read_table
from veneer.errors import DataError

ROWS = "text,label\nhello there,a\nhow are you,b\n"


def write(folder: Path, content: str | bytes, name: str = "messages.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def column(table: Table, name: str) -> list[str | None]:
    return [cell for piece in table.cells(name) for cell in piece]


def chosen(table: Table) -> dict[str, str]:
    return {choice.what: choice.value for choice in table.choices}


@pytest.mark.parametrize(
    ("sign", "name"), [(",", "comma"), ("\t", "tab"), (";", "semicolon"), ("|", "vertical bar")]
)
def test_each_delimiter_is_found(tmp_path: Path, sign: str, name: str) -> None:
    table = read_table(write(tmp_path, ROWS.replace(",", sign), "messages.txt"))
    assert column(table, "text") == ["hello there", "how are you"]
    assert chosen(table)["delimiter"] == name


def test_commas_in_a_tab_separated_file_do_not_mislead(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "text\tlabel\nyes, well\ta\nno, well\tb\nno, never\tb\n"))
    assert table.columns == ("text", "label")
    assert column(table, "text") == ["yes, well", "no, well", "no, never"]


@pytest.mark.parametrize(
    ("encoding", "content"),
    [
        ("utf-8-sig", ROWS.replace("hello", "héllo").encode("utf-8-sig")),
        ("utf-16", ROWS.replace("hello", "héllo").encode("utf-16")),
        ("cp1252", ROWS.replace("hello", "héllo").encode("cp1252")),
    ],
)
def test_other_encodings_are_read_and_said(tmp_path: Path, encoding: str, content: bytes) -> None:
    table = read_table(write(tmp_path, content))
    assert table.columns == ("text", "label")
    assert (column(table, "text")[0] or "").startswith("héllo")
    assert chosen(table)["encoding"] == encoding


def test_the_reason_for_an_encoding_names_the_line(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, (ROWS + "caf\xe9,a\n").encode("cp1252")))
    assert "line 4 is not valid utf-8" in next(c.reason for c in table.choices if c.what == "encoding")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            (ROWS + "caf\xe9,a\ngr\xfc\xdfe,b\n").encode() + b"caf\xe9,a\n",
            "line 6 is not valid utf-8, though 3 char",
        ),
        (b"text,label\n\x00\xff\x81" + bytes(range(128, 256)), "is a binary file, or damaged: line 2"),
        ((ROWS + "caf\xe9\x81,a\n").encode("latin-1"), "no text in cp1252 (Western European) either"),
        ((ROWS + "привет как дела и что нового,a\n").encode("cp1251"), "can't be told from its bytes"),
        (
            (ROWS + "日本語のテキストを読むための行です,a\n").encode("shift_jis"),
            "can't be told from its bytes",
        ),
    ],
    ids=["mixed", "binary", "no character", "cp1251", "shift_jis"],
)
def test_an_encoding_is_never_guessed(tmp_path: Path, content: bytes, said: str) -> None:
    """Read as cp1252, each of these is a table of wrong letters."""
    path = write(tmp_path, content)
    with pytest.raises(DataError, match=re.escape(said)) as caught:
        read_table(path)
    assert "encoding" in str(caught.value)
    if said.startswith("can't"):
        encoding = "cp1251" if "привет".encode("cp1251") in content else "shift_jis"
        last = column(read_table(path, TableOptions(encoding=encoding)), "text")[-1] or ""
        assert last.startswith(("привет", "日本語"))


def test_utf_16_without_its_mark_is_an_error_when_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not utf-16"):
        read_table(write(tmp_path, ROWS.encode()), TableOptions(encoding="utf-16"))


def test_a_wrong_encoding_that_is_given_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, (ROWS + "caf\xe9,a\n").encode("cp1252"))
    with pytest.raises(DataError, match=r"is not utf-8: line 4 can't be decoded"):
        read_table(path, TableOptions(encoding="utf-8"))
    with pytest.raises(DataError, match=r"Encoding 'utf8000' is not known"):
        read_table(path, TableOptions(encoding="utf8000"))


def test_quotes_and_newlines_inside_fields(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, 'text,label\n"one, two\nthree ""four""",a\r\n"",b\nplain,"b"\n'))
    assert column(table, "text") == ['one, two\nthree "four"', "", "plain"]
    assert column(table, "label") == ["a", "b", "b"]


@pytest.mark.parametrize(
    ("content", "header"),
    [
        ("ham\tgo there now\nspam\twin a prize\nham\tok then\n", False),
        ("label\ttext\nham\tgo\nham\tcome\n", True),
        ("label\ttext\nham\ttext\nham\tcome\n", True),
        ("question\thow are you\nanswer\tfine thanks\nquestion\twhat now\n", False),
        ("1\tgo there\n0\tcome here\n", False),
        ("kind\tphrase\nham\tgo there now\nham\tcome here\n", True),
        ("go there now and then come back here\tx\nno\ty\n", False),
        (",text,label\n0,hello there,a\n1,how are you,b\n", True),
    ],
)
def test_the_header_is_inferred(tmp_path: Path, content: str, header: bool) -> None:
    table = read_table(write(tmp_path, content))
    assert chosen(table)["header"] == ("yes" if header else "no")
    assert len(table) == content.count("\n") - header


def test_a_header_that_is_given_is_not_inferred(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, ROWS), TableOptions(header=False))
    assert table.columns == ("column_1", "column_2")
    assert len(table) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"messages.csv is empty \(0 bytes\)"),
        ("\n\n \n", r"nothing but blank lines"),
        ("text,label\n", r"has a header line \(text, label\) and no rows"),
        (ROWS + "one,two,three\n", r"line 4: 3 fields, expected 2 \(text, label\).*double quotes"),
        (
            ROWS + '"a\nb",a\nlonely\nx,y\nlonely\n',
            r"line 6: 1 field, expected 2 .*and 1 more line.*is missing",
        ),
        (ROWS + 'x,"never closed\nx,y\n', r"quote opened in the row of line 4 is never closed.*quoting=no"),
        (ROWS + '"never closed,x\nx,y\n', r"quote opened in the row of line 4 is never closed"),
        (
            b"PK\x03\x04 a spreadsheet",
            r"a zip archive or an office document; expected csv.*save the table as csv",
        ),
        (b"\x1f\x8b packed", r"is a gzip archive"),
        (b"text,label\nx\0y,a\n", r"binary file, or damaged: line 2 holds a zero byte"),
        ("text,text\na,b\n", r"two columns are named 'text'"),
    ],
)
def test_a_bad_file_is_a_clear_error(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_table(write(tmp_path, content))


def test_a_wrong_delimiter_that_is_given_names_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"with the delimiter ';' every row is a single field. Give ',' \(comma\)"
    ):
        read_table(write(tmp_path, ROWS), TableOptions(delimiter=";"))


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, ROWS, "messages.csv")
    with pytest.raises(DataError, match=r"no file .*mesages.csv. Did you mean 'messages.csv'"):
        read_table(tmp_path / "mesages.csv")
    with pytest.raises(DataError, match=r"Files of that folder: messages.csv"):
        read_table(tmp_path / "zzzzzzz")
    with pytest.raises(DataError, match=r"folder .*nowhere does not exist"):
        read_table(tmp_path / "nowhere" / "x.csv")
    with pytest.raises(DataError, match=r"is a folder; a data file was expected. Files in it: messages.csv"):
        read_table(tmp_path)


def test_a_row_longer_than_a_block_is_an_open_quote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_rows, "BLOCK_BYTES", 4096)
    content = ROWS + 'x,"open\n' + "some words,b\n" * 1000
    with pytest.raises(
        DataError,
        match=r"4,096 characters are no field; most likely a quote opened in the row of line 4 is never closed",
    ):
        read_table(write(tmp_path, content))


def test_a_long_text_is_read_whole(tmp_path: Path) -> None:
    long = "word " * 100_000
    table = read_table(write(tmp_path, f"text,label\n{long},a\nshort,b\n"))
    assert column(table, "text") == [long, "short"]


def test_lines_swallowed_by_quotes_are_said(tmp_path: Path) -> None:
    path = write(tmp_path, 'ham\t"so he said\nspam\twin\nham\twell"\nham\tok\n', "x.tsv")
    table = read_table(path)
    assert len(table) == 2
    assert "2 lines with as many fields as a row stand inside of quoted fields" in table.warnings[0]
    literal = read_table(path, TableOptions(quoting=False))
    assert column(literal, "column_2") == ['"so he said', "win", 'well"', "ok"]


NASTY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=0, max_size=30)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(NASTY, NASTY), min_size=1, max_size=12), sign=st.sampled_from(",\t;|"))
def test_what_the_csv_module_writes_comes_back(
    tmp_path: Path, rows: list[tuple[str, str]], sign: str
) -> None:
    path = tmp_path / "nasty.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=sign, quoting=csv.QUOTE_ALL)
        writer.writerow(["text", "label"])
        writer.writerows(rows)
    table = read_table(path, TableOptions(delimiter=sign))
    assert list(zip(column(table, "text"), column(table, "label"), strict=True)) == rows


def test_sms_spam_reads_as_pandas_reads_it(shared_data: Path) -> None:
    path = shared_data / "sms_spam" / "SMSSpamCollection"
    ours = read_table(path)
    theirs = pd.read_csv(path, sep="\t", header=None, names=["label", "text"])
    assert len(ours) == len(theirs) == 5572
    assert column(ours, "column_1") == theirs["label"].tolist()
    assert column(ours, "column_2") == theirs["text"].tolist()


def test_rows_are_taken_in_any_order(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "text,label\n" + "".join(f"text {i},{i % 3}\n" for i in range(1000))))
    rows = np.array([999, 0, 500, 500], np.int64)
    assert table.take("text", rows) == ["text 999", "text 0", "text 500", "text 500"]
    assert table.row(7) == {"text": "text 7", "label": "1"}


def test_a_row_longer_than_a_block_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_rows, "BLOCK_BYTES", 4096)
    words = "word " * 700
    with pytest.raises(DataError, match=r"a row is longer than 4,096 bytes; .*jsonl or parquet"):
        read_table(write(tmp_path, "text,b,c,d,label\na b,c,d,e,a\n" + f"{words}," * 4 + "a\n"))


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(
        st.binary(max_size=200),
        st.text(alphabet='ab,;\t|"\n\r ', max_size=80).map(str.encode),
        st.text(max_size=60).map(str.encode),
    ),
    suffix=st.sampled_from([".csv", ".tsv", ".json", ".jsonl", ".parquet", ""]),
)
def test_any_bytes_are_a_table_or_a_clear_error(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"fuzzed{suffix}"
    path.write_bytes(content)
    try:
        table = read_table(path)
    except DataError as error:
        said = str(error)
    else:
        said = f"{path} holds {len(table)} rows"
        assert len(table) > 0
    assert path.name in said


def test_a_note_to_excel_is_no_row(tmp_path: Path) -> None:
    for begin in ("sep=;", '"sep=;"', "\ufeffsep=;"):
        with pytest.raises(DataError, match=r"begins with a note to Excel .*sep=;.* Remove that line"):
            read_table(write(tmp_path, begin + "\r\n" + ROWS.replace(",", ";")))
    assert len(read_table(write(tmp_path, "sep=;x,label\n" + ROWS))) >= 3  # an ordinary first cell
