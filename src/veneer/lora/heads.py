"""Whole modules of several adapters (`modules_to_save`: heads) as one: the same, a mean, or one adapter's.

Two classifiers' heads have no sum: nothing is averaged unless it is asked for. This file must not know products.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from veneer.errors import ConfigError
from veneer.lora.state import AdapterRecord
from veneer.naming import setting

__all__ = ["combined_heads"]

_State = dict[str, Tensor]


def combined_heads(
    records: Sequence[AdapterRecord], weights: Sequence[float], heads: str
) -> Mapping[str, Mapping[str, Tensor]]:
    """Module name -> its tensors, for every module that one of the adapters saves whole.

    Args:
        records: the adapters, and weights: their factors.
        heads: "same", "mean" or the name of one of the adapters.

    Raises:
        ConfigError: the modules differ in shape; they differ, and "same" was asked for; weights without a mean; a
            name that is none of the adapters'.
    """
    states = [{module.name: _State(module.copy.state_dict()) for module in r.saved} for r in records]
    names = list(dict.fromkeys(name for state in states for name in state))
    _check_shapes(records, states, names)
    by_name = {record.name: state for record, state in zip(records, states, strict=True)}
    if heads in by_name and heads not in ("same", "mean"):
        missing = [name for name in names if name not in by_name[heads]]
        if missing:
            raise ConfigError(
                f"{_heads(heads)}: this adapter has no {missing[0]} of its own. Name another one."
            )
        return by_name[heads]
    if heads == "same":
        return {name: _same(records, states, name) for name in names}
    if heads != "mean":
        raise ConfigError(
            f"{_heads(heads)} is not known: expected 'same', 'mean', or one of the adapters, "
            f"{', '.join(map(repr, by_name))}."
        )
    if names and sum(weights) <= 0:
        raise ConfigError(
            f"The weights sum up to {sum(weights):g}, so that there is no weighted mean of the heads. Take one "
            "adapter's: give its name."
        )
    return {name: _mean(states, weights, name) for name in names}


def _check_shapes(
    records: Sequence[AdapterRecord], states: Sequence[Mapping[str, _State]], names: Sequence[str]
) -> None:
    for name in names:
        shapes = {
            record.name: {key: tuple(tensor.shape) for key, tensor in state[name].items()}
            for record, state in zip(records, states, strict=True)
            if name in state
        }
        (first, wanted), *others = shapes.items()
        for other, given in others:
            for key in sorted(wanted.keys() | given.keys()):
                if wanted.get(key) != given.get(key):
                    raise ConfigError(
                        f"{name}.{key} is {wanted.get(key)} in {first!r} and {given.get(key)} in {other!r}: adapters "
                        "with different heads (other labels) can't become one."
                    )


def _same(records: Sequence[AdapterRecord], states: Sequence[Mapping[str, _State]], name: str) -> _State:
    having = [
        (record.name, state[name]) for record, state in zip(records, states, strict=True) if name in state
    ]
    (first, wanted), *others = having
    for other, given in others:
        if any(not torch.equal(wanted[key], given[key]) for key in wanted):
            raise ConfigError(
                f"{name} was trained in {first!r} and in {other!r}, and differs. Heads have no sum; say which to take: "
                f"{_heads(first)} (or another one's name), or {_heads('mean')} for the weighted mean."
            )
    return wanted


def _heads(which: str) -> str:
    return setting("combine.heads", repr(which))


def _mean(states: Sequence[Mapping[str, _State]], weights: Sequence[float], name: str) -> _State:
    if any(name not in state for state in states):
        raise ConfigError(
            f"{_heads('mean')}: {name} is not saved by every one of the adapters. Take one adapter's: give its name."
        )
    total = sum(weights)
    found = {}
    for key, tensor in states[0][name].items():
        if tensor.is_floating_point():
            mean = sum(
                state[name][key].double() * (weight / total)
                for state, weight in zip(states, weights, strict=True)
            )
            assert isinstance(mean, Tensor)
            found[key] = mean.to(tensor.dtype)
        else:
            found[key] = tensor
    return found
