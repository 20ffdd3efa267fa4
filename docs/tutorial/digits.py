"""The tutorial's small world: real pictures of digits, a small network that reads them, and a plain training
loop.

The pictures are scikit-learn's (1,797 scans of 8 x 8 points), so that nothing is downloaded and every chapter
runs in seconds. The customer's scanner turns pictures by 90 degrees: that is what the base, trained on
upright ones, has to be adapted to. Nothing here knows LoRA.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn


def pictures(turns: int = 0, *, train: int = 1000) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training pictures (train, 64) in [0, 1], their digits, validation pictures and their digits.

    `turns` quarter turns are made of each picture; the split is the same for every number of turns.
    """
    data = load_digits()
    x = torch.tensor(data.images / 16.0, dtype=torch.float32)  # (1797, 8, 8)
    x = torch.rot90(x, turns, dims=(1, 2)).flatten(1)  # (1797, 64)
    y = torch.tensor(data.target, dtype=torch.int64)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(123))
    training, validation = order[:train], order[1000:]
    return x[training], y[training], x[validation], y[validation]


def new_network(seed: int = 0) -> nn.Sequential:
    """64 -> 128 -> 128 -> 10, in layers named "0", "2" and "4"."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )  # fmt: skip


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of pictures whose likeliest digit is the right one."""
    with torch.no_grad():
        return (model(x).argmax(dim=1) == y).float().mean().item()


def train(
    model: nn.Module,
    data: tuple[Tensor, Tensor, Tensor, Tensor],
    *,
    lr: float,
    epochs: int,
    batch: int = 50,
    parameters: Iterable[nn.Parameter] | None = None,
) -> list[dict[str, float]]:
    """AdamW on cross-entropy, over the given parameters or all that require a gradient; the losses of each
    epoch.
    """
    x, y, x_val, y_val = data
    chosen = (
        list(parameters) if parameters is not None else [p for p in model.parameters() if p.requires_grad]
    )
    optimizer = torch.optim.AdamW(chosen, lr=lr)
    generator = torch.Generator().manual_seed(0)
    history = []
    for epoch in range(1, epochs + 1):
        for part in torch.randperm(len(x), generator=generator).split(batch):
            optimizer.zero_grad()
            F.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
        with torch.no_grad():
            losses = F.cross_entropy(model(x), y).item(), F.cross_entropy(model(x_val), y_val).item()
        history.append(
            {"epoch": epoch, "seen": epoch * len(x), "training": losses[0], "validation": losses[1]}
        )
    return history


def trained_base() -> nn.Sequential:
    """The network after 20 epochs on upright pictures: the base of the later chapters."""
    base = new_network()
    train(base, pictures(), lr=1e-3, epochs=20)
    return base
