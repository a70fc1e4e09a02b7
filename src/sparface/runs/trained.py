"""A run opened for use: its newest good checkpoint, and the networks in it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparface import config as configs
from sparface.config import Config
from sparface.errors import UserError
from sparface.files import inside
from sparface.models.batchnorm import plain_state
from sparface.models.recognizer import Recognizer, build_recognizer
from sparface.models.sae import SAE, build_generator
from sparface.runs.checkpoint import CheckpointStore, read_weights
from sparface.runs.checkpoint_files import read_state


@dataclass(frozen=True)
class Trained:
    """A run's newest good checkpoint."""

    run: Path
    config: Config
    checkpoint: Path
    images_seen: int
    facts: dict[str, Any]
    """What the checkpoint says besides its tensors."""

    @property
    def averaged(self) -> bool:
        """Whether the weights are averages: they are where the run keeps them."""
        return self.config.training.average_half_life > 0

    def weights(self, network: str) -> dict[str, Tensor]:
        """The state of `recognizer` or `generator`, on the CPU. UserError where there is none."""
        return read_weights(self.checkpoint, f"{'averages' if self.averaged else 'networks'}.{network}")


def open_run(run: Path) -> Trained:
    """Find a run's newest good checkpoint. Raises UserError: not a run folder, no checkpoint."""
    run = Path(run)
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run}: not a run (no config.yaml); give the --out folder of `sparface train`")
    config = configs.load(inside(run, "config.yaml"))
    store = CheckpointStore(run / "checkpoints")
    if (checkpoint := store.newest()) is None:
        why = (
            f"no good checkpoint: {store.skipped[0]}" if store.skipped else "no checkpoint yet; train longer"
        )
        raise UserError(f"{run}: {why}")
    state = read_state(checkpoint)
    return Trained(run, config, checkpoint, state["images_seen"], state["facts"])


def load_recognizer(trained: Trained, device: torch.device | None = None) -> Recognizer:
    """The trained recognizer in eval mode, without the BatchNorm of sparring faces.

    Raises UserError if config and checkpoint do not fit.
    """
    # The checkpoint holds every weight: pretrained ones would only be fetched to be overwritten.
    recognizer = build_recognizer(dataclasses.replace(trained.config.recognizer, pretrained=""))
    _load(recognizer, plain_state(trained.weights("recognizer")), trained)
    return recognizer.to(device or torch.device("cpu")).eval()


def load_generator(trained: Trained, device: torch.device | None = None) -> SAE:
    """The trained generator in eval mode.

    Raises UserError for a run without one, or if config and checkpoint do not fit, or if it is of
    another form (see `SAE.FORM`).
    """
    if trained.config.recipe != "sparring":
        raise UserError(
            f"{trained.run}: was trained with the recipe {trained.config.recipe}, so it has no generator; "
            "give a run of the recipe sparring"
        )
    if SAE.FORM not in str(read_state(trained.checkpoint)["identity"]):
        raise UserError(
            f"{trained.checkpoint}: its generator would make other faces here than the ones it was trained "
            f"for (its form is not {SAE.FORM}); train it again, or use the sparface that wrote it"
        )
    generator = build_generator(trained.config.generator)
    _load(generator, trained.weights("generator"), trained)
    return generator.to(device or torch.device("cpu"), memory_format=torch.channels_last).eval()  # type: ignore[call-overload,no-any-return]


def _load(network: nn.Module, state: dict[str, Tensor], trained: Trained) -> None:
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{trained.checkpoint}: does not fit the config.yaml of its run ({reason})") from None
