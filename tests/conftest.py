"""Fixtures that tests of several rooms share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# Tests run several at a time; and the number of threads, on which last bits depend, is not measured for each run.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Whoever starts the tests in the background (`nohup make test &`) lets Ctrl-C be ignored, here and in processes that
# are started from here; the tests of Ctrl-C send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of data sets beside the project, which is not part of it."""
    folder = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the data sets in ../shared/data are not on this machine")
    return folder
