"""What is said of conversations before they are learnt: copies, templates that drop words, answers that a cut takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import veneer

from instruction_cases import REASONING, chat_tokenizer, writing_base
from veneer.data.choices import counted
from veneer.data.config import DataConfig
from veneer.data.preview import copies
from veneer.data.sources import Source
from veneer.errors import DataError
from veneer.tasks.instruction_data import InstructionOptions, prepare
from veneer.tasks.instructions import Instructions
from veneer.tasks.rendered import NOT_READ
from veneer.tasks.templates import Template

PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content.strip() }}{{ eos_token }}{% endfor %}"
ASKS = "{% if add_generation_prompt %}<assistant>{% endif %}"


def chats(path: Path, *conversations: list[tuple[str, str]]) -> Path:
    """A file of them."""
    rows = [
        {"messages": [{"role": role, "content": text} for role, text in turns]} for turns in conversations
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_of(path: Path) -> Any:
    """All of them, to train on."""
    given = {"source": str(path), "validation_fraction": 0, "test_fraction": 0}
    return prepare(Source(DataConfig.parse(given)), InstructionOptions()).train


def test_copies_are_shown_apart_in_preview_and_report(tmp_path: Path) -> None:
    asked = [("user", "A colour?"), ("assistant", "Red")]
    two = [[*asked, ("user", "Another"), ("assistant", name)] for name in ("Blue", "Grey")]
    rows = rows_of(chats(tmp_path / "chats.jsonl", *two, asked))
    task, tokenizer = Instructions(Template("base", REASONING), "messages"), chat_tokenizer(REASONING)
    encoded = task.encode(rows, tokenizer, 512)
    for place in range(3):
        text = task.shown(rows, place, tokenizer, 512)
        parts = copies(text.tokens)
        own = [encoded[i].tolist() for i in np.flatnonzero(encoded.example == place)]  # type: ignore[union-attr]
        assert [len(tokens) for _, tokens in parts] == list(map(len, own))
        assert [begins for begins, _ in parts] == (
            [""] if len(own) == 1 else [f"copy {n} of {len(own)}" for n in range(1, len(own) + 1)]
        )
    base = writing_base(tmp_path / "base")
    tokenizer.save_pretrained(base)
    done = veneer(
        "preview", rows.table.path, "--base", base, "--validation-fraction", 0, "--test-fraction", 0
    )
    assert done.out.count("copy 1 of 2\n") == done.out.count("copy 2 of 2\n") > 0


def test_a_template_that_drops_the_system_prompt_is_said(tmp_path: Path) -> None:
    turns = [("system", " Be\n brief "), ("user", "Hi?"), ("assistant", "Ho")]
    path = chats(tmp_path / "chats.jsonl", *(turns[number % 2 :] for number in range(4)))
    rows, deaf = rows_of(path), PLAIN.replace("messages %}", "messages if m.role != 'system' %}")
    for template, warned in ((PLAIN, False), (deaf, True)):
        task = Instructions(Template("base", template + ASKS), "messages")
        found = task.encode(rows, chat_tokenizer(template + ASKS), 512).warnings
        said = [
            one for one in found if "writes nothing of the system prompt in 2 conversations of train" in one
        ]
        assert bool(said) == warned
    base = writing_base(tmp_path / "base")
    chat_tokenizer(deaf + ASKS).save_pretrained(base)
    assert "nothing of the system prompt in 2 conversations" in " ".join(
        veneer("preview", path, "--base", base, "--validation-fraction", 0, "--test-fraction", 0).err.split()
    )


@pytest.mark.parametrize("cut", ["left", "right"])
def test_answers_that_a_cut_takes_in_part_or_whole_are_counted(tmp_path: Path, cut: str) -> None:
    """Against the answers' own tokens, looked for one by one in what is left."""
    turns = [("user", "A colour?"), ("assistant", "Red and blue")] * 3
    rows = rows_of(chats(tmp_path / "chats.jsonl", turns, turns))
    tokenizer = chat_tokenizer(PLAIN + ASKS)
    task = Instructions(Template("base", PLAIN + ASKS), "messages", cut=cut)  # type: ignore[arg-type]
    whole = task.encode(rows, tokenizer, 512)
    n, labels = len(whole[0]), np.asarray(whole.targets[0]) != NOT_READ  # type: ignore[index]
    places = np.flatnonzero(labels)
    runs = [run.tolist() for run in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)]
    assert len(runs) == 3
    seen = set()
    for limit in range(len(runs[0]) + 12, n):
        kept = set(range(limit - 1)) if cut == "right" else set(range(n - limit, n))
        left = [sum(place in kept for place in run) for run in runs]
        part = 2 * sum(0 < has < len(run) for has, run in zip(left, runs, strict=True))
        lost = 2 * sum(has == 0 for has in left)
        try:
            found = " ".join(task.encode(rows, tokenizer, limit).warnings)
        except DataError:  # nothing is left
            continue
        counts = f"a part of {counted(part, 'answer')} of train, and {counted(lost, 'answer')} whole"
        assert (counts in found) == (part + lost > 0), (limit, counts, found)
        seen.add((part > 0, lost > 0))
    assert {(True, True), (False, True)} <= seen
