"""Kernels in C, compiled once on the machine that runs them, with PyTorch's operators as the other way.

`build` compiles and loads them, `kernels` and `products` call them with tensors. They know numbers and places in
memory; what they are used for is decided where they are called. They are used on CPUs, in fp32 and bf16.
"""

from veneer.engine.native.choice import (
    KernelChoice,
    choose_kernels,
    kernels,
    kernels_for,
    own_kernels,
    use_kernels,
)
from veneer.engine.native.kernels import Kernels, fits
from veneer.engine.native.signatures import NO_ADAPTERS, Adapters, Part, Texts

__all__ = [
    "NO_ADAPTERS",
    "Adapters",
    "KernelChoice",
    "Kernels",
    "Part",
    "Texts",
    "choose_kernels",
    "fits",
    "kernels",
    "kernels_for",
    "own_kernels",
    "use_kernels",
]
