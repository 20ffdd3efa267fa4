"""Where the rows come from: a file, a named data set, or the hub; each gives tables, and maybe a fixed split.

    messages.csv         a file
    folder/              a folder with a train file, and maybe a dev and a test file, told by their names
    example              878 support messages in six classes that come with Veneer
    sms-spam             a named data set: downloaded, checked by its hash, cached
    sms-spam:PATH        the same from a local copy (the file, or the folder that holds it)
    sst2, sst2:FOLDER    GLUE's SST-2: from the hub, or from a folder with train.tsv and dev.tsv
    owner/name           a data set of the Hugging Face hub (owner/name:config where it has several)

It knows these sources and no task.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from veneer.data.choices import Choice
from veneer.data.config import DataConfig
from veneer.data.download import Progress, PublishedFile, fetch, sha256_of
from veneer.data.folders import split_files
from veneer.data.split import Parts
from veneer.data.tables import FILE_SUFFIXES, Table, TableOptions, open_stream, read_table
from veneer.errors import ConfigError, DataError, SourceError
from veneer.files import cache_folder
from veneer.naming import setting

__all__ = ["NAMED_SOURCES", "SMS_SPAM", "Loaded", "Source", "balanced_sms", "load_source"]

SMS_SPAM = PublishedFile(
    name="sms-spam",
    addresses=(
        "https://archive.ics.uci.edu/static/public/228/sms+spam+collection.zip",
        "https://f001.backblazeb2.com/file/LLMs-from-scratch/sms%2Bspam%2Bcollection.zip",
    ),
    member="SMSSpamCollection",
    sha256="7d039a24a6083ed9ef0f806ebad56bbb976e3aeb8de05669173bfdc4996c239d",
)
SST2_ROWS = {"train": 67_349, "dev": 872}
_HUB_NAME = re.compile(r"^(hub:)?[\w.-]+/[\w.-]+(:[\w.-]+)?$")


@dataclass(frozen=True)
class Loaded:
    """What a source gives.

    table             the rows to train on; validation and test are split from it where it has none of its own
    fixed             a split that belongs to the source: row numbers of `table`, in their order
    text_column, label_column    where the source knows them
    """

    table: Table
    validation: Table | None = None
    test: Table | None = None
    fixed: Parts | None = None
    text_column: str | None = None
    label_column: str | None = None
    choices: tuple[Choice, ...] = ()
    warnings: tuple[str, ...] = ()


def load_source(config: DataConfig, progress: Progress | None = None) -> Loaded:
    """The tables that `config.source` names. Raises `DataError`, `SourceError` or `MissingExtraError`."""
    name, _, path = config.source.partition(":")
    if name in NAMED_SOURCES:
        return NAMED_SOURCES[name](config, path or None, progress)
    if config.variant is not None:
        raise ConfigError(
            f"{setting('data.variant')} is {config.variant!r}, but {config.source} has no variants; they belong "
            "to a named source. For a local copy of the SMS Spam Collection give sms-spam:PATH as the source."
        )
    local = Path(config.source)
    if not local.exists() and _HUB_NAME.match(config.source) and not _has_known_suffix(local):
        from veneer.data.hub import load_from_hub

        return load_from_hub(config.source.removeprefix("hub:"))
    if local.is_dir():
        return _load_folder(local, config)
    return Loaded(read_table(local, config.table_options()))


def _load_folder(folder: Path, config: DataConfig) -> Loaded:
    parts = split_files(folder)
    wanted = {part: file for part, file in parts.items() if getattr(config, part, None) is None}
    tables = {part: read_table(file, config.table_options()) for part, file in wanted.items()}
    listed = ", ".join(f"{part}: {file.name}" for part, file in wanted.items())
    choice = Choice("source", listed, f"the files of {folder}, by their names")
    return Loaded(tables["train"], tables.get("validation"), tables.get("test"), choices=(choice,))


def _has_known_suffix(path: Path) -> bool:
    return path.suffix.lower() in FILE_SUFFIXES or path.suffix.lower() in (
        ".txt",
        ".xlsx",
        ".xls",
        ".gz",
        ".zip",
    )


def _variant(config: DataConfig, known: tuple[str, ...]) -> str:
    chosen = config.variant or known[0]
    if chosen not in known:
        given = config.source.partition(":")[0]
        raise ConfigError(f"{setting('data.variant')} is {chosen!r}; {given} has: {', '.join(known)}.")
    return chosen


def _load_sms_spam(config: DataConfig, path: str | None, progress: Progress | None) -> Loaded:
    variant = _variant(config, ("full", "balanced"))
    file = _local_sms(Path(path)) if path else fetch(SMS_SPAM, cache_folder("sources", "sms-spam"), progress)
    table = read_table(
        file, TableOptions(format="csv", delimiter="\t", encoding="utf-8", header=False, quoting=True)
    )
    table = replace(table, choices=(), warnings=())  # said better below
    text, label = table.columns[1], table.columns[0]
    warnings = (
        "sms-spam: two messages of the file stand inside of another one's quotes and are read as part of "
        "it, as pandas reads the file (5,572 rows); with the quotes as ordinary characters it has 5,574.",
    )
    if variant == "full":
        choice = Choice(
            "variant",
            "full",
            f"the default of sms-spam; {setting('data.variant', 'balanced')} has 747 of each label",
        )
        return Loaded(table, text_column=text, label_column=label, choices=(choice,), warnings=warnings)
    labels = np.array([cell for piece in table.cells(label) for cell in piece])
    parts = balanced_sms(labels == "spam")
    choice = Choice(
        "split", "70 / 10 / 20 % by position", "the balanced variant of sms-spam fixes it, seed 123"
    )
    return Loaded(
        table, fixed=parts, text_column=text, label_column=label, choices=(choice,), warnings=warnings
    )


def _local_sms(path: Path) -> Path:
    file = path / SMS_SPAM.member if path.is_dir() else path
    if not file.exists():
        raise SourceError(
            f"sms-spam: there is no file {file}. Give the path of {SMS_SPAM.member}, or none to fetch it."
        )
    if sha256_of(file) != SMS_SPAM.sha256:
        raise SourceError(
            f"sms-spam: {file} is not the published {SMS_SPAM.member} (its SHA-256 differs from "
            f"{SMS_SPAM.sha256[:16]}...). To use it as a table of its own give the path alone, without "
            "sms-spam: before it."
        )
    return file


def balanced_sms(spam: np.ndarray[tuple[int], np.dtype[np.bool_]], seed: int = 123) -> Parts:
    """The balanced subset of the book "Build a Large Language Model (From Scratch)", chapter 6.

    As many ham as spam, drawn as pandas' `sample(random_state=seed)` draws; ham first, then spam; shuffled as
    `sample(frac=1, random_state=seed)` does; split 70 / 10 / 20 % by position. spam (n,) bool -> row numbers.
    """
    ham_rows, spam_rows = np.flatnonzero(~spam), np.flatnonzero(spam)
    drawn = np.random.RandomState(seed).choice(len(ham_rows), len(spam_rows), replace=False)
    together = np.concatenate([ham_rows[drawn], spam_rows])
    shuffled = together[np.random.RandomState(seed).choice(len(together), len(together), replace=False)]
    train_end = int(len(shuffled) * 0.7)
    validation_end = train_end + int(len(shuffled) * 0.1)
    train, validation, test = np.split(shuffled.astype(np.int64), [train_end, validation_end])
    return Parts(train, validation, test)


def _load_sst2(config: DataConfig, path: str | None, progress: Progress | None) -> Loaded:  # noqa: ARG001
    _variant(config, ("full",))
    if path is None:
        loaded = _sst2_from_hub()
        train, dev = loaded.table, loaded.validation
    else:
        options = TableOptions(format="tsv", encoding="utf-8", header=True, quoting=False)
        folder = Path(path)
        missing = [name for name in ("train.tsv", "dev.tsv") if not (folder / name).is_file()]
        if missing:
            raise SourceError(
                f"sst2: {folder} holds no {' and no '.join(missing)}; give the folder with GLUE's two files."
            )
        train, dev = read_table(folder / "train.tsv", options), read_table(folder / "dev.tsv", options)
    if dev is None or {"train": len(train), "dev": len(dev)} != SST2_ROWS:
        got = f"{len(train):,} and {len(dev) if dev else 0:,}"
        raise SourceError(
            f"sst2: {got} rows in train and dev, expected 67,349 and 872. The copy is not GLUE's SST-2."
        )
    warning = (
        "sst2: many training rows are phrases cut from the same sentences, so that a validation part split "
        "from them is mostly known (of the short texts of a random 20 % part, 93 % stand in training phrases); "
        "its accuracy is too high. The test on GLUE's 872 sentences is not affected."
    )
    choice = Choice("test", "GLUE's validation set (872)", "the labels of GLUE's own test set are not public")
    return Loaded(train, test=dev, label_column="label", choices=(choice,), warnings=(warning,))


def _sst2_from_hub() -> Loaded:
    from veneer.data.hub import load_from_hub

    try:
        return load_from_hub("stanfordnlp/sst2", class_names=False)
    except SourceError as error:
        raise SourceError(
            f"{error} Or give a folder with GLUE's train.tsv and dev.tsv: sst2:FOLDER"
        ) from None


def _load_example(config: DataConfig, path: str | None, progress: Progress | None) -> Loaded:  # noqa: ARG001
    if path is not None:
        raise SourceError(
            f"example takes no path, {path!r} was given; for a file of yours give its path alone."
        )
    _variant(config, ("full",))
    with as_file(files("veneer").joinpath("examples_data", "support_messages.csv")) as file:
        return Loaded(read_table(file), text_column="message", label_column="category")


NAMED_SOURCES: dict[str, Callable[[DataConfig, str | None, Progress | None], Loaded]] = {
    "example": _load_example,
    "sms-spam": _load_sms_spam,
    "sst2": _load_sst2,
}


def load_own(path: str, config: DataConfig) -> Table:
    """A validation or test file of the user's own."""
    table = read_table(path, config.table_options())
    if not len(table):
        raise DataError(f"{path} holds no rows.")
    return table


_HEAD_CHARACTERS = 4096


class Source:
    """What a person named, looked into as far as is asked for, and each thing once.

    config      as given
    progress    told of downloads
    """

    def __init__(
        self, config: DataConfig, progress: Progress | None = None, table: Table | None = None
    ) -> None:
        self.config, self.progress, self._table = config, progress, table

    @property
    def path(self) -> Path:
        """The source as a path, whether there is such a file or not."""
        return Path(self.config.source)

    @property
    def is_file(self) -> bool:
        """Whether it is a local file, and not a named source or a data set of the hub."""
        return self.path.is_file() and self.config.source not in NAMED_SOURCES

    @property
    def suffix(self) -> str:
        """Of a file, in small letters: ".json"."""
        return self.path.suffix.lower() if self.is_file else ""

    @cached_property
    def head(self) -> str:
        """The first characters of a file; "" where it is none, or no text."""
        if not self.is_file:
            return ""
        with self.path.open("rb") as file:
            raw = file.read(4 * _HEAD_CHARACTERS)
        if b"\0" in raw:
            return ""
        return raw.decode(self.config.encoding or "utf-8", errors="replace").lstrip("\ufeff")[
            :_HEAD_CHARACTERS
        ]

    @cached_property
    def loaded(self) -> Loaded:
        """The whole of it as tables. Raises what `load_source` raises."""
        if self._table is not None:
            return Loaded(self._table)
        return load_source(self.config, self.progress)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns; () where it is no table."""
        try:
            if self.is_file and self._table is None:
                return open_stream(self.path, self.config.table_options()).columns
            return self.loaded.table.columns
        except DataError:
            return ()

    @cached_property
    def kinds(self) -> Mapping[str, str]:
        """Column -> what its cells are (see `Stream`); {} where it is no table."""
        try:
            return self.loaded.table.kinds if self.columns else {}
        except DataError:  # a text whose first lines alone look like a table
            return {}

    @property
    def choices(self) -> tuple[Choice, ...]:
        """What was inferred while the table was read, if it was."""
        if "loaded" not in vars(self):
            return ()
        return (*self.loaded.table.choices, *self.loaded.choices)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was said while the table was read, if it was."""
        if "loaded" not in vars(self):
            return ()
        return (*self.loaded.table.warnings, *self.loaded.warnings)

    def part(self, name: str) -> Source | None:
        """The validation or test part that was named, or that belongs to a named source or a data set of the hub."""
        own = {"validation": self.config.validation, "test": self.config.test}[name]
        if own is not None:
            alone = {"source": own, "validation": None, "test": None, "variant": None}
            return Source(self.config.replace(**alone), self.progress)
        if self.is_file:
            return None
        table = {"validation": self.loaded.validation, "test": self.loaded.test}[name]
        return None if table is None else Source(self.config, self.progress, table)
