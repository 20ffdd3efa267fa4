"""One file out of a published zip archive: from the first address that answers, checked by its hash, then
cached.

It knows addresses and bytes, and nothing of what the file means.
"""

from __future__ import annotations

import hashlib
import http.client
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from veneer.errors import SourceError
from veneer.files import replacing_file

__all__ = ["Progress", "PublishedFile", "fetch", "sha256_of"]

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are done and, where it is known, how many there will be."""

_CHUNK = 1 << 16


@dataclass(frozen=True)
class PublishedFile:
    """A file inside of a zip archive on the network.

    addresses   of the archive; tried in turn
    member      the file's name in the archive
    sha256      of the file, not of the archive
    """

    name: str
    addresses: tuple[str, ...]
    member: str
    sha256: str


def sha256_of(path: Path) -> str:
    """The file's SHA-256, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(
    file: PublishedFile, folder: Path, progress: Progress | None = None, timeout_s: float = 30.0
) -> Path:
    """The file's path in `folder`, downloaded if it is not there yet.

    Raises `SourceError` where no address answers or the content is not the expected one; then nothing is
    kept.
    """
    target = folder / file.member
    if target.exists():
        if sha256_of(target) == file.sha256:
            return target
        target.unlink()  # damaged since it was stored
    faults: list[str] = []
    for address in file.addresses:
        try:
            with tempfile.TemporaryDirectory(dir=folder) as scratch, replacing_file(target) as temporary:
                archive = Path(scratch) / "archive.zip"
                _download(address, archive, progress, timeout_s)
                _extract(archive, file, temporary)
        except (OSError, http.client.HTTPException, zipfile.BadZipFile, _WrongContentError) as error:
            faults.append(f"{address}: {_reason(error)}")
        else:
            return target
    tried = "; ".join(faults)
    raise SourceError(
        f"The data set {file.name} could not be downloaded ({tried}). "
        f"Get the file {file.member} in another way and give its path: {file.name}:PATH"
    )


class _WrongContentError(Exception):
    """What came is not what was published."""


def _download(address: str, target: Path, progress: Progress | None, timeout_s: float) -> None:
    request = urllib.request.Request(address, headers={"User-Agent": "veneer"})
    with urllib.request.urlopen(request, timeout=timeout_s) as answer, target.open("wb") as file:
        length = answer.headers.get("Content-Length")
        total = int(length) if length and length.isdigit() else None
        done = 0
        while chunk := answer.read(_CHUNK):
            file.write(chunk)
            done += len(chunk)
            if progress:
                progress(done, total)
    if total is not None and done != total:
        raise _WrongContentError(f"the connection broke after {done:,} of {total:,} bytes")


def _extract(archive: Path, file: PublishedFile, target: Path) -> None:
    with zipfile.ZipFile(archive) as content:
        found = [name for name in content.namelist() if name.rsplit("/", 1)[-1] == file.member]
        if not found:
            raise _WrongContentError(f"the archive holds no {file.member}")
        with content.open(found[0]) as source, target.open("wb") as out:
            while chunk := source.read(_CHUNK):
                out.write(chunk)
    if (got := sha256_of(target)) != file.sha256:
        raise _WrongContentError(
            f"{file.member} has the SHA-256 {got[:16]}..., expected {file.sha256[:16]}..."
        )


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}"
    if isinstance(error, urllib.error.URLError):
        return str(error.reason)
    return str(error) or type(error).__name__
