"""Build the configured optimizers, and clip gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparface.config import OptimizerConfig

SETTINGS = ("betas", "momentum", "weight_decay", "eps")
"""Torch's names of optimizer settings, except the learning rate, which is set in every update."""


def build_optimizer(
    config: OptimizerConfig, networks: Mapping[str, Iterable[Tensor]]
) -> torch.optim.Optimizer:
    """Build the configured optimizer, in its fused implementation, for the parameters of networks by name.

    Each network has one or two parameter groups with its `name`. Weight decay applies only to parameters of
    two or more dimensions: not to norms, biases and slopes.
    """
    groups = [group for name, found in networks.items() for group in _groups(name, list(found), config)]
    if config.name == "sgd":
        return torch.optim.SGD(
            groups,
            config.learning_rate,
            momentum=config.beta1,
            weight_decay=config.weight_decay,
            fused=True,
        )
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(
        groups,
        config.learning_rate,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
        fused=True,
    )


def _groups(name: str, parameters: list[Tensor], config: OptimizerConfig) -> list[dict[str, Any]]:
    decayed = [p for p in parameters if p.ndim > 1], config.weight_decay
    others = [p for p in parameters if p.ndim <= 1], 0.0
    return [
        {"name": name, "params": part, "weight_decay": decay} for part, decay in (decayed, others) if part
    ]


def saved_groups(optimizer: torch.optim.Optimizer, names: Iterable[str]) -> list[dict[str, Any]]:
    """Return the optimizer's settings as a checkpoint has them: one group with the names of all parameters.

    How an optimizer groups its parameters is not part of a checkpoint.
    """
    return [{**optimizer.defaults, "params": list(names)}]


def fresh_state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """Return the optimizer's state of a parameter before the first update.

    By default torch creates it in the first update; if that update is skipped, fused SGD keeps uninitialised
    memory as its momentum.
    """
    if isinstance(optimizer, torch.optim.SGD):
        return {"momentum_buffer": torch.zeros_like(parameter)} if optimizer.defaults["momentum"] else {}
    step = torch.zeros((), dtype=torch.float32, device=parameter.device)
    return {"step": step, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}


def changed_settings(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> list[str]:
    """List the settings that differ from a saved state, such as "weight_decay was 0.0, is 0.1"."""
    was, now = saved["param_groups"][0], optimizer.defaults
    pairs = [(n, _plain(was[n]), _plain(now[n])) for n in SETTINGS if n in now and n in was]
    return [f"{name} was {old}, is {new}" for name, old, new in pairs if old != new]


def _plain(value: Any) -> Any:
    """Convert tuples to lists, as JSON does."""
    return list(value) if isinstance(value, tuple) else value


def clip(gradients: Sequence[Tensor], norm: Tensor, limit: float) -> None:
    """Scale gradients with L2 norm `norm` down to `limit` in place, on the device; 0 disables clipping."""
    if limit and gradients:
        torch._foreach_mul_(list(gradients), (limit / (norm + 1e-6)).clamp(max=1.0))
