"""The compiled kernels: a C compiler makes a shared library of `source/`, once for a machine, in the cache.

Nothing but a compiler is needed (no headers of PyTorch); without one, or where what it made fails, PyTorch's own
operators do the same. The library shares PyTorch's OpenMP threads: it is not loaded where it would bring its own.

This file knows the compiler, the cache and the dynamic loader; it knows no tensor.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from veneer.errors import UserMistake
from veneer.files import cache_folder

__all__ = ["Built", "NotBuiltError", "built"]

_log = logging.getLogger(__name__)

_SOURCE = Path(__file__).parent / "source"
_COMPILERS = ("gcc", "cc", "clang")
_FLAGS = (
    "-std=gnu11",
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-shared",
    "-fPIC",
)
_WIDE = "-mprefer-vector-width=512"  # of x86 alone
_SECONDS = 120  # for the compiler


class NotBuiltError(Exception):
    """There are no compiled kernels here; the message says why, in words that can follow a semicolon."""


@dataclass(frozen=True)
class Built:
    """A loaded library.

    Attributes:
        library: its functions, without types.
        compiler: the name of the program that made it.
    """

    library: ctypes.CDLL
    compiler: str


def built() -> Built:
    """The library, compiled if it is not in the cache; of a process the first answer stands, whatever it is.

    Raises:
        NotBuiltError: no compiler, or it or the library failed.
    """
    found = _outcome()
    if isinstance(found, str):
        raise NotBuiltError(found)
    return found


@lru_cache(maxsize=1)
def _outcome() -> Built | str:
    """The library, or why there is none: a compiler that failed is not run again, and an OpenMP that came with a
    refused library, and stays in the process, is not taken for PyTorch's.
    """
    try:
        return _made()
    except NotBuiltError as error:
        return str(error)


def _made() -> Built:
    if not sys.platform.startswith("linux"):
        raise NotBuiltError(f"they are tried on Linux only, and this is {platform.system()}")
    compiler = _compiler()
    flags = [*_FLAGS, _WIDE] if platform.machine() in ("x86_64", "AMD64") else [*_FLAGS]
    try:
        path = cache_folder("kernels") / f"{_key(compiler, flags)}.so"
    except (UserMistake, OSError) as error:
        raise NotBuiltError(f"the cache can't be written: {error}") from error
    if not path.is_file():
        _log.info("compiling the kernels with %s, once for this machine ...", Path(compiler).name)
        _compile(compiler, flags, path)
    before = _openmp()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise NotBuiltError(f"what {Path(compiler).name} made can't be loaded: {error}") from error
    if _openmp() - before:
        raise NotBuiltError(
            f"{Path(compiler).name} has an OpenMP other than PyTorch's; gcc has the same (CC=gcc)"
        )
    return Built(library, Path(compiler).name)


def _openmp() -> set[str]:
    """The OpenMP libraries in this process; two of them would give it twice its threads."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    files = {line.split(maxsplit=5)[5] for line in lines if line.count("/")}
    return {file for file in files if re.match(r"lib(gomp|i?omp)", Path(file).name)}


def _compiler() -> str:
    """The path of a C compiler: $CC, or one of the usual names."""
    named = os.environ.get("CC", "")
    for name in (named, *_COMPILERS):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise NotBuiltError("no C compiler was found")


def _key(compiler: str, flags: list[str]) -> str:
    """Of source, compiler, flags and processor: another of any of them is another library."""
    digest = hashlib.sha256()
    for file in sorted(_SOURCE.iterdir()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    about = Path(compiler).stat()
    digest.update(repr((os.path.realpath(compiler), about.st_size, about.st_mtime_ns, flags)).encode())
    digest.update(_processor().encode())
    return digest.hexdigest()[:32]


def _processor() -> str:
    """What -march=native looks at."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    wanted = ("model name", "flags", "Features", "CPU part")
    first = {line.split(":")[0].strip(): line for line in reversed(lines)}
    return "\n".join([platform.machine(), *(first.get(name, "") for name in wanted)])


def _compile(compiler: str, flags: list[str], path: Path) -> None:
    """Make the library in a temporary file beside its place, and rename it."""
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".new-") as folder:
            made = Path(folder) / "kernels.so"
            command = [compiler, *flags, "-o", str(made), str(_SOURCE / "kernels.c"), "-lm"]
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_SECONDS,
                check=False,
                start_new_session=True,  # Ctrl-C ends the compiler through us, not as a compiler that failed
            )
            if done.returncode:
                raise NotBuiltError(f"{Path(compiler).name} failed: {_reason(done.stderr)}")
            made.replace(path)
    except subprocess.TimeoutExpired as error:
        raise NotBuiltError(f"{Path(compiler).name} took more than {_SECONDS} seconds") from error
    except OSError as error:
        raise NotBuiltError(f"{Path(compiler).name} could not be run: {error}") from error


def _reason(said: str) -> str:
    """The line of a compiler's words that says why: the linker's own, before the compiler says that it failed."""
    lines = [line for line in said.splitlines() if re.search(r"error|\bld: ", line)]
    return lines[0] if lines else "without a word"
