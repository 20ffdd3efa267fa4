"""What was inferred about a file, and why: each inference is one `Choice`, printed and stored with the run.

It knows nothing of files; every other module of `data` makes choices with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Choice", "Notes", "counted"]


@dataclass(frozen=True)
class Choice:
    """One thing that was decided without being asked.

    what    what was decided, in the words of the option that overrides it, such as "text column"
    value   what it was decided to be, as a person reads it
    reason  why, in a few words
    """

    what: str
    value: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what}: {self.value} ({self.reason})"


def counted(n: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun.

    >>> counted(1, "text"), counted(2345, "text"), counted(2, "is", "are")
    ('1 text', '2,345 texts', '2 are')
    """
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


@dataclass
class Notes:
    """What is said about data while it is prepared: inferences, sentences to look at, and numbers by name."""

    choices: list[Choice] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, n: int) -> None:
        """Add to a count."""
        self.counts[name] = self.counts.get(name, 0) + int(n)
