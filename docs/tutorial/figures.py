"""Draws the tutorial's pictures, each from what its chapter computed: `python figures.py`.

A figure is a function that gets the chapter's namespace and returns a matplotlib figure. It computes nothing
itself that the chapter claims.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

matplotlib.use("Agg")
from matplotlib import pyplot as plt

FOLDER = Path(__file__).parent
BLUE, ORANGE, GREEN, GREY = "#2a6f97", "#d1661f", "#4d8b31", "#8a8a8a"
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def singular_values(chapter: Mapping[str, Any]) -> Figure:
    figure, axes = plt.subplots(figsize=(6.4, 3.4))
    for (name, D), color in zip(chapter["changes"].items(), (BLUE, ORANGE, GREEN), strict=True):
        S = torch.linalg.svdvals(D)
        axes.plot(
            range(1, len(S) + 1), S / S[0], color=color, label=f'layer "{name}", {D.shape[0]} x {D.shape[1]}'
        )
    S = torch.linalg.svdvals(chapter["noise"])
    axes.plot(range(1, len(S) + 1), S / S[0], "--", color=GREY, label="random, 128 x 128")
    axes.set(
        xlim=(1, 64),
        ylim=(0, 1.03),
        xlabel="singular value, the largest first",
        ylabel="size, the largest = 1",
    )
    axes.set_title("The change that fine-tuning made, by singular values", loc="left", fontsize=11)
    axes.legend()
    return figure


def shapes(chapter: Mapping[str, Any]) -> Figure:
    figure, axes = plt.subplots(figsize=(6.4, 2.7))
    d, thin = 4.0, 0.45
    parts = [  # left, bottom, width, height, color, name, size
        (0.0, 0.0, d, d, GREY, "W", f"{chapter['n_out']} x {chapter['n_in']}\nfrozen"),
        (5.6, 0.0, thin, d, ORANGE, "B", f"{chapter['n_out']} x r"),
        (6.9, d - thin, d, thin, BLUE, "A", f"r x {chapter['n_in']}"),
    ]
    for left, bottom, width, height, color, name, size in parts:
        axes.add_patch(Rectangle((left, bottom), width, height, facecolor=color, alpha=0.35, edgecolor=color))
        axes.text(
            left + width / 2, bottom + height / 2, name, ha="center", va="center", fontsize=13, weight="bold"
        )
        below = bottom - 0.3 if name != "W" else height / 2 - 0.55
        axes.text(left + width / 2, below, size, ha="center", va="top", color="#333333")
    axes.text(4.8, d / 2, "+", ha="center", va="center", fontsize=18)
    axes.text(
        6.9,
        d / 2 - 0.2,
        "as many numbers as the two strips:\nr (in + out), not in · out",
        va="top",
        color="#333333",
    )
    axes.set(xlim=(-0.3, 11.6), ylim=(-1.0, d + 0.3), aspect="equal")
    axes.axis("off")
    return figure


def accuracy_by_rank(chapter: Mapping[str, Any]) -> Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.2))
    ranks = chapter["ranks"]
    places = range(len(ranks))
    left.plot(places, [100 * a for a in chapter["accuracies"]], "o-", color=BLUE)
    full = 100 * chapter["accuracy"](chapter["tuned"], *chapter["turned"][2:])
    left.axhline(full, color=GREY, linestyle="--", linewidth=1)
    left.text(0, full + 1, "fully tuned", color="#555555", va="bottom")
    left.set(
        xticks=places,
        xticklabels=ranks,
        ylim=(0, 105),
        xlabel="rank kept",
        ylabel="accuracy on turned pictures, %",
    )
    S = chapter["S"]
    rest = [float((S[r:].square().sum() / S.square().sum()).sqrt()) for r in ranks]
    right.plot(places, [100 * e for e in rest], "o-", color=ORANGE)
    right.set(
        xticks=places,
        xticklabels=ranks,
        ylim=(0, 105),
        xlabel="rank kept",
        ylabel="left out of D (middle layer), %",
    )
    return figure


def four_starts(chapter: Mapping[str, Any]) -> Figure:
    figure, axes = plt.subplots(figsize=(6.4, 3.4))
    for (label, history), color in zip(chapter["losses"].items(), (BLUE, GREEN, GREY, ORANGE), strict=True):
        axes.plot([h["epoch"] for h in history], [h["training"] for h in history], color=color, label=label)
    axes.set(xlabel="epoch", ylabel="training loss", yscale="log")
    axes.set_title("Four ways to start", loc="left", fontsize=11)
    axes.legend(ncols=2, loc="lower left")
    return figure


def ways_to_adapt(chapter: Mapping[str, Any]) -> Figure:
    figure, axes = plt.subplots(figsize=(6.4, 3.4))
    for (label, history), color in zip(
        chapter["histories"].items(), (GREY, ORANGE, BLUE, GREEN), strict=True
    ):
        count = chapter["count_parameters"](chapter["models"][label]).trainable
        end = 100 * chapter["accuracies"][label]
        axes.plot(
            [h["epoch"] for h in history],
            [h["validation"] for h in history],
            color=color,
            label=f"{label}: {count:,} parameters, {end:.0f} %",
        )
    axes.set(xlabel="epoch", ylabel="validation loss", ylim=(0, 2.0), xticks=range(0, 21, 5))
    axes.set_title("Adapting the base to turned pictures", loc="left", fontsize=11)
    axes.legend()
    return figure


def four_curves(chapter: Mapping[str, Any]) -> Figure:
    figure, grid = plt.subplots(2, 2, figsize=(7.2, 5.2))
    for axes, (label, (history, end)) in zip(grid.flat, chapter["runs"].items(), strict=True):
        epochs = [h["epoch"] for h in history]
        axes.plot(epochs, [h["training"] for h in history], color=BLUE, label="training")
        axes.plot(epochs, [h["validation"] for h in history], "--", color=ORANGE, label="validation")
        top = 4.0 if label != "too slow" else 8.0
        axes.set(xlabel="epochs", ylabel="loss", ylim=(0, top), xlim=(0, epochs[-1]))
        seen_each = history[0]["seen"] / history[0]["epoch"]
        above = axes.secondary_xaxis(
            "top", functions=(lambda e, s=seen_each: e * s, lambda n, s=seen_each: n / s)
        )
        above.set_xlabel("examples seen")
        axes.text(
            0.97, 0.93, f"{label}\n{100 * end:.0f} % right", transform=axes.transAxes, ha="right", va="top"
        )
    grid[0, 0].legend(loc="lower left")
    return figure


def who_reads_what(chapter: Mapping[str, Any]) -> Figure:
    figure, axes = plt.subplots(figsize=(4.6, 3.4))
    names = list(chapter["table"])
    values = [[100 * chapter["table"][a][b] for b in names] for a in names]
    axes.imshow(values, cmap="Blues", vmin=0, vmax=130)
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            axes.text(
                j, i, f"{value:.0f} %", ha="center", va="center", color="white" if value > 70 else "black"
            )
    axes.set(xticks=range(len(names)), yticks=range(len(names)), xticklabels=names, yticklabels=names)
    axes.set(xlabel="pictures of", ylabel="adapter of")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


def storage(chapter: Mapping[str, Any]) -> Figure:
    """GPT-2 small, fp32: the counts are those of chapters 5 and 8."""
    assert chapter["of_base"] > chapter["of_adapter"]
    figure, axes = plt.subplots(figsize=(6.4, 3.4))
    customers = [1, 2, 5, 10, 20, 50, 100]
    base, gigabyte = 4 * 124_441_346, 1e9
    lines = [
        ("a full copy each", [n * base / gigabyte for n in customers], GREY),
        ("one base, rank 16 everywhere", [(base + n * 4 * 2_666_528) / gigabyte for n in customers], BLUE),
        ("one base, 12,288 numbers each", [(base + n * 4 * 12_288) / gigabyte for n in customers], GREEN),
    ]
    for label, sizes, color in lines:
        axes.plot(customers, sizes, "o-", color=color, markersize=4, label=label)
        axes.annotate(
            f"{sizes[-1]:.1f}",
            (customers[-1], sizes[-1]),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set(
        xscale="log", yscale="log", xlabel="customers", ylabel="GB on disk, GPT-2 small", xticks=customers
    )
    axes.set(xticklabels=customers, yticks=[0.5, 1, 5, 10, 50], yticklabels=["0.5", "1", "5", "10", "50"])
    axes.minorticks_off()
    axes.legend()
    return figure


FIGURES: dict[str, Callable[[Mapping[str, Any]], Figure]] = {
    "01-singular-values": singular_values,
    "02-shapes": shapes,
    "02-accuracy-by-rank": accuracy_by_rank,
    "03-four-starts": four_starts,
    "06-ways-to-adapt": ways_to_adapt,
    "07-four-curves": four_curves,
    "11-who-reads-what": who_reads_what,
    "11-storage": storage,
}


def draw(name: str, chapter: Mapping[str, Any], folder: Path) -> Path:
    """Draw one figure from its chapter's namespace into `folder`."""
    file = folder / f"{name}.png"
    with plt.rc_context(STYLE):
        figure = FIGURES[name](chapter)
        figure.savefig(file, dpi=90, metadata={"Software": None}, pil_kwargs={"optimize": True})
        plt.close(figure)
    return file


def main() -> None:
    """Run the chapters that have pictures, and draw them into figures/."""
    sys.path.insert(0, str(FOLDER))
    from chapters import chapters, run

    (FOLDER / "figures").mkdir(exist_ok=True)
    for chapter in chapters():
        names = [name for name in FIGURES if name[:2] == chapter.name[:2]]
        namespace = run(chapter) if names else {}
        for name in names:
            draw(name, namespace, FOLDER / "figures")


if __name__ == "__main__":
    main()
