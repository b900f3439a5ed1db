"""A captured step against the same step called in a loop."""

import pytest
import torch

from trainables.common.captured import Captured

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def growth(device):
    """A state (position, steps so far) and a step that changes it in place by the step's own number."""
    position, steps = torch.zeros(4, device=device), torch.zeros((), dtype=torch.int64, device=device)

    def step():
        steps.add_(1)
        position.mul_(0.9).add_(steps)

    return position, steps, step


@pytest.mark.parametrize("device", DEVICES)
def test_it_runs_the_step_so_many_times_however_they_are_split(device):
    wanted, _, step = growth(device)
    for _ in range(12):
        step()
    for split in ([12], [1, 1, 10], [2, 0, 5, 5], [4, 4, 4]):
        position, steps, step = growth(device)
        captured = Captured(step, device)
        for times in split:
            captured(times)
        assert int(steps) == 12 and torch.allclose(position, wanted)


@pytest.mark.parametrize("device", DEVICES)
def test_after_renewal_it_works_on_the_tensors_that_are_there_then(device):
    lanes = {"w": torch.zeros(3, device=device)}
    captured = Captured(lambda: lanes["w"].add_(1), device)
    captured(6)
    lanes["w"] = lanes["w"][:2].clone()
    captured.renew()
    captured(5)
    assert lanes["w"].tolist() == [11.0, 11.0]
