"""Studies under Ray: a `Run` for a process that Ray started, and a Train loop in that process."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer


@dataclass
class InProcessRun:
    """The run of a job in one Ray Tune actor, on the GPU that the actor was given or on its CPU.

    It touches no `ray.train` function: in Train's local mode inside a Tune trial most of them raise (Ray 2.60).
    """

    device: torch.device = field(default_factory=lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    rank: int = 0
    workers: int = 1
    send: Callable[[dict[str, Any]], None] = lambda row: None
    stop: Callable[[], bool] = lambda: False

    def report(self, **row: Any) -> None:
        self.send(row)

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        return model.to(self.device)

    def should_stop(self) -> bool:
        return self.stop()


def in_this_process(loop: Callable[[], Any]) -> Any:
    """Run `loop` under a TorchTrainer in Train's local mode: no worker processes, no placement group."""
    trainer = TorchTrainer(lambda: loop(), scaling_config=ScalingConfig(num_workers=0))
    return trainer.fit().return_value
