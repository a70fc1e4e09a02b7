"""How training is spread over processes, and what an update is there.

`Strategy` is one process, `Distributed` one of several. `DDP` holds all networks on each of them;
`training/fsdp.py` and `training/zero.py` shard them. A strategy owns what differs between them: the
wrapped networks, their optimizers, backward and update, and the state of both. That state is the same
for all of them, so that a checkpoint written under one strategy and number of processes is read under
any other.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import set_model_state_dict, set_optimizer_state_dict
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from sparface.config import Config, TrainingConfig
from sparface.errors import UserError
from sparface.machine import cores_per_process, keep_freed_memory
from sparface.models.batchnorm import sync_batchnorm
from sparface.recipes import FaceBatch, Metrics, Phase, Recipe
from sparface.recipes.base import bare
from sparface.training.buffers import Buffers
from sparface.training.optimizers import base_rate, build_optimizer, changed_settings, clip, fresh_state
from sparface.training.rounding import convolve_in_float32, native_bf16
from sparface.training.sharded import local

T = TypeVar("T")
# its new name is not there in every torch that we support
warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
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
        self, batches: Sequence[FaceBatch], rate: float, before_change: Callable[[], None] = lambda: None
    ) -> Metrics:
        """One update of every phase on `batches` (more than one accumulates), at `rate` times the
        base learning rates. Returns the means of the metrics, still on the device (collective).

        `before_change` is called before weights and optimizers change.
        """
        metrics: Metrics = {}
        for phase in self.recipe.phases():
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
            self.apply(self.optimizers[name], base_rate(self.config.optimizer, name) * rate, broken)
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
        networks = self.recipe.networks
        return {
            "networks": {name: weights(network) for name, network in networks.items()},
            "optimizers": {name: optimizer_state(networks[name], o) for name, o in self.optimizers.items()},
        }

    def load(self, state: dict[str, Any]) -> list[str]:
        """Take over what `tensors` gave (collective). Optimizers keep the settings of the configuration;
        returns what was another in the state, one line each."""
        changes: list[str] = []
        for name, network in self.recipe.networks.items():
            optimizer, saved = self.optimizers[name], state["optimizers"][name]
            changes += changed_settings(optimizer, saved)
            (group,), (own,) = saved["param_groups"], optimizer.param_groups
            group.update({key: value for key, value in own.items() if key != "params"})
            set_model_state_dict(network, state["networks"][name])
            set_optimizer_state_dict(network, optimizer, saved)
        return list(dict.fromkeys(changes))

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


class Distributed(Strategy):
    """One of several processes: how they decide together; how they share an update is a subclass's.

    With `batchnorm: synced` a step's gradients equal those of one process on the whole batch.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        super().__init__(config, device)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        # decisions travel beside the tensors, so that they never wait for the device
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=config.training.timeout))
        assert isinstance(group, dist.ProcessGroup)  # every rank is in it
        self.decisions = group
        self.pending: tuple[dist.Work, Tensor] | None = None

    def prepare(self, recipe: Recipe) -> None:
        if self.config.training.batchnorm == "synced":
            recipe.networks.update({name: sync_batchnorm(n) for name, n in recipe.networks.items()})
        super().prepare(recipe)
        recipe.gather = gather

    def mean(self, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values / self.world_size

    def any(self, flag: bool) -> bool:
        votes = torch.tensor([int(flag)])
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self.decisions)
        return bool(votes)

    def vote(self, flag: bool) -> bool:
        pending, votes = self.pending, torch.tensor([int(flag)])
        work = dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self.decisions, async_op=True)
        self.pending = work, votes
        if pending is None:
            return False
        pending[0].wait()
        return bool(pending[1])

    def everyone(self, value: T) -> list[T]:
        values = [value] * self.world_size
        dist.all_gather_object(values, value, group=self.decisions)
        return values


class DDP(Distributed):
    """Data parallel: every rank holds all networks; gradients are averaged while backward runs.

    Buffers are not broadcast: with synced statistics they are equal on all ranks already.
    """

    def spread(self, network: nn.Module) -> nn.Module:
        return DistributedDataParallel(
            network,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )

    def warm_up(self, batch: Callable[[], FaceBatch]) -> None:
        """DDP lays its buckets out anew after the first backward, and more than two processes then sum in
        another order: a resumed run would differ from an undisturbed one in its first update."""
        if self.world_size <= 2:
            return
        kept = [(buffer, buffer.clone()) for n in self.networks.values() for buffer in n.buffers()]
        for phase in self.recipe.phases():
            self.train_only(phase.updates)
            self.backward(phase, batch(), 1.0, last=True)
        for network in self.recipe.networks.values():
            network.zero_grad(set_to_none=True)
        for buffer, value in kept:
            buffer.copy_(value)

    def exchange(self, networks: Iterable[nn.Module], *, now: bool) -> None:
        for network in networks:
            assert isinstance(network, DistributedDataParallel)
            network.require_backward_grad_sync = now  # what no_sync() sets


class _Gather(torch.autograd.Function):
    """All ranks' tensors along dim 0; backward sums the gradient over ranks.

    A loss of the gathered tensor is computed on every rank, so that the sum holds it world-size
    times; the averaging of gradients takes that factor out again.
    """

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gather(local: Tensor) -> Tensor:
    """[b, …] of this rank → [world size × b, …] of all ranks in rank order; differentiable."""
    return _Gather.apply(local)  # type: ignore[no-any-return]


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


@contextmanager
def joining(config: TrainingConfig) -> Iterator[None]:
    """End this process when the block takes longer than `training.timeout`.

    Joining the others can hang where torch's own timeouts do not reach: a frozen process that holds the
    store answers nobody.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    timer = threading.Timer(config.timeout, _give_up, [config.timeout])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _give_up(seconds: float) -> None:
    text = f"sparface: the processes were not ready together within {seconds:.0f} s (training.timeout)"
    print(text, file=sys.stderr, flush=True)
    os._exit(1)


@contextmanager
def open_strategy(config: Config) -> Iterator[Strategy]:
    """Join the other processes (torchrun's RANK, WORLD_SIZE, … in the environment) and leave at the end.

    Raises `UserError` when the configured strategy and the environment do not fit.
    """
    training = config.training
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size)))
    device = _device(training, local_rank)
    torch.set_num_threads(training.threads or cores_per_process(local_size))
    keep_freed_memory()
    name = training.strategy
    if name == "auto":
        name = "ddp" if world_size > 1 else "single"
    if name == "single":
        if world_size > 1:
            raise UserError(f"training.strategy: single, but {world_size} processes were started; use ddp")
        yield Strategy(config, device)
        return
    if "RANK" not in os.environ:
        raise UserError(
            f"training.strategy: {name} needs torchrun (`torchrun --nproc-per-node 2 -m sparface train …`)"
            " or `sparface submit`"
        )
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=training.timeout))
    try:
        strategy = _distributed(name)(config, device)
        yield strategy
        strategy.close()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _distributed(name: str) -> type[Distributed]:
    """The strategy of that name; what it needs is imported only then."""
    if name == "fsdp":
        from sparface.training.fsdp import FSDP

        return FSDP
    if name == "deepspeed":
        from sparface.training.zero import Zero

        return Zero
    return DDP


def _device(config: TrainingConfig, local_rank: int) -> torch.device:
    if config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("training.device: cuda, but this machine has none; use cpu or auto")
    # a scheduler may show each process only its own device
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device
