"""The flags of the verbs that are no keys of a configuration: what is loaded, answered and printed, and where to.

Those of a training configuration are in `settings`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from veneer.cli.options import Flag
from veneer.cli.settings import read_roles

__all__ = ["ANSWERS", "EXAMPLE_COUNT", "LABELS", "LOADING", "OUTPUT", "RUN"]

LABELS = Flag("labels", None, int, "Labels of the head that a base gets (2).", "Adapter", metavar="N")
EXAMPLE_COUNT = Flag("examples", None, int, "Texts to show token by token (5).", "Output", "n", metavar="N")

LOADING = (
    Flag("base", None, str, "Where its base lies now.", "Adapter", "b", metavar="NAME"),
    Flag(
        "precision",
        None,
        Literal["auto", "fp32", "bf16", "int8"],
        "Of the base: auto, fp32, bf16; int8: not exact, says how far off (auto).",
        "Adapter",
        metavar="TYPE",
    ),
    Flag("device", None, str, "auto, cpu, cuda or mps (auto).", "Adapter", metavar="NAME"),
    Flag("no-verify", None, bool, "Don't replay its stored answers.", "Adapter"),
)

RUN = (
    Flag("config", None, Path, "A YAML file; flags win over it.", "Training", "c", metavar="FILE"),
    Flag("set", None, list[str], "Any other key of the configuration.", "Training", metavar="KEY=VALUE"),
    Flag("out", None, Path, "The adapter folder (adapters/NAME).", "Output", "o", metavar="FOLDER"),
    Flag("overwrite", None, bool, "Replace an adapter that stands there.", "Output"),
    Flag("fresh", None, bool, "Discard an unfinished run.", "Output"),
)

ANSWERS = (
    Flag("file", None, Path, "csv, tsv, json, jsonl, parquet or txt.", "Data", "f", metavar="FILE"),
    Flag("pair", None, str, "The second text, for adapters on pairs.", "Data", metavar="TEXT"),
    Flag("question", None, str, "A question about --context.", "Data", metavar="TEXT"),
    Flag("context", None, str, "The text that it is about, or a file of it.", "Data", metavar="TEXT|FILE"),
    Flag("text-column", None, str, "The column of --file to read.", "Data", metavar="NAME"),
    Flag("text-pair-column", None, str, "The second column of --file.", "Data", metavar="NAME"),
    Flag(
        "column",
        None,
        list[str],
        "Another column of --file; may be repeated.",
        "Data",
        metavar="ROLE=NAME",
        read=read_roles,
    ),
    Flag("out", None, Path, "--file with its answers: .csv .tsv .jsonl", "Output", "o", metavar="FILE"),
    Flag("all-probabilities", None, bool, "The probability of every label.", "Output"),
    Flag("overwrite", None, bool, "Replace --out.", "Output"),
)

OUTPUT = (
    Flag("json", None, bool, "One JSON object on standard output.", "Output"),
    Flag("quiet", None, bool, "Only the result.", "Output", "q"),
    Flag("debug", None, bool, "Show the trace of an error.", "Output"),
)
