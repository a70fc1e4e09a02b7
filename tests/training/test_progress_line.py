"""What a training prints while it runs."""

from __future__ import annotations

import pytest

from sparface.training.meter import progress_line


@pytest.mark.parametrize(
    ("seen", "total", "left"),
    [
        (0, 1_000, "01:40"),
        (0, 3_000_000, "83:20:00"),  # several days are not taken modulo 24 hours
        (3_008, 3_000, "00:00"),  # the last batch goes beyond the total
    ],
)
def test_the_time_left_is_what_is_left(seen: int, total: int, left: str) -> None:
    line = progress_line(seen, total, {"loss": 0.5, "images_per_second": 10.0}, ["loss"])
    assert line.endswith(f"loss 0.5  10.0 images/s  {left} left")
