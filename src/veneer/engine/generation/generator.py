"""A causal model and its tokenizer, ready to continue texts: many at once, or one as it comes.

    generator = TextGenerator(model, tokenizer, limit=1024)
    for piece in generator.stream([ids], Sampling(max_new_tokens=20)):
        print(piece.text, end="")

This file knows token ids in and text out; no template and no task.

Shapes: B texts of a batch, V tokens of the vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from veneer.engine.generation.answer import Generated, GrowingAnswer
from veneer.engine.generation.running import Memory, RunningBatch, padding_fault, sharing_fault
from veneer.engine.generation.sampling import Sampling, choose, random_of
from veneer.engine.generation.shared import SharedBeginnings
from veneer.errors import BaseError, ConfigError, DataError

__all__ = ["Piece", "TextGenerator", "stop_token_ids"]

MAX_BATCH_TOKENS, MAX_BATCH_TEXTS = 8192, 32


@dataclass(frozen=True)
class Piece:
    """Text that has come: of which prompt, what, and the whole answer when this is its last piece."""

    row: int
    text: str
    answer: Generated | None = None


class TextGenerator:
    """A causal language model of transformers, in eval mode, with its tokenizer.

    Args:
        model: with or without adapters; what is attached and active takes part.
        tokenizer: of transformers.
        limit: tokens that the model reads at most, prompt and answer together.
        stop_tokens: beside the model's and the tokenizer's own end tokens.
        stop: texts that end every answer, beside those of a `Sampling`.

    Raises:
        BaseError: the model has no key-value cache.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        limit: int,
        stop_tokens: Iterable[int] = (),
        stop: Sequence[str] = (),
    ) -> None:
        if "past_key_values" not in inspect.signature(model.forward).parameters:
            raise BaseError(
                f"{type(model).__name__} keeps no key-value cache, so Veneer can't generate with it. Name a base whose "
                "layers attend, such as openai-community/gpt2."
            )
        self.model = model
        self.tokenizer = tokenizer
        self.limit = limit
        self.stop_tokens = stop_token_ids(model, tokenizer) | frozenset(stop_tokens)
        self.stop = tuple(stop)

    @cached_property
    def alone_because(self) -> str | None:
        """Why texts of different lengths are continued one after the other on this model; None: they share a batch."""
        return self._tried(padding_fault)

    @cached_property
    def whole_because(self) -> str | None:
        """Why each text is read whole on this model; None: what prompts begin with in common is read once."""
        return self._tried(sharing_fault)

    def _tried(self, fault: Callable[[nn.Module], str | None]) -> str | None:
        try:
            return fault(self.model)
        except (TypeError, IndexError, ValueError, RuntimeError, AttributeError) as error:
            return f"its batched forward failed ({type(error).__name__}: {str(error).splitlines()[0][:120]})"

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | None = None,
        *,
        rows: Sequence[int] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Generated]:
        """The answer to each prompt, in order; `progress` is called with the answers done, and all. See `stream`."""
        answers: dict[int, Generated] = {}
        for piece in self.stream(prompts, sampling, rows=rows, pieces=False):
            if piece.answer is not None:
                answers[piece.row] = piece.answer
                if progress is not None:
                    progress(len(answers), len(prompts))
        return [answers[row] for row in range(len(prompts))]

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | None = None,
        *,
        rows: Sequence[int] | None = None,
        pieces: bool = True,
        memory: Memory | None = None,
    ) -> Iterator[Piece]:
        """Text as it comes, prompts of similar length together; the last piece of each prompt carries its answer.

        Args:
            prompts: token ids, with whatever special tokens they begin with.
            sampling: the settings; default: greedy.
            rows: a number for each prompt, which decides its random numbers; default: 0, 1, ...
            pieces: False: only the last piece of each, with an empty text (decoded once, and faster).
            memory: of the conversation that the only prompt goes on with.

        Raises:
            DataError: a prompt is empty, or too long for the model.
        """
        sampling = sampling or Sampling()
        self.check(prompts)
        stops = self._stops(sampling)
        shared = SharedBeginnings(self.model, prompts, lambda: self.whole_because is None)
        for places in self._batches([len(prompt) for prompt in prompts], sampling.max_new_tokens):
            texts = [
                GrowingAnswer(
                    place,
                    prompts[place],
                    sampling,
                    stops,
                    decode=self._decoded,
                    room=self.limit - len(prompts[place]),
                    random=random_of(sampling.seed, place if rows is None else rows[place]),
                    pieces=pieces,
                )
                for place in places
            ]
            yield from self._run(texts, sampling, memory, shared)

    def check(self, prompts: Sequence[Sequence[int]]) -> None:
        """Raise DataError where a prompt is empty, or leaves no room for an answer."""
        for row, prompt in enumerate(prompts, start=1):
            if not len(prompt):
                raise DataError(
                    f"prompt {row} has no token, so that there is nothing to continue. Write some text."
                )
            if len(prompt) >= self.limit:
                raise DataError(
                    f"prompt {row} has {len(prompt):,} tokens; the base reads {self.limit:,} at most, with at least "
                    "one of them for the answer. Shorten it."
                )

    def _stops(self, sampling: Sampling) -> tuple[frozenset[int], tuple[str, ...]]:
        """End tokens and stop strings; a stop string that is a special token is an end token, as it never is text."""
        special = {
            str(token): number
            for number, token in self.tokenizer.added_tokens_decoder.items()
            if token.special
        }
        texts = tuple(stop for stop in (*self.stop, *sampling.stop) if stop not in special)
        ends = {special[stop] for stop in sampling.stop if stop in special}
        vocabulary = int(self._config.get_text_config().vocab_size)
        for token in sampling.stop_token_ids:
            if not 0 <= token < vocabulary:
                raise ConfigError(f"stop_token_ids: {token} is no token; the base has 0 to {vocabulary - 1}.")
        return self.stop_tokens | ends | set(sampling.stop_token_ids), texts

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(
            self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    @property
    def _config(self) -> Any:
        return self.model.config

    def _batches(self, lengths: Sequence[int], more: int) -> Iterator[list[int]]:
        """Rows that are continued together: similar lengths; the same one where the model can't mix them."""
        order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
        mixed = len(set(lengths)) > 1
        same_only = mixed and self.alone_because is not None
        batch: list[int] = []
        for row in order:
            longest = min(lengths[batch[0] if batch else row] + more, self.limit)
            room = max(1, min(MAX_BATCH_TEXTS, MAX_BATCH_TOKENS // longest))
            if batch and (len(batch) >= room or (same_only and lengths[batch[0]] != lengths[row])):
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def _run(
        self, texts: list[GrowingAnswer], sampling: Sampling, memory: Memory | None, shared: SharedBeginnings
    ) -> Iterator[Piece]:
        if memory is None:
            prompts = [text.prompt for text in texts]
            running = RunningBatch(self.model, prompts, shared.of(prompts))
        else:
            (only,) = texts
            running = memory.read(self.model, only.prompt)
        seen = _seen(running.logits, texts) if sampling.repetition_penalty != 1.0 else None
        while texts:
            tokens = choose(running.logits, sampling, [text.random for text in texts], seen)
            if seen is not None:
                seen[torch.arange(len(tokens)), tokens] = True
            for text, token in zip(texts, tokens, strict=True):
                shown = text.push(token)
                if shown or text.finish is not None:
                    yield Piece(text.row, shown, text.answer() if text.finish is not None else None)
            going = [place for place, text in enumerate(texts) if text.finish is None]
            if len(going) < len(texts) and going:
                running.keep(going)
                seen = None if seen is None else seen[going]
            texts = [texts[place] for place in going]
            if texts and memory is not None:
                memory.advance(running, tokens[0])
            elif texts:
                running.advance([tokens[place] for place in going])


def stop_token_ids(model: nn.Module, tokenizer: Any) -> frozenset[int]:
    """The tokens with which this model ends a text: its generation settings', its configuration's, its tokenizer's."""
    found: set[int] = set()
    m: Any = model
    for holder in (getattr(m, "generation_config", None), m.config, m.config.get_text_config(), tokenizer):
        ends = getattr(holder, "eos_token_id", None)
        if ends is not None:
            found |= {int(end) for end in (ends if isinstance(ends, list | tuple) else [ends])}
    return frozenset(found)


def _seen(logits: Tensor, texts: Sequence[GrowingAnswer]) -> Tensor:
    """(B, V) bool: the tokens that stand in each prompt."""
    seen = torch.zeros_like(logits, dtype=torch.bool)
    for place, text in enumerate(texts):
        seen[place, torch.as_tensor(list(text.prompt), device=seen.device)] = True
    return seen
