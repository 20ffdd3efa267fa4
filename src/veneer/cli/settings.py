"""The flags that are keys of a training configuration, in tables: name, place, type, help, group.

This file knows names, and no configuration class (they are heavy to import); a test holds the names against them.
"""

from __future__ import annotations

import re
from typing import Literal

import typer

from veneer.cli.options import Flag

__all__ = [
    "ADAPTER",
    "BASE",
    "COLUMNS",
    "DATA",
    "SETTINGS",
    "TASK",
    "TRAINING",
    "VARIANT",
    "WRITTEN",
    "names_or_pattern",
    "read_roles",
]


def names_or_pattern(given: str) -> str | list[str]:
    """What --target-modules means: "all-linear", a regular expression, or names with commas between them.

    >>> names_or_pattern("query,value"), names_or_pattern(r".*\\.(query|value)"), names_or_pattern("all-linear")
    (['query', 'value'], '.*\\\\.(query|value)', 'all-linear')
    """
    if given == "all-linear" or re.search(r"[\\^$*+?()\[\]{}|]", given):
        return given
    return [name.strip() for name in given.split(",") if name.strip()]


def _values(given: str) -> list[str]:
    return [name.strip() for name in given.split(",") if name.strip()]


def read_roles(given: list[str]) -> dict[str, str]:
    """What --column says, each "ROLE=NAME".

    >>> read_roles(["question=q", "context=passage"])
    {'question': 'q', 'context': 'passage'}
    """
    found = {}
    for one in given:
        role, equals, name = one.partition("=")
        if not equals or not role.strip() or not name.strip():
            raise typer.BadParameter(f"--column {one!r}: expected ROLE=NAME, such as question=q.")
        found[role.strip()] = name.strip()
    return found


def _no(_: bool) -> bool:
    return False


def _init(given: str) -> str | bool:
    return {"true": True, "false": False}.get(given.lower(), given)


def _threads(given: str) -> str | int:
    return int(given) if given.isascii() and given.isdigit() else given


DATA = (
    Flag("text-column", "data.text_column", str, "The column to read.", "Data", metavar="NAME"),
    Flag("label-column", "data.label_column", str, "The column to predict.", "Data", metavar="NAME"),
    Flag(
        "text-pair-column",
        "data.text_pair_column",
        str,
        "A second column, read together with the first.",
        "Data",
        metavar="NAME",
    ),
    Flag(
        "column",
        "data.columns",
        list[str],
        "Another column of the task; may be repeated.",
        "Data",
        metavar="ROLE=NAME",
        read=read_roles,
    ),
    Flag(
        "validation",
        "data.validation",
        str,
        "A file of your own to choose the best step by.",
        "Data",
        metavar="FILE",
    ),
    Flag("test", "data.test", str, "A file of your own to measure on.", "Data", metavar="FILE"),
    Flag(
        "validation-fraction",
        "data.validation_fraction",
        float,
        "Share split off for validation (0.1).",
        "Data",
        metavar="X",
    ),
    Flag(
        "test-fraction",
        "data.test_fraction",
        float,
        "Share split off for the test (0.2).",
        "Data",
        metavar="X",
    ),
    Flag("variant", "data.variant", str, "Of a named source, such as balanced.", "Data", metavar="NAME"),
    Flag("max-rows", "data.max_rows", int, "Use at most so many rows.", "Data", metavar="N"),
    Flag("split-seed", "data.seed", int, "Decides the split (0).", "Data", metavar="N"),
    Flag("multi-label", "data.multi_label", bool, "A text may have several labels.", "Data"),
    Flag(
        "label-separator",
        "data.label_separator",
        str,
        "What stands between several labels.",
        "Data",
        metavar="TEXT",
    ),
    Flag(
        "template",
        "options.template",
        str,
        "Of prompts: base, alpaca, none or a file (auto).",
        "Data",
        metavar="NAME|FILE",
    ),
    Flag("loss", "options.loss", str, "Of instructions: answer or all (answer).", "Data", metavar="NAME"),
    Flag("delimiter", "data.delimiter", str, "What stands between the columns.", "Data", metavar="CHAR"),
    Flag("encoding", "data.encoding", str, "Of the file, such as cp1252.", "Data", metavar="NAME"),
    Flag("no-header", "data.header", bool, "The first line holds no names.", "Data", read=_no),
    Flag(
        "on-missing-label",
        "data.on_missing_label",
        Literal["error", "drop"],
        "error, or drop such rows (error).",
        "Data",
        metavar="WHAT",
    ),
)

BASE = (
    Flag("base", "base", str, "Hub name or folder (all-MiniLM-L6-v2).", "Base", "b", metavar="NAME"),
    Flag("max-length", "max_length", int, "Tokens that a text is cut to.", "Base", metavar="N"),
)

ADAPTER = (
    Flag("r", "lora.r", int, "Rank of the adapter (16).", "Adapter", metavar="N"),
    Flag("lora-alpha", "lora.lora_alpha", float, "Scaling is lora-alpha / r (2 r).", "Adapter", metavar="X"),
    Flag("lora-dropout", "lora.lora_dropout", float, "Dropout before A (0).", "Adapter", metavar="X"),
    Flag(
        "target-modules",
        "lora.target_modules",
        str,
        "Names with commas, a regular expression, or all-linear.",
        "Adapter",
        metavar="NAMES",
        read=names_or_pattern,
    ),
    Flag(
        "exclude-modules",
        "lora.exclude_modules",
        str,
        "Layers to leave out, written the same way.",
        "Adapter",
        metavar="NAMES",
        read=names_or_pattern,
    ),
    Flag(
        "bias",
        "lora.bias",
        Literal["none", "lora_only", "all"],
        "Which train: none, lora_only, all (none).",
        "Adapter",
        metavar="WHICH",
    ),
    Flag("use-rslora", "lora.use_rslora", bool, "Scaling is lora-alpha / sqrt(r).", "Adapter"),
    Flag("use-dora", "lora.use_dora", bool, "Train magnitudes apart (DoRA).", "Adapter"),
    Flag(
        "init-lora-weights",
        "lora.init_lora_weights",
        str,
        "true, false, gaussian or pissa (true).",
        "Adapter",
        metavar="NAME",
        read=_init,
    ),
    Flag(
        "modules-to-save",
        "lora.modules_to_save",
        str,
        "Modules trained whole (the head).",
        "Adapter",
        metavar="NAMES",
        read=_values,
    ),
)

TRAINING = (
    Flag("epochs", "epochs", int, "Passes over the texts (by their number).", "Training", "e", metavar="N"),
    Flag(
        "batch-size",
        "batch_size",
        int,
        "Texts in a batch (16, or 32 from 1,000 short texts on).",
        "Training",
        metavar="N",
    ),
    Flag(
        "learning-rate", "learning_rate", float, "Peak rate of AdamW (0.001).", "Training", "l", metavar="X"
    ),
    Flag(
        "gradient-accumulation",
        "gradient_accumulation",
        int,
        "Batches in a step (1).",
        "Training",
        metavar="N",
    ),
    Flag("weight-decay", "weight_decay", float, "Of A, B and the head (0.01).", "Training", metavar="X"),
    Flag(
        "schedule",
        "schedule",
        Literal["linear", "cosine", "constant"],
        "linear, cosine or constant (linear).",
        "Training",
        metavar="HOW",
    ),
    Flag("warmup", "warmup", float, "Share of steps in which the rate rises (0.1).", "Training", metavar="X"),
    Flag(
        "pooling",
        "pooling",
        Literal["auto", "mean", "first", "last"],
        "auto, mean, first or last (auto).",
        "Training",
        metavar="HOW",
    ),
    Flag(
        "class-weights",
        "class_weights",
        Literal["none", "balanced"],
        "none, or balanced for rare labels (none).",
        "Training",
        metavar="HOW",
    ),
    Flag("label-smoothing", "label_smoothing", float, "In 0 to 1 (0).", "Training", metavar="X"),
    Flag("eval-every", "eval_every", int, "Steps between evaluations (an epoch).", "Training", metavar="N"),
    Flag(
        "gradient-checkpointing",
        "gradient_checkpointing",
        bool,
        "Less memory, the same bits, slower.",
        "Training",
    ),
    Flag("patience", "patience", int, "Stop after so many without a better one.", "Training", metavar="N"),
    Flag(
        "keep",
        "keep",
        Literal["auto", "best", "last"],
        "The best, the last, or auto: the last unless an earlier is clearly better.",
        "Training",
        metavar="WHICH",
    ),
    Flag(
        "precision",
        "precision",
        Literal["auto", "fp32", "bf16", "int8"],
        "Of the base: auto, fp32, bf16; int8: not exact, says how far off (auto).",
        "Training",
        metavar="TYPE",
    ),
    Flag(
        "mode",
        "mode",
        Literal["auto", "packed", "padded"],
        "auto, packed or padded (auto).",
        "Training",
        metavar="HOW",
    ),
    Flag("device", "device", str, "auto, cpu, cuda or mps (auto).", "Training", metavar="NAME"),
    Flag(
        "threads",
        "threads",
        str,
        "That compute; auto measures (auto).",
        "Training",
        metavar="N",
        read=_threads,
    ),
    Flag("kernels", "kernels", str, "auto, compiled or pytorch (auto).", "Training", metavar="WHICH"),
    Flag("seed", "seed", int, "Of new weights, order and dropout (0).", "Training", metavar="N"),
    Flag("no-baselines", "baselines", bool, "Don't compare with simpler means.", "Training", read=_no),
    Flag(
        "tracker",
        "trackers",
        list[str],
        "tensorboard, wandb, ...; may be repeated.",
        "Training",
        metavar="NAME",
    ),
)

COLUMNS = DATA[:4]
WRITTEN = tuple(flag for flag in DATA if flag.name in ("delimiter", "encoding", "no-header"))
"""How a file is written."""
TASK = Flag("task", "task", str, "What to learn, such as regression (auto).", "Data", "t", metavar="NAME")
VARIANT = next(flag for flag in DATA if flag.name == "variant")

SETTINGS = (TASK, *DATA, *BASE, *ADAPTER, *TRAINING)
"""All of them, as `veneer train` takes them."""
