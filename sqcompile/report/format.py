"""Numbers as people read them."""


def size(count: float) -> str:
    """Bytes: `712 B`, `1.4 kB`, `3.2 MB` (powers of ten)."""
    for unit in ("B", "kB", "MB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def big(count: float) -> str:
    """A count: `712`, `1.4 k`, `3.2 M`, `5 G`."""
    for unit in ("", " k", " M"):
        if abs(count) < 1000:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g} G"


def share(part: float, whole: float) -> str:
    """A percentage that is 100 % only when nothing is missing."""
    if whole == 0 or part == whole:
        return "100 %"
    return f"{min(100 * part / whole, 99.99):.2f} %"


def duration(milliseconds: float) -> str:
    """Milliseconds with three digits; seconds from 1000 on."""
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.3g} s"
    return f"{milliseconds:.3g} ms"


def dims(shape: "list[int] | tuple[int, ...]") -> str:
    """`4x1x8x8`; `scalar` without axes."""
    return "x".join(map(str, shape)) or "scalar"
