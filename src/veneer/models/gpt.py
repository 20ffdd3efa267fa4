"""GPT-2, written out to be read in ten minutes: the base of the book's recipe, and an oracle for the tests.

The architecture is that of Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; the
names are those of S. Raschka, "Build a Large Language Model (From Scratch)", chapter 4. Query, key and value
are three `nn.Linear` layers, so that each can have a LoRA adapter of its own. There is no dropout.

One seam: attention is a call `attend(q, k, v, causal=True)`, given to `forward`. The default is plain causal
attention; the packed engine gives its own. `gpt_weights.py` reads the published weights: this file knows
nothing of files, adapters, tasks or packing.

Shapes: B texts, T tokens, S tokens with those in the cache, C = emb_dim, H heads, D = C / H, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from veneer.errors import BaseError, ConfigError

__all__ = ["GPT", "SIZES", "Attend", "GPTConfig", "LayerCache", "causal_attention"]


@dataclass(frozen=True)
class GPTConfig:
    """The sizes of a GPT-2; the defaults are those of GPT-2 small. Raises ConfigError."""

    emb_dim: int = 768
    n_heads: int = 12  # divides emb_dim
    n_layers: int = 12
    context_length: int = 1024  # tokens: how many positions have an embedding
    vocab_size: int = 50257  # tokens

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 1 or self.emb_dim % self.n_heads:
            raise ConfigError(
                f"{self} can't be built. Every size is at least 1, and n_heads divides emb_dim."
            )


SIZES: Mapping[str, GPTConfig] = MappingProxyType(
    {
        "124M": GPTConfig(768, 12, 12),  # the hub's gpt2
        "355M": GPTConfig(1024, 16, 24),  # gpt2-medium
        "774M": GPTConfig(1280, 20, 36),  # gpt2-large
        "1558M": GPTConfig(1600, 25, 48),  # gpt2-xl
    }
)


class Attend(Protocol):
    """How queries read keys and values: q (B, H, T, D), k and v (B, H, S, D) -> (B, H, T, D)."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = True) -> Tensor: ...


def causal_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = True) -> Tensor:
    """softmax(q kᵀ / √D) v. The T queries are the last of S positions; each sees itself and those before."""
    T, S = q.shape[-2], k.shape[-2]
    if causal and 1 < T < S:  # torch's is_causal would put the first query at the first position
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal and T == S)


class LayerCache:
    """The keys and values that one block has computed so far, (B, H, S, D) each; empty at first."""

    def __init__(self) -> None:
        self.k: Tensor | None = None
        self.v: Tensor | None = None

    def __len__(self) -> int:
        return 0 if self.k is None else self.k.shape[-2]

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append the new k and v (B, H, T, D); returns all of them (B, H, S, D)."""
        self.k = k if self.k is None else torch.cat([self.k, k], dim=-2)
        self.v = v if self.v is None else torch.cat([self.v, v], dim=-2)
        return self.k, self.v


class MultiHeadAttention(nn.Module):
    """Causal self-attention over H heads of width D."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        C = config.emb_dim
        self.n_heads = config.n_heads
        self.W_query = nn.Linear(C, C)
        self.W_key = nn.Linear(C, C)
        self.W_value = nn.Linear(C, C)
        self.out_proj = nn.Linear(C, C)

    def forward(self, x: Tensor, attend: Attend, cache: LayerCache | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C); with a cache the T tokens stand behind those in it and see them, and join it."""
        q = self._split(self.W_query(x))  # (B, H, T, D)
        k = self._split(self.W_key(x))  # (B, H, T, D)
        v = self._split(self.W_value(x))  # (B, H, T, D)
        if cache is not None:
            k, v = cache.extend(k, v)  # (B, H, S, D)
        out = attend(q, k, v, causal=True)  # (B, H, T, D)
        return self.out_proj(out.transpose(1, 2).flatten(2))  # (B, T, H, D) -> (B, T, C)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # (B, T, C) -> (B, H, T, D)


class FeedForward(nn.Module):
    """C -> 4C -> C, with the tanh form of GELU that GPT-2 was trained with."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        C = config.emb_dim
        self.layers = nn.Sequential(nn.Linear(C, 4 * C), nn.GELU(approximate="tanh"), nn.Linear(4 * C, C))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C), each token by itself."""
        return self.layers(x)


class TransformerBlock(nn.Module):
    """Attention, then feed-forward, each behind its layer norm and added to what came in."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.emb_dim)
        self.att = MultiHeadAttention(config)
        self.norm2 = nn.LayerNorm(config.emb_dim)
        self.ff = FeedForward(config)

    def forward(
        self, x: Tensor, attend: Attend = causal_attention, cache: LayerCache | None = None
    ) -> Tensor:
        """(B, T, C) -> (B, T, C); `attend` and `cache` as in `MultiHeadAttention`."""
        x = x + self.att(self.norm1(x), attend, cache)  # (B, T, C)
        return x + self.ff(self.norm2(x))  # (B, T, C)


class GPT(nn.Module):
    """GPT-2, with random weights of its own initialisation. The head's weight is the token embedding's."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_emb = nn.Embedding(config.vocab_size, config.emb_dim)
        self.pos_emb = nn.Embedding(config.context_length, config.emb_dim)
        self.trf_blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.n_layers))
        self.final_norm = nn.LayerNorm(config.emb_dim)
        self.out_head = nn.Linear(config.emb_dim, config.vocab_size, bias=False)
        self.tie_head()
        self.apply(self._init_weights)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        *,
        attend: Attend = causal_attention,
        cache: list[LayerCache] | None = None,
    ) -> Tensor:
        """The logits (B, T, V) of every position, or (B, T, labels) with a classification head.

        Args:
            input_ids: (B, T) int64.
            position_ids: (B, T) or (T,), default counted from the cache's end.
            attend: what computes attention; the packed engine's keeps apart the texts that lie in one row.
            cache: from `new_cache`, extended in place by T tokens.

        Raises:
            BaseError: the tokens reach beyond the context length.
        """
        return self.out_head(self.hidden_states(input_ids, position_ids, attend=attend, cache=cache))

    def hidden_states(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        *,
        attend: Attend = causal_attention,
        cache: list[LayerCache] | None = None,
    ) -> Tensor:
        """What the head reads, (B, T, C), after the final norm; arguments as for `forward`."""
        x = self.embed(input_ids, position_ids, start=len(cache[0]) if cache else 0)
        for i, block in enumerate(self.trf_blocks):
            x = block(x, attend, cache[i] if cache else None)
        return self.final_norm(x)

    def embed(self, input_ids: Tensor, position_ids: Tensor | None = None, *, start: int = 0) -> Tensor:
        """Token plus position embeddings, (B, T, C): what the first block reads."""
        if position_ids is None:
            end = start + input_ids.shape[-1]
            if end > self.config.context_length:
                raise BaseError(
                    f"The text has {end} tokens, this GPT {self.config.context_length}. Cut the text."
                )
            position_ids = torch.arange(start, end, device=input_ids.device)  # (T,)
        return self.tok_emb(input_ids) + self.pos_emb(position_ids)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        stop_token: int | None = None,
        generator: torch.Generator | None = None,
        use_cache: bool = True,
    ) -> Tensor:
        """Continue B prompts of one length: (B, T) int64 -> (B, T + up to max_new_tokens).

        temperature: 0 takes the likeliest token, above 0 samples from softmax(logits / temperature). top_k:
        sample among the k likeliest only. stop_token: a row that has produced it goes on with it; when every
        row has, the loop ends. generator: the source of randomness. use_cache: keep keys and values; same
        tokens, less work. Beyond context_length the window slides and every position changes: there each step
        computes it anew.
        """
        if temperature < 0 or (top_k is not None and top_k < 1):
            raise ConfigError(f"Got {temperature=}, {top_k=}. Expected a temperature >= 0 and a top_k >= 1.")
        cache, done = None, torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for _ in range(max_new_tokens):
            if cache is not None and input_ids.shape[1] <= self.config.context_length:
                hidden = self.hidden_states(input_ids[:, -1:], cache=cache)  # (B, 1, C)
            else:
                cache = self.new_cache() if use_cache else None
                window = input_ids[:, -self.config.context_length :]
                hidden = self.hidden_states(window, cache=cache)  # (B, T, C)
            logits = self.out_head(hidden[:, -1])  # (B, V)
            token = _choose(logits, temperature, top_k, generator)  # (B,)
            if stop_token is not None:
                token = token.masked_fill(done, stop_token)
                done |= token == stop_token
            input_ids = torch.cat([input_ids, token[:, None]], dim=1)  # (B, T + 1)
            if done.all():
                break
        return input_ids

    def new_cache(self) -> list[LayerCache]:
        """An empty key-value cache, one a block."""
        return [LayerCache() for _ in self.trf_blocks]

    def set_classification_head(self, num_labels: int) -> None:
        """Replace the output head by a fresh `nn.Linear(emb_dim, num_labels)`, with bias."""
        weight = self.tok_emb.weight
        self.out_head = nn.Linear(self.config.emb_dim, num_labels, device=weight.device, dtype=weight.dtype)

    def tie_head(self) -> None:
        """Let the output head use the token embedding's own weight, as in GPT-2."""
        self.out_head.weight = self.tok_emb.weight

    def _init_weights(self, module: nn.Module) -> None:
        """N(0, 0.02²) and zero biases; narrower where a block adds to the residual stream."""
        if isinstance(module, TransformerBlock):
            for name in ("att.out_proj.weight", "ff.layers.2.weight"):
                nn.init.normal_(module.get_parameter(name), std=0.02 / math.sqrt(2 * self.config.n_layers))
        elif isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)


def _choose(
    logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None
) -> Tensor:
    """The next token of each row: logits (B, V) -> (B,) int64."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    if top_k is not None:
        kth = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < kth, -math.inf)
    probabilities = (logits / temperature).softmax(dim=-1)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
