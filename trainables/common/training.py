"""Model and optimizer as one state whose tensors have the same names under DDP, FSDP, torch.compile and none of them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

Tensors = dict[str, torch.Tensor]
WRAPPERS = ("module.", "_orig_mod.")


def canonical_name(name: str) -> str:
    """A parameter's name without what DDP and torch.compile put before it.

    >>> canonical_name("module._orig_mod.blocks.0.norm.weight")
    'blocks.0.norm.weight'
    """
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def whole(value: torch.Tensor) -> torch.Tensor:
    """A tensor in full: a sharded one is gathered from all workers (a collective call)."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def put(target: torch.Tensor, value: torch.Tensor) -> None:
    """Copy a full tensor into `target` in place, sharding it as `target` is sharded."""
    if isinstance(target, DTensor):
        target.copy_(distribute_tensor(value.to(target.device), target.device_mesh, target.placements))
    else:
        target.copy_(value)


class TrainingState:
    """A model, its optimizer and a few tensors more (`extra`, such as a running mean of the loss).

    `load_tensors` brings back parameters, buffers and the optimizer's moments, never its settings: learning rate,
    weight decay and the like stay those of this state's own optimizer. (`Optimizer.load_state_dict` would bring the
    saved settings back and a branch's own would silently not apply.)
    """

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, extra: Tensors):
        self.model, self.optimizer, self.extra = model, optimizer, extra

    def _buffers(self) -> Iterator[tuple[str, torch.Tensor]]:
        for prefix, module in self.model.named_modules():
            for name, buffer in module.named_buffers(recurse=False):
                if name not in module._non_persistent_buffers_set:
                    yield canonical_name(f"{prefix}.{name}".lstrip(".")), buffer

    def _parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        for name, parameter in self.model.named_parameters():
            yield canonical_name(name), parameter

    @torch.no_grad()
    def tensors(self) -> Tensors:
        """Name -> tensor, not copied: "model.*", "optimizer.<parameter>.<slot>", "extra.*".

        Raises TypeError when the optimizer keeps something that is not a tensor.
        """
        named = {"model." + name: whole(parameter) for name, parameter in self._parameters()}
        named |= {"model." + name: whole(buffer) for name, buffer in self._buffers()}
        for name, parameter in self._parameters():
            for slot, value in self.optimizer.state.get(parameter, {}).items():
                if value is not None:
                    named[f"optimizer.{name}.{slot}"] = _as_tensor(name, slot, value)
        return named | {"extra." + name: value for name, value in self.extra.items()}

    @torch.no_grad()
    def load_tensors(self, tensors: Tensors) -> None:
        """Put saved tensors back into the same objects. Raises ValueError when names or shapes differ."""
        own = {"model." + name: parameter.data for name, parameter in self._parameters()}
        own |= {"model." + name: buffer for name, buffer in self._buffers()}
        own |= {"extra." + name: value for name, value in self.extra.items()}
        given = {name for name in tensors if not name.startswith("optimizer.")}
        if given != set(own):
            raise ValueError(f"this state belongs to another model: {sorted(given ^ set(own))[:5]} stand on one side")
        for name, target in own.items():
            if target.shape != tensors[name].shape:
                raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}, the model's {tuple(target.shape)}")
            put(target, tensors[name])
        saved: dict[str, Tensors] = {name: {} for name, _ in self._parameters()}
        for full in tensors.keys() - given:
            name, slot = full.removeprefix("optimizer.").rsplit(".", 1)
            saved[name][slot] = tensors[full]
        for name, parameter in self._parameters():
            self._load_slots(parameter, saved[name])

    def _load_slots(self, parameter: torch.nn.Parameter, saved: Tensors) -> None:
        slots: dict[str, Any] = self.optimizer.state[parameter]
        for slot in [slot for slot in slots if slot not in saved]:
            del slots[slot]
        for slot, value in saved.items():
            if isinstance(slots.get(slot), torch.Tensor):
                put(slots[slot], value)
            elif value.dim() == 0:  # AdamW counts steps on the parameter's device when fused, else in CPU memory
                fused = any(group.get("fused") or group.get("capturable") for group in self.optimizer.param_groups)
                slots[slot] = value.clone().to(parameter.device if fused else "cpu")
            elif isinstance(parameter, DTensor):
                slots[slot] = distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
            else:
                slots[slot] = value.clone().to(parameter.device)


def _as_tensor(parameter: str, slot: str, value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return whole(value)
    raise TypeError(
        f"the optimizer keeps {slot} of {parameter} as {type(value).__name__}; only tensors can be forked and stored"
    )
