"""What Ray reports against `train` in this process: a stock Tune search, two workers under DDP, a sweep under FSDP."""

import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch
from ray import tune
from ray.train import RunConfig, UserCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from sweeps.engine.driver import Driver, Entry
from sweeps.engine.local import run_here
from sweeps.engine.plan import make_trial
from sweeps.engine.search import JobSearcher, run_on_ray
from sweeps.engine.store import Store
from sweeps.engine.worker import Job, Place
from sweeps.nodes.joining import Slots
from trainables import wsd
from trainables.ray_train import (
    InProcessRun,
    Parted,
    WorkerGroupRun,
    config_of,
    given_device,
    result,
    sharded,
    together,
    torch_trainer,
    tune_trainable,
    worker_group,
)
from trainables.registry import STUDIES
from trainables.study import LocalRun
from trainables.toys import LANES, QUADRATIC
from trainables.walk import train

TINY = replace(wsd.STUDY.tiny, layers=2, decay_fraction=0.25)  # a trunk of 30 steps, a decay of 10
ROUNDING = 2e-5  # nats; workers add the same numbers in another order, 40 steps long


@pytest.fixture(scope="module")
def ray_session(tmp_path_factory):
    """One Ray of this module's own, with quick reports and its files in a temporary folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
        patch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="WARNING")
        try:
            yield str(tmp_path_factory.mktemp("ray"))
        finally:
            ray.shutdown()


def losses(row) -> dict[str, float]:
    return {name: value for name, value in row.items() if name.endswith(("/loss", "/bits_per_byte"))}


def assert_equal_but_for_rounding(reported, rows):
    assert [row["step"] for row in reported] == [row.step for row in rows]
    for ours, alone in zip(reported, rows, strict=True):
        assert losses(ours) == pytest.approx(losses(alone.metrics), abs=ROUNDING)


def test_a_stock_tune_sweep_with_optuna_and_asha_survives_divergence(ray_session):
    fixed = {name: getattr(TINY, name) for name in wsd.STUDY.field_names if name not in ("peak_lr", "decay_fraction")}
    points = [{"peak_lr": 3e-3, "decay_fraction": 0.25}, {"peak_lr": 1e30, "decay_fraction": 0.25}]
    tuner = tune.Tuner(
        tune.with_resources(tune_trainable(wsd.STUDY, **fixed), {"cpu": 1}),
        param_space={"peak_lr": tune.loguniform(1e-3, 1e31), "decay_fraction": tune.uniform(0.1, 0.4)},
        tune_config=tune.TuneConfig(
            metric="select/loss",
            mode="min",
            num_samples=3,
            max_concurrent_trials=1,
            reuse_actors=True,
            search_alg=OptunaSearch(seed=0, points_to_evaluate=points),
            scheduler=ASHAScheduler(time_attr="step", max_t=40, grace_period=10),
        ),
        run_config=tune.RunConfig(storage_path=ray_session, verbose=0),
    )
    results = tuner.fit()
    assert not results.errors and len(results) == 3
    sound, diverged, _ = sorted(results, key=lambda each: points.index(each.config) if each.config in points else 2)
    end = train(wsd.STUDY, replace(TINY, **points[0])).rows[-1]
    assert losses(sound.metrics) == end.metrics  # bit-equal: one process, one thread
    tokens = TINY.batch_size * TINY.context
    assert (sound.metrics["step"], sound.metrics["tokens"], sound.metrics["diverged"]) == (40, 40 * tokens, False)
    assert diverged.metrics["diverged"] and diverged.metrics["select/loss"] == math.inf
    assert math.isfinite(results.get_best_result().metrics["select/loss"])


@pytest.mark.timeout(300)
def test_every_study_is_a_stock_tune_trainable(ray_session):
    """One trial of each study's smallest config, all in one stock Tuner, against the same trained without Ray."""

    def any_study(config):
        study = STUDIES[config["study"]]
        values = {name: getattr(study.tiny, name) for name in study.field_names}
        tune_trainable(study)(values | {"seed": config["seed"]})

    results = tune.Tuner(
        tune.with_resources(any_study, {"cpu": 1}),
        param_space={"study": tune.grid_search(sorted(STUDIES)), "seed": 1},
        tune_config=tune.TuneConfig(reuse_actors=True),
        run_config=tune.RunConfig(storage_path=ray_session, verbose=0),
    ).fit()
    assert not results.errors and len(results) == len(STUDIES)
    for found in results:
        study = STUDIES[found.config["study"]]
        end = train(study, replace(study.tiny, seed=1)).rows[-1]
        assert found.metrics["step"] == end.step
        for name, value in end.metrics.items():
            assert found.metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-6), (study.name, name)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", sorted(name for name in STUDIES if name != "wsd"))
def test_every_study_is_a_train_trainer(ray_session, name):
    study = STUDIES[name]
    run_config = RunConfig(name=f"trainer-{name}", storage_path=ray_session)
    rows = torch_trainer(study, study.tiny, run_config=run_config).fit().return_value
    alone = train(study, study.tiny).rows
    assert [row["step"] for row in rows] == [row.step for row in alone]
    assert rows[-1][study.report.name] == pytest.approx(alone[-1].metrics[study.report.name], rel=1e-4, abs=1e-6)


def test_lanes_are_not_split_among_workers():
    with pytest.raises(ValueError, match="a lane of lanes trains on one worker, got workers=2"):
        torch_trainer(LANES, LANES.tiny, workers=2)


class WrittenDown(UserCallback):
    """Appends the steps that the workers report to a file, where Train's controller runs."""

    def __init__(self, path: str):
        self.path = path

    def after_report(self, run_context, metrics, checkpoint):
        with open(self.path, "a") as file:
            file.write(" ".join(f"{worker['step']}:{worker['select/loss']!r}" for worker in metrics) + "\n")


def test_two_workers_measure_what_one_measures(ray_session):
    callback = WrittenDown(ray_session + "/reports")
    run_config = RunConfig(name="ddp", storage_path=ray_session, callbacks=[callback])
    rows = torch_trainer(wsd.STUDY, TINY, workers=2, run_config=run_config).fit().return_value
    assert_equal_but_for_rounding(rows, train(wsd.STUDY, TINY).rows)
    reports = [line.split() for line in Path(callback.path).read_text().splitlines()]
    # Both workers measure the same, to the bit.
    assert reports == [[f"{row['step']}:{row['select/loss']!r}"] * 2 for row in rows]


class Given:
    """A tuning that asks for these configs at once."""

    def __init__(self, *configs):
        self.waiting = [Entry(make_trial(wsd.STUDY, config), "tune", "", None, {}) for config in configs]

    def advance(self):
        now, self.waiting = self.waiting, []
        return now

    @property
    def finished(self):
        return not self.waiting


def opened(results, *configs) -> Driver:
    store = Store(results)
    store.prepare()
    driver = Driver(store, Given(*configs), slots=1)
    driver.start()
    return driver


@pytest.mark.timeout(180)
def test_a_sweep_goes_on_in_a_sharded_worker_group_from_what_one_process_kept(ray_session, tmp_path):
    """Trunk and fork states are saved by one worker and loaded by two, and the other way round."""
    place = Place(str(tmp_path), str(tmp_path / "stop"))
    run_here(opened(tmp_path, TINY), place)
    others = [replace(TINY, decay_shape="square"), replace(TINY, budget_steps=80, decay_shape="square")]
    driver = opened(tmp_path, TINY, *others)
    run_on_ray(driver, place, Slots(1, cpus=0.9, workers=2, parallel="fsdp"), address=None)
    last = replace(TINY, budget_steps=80)
    finally_here = opened(tmp_path, last)
    run_here(finally_here, place)

    assert [entry.status for entry in driver.entries] == ["complete"] * 3
    commits = [commit for commit in driver.session.values()]
    assert sum(commit.executed_steps for commit in commits) == 10 + 30 + 20  # never the first trunk's 30 again
    assert sum(commit.executed_steps for commit in finally_here.session.values()) == 20
    for entry in (*driver.entries, *finally_here.entries):
        alone = train(wsd.STUDY, entry.trial.config).rows
        assert_equal_but_for_rounding([{"step": row.step, **row.metrics} for row in entry.rows], alone)
        assert entry.rows[-1].arrays["report/document_losses"] == pytest.approx(
            alone[-1].arrays["report/document_losses"], abs=ROUNDING
        )


def test_why_a_job_died_reaches_the_driver():
    class Heard:
        def heard(self, told):
            assert not told.committed

        def ended(self, name, error=None, preempted=False):
            self.error, self.preempted = f"{name}: {error}", preempted

    driver = Heard()
    searcher = JobSearcher(driver, Slots(1), Place("", ""))
    for heard, said in (
        ({"told": '{"error": "OSError: the disk is full"}'}, "OSError: the disk is full"),
        ({}, "the job's process died or raised; see the log above"),
    ):
        searcher.jobs["trial"] = Job("job-1", ())
        searcher.on_trial_result("trial", heard)
        searcher.on_trial_complete("trial", None, error=True)
        assert searcher.fault is None and driver.error == f"job-1: {said}" and not driver.preempted


def test_a_job_that_dies_with_its_node_or_gives_way_to_a_notice_does_not_count_as_one_that_fails():
    class Heard:
        def heard(self, told):
            pass

        def ended(self, name, error=None, preempted=False):
            self.told = name, error is not None, preempted

    lost = [0]
    driver = Heard()
    searcher = JobSearcher(driver, Slots(1), Place("", ""), lambda: lost[0])
    searcher.jobs["trial"], searcher.lost_before["trial"] = Job("job-1", ()), 0
    lost[0] = 1
    searcher.on_trial_complete("trial", None, error=True)
    assert searcher.fault is None and driver.told == ("job-1", True, True)
    searcher.jobs["trial"], searcher.lost_before["trial"] = Job("job-2", ()), 1
    searcher.on_trial_result("trial", {"told": '{"gave_way": true}'})
    searcher.on_trial_complete("trial", None, error=True)
    assert searcher.fault is None and driver.told == ("job-2", False, False) and not searcher.gave_way


def test_unknown_and_doubled_fields_are_refused_before_training():
    with pytest.raises(ValueError, match=r"quadratic has no field \['rate'\]; fields: budget_steps, learning_rate"):
        tune_trainable(QUADRATIC, rate=0.1)
    with pytest.raises(ValueError, match=r"has no field \['rate'\]"):
        tune_trainable(QUADRATIC)({"rate": 0.1})
    with pytest.raises(ValueError, match=r"\['noise'\] are both fixed and searched"):
        tune_trainable(QUADRATIC, noise=0.1)({"noise": 0.2})
    with pytest.raises(TypeError, match="quadratic needs a Config, got dict"):
        torch_trainer(QUADRATIC, {"noise": 0.1})
    with pytest.raises(ValueError, match="parallel is 'ddp' or 'fsdp', got 'tp'"):
        worker_group(print, workers=2, parallel="tp")
    with pytest.raises(ValueError, match="at least one worker, got 0"):
        worker_group(print, workers=0)
    with pytest.raises(ValueError, match=r"one GPU or none, got gpus=0\.5"):
        Slots(1, gpus=0.5, workers=2)
    with pytest.raises(ValueError, match=r"shards the modules in model.blocks .*, which Linear lacks"):
        sharded(torch.nn.Linear(1, 1), 2)


def test_values_become_a_config_of_plain_numbers():
    searched = {"peak_lr": torch.tensor(0.5), "decay_fractions": [0.2, 0.5], "method": "wsd_s"}
    config = config_of(wsd.STUDY, searched, {"decay_fraction": 0.5, "earlier_budgets": [400]})
    assert config == wsd.Config(
        *("wsd_s", 1600, (400,), 0.5),
        decay_fractions=(0.2, 0.5),
        decay_fraction=0.5,
    )
    assert type(config.peak_lr) is float


def test_a_result_that_is_not_finite_counts_as_the_worst():
    row = {"key": "k", "step": 3, "full": True, "train/loss": 1.0, "select/loss": math.nan, "report/loss": -math.inf}
    told = result(QUADRATIC, {"tokens": 2}, row)
    assert told == {
        "step": 3,
        "tokens": 6,
        "diverged": True,
        "train/loss": 1.0,
        "select/loss": math.inf,
        "report/loss": math.inf,
    }
    maximised = replace(QUADRATIC, select=QUADRATIC.select._replace(goal="max"))
    assert result(maximised, {}, row)["select/loss"] == -math.inf
    light = {"key": "k", "step": 1, "full": False, "select/loss": 0.5}
    assert result(QUADRATIC, {}, light) == {"step": 1, "diverged": False, "select/loss": 0.5}


class Pair(WorkerGroupRun):
    """One of two workers; the other one always does the same and never raises."""

    def __init__(self):
        self.device, self.rank, self.workers = torch.device("cpu"), 0, 2
        self.send, self.stop = (lambda row: None), (lambda: False)

    def _all_say(self, doing, word):
        return [word, False]


def test_an_error_on_one_worker_alone_ends_the_group_and_one_on_all_is_the_branchs_own():
    def broken(state, placed, span, run):
        raise MemoryError("out of memory")

    pair = Pair()
    assert train(together(QUADRATIC, pair), QUADRATIC.tiny, pair).rows == train(QUADRATIC, QUADRATIC.tiny).rows
    study = replace(QUADRATIC, advance=broken)
    with pytest.raises(Parted, match=r"of 2 workers only \[0\] raised in broken\(Placed.*see their own traceback"):
        train(together(study, pair), QUADRATIC.tiny, pair)
    pair._all_say = lambda doing, word: [word, word]
    with pytest.raises(RuntimeError, match="MemoryError: out of memory"):
        train(together(study, pair), QUADRATIC.tiny, pair)


def test_one_workers_stop_is_everybodys_and_so_is_the_slowest_ones_time():
    pair = Pair()
    assert not pair.should_stop()
    pair._all_say = lambda doing, word: [word, 1.5]
    assert pair.should_stop()
    assert pair.slowest(0.5) == 1.5 and pair.slowest(2.5) == 2.5


def test_without_gpus_everything_is_on_the_cpu():
    if torch.cuda.is_available() and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
        pytest.skip("this machine has a GPU")
    assert given_device() == InProcessRun().device == LocalRun().device == torch.device("cpu")
