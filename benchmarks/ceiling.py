"""The ceiling: every weight of the base trained, no adapter, on the rows and the split that Veneer would train on.

    python -m benchmarks.ceiling ../shared/data/xquad/xquad.en.json --epochs 3 --learning-rate 5e-5

Data, head, features, loss and metrics are those of Veneer's task, so that nothing but what is trained differs; the
model is run by transformers' own forward, padded, with its dropout, as its examples do. The weights after the last
epoch are measured. It writes no model.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and print the figures of validation and test."""
    options = _parser().parse_args(arguments)
    sys.path.insert(0, str(ROOT / "src"))
    found = run(options)
    print(json.dumps(found, indent=None if options.json else 1, ensure_ascii=False))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ceiling", description=__doc__)
    parser.add_argument("source", help="as for veneer train")
    parser.add_argument("--validation", help="a file of the validation rows")
    parser.add_argument("--test", help="a file of the test rows")
    parser.add_argument("--base", help="default: Veneer's")
    parser.add_argument("--task", default="auto")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="options of the task")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-dropout", action="store_true", help="without the base's own dropout")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16: autocast")
    parser.add_argument("--json", action="store_true", help="on one line")
    return parser


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The figures, with all settings."""
    import torch
    import yaml

    from veneer.data.config import DataConfig
    from veneer.data.sources import Source
    from veneer.engine import Runner
    from veneer.models import load_base
    from veneer.models.locate import DEFAULT_BASE
    from veneer.tasks.inference import infer_kind
    from veneer.tasks.kind import Making

    named = {"validation": options.validation, "test": options.test, "seed": options.seed}
    source = Source(DataConfig.parse({"source": options.source, **named}))
    name = options.base or DEFAULT_BASE
    kind, _ = infer_kind(options.task, source, name)
    given = {key: yaml.safe_load(value) for key, _, value in (one.partition("=") for one in options.set)}
    chosen = kind.options.parse(given, where="--set")
    prepared = kind.prepare(source, chosen)
    base = load_base(name, head=kind.head(prepared, chosen), seed=options.seed)
    task = kind.make(Making(prepared, base, chosen))
    limit = min(base.max_length, options.max_length or base.max_length)
    stores = {
        split.name: task.encode(split, base.tokenizer, limit) for split in prepared.splits if len(split)
    }
    runner = Runner.of(base.model, mode="padded")
    began = time.perf_counter()
    autocast = torch.autocast("cpu", torch.bfloat16) if options.precision == "bf16" else nullcontext()
    with autocast:
        losses = _train(base.model, runner, task, stores["train"], options)
        seconds = time.perf_counter() - began
        outputs = {
            part: _outputs(base.model, runner, task, stores[part]) for part in stores if part != "train"
        }
    if kind.settle is not None and "validation" in outputs:
        task = kind.settle(task, outputs["validation"], stores["validation"])
    settings = {key: value for key, value in vars(options).items() if key != "json"}
    return {
        **settings,
        "task": kind.name,
        "base": name,
        "trained_parameters": sum(p.numel() for p in base.model.parameters()),
        "sizes": {split.name: len(split) for split in prepared.splits},
        "training_seconds": round(seconds, 1),
        "losses": losses,
        "metrics": {
            part: task.metrics(found, stores[part]).summary().to_json() for part, found in outputs.items()
        },
    }


def _train(model: Any, runner: Any, task: Any, store: Any, options: argparse.Namespace) -> list[float]:
    """Train in place; the mean loss of each epoch."""
    import torch

    from veneer.tasks.base import packed_rows
    from veneer.training.schedule import Plan, rate_factor

    torch.manual_seed(options.seed)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model.train(not options.no_dropout)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, weight_decay=options.weight_decay)
    plan = Plan(len(store), options.batch_size, 1, options.epochs, options.seed)
    losses, sums = [], [0.0, 0]
    for step in range(plan.steps):
        (rows,) = plan.batches(step)
        packed = packed_rows(store, rows)
        targets = task.collate(store.targets[rows[list(packed.order)]])
        states = runner.hidden_states(packed, task.reads(packed.layout, targets))
        loss = task.loss(task.outputs(model, states, packed.layout, targets), targets, packed.layout)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * rate_factor(step, plan.steps, warmup=0.1, schedule="linear")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        sums = [sums[0] + loss.item() * len(rows), sums[1] + len(rows)]
        if (step + 1) % plan.steps_per_epoch == 0:
            losses.append(round(sums[0] / sums[1], 4))
            print(f"epoch {len(losses)} of {options.epochs}: loss {losses[-1]}", file=sys.stderr)
            sums = [0.0, 0]
    model.eval()
    return losses


def _outputs(model: Any, runner: Any, task: Any, store: Any) -> Any:
    """What the head says of a split, as `Adapted.outputs_of` gives it."""
    import numpy as np
    import torch

    from veneer.data.ragged import Ragged
    from veneer.tasks.adapted import length_batches
    from veneer.tasks.base import packed_rows

    found: list[Any] = [None] * len(store)
    with torch.inference_mode():
        for rows in length_batches(np.asarray(store.lengths, np.int64)):
            packed = packed_rows(store, rows)
            order = rows[list(packed.order)]
            targets = task.collate(store.targets[order])
            reads = task.reads(packed.layout, targets)
            states = runner.hidden_states(packed, reads)
            part = task.outputs(model, states, packed.layout, targets).float().numpy()
            if task.per == "text":
                pieces = list(part)
            else:
                places = np.arange(packed.tokens) if reads is None else reads.numpy()
                counts = np.bincount(packed.layout.text_of_token.numpy()[places], minlength=len(order))
                pieces = np.split(part, np.cumsum(counts)[:-1])
            for row, piece in zip(order.tolist(), pieces, strict=True):
                found[row] = piece
    return np.stack(found) if task.per == "text" else Ragged.of(found, np.float32)


if __name__ == "__main__":
    raise SystemExit(main())
