"""A file or folder is the old one or the new one, never half, whatever goes wrong on the way."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from veneer import files
from veneer.adapter import refuse_existing
from veneer.errors import UserMistake, VeneerError
from veneer.files import replacing_file, replacing_folder, write_bytes, write_text
from veneer.tasks.answering import check_out


def whole(folder: Path) -> dict[str, str]:
    """Every file below a folder, also hidden ones."""
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def write_file(path: Path) -> None:
    write_text(path, "new")


def stream_file(path: Path) -> None:
    with replacing_file(path) as new:
        new.write_text("new")


def write_folder(path: Path) -> None:
    with replacing_folder(path) as new:
        (new / "inner").mkdir()
        (new / "inner" / "a").write_text("new")


WRITERS = [write_file, stream_file, write_folder]


@pytest.mark.parametrize("write", WRITERS)
def test_a_first_and_a_second_writing(tmp_path: Path, write: Callable[[Path], None]) -> None:
    place = tmp_path / "not there yet" / "thing"
    for _ in range(2):
        write(place)
        assert whole(place if place.is_dir() else place.parent) in ({"inner/a": "new"}, {"thing": "new"})
    assert [p.name for p in place.parent.iterdir()] == ["thing"]


def test_what_the_old_folder_held_is_gone(tmp_path: Path) -> None:
    place = tmp_path / "thing"
    place.mkdir()
    (place / "old").write_text("old")
    write_folder(place)
    assert whole(tmp_path) == {"thing/inner/a": "new"}


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "was not written: the disk is full. What stood there before is untouched"),
        (errno.EDQUOT, "was not written: the disk is full"),
        (errno.EFBIG, "larger than this system or this shell"),
        (errno.EROFS, "Choose a folder that you may write to"),
        (errno.EACCES, "Choose a folder that you may write to"),
        (errno.ENOTDIR, "is no folder, or lies in none. Choose another place"),
        (errno.EEXIST, "is no folder, or lies in none. Choose another place"),
        (errno.ENOENT, "Choose a folder that you may write to"),
        (errno.ENAMETOOLONG, "its name is longer than this system allows. Give a shorter one"),
    ],
)
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_error_leaves_the_old_one_and_nothing_else(
    tmp_path: Path,
    write: Callable[[Path], None],
    number: int,
    message: str,
    step: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = tmp_path / "thing"
    write(place)
    for file in [place] if place.is_file() else [place / "inner" / "a"]:
        file.write_text("old")
    before = whole(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    if step == "fsync":
        monkeypatch.setattr(files.os, "fsync", fail)
    else:
        monkeypatch.setattr(files, "_exchanged", lambda *_: False)
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(VeneerError, match=message) as caught:
        write(place)
    assert str(place) in str(caught.value)
    monkeypatch.undo()
    assert whole(tmp_path) == before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of a file's size for a process")
def test_what_libraries_in_rust_say_of_a_disk_is_told_alike(tmp_path: Path) -> None:
    """safetensors raises an error of its own, and not an OSError; the folder is called by its name."""
    import resource

    import torch
    from safetensors.torch import save_file

    def write(new: Path) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:
            save_file({"a": torch.zeros(5000)}, new / "a.safetensors")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    said = re.escape(f"{tmp_path / 'thing'} was not written: a file of it is larger")
    with pytest.raises(VeneerError, match=f"^{said}"), replacing_folder(tmp_path / "thing") as new:
        write(new)
    with pytest.raises(VeneerError, match=rf"^{re.escape(str(tmp_path))}/thing/a was"):  # noqa: SIM117
        with replacing_folder(tmp_path / "thing") as new, files.writing_to(new / "a"):
            full_disk()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [stream_file, write_folder])
def test_an_error_inside_the_block_leaves_the_old_one(tmp_path: Path, write: Callable[[Path], None]) -> None:
    place = tmp_path / "thing"
    write(place)
    before = whole(tmp_path)
    context = replacing_file(place) if write is stream_file else replacing_folder(place)
    with pytest.raises(KeyboardInterrupt), context as new:  # noqa: PT012
        (new if new.is_file() else new / "b").write_text("half")
        raise KeyboardInterrupt
    assert whole(tmp_path) == before


def test_folders_change_places_in_one_step(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("renameat2 is Linux's")
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    if not files._exchanged(one, other):
        pytest.skip("this file system can't exchange folders")
    assert (one / "name").read_text() == "other"
    assert (other / "name").read_text() == "one"
    assert not files._exchanged(one, tmp_path / "missing")


def test_without_that_step_the_old_folder_is_moved_away_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_exchanged", lambda *_: False)
    place = tmp_path / "thing"
    place.mkdir()
    (place / "old").write_text("old")
    plain, calls = Path.replace, []

    def second_fails(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == 2:
            full_disk()
        return plain(self, target)

    monkeypatch.setattr(Path, "replace", second_fails)
    with pytest.raises(VeneerError, match="disk is full"):
        write_folder(place)
    assert len(calls) == 3
    monkeypatch.undo()
    monkeypatch.setattr(files, "_exchanged", lambda *_: False)
    assert whole(tmp_path) == {"thing/old": "old"}
    write_folder(place)
    assert whole(tmp_path) == {"thing/inner/a": "new"}


_KILLED = """
import os, sys
from pathlib import Path
from veneer.files import replacing_folder
os.fsync = lambda *_: os.kill(os.getpid(), 9)
with replacing_folder(Path(sys.argv[1])) as new:
    (new / "a").write_text("half")
"""


def test_a_process_killed_while_writing_leaves_the_old_one(tmp_path: Path) -> None:
    place = tmp_path / "thing"
    write_folder(place)
    done = subprocess.run([sys.executable, "-c", _KILLED, str(place)], check=False, env=os.environ)
    assert done.returncode == -9
    assert whole(place) == {"inner/a": "new"}
    write_folder(place)
    assert whole(place) == {"inner/a": "new"}


def test_files_can_be_read_by_others(tmp_path: Path) -> None:
    write_bytes(tmp_path / "file", b"x")
    write_folder(tmp_path / "folder")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o755


_HOLD = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from veneer.files import only_one
with only_one(Path(sys.argv[2])):
    print("inside", flush=True)
    time.sleep(60)
"""


def test_only_one_process_writes_a_place_and_a_killed_one_lets_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VENEER_CACHE", str(tmp_path / "cache"))
    place, source = tmp_path / "adapters" / "a", str(Path(files.__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, source, str(place)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "inside\n"
        with (
            pytest.raises(UserMistake, match=r"Another process is writing .*adapters"),
            files.only_one(place),
        ):
            pass
        with files.only_one(tmp_path / "adapters" / "b"):
            pass
        other.kill()
    with files.only_one(place):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["cache"]


@pytest.mark.parametrize(
    "refuse",
    [
        lambda place: refuse_existing(place, overwrite=True),
        lambda place: files.refuse_existing(place, marker="a", what="a thing", overwrite=True),
        lambda place: check_out(
            place.with_name(f"{place.name}.csv"), place.with_name("b.csv"), overwrite=True
        ),
    ],
    ids=["adapter", "folder", "answers"],
)
def test_a_name_that_no_file_can_have_is_refused_before_any_work(
    tmp_path: Path, refuse: Callable[[Path], None]
) -> None:
    with pytest.raises(VeneerError, match="its name is longer than this system allows"):
        refuse(tmp_path / ("x" * 300))
