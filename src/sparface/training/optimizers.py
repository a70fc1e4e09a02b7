"""Optimizers as configured, and what happens to gradients before they are applied."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparface.config import OptimizerConfig


def build_optimizer(config: OptimizerConfig, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    """The configured optimizer over parameters or parameter groups, fused where torch can."""
    if config.name == "sgd":
        return torch.optim.SGD(
            parameters,
            config.learning_rate,
            momentum=config.beta1,
            weight_decay=config.weight_decay,
            fused=True,
        )
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(
        parameters,
        config.learning_rate,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
        fused=True,
    )


def base_rate(config: OptimizerConfig, network: str) -> float:
    """A network's learning rate before schedule and rollbacks."""
    return config.generator_learning_rate if network == "generator" else config.learning_rate


def clip(gradients: Sequence[Tensor], norm: Tensor, limit: float) -> None:
    """Scale gradients of L2 norm `norm` down to `limit`, on the device; 0 leaves them as they are."""
    if limit and gradients:
        torch._foreach_mul_(list(gradients), (limit / (norm + 1e-6)).clamp(max=1.0))
