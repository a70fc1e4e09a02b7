"""One process: its networks, their optimizers, an update of every phase, and the state of it all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import set_model_state_dict, set_optimizer_state_dict
from torch.utils._pytree import tree_leaves

from sparface.config import Config
from sparface.recipes import FaceBatch, Metrics, Phase, Recipe
from sparface.recipes.base import bare
from sparface.sharded import local
from sparface.training.optimizers import build_optimizer, changed_settings, clip, fresh_state
from sparface.training.strategies.buffers import Buffers
from sparface.training.strategies.rounding import convolve_in_float32, native_bf16

T = TypeVar("T")
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Strategy:
    """One process. Methods marked collective are called by all ranks."""

    rank = 0
    world_size = 1
    sharded = False
    """Whether a forward needs every rank, also outside of training."""
    memory_format = torch.channels_last
    """Of the weights; what flattens them can't keep this one."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config, self.device = config, device
        precision = config.training.precision
        self.autocast = AUTOCAST[precision]
        if precision == "bf16" and not native_bf16(device):
            convolve_in_float32()
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        # batches have one shape: cuDNN tries its algorithms once, in the first step
        torch.backends.cudnn.benchmark = device.type == "cuda"

    def prepare(self, recipe: Recipe) -> None:
        """Move the recipe's networks to the device, spread them, and make their optimizers (collective)."""
        self.recipe = recipe
        recipe.scale = self.scaler.scale
        for name, network in recipe.networks.items():
            network.to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload]
            if self.config.training.compile:
                compile_whole(network)
            recipe.networks[name] = self.spread(network)
        for module in recipe.frozen.values():
            module.to(self.device).requires_grad_(False)
        self.optimizers = self.build_optimizers()
        self.buffers = {name: Buffers(network) for name, network in self.networks.items()}

    def spread(self, network: nn.Module) -> nn.Module:
        """The network as this strategy runs it."""
        return network

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """One optimizer for each network, by its name."""
        optimizers = {
            name: build_optimizer(self.config.optimizer, network.parameters())
            for name, network in self.recipe.networks.items()
        }
        for optimizer in optimizers.values():
            for parameter in parameters(optimizer):
                if state := fresh_state(optimizer, parameter):
                    optimizer.state[parameter] = state
        return optimizers

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks without wrappers."""
        return {name: bare(network) for name, network in self.recipe.networks.items()}

    # -- one update ------------------------------------------------------------------------------

    def update(
        self,
        batches: Sequence[FaceBatch],
        rate: float,
        number: int = 0,
        before_change: Callable[[], None] = lambda: None,
    ) -> Metrics:
        """One update of every phase whose turn it is at step `number`, on `batches` (more than one
        accumulates), at `rate` times the base learning rates. Returns the means of the metrics, still on the
        device (collective).

        `before_change` is called before weights and optimizers change.
        """
        metrics: Metrics = {}
        for phase in [phase for phase in self.recipe.phases() if number % phase.every == 0]:
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
        self.scaler.update()
        return metrics

    def warm_up(self, batch: Callable[[], FaceBatch]) -> None:
        """Bring everything that differs in a first update behind us; changes no state (collective)."""

    def train_only(self, names: Sequence[str]) -> None:
        """Gradients for exactly these networks."""
        for name, network in self.recipe.networks.items():
            if next(network.parameters()).requires_grad != (name in names):  # walking through all takes long
                network.requires_grad_(name in names)

    def backward(self, phase: Phase, batch: FaceBatch, share: float, *, last: bool) -> Metrics:
        """Add `share` of the gradients of a batch; with the `last` batch they are averaged over ranks."""
        self.exchange([self.recipe.networks[name] for name in phase.updates], now=last)
        loss, metrics = self.loss(phase, batch)
        self.scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]
        return metrics

    def loss(self, phase: Phase, batch: FaceBatch) -> tuple[Tensor, Metrics]:
        """The phase's loss in the configured precision."""
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            return phase.loss(batch)

    def exchange(self, networks: Iterable[nn.Module], *, now: bool) -> None:
        """Whether the next backward averages gradients over ranks or only adds them up here."""

    def step(self, phase: Phase, rate: float) -> Metrics:
        """Clip and apply the gradients of a phase; an update with a gradient that is not finite is
        dropped on the device, without waiting for it."""
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
        """Take a step unless `broken` (on the device) is 1, and clear the gradients."""
        for group in optimizer.param_groups:
            group["lr"] = rate
        if not self.scaler.is_enabled():
            optimizer.found_inf = broken  # type: ignore[attr-defined]  # fused optimizers skip on it
        self.scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)

    def gradient_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """L2 norm of one network's gradients (collective)."""
        return torch.nn.utils.get_total_norm(gradients)

    def local(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """The parts of tensors that this process holds."""
        return tensors

    # -- state -----------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Any]:
        """State of networks and optimizers by name, the same under every strategy (collective).

        Buffers are copies: unlike all else, they change before an update's `before_change`.
        """
        frozen = {name: weights(module) for name, module in self.recipe.frozen.items()}
        return self.trained() | ({"frozen": frozen} if frozen else {})

    def load(self, state: dict[str, Any]) -> list[str]:
        """Take over what `tensors` gave (collective). Optimizers keep the settings of the configuration;
        returns what was another in the state, one line each."""
        for name, module in self.recipe.frozen.items():
            module.load_state_dict(state["frozen"][name])
        return list(dict.fromkeys(self.load_trained(state)))

    def trained(self) -> dict[str, Any]:
        """The part of `tensors` that updates change (collective)."""
        networks = self.recipe.networks
        return {
            "networks": {name: weights(network) for name, network in networks.items()},
            "optimizers": {name: optimizer_state(networks[name], o) for name, o in self.optimizers.items()},
        }

    def load_trained(self, state: dict[str, Any]) -> list[str]:
        """The part of `load` that `trained` gave (collective)."""
        changes: list[str] = []
        for name, network in self.recipe.networks.items():
            optimizer, saved = self.optimizers[name], state["optimizers"][name]
            changes += changed_settings(optimizer, saved)
            (group,), (own,) = saved["param_groups"], optimizer.param_groups
            group.update({key: value for key, value in own.items() if key != "params"})
            set_model_state_dict(network, state["networks"][name])
            set_optimizer_state_dict(network, optimizer, saved)
        return changes

    def close(self) -> None:
        """Give back what outlives the process group."""

    # -- all ranks together ------------------------------------------------------------------------

    def mean(self, values: Tensor) -> Tensor:
        """Mean of a tensor over ranks (collective)."""
        return values

    def any(self, flag: bool) -> bool:
        """True on all ranks when it is True on one (collective)."""
        return flag

    def vote(self, flag: bool) -> bool:
        """As `any`, without waiting for other ranks: the answer may be the one of the call before."""
        return flag

    def finite(self, state: Any) -> bool:
        """Whether all numbers in nested containers of tensors are finite, on all ranks (collective)."""
        parts = [local(leaf) for leaf in tree_leaves(state) if isinstance(leaf, Tensor)]
        parts = [part.detach() for part in parts if part.is_floating_point() and part.numel()]
        if not parts:
            return not self.any(False)
        sums = torch.stack(torch._foreach_norm(parts, 1))  # one pass and one answer to wait for
        return not self.any(not bool(torch.isfinite(sums).all()))

    def everyone(self, value: T) -> list[T]:
        """The values of all ranks, in rank order (collective)."""
        return [value]


def weights(network: nn.Module) -> dict[str, Any]:
    """What torch's `get_model_state_dict` gives, without its 100 ms; of buffers, copies."""
    buffers = dict(bare(network).named_buffers())
    state: dict[str, Any] = bare(network).state_dict()
    return {key: value.clone() if key in buffers else value for key, value in state.items()}


def optimizer_state(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What torch's `get_optimizer_state_dict` gives, without its 100 ms."""
    names: dict[Tensor, str] = {p: name for name, p in bare(network).named_parameters()}
    groups = [{**g, "params": [names[p] for p in g["params"]]} for g in optimizer.param_groups]
    return {"state": {names[p]: dict(s) for p, s in optimizer.state.items()}, "param_groups": groups}


def parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What an optimizer updates: its network's parameters, without walking through the modules."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def compile_whole(network: nn.Module) -> None:
    """Let a network's forwards and backwards run compiled, as one graph each. What would break a graph,
    or compile again and again, is an error instead of slow."""
    # `shared` runs a backward twice: the first must leave the second what the forward has kept
    torch._functorch.config.donated_buffer = False
    # as eager's: a backward runs outside of autocast, which would round the identity head's
    torch._functorch.config.backward_pass_autocast = "off"
    # torch cuts DDP's graphs at its buckets; with synced norms in them the pieces' results get mixed up
    torch._dynamo.config.optimize_ddp = False
    network.compile(fullgraph=True, dynamic=False)


def add(sums: Metrics, values: Metrics) -> None:
    """Add `values` to `sums`, name by name."""
    for name, value in values.items():
        sums[name] = sums[name] + value if name in sums else value
