"""A small file of questions in SQuAD's form, whose answers can be learned: the words from "win" to "now"."""

from __future__ import annotations

import json
import random
from pathlib import Path

WORDS = "film money order late refund help good bad great awful love hate".split()  # noqa: SIM905
QUESTION = "what is it?"


def question_file(path: Path, *, contexts: int = 40, words: int = 30, impossible: bool = True) -> Path:
    """A question for each context, and for every fourth one more that has no answer, where that is wanted."""
    draw, articles = random.Random(0), []
    for number in range(contexts):
        beside = [draw.choice(WORDS) for _ in range(words)]
        answer = f"win a {draw.choice(WORDS)} prize now"
        beside.insert(draw.randrange(words), answer)
        context = " ".join(beside)
        gold = [{"text": answer, "answer_start": context.index(answer)}]
        asked = [{"id": f"q{number}", "question": QUESTION, "answers": gold}]
        if impossible:
            asked[0]["is_impossible"] = False
            if number % 4 == 0:
                asked.append(
                    {"id": f"n{number}", "question": "call for free", "answers": [], "is_impossible": True}
                )
        articles.append({"title": f"t{number}", "paragraphs": [{"context": context, "qas": asked}]})
    path.write_text(json.dumps({"version": "test", "data": articles}), encoding="utf-8")
    return path
