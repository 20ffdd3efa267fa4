"""Ctrl-C that arrives where Python ignores every exception: it is sent again.

A KeyboardInterrupt in a `__del__` or in a callback of the garbage collector is printed and forgotten, and the program
runs on as if nobody had asked; libraries that compile many expressions spend a good part of their first moments there.
This file knows signals, and no verb.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

__all__ = ["never_swallowed"]

_AGAIN_S = 0.02


@contextlib.contextmanager
def never_swallowed() -> Iterator[None]:
    """A KeyboardInterrupt that is ignored meanwhile comes again a moment later."""
    before = sys.unraisablehook

    def hook(ignored: Any) -> None:
        if issubclass(ignored.exc_type, KeyboardInterrupt):
            _thread.start_new_thread(
                _send_again, ()
            )  # without the locks of threading, which may be held here
        else:
            before(ignored)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _send_again() -> None:
    time.sleep(_AGAIN_S)
    if os.name == "posix":
        os.kill(os.getpid(), signal.SIGINT)  # also wakes what waits for the system
    else:
        _thread.interrupt_main()
