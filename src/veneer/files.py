"""Files that are either the old one or the new one, never half: atomic writes; and where the cache lies.

It knows the file system only.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from veneer.errors import ConfigError, UserMistake, VeneerError
from veneer.naming import setting

__all__ = [
    "cache_folder",
    "cache_root",
    "only_one",
    "refuse_existing",
    "replacing_file",
    "replacing_folder",
    "write_bytes",
    "write_text",
    "writing_to",
]

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
_NO_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT)
"""What the system says where no file can be."""

_NO_FOLDER = (errno.ENOTDIR, errno.EEXIST)
"""What it says where a folder is wanted and a file stands."""

_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def cache_root() -> Path:
    """Where Veneer keeps what can be had again: $VENEER_CACHE, else $XDG_CACHE_HOME/veneer, else ~/.cache/veneer."""
    named = os.environ.get("VENEER_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "veneer"


def cache_folder(*parts: str) -> Path:
    """A folder below `cache_root`, created.

    Raises:
        ConfigError: it can't be made there.
    """
    folder = cache_root().joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"The cache folder {folder} can't be made: {error.strerror}. "
            "Set VENEER_CACHE to a folder that you may write to."
        ) from error
    return folder


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Inside, no other process on this machine is inside for the same path. A process that dies lets go of it.

    What is locked is a file in the cache, so that nothing is left beside `path`.

    Raises:
        UserMistake: another process is inside.
    """
    name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:40]
    with (cache_folder("locks") / name).open("a+b") as file:
        try:
            _lock(file.fileno())
        except OSError as error:
            raise UserMistake(
                f"Another process is writing {path} at this moment. Wait for it, stop it, or choose another place "
                f"with {setting('call.out')}."
            ) from error
        yield


def _lock(handle: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole: to a temporary name beside it, to the disk, then renamed into place.

    Raises:
        VeneerError: the disk is full or the place can't be written; an older file of that name is untouched.
    """
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode("utf-8"))


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """A new, empty file to write to, piece by piece, which becomes `path` when the block ends without an error.

    Raises:
        VeneerError: the disk is full or the place can't be written; an older file of that name is untouched.
    """
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            _sync(temporary)
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A new, empty folder to write into, which becomes `path` when the block ends without an error.

    A folder that stood there changes places with the new one in a single call where the system has one (Linux);
    elsewhere it is moved away first and deleted last. After an error it stands as before.

    Raises:
        VeneerError: the disk is full or the place can't be written.
    """
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.new-"))
        new.chmod(0o755)
        try:
            yield new
            for file in new.rglob("*"):
                if file.is_file():
                    _sync(file)
            _swap(new, path)
        except VeneerError as error:
            said = str(error)
            if type(error) is VeneerError and str(new) in said:
                raise VeneerError(said.replace(str(new), str(path))) from error  # the name that people know
            raise
        finally:
            shutil.rmtree(new, ignore_errors=True)


def refuse_existing(path: Path, *, marker: str, what: str, overwrite: bool) -> None:
    """Raise `UserMistake` where a folder written to `path` would replace something that was not meant to be replaced.

    Args:
        path: where a folder is to be written.
        marker: the file by which a folder of the same kind is known.
        what: the kind, with its article: "an adapter".
        overwrite: whether one of the same kind may be replaced.

    Raises:
        VeneerError: the system does not let anybody look there.
    """
    with writing_to(path):
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            return
    if not (path / marker).is_file():
        raise UserMistake(f"{path} exists and is not {what} folder. Choose another place for it.")
    if not overwrite:
        raise UserMistake(
            f"{path} holds {what} already. Give {setting('call.overwrite', True)} to replace it, or another place."
        )


def _swap(new: Path, path: Path) -> None:
    if not path.exists():
        new.replace(path)
        return
    if _exchanged(new, path):  # what is called `new` now is the old one, and is deleted by the caller
        return
    old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old-"))
    old.rmdir()
    path.replace(old)
    try:
        new.replace(path)
    except OSError:
        old.replace(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Let two folders change places in one step (renameat2); False where the system or the disk can't."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    paths = (os.fsencode(one.absolute()), os.fsencode(other.absolute()))
    return bool(rename(_HERE, paths[0], _HERE, paths[1], _EXCHANGE) == 0)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Inside, what the system says against writing `path` becomes a sentence with the mend.

    Raises:
        VeneerError: the disk is full, a file is too large, or the place can't be written.
    """
    try:
        yield
    except OSError as error:
        _refuse(path, error)
        raise
    except Exception as error:
        # safetensors and tokenizers, written in Rust, say it in an error of their own.
        number = _OS_ERROR.search(str(error))
        if number is not None:
            _refuse(path, OSError(int(number[1]), os.strerror(int(number[1]))))
        raise


def _refuse(path: Path, error: OSError) -> None:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise VeneerError(
            f"{path} was not written: the disk is full. What stood there before is untouched. "
            "Free some space and run the same command again."
        ) from error
    if error.errno == errno.EFBIG:
        raise VeneerError(
            f"{path} was not written: a file of it is larger than this system or this shell (ulimit -f) allows. "
            "What stood there before is untouched."
        ) from error
    if error.errno == errno.ENAMETOOLONG:
        raise UserMistake(
            f"{path} was not written: its name is longer than this system allows. Give a shorter one with "
            f"{setting('call.out')}."
        ) from error
    if error.errno in _NO_FOLDER:
        raise VeneerError(
            f"{path} was not written: {path.parent} is no folder, or lies in none. Choose another place with "
            f"{setting('call.out')}."
        ) from error
    if error.errno in _NO_PLACE:
        raise VeneerError(
            f"{path} was not written: {error.strerror}. Choose a folder that you may write to, with "
            f"{setting('call.out')}."
        ) from error
