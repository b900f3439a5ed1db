"""Command lines against the spec or the refusal that they must give, with the rule, the value and the way out."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from search_spaces import load
from sweeps.engine.launch import dry_run
from sweeps.engine.words import Refused, help_text, make_spec
from trainables import wsd


def spec_of(*arguments):
    return make_spec(wsd.STUDY, list(arguments), "wsd_budget")[0]


def planned(tmp_path, *arguments):
    spec, words = make_spec(wsd.STUDY, ["scale=tiny", *arguments, f"results={tmp_path}"], "wsd_budget")
    return dry_run(spec, words, 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        # unknown words, values and types
        (["scal=tiny"], r"no word 'scal'; did you mean scale"),
        (["banana=1"], r"no word 'banana'.* There are: .*scale"),
        (["scale=huge"], r"no scale 'huge'.*tiny"),
        (["preset=grid36"], r"no preset 'grid36'; did you mean grid360"),
        (["proposals=many"], r"proposals"),
        (["plan_only=perhaps"], r"plan_only"),
        (["executor=slurm"], r"no executor 'slurm'; there are ray and local"),
        (["slots=0"], r"slots must be at least 1, got 0"),
        (["cluster=ray://10.0.0.1:10001"], r"got cluster=ray://10.0.0.1:10001; ray submit it"),
        (["study.widht=64"], r"no field 'widht'; did you mean width"),
        (["study.width=wide"], r"study.width must be whole number, got 'wide'"),
        (["study.width=64.5"], r"study.width must be whole number, got 64.5"),
        (["study.precision=fp8"], r"study.precision has no choice 'fp8'.*fp32, bf16"),
        (["scale=tiny preset=default"], r"cannot read the command|no scale"),
        (["proposals"], r"say WORD=VALUE"),
        # the space
        (["space.peek_lr=1e-3"], r"'peek_lr' is no axis of this space; add a new axis with \+space.peek_lr=.*peak_lr"),
        (["+space.widht=[16,32]"], r"the space names 'widht', which is no field of the config; did you mean width"),
        (["space.peak_lr=high"], r"peak_lr must be number, got 'high'"),
        (["space.peak_lr.hihg=0.1"], r"axis peak_lr has no key 'hihg'; did you mean high"),
        (["~space.peak_lr"], r"an axis cannot be deleted; pin it with space.peak_lr=VALUE"),
        (["space.peak_lr.low=1", "space.peak_lr.high=0.1"], r"needs low < high"),
        (["space.seed=[1,2]"], r"seed"),
        (["study.peak_lr=1e-3"], r"study.peak_lr is an axis of this space; pin it with space.peak_lr"),
        (["study.seed=3"], r"the sweep sets the seed.*seeds=N"),
        # a condition is never searched for quality
        (["space.budget_steps={low: 20, high: 80}"], r"budget_steps is a condition.*does not maximise quality over it"),
        (["+space.width={choices: [16, 32]}"], r"width is a condition.*enumerate it"),
        # budgets
        (["space.budget_steps=[800,400]"], r"budgets must increase, got .*\[800, 400\].*sort them"),
        (["space.budget_steps=[400,400]"], r"twice|must increase"),
        (["space.budget_steps=[]"], r"budget_steps is an empty list"),
        # the objective
        (
            ["objective=report/loss"],
            r"objective=report/loss is measured on report data, which must not guide a search.*select/loss",
        ),
        (["objective=train/loss"], r"less or more is better; say train/loss:min .*the objective of wsd is select/loss"),
        # seeds and search
        (["tuning_seeds=0"], r"at least one tuning seed"),
        (["seeds=-1"], r"seed"),
        (["sampler=grid3"], r"no sampler 'grid3'; there are grid"),
        (["proposals=0"], r"proposals must be at least 1, got 0"),
        (["bracket=1"], r"bracket"),
        (["bracket=4", "space.budget_steps=40"], r"bracket=4 needs at least two budgets"),
        (["bracket=4", "proposals=6", "sampler=random"], r"proposals must fill brackets of 4, got 6; take proposals=8"),
        (["bracket=2", "eta=1"], r"eta"),
        (["sampler=tpe"], r"sampler=tpe has no end of its own; say how many: proposals=12"),
        (["sampler=cmaes", "proposals=4"], r"cmaes needs two or more searched axes"),
        (["proposals=20"], r"the grid has 2 points, proposals=20 asks for more"),
        (["preset=author_1b"], r"preset=author_1b is meant for scale=paper, got scale=tiny"),
        # what no schedule can honour
        (["study.warmup_steps=39"], r"warmup .*got 39"),
        (["space.decay_fraction=0.95"], r"warmup \+ decay"),
        (["space.decay_fraction=1.5"], r"decay fractions must be in \(0, 1\], got"),
        (["space.decay_fraction=0"], r"decay fractions must be in"),
        (["space.min_lr_ratio=0", "space.decay_shape=inverse"], r"both ends above 0.*min_lr_ratio above 0"),
        (["space.min_lr_ratio=1"], r"min_lr_ratio must be in \[0, 1\), got 1"),
        (["space.peak_lr=-1e-3"], r"peak_lr must be above 0, got -0.001"),
        (["space.decay_shape=linaer"], r"no decay_shape 'linaer'; there are linear"),
        (["space.decay_shape=nowhere:f"], r"no module 'nowhere'"),
        (["space.method=[adam]"], r"method.* has no choice 'adam'.*wsd"),
        (["study.batch_size=0"], r"batch_size must be at least 1, got 0"),
        (["study.measure_every=0"], r"measure_every must be at least 1, got 0"),
        # data
        (["study.corpus=/no/such/corpus.txt"], r"/no/such/corpus.txt"),
    ],
)
def test_what_cannot_be_honoured_is_refused_before_anything_starts(tmp_path, arguments, words):
    with pytest.raises(Refused, match=words):
        planned(tmp_path, *arguments)
    assert not any(tmp_path.iterdir())


def test_an_empty_or_too_short_corpus_is_refused(tmp_path):
    for name, text in (("empty.txt", ""), ("short.txt", "a few words")):
        (tmp_path / name).write_text(text)
        with pytest.raises(Refused, match=name.split(".")[0]):
            planned(tmp_path / "results", f"study.corpus={tmp_path / name}")


def test_defaults_of_a_command():
    spec = spec_of()
    assert (spec.scale, spec.preset, spec.budgets) == ("laptop", "default", (250, 500, 1000))
    assert spec.command == "python sweeps/wsd_budget.py"
    assert spec.tuning_seeds == (0,) and min(spec.fresh_seeds) >= 1000
    assert [cell["method"] for cell in spec.space.cells()] == ["wsd", "wsd_s", "cosine", "cyclic_cosine"]


def test_words_change_what_they_name():
    spec, words = make_spec(
        wsd.STUDY,
        [
            "scale=tiny",
            "space.peak_lr=3e-3",
            "space.budget_steps=[20,40,80]",
            "study.width=32",
            "seeds=3",
            "results=/x/y",
        ],
        "wsd_budget",
    )
    assert spec.space.pinned["peak_lr"] == 3e-3 and spec.budgets == (20, 40, 80)
    assert spec.resolved.study["width"] == 32
    assert len(spec.fresh_seeds) == 3 and str(spec.results) == "/x/y" and words.resources.gpus == 0


def test_a_new_axis_is_added_with_a_plus():
    spec = spec_of("scale=tiny", "+space.weight_decay=[0.0,0.1]")
    assert spec.space.enumerated["weight_decay"] == (0.0, 0.1)


def test_a_field_that_only_one_cell_reads_is_set_in_that_cell_alone(tmp_path):
    driver, _ = planned(tmp_path)
    ramps = {(e.trial.config.method, e.trial.config.rewarmup_steps) for e in driver.entries}
    assert ramps == {("wsd", 0), ("wsd_s", 0), ("cosine", 0), ("cyclic_cosine", 2)}


def test_the_sweeps_name_is_stable_under_more_of_the_same_and_moves_with_its_meaning():
    base = spec_of("scale=tiny")
    for more in (["proposals=1"], ["seeds=5"], ["space.budget_steps=[20,40,80]"], ["executor=local"]):
        assert spec_of("scale=tiny", *more).sweep == base.sweep
    for other in (["study.width=32"], ["space.decay_fraction=0.2"], ["sampler=random", "proposals=2"]):
        assert spec_of("scale=tiny", *other).sweep != base.sweep


@pytest.mark.parametrize("scale", ["tiny", "laptop"])
def test_every_preset_that_a_scale_offers_makes_a_plan(tmp_path, scale):
    for preset in load("wsd").presets_at(scale):
        if preset == "grid360":
            continue  # tests/sweeps/test_plan.py
        spec, words = make_spec(wsd.STUDY, [f"preset={preset}", f"scale={scale}", f"results={tmp_path}"], "wsd_budget")
        driver, _ = dry_run(spec, words, 2)
        assert driver.entries, preset


def test_the_papers_presets_make_configs_of_the_authors_sizes(tmp_path):
    for preset in load("wsd").presets_at("paper"):
        spec, _ = make_spec(wsd.STUDY, [f"preset={preset}", "scale=paper"], "wsd_budget")
        for cell in spec.space.cells():
            for values in spec.space.enumerations((*spec.space.cell_axes, "budget_steps")):
                point = {**cell, **spec.space.grid()[0], **values}
                fields = {**spec.resolved.study_in(cell), **spec.space.pinned, **point, "seed": 0}
                configs = wsd.STUDY.configs({k: v for k, v in fields.items() if k != "budget_steps"}, spec.budgets)
                assert [config.budget_steps for config in configs] == list(spec.budgets), preset


def test_help_lists_words_axes_with_ranges_fields_presets_and_scales():
    text = help_text(wsd.STUDY, "wsd_budget", "What is asked?")
    for word in (
        "What is asked?",
        "proposals",
        "plan_only",
        "1e-3 to",
        "(log",
        "grid360",
        "laptop",
        "weight_decay",
        "cosine",
    ):
        assert word in text


def test_a_condition_is_searched_only_where_the_search_looks_for_a_boundary():
    study = replace(wsd.STUDY, boundary="select/boundary")
    words = ["scale=tiny", "+space.context={low: 16, high: 64}", "sampler=random", "proposals=2"]
    spec, _ = make_spec(study, [*words, "objective=select/boundary:min"], "wsd_budget")
    assert "context" in spec.space.searched
    for objective in ([], ["objective=select/loss"], ["objective=train/loss:min"]):
        with pytest.raises(Refused, match="context is a condition"):
            make_spec(study, [*words, *objective], "wsd_budget")
    with pytest.raises(Refused, match="context is a condition"):  # a study that names no such metric
        make_spec(wsd.STUDY, [*words, "objective=select/boundary:min"], "wsd_budget")


def test_results_and_tracking_follow_the_environment_unless_the_command_says_otherwise(monkeypatch):
    assert words_of() == (Path("results"), None)
    monkeypatch.setenv("ANABRANCH_RESULTS", "/shared/results")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert words_of() == (Path("/shared/results"), "http://127.0.0.1:5000")
    assert words_of("results=/own", "tracking=none") == (Path("/own"), "none")
    monkeypatch.setenv("ANABRANCH_RESULTS", "~/results")
    assert words_of()[0] == Path.home() / "results"
    monkeypatch.setenv("ANABRANCH_RESULTS", "")
    assert words_of()[0] == Path("results")


def words_of(*arguments):
    spec, words = make_spec(wsd.STUDY, list(arguments), "wsd_budget")
    return spec.results, words.tracking


def test_help_says_where_results_and_tracking_come_from():
    text = help_text(wsd.STUDY, "wsd_budget", "")
    assert re.search(r"results .*default: \$ANABRANCH_RESULTS, else results", text)
    assert re.search(r"tracking .*default: \$MLFLOW_TRACKING_URI, else a database in the results folder", text)


def test_object_storage_is_refused_as_results(monkeypatch):
    monkeypatch.setenv("ANABRANCH_RESULTS", "s3://bucket/results")
    with pytest.raises(Refused, match=r"results is a folder .*got s3://bucket/results; .*mount a shared file system"):
        spec_of()
