"""How the tensors of a new adapter start: one function for each initialisation.

Each tensor has a random generator of its own, made from the seed and the tensor's name: the same seed gives
the same tensor whatever else is adapted, in whatever order, on whatever device, and torch's global state is
neither read nor changed. This file must not know modules or models.

r rank, n inputs, m outputs.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from veneer.errors import TargetError
from veneer.naming import setting

__all__ = ["draw_seed", "generator_for", "init_embedding", "init_linear", "init_pissa"]


def draw_seed() -> int:
    """A seed from torch's global generator, for those who give none."""
    return int(torch.randint(2**62, ()).item())


def init_linear(init: bool | str, r: int, n: int, m: int, *, seed: int, name: str) -> tuple[Tensor, Tensor]:
    """A (r, n) and B (m, r) in fp32 for a linear layer.

    True: A uniform in ±1/sqrt(n) (Kaiming with a = sqrt(5), as in nn.Linear), B zero. "gaussian": A normal
    with standard deviation 1/r, B zero. False: both as in nn.Linear, B not zero; for tests.
    """
    if init == "gaussian":
        lora_A = torch.empty(r, n).normal_(0.0, 1.0 / r, generator=generator_for(seed, f"{name}.lora_A"))
    else:
        lora_A = _uniform(r, n, seed, f"{name}.lora_A")
    lora_B = _uniform(m, r, seed, f"{name}.lora_B") if init is False else torch.zeros(m, r)
    return lora_A, lora_B


def init_embedding(
    init: bool | str, r: int, rows: int, width: int, *, seed: int, name: str
) -> tuple[Tensor, Tensor]:
    """A (r, rows) and B (width, r) in fp32 for an embedding: A zero, B normal, as in loralib and PEFT.

    False: both normal. PiSSA and Gaussian are the same as True here, as in PEFT.
    """
    lora_B = torch.empty(width, r).normal_(generator=generator_for(seed, f"{name}.lora_B"))
    if init is False:
        return torch.empty(r, rows).normal_(generator=generator_for(seed, f"{name}.lora_A")), lora_B
    return torch.zeros(r, rows), lora_B


def init_pissa(
    init: str, r: int, weight: Tensor, scaling: float, *, seed: int, name: str
) -> tuple[Tensor, Tensor]:
    """A = sqrt(S_r / scaling) V_r^T and B = U_r sqrt(S_r / scaling) of weight (m, n) = U S V^T, in fp32.

    "pissa" takes the whole singular value decomposition, "pissa_niter_N" a randomised one with N subspace
    iterations (Meng et al. 2024, arXiv:2404.02948, section 3; Halko et al. 2011, arXiv:0909.4061).

    Raises:
        TargetError: r is larger than the smaller side of the weight.
    """
    if r > min(weight.shape):
        raise TargetError(
            f"{name} has a weight of {tuple(weight.shape)}, so that PiSSA finds only {min(weight.shape)} "
            f"singular vectors, and {setting('lora.r', r)} asks for more. Lower it, or give this module a rank "
            "in rank_pattern."
        )
    W = weight.detach().to(torch.float32)
    if init == "pissa":
        U, S, V_t = torch.linalg.svd(W, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[W.device] if W.is_cuda else []):
            torch.manual_seed(_tensor_seed(seed, name))
            U, S, V = torch.svd_lowrank(W, r, niter=int(init.removeprefix("pissa_niter_")))
        V_t = V.t()
    root = torch.sqrt(S[:r] / scaling)  # (r,)
    return root[:, None] * V_t[:r], U[:, :r] * root


def _uniform(rows: int, columns: int, seed: int, name: str) -> Tensor:
    bound = 1.0 / math.sqrt(columns)
    return torch.empty(rows, columns).uniform_(-bound, bound, generator=generator_for(seed, name))


def generator_for(seed: int, name: str) -> torch.Generator:
    """A generator of its own for one tensor: the same for the same seed and name."""
    return torch.Generator().manual_seed(_tensor_seed(seed, name))


def _tensor_seed(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2
