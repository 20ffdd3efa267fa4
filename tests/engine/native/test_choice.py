"""Where the compiled kernels come from, and what happens where there are none."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from veneer.engine.activations import activation_of
from veneer.engine.native import KernelChoice, choose_kernels, kernels, own_kernels, use_kernels
from veneer.engine.native import build as building
from veneer.engine.native import choice as choosing
from veneer.errors import ConfigError

CPU = torch.device("cpu")
HERE = choose_kernels("auto", CPU)
needs_compiler = pytest.mark.skipif(HERE.name != "compiled", reason=HERE.reason)


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing compiled yet, and an empty cache."""
    monkeypatch.setenv("VENEER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    for found in (building._outcome, choosing._tried):
        found.cache_clear()
    return tmp_path


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    with own_kernels():
        yield
    for found in (building._outcome, choosing._tried):
        found.cache_clear()


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_pytorchs_own_are_used_when_asked_for() -> None:
    use_kernels(choose_kernels("pytorch", CPU))
    assert kernels() is None
    gelu = activation_of("gelu")
    assert gelu is not None
    x = torch.linspace(-3, 3, 50)
    assert torch.equal(gelu.forward(x), nn.functional.gelu(x))


@needs_compiler
def test_they_are_compiled_once(fresh: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "veneer")
    assert choose_kernels("compiled", CPU).name == "compiled"
    (said,) = caplog.messages
    assert said.startswith("compiling the kernels with ")

    def times() -> list[int]:
        return [file.stat().st_mtime_ns for file in (fresh / "cache" / "kernels").iterdir()]

    (before,) = times()
    for found in (building._outcome, choosing._tried):
        found.cache_clear()
    assert choose_kernels("auto", CPU).name == "compiled"
    assert times() == [before]
    assert caplog.messages == [said]


def test_without_a_compiler(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(fresh))
    choice = choose_kernels("auto", CPU)
    assert choice == KernelChoice("pytorch", "compiled ones are faster, but no C compiler was found")
    with pytest.raises(ConfigError, match=r"no C compiler was found\. Mend that, or give kernels=pytorch"):
        choose_kernels("compiled", CPU)
    use_kernels(choice)
    assert kernels() is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "echo 'kernels.c:1: error: no such thing' >&2; exit 1",
            "mine failed: kernels.c:1: error: no such thing",
        ),
        (
            "echo '/usr/bin/ld: cannot find -lomp' >&2; echo 'mine: error: linker command failed' >&2; exit 1",
            "mine failed: /usr/bin/ld: cannot find -lomp",
        ),
        ("exit 3", "mine failed: without a word"),
        ("exit 0", "could not be run|No such file"),
        ('while [ "$1" != -o ]; do shift; done; echo text > "$2"', "can't be loaded"),
    ],
    ids=["an error", "a linker", "no words", "nothing made", "no library"],
)
def test_a_compiler_that_fails(fresh: Path, monkeypatch: pytest.MonkeyPatch, text: str, says: str) -> None:
    monkeypatch.setenv("CC", str(script(fresh / "bin" / "mine", text)))
    with pytest.raises(ConfigError, match=says):
        choose_kernels("compiled", CPU)
    assert choose_kernels("auto", CPU).name == "pytorch"


def test_a_compiler_that_fails_is_run_once(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = fresh / "runs"
    monkeypatch.setenv("CC", str(script(fresh / "bin" / "mine", f"echo >> {runs}; exit 1")))
    assert {choose_kernels("auto", CPU).name for _ in range(3)} == {"pytorch"}
    assert runs.read_text(encoding="utf-8") == "\n"


@needs_compiler
def test_a_compiler_with_an_openmp_of_its_own_is_refused_each_time(fresh: Path) -> None:
    # clang links LLVM's: a library of that name, loaded beside PyTorch's, is what counts
    own = fresh / "bin" / "libomp.so.5"
    mine = script(
        fresh / "bin" / "mine",
        f"echo 'int nothing;' | gcc -shared -fPIC -x c -o {own} - || exit 1\n"
        f'exec gcc "$@" -Wl,--no-as-needed {own}',
    )
    code = (
        "import torch\n"
        "from veneer.engine.native import choose_kernels\n"
        "for _ in range(2): print(choose_kernels('auto', torch.device('cpu')).reason)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "CC": str(mine)},
        capture_output=True,
        text=True,
    )
    says = "compiled ones are faster, but mine has an OpenMP other than PyTorch's; gcc has the same (CC=gcc)"
    assert done.stdout.splitlines() == [says, says], done.stderr


@needs_compiler
def test_a_library_that_computes_something_else(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = fresh / "source"
    source.mkdir()
    for file in building._SOURCE.iterdir():
        text = file.read_text(encoding="utf-8").replace("0.0713548162726f", "0.0613548162726f")
        (source / file.name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(building, "_SOURCE", source)
    with pytest.raises(ConfigError, match="computes another tanh form of GELU than PyTorch"):
        choose_kernels("compiled", CPU)


def test_a_cache_that_cannot_be_written(fresh: Path) -> None:
    (fresh / "cache").write_text("a file", encoding="utf-8")
    if HERE.name == "compiled":
        assert "the cache can't be written" in choose_kernels("auto", CPU).reason
    assert choose_kernels("auto", CPU).name == "pytorch"


def test_they_are_for_cpus() -> None:
    assert choose_kernels("auto", torch.device("cuda")) == KernelChoice("pytorch", "computed on cuda")
    with pytest.raises(ConfigError, match="are for CPUs, and this computes on cuda"):
        choose_kernels("compiled", torch.device("cuda"))


@needs_compiler
def test_the_threads_are_pytorchs() -> None:
    code = (
        "import torch\n"
        "from veneer.engine.native import choose_kernels\n"
        "from veneer.engine.native.build import _openmp\n"
        "before = _openmp()\n"
        "assert choose_kernels('auto', torch.device('cpu')).name == 'compiled'\n"
        "assert _openmp() == before and len(before) == 1, (before, _openmp())\n"
    )
    paths = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
