"""Figures and settings as the report writes them."""

from __future__ import annotations

from typing import Any

import numpy as np


def percent(value: float | None, digits: int = 1) -> str:
    return "—" if value is None or not np.isfinite(value) else f"{100 * value:.{digits}f} %"


def with_interval(document: dict[str, Any], figure: str) -> str:
    """Format a figure with its interval, if it has one: shares in percent, other quantities as they are."""
    is_share = document["kind"] in ("identification", "robustness", "detection", "classification")
    value, (low, high) = document["figures"][figure], document["intervals"][figure]
    shown = "" if value is None else percent(value) if is_share else f"{value:.4g}"
    if low is None or high is None:
        return shown
    ends = (f"{100 * end:.1f}" if is_share else f"{end:.4g}" for end in (low, high))
    return f"{shown} [{', '.join(ends)}]"


def count(value: float) -> str:
    return f"{value:,.0f}"


def setting(value: Any) -> str:
    """Format a config value as in YAML."""
    if value is None or value == "":
        return "—"
    return str(value).lower() if isinstance(value, bool) else str(value)
