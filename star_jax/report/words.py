"""Numbers as people read them."""


def percent(fraction: float | None) -> str:
    """0.4125 -> "41.2 %"; None -> a dash."""
    return "–" if fraction is None else f"{100 * fraction:.1f} %"


def count(value: float | None) -> str:
    """12000 -> "12,000"; 14621.7 -> "14,622"; 0.000123 -> "0.000123"; None, NaN and infinity -> a dash."""
    if value is None or not abs(value) < 1e300:  # NaN and infinity of a damaged file
        return "–"
    whole = value == int(value) or abs(value) >= 1000
    return f"{round(value):,}" if whole and abs(value) < 1e15 else f"{value:.4g}"


def duration(seconds: float | None) -> str:
    """3725 -> "1 h 2 min"; 85.2 -> "1 min 25 s"; 7.25 -> "7.2 s"; None -> a dash."""
    if seconds is None:
        return "–"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if seconds < 3599.5:
        return f"{round(seconds) // 60} min {round(seconds) % 60} s"
    return f"{round(seconds / 60) // 60:,} h {round(seconds / 60) % 60} min"


def chance(p: float) -> str:
    """A p value: 0.0312 -> "p = 0.031"; 1e-9 -> "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
