"""Model and optimizer as one state; its tensors have the same names under DDP, FSDP, torch.compile and none of them."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

Tensors = dict[str, torch.Tensor]
COMPILED = "_orig_mod"  # what torch.compile calls the module that it stands in for


def bare(model: torch.nn.Module) -> torch.nn.Module:
    """The model itself, without the DDP and torch.compile wrappers around it."""
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, COMPILED, None), torch.nn.Module):
            model = getattr(model, COMPILED)
        else:
            return model


def canonical_name(name: str) -> str:
    """A parameter's name in the bare model without the wrappers of compiled parts.

    >>> canonical_name("blocks.0._orig_mod.norm.weight")
    'blocks.0.norm.weight'
    """
    return ".".join(part for part in name.split(".") if part != COMPILED)


def whole(value: torch.Tensor) -> torch.Tensor:
    """A tensor in full: a sharded one is gathered from all workers (a collective call)."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def sharded_as(target: DTensor, value: torch.Tensor) -> DTensor:
    """A full tensor, the same on all workers, sharded as `target` is: each worker keeps its part, nothing is sent."""
    return distribute_tensor(value.to(target.device), target.device_mesh, target.placements, src_data_rank=None)


def put(target: torch.Tensor, value: torch.Tensor) -> None:
    """Copy a full tensor into `target` in place, sharding it as `target` is sharded."""
    target.copy_(sharded_as(target, value) if isinstance(target, DTensor) else value)


class TrainingState:
    """A model, its optimizer and a few tensors more (`extra`, such as a running mean of the loss).

    `load_tensors` brings back parameters, buffers and the optimizer's moments, never its settings: learning rate,
    weight decay and the like stay those of this state's own optimizer. (`Optimizer.load_state_dict` would bring the
    saved settings back and a branch's own would silently not apply.) `knobs` are the settings that the study itself
    changes while training. An optimizer that changes others keeps progress there, which a fork would lose: refused.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        extra: Tensors,
        knobs: Sequence[str] = ("lr",),
    ):
        self.model, self.optimizer, self.extra, self._knobs = model, optimizer, extra, knobs
        self._settings_at_start = self._settings()

    def _settings(self) -> list[dict[str, str]]:
        free = {"params", *self._knobs}
        groups = self.optimizer.param_groups
        return [{name: repr(value) for name, value in group.items() if name not in free} for group in groups]

    def _buffers(self) -> Iterator[tuple[str, torch.Tensor]]:
        for prefix, module in bare(self.model).named_modules():
            for name, buffer in module.named_buffers(recurse=False):
                if name not in module._non_persistent_buffers_set:
                    yield canonical_name(f"{prefix}.{name}".lstrip(".")), buffer

    def _parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        for name, parameter in bare(self.model).named_parameters():
            yield canonical_name(name), parameter

    @torch.no_grad()
    def tensors(self) -> Tensors:
        """Name -> tensor, not copied: "model.*", "optimizer.<parameter>.<slot>", "extra.*".

        Raises TypeError when the optimizer keeps something that is not a tensor, or progress among its settings.
        """
        for before, now in zip(self._settings_at_start, self._settings(), strict=True):
            changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
            if changed:
                raise TypeError(
                    f"the optimizer changed its settings {', '.join(changed)} while training; only tensors in its "
                    "state can be forked and stored, so let it keep its progress there"
                )
        named = {"model." + name: whole(parameter) for name, parameter in self._parameters()}
        named |= {"model." + name: whole(buffer) for name, buffer in self._buffers()}
        for name, parameter in self._parameters():
            # Sorted, since all workers must gather the same slot at the same time.
            for slot, value in sorted(self.optimizer.state.get(parameter, {}).items()):
                if value is not None:
                    named[f"optimizer.{name}.{slot}"] = _as_tensor(name, slot, value)
        return named | {"extra." + name: value for name, value in self.extra.items()}

    @torch.no_grad()
    def load_tensors(self, tensors: Tensors) -> None:
        """Put saved tensors back into the same objects. Raises ValueError when names or shapes differ."""
        own = {"model." + name: parameter.data for name, parameter in self._parameters()}
        own |= {"model." + name: buffer for name, buffer in self._buffers()}
        own |= {"extra." + name: value for name, value in self.extra.items()}
        saved: dict[str, Tensors] = {name: {} for name, _ in self._parameters()}
        strange = own.keys() - tensors.keys()
        for full in sorted(tensors.keys() - own.keys()):
            room, _, rest = full.partition(".")
            name, _, slot = rest.rpartition(".")
            if room == "optimizer" and name in saved:
                saved[name][slot] = tensors[full]
            else:
                strange.add(full)
        if strange:
            raise ValueError(f"this state belongs to another model: {sorted(strange)[:5]} stand on one side only")
        for name, target in own.items():
            if target.shape != tensors[name].shape:
                raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}, the model's {tuple(target.shape)}")
        for name, target in own.items():
            put(target, tensors[name])
        for name, parameter in self._parameters():
            parameter.grad = None  # of a step that raised half-way
            if saved[name] or parameter in self.optimizer.state:
                self._load_slots(parameter, saved[name])

    def _load_slots(self, parameter: torch.nn.Parameter, saved: Tensors) -> None:
        slots: dict[str, Any] = self.optimizer.state[parameter]
        for slot in [slot for slot in slots if slot not in saved]:
            del slots[slot]
        for slot, value in saved.items():
            if isinstance(slots.get(slot), torch.Tensor):
                put(slots[slot], value)
            elif slot == "step":  # torch counts steps on the parameter's device when fused, else in CPU memory
                fused = any(group.get("fused") or group.get("capturable") for group in self.optimizer.param_groups)
                slots[slot] = value.clone().to(parameter.device if fused else "cpu")
            elif isinstance(parameter, DTensor) and value.shape == parameter.shape:
                slots[slot] = sharded_as(parameter, value).clone()
            else:
                slots[slot] = value.clone().to(parameter.device)


def _as_tensor(parameter: str, slot: str, value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return whole(value)
    raise TypeError(
        f"the optimizer keeps {slot} of {parameter} as {type(value).__name__}; only tensors can be forked and stored"
    )
