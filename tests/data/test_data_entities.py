"""Rows of entities: every form that they come in, and the error of every bad one. Oracle for tags: seqeval."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from veneer.data.choices import Notes
from veneer.data.entities import EntityRows, read_entities
from veneer.data.entity_columns import seems_entities
from veneer.data.tables import read_table
from veneer.data.tags import bio_labels, bio_tags, entities_of, recognise, scan_tags
from veneer.data.words import join_words, words_of
from veneer.errors import DataError

CONLL = "EU\tB-ORG\nrejects\tO\nGerman\tB-MISC\ncall\tO\n\t\nPeter\tB-PER\nBlackburn\tI-PER\n\n\nBRUSSELS\tB-LOC\n"


def write(folder: Path, content: str, name: str) -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


def read(path: Path, **options: object) -> tuple[EntityRows, Notes]:
    notes = Notes()
    return read_entities(read_table(path), notes, **options), notes  # type: ignore[arg-type]


def marked(rows: EntityRows) -> list[list[tuple[str, str]]]:
    """The text and type of each entity of each row."""
    found = []
    for row in rows:
        entities = entities_of([rows.names[tag] for tag in row.tags], "BIO")
        found.append([(row.text[row.words[a][0] : row.words[b - 1][1]], kind) for a, b, kind in entities])
    return found


WANTED = [[("EU", "ORG"), ("German", "MISC")], [("Peter Blackburn", "PER")], [("BRUSSELS", "LOC")]]


@pytest.mark.parametrize("name", ["news.conll", "news.txt", "news.tsv", "news.annotated"])
@pytest.mark.parametrize("sign", ["\t", " "])
def test_conll_columns_are_told_by_what_they_hold(tmp_path: Path, name: str, sign: str) -> None:
    rows, notes = read(write(tmp_path, CONLL.replace("\t", sign), name))
    assert marked(rows) == WANTED
    assert notes.counts == {"rows": 3, "empty_texts": 0, "words": 7, "entities": 4}
    assert rows.types == ("LOC", "MISC", "ORG", "PER")
    assert rows.type_counts() == {"LOC": 1, "MISC": 1, "ORG": 1, "PER": 1}
    assert [str(choice) for choice in notes.choices] == [
        "text column: tokens (its name and its cells)",
        "label column: tags (it has a tag for each word of 'tokens')",
        "tags: BIO (B- begins an entity, I- goes on with it)",
    ]


def test_further_columns_and_marks_of_documents(tmp_path: Path) -> None:
    text = "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\nPeter NNP B-NP B-PER\n"
    path = write(tmp_path, text, "eng.train.conll")
    table = read_table(path)
    assert table.columns == ("tokens", "column_2", "column_3", "tags")
    assert marked(read(path)[0]) == [[("EU", "ORG")], [("Peter", "PER")]]
    phrases, _ = read(path, label_column="column_3")
    assert phrases.types == ("NP", "VP")
    named = write(tmp_path, f"# global.columns = FORM XPOS CHUNK NER\n# a comment\n{text}", "named.conll")
    assert read_table(named).columns == ("tokens", "xpos", "chunk", "tags")
    assert marked(read(named)[0]) == marked(read(path)[0])


def test_a_word_may_hold_a_blank_or_be_a_hash(tmp_path: Path) -> None:
    rows, _ = read(write(tmp_path, "New York\tB-loc\n#\tO\n#here\tO\n", "x.conll"))
    assert rows.tokens(0) == ["New York", "#", "#here"]
    assert marked(rows) == [[("New York", "loc")]]


def test_tables_with_a_tag_at_the_end_are_no_conll(tmp_path: Path) -> None:
    for text in ("text,label\nhello there,O\nhow are you,B-x\n", "label\ttext\nham\tgo on\nspam\tyou won\n"):
        table = read_table(write(tmp_path, text, "t.csv"))
        assert "tokens" not in table.columns
        assert seems_entities(table) is None


def test_lists_of_tokens_and_tags(tmp_path: Path) -> None:
    records = [
        {"id": "0", "tokens": ["EU", "rejects", "German", "call"], "ner_tags": ["B-ORG", "O", "B-MISC", "O"]},
        {"id": "1", "tokens": ["Peter", "Blackburn"], "ner_tags": ["B-PER", "I-PER"]},
        {"id": "2", "tokens": [], "ner_tags": []},
        {"id": "3", "tokens": ["BRUSSELS"], "ner_tags": ["B-LOC"]},
    ]
    path = write(tmp_path, "\n".join(map(json.dumps, records)), "rows.jsonl")
    rows, notes = read(path)
    assert marked(rows) == WANTED
    assert rows.rows.tolist() == [0, 1, 3]
    assert notes.counts["empty_texts"] == 1
    assert seems_entities(read_table(path)) == "'tokens' and 'ner_tags' are lists, a tag for each token"
    names = ["O", "B-ORG", "I-ORG", "B-MISC", "I-MISC", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    for record in records:
        record["ner_tags"] = [names.index(tag) for tag in record["ner_tags"]]
    numbered = write(tmp_path, json.dumps(records), "numbered.json")
    assert marked(read(numbered, tag_names=names)[0]) == WANTED
    with pytest.raises(DataError, match=r"holds numbers \(0, 1, 3, 5, 6, 7\).*tag_names"):
        read(numbered)
    with pytest.raises(DataError, match="holds 7; tag_names gives 7 names"):
        read(numbered, tag_names=names[:7])


@pytest.mark.parametrize(
    ("key", "spans"),
    [
        ("spans", [{"start": 3, "end": 11, "label": "LOC"}, {"start": 14, "end": 17, "label": "PER"}]),
        ("entities", [{"start": 14, "end": 18, "type": "PER", "text": "Zoé "}, {"start": 3, "end": 11, "type": "LOC"}]),
        ("ents", [[3, 11, "LOC"], [14, 17, "PER"]]),
    ],
)  # fmt: skip
def test_spans_of_characters(tmp_path: Path, key: str, spans: list[object]) -> None:
    records = [{"text": "In New York, Zoé sang.", key: spans}, {"text": "Nobody.", key: []}]
    records[0]["text"] = "In New York , Zoé sang."
    path = write(tmp_path, json.dumps(records), "spans.json")
    rows, notes = read(path)
    assert marked(rows) == [[("New York", "LOC"), ("Zoé", "PER")], []]
    assert notes.warnings == []
    assert seems_entities(read_table(path)) == f"'{key}' marks spans of 'text'"


def test_spans_that_cut_words_are_widened_and_counted(tmp_path: Path) -> None:
    spans = [{"start": 0, "end": 3, "label": "A"}, {"start": 3, "end": 8, "label": "B"}]
    rows, notes = read(write(tmp_path, json.dumps([{"text": "Newyorkers ran", "spans": spans}]), "x.json"))
    assert marked(rows) == [[("Newyorkers", "A")]]
    assert notes.counts["cut_words"] == 1
    assert notes.counts["lost_spans"] == 1
    assert any("1 span cuts a word and is read as the whole word" in text for text in notes.warnings)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([{"start": 0, "end": 5, "label": "A"}, {"start": 4, "end": 8, "label": "B"}], "row 2: spans overlap: 'A man'"),
        ([{"start": 0, "end": 99, "label": "A"}], r"row 2: the span 0-99 \(A\) does not lie in the text"),
        ([{"start": 2, "end": 2, "label": "A"}], "row 2: the span 2-2"),
        ([{"start": 2, "end": 5, "label": "A", "text": "mon"}], "says 'mon', the text has 'man' there"),
        ([{"start": 2, "end": 5}], "needs whole numbers start and end, and a label"),
        ([{"start": 1, "end": 2, "label": "A"}], "holds blanks only"),
    ],
)  # fmt: skip
def test_spans_that_cannot_be_right(tmp_path: Path, spans: list[object], message: str) -> None:
    records = [
        {"text": "ok", "spans": [{"start": 0, "end": 2, "label": "A"}]},
        {"text": "A man ran", "spans": spans},
    ]
    with pytest.raises(DataError, match=message):
        read(write(tmp_path, json.dumps(records), "bad.json"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("EU\tB-ORG\nrejects\nGerman\tB-MISC\n", r"line 2 \('rejects'\)"),
        ("EU\tB-ORG\nGerman\tMISC\n", "some tags have a prefix such as B- and some have none: 'MISC'"),
        ("EU\tORG-B\nGerman\tMISC-B\n", "end in their prefix"),
        ("EU\tO\nGerman\tO\n", "holds no entity"),
        ("EU\nGerman\n", "its first line of words has 1 column"),
        ("\n\n", "holds no sentences"),
    ],
)
def test_conll_files_that_cannot_be_right(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(write(tmp_path, text, "bad.conll"))


def test_columns_that_are_not_clear(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps([{"tokens": ["a", "b"], "tags": ["O"]}]), "odd.json")
    with pytest.raises(DataError, match="row 1: 2 tokens and 1 tag"):
        read(path)
    with pytest.raises(DataError, match=r"no column 'token'\. Did you mean 'tokens'"):
        read(path, text_column="token")
    plain = write(tmp_path, json.dumps([{"text": "a b", "label": "x"}]), "plain.json")
    with pytest.raises(DataError, match="not clear where the entities are"):
        read(plain)
    with pytest.raises(DataError, match="with 'label' it is not clear"):
        read(plain, label_column="label")


def test_one_bad_row_is_named_and_does_not_make_another_task_of_it(tmp_path: Path) -> None:
    good = {"tokens": ["Ada", "ran"], "ner_tags": ["B-PER", "O"]}
    for bad, message in (
        ({"tokens": ["a", "b"], "ner_tags": ["O"]}, "row 3: 2 tokens and 1 tag"),
        ({"tokens": ["a", "b"], "ner_tags": ["O", None]}, r"row 3: tag 2 is missing \(null\)"),
        ({"tokens": [None, "b"], "ner_tags": ["O", "O"]}, r"row 3: token 1 is missing \(null\)"),
        ({"tokens": ["a", "b"]}, "row 3: 2 tokens and 0 tags"),
    ):
        path = write(tmp_path, json.dumps([good, good, bad, good, good]), "bad.json")
        assert seems_entities(read_table(path)) == "'tokens' and 'ner_tags' are lists, a tag for each token"
        with pytest.raises(DataError, match=message):
            read(path)
    others = [{"tokens": row["tokens"], "labels": row["ner_tags"]} for row in [good] * 9]
    others.append({"tokens": ["a"], "labels": []})
    assert seems_entities(read_table(write(tmp_path, json.dumps(others), "others.json"))) is not None
    unlike = [{"tokens": ["a"] * n, "labels": ["b"]} for n in range(1, 9)]
    assert seems_entities(read_table(write(tmp_path, json.dumps(unlike), "unlike.json"))) is None


def test_lists_without_any_span_are_entities_of_which_there_is_none(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps([{"text": "Ada ran", "spans": []}] * 3), "none.json")
    assert seems_entities(read_table(path)) == "'spans' marks spans of 'text'"
    with pytest.raises(DataError, match="marks no entity"):
        read(path)


# ---- schemes


@pytest.mark.parametrize(
    ("tags", "scheme", "entities"),
    [
        ("B-a I-a O B-b", "BIO", [(0, 2, "a"), (3, 4, "b")]),
        ("B-a E-a S-a O S-b", "BIOES", [(0, 2, "a"), (2, 3, "a"), (4, 5, "b")]),
        ("B-a I-a L-a U-a", "BILOU", [(0, 3, "a"), (3, 4, "a")]),
        ("B-a M-a E-a S-b", "BMES", [(0, 3, "a"), (3, 4, "b")]),
        ("I-a I-a B-a O I-b", "IOB1", [(0, 2, "a"), (2, 3, "a"), (4, 5, "b")]),
        ("a a O creative-work a", "plain", [(0, 2, "a"), (3, 4, "creative-work"), (4, 5, "a")]),
        ("B_a I_a", "BIO", [(0, 2, "a")]),
    ],
)
def test_each_scheme(tags: str, scheme: str, entities: list[tuple[int, int, str]]) -> None:
    row = tags.split()
    found, choice = recognise(scan_tags([row]), "x")
    assert (found, choice.value) == (scheme, scheme)
    assert entities_of(row, found) == entities


TAGS = st.lists(st.sampled_from(["O", "B-a", "I-a", "E-a", "S-a", "B-b", "I-b", "E-b", "S-b"]), max_size=12)


@settings(max_examples=150, deadline=None)
@given(TAGS)
def test_tags_are_read_as_seqeval_reads_them(tags: list[str]) -> None:
    theirs = [(first, last + 1, kind) for kind, first, last in get_entities(tags)] if tags else []
    ours = entities_of(tags, "BIOES")
    assert ours == theirs
    again = bio_tags(len(tags), ours)
    assert entities_of(again, "BIO") == ours
    assert set(again) <= set(bio_labels(kind for _, _, kind in ours))


def test_broken_sequences_are_counted(tmp_path: Path) -> None:
    rows, notes = read(write(tmp_path, "a\tB-x\nb\tI-y\nc\tO\nd\tI-x\n", "broken.conll"))
    assert marked(rows) == [[("a", "x"), ("b", "y"), ("d", "x")]]
    assert notes.counts["broken_entities"] == 2
    assert "2 entities begin with I- and not with B-" in notes.warnings[0]
    _, notes = read(write(tmp_path, "a\tNOUN\nb\tVERB\nc\tNOUN\n", "pos.conll"), label_column="tags")
    assert "no word is tagged O" in notes.warnings[0]


# ---- words


ODD = st.text(
    st.sampled_from("aé中ょ1_ .,'-@#(\t\u00a0\u200b\u200d\u0301\ufe0f👍🏽🇩🇪😀")
    | st.characters(codec="utf-8"),
    max_size=25,
)


def visible(sign: str) -> bool:
    return not (sign.isspace() or unicodedata.category(sign) == "Cc" or sign in "\u200b\ufeff")


@settings(max_examples=200, deadline=None)
@given(ODD, st.sampled_from(["fine", "edges"]))
def test_words_hold_every_visible_sign_once(text: str, rule: str) -> None:
    words = words_of(text, rule)  # type: ignore[arg-type]
    inside = [place for start, end in words for place in range(start, end)]
    assert inside == [place for place, sign in enumerate(text) if visible(sign)]
    assert all(start < end for start, end in words)
    for start, _ in words:  # nothing is cut from the letter that it combines with
        touches = start > 0 and visible(text[start - 1])
        assert not (touches and unicodedata.category(text[start])[0] == "M")
        assert not (touches and text[start - 1] == "\u200d")


@settings(max_examples=100, deadline=None)
@given(st.lists(ODD, max_size=6))
def test_joined_words_come_back(tokens: list[str]) -> None:
    text, places = join_words(tokens)
    assert [text[start:end] for start, end in places] == tokens


@pytest.mark.parametrize(
    ("text", "fine", "edges"),
    [
        ("New York-based, (U.S.)", "New|York|-|based|,|(|U|.|S|.|)", "New|York-based|,|(|U.S|.|)"),
        ("@paul #now don't", "@|paul|#|now|don|'|t", "@paul|#now|don't"),
        ("cafe\u0301s 👩‍👩‍👧 👍🏽 🇩🇪🇫🇷", "cafe\u0301s|👩‍👩‍👧|👍🏽|🇩🇪|🇫🇷", "cafe\u0301s|👩‍👩‍👧|👍🏽|🇩🇪|🇫🇷"),
        ("东京tower", "东|京|tower", "东|京|tower"),
    ],
)  # fmt: skip
def test_what_a_word_is(text: str, fine: str, edges: str) -> None:
    assert [text[a:b] for a, b in words_of(text, "fine")] == fine.split("|")
    assert [text[a:b] for a, b in words_of(text, "edges")] == edges.split("|")


# ---- real files


def test_wnut17_as_it_is(shared_data: Path) -> None:
    sizes = {}
    for name in ("wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated"):
        rows, notes = read(shared_data / "wnut17" / name)
        sizes[name] = (len(rows), notes.counts["entities"])
        assert notes.warnings == []
        tags = [rows.names[int(tag)] for tag in rows.tags.values]
        lines = (shared_data / "wnut17" / name).read_text("utf-8").split("\n")
        assert tags == [line.split("\t")[1] for line in lines if line.strip()]
    # sentences as the shared task's paper counts them (Derczynski et al. 2017, table 3), and entities
    assert sizes == {
        "wnut17train.conll": (3394, 1975), "emerging.dev.conll": (1009, 836), "emerging.test.annotated": (1287, 1079)
    }  # fmt: skip


def test_rows_are_chosen_by_their_places(tmp_path: Path) -> None:
    rows, _ = read(write(tmp_path, CONLL, "x.conll"))
    some = rows.select(np.array([2, 0]), "test")
    assert (some.name, marked(some)) == ("test", [WANTED[2], WANTED[0]])
    assert some.rows.tolist() == [2, 0]
    assert [some.names[label] for label in some.labels] == ["B-LOC", "B-ORG"]
    assert some.prints.tolist() == rows.prints[[2, 0]].tolist()
