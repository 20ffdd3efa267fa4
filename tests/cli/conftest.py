"""One tiny adapter, trained once by the command line, for all tests of the verbs."""

from __future__ import annotations

import pytest
from command import veneer
from tiny_adapter import Trained, write_table

from bases import tiny_bert


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("cli")
    base, table = tiny_bert(folder / "base"), write_table(folder / "messages.csv")
    adapter = folder / "adapters" / "messages"
    done = veneer(
        "train", table, "--base", base, "--out", adapter, "--epochs", 8, "--learning-rate", 0.01,
        "--pooling", "mean", "--precision", "fp32", "--r", 4, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    return Trained(base, table, adapter, done.json, done.err)
