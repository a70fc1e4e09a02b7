"""Training on a single process: networks, optimizers, updates and state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import set_model_state_dict, set_optimizer_state_dict
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from sparface.config import Config
from sparface.groups import batchnorm_groups
from sparface.models.batchnorm import JointBatchNorm, join_batchnorm
from sparface.models.ghost import GhostBatchNorm, statistics
from sparface.recipes import FaceBatch, Metrics, Phase, Recipe
from sparface.sharded import local
from sparface.training.optimizers import (
    build_optimizer,
    changed_settings,
    clip,
    fresh_state,
    saved_groups,
)
from sparface.training.strategies.buffers import Buffers
from sparface.training.strategies.rounding import convolve_in_float32, native_bf16

T = TypeVar("T")
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Strategy:
    """A single process. Methods marked collective must be called on all ranks."""

    rank = 0
    world_size = 1
    sharded = False
    """Whether a forward needs all ranks, even outside training."""
    memory_format = torch.channels_last
    """Memory format of the weights. Strategies that flatten weights cannot keep channels_last."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config, self.device = config, device
        precision = config.training.precision
        self.autocast = AUTOCAST[precision]
        if precision == "bf16" and not native_bf16(device):
            convolve_in_float32()
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        # all batches have the same shape, so cuDNN benchmarks its algorithms only once
        torch.backends.cudnn.benchmark = device.type == "cuda"

    def prepare(self, recipe: Recipe) -> None:
        """Move the recipe's networks to the device, wrap them and build their optimizers (collective).

        Raises `UserError` if a batch does not divide into BatchNorm's groups.
        """
        self.recipe = recipe
        recipe.scale = self.scaler.scale
        if convert := self.batchnorm():
            recipe.networks.update({n: join_batchnorm(net, convert) for n, net in recipe.networks.items()})
        for network in recipe.networks.values():
            network.to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload]
            if self.config.training.compile:
                compile_whole(network)
            self.shard(network)
        for module in recipe.frozen.values():
            module.to(self.device).requires_grad_(False)
        self.optimizers = self.build_optimizers()
        self.buffers = {name: Buffers(network) for name, network in recipe.networks.items()}
        self.statistics = [s for network in recipe.networks.values() for s in statistics(network)]

    def batchnorm(self) -> Callable[[_BatchNorm], JointBatchNorm] | None:
        """Return what replaces each BatchNorm, if anything does."""
        if self.config.training.batchnorm != "ghost":
            return None
        return partial(GhostBatchNorm, groups=batchnorm_groups(self.config, self.world_size))

    def shard(self, network: nn.Module) -> None:
        """Shard a network in place if the strategy does so."""

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Build one optimizer per network, by network name."""
        optimizers = {
            name: build_optimizer(self.config.optimizer, {name: network.parameters()})
            for name, network in self.recipe.networks.items()
        }
        for optimizer in optimizers.values():
            for parameter in parameters(optimizer):
                if state := fresh_state(optimizer, parameter):
                    optimizer.state[parameter] = state
        return optimizers

    # -- one update ------------------------------------------------------------------------------

    def update(
        self,
        batches: Sequence[FaceBatch],
        rate: float,
        number: int = 0,
        before_change: Callable[[], None] = lambda: None,
    ) -> Metrics:
        """Update every phase that runs in step `number` (collective).

        Gradients accumulate over `batches`. `rate` multiplies the base learning rates. `before_change` is
        called before weights and optimizer states change. Returns the means of the metrics, on the device.
        """
        metrics: Metrics = {}
        phases = [phase for phase in self.recipe.phases() if number % phase.every == 0]
        for phase in phases:
            self.train_only(phase.updates)
            for name in phase.updates:
                self.buffers[name].keep()
            for number, batch in enumerate(batches, 1):
                found = self.backward(phase, batch, 1 / len(batches), last=number == len(batches))
                add(metrics, {name: value / len(batches) for name, value in found.items()})
            before_change()
            found = self.step(phase, rate)
            for name in phase.updates:
                self.buffers[name].restore(found["skipped"])
            add(metrics, found)
        for name, updates in Counter(name for phase in phases for name in phase.updates).items():
            if updates > 1:
                metrics[f"{name}/gradient_norm"] /= updates
        self.scaler.update()
        return metrics

    def warm_up(self, batch: Callable[[], FaceBatch]) -> None:
        """Run whatever differs in a first update ahead of time, without changing any state (collective)."""

    def train_only(self, names: Sequence[str]) -> None:
        """Enable gradients for exactly these networks."""
        for name, network in self.recipe.networks.items():
            if next(network.parameters()).requires_grad != (name in names):  # walking all parameters is slow
                network.requires_grad_(name in names)

    def backward(self, phase: Phase, batch: FaceBatch, share: float, *, last: bool) -> Metrics:
        """Accumulate `share` times a batch's gradients; on the `last` batch, average them over ranks."""
        self.exchange(phase, now=last)
        loss, metrics = self.loss(phase, batch)
        self.scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]
        return metrics

    def loss(self, phase: Phase, batch: FaceBatch) -> tuple[Tensor, Metrics]:
        """Compute the phase's loss in the configured precision."""
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            return phase.loss(batch)

    def exchange(self, phase: Phase, *, now: bool) -> None:
        """Set whether the phase's next backward averages gradients over ranks or only accumulates them."""

    def step(self, phase: Phase, rate: float) -> Metrics:
        """Clip and apply the gradients of a phase.

        An update with a non-finite gradient is skipped on the device, without synchronisation.
        """
        metrics: Metrics = {}
        for name in phase.updates:
            self.scaler.unscale_(self.optimizers[name])
            gradients = [p.grad for p in parameters(self.optimizers[name]) if p.grad is not None]
            metrics[f"{name}/gradient_norm"] = norm = self.gradient_norm(gradients)
            clip(self.local(gradients), norm, self.config.optimizer.clip_norm)
        broken = torch.stack([(~torch.isfinite(norm)).float() for norm in metrics.values()]).amax()
        for name in phase.updates:
            self.apply(self.optimizers[name], self.recipe.learning_rate(name) * rate, broken)
        return metrics | {"skipped": broken}

    def apply(self, optimizer: torch.optim.Optimizer, rate: float, broken: Tensor) -> None:
        """Take an optimizer step unless `broken` (on the device) is 1, and clear the gradients."""
        for group in optimizer.param_groups:
            group["lr"] = rate
        if not self.scaler.is_enabled():
            optimizer.found_inf = broken  # type: ignore[attr-defined]  # fused optimizers then skip
        self.scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)

    def gradient_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Return the L2 norm of one network's gradients (collective)."""
        return torch.nn.utils.get_total_norm(gradients)

    def local(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the parts of tensors that this process holds."""
        return tensors

    # -- state -----------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Any]:
        """Return the state of networks and optimizers by name, in the same form everywhere (collective).

        Buffers are copied: unlike other tensors, they change before an update calls `before_change`.
        """
        frozen = {name: weights(module) for name, module in self.recipe.frozen.items()}
        return self.trained() | ({"frozen": frozen} if frozen else {})

    def load(self, state: dict[str, Any]) -> list[str]:
        """Load the state returned by `tensors` (collective).

        Optimizers keep the configured settings; returns one line for each setting that differs in the state.
        """
        for name, module in self.recipe.frozen.items():
            module.load_state_dict(state["frozen"][name])
        return list(dict.fromkeys(self.load_trained(state)))

    def trained(self) -> dict[str, Any]:
        """Return the part of `tensors` that updates change (collective)."""
        networks = self.recipe.networks
        return {
            "networks": {name: weights(network) for name, network in networks.items()},
            "optimizers": {name: optimizer_state(networks[name], o) for name, o in self.optimizers.items()},
        }

    def load_trained(self, state: dict[str, Any]) -> list[str]:
        """Load the state returned by `trained` (collective)."""
        changes: list[str] = []
        for name, network in self.recipe.networks.items():
            optimizer, saved = self.optimizers[name], state["optimizers"][name]
            changes += changed_settings(optimizer, saved)
            names = parameter_names(network)
            own = [{**g, "params": [names[p] for p in g["params"]]} for g in optimizer.param_groups]
            set_model_state_dict(network, state["networks"][name])
            set_optimizer_state_dict(network, optimizer, {**saved, "param_groups": own})
        return changes

    def close(self) -> None:
        """Release resources that outlive the process group."""

    def meet(self, averages: Sequence[Tensor] = ()) -> None:
        """Replace running statistics, and averages of them, by their mean over ranks before they are read
        (collective). Until then, those of a rank are of its own groups."""

    # -- all ranks together ------------------------------------------------------------------------

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of a tensor over ranks (collective)."""
        return values

    def any(self, flag: bool) -> bool:
        """Return True on all ranks if `flag` is True on any (collective)."""
        return flag

    def vote(self, flag: bool) -> bool:
        """Like `any`, but without waiting for other ranks: may return the previous call's answer."""
        return flag

    def finite(self, state: Any) -> bool:
        """Whether all numbers in nested containers of tensors are finite, on all ranks (collective)."""
        parts = [local(leaf) for leaf in tree_leaves(state) if isinstance(leaf, Tensor)]
        parts = [part.detach() for part in parts if part.is_floating_point() and part.numel()]
        if not parts:
            return not self.any(False)
        sums = torch.stack(torch._foreach_norm(parts, 1))  # one pass and one synchronisation
        return not self.any(not bool(torch.isfinite(sums).all()))

    def of_rank(self, rank: int, value: Tensor) -> Tensor:
        """Return one rank's tensor; those of all ranks have its shape and type (collective)."""
        return value

    def everyone(self, value: T) -> list[T]:
        """Return the values of all ranks, in rank order (collective)."""
        return [value]


def weights(network: nn.Module) -> dict[str, Any]:
    """Like torch's `get_model_state_dict`, without its 100 ms; buffers are copied."""
    buffers = dict(network.named_buffers())
    state: dict[str, Any] = network.state_dict()
    return {key: value.clone() if key in buffers else value for key, value in state.items()}


def optimizer_state(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Like torch's `get_optimizer_state_dict`, without its 100 ms."""
    names = parameter_names(network)
    state = {names[p]: dict(s) for p, s in optimizer.state.items()}
    return {"state": state, "param_groups": saved_groups(optimizer, names.values())}


def parameter_names(network: nn.Module) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in network.named_parameters()}


def parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the parameters that an optimizer updates, without walking the modules."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def compile_whole(network: nn.Module) -> None:
    """Compile a network's forward and backward into one graph each.

    Graph breaks and dynamic shapes raise an error instead of slowing down training.
    """
    # `shared` runs backward twice: the first pass must keep the buffers that the second needs
    torch._functorch.config.donated_buffer = False
    # as in eager mode, run backward outside autocast, which would round the identity head's gradients
    torch._functorch.config.backward_pass_autocast = "off"
    # torch splits DDP's graphs at its buckets, and mixes up the results of the parts if norms are synced
    torch._dynamo.config.optimize_ddp = False
    network.compile(fullgraph=True, dynamic=False)


def add(sums: Metrics, values: Metrics) -> None:
    """Add `values` to `sums` in place, by name."""
    for name, value in values.items():
        sums[name] = sums[name] + value if name in sums else value
