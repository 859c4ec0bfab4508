"""Amounts of a profile as people read them."""

from __future__ import annotations

_TIMES = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1, "ns"))
_COUNTS = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))


def shown(amount: float, unit: str) -> str:
    """Return an amount with its unit: "1.46 s", "803 M instructions"."""
    if unit == "ns":
        number, name = _scaled(amount, _TIMES)
        return f"{number} {name}"
    number, name = _scaled(amount, _COUNTS)
    return f"{number} {name} {unit}".replace("  ", " ")


def percent(part: float, whole: float) -> str:
    """Return a share: "12.3 %"."""
    return f"{100 * part / whole if whole else 0:.1f} %"


def _scaled(amount: float, scale: tuple[tuple[float, str], ...]) -> tuple[str, str]:
    factor, name = next((each for each in scale if abs(amount) >= each[0]), scale[-1])
    return f"{amount / factor:.3g}" if abs(amount) < 1000 * factor else f"{amount / factor:.0f}", name
