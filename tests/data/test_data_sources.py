"""Named data sets: the recipes' exact rows against pandas, downloads against a server of our own, the hub."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pandas as pd
import pytest

from veneer.data import download, sources
from veneer.data.choices import Notes
from veneer.data.config import DataConfig
from veneer.data.download import PublishedFile, fetch
from veneer.data.entities import read_entities
from veneer.data.prepare import prepare
from veneer.data.sources import load_source
from veneer.errors import ConfigError, DataError, MissingExtraError, SourceError

CONTENT = b"ham\thello\nspam\twin\n"


def zipped(content: bytes, member: str = "folder/SMSSpamCollection") -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("readme", "about")
        archive.writestr(member, content)
    return packed.getvalue()


ANSWERS = {
    "/good.zip": zipped(CONTENT),
    "/wrong.zip": zipped(b"something else"),
    "/other.zip": zipped(CONTENT, "other"),
    "/broken.zip": b"PK\x03\x04 not really",
    "/short.zip": zipped(CONTENT),
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        answer = ANSWERS.get(self.path)
        if answer is None:
            self.send_error(503)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer) + (100 if self.path == "/short.zip" else 0)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


def published(*addresses: str) -> PublishedFile:
    return PublishedFile("sms-spam", addresses, "SMSSpamCollection", hashlib.sha256(CONTENT).hexdigest())


def test_the_second_address_stands_in_for_the_first(server: str, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    file = published(f"{server}/down.zip", f"{server}/wrong.zip", f"{server}/good.zip")
    path = fetch(file, tmp_path, lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert [p.name for p in tmp_path.iterdir()] == ["SMSSpamCollection"]
    n = len(ANSWERS["/good.zip"])
    assert seen[-1] == (n, n)


def test_what_is_cached_is_not_fetched_again_and_what_is_damaged_is(server: str, tmp_path: Path) -> None:
    path = fetch(published(f"{server}/good.zip"), tmp_path)
    assert fetch(published(f"{server}/down.zip"), tmp_path) == path
    path.write_bytes(b"damaged")
    assert fetch(published(f"{server}/good.zip"), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("/down.zip", r"HTTP 503"),
        ("/wrong.zip", r"SMSSpamCollection has the SHA-256 \w{16}..., expected \w{16}"),
        ("/other.zip", r"holds no SMSSpamCollection"),
        ("/broken.zip", r"not a zip file"),
        ("/short.zip", r"connection broke|IncompleteRead"),
    ],
)
def test_a_failed_download_says_why_and_leaves_nothing(
    server: str, tmp_path: Path, address: str, reason: str
) -> None:
    with pytest.raises(SourceError, match=rf"sms-spam could not be downloaded .*({reason}).*sms-spam:PATH"):
        fetch(published(server + address), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_named_source_uses_the_cache_folder(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VENEER_CACHE", str(tmp_path))
    monkeypatch.setattr(sources, "SMS_SPAM", published("http://127.0.0.1:9/x.zip", f"{server}/good.zip"))
    assert len(load_source(DataConfig(source="sms-spam")).table) == 2
    assert (tmp_path / "sources" / "sms-spam" / "SMSSpamCollection").read_bytes() == CONTENT


def test_the_published_hash_is_that_of_the_shared_file(shared_data: Path) -> None:
    file = shared_data / "sms_spam" / "SMSSpamCollection"
    assert download.sha256_of(file) == sources.SMS_SPAM.sha256
    assert len(sources.SMS_SPAM.addresses) == 2


def test_the_balanced_split_has_the_rows_that_pandas_draws(shared_data: Path) -> None:
    file = shared_data / "sms_spam" / "SMSSpamCollection"
    frame = pd.read_csv(file, sep="\t", header=None, names=["Label", "Text"])
    spam = frame[frame["Label"] == "spam"]
    ham = frame[frame["Label"] == "ham"].sample(len(spam), random_state=123)
    balanced = pd.concat([ham, spam]).sample(frac=1, random_state=123).reset_index(drop=True)
    expected = {"train": balanced[:1045], "validation": balanced[1045:1194], "test": balanced[1194:]}

    prepared = prepare(DataConfig(source=f"sms-spam:{file}", variant="balanced"))
    assert {split.name: len(split) for split in prepared.splits} == {
        "train": 1045,
        "validation": 149,
        "test": 300,
    }
    assert prepared.labels == ("ham", "spam")
    for split in prepared.splits:
        assert split.texts() == expected[split.name]["Text"].tolist()
        assert [prepared.labels[i] for i in split.labels] == expected[split.name]["Label"].tolist()
    assert any("with a copy in training; kept" in warning for warning in prepared.warnings)


def test_the_full_collection(shared_data: Path) -> None:
    prepared = prepare(DataConfig(source=f"sms-spam:{shared_data / 'sms_spam'}"))
    totals = {
        name: sum(prepared.label_counts(split)[name] for split in prepared.splits) for name in prepared.labels
    }
    assert totals == {"ham": 4825, "spam": 747}
    plain = prepare(DataConfig(source=str(shared_data / "sms_spam" / "SMSSpamCollection")))
    assert plain.content_hash == prepared.content_hash


def test_sst2_from_a_folder(shared_data: Path) -> None:
    loaded = load_source(DataConfig(source=f"sst2:{shared_data / 'sst2'}"))
    assert len(loaded.table) == 67_349
    prepared = prepare(DataConfig(source=f"sst2:{shared_data / 'sst2'}", max_rows=3000))
    assert len(prepared.test) == 872
    assert prepared.columns.text == "sentence"
    assert prepared.test.text_column == "content"
    assert (prepared.labels, prepared.label_set.kind) == (("0", "1"), "int")
    dev = pd.read_csv(shared_data / "sst2" / "dev.tsv", sep="\t", quoting=3)
    assert prepared.test.texts() == dev["content"].tolist()
    assert prepared.test.labels.tolist() == dev["label"].tolist()
    assert any("93 %" in warning for warning in prepared.warnings)


def test_a_wrong_local_copy_is_refused(tmp_path: Path) -> None:
    (tmp_path / "SMSSpamCollection").write_bytes(CONTENT)
    with pytest.raises(SourceError, match=r"is not the published SMSSpamCollection"):
        load_source(DataConfig(source=f"sms-spam:{tmp_path}"))
    with pytest.raises(SourceError, match=r"there is no file .*nowhere"):
        load_source(DataConfig(source=f"sms-spam:{tmp_path / 'nowhere'}"))
    with pytest.raises(SourceError, match=r"holds no train.tsv and no dev.tsv"):
        load_source(DataConfig(source=f"sst2:{tmp_path}"))
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text("label\tsentence\n1\tgood\n")
    with pytest.raises(SourceError, match=r"1 and 1 rows .* expected 67,349 and 872"):
        load_source(DataConfig(source=f"sst2:{tmp_path}"))


def test_variants_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"variant is 'blanced'; sms-spam has: full, balanced"):
        load_source(DataConfig(source="sms-spam", variant="blanced"))
    with pytest.raises(ConfigError, match=r"has no variants.*sms-spam:PATH"):
        load_source(DataConfig(source=str(tmp_path / "x.csv"), variant="balanced"))


def test_a_missing_file_with_a_suffix_is_no_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("messages.csv", "news.conll", "news.iob"):
        with pytest.raises(DataError, match=rf"There is no file data/{name}"):
            load_source(DataConfig(source=f"data/{name}"))


def test_the_hub_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"owner/name .*veneer\[hub\]"):
        load_source(DataConfig(source="owner/name"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """`datasets.load_dataset` answering from a dictionary; the data sets themselves are the library's own."""
    datasets = pytest.importorskip("datasets", reason="the extra 'hub' is not installed")
    known: dict[str, object] = {}

    def load(name: str, config: str | None = None) -> object:
        assert config in (None, "plain")
        if name not in known:
            raise FileNotFoundError(f"Couldn't reach {name!r}")
        return known[name]

    monkeypatch.setattr(datasets, "load_dataset", load)
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )

    def part(n: int, label: int | None = None) -> object:
        labels = [i % 2 if label is None else label for i in range(n)]
        return datasets.Dataset.from_dict(
            {"text": [f"some words {n} {i}" for i in range(n)], "label": labels}, features
        )

    known["owner/name"] = datasets.DatasetDict(
        {"train": part(50), "validation": part(10), "test": part(12, -1)}
    )
    known["owner/tested"] = datasets.DatasetDict({"train": part(50), "test": part(12)})
    return known


def test_a_hub_data_set_comes_with_its_splits_and_class_names(hub: dict[str, object]) -> None:
    assert hub
    prepared = prepare(DataConfig(source="owner/name"))
    assert prepared.labels == ("no", "yes")
    sizes = {split.name: len(split) for split in prepared.splits}
    assert sizes == {"train": 40, "validation": 10, "test": 10}  # the test of the hub holds no labels
    assert len(prepare(DataConfig(source="hub:owner/tested")).test) == 12


def test_a_hub_data_set_that_cannot_be_had(hub: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(SourceError, match=r"owner/nothing can't be had: Couldn't reach.*give a local file"):
        load_source(DataConfig(source="owner/nothing"))
    with pytest.raises(SourceError, match=r"stanfordnlp/sst2 .*sst2:FOLDER"):
        load_source(DataConfig(source="sst2"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SourceError, match=r"not in the cache and HF_HUB_OFFLINE is set"):
        load_source(DataConfig(source="owner/nothing"))


def test_lists_of_class_labels_get_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra 'hub' is not installed")
    tags = datasets.Sequence(datasets.ClassLabel(names=["O", "B-per", "I-per"]))
    features = datasets.Features({"tokens": datasets.Sequence(datasets.Value("string")), "ner_tags": tags})
    rows = {"tokens": [["Ada", "Lovelace", "ran"], ["so"]], "ner_tags": [[1, 2, 0], [0]]}
    found = datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features=features)})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: found)
    table = load_source(DataConfig(source="owner/entities")).table
    notes = Notes()
    entities = read_entities(table, notes)
    assert [entities.names[tag] for tag in entities[0].tags] == ["B-per", "I-per", "O"]
    assert (table.kinds["ner_tags"], notes.counts["entities"]) == ("list", 1)
