"""What a new run starts from: another run's networks, a weights file, or an ONNX file."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sparface.config import Config
from sparface.errors import UserError
from sparface.files import sha256
from sparface.models.weights import weights_digest, weights_path
from sparface.recipes import Recipe
from sparface.runs.lineage import Checkpoint
from sparface.runs.trained import Trained, open_run
from sparface.text import without_login

Weights = Mapping[str, Mapping[str, Tensor]]


def begin(recipe: Recipe, config: Config, shards: str) -> dict[str, str]:
    """Load what `training.start_from` names into the networks of a new run; returns its source and digest.

    From a run come the networks with a role after training (averaged, if it keeps an average). The others,
    such as the identity head, come along only if it was trained on the same faces (the digest `shards`), as
    the head of other people is worthless. Raises `UserError` if something is missing or does not fit.
    """
    source = config.training.start_from
    if not source:
        return {}
    path = weights_path(source)
    if (path / "config.yaml").is_file():
        trained = open_run(path)
        digest = Checkpoint.at(trained.checkpoint).digest
        recipe.begin(_of_run(trained, recipe, shards), str(trained.checkpoint))
    else:
        weights = {} if path.suffix == ".onnx" else recipe.read_weights(source)
        recipe.begin(weights, source)
        digest = sha256(path) if path.is_file() else weights_digest(_flat(weights))
    return {"source": without_login(source), "sha256": digest}


def _of_run(trained: Trained, recipe: Recipe, shards: str) -> Weights:
    trained.require_form()
    mine = recipe.roles(recipe.config)
    roles = [role for role in mine if role in trained.recipe.roles(trained.config)]
    if not roles:
        raise UserError(
            f"training.start_from: {trained.run} was trained with the recipe {trained.config.recipe}, "
            f"which has no {' or '.join(mine) or 'finished network'}; give another run"
        )
    found = {mine[role].network: trained.weights(role) for role in roles}
    if trained.identity.get("shards") == shards:
        found |= {name: trained.named(name) for name in trained.others() if name in recipe.networks}
    return found


def _flat(weights: Weights) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for name, state in weights.items() for key, value in state.items()}
