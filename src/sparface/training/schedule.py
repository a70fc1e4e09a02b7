"""The learning rate as a function of images seen."""

from __future__ import annotations

import math

from sparface.config import ScheduleConfig

FLOOR = 0.01
"""Fraction of the full learning rate at the end of a decay."""


def total_images(config: ScheduleConfig, epoch_images: int) -> int:
    """Return the number of images to train on; `epoch_images` is one pass over the shard set."""
    return config.images or math.ceil(config.epochs * epoch_images)


def rate_factor(config: ScheduleConfig, images_seen: int, total: int) -> float:
    """Return the learning rate's factor in [0, 1] after `images_seen` of `total` images."""
    if images_seen < config.warmup_images:
        return (images_seen + 1) / (config.warmup_images + 1)
    if config.decay == "constant":
        return 1.0
    done = min(1.0, (images_seen - config.warmup_images) / max(1, total - config.warmup_images))
    falling = 1 - done if config.decay == "linear" else (1 + math.cos(math.pi * done)) / 2
    return FLOOR + (1 - FLOOR) * falling


def crossed(before: int, now: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, now]."""
    return now // every > before // every
