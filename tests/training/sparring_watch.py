"""The watch of a sparring training."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from sparface.config import Config, WatchConfig
from sparface.recipes.generator_watch import GeneratorWatchConfig, generator_rules
from sparface.recipes.recognizer import collapse_rule
from sparface.training.watch import Watch


def sparring_watch(**settings: Any) -> Watch:
    """`settings` are of the blocks `watch` and `generator_watch`."""
    shared = {f.name for f in fields(WatchConfig)}
    watch = WatchConfig(**{name: value for name, value in settings.items() if name in shared})
    own = GeneratorWatchConfig(**{name: value for name, value in settings.items() if name not in shared})
    return Watch(watch, [collapse_rule(Config(watch=watch)), *generator_rules(own, added=True, paired=False)])
