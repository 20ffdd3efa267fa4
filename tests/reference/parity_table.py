"""Write docs/parity.md: packed against padded for each family, and against PEFT.

    PYTHONPATH=src python tests/reference/parity_table.py > docs/parity.md

The figures are those of the machine that it runs on; the tests hold the same comparison to the limits named there.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from reference.families import FAMILIES, LENGTHS, PADDED_ONLY, compare
from reference.peft_oracle import KINDS, compare_with_peft
from veneer.engine import Runner

_HEAD = """# Parity: packed against padded

Veneer lays the texts of a batch end to end. This table holds that against the plain computation: transformers' own
`...ForSequenceClassification`, texts padded on the right, eager attention, fp32, no dropout. The models are small and
random, with every parameter drawn. The batches: {batches} tokens.

*Loss*: the largest absolute difference of the losses (which are about 1). *Gradients*: the largest difference of any
entry of any parameter's gradient, over the largest gradient entry of the model. The figures are the worst of the
batches. The tests (`tests/engine/test_engine_families.py`) hold both to 2e-6.

Written by `tests/reference/parity_table.py` with torch {torch} and transformers {transformers}.

| family | special | runs | loss | gradients |
|---|---|---|---|---|
"""


def table() -> str:
    """The whole page."""
    batches = "; ".join(f"{name}: {', '.join(map(str, lengths))}" for name, lengths in LENGTHS.items())
    page = _HEAD.format(
        batches=batches, torch=torch.__version__.split("+")[0], transformers=transformers.__version__
    )
    for name, family in FAMILIES.items():
        loss, gradients = (
            max(pair) for pair in zip(*(compare(family, n) for n in LENGTHS.values()), strict=True)
        )
        page += f"| {name} | {family.special} | packed | {loss:.0e} | {gradients:.0e} |\n"
    for name, family in PADDED_ONLY.items():
        runner = Runner.of(family.model())
        page += f"| {name} | {family.special} | {runner.mode} | the plain computation | itself |\n"
    page += (
        "\nWith LoRA (r 4, on every linear layer but the head) the oracle is PEFT, padded, with the same A, B and\n"
        "head; the gradients are those of A, B and the head. Held to 1e-5.\n\n"
        "| family | loss | gradients |\n|---|---|---|\n"
    )
    for name in KINDS:
        loss, gradients = compare_with_peft(FAMILIES[name], LENGTHS["mixed"])
        page += f"| {name} | {loss:.0e} | {gradients:.0e} |\n"
    return page


if __name__ == "__main__":
    sys.stdout.write(table())
