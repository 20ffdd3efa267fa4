"""A folder with a train, a validation and a test file in it, as data sets are often published.

    wnut17/wnut17train.conll  emerging.dev.conll  emerging.test.annotated

The files are told by a word of their names. It knows names and no content.
"""

from __future__ import annotations

import re
from pathlib import Path

from veneer.errors import DataError
from veneer.naming import setting

__all__ = ["split_files"]

_WORDS = {
    "train": ("train", "training", "trainset", "trn"),
    "validation": ("validation", "valid", "val", "dev", "devset", "development", "testa"),
    "test": ("test", "testset", "tst", "testb", "eval"),
}
_OTHER = frozenset({".md", ".rst", ".html", ".pdf", ".py", ".sh", ".yaml", ".yml", ".toml", ".cfg", ".png"})


def split_files(folder: Path) -> dict[str, Path]:
    """The files of "train" and, where there are such, of "validation" and "test".

    Raises:
        DataError: none is for training, or several could be the same part.
    """
    files = sorted(
        file
        for file in folder.iterdir()
        if file.is_file() and not file.name.startswith(".") and file.suffix.lower() not in _OTHER
    )
    found: dict[str, list[Path]] = {part: [] for part in _WORDS}
    for file in files:
        parts = [part for part, words in _WORDS.items() if _names(file.name, words)]
        if len(parts) == 1:
            found[parts[0]].append(file)
    listed = ", ".join(file.name for file in files[:8]) or "none"
    if not found["train"]:
        inside = sorted(one.name for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))
        deeper = (
            f" Folders in it ({', '.join(inside[:8])}) are not read: write their texts into one table, a row each."
            if inside and not files
            else ""
        )
        raise DataError(
            f"{folder} is a folder, and no file in it has 'train' in its name (files: {listed}). Give a file, or name "
            f"the files of the folder train, dev and test.{deeper}"
        )
    for part, several in found.items():
        if len(several) > 1:
            names = ", ".join(file.name for file in several)
            raise DataError(
                f"{folder}: several files could be the {part} part: {names}. Give the one to train on as the source, "
                f"and the others with {setting('data.validation')} and {setting('data.test')}."
            )
    return {part: several[0] for part, several in found.items() if several}


def _names(name: str, words: tuple[str, ...]) -> bool:
    """Whether a file's name has one of the words, between signs or digits.

    >>> _names("wnut17train.conll", ("train",)), _names("latest.csv", ("test",)), _names("en_dev-1.json", ("dev",))
    (True, False, True)
    """
    parts = [part for part in re.split(r"[^a-z]+", name.lower()) if part]
    return any(part in words for part in parts)
