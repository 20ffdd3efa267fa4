"""People's verbs: train, predict, evaluate, inspect, preview, extract, reproduce.

Parses, calls the library, prints; no logic of its own.

One file a verb; `main` joins them and turns errors into one paragraph and an exit code. Nothing heavy is imported until
a verb needs it, so that `veneer --help` answers at once.
"""

from veneer.cli.main import main

__all__ = ["main"]
