"""The GPT-2 written out, held against transformers' GPT-2 and against itself without its shortcuts."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from veneer.engine import pack
from veneer.engine.attention import AttentionPattern, packed_attention
from veneer.errors import BaseError, ConfigError
from veneer.models.gpt import GPT, SIZES, GPTConfig, causal_attention
from veneer.models.gpt_weights import gpt_from_state

SMALL = GPTConfig(emb_dim=48, n_heads=3, n_layers=3, context_length=32, vocab_size=101)

# fp32 sums in another order, a few layers deep: the logits of random weights are of size 1.
CLOSE = 1e-4


def reference(config: GPTConfig, seed: int = 0) -> GPT2LMHeadModel:
    """transformers' GPT-2 with random weights, large enough that every part of it shows in the logits."""
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.context_length,
            n_embd=config.emb_dim,
            n_layer=config.n_layers,
            n_head=config.n_heads,
        )
    ).eval()
    if config.emb_dim < 100:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.15).add_(1.0 if parameter.ndim == 1 else 0.0)
    return model


def tokens(*shape: int, below: int = SMALL.vocab_size, seed: int = 1) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def theirs() -> GPT2LMHeadModel:
    return reference(SMALL)


@pytest.fixture(scope="module")
def ours(theirs: GPT2LMHeadModel) -> GPT:
    return gpt_from_state(theirs.state_dict(), config=SMALL)


def test_logits_are_those_of_transformers(theirs: GPT2LMHeadModel, ours: GPT) -> None:
    ids = tokens(4, 32)
    with torch.no_grad():
        expected, got = theirs(ids).logits, ours(ids)
    assert expected.std() > 0.5
    torch.testing.assert_close(got, expected, atol=CLOSE, rtol=0)


def test_given_positions_are_used(theirs: GPT2LMHeadModel, ours: GPT) -> None:
    ids, positions = tokens(2, 6), torch.tensor([[3, 4, 5, 6, 7, 8], [0, 1, 2, 0, 1, 2]])
    with torch.no_grad():
        torch.testing.assert_close(
            ours(ids, positions), theirs(ids, position_ids=positions).logits, atol=CLOSE, rtol=0
        )


def test_gradients_are_those_of_transformers(theirs: GPT2LMHeadModel) -> None:
    model = gpt_from_state(theirs.state_dict(), config=SMALL)
    ids = tokens(3, 12)
    torch.nn.functional.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    theirs.zero_grad()
    theirs(ids, labels=ids).loss.backward()
    block, stored = model.trf_blocks[1], theirs.transformer.h[1]
    fused = torch.cat([getattr(block.att, name).weight.grad for name in ("W_query", "W_key", "W_value")])
    torch.testing.assert_close(fused, stored.attn.c_attn.weight.grad.t(), atol=CLOSE, rtol=1e-4)
    torch.testing.assert_close(
        model.tok_emb.weight.grad, theirs.transformer.wte.weight.grad, atol=CLOSE, rtol=1e-4
    )


def test_full_size_logits_are_those_of_transformers() -> None:
    """GPT-2 small at its real size; random weights, so that the test needs no download."""
    theirs = reference(SIZES["124M"])
    state = theirs.state_dict()
    ids = tokens(1, 24, below=50257)
    with torch.no_grad():
        expected = theirs(ids).logits
        del theirs
        got = gpt_from_state(state)(ids)
    torch.testing.assert_close(got, expected, atol=CLOSE, rtol=0)


@pytest.mark.parametrize(
    ("size", "count"),
    [("124M", 124_439_808), ("355M", 354_823_168), ("774M", 774_030_080), ("1558M", 1_557_611_200)],
)
def test_parameter_counts_of_the_published_sizes(size: str, count: int) -> None:
    with torch.device("meta"):
        model = GPT(SIZES[size])
    assert sum(p.numel() for p in model.parameters()) == count


def test_a_classification_head_has_a_bias_and_the_recipe_s_count() -> None:
    with torch.device("meta"):
        model = GPT(SIZES["124M"])
        model.set_classification_head(2)
    assert sum(p.numel() for p in model.parameters()) == 124_441_346
    assert model(torch.zeros(3, 5, dtype=torch.long, device="meta")).shape == (3, 5, 2)


def test_one_more_token_changes_no_earlier_position(ours: GPT) -> None:
    ids = tokens(2, 10)
    changed = ids.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % SMALL.vocab_size
    with torch.no_grad():
        before, after = ours(ids), ours(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7], atol=1e-5, rtol=0)
    assert (before[:, 7:] - after[:, 7:]).abs().max() > 0.1


def test_logits_with_a_cache_are_those_without(ours: GPT) -> None:
    """In pieces of 5, 1, 4 and 2 tokens: a first piece, single tokens, and several tokens after others."""
    ids = tokens(2, 12)
    cache = ours.new_cache()
    with torch.no_grad():
        pieces = [ours(piece, cache=cache) for piece in ids.split([5, 1, 4, 2], dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), ours(ids), atol=CLOSE, rtol=0)


def test_greedy_generation_is_that_of_transformers(theirs: GPT2LMHeadModel, ours: GPT) -> None:
    ids = tokens(2, 6)
    expected = theirs.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=15,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    assert torch.equal(ours.generate(ids, 15), expected)


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_generation_is_the_same_with_and_without_cache(ours: GPT, temperature: float) -> None:
    """40 tokens with a context of 32: the window slides in the last part."""
    ids = tokens(3, 5)
    with_cache, without = (
        ours.generate(
            ids,
            40,
            temperature=temperature,
            top_k=7,
            generator=torch.Generator().manual_seed(3),
            use_cache=cached,
        )
        for cached in (True, False)
    )
    assert with_cache.shape == (3, 45)
    assert torch.equal(with_cache, without)


def test_sampling_follows_the_softmax_of_the_likeliest(ours: GPT) -> None:
    n, k, temperature = 4000, 5, 0.7
    ids = tokens(1, 4)
    drawn = ours.generate(
        ids.expand(n, -1), 1, temperature=temperature, top_k=k, generator=torch.Generator().manual_seed(0)
    )[:, -1]
    with torch.no_grad():
        top = ours(ids)[0, -1].double().topk(k)
    expected = torch.zeros(SMALL.vocab_size, dtype=torch.float64)
    expected[top.indices] = (top.values / temperature).softmax(0)
    frequency = torch.bincount(drawn, minlength=SMALL.vocab_size) / n
    # four standard errors of a frequency of 0.5
    torch.testing.assert_close(frequency.double(), expected, atol=4 * 0.5 / n**0.5, rtol=0)
    assert (frequency[expected == 0] == 0).all()


def test_a_row_that_stopped_stays_stopped(ours: GPT) -> None:
    ids = tokens(4, 5)
    free = ours.generate(ids, 12)
    stop = int(free[0, 8])
    stopped = ours.generate(ids, 12, stop_token=stop)
    for row, expected in zip(stopped[:, 5:].tolist(), free[:, 5:].tolist(), strict=True):
        at = expected.index(stop) + 1 if stop in expected else len(row)
        assert row[:at] == expected[: len(row)][:at]
        assert set(row[at:]) <= {stop}


def test_attention_is_one_replaceable_call(ours: GPT) -> None:
    seen: list[tuple[int, ...]] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = True) -> Tensor:
        seen.append(tuple(q.shape))
        return causal_attention(q, k, v, causal=causal)

    ids = tokens(2, 9)
    with torch.no_grad():
        assert torch.equal(ours(ids, attend=attend), ours(ids))
    assert seen == [(2, 3, 9, 16)] * SMALL.n_layers


def test_texts_in_one_row_are_the_texts_apart(ours: GPT) -> None:
    """The seam carries packing: attention inside each text, positions counted from its first token."""
    lengths = [3, 7, 12]
    texts = [tokens(1, n, seed=n) for n in lengths]

    def inside(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = True) -> Tensor:
        parts = zip(*(x.split(lengths, dim=2) for x in (q, k, v)), strict=True)
        return torch.cat([causal_attention(*part, causal=causal) for part in parts], dim=2)

    positions = torch.cat([torch.arange(n) for n in lengths])
    with torch.no_grad():
        packed = ours(torch.cat(texts, dim=1), positions, attend=inside)
        apart = torch.cat([ours(text) for text in texts], dim=1)
    torch.testing.assert_close(packed, apart, atol=CLOSE, rtol=0)


def test_the_packed_engine_s_attention_fits_the_seam(ours: GPT) -> None:
    """Values and gradients of texts packed by the engine, against each text alone."""
    texts = [tokens(n, seed=n) for n in (9, 3, 14, 9)]
    batch = pack([text.tolist() for text in texts])

    def packed(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = True) -> Tensor:
        pattern = AttentionPattern(after=0 if causal else None)
        out = packed_attention(q[0], k[0], v[0], batch.layout, pattern, scaling=q.shape[-1] ** -0.5)
        return out.transpose(0, 1).unsqueeze(0)  # (T, H, D) -> (1, H, T, D)

    def gradient(logits: Tensor) -> Tensor:
        ours.zero_grad()
        logits.square().mean().backward()
        grad = ours.trf_blocks[0].att.W_query.weight.grad
        assert grad is not None
        return grad.clone()

    row = ours(batch.input_ids[None], batch.position_ids[None], attend=packed)
    apart = torch.cat([ours(text[None]) for text in sorted(texts, key=len)], dim=1)
    torch.testing.assert_close(row, apart, atol=CLOSE, rtol=0)
    torch.testing.assert_close(gradient(row), gradient(apart), atol=CLOSE, rtol=1e-3)  # fp32 sums


def test_the_head_is_the_token_embedding_until_it_is_replaced() -> None:
    model = GPT(SMALL)
    assert model.out_head.weight is model.tok_emb.weight
    model.set_classification_head(4)
    assert model.out_head.weight.shape == (4, SMALL.emb_dim)
    assert model.out_head.bias is not None


def test_random_weights_have_gpt2_s_spread() -> None:
    """0.02, and 0.02 / sqrt(2 * layers) where a block adds to the residual stream; 5 %: many of draws."""
    torch.manual_seed(0)
    model = GPT(SMALL)
    block = model.trf_blocks[0]
    assert block.att.W_query.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.ff.layers[2].weight.std().item() == pytest.approx(0.02 / 6**0.5, rel=0.05)
    assert block.att.W_query.bias.abs().max() == 0


def test_too_long_a_text_is_an_error(ours: GPT) -> None:
    with pytest.raises(BaseError, match="33 tokens, this GPT 32"):
        ours(tokens(1, 33))


@pytest.mark.parametrize("change", [{"n_heads": 5}, {"n_layers": 0}])
def test_impossible_sizes_are_errors(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="can't be built"):
        dataclasses.replace(SMALL, **change)


@pytest.mark.parametrize("options", [{"temperature": -1.0}, {"top_k": 0, "temperature": 1.0}])
def test_impossible_sampling_is_an_error(ours: GPT, options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="temperature >= 0 and a top_k >= 1"):
        ours.generate(tokens(1, 3), 1, **options)
