"""The space files against the grid counts and the author's table of studies, written out here; layers against hand-made
merges."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import search_spaces
from search_spaces import Seeds, SpaceError, load, parse, resolve
from search_spaces.files import read

WSD = {
    "method": str, "budget_steps": int, "peak_lr": float, "min_lr_ratio": float, "warmup_steps": int,
    "rewarmup_steps": int, "decay_fraction": float, "decay_fractions": tuple[float, ...], "decay_shape": str,
    "accounting": str, "width": int, "layers": int, "heads": int, "ffn_width": int, "context": int, "batch_size": int,
    "weight_decay": float, "beta1": float, "beta2": float, "epsilon": float, "clip_norm": float, "precision": str,
    "measure_every": int, "select_tokens": int, "report_documents": int, "windows_per_document": int,
}  # fmt: skip


def space_of(scale, preset="default", **overrides):
    resolved = resolve(load("wsd"), scale, preset, overrides)
    return parse(resolved.axes, fields=WSD, conditions=("budget_steps", "width"), cells=resolved.cells)


def every_combination():
    file = load("wsd")
    return [(scale, preset) for scale in file.scales for preset in file.presets_at(scale)]


@pytest.mark.parametrize(("scale", "preset"), every_combination())
def test_every_preset_of_every_scale_is_a_space_whose_schedules_fit(scale, preset):
    resolved = resolve(load("wsd"), scale, preset)
    space = space_of(scale, preset)
    assert set(resolved.study) <= set(WSD) and not set(resolved.study) & set(resolved.axes)
    assert len(space.grid()) >= 1
    for cell in space.cells():
        fields = resolved.study_in(cell)
        for axes in space.enumerations():
            trial = {**space.pinned, **fields, **axes}
            fraction = max([*trial.get("decay_fractions", []), trial.get("decay_fraction", 0.4)])
            assert trial["warmup_steps"] + fraction * trial["budget_steps"] <= trial["budget_steps"]
            assert fields["width"] % fields["heads"] == 0
        warm = fields.get("rewarmup_steps", 0)
        assert (warm > 0) == (cell["method"] == "cyclic_cosine")


def test_grid360_has_360_trials_and_86075_of_378000_steps():
    space = space_of("laptop", "grid360")
    trials = [{**space.pinned, **axes, **point} for point in space.grid() for axes in space.enumerations()]
    alone, shared = 0, set()
    for trial in trials:  # every step of every trial as (all that happened up to it), counted once
        budget = trial["budget_steps"]
        fork = budget - round(trial["decay_fraction"] * budget)
        alone += budget
        shared.update((trial["peak_lr"], step) for step in range(fork))
        shared.update((trial["peak_lr"], fork, budget, trial["decay_shape"], step) for step in range(fork, budget))
    assert (len(trials), alone, len(shared)) == (360, 378_000, 86_075)


def test_fractions_and_shapes_are_twelve_branches_per_rate_and_budget():
    space = space_of("laptop", "fractions_and_shapes")
    assert len(space.enumerations(excluding=("method", "budget_steps"))) == 12


def test_the_sizes_and_rates_of_the_author():
    """Non-embedding parameters: 4 width**2 + 3 width * ffn_width per layer."""
    file = load("wsd")
    millions = {}
    for preset in ("author_100m", "author_300m", "author_600m", "author_1b"):
        shape = resolve(file, "paper", preset).study
        per_layer = 4 * shape["width"] ** 2 + 3 * shape["width"] * shape["ffn_width"]
        millions[preset] = round(shape["layers"] * per_layer / 1e6)
    assert millions == {"author_100m": 113, "author_300m": 252, "author_600m": 906, "author_1b": 1074}
    base = resolve(file, "paper").study
    assert base["batch_size"] * base["context"] == 4_194_304
    rates = sorted(point["peak_lr"] for point in space_of("paper").grid())
    assert rates == pytest.approx([1e-3, 2e-3, 4e-3, 8e-3])
    assert resolve(file, "paper", "author_100m_longer_decays").study["decay_fractions"] == [0.1, 0.2, 0.3]


def test_the_file_is_plain_yaml_for_any_reader():
    path = Path(search_spaces.__file__).with_name("wsd.yaml")
    assert read(yaml.safe_load(path.read_text())) == load("wsd") == load(path)


FILE = read(
    {
        "study": "toy",
        "axes": {"method": ["a", "b"], "lr": {"low": 1, "high": 10, "log": True, "points": 3}, "budget": [10, 20]},
        "cells": ["method"],
        "scales": {
            "tiny": {"axes": {"budget": [1, 2]}, "study": {"width": 4, "depth": 1}, "seeds": {"tuning": 1, "fresh": 0}},
            "laptop": {"study": {"width": 8}, "within": {"method=b": {"warm": 3}}, "seeds": {"tuning": 2, "fresh": 4}},
        },
        "presets": {
            "default": None,
            "wide": {"axes": {"width": [8, 16], "lr": {"points": 5}}, "scales": {"tiny": {"axes": {"width": [4, 5]}}}},
            "pinned_lr": {"study": {"lr": 3}, "seeds": {"fresh": 9}, "search": {"sampler": "tpe", "proposals": 7}},
            "big": {"at": ["laptop"], "within": {"method=b": {"warm": 5}, "method=a": {"cold": 1}}},
        },
    }
)


def test_later_layers_win_and_parts_of_a_range_are_merged():
    assert resolve(FILE, "tiny").axes["budget"] == [1, 2]
    wide = resolve(FILE, "laptop", "wide")
    assert wide.axes["lr"] == {"low": 1, "high": 10, "log": True, "points": 5}
    assert wide.axes["width"] == [8, 16] and "width" not in wide.study
    assert resolve(FILE, "tiny", "wide").axes["width"] == [4, 5]
    over = resolve(FILE, "tiny", "wide", {"lr": {"high": 30}, "width": 9, "extra": [0, 1]}, {"depth": 2}).axes
    assert over["lr"] == {"low": 1, "high": 30, "log": True, "points": 5}
    assert over["width"] == 9 and over["extra"] == [0, 1]
    both = resolve(FILE, "tiny", space_overrides={"lr": {"low": 2, "high": 3}}).axes["lr"]
    assert both == {"low": 2, "high": 3, "log": True, "points": 3}
    assert resolve(FILE, "tiny", space_overrides={"lr": {"choices": [1, 2]}}).axes["lr"] == {"choices": [1, 2]}


def test_study_fields_seeds_and_search():
    pinned = resolve(FILE, "laptop", "pinned_lr", study_overrides={"width": 32})
    assert "lr" not in pinned.axes and pinned.study == {"width": 32, "lr": 3}
    assert pinned.seeds == Seeds(tuning=2, fresh=9) and pinned.search == {"sampler": "tpe", "proposals": 7}
    assert resolve(FILE, "tiny", seeds={"tuning": 3}).seeds == Seeds(tuning=3, fresh=0)


def test_fields_of_one_cell():
    big = resolve(FILE, "laptop", "big")
    assert big.study_in({"method": "b"}) == {"width": 8, "warm": 5}
    assert big.study_in({"method": "a"}) == {"width": 8, "cold": 1}
    assert resolve(FILE, "laptop", study_overrides={"warm": 0}).study_in({"method": "b"}) == {"width": 8, "warm": 0}
    assert resolve(FILE, "laptop", space_overrides={"warm": [1, 2]}).study_in({"method": "b"}) == {"width": 8}


def test_resolving_leaves_the_file_as_it_was():
    before = load("wsd")
    resolved = resolve(before, "laptop", "grid360", {"peak_lr": {"high": 0.1}})
    resolved.axes["budget_steps"].append(1)
    resolved.study["width"] = 1
    assert before == load("wsd")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: resolve(FILE, "labtop"), "did you mean laptop.*tiny, laptop"),
        (lambda: resolve(FILE, "tiny", "wied"), "did you mean wide"),
        (lambda: resolve(FILE, "tiny", "big"), "scale=laptop, got scale=tiny.*default, wide, pinned_lr"),
        (lambda: resolve(FILE, "tiny", study_overrides={"lr": 3}), "pin it with space.lr=3"),
        (lambda: resolve(FILE, "tiny", seeds={"tuning": 0}), "at least 1, got 0"),
        (lambda: resolve(FILE, "tiny", seeds={"fresh": -1}), "at least 0, got -1"),
        (lambda: load("wds"), "did you mean wsd"),
        (lambda: read({"study": "x"}), "needs axes"),
        (lambda: read([1]), "must be a mapping"),
        (lambda: read({"studdy": "x"}), "did you mean study"),
    ],
)
def test_refusals_name_what_there_is(call, words):
    with pytest.raises(SpaceError, match=words):
        call()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cells": ["methd"]}, "cells names 'methd'"),
        ({"presets": {}}, "named default"),
        ({"presets": {"default": {"axis": {}}}}, "presets.default has no key 'axis'; did you mean axes"),
        ({"presets": {"default": {"at": ["hpc"]}}}, "no known scale: 'hpc'"),
        ({"presets": {"default": {"seeds": {"tune": 1}}}}, "did you mean tuning"),
        ({"presets": {"default": {"search": {"samplr": "x"}}}}, "did you mean sampler"),
        ({"presets": {"default": {"axes": {"a": 1}, "study": {"a": 1}}}}, "both as an axis and under study"),
        ({"presets": {"default": {"axes": [1]}}}, "presets.default.axes must be a mapping"),
        ({"presets": {"default": {"within": {"wsd": {"a": 1}}}}}, "names a cell as method=wsd"),
        ({"scales": {"tiny": {"seeds": {"tuning": 1}}}}, "scales.tiny.seeds needs fresh"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(change, words):
    whole = {
        "study": "toy", "axes": {"method": ["a"]}, "cells": ["method"],
        "scales": {"tiny": {"seeds": {"tuning": 1, "fresh": 0}}}, "presets": {"default": {}},
    }  # fmt: skip
    read(whole)
    with pytest.raises(SpaceError, match=words):
        read({**whole, **change})


def test_a_file_that_is_no_yaml(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("study: [")
    with pytest.raises(SpaceError, match="not readable as YAML"):
        load(path)
