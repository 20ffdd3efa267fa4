"""Which task a source asks for, in one line with the reason, and whether the base can do it.

It looks at the source and at the base's configuration; it loads no weight.
"""

from __future__ import annotations

from veneer.data.choices import Choice
from veneer.data.sources import Source
from veneer.errors import BaseError
from veneer.models.forms import check_form, is_decoder
from veneer.models.load import config_of
from veneer.models.locate import locate
from veneer.naming import setting
from veneer.tasks.kind import Kind
from veneer.tasks.registry import KINDS, kind_named

__all__ = ["check_base", "infer_kind"]


def infer_kind(
    asked: str, source: Source, base: str, revision: str | None = None
) -> tuple[Kind, Choice | None]:
    """The kind of task, and the choice that was made; None where it was asked for.

    Args:
        asked: a name, or "auto".
        source: what is to be learnt from.
        base: hub name or folder.
        revision: of the base.

    Raises:
        ConfigError: there is no such task, or it has no column that was named.
    """
    kind, choice = _inferred(source, base, revision) if asked == "auto" else (kind_named(asked), None)
    kind.check_roles(source.config.columns, (role for one in KINDS for role in one.roles))
    return kind, choice


def _inferred(source: Source, base: str, revision: str | None) -> tuple[Kind, Choice]:
    decoder = _decoder(base, revision)
    for kind in KINDS[:-1]:
        reason = kind.claims(source, decoder)
        if reason is not None:
            return kind, Choice("task", kind.name, reason)
    last = KINDS[-1]
    return last, Choice("task", last.name, last.claims(source, decoder) or last.says)


def _decoder(base: str, revision: str | None) -> bool | None:
    """What the base is; None where its configuration can't be had (which is said when it is loaded)."""
    try:
        return is_decoder(config_of(locate(base, revision=revision, weights=False)))
    except BaseError:
        return None


def check_base(
    kind: Kind, base: str, revision: str | None = None, inferred: Choice | None = None
) -> str | None:
    """Whether a base can do it, before any weight is loaded; a sentence to warn with, or None.

    `inferred` is how the task was chosen, if nobody named it.

    Raises:
        BaseError: it can't, or its configuration can't be had.
    """
    config = config_of(locate(base, revision=revision, weights=False))
    try:
        check_form(config, kind.form, base)
    except BaseError as error:
        if inferred is None:
            raise
        raise BaseError(
            f"{error} The task is {inferred.value} because: {inferred.reason}; {setting('task', 'NAME')} says another."
        ) from None
    if kind.form in ("tokens", "span") and is_decoder(config):
        return (
            f"{base} is a decoder: each of its tokens sees only what stands before it, so that {kind.says} are found "
            "less well than by an encoder of its size."
        )
    return None
