"""Numbers as people read them: times, sizes, counts, long texts cut short. Knows nothing of what they measure."""

from __future__ import annotations

__all__ = ["bytes_text", "count", "duration", "percent", "shortened", "signed"]


def duration(seconds: float) -> str:
    """Seconds as "0.84 s", "23.4 s", "5 min 12 s" or "2 h 5 min"."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def bytes_text(size: int) -> str:
    """Bytes as "812 bytes", "1.4 MB" (a million bytes) and so on."""
    if size < 1_000:
        return f"{size} bytes"
    for unit in ("kB", "MB", "GB"):
        size_in_unit = size / {"kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]
        if size_in_unit < 999.5 or unit == "GB":
            return f"{size_in_unit:.3g} {unit}"
    raise AssertionError("the last unit takes every size")


def count(number: int, noun: str) -> str:
    """A number with its noun: "1 layer", "12 layers"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def shortened(text: str, longest: int = 600) -> str:
    """The text, or its beginning; a long text says how long it is."""
    if len(text) <= longest:
        return text
    length = f" ({len(text):,} characters)" if len(text) > 200 else ""
    return f"{text[:longest].rstrip()} …{length}"


def percent(fraction: float) -> str:
    """A probability as "97 %"; never rounded up to certainty: "> 99 %"."""
    return "> 99 %" if 0.995 <= fraction < 1 else f"{100 * fraction:.0f} %"


def signed(value: float) -> str:
    """A difference with its sign and one decimal: "+2.1", "−0.3", "0.0"."""
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")
