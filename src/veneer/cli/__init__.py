"""People's verbs: train, predict, evaluate, inspect, preview, extract, reproduce.

Parses, calls the library, prints; no logic of its own.

One file a verb; `verbs` joins them and turns errors into one paragraph and an exit code. Nothing heavy is imported
until a verb needs it, so that `veneer --help` answers at once; here nothing at all is, so that Ctrl-C finds `main`
at work from the first moment on.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing itself takes 15 ms to import, in which Ctrl-C would show a trace
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0; 1 failed; 2 something given has to be changed; 130 Ctrl-C.

    arguments   what stands behind `veneer`; None: what this process was given. The process then ends with this call:
                Ctrl-C while Python cleans up is no exception any more.
    """
    import sys

    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        from veneer.cli.verbs import run

        return run(given)
    except KeyboardInterrupt:  # while the verbs were imported, or a second one while the first was told
        said = "interrupted; nothing was half written."
        sys.stderr.write(f"error: {said}\n")
        if "--json" in given:
            sys.stdout.write(f'{{"error": {{"type": "Interrupted", "message": "{said}"}}}}\n')
        return 130
    finally:
        if arguments is None:
            import signal

            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
