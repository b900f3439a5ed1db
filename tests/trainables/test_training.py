"""A state that was saved and loaded against the same training without a pause, for several optimizers and wrappers."""

import copy

import pytest
import torch
import torch.distributed
from safetensors.torch import load, save
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from trainables.common.optimizers import adamw
from trainables.common.training import TrainingState


class Lion(torch.optim.Optimizer):
    """A user's optimizer: sign of an interpolated momentum, and a scalar of its own on each parameter's device."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in [one for one in group["params"] if one.grad is not None]:
                state = self.state[parameter]
                if not state:
                    state["momentum"], state["seen"] = torch.zeros_like(parameter), torch.zeros(())
                state["seen"] += 1
                state["momentum"].lerp_(parameter.grad, 0.1)
                parameter.sub_(group["lr"] / state["seen"].sqrt() * state["momentum"].sign())


OPTIMIZERS = {
    "fused AdamW": lambda model: adamw(model, learning_rate=0.01, fused=True),
    "AdamW": lambda model: adamw(model, learning_rate=0.01, fused=False),
    "AdamW with a maximum": lambda model: torch.optim.AdamW(model.parameters(), lr=0.01, amsgrad=True),
    "SGD with momentum": lambda model: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
    "SGD": lambda model: torch.optim.SGD(model.parameters(), lr=0.01),
    "a user's own": lambda model: Lion(model.parameters(), lr=0.01),
}


class Net(nn.Module):
    """Two layers, a buffer that training changes, one that is no part of the state, and a frozen parameter."""

    def __init__(self, width: int = 4):
        super().__init__()
        torch.manual_seed(0)
        self.submodule = nn.Linear(3, width)  # a name that ends like DDP's prefix
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 1)
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)
        self.register_buffer("table", torch.arange(3.0), persistent=False)

    def forward(self, x):
        return self.scale * self.head(self.norm(torch.tanh(self.submodule(x + self.table))))


def state_of(make=OPTIMIZERS["AdamW"], model=None) -> TrainingState:
    model = Net() if model is None else model
    return TrainingState(model, make(model), {"mean": torch.zeros(2)})


def trained(state: TrainingState, steps: range) -> TrainingState:
    for step in steps:
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        loss = (state.model(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.extra["mean"] += loss.detach()
    return state


def saved(state: TrainingState) -> dict[str, torch.Tensor]:
    """Through bytes, as the store keeps it."""
    return load(save({name: value.detach().contiguous() for name, value in state.tensors().items()}))


def assert_same(one: TrainingState, other: TrainingState) -> None:
    ours, theirs = one.tensors(), other.tensors()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("before", [0, 3])
def test_a_loaded_state_goes_on_as_if_it_had_never_stopped(make, before):
    straight = trained(state_of(make), range(before))
    tensors = saved(straight)
    fresh, used = state_of(make), trained(state_of(make), range(50, 57))
    trained(straight, range(before, 7))
    for loaded in (fresh, used):
        loaded.load_tensors(tensors)
        assert_same(trained(loaded, range(before, 7)), straight)


def test_loading_a_state_does_not_tie_it_to_the_tensors_it_came_from():
    state = trained(state_of(), range(3))
    tensors = saved(state)
    kept = copy.deepcopy(tensors)
    for loaded in (state, state_of()):
        loaded.load_tensors(tensors)
        trained(loaded, range(3, 6))
        assert all(torch.equal(tensors[name], kept[name]) for name in kept)


def test_a_branchs_own_settings_stay_where_load_state_dict_would_bring_the_trunks_back():
    trunk = trained(state_of(lambda model: adamw(model, learning_rate=0.01, weight_decay=0.1)), range(3))

    def own(model):
        return adamw(model, learning_rate=0.5, weight_decay=0.7, beta1=0.6, fused=False)

    trap = state_of(own)
    trap.optimizer.load_state_dict(trunk.optimizer.state_dict())
    group = trap.optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"][0], group["fused"]) == (0.01, 0.1, 0.9, True)

    branch = state_of(own)
    branch.load_tensors(saved(trunk))
    group = branch.optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"][0], group["fused"]) == (0.5, 0.7, 0.6, False)
    assert_same(branch, trunk)


def test_names_are_the_bare_models_under_compile_and_ddp(tmp_path):
    bare = trained(state_of(), range(2))
    tensors = saved(bare)
    assert "model.submodule.weight" in tensors and "optimizer.submodule.weight.exp_avg" in tensors
    assert "model.norm.running_mean" in tensors and "model.table" not in tensors
    compiled_whole = torch.compile(Net(), backend="eager")
    compiled_part = Net()
    compiled_part.submodule = torch.compile(compiled_part.submodule, backend="eager")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        wrapped = [DistributedDataParallel(Net()), DistributedDataParallel(torch.compile(Net(), backend="eager"))]
        for model in (compiled_whole, compiled_part, *wrapped):
            state = state_of(model=model)
            state.load_tensors(tensors)
            assert_same(state, bare)
        assert_same(trained(state_of(model=DistributedDataParallel(Net())), range(2)), bare)
    finally:
        torch.distributed.destroy_process_group()


def test_another_models_state_is_refused_and_nothing_is_touched():
    state = trained(state_of(), range(2))
    before = saved(state)
    wider = saved(trained(state_of(model=Net(width=5)), range(1)))
    with pytest.raises(ValueError, match=r"model\.submodule\.weight has shape \(5, 3\), the model's \(4, 3\)"):
        state.load_tensors(wider)
    other = saved(state_of(model=nn.Linear(2, 2)))
    with pytest.raises(ValueError, match=r"belongs to another model: \['model.bias', .*stand on one side only"):
        state.load_tensors(other)
    for added in ("optimizer.head.exp_avg", "optimizer.tail.weight.exp_avg", "extra.more", "nothing"):
        with pytest.raises(ValueError, match=rf"another model: \['{added}'\]"):
            state.load_tensors({**before, added: torch.zeros(())})
    with pytest.raises(ValueError, match=r"another model: \['extra.mean'\]"):
        state.load_tensors({name: value for name, value in before.items() if name != "extra.mean"})
    assert all(torch.equal(value, before[name]) for name, value in state.tensors().items())


def test_gradients_of_a_step_that_raised_half_way_do_not_reach_the_next_branch():
    straight = trained(state_of(), range(2))
    tensors = saved(straight)
    broken = state_of()
    broken.model(torch.ones(8, 3)).sum().backward()
    broken.load_tensors(tensors)
    assert_same(trained(broken, range(2, 4)), trained(straight, range(2, 4)))


class Counting(torch.optim.SGD):
    """Keeps a count where no state is saved."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            group["count"] = group.get("count", 0) + 1


class Noting(torch.optim.SGD):
    """Keeps a number that is no tensor."""

    def step(self, closure=None):
        super().step(closure)
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["note"] = 3


def test_progress_that_a_fork_would_lose_is_refused():
    counting = trained(state_of(lambda model: Counting(model.parameters(), lr=0.1)), range(1))
    with pytest.raises(TypeError, match="changed its settings count while training"):
        counting.tensors()
    noting = trained(state_of(lambda model: Noting(model.parameters(), lr=0.1)), range(1))
    with pytest.raises(TypeError, match="keeps note of scale as int"):
        noting.tensors()
    state = state_of()
    state.optimizer.param_groups[0]["lr"] = 0.7  # a knob
    state.tensors()
    state.optimizer.param_groups[0]["weight_decay"] = 0.7
    with pytest.raises(TypeError, match="changed its settings weight_decay"):
        state.tensors()
