"""The command line as a whole: help, speed, exit codes, traces."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
from command import environment, veneer
from tiny_adapter import Trained

from veneer.cli.console import Output
from veneer.cli.interrupts import never_swallowed
from veneer.cli.progress import ScoreLike, step_line
from veneer.training.loop import StepInfo

VERBS = [
    "train",
    "predict",
    "generate",
    "chat",
    "evaluate",
    "inspect",
    "preview",
    "merge",
    "export",
    "combine",
    "extract",
    "reproduce",
]


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")


def _python(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """A Python of its own, with `more` in its environment; run to its end."""
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment(**more), check=False
    )


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from veneer.cli import main; code = main(['--help']); "
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'sklearn', 'pyarrow'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = _python("-c", code)
    assert done.returncode == 0, done.stderr
    assert "veneer train example" in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_helps_with_examples_in_80_columns(verb: str) -> None:
    done = veneer(verb, "--help")
    assert done.code == 0
    assert done.out.count(f"veneer {verb}") >= 3  # usage and at least two examples
    assert "…" not in done.out  # no flag is cut short
    assert max(map(len, done.out.splitlines())) <= 80
    lines = [line.strip() for line in done.out.splitlines()]
    examples = importlib.import_module(f"veneer.cli.{verb}").EXAMPLES.splitlines()[1:]
    assert set(examples) <= set(lines)  # none is broken in two, so that it can be copied


def test_a_paragraph_of_help_is_filled() -> None:
    """No line ends in its middle: what follows would have fitted behind it."""
    for verb in VERBS:
        above = veneer(verb, "--help").out.partition("╭")[0].splitlines()
        for line, after in itertools.pairwise(above):
            if line.strip() and after.strip() and "Usage" not in line:
                assert len(line.rstrip()) + len(after.split()[0]) + 1 > 79, (verb, line)


def test_help_of_all_and_the_version() -> None:
    assert veneer().out == veneer("--help").out
    assert all(verb in veneer("-h").out for verb in VERBS)
    assert veneer("--version").out == "veneer 0.1.0\n"


def test_an_unknown_verb() -> None:
    done = veneer("trian", "x.csv")
    assert done.code == 2
    assert "trian" in done.err
    assert "train" in done.err


def test_a_wrong_value_and_where_to_look_are_two_sentences() -> None:
    for value in ("nan", "x"):
        done = veneer("train", "messages.csv", "--epochs", value)
        assert done.code == 2
        assert ". See: veneer train --help" in " ".join(done.err.split())
    assert "'? See: veneer --help" in " ".join(veneer("predct").err.split())
    assert ".. See" not in veneer("predict", "adapters/a").err


def test_only_what_the_verb_takes_is_advised(trained: Trained, tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    table.write_text(
        "text,n\n" + "".join(f"text number {i},{i * 1.5}x\n" for i in range(60)), encoding="utf-8"
    )
    asked = "or, for rows of another task, --task and its columns"
    assert asked in " ".join(veneer("train", table).err.split())
    told = " ".join(veneer("evaluate", trained.adapter, table).err.split())
    assert "Say which with --label-column." in told
    assert asked not in told


def test_debug_shows_the_trace_and_without_it_there_is_none() -> None:
    shown = veneer("train", "nope.csv", "--debug")
    assert shown.code == 2
    assert "Traceback" in shown.err
    assert "Traceback" in veneer("--debug", "train", "nope.csv").err
    assert "Traceback" not in veneer("train", "nope.csv").err


def test_a_fault_of_ours_says_so(monkeypatch: pytest.MonkeyPatch, trained: Trained) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr("veneer.tasks.loading.load", broken)
    done = veneer("predict", trained.adapter, "x", "--json")
    assert done.code == 1
    assert "KeyError: 'surprise'" in done.err
    assert "--debug" in done.err
    assert "Traceback" not in done.err
    assert done.json["error"]["type"] == "KeyError"


def test_what_the_library_tells_is_a_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("veneer.engine.native.build")
    for quiet, json_asked in itertools.product((False, True), repeat=2):
        with Output(quiet=quiet, json=json_asked).working():
            log.info("compiling the %s", "kernels")
        log.info("nobody asked")
        said = capsys.readouterr()
        assert (said.out, said.err) == ("", "" if quiet else "compiling the kernels\n")


def test_ctrl_c_outside_of_training(monkeypatch: pytest.MonkeyPatch, trained: Trained) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("veneer.tasks.loading.load", stopped)
    done = veneer("predict", trained.adapter, "x", "--json")
    assert done.code == 130
    assert done.err == "error: interrupted; nothing was half written.\n"
    assert done.json["error"]["type"] == "Interrupted"


def test_ctrl_c_in_the_first_moments() -> None:
    """While the verbs are imported: one line, the exit code, the object; and nothing is imported before that."""
    code = (
        "import sys, signal; sys.modules.pop('typing', None)\n"
        "before = {*sys.modules, '__future__', 'veneer', 'veneer.cli'}\n"
        "class Stopped:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'veneer.cli.verbs':\n"
        "            print(sorted(set(sys.modules) - before), file=sys.stderr)\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Stopped()); sys.argv[1:] = ['train', 'example', '--json']\n"
        "from veneer.cli import main; code = main()\n"
        "assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL; sys.exit(code)"
    )
    done = _python("-c", code)
    assert done.returncode == 130, done.stderr
    assert done.stderr == "[]\nerror: interrupted; nothing was half written.\n"
    assert json.loads(done.stdout)["error"]["type"] == "Interrupted"


def test_no_colour_and_no_terminal_mean_no_escape_codes(trained: Trained) -> None:
    done = veneer("inspect", trained.adapter)
    assert "\x1b" not in done.out + done.err
    run = _python("-m", "veneer", "train", NO_COLOR="1", FORCE_COLOR="")
    assert run.returncode == 2
    assert "\x1b" not in run.stderr
    assert run.stdout == ""


def test_the_step_line_fits_beside_the_bar() -> None:
    info = StepInfo(1234, 6543, 1.3456, 1e-3, 12345.6, 98765.4, 3600, ("accuracy", 1.0))
    assert len(step_line(info, 2, 5, wide=False)) <= 80 - len("━━━━━━━━ ")
    loss = ScoreLike("loss", percent=False, higher_is_better=False)
    low = dataclasses.replace(info, metric=("loss", -2.5))  # kept with a minus
    assert len(step_line(low, 2, 5, wide=False, form=loss)) <= 80 - len("━━━━━━━━ ")
    assert "validation loss 2.500" in step_line(low, 2, 5, wide=True, form=loss)
    long = step_line(info, 2, 5, wide=True)
    assert "accuracy 100.0%" in long
    assert "12,346 texts/s" in long
    assert "1:00:00 left" in long


def test_ctrl_c_is_heard_where_python_ignores_exceptions() -> None:
    """As when it comes while an object is deleted; another exception there goes where it went."""

    class Deleted:
        def __del__(self) -> None:
            raise KeyboardInterrupt

    class Broken:
        def __del__(self) -> None:
            raise ValueError("other")

    said: list[object] = []
    with mock.patch.object(sys, "unraisablehook", lambda ignored: said.append(ignored.exc_type)):
        with pytest.raises(KeyboardInterrupt), never_swallowed():  # noqa: PT012
            Deleted()
            time.sleep(30)
        with never_swallowed():
            Broken()
    assert said == [ValueError]


def test_a_full_disk_or_a_forbidden_place_is_no_fault_of_ours() -> None:
    message, code = importlib.import_module("veneer.cli.verbs")._explained(
        PermissionError(13, "Permission denied", "/some/file")
    )
    assert code == 1
    assert message == "Permission denied: /some/file"
