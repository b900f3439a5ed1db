"""Proposals of interrupted, reordered and extended searches against those of an unbroken one; journals as Optuna reads
them; draws against distributions known in closed form."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from scipy import stats

from search_spaces import parse
from sweeps.engine.proposals import Proposals, complete, failed, pruned
from sweeps.engine.samplers import at_quantile, qmc_values, random_values

FIELDS = {"peak_lr": float, "weight_decay": float, "layers": int, "shape": str, "budget": int, "method": str}
AXES = {
    "peak_lr": {"low": 1e-4, "high": 1e-2, "log": True, "points": 3},
    "weight_decay": {"low": 0.0, "high": 0.3, "points": 2},
    "budget": [100, 200],
    "method": ["wsd", "cosine"],
}
SPACE = parse(AXES, fields=FIELDS, conditions=("budget",), cells=("method",))
MIXED = parse(
    {**AXES, "layers": {"low": 1, "high": 8, "log": True, "points": 3}, "shape": {"choices": ["linear", "sqrt"]}},
    fields=FIELDS,
)
ADAPTIVE = ["tpe", "gp", "nsga2", "cmaes"]
SAMPLERS = ["grid", "random", "qmc", *ADAPTIVE]


def loss(values):
    """Best near peak_lr = 1e-3, weight_decay = 0.1; diverges at high rates."""
    if values["peak_lr"] > 7e-3:
        return pruned()
    return complete((values["peak_lr"] / 1e-3 - 1) ** 2 + abs(values["weight_decay"] - 0.1))


def opened(folder, sampler="tpe", count=None, space=SPACE, **more):
    settings = {"cell": "method=wsd", "seed": 3, "lag": 2, "objective": "select/loss", **more}
    count = count or {"grid": None, "gp": 11}.get(sampler, 14)
    return Proposals.open(folder, space=space, sampler=sampler, count=count, **settings)


def run_in_order(proposals, slots=1, order=None):
    """Hand out up to `slots` at a time and tell one of them, chosen by `order` (the oldest without one)."""
    flying = []
    while not proposals.finished:
        while len(flying) < slots and (proposal := proposals.ask()) is not None:
            flying.append(proposal)
        proposal = flying.pop(order.randrange(len(flying)) if order else 0)
        proposals.tell(proposal.index, loss(proposal.values))
    return asked(proposals)


def asked(proposals):
    return [dict(proposal.values) for proposal, _ in proposals.outcomes()]


@pytest.fixture(scope="module")
def unbroken():
    """Proposals of one search per sampler, one slot, without a journal."""
    return {sampler: run_in_order(opened(None, sampler)) for sampler in SAMPLERS}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_order_of_completion_does_not_matter(sampler, unbroken, tmp_path):
    with opened(tmp_path, sampler) as proposals:
        assert run_in_order(proposals, slots=3, order=random.Random(1)) == unbroken[sampler]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_reopened_at_every_step_equals_an_unbroken_one(sampler, unbroken, tmp_path):
    finished, interrupted = False, set()
    while not finished:
        with opened(tmp_path, sampler) as proposals:
            proposal = proposals.ask()
            if proposal.index % 3 != 2 or proposal.index in interrupted:
                proposals.tell(proposal.index, loss(proposal.values))
            interrupted.add(proposal.index)
            finished = proposals.finished
    with opened(tmp_path, sampler) as proposals:
        assert asked(proposals) == unbroken[sampler]


@pytest.mark.parametrize("sampler", ["random", "qmc", "tpe", "cmaes"])
def test_a_larger_count_continues_as_if_it_had_been_asked_for_at_once(sampler, unbroken, tmp_path):
    with opened(tmp_path, sampler, count=6) as proposals:
        first = run_in_order(proposals, slots=3, order=random.Random(5))
    assert first == unbroken[sampler][:6]
    with opened(tmp_path, sampler) as proposals:
        assert proposals.unasked == 8
        assert run_in_order(proposals) == unbroken[sampler]


def test_samplers_and_seeds_differ(unbroken):
    assert unbroken["tpe"] != unbroken["cmaes"]
    assert run_in_order(opened(None, "tpe", seed=4)) != unbroken["tpe"]
    assert run_in_order(opened(None, "qmc", seed=4)) != unbroken["qmc"]


def test_an_adaptive_search_finds_the_good_region_more_often_than_chance(tmp_path):
    def share(sampler):
        values = run_in_order(opened(None, sampler, count=40))[20:]
        return sum(3e-4 < each["peak_lr"] < 3e-3 for each in values) / 20

    assert share("tpe") > share("random") + 0.1


@pytest.mark.parametrize("sampler", ADAPTIVE)
def test_an_adaptive_search_listens_to_its_outcomes(sampler, unbroken):
    proposals = opened(None, sampler)
    while (proposal := proposals.ask()) is not None:
        proposals.tell(proposal.index, complete(-abs(proposal.values["weight_decay"] - 0.1)))
    assert asked(proposals)[:3] == unbroken[sampler][:3]  # lag 2: these know nothing
    assert asked(proposals) != unbroken[sampler]


def test_an_adaptive_search_waits_for_the_outcomes_that_it_must_know():
    proposals = opened(None, "tpe", lag=2)
    first = [proposals.ask() for _ in range(3)]  # proposals 0, 1 and 2 know nothing
    assert all(first) and proposals.ask() is None
    proposals.tell(2, complete(1.0))
    proposals.tell(1, complete(1.0))
    assert proposals.ask() is None  # proposal 3 knows proposal 0
    proposals.tell(0, complete(1.0))
    assert proposals.ask().index == 3


@pytest.mark.parametrize("sampler", ["grid", "random", "qmc"])
def test_samplers_that_learn_nothing_never_wait(sampler):
    proposals = opened(None, sampler, count=6, lag=0)
    assert [proposals.ask().index for _ in range(6)] == list(range(6))
    assert proposals.ask() is None and proposals.unasked == 0 and not proposals.finished


def test_states_as_optuna_reads_them_from_the_file(tmp_path):
    with opened(tmp_path, "random", count=5) as proposals:
        given = [proposals.ask() for _ in range(5)]
        proposals.tell(3, complete(2.5))
        proposals.tell(1, pruned())
        proposals.tell(2, failed())
        proposals.tell(2, failed())  # the same again is no new news
    study = optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(proposals.path))))
    states = [trial.state for trial in study.trials]
    R, P, F, C = TrialState.RUNNING, TrialState.PRUNED, TrialState.FAIL, TrialState.COMPLETE
    assert states == [R, P, F, C, R]
    assert study.trials[3].value == 2.5 and study.trials[1].value is None
    assert [trial.params for trial in study.trials] == [dict(proposal.values) for proposal in given]
    assert study.user_attrs["header"]["objective"] == "select/loss"
    assert study.best_trial.number == 3


def test_failed_values_come_again_when_reopened_and_not_for_ever(tmp_path):
    attempts = []
    for _ in range(5):
        with opened(tmp_path, "tpe", count=2, attempts=3) as proposals:
            while (proposal := proposals.ask()) is not None:
                attempts.append((proposal.index, proposal.attempt))
                proposals.tell(proposal.index, failed() if proposal.index == 0 else complete(1.0))
            assert proposals.finished
    assert attempts == [(0, 0), (1, 0), (0, 1), (0, 2)]
    states = [outcome.state for _, outcome in proposals.outcomes()]
    assert states == ["failed", "complete"]


def test_a_failed_proposal_that_succeeds_later_gives_the_proposals_of_an_unbroken_search(tmp_path, unbroken):
    with opened(tmp_path, "tpe") as proposals:
        for index in range(3):
            proposal = proposals.ask()
            proposals.tell(proposal.index, failed() if index == 1 else loss(proposal.values))
    with opened(tmp_path, "tpe") as proposals:
        assert run_in_order(proposals) == unbroken["tpe"]


def _search_newest_first(folder, sampler):
    with opened(folder, sampler) as proposals:
        flying = []
        while not proposals.finished:
            while (proposal := proposals.ask()) is not None:
                flying.append(proposal)
            proposal = flying.pop()
            proposals.tell(proposal.index, loss(proposal.values))
            time.sleep(0.01)  # so that kills meet every part of the search


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2", "cmaes"])
def test_killed_at_random_times_the_journal_opens_and_proposes_the_same(sampler, unbroken, tmp_path):
    delays = random.Random(0)
    kills = 0
    for _ in range(6):
        process = multiprocessing.get_context("fork").Process(target=_search_newest_first, args=(tmp_path, sampler))
        process.start()
        while not list(tmp_path.glob("*.log")):
            time.sleep(0.001)
        time.sleep(delays.uniform(0, 0.1))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert kills > 1, "the search ended before it was killed; shorten the delays"
    with opened(tmp_path, sampler) as proposals:
        assert run_in_order(proposals, slots=3) == unbroken[sampler]


def test_a_journal_cut_anywhere_in_its_last_line_opens_again(tmp_path, unbroken):
    with opened(tmp_path, "random") as proposals:
        for _ in range(3):
            proposals.tell(proposals.ask().index, complete(1.0))
    whole = proposals.path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in range(last, len(whole), 11):
        proposals.path.write_bytes(whole[:cut])
        with opened(tmp_path, "random") as proposals:
            assert proposals.ask().index == 2  # its outcome was lost, so it comes again
            assert proposals.ask().index == 3
        with opened(tmp_path, "random") as proposals:
            assert asked(proposals) == unbroken["random"][:4]


def test_a_journal_damaged_in_the_middle_is_refused_with_the_way_out(tmp_path):
    with opened(tmp_path, "random") as proposals:
        for _ in range(3):
            proposals.tell(proposals.ask().index, complete(1.0))
    lines = proposals.path.read_bytes().splitlines(keepends=True)
    proposals.path.write_bytes(b"".join([*lines[:3], b'{"op_code":\n', *lines[3:]]))
    with pytest.raises(RuntimeError, match="move it away"):
        opened(tmp_path, "random")


def test_one_process_at_a_time(tmp_path):
    with opened(tmp_path, "random") as proposals, pytest.raises(RuntimeError, match="another process has the journal"):
        opened(tmp_path, "random")
    proposals = opened(tmp_path, "random")
    proposals.close()


def test_a_plan_reads_the_journal_and_writes_nothing(tmp_path, unbroken):
    with opened(tmp_path, "tpe", record=False) as plan:
        assert [plan.ask() is not None for _ in range(4)] == [True, True, True, False]
    assert list(tmp_path.iterdir()) == []
    with opened(tmp_path, "tpe") as proposals:
        proposals.tell(proposals.ask().index, loss(unbroken["tpe"][0]))
        proposals.ask()
        before = proposals.path.read_bytes()
        with opened(tmp_path, "tpe", record=False) as plan:
            planned = [plan.ask() for _ in range(3)]
        assert [proposal.index for proposal in planned] == [1, 2, 3]  # the interrupted one first
        assert [dict(proposal.values) for proposal in planned] == unbroken["tpe"][1:4]
        assert proposals.path.read_bytes() == before


def test_what_changes_the_meaning_of_a_proposal_opens_another_journal(tmp_path):
    more_budgets = parse({**AXES, "budget": [100, 200, 400]}, fields=FIELDS, cells=("method",))
    wider = parse({**AXES, "weight_decay": {"low": 0.0, "high": 0.4}}, fields=FIELDS, cells=("method",))
    more_methods = parse({**AXES, "method": ["wsd", "cosine", "wsd_s"]}, fields=FIELDS, cells=("method",))
    finer = parse({**AXES, "weight_decay": {"low": 0.0, "high": 0.3, "points": 4}}, fields=FIELDS, cells=("method",))

    def file(**changes):
        return opened(tmp_path, **{"sampler": "tpe", "record": False, **changes}).path

    base = file()
    others = [
        file(space=more_budgets), file(space=wider), file(objective="select/error"), file(cell="method=cosine"),
        file(sampler="gp"), file(seed=4), file(goal="max"), file(context={"version": 2}),
    ]  # fmt: skip
    assert len({base, *others}) == 9
    assert base == file(count=99) == file(lag=5) == file(space=more_methods) == file(space=finer)
    assert file(sampler="grid") == file(sampler="grid", seed=9) != file(sampler="grid", space=finer)


def test_a_new_journal_is_filled_from_records_inside_the_space(tmp_path):
    records = [({"peak_lr": 1e-3 + k / 5e4, "weight_decay": k / 100}, complete(k / 100)) for k in range(20)]
    records += [({"peak_lr": 9e-3, "weight_decay": k / 70}, pruned()) for k in range(20)]
    outside = [
        ({"peak_lr": 1.0, "weight_decay": 0.1}, complete(1.0)),
        ({"peak_lr": 1e-3}, complete(1.0)),
        ({"peak_lr": 2e-3, "weight_decay": 0.2}, failed()),
    ]
    with opened(tmp_path, "tpe", lag=30) as proposals:
        assert proposals.fill(records[:3]) == 3  # killed half-way
    with opened(tmp_path, "tpe", lag=30) as proposals:
        assert proposals.fill(records + outside) == 40
        first = [proposals.ask().values["peak_lr"] for _ in range(14)]
        assert proposals.fill([({"peak_lr": 4e-3, "weight_decay": 0.0}, complete(0.0))]) == 40  # too late
    assert sum(3e-4 < value < 3e-3 for value in first) >= 11  # half of them by chance: it learned from the records
    again = opened(None, "tpe", lag=30)
    again.fill(records)
    assert [again.ask().values["peak_lr"] for _ in range(14)] == first


def test_the_grid_is_the_product_of_the_points_and_ends(tmp_path):
    proposals = opened(None, "grid")
    values = {(v["peak_lr"], v["weight_decay"]) for v in run_in_order(proposals)}
    assert values == {(lr, wd) for lr in (1e-4, 1e-3, 1e-2) for wd in (0.0, 0.3)}
    everything_pinned = parse({"peak_lr": 1e-3}, fields=FIELDS)
    assert run_without_loss(opened(None, "grid", space=everything_pinned)) == [{}]


def run_without_loss(proposals):
    while (proposal := proposals.ask()) is not None:
        proposals.tell(proposal.index, complete(0.0))
    return asked(proposals)


def test_repeated_values_are_allowed():
    space = parse({"shape": {"choices": ["linear", "sqrt"]}}, fields=FIELDS)
    assert len(run_without_loss(opened(None, "tpe", count=8, space=space))) == 8


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sampler": "tpa"}, "there are grid, random"),
        ({"sampler": "grid", "count": 7}, "6 points, proposals=7 .* space.peak_lr.points"),
        ({"sampler": "tpe", "space": parse({"peak_lr": 1e-3}, fields=FIELDS)}, "no axis to search"),
        ({"sampler": "cmaes", "space": MIXED}, "all numeric"),
        ({"lag": -1}, "number of slots"),
        ({"count": -1}, "at least 1"),
    ],
)
def test_refusals_name_the_way_out(settings, words):
    with pytest.raises(ValueError, match=words):
        opened(None, **settings)


def test_a_sampler_without_end_needs_a_count():
    with pytest.raises(ValueError, match="proposals=12"):
        Proposals.open(None, cell="", space=SPACE, sampler="random")


def test_tells_that_cannot_be(tmp_path):
    proposals = opened(None, "random")
    with pytest.raises(ValueError, match="never handed out"):
        proposals.tell(0, complete(1.0))
    proposals.ask()
    for value in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ValueError, match="pruned"):
            proposals.tell(0, complete(value))
    proposals.tell(0, complete(1.0))
    with pytest.raises(ValueError, match="already complete with"):
        proposals.tell(0, pruned())


@pytest.mark.parametrize("sampler", ["random", "qmc", "tpe", "gp"])
def test_values_have_the_types_of_their_fields_and_lie_in_their_ranges(sampler):
    values = run_without_loss(opened(None, sampler, count=8, space=MIXED))
    distributions = MIXED.distributions()
    for each in values:
        assert list(each) == list(distributions)
        assert type(each["layers"]) is int and type(each["peak_lr"]) is float and each["shape"] in ("linear", "sqrt")
        for name, axis in distributions.items():
            assert axis._contains(axis.to_internal_repr(each[name]))


def test_random_draws_follow_the_log_uniform_law():
    axis = {"x": FloatDistribution(1e-4, 1e-1, log=True)}
    drawn = [random_values(axis, seed=1, index=index)["x"] for index in range(500)]
    assert stats.kstest(drawn, stats.loguniform(1e-4, 1e-1).cdf).pvalue > 0.01


def test_sobol_draws_put_one_point_in_each_of_sixteen_cells():
    axes = {"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)}
    drawn = [qmc_values(axes, seed=2, index=index) for index in range(16)]
    assert len({(int(v["x"] * 4), int(v["y"] * 4)) for v in drawn}) == 16  # a (0, 4, 2)-net


def test_quantiles_weigh_each_whole_number_and_choice_the_same():
    parts = [(k + 0.5) / 600 for k in range(600)]
    for axis, values in [
        (IntDistribution(1, 6), range(1, 7)),
        (IntDistribution(0, 10, step=2), range(0, 11, 2)),
        (CategoricalDistribution(list("abcdef")), "abcdef"),
        (FloatDistribution(0.0, 0.5, step=0.1), [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]),
    ]:
        drawn = [at_quantile(axis, part) for part in parts]
        assert [drawn.count(value) for value in values] == [100] * 6


def test_a_larger_lag_later_waits_for_what_the_earlier_proposals_knew(tmp_path):
    """A fused sweep's lag grows with its proposals; one that failed before is then told again first."""
    with opened(tmp_path, sampler="tpe", count=16, lag=1) as before:
        while (proposal := before.ask()) is not None:
            before.tell(proposal.index, failed() if proposal.index == 12 else complete(float(proposal.index)))
    with opened(tmp_path, sampler="tpe", count=64, lag=7) as later:
        again = later.ask()
        assert again is not None and again.index == 12
        assert later.ask() is None  # 13 to 15 were drawn knowing its outcome
        later.tell(12, complete(12.0))
        assert [later.ask().index for _ in range(8)] == list(range(16, 24))
