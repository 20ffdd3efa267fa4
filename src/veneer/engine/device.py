"""Where to compute: the device that was named, checked, or the best one of this machine. Knows torch and no model."""

from __future__ import annotations

import torch

from veneer.errors import ConfigError

__all__ = ["choose_device"]


def choose_device(wanted: str | torch.device) -> torch.device:
    """The device of a name such as "cpu", "cuda:1" or "mps"; "auto": a GPU where there is one, else the CPU.

    Raises:
        ConfigError: an unknown name, or a device that this machine does not have.
    """
    here = [name for name, there in _there().items() if there]
    if str(wanted) == "auto":
        return torch.device(here[0])
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise ConfigError(
            f"device: {str(wanted)!r} is not known; expected auto, {', '.join(here)}."
        ) from error
    if device.type not in here or (
        device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    ):
        raise ConfigError(
            f"device: {str(wanted)!r} is not to be had here; this machine offers {', '.join(here)}."
        )
    return device


def _there() -> dict[str, bool]:
    """Device types in the order in which they are preferred."""
    return {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
