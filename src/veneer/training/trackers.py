"""Trackers of accelerate: whether those that were asked for can be had, before anything is read.

accelerate itself leaves out without a word what is not installed. This file knows their names; it tracks nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from veneer.errors import ConfigError, nearest
from veneer.naming import setting

__all__ = ["check_trackers"]


def check_trackers(trackers: Sequence[str]) -> None:
    """Refuse a tracker that accelerate does not know, and one that is not installed.

    Raises:
        ConfigError: which one, and the mend.
    """
    if not trackers:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    known, here = sorted(LOGGER_TYPE_TO_CLASS), sorted(str(name) for name in get_available_trackers())
    for name in trackers:
        if name not in (*known, "all"):
            near = f"{nearest(name, known)} ".lstrip()
            raise ConfigError(
                f"{setting('trackers')}: there is no tracker {name!r}. {near}Known: {', '.join(known)}; all takes "
                "those that are installed."
            )
        if name not in here and not (name == "all" and here):
            what = "no tracker is" if name == "all" else f"{name} is not"
            raise ConfigError(
                f"{setting('trackers')}: {what} installed, so nothing would be tracked. Install it, or leave the "
                f"tracker out. Installed: {', '.join(here) or 'none'}."
            )
