"""What a LoRA adapter is to be: one frozen configuration with PEFT's field names and defaults.

A configuration is checked whole when it is made and never changes afterwards; attaching reads it and writes
nothing back. This file must not know any model: whether a pattern matches something is found out in
`veneer.lora.targets`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from veneer.errors import ConfigError, nearest
from veneer.naming import setting

__all__ = ["ALL_LINEAR", "Bias", "LoraConfig", "Slice"]

ALL_LINEAR = "all-linear"
"""The word for "every linear layer" in `target_modules`."""

Bias = Literal["none", "lora_only", "all"]
Slice = Literal["q", "k", "v"]


def _tuple_of(value: object) -> object:
    """Lists (JSON, YAML) and sets (PEFT) become tuples; sets are sorted, for they have no order."""
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, set | frozenset):
        return tuple(sorted(value))
    return value


_Names = Annotated[tuple[str, ...], BeforeValidator(_tuple_of)]
_Layers = Annotated[int | tuple[int, ...], BeforeValidator(_tuple_of)]
_Slices = Annotated[tuple[Slice, ...], BeforeValidator(_tuple_of)]


class LoraConfig(BaseModel):
    """A LoRA adapter's configuration (Hu et al. 2021, arXiv:2106.09685). Field names and defaults are PEFT's.

    >>> LoraConfig(r=16, lora_alpha=32, target_modules=["query", "value"]).scaling
    2.0

    Raises:
        ConfigError: an unknown field (with the nearest known name), or a value that a field can't have.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    r: int = 8
    """Rank: the number of columns of B and rows of A. At least 1."""
    lora_alpha: int | float = 8
    """Numerator of the scaling, above 0."""
    lora_dropout: float = Field(default=0.0)
    """Probability that an input of A is zeroed in training, in [0, 1). Not on embeddings, as in PEFT."""
    target_modules: str | _Names | None = None
    """A list of full names or `.`-bounded suffixes; one regular expression for full names; or "all-linear"."""
    exclude_modules: str | _Names | None = None
    """Names, suffixes or a regular expression of modules that are not adapted although they match."""
    layers_to_transform: _Layers | None = None
    """Numbers of the blocks that are adapted. Only with a list of `target_modules`."""
    layers_pattern: str | _Names | None = None
    """Name of the list of blocks (`layer`, `h`) that `layers_to_transform` counts, where there are several."""
    rank_pattern: Annotated[dict[str, int], BeforeValidator(lambda value: value or {})] = Field(
        default_factory=dict
    )
    """Ranks for some modules: end of the name as a regular expression -> r. The first that matches counts."""
    alpha_pattern: Annotated[dict[str, int | float], BeforeValidator(lambda value: value or {})] = Field(
        default_factory=dict
    )
    """The same for `lora_alpha`."""
    bias: Bias = "none"
    """Which biases train: none, those of the adapted layers, or every one of the model."""
    use_rslora: bool = False
    """Scaling `lora_alpha / sqrt(r)` in place of `lora_alpha / r` (Kalajdzievski 2023, arXiv:2312.03732)."""
    use_dora: bool = False
    """DoRA: the length of each output's weights trains apart from their direction (arXiv:2402.09353)."""
    modules_to_save: _Names | None = None
    """Modules that are trained whole and stored with the adapter: the head of a classifier. Ends of full
    names, not bounded by a dot, as in PEFT: `classifier` means DistilBERT's `pre_classifier` too."""
    init_lora_weights: bool | str = True
    """True: A Kaiming uniform, B zero. "gaussian": A normal with standard deviation 1/r. False: B is not zero
    either. "pissa", "pissa_niter_N": the principal singular vectors (Meng et al. 2024, arXiv:2404.02948)."""
    qkv_slices: _Slices | None = None
    """Ours: which of "q", "k", "v" of a fused projection (GPT-2's `c_attn`) get an adapter each, of rank r."""

    if not TYPE_CHECKING:

        def __init__(self, **given: Any) -> None:
            for key in given:
                if key not in type(self).model_fields:
                    raise ConfigError(_unknown_field(key, type(self).model_fields))
            try:
                super().__init__(**given)
            except ValidationError as error:
                raise ConfigError(_wrong_types(error)) from None

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_numbers(self)
        _check_names(self)
        _check_layers(self)
        _check_init(self)
        return self

    @property
    def scaling(self) -> float:
        """The factor of B A for a module without a pattern of its own."""
        return self.scaling_for(self.r, self.lora_alpha)

    @property
    def is_pissa(self) -> bool:
        """Whether the adapter starts from the principal singular vectors of the base."""
        return isinstance(self.init_lora_weights, str) and self.init_lora_weights.startswith("pissa")

    def scaling_for(self, r: int, lora_alpha: float) -> float:
        """`lora_alpha / r`, or `lora_alpha / sqrt(r)` with `use_rslora`."""
        return lora_alpha / math.sqrt(r) if self.use_rslora else lora_alpha / r

    def to_dict(self) -> dict[str, Any]:
        """Every field, ready for JSON; `from_dict` gives the same configuration back."""
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> LoraConfig:
        """A configuration from a mapping of JSON or YAML. Missing fields have their defaults.

        Raises:
            ConfigError: an unknown key (with the nearest known name), or a wrong value.
        """
        return cls(**{str(key): value for key, value in given.items()})


def _unknown_field(key: str, fields: Mapping[str, Any]) -> str:
    mend = nearest(key, fields) or f"The fields are: {', '.join(fields)}."
    if key == "fan_in_fan_out":
        mend = "Leave it out: the layout of the weight is read from the layer's type."
    return f"LoraConfig has no field {key!r}. {mend}"


def _wrong_types(error: ValidationError) -> str:
    """One line for each field that pydantic refused; it gives an entry for each member of a union."""
    lines: dict[str, str] = {}
    for entry in error.errors():
        field = str(entry["loc"][0])
        says = entry["msg"][0].lower() + entry["msg"][1:]
        lines.setdefault(field, f"{setting(f'lora.{field}', repr(entry['input']))} can't be used: {says}")
        if len(lines[field]) > 0 and says not in lines[field]:
            lines[field] += f", or {says}"
    return "LoraConfig: " + "; ".join(lines.values()) + ". Correct the value."


def _check_numbers(config: LoraConfig) -> None:
    def positive(field: str, value: float, what: str) -> None:
        if not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"{setting(f'lora.{field}', repr(value))} can't be used: expected {what}.")

    positive("r", config.r, "a rank of at least 1")
    positive(
        "lora_alpha",
        config.lora_alpha,
        f"a number above 0 (the scaling is {setting('lora.lora_alpha')} / {setting('lora.r')})",
    )
    for key, rank in config.rank_pattern.items():
        positive(f"rank_pattern[{key!r}]", rank, "a rank of at least 1")
    for key, alpha in config.alpha_pattern.items():
        positive(f"alpha_pattern[{key!r}]", alpha, "a number above 0")
    if not 0.0 <= config.lora_dropout < 1.0:
        raise ConfigError(
            f"{setting('lora.lora_dropout', repr(config.lora_dropout))} can't be used: expected a probability "
            "from 0 up to, not "
            "including, 1."
        )


def _check_names(config: LoraConfig) -> None:
    """Lists hold different, non-empty names; expressions compile."""
    for field in ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern", "qkv_slices"):
        names = getattr(config, field)
        if isinstance(names, str) and field != "layers_pattern" and names.lower() != ALL_LINEAR:
            _check_expression(setting(f"lora.{field}"), names)
        if names is None or isinstance(names, str):
            continue
        if not names:
            raise ConfigError(
                f"{setting(f'lora.{field}')} is an empty list: name at least one, or leave the field out."
            )
        for name in names:
            if not name:
                raise ConfigError(f"{setting(f'lora.{field}', list(names))} holds an empty name. Remove it.")
            if names.count(name) > 1:
                raise ConfigError(
                    f"{setting(f'lora.{field}', list(names))} names {name!r} twice. Remove one."
                )
    for field in ("rank_pattern", "alpha_pattern"):
        for key in getattr(config, field):
            _check_expression(f"a key of {field}", key)


def _check_expression(field: str, expression: str) -> None:
    try:
        re.compile(expression)
    except re.error as error:
        raise ConfigError(
            f"{field}: {expression!r} is not a regular expression ({error}). Correct it; a list of plain "
            "names needs no expression."
        ) from None
    if not expression:
        raise ConfigError(f"{field} is an empty text: give a name, an expression or {ALL_LINEAR!r}.")


def _check_layers(config: LoraConfig) -> None:
    layers = config.layers_to_transform
    if layers is not None:
        numbers = (layers,) if isinstance(layers, int) else layers
        if not numbers or min(numbers) < 0 or len(set(numbers)) < len(numbers):
            raise ConfigError(
                f"layers_to_transform={layers!r} can't be used: expected one block number or a list of "
                "different ones, counted from 0."
            )
        if isinstance(config.target_modules, str):
            raise ConfigError(
                f"layers_to_transform works with a list of {setting('lora.target_modules')}, not with "
                f"{config.target_modules!r}. Give the names of the layers as a list, or write the numbers "
                "into the expression."
            )
    if config.layers_pattern is not None and layers is None:
        raise ConfigError(
            f"layers_pattern={config.layers_pattern!r} needs layers_to_transform: say which blocks are meant."
        )


def _check_init(config: LoraConfig) -> None:
    init = config.init_lora_weights
    if (
        isinstance(init, str)
        and init not in ("gaussian", "pissa")
        and not re.fullmatch(r"pissa_niter_\d+", init)
    ):
        known = ("gaussian", "pissa", "pissa_niter_4")
        raise ConfigError(
            f"{setting('lora.init_lora_weights', repr(init))} is not known: expected true, false, 'gaussian', "
            "'pissa' or "
            f"'pissa_niter_N' with a number N. {nearest(init, known)}".rstrip()
        )
    if config.use_dora and (config.is_pissa or config.qkv_slices is not None):
        other = setting("lora.init_lora_weights", repr(init)) if config.is_pissa else "qkv_slices"
        raise ConfigError(
            f"{setting('lora.use_dora')} and {other} don't go together: DoRA takes the weight of a layer as it "
            "is, and whole. "
            "Leave one of the two out."
        )
    if config.qkv_slices is not None and config.is_pissa:
        raise ConfigError(
            f"qkv_slices and {setting('lora.init_lora_weights', repr(init))} don't go together: PiSSA takes the "
            "singular vectors "
            "of the whole matrix. Leave one of the two out."
        )
