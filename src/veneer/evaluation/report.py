"""The report of a run: one HTML page that stands alone, and its pictures as files beside it.

The page holds its style and its pictures, has no script, and asks nothing of the network (its content
security policy forbids it). Texts of people are escaped where blocks become HTML. This module knows facts and
sections; it must not know what a task computes.
"""

from __future__ import annotations

import re
from html import escape
from importlib.resources import files
from pathlib import Path

from veneer.evaluation.blocks import pictures_in, render_section
from veneer.evaluation.facts import ReportFacts
from veneer.evaluation.sections import sections_of
from veneer.evaluation.verdict import Verdict, verdict_of
from veneer.evaluation.wording import bytes_text, duration
from veneer.files import write_bytes, write_text

__all__ = ["report_html", "write_report"]

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(folder: Path, facts: ReportFacts) -> Path:
    """Write report.html and its pictures (*.png) into the folder and return the path of report.html.

    Raises VeneerError where the folder can't be written or the disk is full.
    """
    page, pictures = report_html(facts)
    for name, data in pictures.items():
        write_bytes(folder / name, data)
    path = folder / "report.html"
    write_text(path, page)
    return path


def report_html(facts: ReportFacts) -> tuple[str, dict[str, bytes]]:
    """The page, and the pictures in it by file name."""
    sections = sections_of(facts)
    pictures = {picture.file: picture.png for section in sections for picture in pictures_in(section.blocks)}
    style = files("veneer.evaluation").joinpath("report.css").read_text(encoding="utf-8")
    body = "\n".join([_head(facts), *(render_section(section) for section in sections), _foot(facts)])
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(facts.title)} – Veneer report</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )
    return page, pictures


def _head(facts: ReportFacts) -> str:
    verdict = verdict_of(facts)
    line = " · ".join(
        part for part in (facts.task, facts.base.name, facts.data.source if facts.data else "") if part
    )
    return (
        f'<header>\n<p class="eyebrow">Veneer report</p>\n<h1>{escape(facts.title)}</h1>\n'
        f'<p class="line">{escape(line)}</p>\n</header>\n{_verdict(verdict)}\n{_tiles(facts)}'
    )


def _verdict(verdict: Verdict) -> str:
    first, _, rest = verdict.sentence.partition("; ")
    paragraphs = [rest[0].upper() + rest[1:]] if rest else []
    more = "".join(f"<p>{_kept_together(piece)}</p>" for piece in [*paragraphs, *verdict.advice])
    return (
        f'<div class="verdict {escape(verdict.word)}">\n'
        f'<p class="badge">{_kept_together(verdict.title)}</p>\n'
        f'<p class="sentence">{_kept_together(first)}{"." if rest else ""}</p>\n{more}</div>'
    )


def _kept_together(text: str) -> str:
    """Escaped, with no line break between a number and its percent sign."""
    return re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", escape(text))


def _tiles(facts: ReportFacts) -> str:
    """The few numbers to see first."""
    tiles: list[tuple[str, str, str]] = []
    if facts.decisive is not None:
        split, metrics = facts.decisive
        for score in metrics.summary().scores[:2]:
            tiles.append((f"{score.name}, {split}", score.text, score.interval_text))
    if facts.speed is not None:
        rate = facts.speed.texts_per_second
        tiles.append(("whole run", duration(facts.speed.seconds), f"{rate:,.0f} texts/s" if rate else ""))
    if facts.lora is not None:
        share = 100 * facts.lora.trained_parameters / max(1, facts.lora.total_parameters)
        size = bytes_text(facts.lora.adapter_bytes)
        tiles.append(("adapter", size, f"{share:.2g} % of the parameters"))
    items = "".join(
        f"<li><span>{escape(name)}</span><strong>{escape(value)}</strong><small>{escape(note)}</small></li>"
        for name, value, note in tiles
    )
    return f'<ul class="tiles">{items}</ul>' if tiles else ""


def _foot(facts: ReportFacts) -> str:
    version = facts.versions.get("veneer", "")
    parts = [f"Written by Veneer {version}".strip(), facts.created, facts.machine]
    return f"<footer><p>{escape(' · '.join(part for part in parts if part))}</p></footer>"
