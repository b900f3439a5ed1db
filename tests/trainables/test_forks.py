"""Forked, cut, resumed and interrupted training against the same config trained straight, compared bit by bit."""

import copy
import math
import multiprocessing
import random
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sweeps.engine.items import items
from sweeps.engine.plan import make_trial, plan
from sweeps.engine.store import Store
from sweeps.engine.worker import Job, Place, run_job
from trainables import wsd
from trainables.common.process import reset_process
from trainables.common.timeline import Placed, place, segment
from trainables.ray_train import sharded
from trainables.study import Branch, LocalRun, Point, Stopped, alone, state_key
from trainables.toys import QUADRATIC
from trainables.toys import Config as Quadratic
from trainables.walk import train, walk

STUDIES = {"wsd": wsd.STUDY, "quadratic": QUADRATIC}
TINY = {
    "wsd": replace(wsd.STUDY.tiny, budget_steps=24, warmup_steps=3, decay_fraction=0.25, measure_every=7),
    "quadratic": Quadratic(budget_steps=40, measure_every=6),
}


@pytest.fixture(autouse=True)
def recorded_process():
    """Every test starts from the process state that jobs start from, and leaves it behind."""
    reset_process()
    yield
    reset_process()


def straight(name: str, config):
    """A config trained in one go: its rows, and the tensors at its end."""
    return _straight(name, config)


@cache
def _straight(name: str, config):
    stage = train(STUDIES[name], config, keep=True)
    return stage.rows, stage.tensors


def cut(name: str, config, steps) -> Branch:
    """The config's branch as a chain of stages that end at these steps; every state on the way is kept."""
    study = STUDIES[name]
    root, whole = alone(study, config)
    edges = [0, *sorted(steps), whole.stop]
    chain: Branch | None = None
    for start, stop in reversed(list(pairwise(edges))):
        points = tuple(point for point in whole.points if start < point.step <= stop)
        key = state_key(study.root_key(root), whole.placed, stop)
        chain = Branch(key, start, stop, whole.placed, points, keep=True, children=(chain,) if chain else ())
    assert chain is not None
    return chain


def with_decoys(branch: Branch, lr: float) -> Branch:
    """The same with a sibling at every fork, which trains at another rate before the branch itself goes on."""
    if not branch.children:
        return branch
    decoy_segment = Placed(segment(3, lr=lr), branch.stop)
    point = Point(branch.stop + 2, f"decoy {branch.stop}", True)
    decoy = Branch(point.key, branch.stop, branch.stop + 3, (decoy_segment,), (point,))
    return replace(branch, children=(decoy, *(with_decoys(child, lr) for child in branch.children)))


def walked(name: str, config, branches, run=None, tensors=None, study=None):
    """Stages by key."""
    study = study or STUDIES[name]
    stages = []
    walk(study, study.root(config), branches, run or LocalRun(), commit=stages.append, tensors=tensors)
    return {stage.branch.key: stage for stage in stages}


def chain_of(branch: Branch) -> list[str]:
    """Keys along a chain, decoys passed over."""
    keys = [branch.key]
    while branch.children:
        branch = branch.children[-1]
        keys.append(branch.key)
    return keys


def assert_same_tensors(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def assert_same(name, config, stages, branch):
    rows, tensors = straight(name, config)
    keys = chain_of(branch)
    assert [row for key in keys for row in stages[key].rows] == rows
    assert_same_tensors(stages[keys[-1]].tensors, tensors)


def random_cuts(name: str, seed: int, count: int) -> list[int]:
    return sorted(random.Random(seed).sample(range(1, TINY[name].budget_steps), count))


def test_the_wsd_state_holds_weights_moments_and_the_running_loss():
    _, tensors = straight("wsd", TINY["wsd"])
    for part in ("model.head.weight", "optimizer.head.weight.exp_avg", "optimizer.head.weight.step", "extra."):
        assert any(name.startswith(part) for name in tensors)


@pytest.mark.parametrize("seed", range(3))
def test_wsd_forked_and_cut_anywhere_equals_unforked(seed):
    config = TINY["wsd"]
    branch = with_decoys(cut("wsd", config, random_cuts("wsd", seed, 4)), lr=0.05)
    assert_same("wsd", config, walked("wsd", config, [branch]), branch)


def test_wsd_cut_at_every_step_equals_unforked():
    config = TINY["wsd"]
    branch = cut("wsd", config, range(1, config.budget_steps))
    assert_same("wsd", config, walked("wsd", config, [branch]), branch)


@settings(max_examples=30, deadline=None)
@given(st.sets(st.integers(1, TINY["quadratic"].budget_steps - 1), max_size=8))
def test_the_quadratic_forked_and_cut_anywhere_equals_unforked(steps):
    config = TINY["quadratic"]
    branch = with_decoys(cut("quadratic", config, steps), lr=0.5)
    assert_same("quadratic", config, walked("quadratic", config, [branch]), branch)


def test_a_timeline_written_in_pieces_is_the_same_training():
    config = TINY["wsd"]

    def in_pieces(config):
        return tuple(piece for part in wsd.timeline(config) for piece in pieces(part))

    def pieces(part):
        return [replace(part, steps=1)] * part.steps if part.constant else [part]

    study = replace(wsd.STUDY, timeline=in_pieces)
    stage = train(study, config, keep=True)
    rows, tensors = straight("wsd", config)
    assert stage.rows == rows
    assert_same_tensors(stage.tensors, tensors)


def go_on_in_a_fresh_process(name: str, config, steps: list[int], at: int, path: str):
    """Load a saved state and train the rest: (rows, file of the end state)."""
    reset_process()
    branch = cut(name, config, steps)
    while branch.start < at:
        (branch,) = branch.children
    stages = walked(name, config, [branch], tensors=load_file(path))
    save_file(stages[chain_of(branch)[-1]].tensors, path + ".end")
    return [row for key in chain_of(branch) for row in stages[key].rows], path + ".end"


@pytest.fixture(scope="module")
def fresh_process():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        yield process


@pytest.mark.parametrize(("name", "count"), [("wsd", 5), ("quadratic", 8)])
def test_every_cut_goes_on_from_its_file_in_a_fresh_process(name, count, fresh_process, tmp_path):
    config = TINY[name]
    steps = random_cuts(name, 7, count)
    branch = cut(name, config, steps)
    stages = walked(name, config, [branch])
    rows, tensors = straight(name, config)
    for key in chain_of(branch)[:-1]:
        at, path = stages[key].branch.stop, str(tmp_path / f"{stages[key].branch.stop}.safetensors")
        save_file(stages[key].tensors, path)
        later, end = fresh_process.submit(go_on_in_a_fresh_process, name, config, steps, at, path).result()
        assert later == [row for row in rows if row.step > at]
        assert_same_tensors(load_file(end), tensors)


class AskedAt(LocalRun):
    """A run whose n-th look at whether to stop is answered with yes."""

    def __init__(self, asks: int):
        super().__init__()
        self.asks = asks

    def should_stop(self) -> bool:
        self.asks -= 1
        return self.asks < 0


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("asks", [1, 2, 3, 5, 8])
def test_a_walk_that_is_asked_to_stop_keeps_all_that_it_has_trained(name, asks):
    """The stage that it is in ends there, under the key of that state, and training goes on from it bit for bit."""
    study, config = STUDIES[name], TINY[name]
    root, whole = alone(study, config)
    done = []
    with pytest.raises(Stopped, match="stopped at step") as caught:
        walk(study, root, [cut(name, config, [15])], AskedAt(asks), commit=done.append)
    step = done[-1].branch.stop
    assert str(caught.value) == f"stopped at step {step}" and 0 < step < whole.stop
    assert [stage.branch.stop for stage in done[:-1]] == ([15] if step > 15 else [])
    assert done[-1].branch.key == state_key(study.root_key(root), whole.placed, step)
    assert sum(stage.executed_steps for stage in done) == step
    (rest,) = cut(name, config, [step]).children
    last = walked(name, config, [rest], tensors=done[-1].tensors)[rest.key]
    rows, tensors = straight(name, config)
    assert [row for stage in (*done, last) for row in stage.rows] == rows
    assert_same_tensors(last.tensors, tensors)


def test_a_walk_that_is_asked_to_stop_before_its_first_step_commits_nothing():
    committed = []
    root, whole = alone(QUADRATIC, TINY["quadratic"])
    with pytest.raises(Stopped, match="stopped at step 0"):
        walk(QUADRATIC, root, [whole], AskedAt(0), commit=committed.append)
    assert committed == []


@dataclass
class Wrapped(LocalRun):
    """One worker whose model is wrapped as in a group of several."""

    around: Callable[[nn.Module], nn.Module] = nn.Identity

    def wrap(self, model):
        return self.around(model)


WRAPPERS = {
    "ddp": DistributedDataParallel,
    "fsdp": lambda model: sharded(model, 1),
    "compile": lambda model: model,
    "ddp and compile": DistributedDataParallel,
}


@pytest.fixture
def one_worker(tmp_path):
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_forks_of_wrapped_models_have_the_bare_models_names_and_copy_no_module(wrapper, one_worker, monkeypatch):
    """Copies of a wrapped module would be torn from their group, hooks and compiled code: any attempt raises here."""

    def refuse(module, memo):
        raise AssertionError(f"a fork copied a {type(module).__name__}")

    eager = partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", eager)
    config = TINY["wsd"]
    branch = with_decoys(cut("wsd", config, [7, 15]), lr=0.05)
    plain = walked("wsd", config, [branch])
    compiled = replace(config, compile="compile" in wrapper)
    wrapped = with_decoys(cut("wsd", compiled, [7, 15]), lr=0.05)
    monkeypatch.setattr(nn.Module, "__deepcopy__", refuse, raising=False)
    with pytest.raises(AssertionError, match="a fork copied a Linear"):
        copy.deepcopy(nn.Linear(1, 1))
    stages = walked("wsd", compiled, [wrapped], run=Wrapped(around=WRAPPERS[wrapper]))
    for key, bare in zip(chain_of(wrapped), chain_of(branch), strict=True):
        ours, theirs = stages[key].tensors, plain[bare].tensors
        assert ours.keys() == theirs.keys()
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)
        for one, other in zip(stages[key].rows, plain[bare].rows, strict=True):
            assert one.metrics == pytest.approx(other.metrics, abs=1e-5)


def family(name: str) -> list:
    """Trials of one root that share trunks and part in many ways."""
    tiny = TINY[name]
    if name == "quadratic":
        return [
            replace(tiny, budget_steps=budget, decay_fraction=fraction, learning_rate=rate)
            for budget in (10, 20, 40)
            for fraction in (0, 0.25, 0.5)
            for rate in (0.1, 0.3)
        ]
    method = {"method": "wsd_s", "earlier_budgets": (12,), "rewarmup_steps": 2}
    return [
        *(
            replace(tiny, budget_steps=budget, decay_shape=shape)
            for budget in (12, 24)
            for shape in ("linear", "square")
        ),
        replace(tiny, decay_fraction=0.5),
        replace(tiny, **method),
        *(replace(tiny, method=each, decay_fraction=0.1) for each in ("cosine", "constant")),
    ]


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("longest", [math.inf, 8])
def test_branches_of_one_walk_over_a_tree_equal_straight_runs(name, longest):
    study = STUDIES[name]
    trials = [make_trial(study, config) for config in family(name)]
    keep = frozenset(trial.key for trial in trials)
    (tree,) = plan(trials, keep=keep).trees
    rows, kept, steps = {}, {}, 0
    for item in items(tree, longest):
        start = None if item.start_key is None else kept[item.start_key]
        for key, stage in walked(name, trials[0].config, [item.branch], tensors=start).items():
            assert stage.status == "complete"
            rows |= {(row.key, row.full): row for row in stage.rows}
            kept |= {key: stage.tensors} if stage.tensors is not None else {}
            steps += stage.executed_steps
    assert steps == sum(node.steps for node in tree.nodes()) < sum(trial.steps for trial in trials)
    for trial in trials:
        alone_rows, tensors = straight(name, trial.config)
        for row in alone_rows:  # a light measurement may have been taken in full, for another trial
            shared = rows.get((row.key, row.full)) or rows[(row.key, True)]
            assert row.metrics.items() <= shared.metrics.items() and shared.knobs == row.knobs
            assert row.arrays in ({}, shared.arrays)
        assert_same_tensors(kept[trial.key], tensors)


def leaves_the_process_changed(state, placed, span, run):
    """An advance that ends with every global setting changed."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_float32_matmul_precision("medium")
    torch.manual_seed(span.start)
    random.seed(span.start)


POLLUTING = replace(QUADRATIC, name="polluting", advance=leaves_the_process_changed)


@pytest.mark.parametrize("name", STUDIES)
def test_a_job_after_a_polluting_one_gives_the_rows_of_that_job_alone(name, tmp_path):
    clean, polluting = (
        items(plan([make_trial(study, config)]).trees[0], math.inf)
        for study, config in ((STUDIES[name], TINY[name]), (POLLUTING, TINY["quadratic"]))
    )

    def rows_of(folder, *jobs):
        store = Store(tmp_path / folder)
        store.prepare()
        heard = []
        for number, job in enumerate(jobs):
            pairs = tuple((item, None) for item in job)
            run_job(Job(f"job-{number}", pairs), Place(str(tmp_path / folder), ""), LocalRun(), heard.append)
        committed = [one for told in heard for written in told.committed for one in store.read(written)]
        return [row for commit, rows in committed if commit.study == name for row in rows]

    expected = rows_of("alone", clean)
    assert [(row.key, row.metrics) for row in expected] == [
        (row.key, row.metrics) for row in straight(name, TINY[name])[0]
    ]
    assert rows_of("after", polluting, clean) == expected
    assert torch.get_default_dtype() == torch.float32
    assert rows_of("in one job", [*polluting, *clean]) == expected
    assert rows_of("last", clean, polluting) == expected
    assert torch.get_default_dtype() == torch.float64  # the pollution is real


def after(name: str, config, at: int, **knobs) -> Branch:
    """A stage of 9 steps under other knobs that leaves a config's timeline at a step; measured after 5 and 9."""
    placed = Placed(segment(9, **knobs), at)
    points = tuple(Point(at + done, f"{knobs} {at + done}", True) for done in (5, 9))
    return Branch(points[-1].key, at, at + 9, (placed,), points, keep=True)


@pytest.mark.parametrize("name", STUDIES)
def test_a_branch_that_diverges_leaves_its_siblings_untouched(name):
    config, at = TINY[name], 15
    whole = cut(name, config, [at])
    trunk, sound = whole, whole.children[0]
    wild = [after(name, config, at, lr=lr) for lr in (1e30, 1e31)]
    forest = replace(trunk, children=(wild[0], sound, wild[1]))
    early = after(name, config, 0, lr=1e32)  # from step 0, before the trunk
    stages = walked(name, config, [early, forest])
    for branch in (early, *wild):
        stage = stages[branch.key]
        assert stage.status == "diverged" and stage.tensors is None
        assert stage.executed_steps == 5 and not math.isfinite(stage.rows[-1].metrics["select/loss"])
        assert "diverged: at step" in stage.error
    rows, tensors = straight(name, config)
    assert [row for branch in (trunk, sound) for row in stages[branch.key].rows] == rows
    assert_same_tensors(stages[sound.key].tensors, tensors)


def test_a_branch_that_raises_between_gradient_and_step_leaves_its_siblings_untouched():
    config, at = TINY["wsd"], 15

    def fragile(state, placed, span, run):
        if placed.at(span.start)["lr"] > 1:
            state.model(torch.zeros(2, 4, dtype=torch.long)).sum().backward()
            raise ArithmeticError("out of luck")
        wsd.advance(state, placed, span, run)

    whole = cut("wsd", config, [at])
    wild = after("wsd", config, at, lr=2.0)
    forest = replace(whole, children=(wild, *whole.children))
    stages = walked("wsd", config, [forest], study=replace(wsd.STUDY, advance=fragile))
    assert stages[wild.key].status == "failed" and "ArithmeticError: out of luck" in stages[wild.key].error
    assert_same("wsd", config, stages, whole)


@pytest.mark.parametrize("method", ["should_stop", "slowest", "report"])
def test_an_error_of_the_runs_own_ends_the_walk_and_is_no_trials_failure(method, monkeypatch):
    """A shared folder that does not answer for a moment says nothing about the study."""

    def away(*words, **row):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(LocalRun, method, away)
    root, branch = alone(QUADRATIC, QUADRATIC.tiny)
    stages: list = []
    with pytest.raises(OSError, match="Stale file handle"):
        walk(QUADRATIC, root, [branch], LocalRun(), commit=stages.append)
    assert stages == []


def test_place_is_where_a_decoy_would_show():
    """The decoys above do change the state: without going back to the fork the result would differ."""
    config, at = TINY["wsd"], 15
    branch = cut("wsd", config, [at])
    (rest,) = branch.children
    decoy = after("wsd", config, at, lr=0.05)
    detour = walked("wsd", config, [replace(branch, children=(replace(decoy, children=(rest,)),))])
    assert place(wsd.timeline(config))[-1].start > at
    assert detour[rest.key].rows[-1].metrics != straight("wsd", config)[0][-1].metrics
