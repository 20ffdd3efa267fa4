"""What stands behind attention in a transformer block, forward and backward by hand.

The projection, the sum with the block's input, the feed-forward layer and the norms around it: in GPT-2's and Llama's
order (a norm before the feed-forward layer) or BERT's (one after each sum). The composition of parts that have both
passes (`Joined`, `Activation`, norms); nothing is kept that the gradient does not need.

This file knows the order of the parts; what they hold is handed in.

Shapes: R rows, C hidden size, m width of the feed-forward layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from veneer.engine.activations import Activation
from veneer.engine.gated import Gated
from veneer.engine.joined import Joined
from veneer.engine.norms import norm_gradients, normed

__all__ = ["Tail", "TailGradients", "back_through", "normed_or_not", "parameters_of", "wanted"]


class TailGradients(NamedTuple):
    """What `Tail.backward` gives.

    Attributes:
        a, x: of the inputs, (R, C).
        norms: of the norms' parameters, in order.
        factors: of the adapters of out, up and down.
    """

    a: Tensor
    x: Tensor
    norms: list[Tensor | None]
    factors: list[Tensor | None]


@dataclass(frozen=True)
class Tail:
    """The part of a block behind attention, at one moment.

    Attributes:
        out, up, down: its products.
        activation: between up and down.
        inner: the norm before the feed-forward layer, `veneer.engine.norms.is_plain`.
        outer: the norm after it, in BERT's order; else None.
    """

    KEPT = 13  # tensors

    out: Joined
    up: Joined
    down: Joined
    activation: Activation | Gated
    inner: nn.Module
    outer: nn.Module | None

    @property
    def products(self) -> tuple[Joined, Joined, Joined]:
        """In the order of the forward pass."""
        return self.out, self.up, self.down

    @property
    def parameters(self) -> list[Tensor]:
        """Of the norms, in order."""
        return [*parameters_of(self.inner), *parameters_of(self.outer)]

    def alone(self, a: Tensor, x: Tensor) -> Tensor:
        """Attention's output (R, C) and the block's input (R, C) -> (R, C), and nothing that a gradient would want."""
        s, _ = self.out.forward(a, x)
        n, _ = normed(self.inner, s)
        y, _ = self.down.forward(self.up.activated(n, self.activation), s if self.outer is None else n)
        return normed_or_not(self.outer, y)[0]

    def forward(self, a: Tensor, x: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """The same, and what `backward` wants."""
        s, of_out = self.out.forward(a, x)
        n, of_inner = normed(self.inner, s)
        u, of_up = self.up.forward(n)
        f = self.activation.forward(u)
        y, of_down = self.down.forward(f, s if self.outer is None else n)
        y, of_outer = normed_or_not(self.outer, y)
        return y, [a, of_out, *of_inner, n, of_up, u, f, of_down, *of_outer]

    def backward(self, grad: Tensor, kept: Sequence[Any], need_norms: Sequence[bool]) -> TailGradients:
        """From the gradient of the output (R, C); `need_norms` says which of `parameters` want one."""
        a, of_out, *inner, n, of_up, u, f, of_down, outer_x, outer_mean, outer_inverse = kept
        split = len(parameters_of(self.inner))
        of_outer: list[Tensor | None] = []
        if self.outer is not None:
            outer = outer_x, outer_mean, outer_inverse
            grad, of_outer = norm_gradients(self.outer, grad, outer, need_norms[split:])
        g, down = back_through(self.down, grad, f, of_down)
        g = self.activation.backward(g, u)
        g, up = back_through(self.up, g, n, of_up, beside=None if self.outer is None else grad)
        beside = grad if self.outer is None else None
        g, of_inner = norm_gradients(
            self.inner, g, (inner[0], inner[1], inner[2]), need_norms[:split], beside
        )
        of_a, out = back_through(self.out, g, a, of_out)
        return TailGradients(of_a, g, [*of_inner, *of_outer], [*out, *up, *down])


def normed_or_not(norm: nn.Module | None, x: Tensor) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """x (R, C), normed where there is a norm, and the three tensors, or none, that `norm_gradients` wants."""
    return (x, (None, None, None)) if norm is None else normed(norm, x)


def parameters_of(norm: nn.Module | None) -> list[Tensor]:
    """A norm's parameters."""
    return [] if norm is None else [p for p in norm._parameters.values() if p is not None]


def wanted(product: Joined, x: Tensor, h: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """What `Joined.backward` takes: nothing where no factor wants a gradient."""
    return (x, h) if product.trained else (None, None)


def back_through(
    product: Joined, grad: Tensor, x: Tensor, h: Tensor | None, *, beside: Tensor | None = None
) -> tuple[Tensor, list[Tensor | None]]:
    """The gradients of a product's input and of its factors."""
    grad_x, of_factors = product.backward(grad, *wanted(product, x, h), need_x=True, beside=beside)
    assert grad_x is not None
    return grad_x, of_factors
