"""A training step called many times: plainly on a CPU, as one captured CUDA graph on a GPU.

Steps of small lanes are bound by launches: a graph launches all kernels of a step at once. What is captured must
read and write the same tensors every time (update in place, count steps in a tensor) and never look at a value.
"""

from collections.abc import Callable

import torch

WARM_UP_CALLS = 3  # before a capture: lazy initialisation of libraries must not be captured


class Captured:
    """`step` as something to call `times` over; captured again when `renew` says that its tensors were replaced.

    >>> total = torch.zeros(1)
    >>> Captured(lambda: total.add_(2), "cpu")(5)
    >>> total
    tensor([10.])
    """

    def __init__(self, step: Callable[[], object], device: torch.device | str):
        self.step, self.device = step, torch.device(device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._warm = 0

    def renew(self) -> None:
        """The step's tensors were replaced (lanes were dropped): what was captured no longer holds."""
        self._graph, self._warm = None, 0

    def __call__(self, times: int) -> None:
        if self.device.type != "cuda":
            for _ in range(times):
                self.step()
            return
        plain = min(times, WARM_UP_CALLS - self._warm)
        if plain > 0:
            side = torch.cuda.Stream(self.device)
            side.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(side):
                for _ in range(plain):
                    self.step()
            torch.cuda.current_stream(self.device).wait_stream(side)
            self._warm += plain
            times -= plain
        if times and self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):  # records, does not run
                self.step()
        for _ in range(times):
            assert self._graph is not None
            self._graph.replay()
