"""Networks of timm by name."""

from __future__ import annotations

import difflib

from torch import nn

from sparface.errors import UserError


def build_timm(name: str, key: str, outputs: int, *, prefix: str = "", pretrained: bool = False) -> nn.Module:
    """Build a network of timm with so many `outputs`; with 0, it returns the features before its last layer.

    Raises `UserError` naming the setting `key` if timm is missing or has no such network, or no weights for
    it; `prefix` is what the setting has before the name. With `pretrained`, timm's errors pass through.
    """
    try:
        import timm
    except ImportError:
        raise UserError(f"{key}: {prefix}{name} needs timm; run `pip install timm`") from None
    if name not in (known := timm.list_models()):
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {prefix}{close[0]}?)" if close else ""
        raise UserError(f"{key}: timm has no model {name}{hint}")
    if pretrained and not timm.is_model_pretrained(name):
        raise UserError(f"{key}: timm has no weights for {name}; use another network, or random weights")
    network: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=outputs)
    return without_dropout(network)


def without_dropout(network: nn.Module) -> nn.Module:
    """Switch dropout off: with it, steps would depend on the number of processes."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif type(module).__name__ == "DropPath":
            module.drop_prob = 0.0  # type: ignore[assignment]
    return network
