"""What a configuration comes to on one model: which modules, with which numbers, selected by which pattern.

Facts for reports and for the layers that are built from them. This file must not know how they are found out.
"""

from __future__ import annotations

from dataclasses import dataclass

from veneer.lora.layers import Layout

__all__ = ["PatternMatch", "Resolution", "Target"]


@dataclass(frozen=True)
class Target:
    """A module that is adapted."""

    name: str
    layout: Layout
    in_features: int
    """n; the number of rows of an embedding."""
    out_features: int
    """m; the width of an embedding."""
    r: int
    lora_alpha: float
    scaling: float
    slices: tuple[int, ...] = ()
    """The slices of a fused projection that have a pair each; empty for an ordinary adapter."""
    slice_count: int = 1
    use_dora: bool = False

    @property
    def parameters(self) -> int:
        """The number of trained values of A and B, and of DoRA's magnitude."""
        if self.slices:
            return len(self.slices) * self.r * (self.in_features + self.out_features // self.slice_count)
        return self.r * (self.in_features + self.out_features) + self.use_dora * self.out_features


@dataclass(frozen=True)
class PatternMatch:
    """One entry of one field of the configuration, and the modules it selected."""

    field: str
    pattern: str
    modules: tuple[str, ...]

    def __str__(self) -> str:
        shown = ", ".join(self.modules[:4]) + (", ..." if len(self.modules) > 4 else "")
        return f"{self.field} {self.pattern!r}: {len(self.modules)} ({shown})"


@dataclass(frozen=True)
class Resolution:
    """A configuration resolved on a model."""

    targets: tuple[Target, ...]
    patterns: tuple[PatternMatch, ...]
    saved: tuple[str, ...]
    """Modules of `modules_to_save`, by full name."""
    biases: tuple[str, ...]
    """Biases that train, by full name."""
    saved_parameters: int
    """The number of values in `saved`."""
    bias_parameters: int
    """The number of values in `biases`."""

    @property
    def trainable(self) -> int:
        """The number of values that train: A, B, the biases and the saved modules."""
        return (
            sum(target.parameters for target in self.targets) + self.saved_parameters + self.bias_parameters
        )

    def lines(self) -> list[str]:
        """For people: each pattern with what it selected, then the numbers, one line each."""
        found = [str(match) for match in self.patterns]
        kinds: dict[tuple[str, int, int, int, float], int] = {}
        for target in self.targets:
            last = target.name.rpartition(".")[2]
            key = (
                f"{target.layout.value} {last}",
                target.in_features,
                target.out_features,
                target.r,
                target.scaling,
            )
            kinds[key] = kinds.get(key, 0) + 1
        for (what, n, m, r, scaling), count in kinds.items():
            found.append(f"{count} x {what} {n} -> {m}: r {r}, scaling {scaling:g}")
        found.append(
            f"trained values: {self.trainable:,} ({sum(t.parameters for t in self.targets):,} in A and B, "
            f"{self.saved_parameters:,} in whole modules, {self.bias_parameters:,} in biases)"
        )
        return found

    def __str__(self) -> str:
        return "\n".join(self.lines())
