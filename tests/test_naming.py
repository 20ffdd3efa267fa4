"""Messages name a setting through `veneer.naming`, so that each place that shows them calls it by its own name."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from veneer.cli import combine, settings, writing
from veneer.cli.naming import InFlags
from veneer.cli.verbs import app
from veneer.naming import settable, setting, speaking

ROOT = Path(__file__).parents[1] / "src" / "veneer"
LIBRARY = [path for path in sorted(ROOT.rglob("*.py")) if path.relative_to(ROOT).parts[0] != "cli"]
FLAGS = (*settings.SETTINGS, *writing.SAMPLING, *combine.FLAGS)
NAMES = {flag.key.rpartition(".")[2] for flag in FLAGS if flag.key}
KEYS, WORDS = sorted(name for name in NAMES if "_" in name), sorted(name for name in NAMES if "_" not in name)
FOREIGN = {
    "engine/device.py": "an argument of the engine",
    "engine/runner.py": "an argument of the engine; training asks first, and says it by its name",
    "lora/peft_format.py": "keys of PEFT's adapter_config.json",
    "lora/difference.py": "an argument of `difference`, which no verb has",
    "models/gpt.py": "arguments of the written out model's `generate`",
    "tasks/pooling.py": "a key of PEFT's adapter_config.json",
    "recipes/spam.py": "what it prints",
    "recipes/sst2.py": "what it prints",
    "lora/hooks.py": "what `hook` was given",
    "tasks/instruction_pages.py": "Python",
    "tasks/sequence_code.py": "Python",
}
SPELT = {
    "models/locate.py": "pip's",
    "recipes/catalogue.py": "what `veneer reproduce` lists",
    "tasks/classification_pages.py": "a command of the model card",
    "tasks/regression_pages.py": "a command of the model card",
}


def sentences(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of every text of a file that is no documentation; what is filled in is {}."""
    tree = ast.parse(source)
    apart = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    apart |= {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield (
                node.lineno,
                "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values),
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in apart:
            yield node.lineno, node.value


def bare_keys(source: str) -> list[tuple[int, str]]:
    """(line, key) of every key in a sentence that did not go through `setting`."""
    key = re.compile(
        rf"(?<![\w.\[-])(?:{'|'.join(KEYS)})(?![\w(\]])|(?:^|(?<=: ))(?:{'|'.join(WORDS)})(?:: (?=\S+ )|=| is (?={{))"
    )
    return [
        (line, found)
        for line, text in sentences(source)
        if " " in text.strip() and "\n" not in text
        for found in key.findall(text)
    ]


def check(found: list[tuple[int, str]], path: Path, spared: Collection[str]) -> None:
    """Nothing is found in a file, but in those of a list, where something is."""
    if str(path.relative_to(ROOT)) in spared:
        assert found, "it names none any more: take it off the list"
    else:
        assert found == []


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_message_names_a_key_that_has_a_flag(path: Path) -> None:
    check(bare_keys(path.read_text(encoding="utf-8")), path, FOREIGN)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("raise E(f'max_length is {n}; give more')", [(1, "max_length")]),
        ("raise E(f\"{setting('max_length')} is {n}; give more\")", []),
        ("raise E('leave them out with on_missing_label=drop')", [(1, "on_missing_label")]),
        ("raise E(f'pooling: {how} reads nothing')", [(1, "pooling: ")]),
        ("'''What max_length is.'''", []),
        ("tokenizer(texts, max_length=3)", []),
    ],
)
def test_a_bare_key_is_found(source: str, found: list[tuple[int, str]]) -> None:
    assert bare_keys(source) == found


def flags_in(source: str) -> list[tuple[int, str]]:
    """(line, flag) of every flag in a sentence; those of a command that a person is to type don't count."""
    return [
        (line, found)
        for line, text in sentences(source)
        if not re.search(r"\bveneer [a-z]+ ", text)
        for found in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)
    ]


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_message_names_a_flag(path: Path) -> None:
    check(flags_in(path.read_text(encoding="utf-8")), path, SPELT)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("raise E(f'{path} exists. Give --overwrite.')", [(1, "--overwrite")]),
        ("raise E(f\"{path} exists. Give {setting('call.overwrite', True)}.\")", []),
        ("raise E('Ask it with: veneer predict ADAPTER --file FILE')", []),
        ("'''Plain data for `--json`.'''", []),
    ],
)
def test_a_flag_is_found(source: str, found: list[tuple[int, str]]) -> None:
    assert flags_in(source) == found


def test_no_message_asks_for_a_name_that_is_not_filled_in() -> None:
    unfilled = [
        (path.name, line)
        for path in LIBRARY
        for line, text in sentences(path.read_text(encoding="utf-8"))
        if "{setting(" in text
    ]
    assert unfilled == []


def test_every_setting_that_a_message_names_can_be_given() -> None:
    """An argument of the library goes by the name of a verb's flag."""
    known = {option.removeprefix("--").replace("-", "_") for option in _spelt_options()}
    named = {
        (path.name, str(node.args[0].value).removeprefix("call."))
        for path in LIBRARY
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("setting", "settable")
        and isinstance(node.args[0], ast.Constant)
        and str(node.args[0].value).startswith("call.")
    }
    assert {name for _, name in named} >= {"out", "overwrite", "fresh", "verify", "raw"}
    assert {(where, name) for where, name in named if not {name, f"no_{name}"} & known} == set()


def test_every_flag_in_a_command_exists() -> None:
    known = _spelt_options()
    named = {
        (path.name, flag)
        for path in LIBRARY
        for _, text in sentences(path.read_text(encoding="utf-8"))
        if " " in text
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)
    }
    assert len(named) >= 5
    assert {(where, flag) for where, flag in named if flag not in known} == set()


def _spelt_options() -> set[str]:
    """Every option of every verb."""
    import typer

    found = set()
    for command in typer.main.get_command(app).commands.values():  # type: ignore[attr-defined]
        found |= {name for option in command.params for name in option.opts}
    return found | {"--force-reinstall"}  # pip's


def test_python_hears_keys_and_the_command_line_flags() -> None:
    assert (setting("data.max_rows"), setting("data.quoting", "no")) == ("max_rows", "quoting=no")
    assert (setting("combine.heads", "'a'"), setting("options.cut", "left")) == (
        "heads='a'",
        "options.cut=left",
    )
    assert setting("batch_size", plain="'batch_size'") == "'batch_size'"
    with speaking(InFlags(FLAGS, ["max_rows", "set", "heads", "use_dora"], [])):
        assert (setting("data.max_rows"), setting("data.max_rows", 5)) == ("--max-rows", "--max-rows 5")
        assert setting("data.quoting", "no") == "--set data.quoting=no"
        assert setting("combine.heads", "'a b'") == "--heads 'a b'"
        assert setting("lora.use_dora", True) == "--use-dora"
        assert setting("batch_size", plain="'batch_size'") == "'batch_size'"
        assert settable("data.quoting")
    with speaking(InFlags(FLAGS, ["text_column"], [])):
        assert not settable("data.quoting")
        assert setting("data.quoting") == "quoting"
    assert setting("data.max_rows") == "max_rows"


def test_arguments_of_the_library_go_by_the_verbs_flags() -> None:
    named = (
        setting("call.out"),
        setting("call.overwrite", True),
        setting("call.verify", False),
        setting("base", "'a b'"),
    )
    assert named == ("out", "overwrite=True", "verify=False", "base='a b'")
    columns = {"instruction": "task", "output": "the answer"}
    assert setting("data.columns", {"text": "body"}) == "columns={'text': 'body'}"
    with speaking(InFlags(FLAGS, ["out", "overwrite", "no_verify", "base", "column"], [])):
        named = (
            setting("call.out"),
            setting("call.overwrite", True),
            setting("call.verify", False),
            setting("base", "'a b'"),
        )
        assert named == ("--out", "--overwrite", "--no-verify", "--base 'a b'")
        assert setting("data.columns", columns) == "--column instruction=task --column 'output=the answer'"
        assert settable("call.verify")
    with speaking(InFlags(FLAGS, ["set"], [], ["out"])):  # a verb whose OUT has no flag
        assert (setting("call.out"), setting("call.verify", False)) == ("OUT", "verify=False")
        assert not settable("call.out")
    with speaking(InFlags(FLAGS, ["out", "set"], ["--config", "a.yaml"])):  # no key of a file
        assert setting("call.out") == "--out"


def test_what_may_come_from_a_file_keeps_its_key() -> None:
    with speaking(InFlags(FLAGS, ["max_rows", "seed", "set"], ["--config", "a.yaml", "--max-rows", "0"])):
        assert (setting("data.max_rows"), setting("seed")) == ("--max-rows", "seed")
        assert setting("data.on_missing_label", "drop") == "on_missing_label=drop"
