"""A run opened for use: its newest intact checkpoint and its networks by role."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparface import settings
from sparface.config import Config
from sparface.errors import UserError
from sparface.files import inside
from sparface.forms import parsed
from sparface.models.sae import Encoder
from sparface.recipes import Finished, Recipe, Role, registry
from sparface.runs.checkpoint import CheckpointStore, read_weights
from sparface.runs.checkpoint_files import Reader, read_state
from sparface.runs.onnx_copy import buildable


@dataclass(frozen=True)
class Trained:
    """A run's newest intact checkpoint."""

    run: Path
    config: Config
    recipe: type[Recipe]
    checkpoint: Path
    images_seen: int
    facts: dict[str, Any]
    """The facts stored with the checkpoint."""
    identity: dict[str, Any]
    """The settings that identify the checkpoint's model."""

    @property
    def averaged(self) -> bool:
        """Whether averaged weights are used, which is the case if the run keeps an average."""
        return self.config.training.average_half_life > 0

    def finished(self, role: Role) -> Finished:
        """How to build the network of a role. Raises `UserError` if the run has none."""
        roles = self.recipe.roles(self.config)
        if role not in roles:
            raise UserError(
                f"{self.run}: was trained with the recipe {self.config.recipe}, so it has no {role}; "
                f"it has {', '.join(roles) or 'no networks to use'}"
            )
        return roles[role]

    def weights(self, role: Role) -> dict[str, Tensor]:
        """The state dict of a role's network, as its `build` loads it, on the CPU. Raises `UserError` if
        there is none or it cannot be read."""
        made = self.finished(role)
        state = made.state(self.named(made.network))
        for part in made.frozen:
            found = read_weights(self.checkpoint, f"frozen.{part}")
            state |= {f"{part}.{key}": value for key, value in found.items()}
        return state

    def named(self, network: str) -> dict[str, Tensor]:
        """The state dict of a network as it was trained. Raises `UserError` if it cannot be read."""
        return read_weights(self.checkpoint, f"{'averages' if self.averaged else 'networks'}.{network}")

    def others(self) -> set[str]:
        """Names of the trained networks without a role, such as the identity head."""
        names = (key.split(".")[:2] for key in Reader(self.checkpoint).read_metadata().state_dict_metadata)
        roles = {made.network for made in self.recipe.finished.values()}
        return {name for group, name in names if group == "networks"} - roles

    def network(self, role: Role, device: torch.device | None = None) -> nn.Module:
        """The trained network of a role in evaluation mode.

        Raises `UserError` if the run has none, or if the checkpoint does not match the config.
        """
        made = self.finished(role)
        self.require_form()
        network = made.build(self.config)
        try:
            network.load_state_dict(self.weights(role))
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{self.checkpoint}: does not match the config.yaml of its run ({reason})"
            ) from None
        return network.to(device or torch.device("cpu")).eval()

    def require_form(self) -> None:
        """Raise `UserError` if the network would behave differently here than in training."""
        for key, here in json.loads(json.dumps(self.recipe.identity(self.config))).items():
            if (there := self.identity.get(key)) != here:
                raise UserError(
                    f"{self.checkpoint}: its {key} is {there}, not {here}, so it would not behave as in "
                    "training; train it again, or use the sparface version that wrote it"
                )


def open_run(run: Path) -> Trained:
    """Find a run's newest intact checkpoint. Raises `UserError` if `run` is not a run or has none."""
    run = Path(run)
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run}: not a run (no config.yaml); give the --out folder of `sparface train`")
    config = buildable(settings.load(inside(run, "config.yaml")), run)
    store = CheckpointStore(run / "checkpoints")
    if (checkpoint := store.newest()) is None:
        why = (
            f"no good checkpoint: {store.skipped[0]}" if store.skipped else "no checkpoint yet; train longer"
        )
        raise UserError(f"{run}: {why}")
    state = read_state(checkpoint)
    recipe = registry.find(config.recipe)
    return Trained(
        run, config, recipe, checkpoint, state["images_seen"], state["facts"], _identity(state["identity"])
    )


def open_generator(trained: Trained, device: torch.device) -> Encoder:
    """Load the trained generator of sparring faces. Raises `UserError` if the run has none."""
    return encoder_of(trained, trained.network("generator", device))


def encoder_of(trained: Trained, generator: nn.Module) -> Encoder:
    """Return a run's generator if it makes sparring faces of given faces. Raises `UserError` if not."""
    if not isinstance(generator, Encoder):
        raise UserError(
            f"{trained.run}: the generator does not make sparring faces of given faces; use another run"
        )
    return generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _identity(text: str) -> dict[str, Any]:
    found = parsed(text)
    return found if isinstance(found, dict) else {}
