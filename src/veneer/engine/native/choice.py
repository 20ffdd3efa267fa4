"""Whether the compiled kernels are used: for a process, as the number of threads is.

The last bits of a result depend on it, so a run keeps what it began with.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn

from veneer.engine.native.build import NotBuiltError, built
from veneer.engine.native.kernels import Kernels, fits
from veneer.engine.native.signatures import Adapters, Part, Texts
from veneer.errors import ConfigError
from veneer.naming import setting

__all__ = ["KernelChoice", "choose_kernels", "kernels", "kernels_for", "own_kernels", "use_kernels"]

Wanted = Literal["auto", "compiled", "pytorch"]


@dataclass(frozen=True)
class KernelChoice:
    """Which kernels compute, and why.

    Attributes:
        name: "compiled" or "pytorch".
        reason: in words for the user.
    """

    name: Literal["compiled", "pytorch"]
    reason: str


class _Process:
    """What this process uses: nothing is decided until it is asked for."""

    decided = False
    now: Kernels | None = None


def kernels() -> Kernels | None:
    """The compiled kernels, where this process uses them; what was not decided is decided as "auto"."""
    if not _Process.decided:
        use_kernels(choose_kernels("auto", torch.device("cpu")))
    return _Process.now


def kernels_for(*tensors: Tensor) -> Kernels | None:
    """`kernels`, where they take all of these."""
    return kernels() if all(fits(x) for x in tensors) else None


def choose_kernels(wanted: Wanted, device: torch.device) -> KernelChoice:
    """What a run on `device` computes with; compiles the kernels if they are not yet, and tries them.

    Args:
        wanted: "auto": the compiled ones where there are any.
        device: they are of use on a CPU only.

    Raises:
        ConfigError: "compiled" was asked for, and there are none.
    """
    if wanted == "pytorch":
        return KernelChoice("pytorch", "asked for")
    if device.type != "cpu":
        if wanted == "compiled":
            raise ConfigError(
                f"{setting('kernels', 'compiled')}: the compiled kernels are for CPUs, and this computes on "
                f"{device.type}. Leave it out, or give {setting('kernels', 'pytorch')}."
            )
        return KernelChoice("pytorch", f"computed on {device.type}")
    try:
        _, compiler = _tried()
    except NotBuiltError as error:
        if wanted == "compiled":
            raise ConfigError(
                f"{setting('kernels', 'compiled')}: the compiled kernels can't be used here: {error}. Mend that, or "
                f"give {setting('kernels', 'pytorch')}; the last bits of a result depend on it."
            ) from error
        return KernelChoice("pytorch", f"compiled ones are faster, but {error}")
    asked = "asked for" if wanted == "compiled" else "faster than PyTorch's operators"
    return KernelChoice("compiled", f"{asked}; made by {compiler}")


def use_kernels(choice: KernelChoice) -> None:
    """Compute with them from now on, in this process."""
    _Process.now = _tried()[0] if choice.name == "compiled" else None
    _Process.decided = True


@contextmanager
def own_kernels() -> Iterator[None]:
    """Inside, the kernels may be chosen; afterwards it is as it was."""
    before = _Process.decided, _Process.now
    try:
        yield
    finally:
        _Process.decided, _Process.now = before


@lru_cache(maxsize=1)
def _tried() -> tuple[Kernels, str]:
    """The kernels, after they gave what PyTorch gives on small examples, and what compiled them."""
    library = built()
    try:
        found = Kernels(library.library)
    except AttributeError as error:
        raise NotBuiltError(f"what {library.compiler} made lacks a function: {error}") from error
    with torch.inference_mode(False), torch.no_grad():
        for name, given, expected, rounding in _examples(found):
            off = 1e-5 + rounding * float(expected.abs().max())
            if not torch.allclose(given, expected, rtol=1e-4, atol=off):
                raise NotBuiltError(
                    f"what {library.compiler} made computes another {name} than PyTorch on this machine"
                )
    return found, library.compiler


def _examples(found: Kernels) -> Iterator[tuple[str, Tensor, Tensor, float]]:
    """(what, by the kernels, by PyTorch, how far apart they may be, of the largest number)."""
    yield from ((*example, 0.0) for example in _examples_of_rows(found))
    yield from _examples_of_attention(found)
    yield from ((*example, 0.0) for example in _examples_of_lora(found))


def _examples_of_rows(found: Kernels) -> Iterator[tuple[str, Tensor, Tensor]]:
    """In fp32, which goes through the same lines as bf16."""
    x = torch.arange(1200, dtype=torch.float32).mul_(0.37).sin_().mul_(3.0).view(20, 60)
    for name, of in (("silu", nn.functional.silu), ("gelu", nn.functional.gelu)):
        yield name, found.value(name, x), of(x)
    yield "tanh form of GELU", found.value("gelu_tanh", x), nn.functional.gelu(x, approximate="tanh")
    y, mean, inverse = found.norm(x, x[0], x[1], 1e-5, centred=True)
    yield "layer norm", y, nn.functional.layer_norm(x, (60,), x[0], x[1])
    with torch.enable_grad():
        wanted = x.clone().requires_grad_()
        (of_x,) = torch.autograd.grad(nn.functional.layer_norm(wanted, (60,), x[0], x[1]), wanted, x.cos())
    yield "gradient of a layer norm", found.norm_gradient(x.cos(), x, x[0], mean, inverse, x), of_x + x


def _examples_of_attention(found: Kernels) -> Iterator[tuple[str, Tensor, Tensor, float]]:
    """In fp32, and in bf16 in the shapes of a matrix unit's tiles."""
    lengths = (2, 17, 40)
    for size, dtype, rounding in ((10, torch.float32, 0.0), (32, torch.bfloat16, 0.02)):
        first = torch.tensor([0, 2, 19, 59], dtype=torch.int32)
        texts = Texts(first, first, 59, 40, 40, 2, 2, size, 0.3, causal=True)
        qkv = torch.arange(59 * 6 * size, dtype=torch.float32).mul_(0.37).sin_().view(59, -1).to(dtype)
        grad = qkv[:, : 2 * size].cos()
        with torch.enable_grad():
            wanted = qkv.float().requires_grad_()
            y = torch.cat([_attention(text, size) for text in wanted.split(lengths)])
            (of_qkv,) = torch.autograd.grad(y, wanted, grad.float())
        yield "attention", found.attend(qkv, texts).float(), y.detach(), rounding
        yield "gradient of attention", found.attend_gradient(qkv, grad, texts).float(), of_qkv, rounding


def _attention(qkv: Tensor, size: int) -> Tensor:
    """One causal text (n, 6 D) of two heads, scores times 0.3, as it is written -> (n, 2 D)."""
    q, k, v = qkv.view(len(qkv), 3, 2, size).permute(1, 2, 0, 3)
    seen = torch.ones(len(qkv), len(qkv), dtype=torch.bool).tril()
    p = (q @ k.transpose(1, 2) * 0.3).masked_fill(~seen, -torch.inf).softmax(-1)
    return (p @ v).transpose(0, 1).flatten(1)


def _examples_of_lora(found: Kernels) -> Iterator[tuple[str, Tensor, Tensor]]:
    """In fp32; also in bf16 and the shapes of a matrix unit's tiles, with numbers that need no rounding."""
    x = torch.arange(1200, dtype=torch.float32).mul_(0.37).sin_().mul_(3.0).view(20, 60)
    A, B = x[:5, :60].contiguous(), x[:, 10:15].contiguous()
    y = torch.zeros(20, 20)
    found.lora_forward(x, y, Adapters([Part(A, B, 0, 0.7)]))
    yield "LoRA product", y, 0.7 * (x @ A.t()) @ B.t()
    ones = torch.arange(64 * 64).remainder(7).eq(0).float().view(64, 64)
    A, B = ones[:5].contiguous(), ones[:, :5].contiguous()
    x, adapters = ones.bfloat16(), Adapters([Part(A, B, 0, 2.0)])
    y, of_x = torch.zeros_like(x), torch.zeros_like(x)
    h = found.lora_forward(x, y, adapters)
    of_A, of_B = found.lora_backward(x, x, h, of_x, adapters)
    for given, expected in (
        (y, 2.0 * (ones @ A.t()) @ B.t()),
        (of_x, 2.0 * (ones @ B) @ A),
        (of_A, 2.0 * (ones @ B).t() @ ones),
        (of_B, 2.0 * ones.t() @ (ones @ A.t())),
    ):
        yield "LoRA product in bf16", given.float(), expected.to(given.dtype).float()
    for dtype in (torch.float32, torch.bfloat16):
        if found.takes_frozen(dtype, 64, 64):
            yield from _examples_of_frozen(found, ones.to(dtype), adapters)


def _examples_of_frozen(
    found: Kernels, ones: Tensor, adapters: Adapters
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Products of a matrix (64, 64) with itself as a frozen weight and an adapter of it, in its dtype."""
    (part,), wide = adapters.parts, ones.float()
    y, _ = found.frozen_forward(ones, found.frozen_tiles(ones, transposed=False), ones[0], ones, adapters)
    expected = wide @ wide.t() + wide[0] + wide + part.scaling * (wide @ part.A.t()) @ part.B.t()
    yield "product with a frozen weight", y.float(), expected.to(ones.dtype).float()
    of_x, _ = found.frozen_backward(ones, found.frozen_tiles(ones, transposed=True), ones, adapters=adapters)
    expected = wide @ wide + wide + part.scaling * (wide @ part.B) @ part.A
    yield "gradient through a frozen weight", of_x.float(), expected.to(ones.dtype).float()
