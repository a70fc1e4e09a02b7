"""DeepSpeed's ZeRO, stages 0 to 3: shards optimizer states (1), gradients (2) and weights (3) over ranks.

Each phase has one engine, which holds all networks that the phase updates and computes the phase's loss in
its forward. DeepSpeed thus sees one forward, one backward and one step, whatever the networks exchange.
Networks that a phase does not update are frozen and called without an engine.

Checkpoints have the same form as under the other strategies: whole tensors, gathered when saving. A run can
be resumed with another number of processes, at another stage, or without DeepSpeed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sparface.config import Config, configs_folder
from sparface.errors import UserError
from sparface.models.batchnorm import SplitBatchNorm
from sparface.recipes import FaceBatch, Metrics, Phase, Recipe
from sparface.training.optimizers import (
    build_optimizer,
    changed_settings,
    clip,
    fresh_state,
    saved_groups,
)
from sparface.training.strategies.distributed import Distributed, Together

OURS = {
    "train_batch_size": "data.identities_per_batch",
    "train_micro_batch_size_per_gpu": "data.identities_per_batch",
    "gradient_accumulation_steps": "training.accumulate",
    "gradient_clipping": "optimizer.clip_norm",
    "optimizer": "optimizer.name",
    "scheduler": "schedule.decay",
    "fp16": "training.precision",
    "bf16": "training.precision",
    "torch_autocast": "training.precision",
}
"""Keys of DeepSpeed's JSON that are set by the configuration instead → the configuration's key."""


class Zero(Distributed):
    """DeepSpeed engines instead of DDP; `training.deepspeed` names their JSON file."""

    memory_format = torch.contiguous_format

    def __init__(self, config: Config, device: torch.device) -> None:
        """Raises `UserError` for an invalid JSON file or incompatible settings."""
        self.json = read_json(config.training.deepspeed)
        self.stage = int(self.json.get("zero_optimization", {}).get("stage", 0))
        self.sharded = self.stage == 3
        if config.training.precision == "fp16":
            raise UserError("training.precision: fp16 is not supported with deepspeed; use bf16")
        if config.training.average_half_life and self.sharded:
            raise UserError(
                "training.average_half_life: not supported with ZeRO stage 3; set it to 0 or use fsdp"
            )
        super().__init__(config, device)

    def prepare(self, recipe: Recipe) -> None:
        """Raises `UserError` under stage 3 if the recipe computes gradients inside a loss.

        DeepSpeed gathers the weights for a single backward only.
        """
        for phase in recipe.phases():
            if self.sharded and phase.inner_gradients:
                raise UserError(
                    f"training.deepspeed: ZeRO stage 3 is not supported with these settings of the recipe "
                    f"{self.config.recipe}; use fsdp, or {phase.inner_gradients}"
                )
        self.engines: dict[str, _Engine] = {}
        self.norms: Metrics = {}
        super().prepare(recipe)

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Build one optimizer per phase."""
        for phase in self.recipe.phases():
            networks = {name: self.recipe.networks[name] for name in phase.updates}
            parameters = {name: network.parameters() for name, network in networks.items()}
            optimizer = build_optimizer(self.config.optimizer, parameters)
            self.engines[phase.name] = _Engine(networks, optimizer, self.settings(), self.stage)
            optimizer.register_step_pre_hook(self.guard)
        return {name: engine.optimizer for name, engine in self.engines.items()}

    def close(self) -> None:
        import deepspeed

        for engine in self.engines.values():
            engine.engine.destroy()
        deepspeed.comm.destroy_process_group()

    def settings(self) -> dict[str, Any]:
        """Return DeepSpeed's settings: the JSON file, completed from the configuration."""
        data = self.config.data
        faces = data.identities_per_batch * data.images_per_identity // self.world_size
        return {
            **self.json,
            "train_micro_batch_size_per_gpu": faces,
            "gradient_accumulation_steps": self.config.training.accumulate,
            "gradient_clipping": 0.0,  # DeepSpeed's default is not 0; `guard` clips
            # the optimizers are torch's own, on any device
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }

    # -- one update ------------------------------------------------------------------------------

    def backward(self, phase: Phase, batch: FaceBatch, share: float, *, last: bool) -> Metrics:
        engine = self.engines[phase.name].engine
        loss, metrics = engine(partial(self.loss, phase, batch))
        engine.backward(loss)  # DeepSpeed applies the share itself
        if not last:
            engine.step()  # only counts the batch
        return metrics  # type: ignore[no-any-return]

    def step(self, phase: Phase, rate: float) -> Metrics:
        engine = self.engines[phase.name]
        for group in engine.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate(group["name"]) * rate
        self.norms = {name: self.gradient_norm(found) for name, found in engine.gradients().items()}
        self.broken = torch.stack([(~torch.isfinite(norm)).float() for norm in self.norms.values()]).amax()
        engine.engine.step()
        norms = {f"{name}/gradient_norm": norm for name, norm in self.norms.items()}
        return norms | {"skipped": self.broken}

    def gradient_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.stage:
            squared = norm.square()
            dist.all_reduce(squared)
            norm = squared.sqrt()
        return norm

    def guard(self, optimizer: torch.optim.Optimizer, *call: Any) -> None:
        """Clip the gradients before DeepSpeed applies them, and skip the update if they are not finite.

        DeepSpeed calls the optimizer with one group or with all of them.
        """
        for group in optimizer.param_groups:
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            clip(gradients, self.norms[group["name"]], self.config.optimizer.clip_norm)
        optimizer.found_inf = self.broken  # type: ignore[attr-defined]

    # -- state -----------------------------------------------------------------------------------

    def trained(self) -> dict[str, Any]:
        state: dict[str, Any] = {"networks": {}, "optimizers": {}}
        for engine in self.engines.values():
            for name, network in engine.networks.items():
                network.requires_grad_(True)  # DeepSpeed gathers nothing for frozen networks
                state["networks"][name] = engine.weights(network)
                state["optimizers"][name] = engine.optimizer_state(name, network)
        return state

    def load_trained(self, state: dict[str, Any]) -> list[str]:
        changes: list[str] = []
        for engine in self.engines.values():
            for name, network in engine.networks.items():
                network.requires_grad_(True)
                changes += changed_settings(engine.optimizer, state["optimizers"][name])
                engine.set_weights(network, state["networks"][name])
                engine.set_optimizer_state(name, network, state["optimizers"][name]["state"])
        return changes


class _Engine:
    """A DeepSpeed engine, with access to whole tensors that it shards."""

    def __init__(
        self,
        networks: dict[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        settings: dict[str, Any],
        stage: int,
    ) -> None:
        import deepspeed

        deepspeed.utils.logger.setLevel(logging.WARNING)
        # else it looks for compilers, and on a CPU compiles for a minute what only its inference uses
        deepspeed.ops.__compatible_ops__ = {}
        self.networks, self.optimizer, self.stage = networks, optimizer, stage
        self.deepspeed = deepspeed
        part = Together(networks)
        for module in part.modules():
            if isinstance(module, SplitBatchNorm):  # stage 3 gathers weights only when their module is called
                module.together = stage < 3
        self.engine, *_ = deepspeed.initialize(model=part, optimizer=optimizer, config=settings)
        for _, flat in self.flats():
            optimizer.state[flat] = fresh_state(optimizer, flat)
        if stage in (1, 2):
            self.engine.optimizer._lazy_init_hp_params_optimizer_state()

    def flats(self) -> list[tuple[str, Tensor]]:
        """Return the tensors that the optimizer updates, each with its network's name.

        These are parameters at stage 0, and otherwise this rank's parts of parameter groups.
        """
        groups, zero = self.optimizer.param_groups, self.engine.optimizer
        if self.stage == 0:
            return [(group["name"], parameter) for group in groups for parameter in group["params"]]
        if self.stage == 3:
            parts = zero.fp32_partitioned_groups_flat
            return [(groups[zero.sub_group_to_group_id[n]]["name"], flat) for n, flat in enumerate(parts)]
        flats = zero.single_partition_of_fp32_groups
        return [(group["name"], flat) for group, flat in zip(groups, flats, strict=True)]

    def gradients(self) -> dict[str, list[Tensor]]:
        """Return this rank's parts of the averaged gradients between backward and step, by network."""
        found: dict[str, list[Tensor]] = {name: [] for name in self.networks}
        averaged = self.engine.optimizer.averaged_gradients if self.stage else {}
        for number, (name, flat) in enumerate(self.flats()):
            found[name] += averaged.get(number) or ([] if flat.grad is None else [flat.grad])
        return found

    def weights(self, network: nn.Module) -> dict[str, Tensor]:
        with self.whole(network):
            return {key: tensor.detach().clone() for key, tensor in network.state_dict().items()}

    def set_weights(self, network: nn.Module, state: dict[str, Tensor]) -> None:
        with self.whole(network, write=True):
            network.load_state_dict(state)
        if self.stage:
            self.engine.optimizer.refresh_fp32_params()

    @contextmanager
    def whole(self, network: nn.Module, *, write: bool = False) -> Iterator[None]:
        """Context manager: gather the network's whole weights; `write` keeps rank 0's changes."""
        if self.stage < 3:
            yield
            return
        with self.deepspeed.zero.GatheredParameters(
            list(network.parameters()), modifier_rank=0 if write else None
        ):
            yield

    def optimizer_state(self, name: str, network: nn.Module) -> dict[str, Any]:
        """Return the state in the form of torch's `get_optimizer_state_dict`."""
        known = next(self.optimizer.state[flat] for owner, flat in self.flats() if owner == name)
        state = {}
        for key, parameter in network.named_parameters():
            state[key] = {k: self.get(parameter, k) for k in known if k != "step"}
            if "step" in known:
                state[key]["step"] = known["step"].clone()
        return {"state": state if known else {}, "param_groups": saved_groups(self.optimizer, state)}

    def set_optimizer_state(self, name: str, network: nn.Module, state: dict[str, Any]) -> None:
        for key, parameter in network.named_parameters():
            for kind, value in state.get(key, {}).items():
                if kind != "step":
                    self.set(parameter, kind, value)
        for owner, flat in self.flats():
            if owner == name and "step" in self.optimizer.state[flat]:
                self.optimizer.state[flat]["step"].copy_(next(iter(state.values()))["step"])

    def get(self, parameter: Tensor, kind: str) -> Tensor:
        """Return a parameter's whole optimizer state of one kind (collective)."""
        if self.stage == 0:
            return self.optimizer.state[parameter][kind].clone()  # type: ignore[no-any-return]
        whole = self.deepspeed.utils.safe_get_full_optimizer_state(parameter, kind)
        return whole.clone()  # type: ignore[no-any-return]

    def set(self, parameter: Any, kind: str, value: Tensor) -> None:
        if self.stage == 0:
            self.optimizer.state[parameter][kind].copy_(value)
        elif self.stage < 3:
            self.deepspeed.utils.safe_set_full_optimizer_state(parameter, value, kind)
        else:  # DeepSpeed's setter fails if the size is not divisible by the ranks
            size = parameter.ds_tensor.numel()
            padded = value.new_zeros(size * dist.get_world_size())
            padded[: value.numel()] = value.flatten()
            part = padded[size * dist.get_rank() :][:size]
            self.deepspeed.utils.safe_set_local_optimizer_state(parameter, part, kind)


def read_json(name: str) -> dict[str, Any]:
    """Read DeepSpeed's settings from a file, or by the name of one that comes with the package ("zero2").

    Raises `UserError` if the file is missing, is not a JSON object, or has a key of `OURS`.
    """
    packaged = configs_folder() / "deepspeed" / f"{name}.json"
    path = packaged if packaged.is_file() else Path(name)
    try:
        settings = json.loads(path.read_text())
    except OSError:
        known = ", ".join(sorted(p.stem for p in packaged.parent.glob("*.json")))
        raise UserError(f"training.deepspeed: {name}: no such file; give a file or one of {known}") from None
    except ValueError as error:
        raise UserError(f"training.deepspeed: {path}: not valid JSON ({error})") from None
    if not isinstance(settings, dict):
        raise UserError(f"training.deepspeed: {path}: not a JSON object")
    for key, ours in OURS.items():
        if key in settings:
            raise UserError(f"training.deepspeed: {path}: {key} is set by {ours}; remove it from the file")
    return settings
