"""The learning rate as a function of images seen."""

from __future__ import annotations

import math

from sparface.config import ScheduleConfig

FLOOR = 0.01
"""Share of the full rate at which a decay ends."""


def total_images(config: ScheduleConfig, epoch_images: int) -> int:
    """Images to train on, where `epoch_images` is one pass over the shard set."""
    return config.images or math.ceil(config.epochs * epoch_images)


def rate_factor(config: ScheduleConfig, images_seen: int, total: int) -> float:
    """Factor in [0, 1] on the learning rate after `images_seen` of `total` images."""
    if images_seen < config.warmup_images:
        return (images_seen + 1) / (config.warmup_images + 1)
    if config.decay == "constant":
        return 1.0
    done = min(1.0, (images_seen - config.warmup_images) / max(1, total - config.warmup_images))
    falling = 1 - done if config.decay == "linear" else (1 + math.cos(math.pi * done)) / 2
    return FLOOR + (1 - FLOOR) * falling
