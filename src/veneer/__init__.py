"""Veneer: LoRA fine-tuning that is exact, fast on small machines, and never silently wrong.

    import veneer

    done = veneer.train("messages.csv", epochs=3, lora={"r": 8})
    adapter = veneer.load(done.path)
    adapter.predict(["You won a prize, call now"])

Everything public is named in `__all__` and imported when it is first used, so that `import veneer` costs nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing is not imported for it: Ctrl-C can be told from the first moment on
if TYPE_CHECKING:
    from veneer.data import DataConfig, prepare
    from veneer.errors import VeneerError
    from veneer.lora import (
        LoraConfig,
        attach,
        count_parameters,
        detach,
        disabled,
        merge,
        set_active,
        unmerge,
    )
    from veneer.models import load_base
    from veneer.tasks.loading import load
    from veneer.tasks.writing import load_writer
    from veneer.training.api import train
    from veneer.training.config import TrainConfig

__all__ = [
    "DataConfig",
    "LoraConfig",
    "TrainConfig",
    "VeneerError",
    "__version__",
    "attach",
    "count_parameters",
    "detach",
    "disabled",
    "load",
    "load_base",
    "load_writer",
    "merge",
    "prepare",
    "set_active",
    "train",
    "unmerge",
]

__version__ = "0.1.0"

_HOMES = {
    "DataConfig": "veneer.data",
    "LoraConfig": "veneer.lora",
    "TrainConfig": "veneer.training.config",
    "VeneerError": "veneer.errors",
    "attach": "veneer.lora",
    "count_parameters": "veneer.lora",
    "detach": "veneer.lora",
    "disabled": "veneer.lora",
    "load": "veneer.tasks.loading",
    "load_base": "veneer.models",
    "load_writer": "veneer.tasks.writing",
    "merge": "veneer.lora",
    "prepare": "veneer.data",
    "set_active": "veneer.lora",
    "train": "veneer.training.api",
    "unmerge": "veneer.lora",
}


def __getattr__(name: str) -> object:
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'veneer' has no attribute {name!r}")
    found = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
