"""Which modules a configuration means, and an error for every pattern that means nothing or only half.

The rules of selection are PEFT's, the strictness is ours: PEFT goes on when one of two names matches
nothing, or when a name exists in some blocks and not in others. This file must not change the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import nn

from veneer.errors import TargetError
from veneer.lora.config import ALL_LINEAR, LoraConfig
from veneer.lora.layers import Layout, LoraEmbedding, LoraLinear, layout_of
from veneer.lora.matching import block_number, nearest_names, pattern_for, selects, under
from veneer.lora.partial import check_blocks
from veneer.lora.qkv import SLICE_COUNT, check_slices_used, slices_of
from veneer.lora.resolution import PatternMatch, Resolution, Target
from veneer.lora.state import adapters_of
from veneer.naming import setting

__all__ = ["base_modules", "resolve_targets"]

Modules = Mapping[str, nn.Module]


def resolve_targets(model: nn.Module, config: LoraConfig, *, strict: bool = True) -> Resolution:
    """What `attach` would adapt, without changing the model.

    Args:
        model: any module; adapters it already has are looked through.
        config: the configuration.
        strict: False takes over patterns that match nothing or only some blocks, as PEFT does, for adapters
            whose tensors say what is adapted. At least one module has to match in any case.

    Raises:
        TargetError: a pattern that matches nothing (with the nearest names), some blocks and not others (with
            their numbers), or a module that can't be adapted (with its type).
    """
    with _without_adapters(model):
        modules = base_modules(model)
        saved, saved_matches = _saved(modules, config, strict)
        chosen, matches = _chosen(model, modules, config, saved, strict)
        targets = tuple(
            _target(config, name, layout, modules) for name, layout in _layouts(modules, chosen).items()
        )
        matches += _check_patterns(config, [target.name for target in targets], strict)
        check_slices_used(config, sum(bool(target.slices) for target in targets))
        biases = _biases(modules, config, [target.name for target in targets], saved)
        return Resolution(
            targets=targets,
            patterns=(*matches, *saved_matches),
            saved=saved,
            biases=tuple(biases),
            saved_parameters=sum(p.numel() for name in saved for p in modules[name].parameters()),
            bias_parameters=sum({id(bias): bias.numel() for bias in biases.values()}.values()),
        )


def base_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Full name -> module of the base model, as if nothing were attached; shared modules by each name."""
    found: dict[str, nn.Module] = {}

    def visit(name: str, module: nn.Module) -> None:
        base = module.base_layer if isinstance(module, LoraLinear | LoraEmbedding) else module
        found[name] = base
        for child_name, child in base._modules.items():
            if child is not None:
                visit(f"{name}.{child_name}" if name else child_name, child)

    visit("", model)
    return found


@contextmanager
def _without_adapters(model: nn.Module) -> Iterator[None]:
    state = adapters_of(model)
    if state is None or not state.shown:
        yield
        return
    state.hide_()
    try:
        yield
    finally:
        state.show_()


def _saved(modules: Modules, config: LoraConfig, strict: bool) -> tuple[tuple[str, ...], list[PatternMatch]]:
    matches = []
    for pattern in config.modules_to_save or ():
        found = tuple(name for name in modules if name.endswith(pattern))
        if not found and strict:
            raise TargetError(
                f"{setting('lora.modules_to_save')}: no module is named {pattern!r}. "
                + nearest_names(pattern, [name for name in modules if name])
            )
        matches.append(PatternMatch("modules_to_save", pattern, found))
    names = dict.fromkeys(name for match in matches for name in match.modules)
    outer = [name for name in names if not under(name.rpartition(".")[0], names)]
    return tuple(outer), matches


def _chosen(
    model: nn.Module, modules: Modules, config: LoraConfig, saved: Sequence[str], strict: bool
) -> tuple[list[str], list[PatternMatch]]:
    """The names that are adapted, and for each pattern which of them it selected."""
    excluded = _excluded(modules, config, strict)
    selected: list[PatternMatch] = []
    for pattern, rule in _rules(model, modules, config):
        found = [name for name in modules if name and rule(name)]
        if strict:
            check_blocks(config, pattern, found, modules)
        kept = tuple(name for name in found if name not in excluded and not under(name, saved))
        if not kept and strict:
            raise TargetError(_nothing(config, pattern, found, modules))
        selected.append(PatternMatch("target_modules", pattern, kept))
    chosen = {name for match in selected for name in match.modules}
    if not chosen:
        raise TargetError(_nothing(config, str(config.target_modules), [], modules))
    shown = [PatternMatch("exclude_modules", "; ".join(_listed(config.exclude_modules)), tuple(excluded))]
    return [name for name in modules if name in chosen], selected + (shown if excluded else [])


def _rules(
    model: nn.Module, modules: Modules, config: LoraConfig
) -> Iterator[tuple[str, Callable[[str], bool]]]:
    """Each pattern of target_modules with the test that it is."""
    target = config.target_modules
    if target is None:
        raise TargetError(
            f"{setting('lora.target_modules')} is not given: name the layers to adapt, or {ALL_LINEAR!r} for "
            "every linear "
            "layer."
        )
    if isinstance(target, str) and target.lower() == ALL_LINEAR:
        head = _output_embedding(model, modules)
        linear = {
            name
            for name, module in modules.items()
            if name not in head
            and (isinstance(module, nn.Linear) or layout_of(module) in (Layout.LINEAR, Layout.CONV1D))
        }
        yield target, linear.__contains__
    elif isinstance(target, str):
        yield target, lambda name: selects(target, name, expression=True)
    else:
        for pattern in target:
            yield pattern, _listed_rule(config, pattern)


def _listed_rule(config: LoraConfig, pattern: str) -> Callable[[str], bool]:
    """A full name always counts; a suffix counts in the blocks of `layers_to_transform`."""
    if config.layers_to_transform is None:
        return lambda name: selects(pattern, name)
    layers = config.layers_to_transform
    numbers = (layers,) if isinstance(layers, int) else layers
    lists = _listed(config.layers_pattern)
    return lambda name: name == pattern or (selects(pattern, name) and block_number(name, lists) in numbers)


def _output_embedding(model: nn.Module, modules: Modules) -> set[str]:
    """The names of the layer that turns hidden states into words, where the model says which it is."""
    get = getattr(model, "get_output_embeddings", None)
    layer = get() if callable(get) else None
    base = layer.base_layer if isinstance(layer, LoraLinear | LoraEmbedding) else layer
    return {name for name, module in modules.items() if module is base}


def _excluded(modules: Modules, config: LoraConfig, strict: bool) -> dict[str, None]:
    expression = isinstance(config.exclude_modules, str)
    excluded: dict[str, None] = {}
    for pattern in _listed(config.exclude_modules):
        found = [name for name in modules if name and selects(pattern, name, expression=expression)]
        if not found and strict:
            raise TargetError(
                f"{setting('lora.exclude_modules')}: {pattern!r} matches no module. "
                + nearest_names(pattern, [name for name in modules if name])
            )
        excluded.update(dict.fromkeys(found))
    return excluded


def _listed(patterns: str | Sequence[str] | None) -> tuple[str, ...]:
    if patterns is None:
        return ()
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def _nothing(config: LoraConfig, pattern: str, found: Sequence[str], modules: Modules) -> str:
    """The message for a pattern that selects nothing."""
    if found:
        return (
            f"{setting('lora.target_modules')}: all {len(found)} modules that {pattern!r} matches ({found[0]}, "
            "...) are taken "
            f"out by {setting('lora.exclude_modules')} or {setting('lora.modules_to_save')}. Remove the pattern "
            "or the exclusion."
        )
    everywhere = [name for name in modules if name and selects(pattern, name)]
    if config.layers_to_transform is not None and everywhere:
        return (
            f"{setting('lora.target_modules')}: {pattern!r} matches no module in the blocks "
            f"{config.layers_to_transform} "
            f"(layers_pattern {config.layers_pattern!r}), but {len(everywhere)} elsewhere ({everywhere[0]}, "
            "...). Correct layers_to_transform or layers_pattern."
        )
    names = [name for name, module in modules.items() if layout_of(module) is not None]
    return f"{setting('lora.target_modules')}: {pattern!r} matches no module. {nearest_names(pattern, names)}"


def _layouts(modules: Modules, chosen: Sequence[str]) -> dict[str, Layout]:
    """The layout of each chosen module, or TargetError for those that can't be adapted."""
    found: dict[str, Layout] = {}
    names_of: dict[int, list[str]] = {}
    for name, module in modules.items():
        names_of.setdefault(id(module), []).append(name)
    for name in chosen:
        layout = layout_of(modules[name])
        parent = modules[name.rpartition(".")[0]]
        if layout is None or not modules[name].weight.is_floating_point():  # type: ignore[operator]
            kind = type(modules[name]).__name__
            raise TargetError(
                f"{setting('lora.target_modules')} selects {name}, a {kind}. LoRA works on Linear, Conv1D and "
                "Embedding layers "
                "with floating-point weights and the usual forward. Choose a narrower pattern, or name it in "
                f"{setting('lora.exclude_modules')}."
            )
        if isinstance(parent, nn.MultiheadAttention | nn.TransformerEncoderLayer):
            raise TargetError(
                f"{name} is read by {type(parent).__name__} as a bare weight, so that an adapter on it would "
                f"have no effect. Name it in {setting('lora.exclude_modules')}."
            )
        if len(names := names_of[id(modules[name])]) > 1:
            raise TargetError(
                f"{' and '.join(names)} are one and the same module. An adapter would act in each of these "
                f"places; name them in {setting('lora.exclude_modules')}."
            )
        found[name] = layout
    return found


def _target(config: LoraConfig, name: str, layout: Layout, modules: Modules) -> Target:
    n, m = layout.sizes(modules[name])
    rank_key, alpha_key = pattern_for(config.rank_pattern, name), pattern_for(config.alpha_pattern, name)
    r = config.r if rank_key is None else config.rank_pattern[rank_key]
    alpha = config.lora_alpha if alpha_key is None else config.alpha_pattern[alpha_key]
    slices = slices_of(config, name, n, m)
    count = SLICE_COUNT if slices else 1
    scaling = config.scaling_for(r, alpha)
    return Target(name, layout, n, m, r, alpha, scaling, slices, count, config.use_dora)


def _check_patterns(config: LoraConfig, adapted: Sequence[str], strict: bool) -> list[PatternMatch]:
    """rank_pattern and alpha_pattern: every key counts for at least one adapted module."""
    matches = []
    for field, patterns in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        for pattern in patterns:
            found = tuple(name for name in adapted if pattern_for(patterns, name) == pattern)
            if not found and strict:
                raise TargetError(
                    f"{field}: {pattern!r} counts for none of the adapted modules. "
                    f"{nearest_names(pattern, adapted)}"
                )
            matches.append(PatternMatch(field, pattern, found))
    return matches


def _biases(
    modules: Modules, config: LoraConfig, adapted: Sequence[str], saved: Sequence[str]
) -> dict[str, nn.Parameter]:
    """The biases that train, by full name; those of saved modules train with them already."""
    if config.bias == "none":
        return {}
    names = adapted if config.bias == "lora_only" else [name for name in modules if not under(name, saved)]
    found = {}
    for name in names:
        bias = modules[name]._parameters.get("bias")
        if bias is not None:
            found[f"{name}.bias" if name else "bias"] = bias
    return found
