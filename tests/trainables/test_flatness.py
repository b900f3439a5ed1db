"""Lanes against the same trials alone, presets against the paper's table, metrics against numbers by hand."""

from dataclasses import replace
from itertools import product
from math import isfinite, nan
from typing import get_args

import pytest
import torch

from search_spaces import load, parse, resolve
from search_spaces.fields import field_types
from search_spaces.fields import fit as as_field
from trainables import flatness
from trainables.flatness import STUDY, Pack
from trainables.flatness_measures import fit, measure
from trainables.flatness_trials import BLOCK_STEPS, Algorithm, Architecture, Config, family
from trainables.pack import train_pack
from trainables.study import LocalRun

CPU = torch.device("cpu")
SMALL = replace(STUDY.tiny, dimension=8, samples=30, width=12, budget_steps=1000, measure_every=500)


def trained(configs):
    stages = {}
    train_pack(STUDY, configs, LocalRun(), commit=stages.__setitem__)
    return [stages[lane] for lane in range(len(configs))]


def steps(pack, count):
    pack.enter(0)
    for start in range(0, count, BLOCK_STEPS):
        pack.draw_block(start)
        pack.advance(min(BLOCK_STEPS, count - start))
    return pack.weights


@pytest.mark.parametrize("architecture, count", [("bias", 1000), ("sim_ln_projected", 1000), ("sim_bn", 60)])
def test_a_trial_alone_is_the_trial_in_a_population_of_eight(architecture, count):
    mixed = [
        replace(SMALL, architecture=architecture, seed=seed, **more)
        for seed, more in enumerate([{}, dict(rho=0.3), dict(learning_rate=0.03), dict(weight_decay=0.01)] * 2)
    ]
    if architecture == "bias":  # what only differs in numbers trains together
        mixed[1] = replace(mixed[1], architecture="no_bias")
        mixed[2] = replace(mixed[2], algorithm="sgd")
        mixed[3] = replace(mixed[3], algorithm="label_noise")
        mixed = [replace(config, rho=0.1) if config.algorithm != "one_sam" else config for config in mixed]
    assert len({STUDY.shape(config) for config in mixed}) == 1
    together = steps(Pack(mixed, CPU), count)
    for lane, config in enumerate(mixed):
        alone = steps(Pack([config], CPU), count)
        for name, value in together.items():
            assert (value[lane] - alone[name][0]).abs().max() <= 1e-5


def test_a_lane_that_diverges_leaves_the_others_untouched_and_the_batch():
    good = [replace(SMALL, seed=seed) for seed in range(3)]
    bad = replace(SMALL, seed=9, learning_rate=1e4)
    with_bad = trained([good[0], bad, *good[1:]])
    without = trained(good)
    assert [stage.status for stage in with_bad] == ["complete", "diverged", "complete", "complete"]
    assert with_bad[1].executed_steps == 500
    for mine, theirs in zip([with_bad[0], *with_bad[2:]], without, strict=True):
        assert mine.rows[-1].metrics == pytest.approx(theirs.rows[-1].metrics, rel=1e-4)


@pytest.mark.parametrize("architecture, algorithm", list(product(get_args(Architecture), get_args(Algorithm))))
def test_every_architecture_trains_under_every_algorithm(architecture, algorithm):
    config = replace(STUDY.tiny, architecture=architecture, algorithm=algorithm, budget_steps=4, measure_every=2)
    (stage,) = trained([config])
    assert stage.status == "complete"
    first, last = (row.metrics for row in stage.rows)
    assert set(last) - set(first) == {"report/accuracy", "report/mse"}
    assert all(map(isfinite, last.values()))
    weights = Pack([config], CPU).weights
    unused = 0 if config.architecture != "no_bias" else config.width  # the row of the bias
    assert STUDY.units(config)["parameters"] == sum(value.numel() for value in weights.values()) - unused


@pytest.mark.parametrize("architecture", ["sim_bn", "three_layer", "softplus", "sim_ln"])
def test_logistic_loss_trains_too(architecture):
    config = replace(STUDY.tiny, architecture=architecture, loss="logistic", first_layer_scale=0.5)
    (stage,) = trained([config])
    losses = [row.metrics["train/loss"] for row in stage.rows]
    assert stage.status == "complete" and losses[-1] < losses[0]


def test_splits_are_draws_of_their_own_with_the_papers_labels():
    config = replace(SMALL, dimension=30, seed=3)
    data = Pack([config], CPU).data
    train, select, report = (data[f"{split} inputs"][0] for split in ("train", "select", "report"))
    for one, other in ((train, select), (train, report), (select, report)):
        assert not (one[:, None] == other[None]).all(2).any()
    assert torch.equal(data["select labels"][0], select[:, 0] * select[:, 1])
    assert set(select[:, :-1].flatten().tolist()) == {-1.0, 1.0} and (select[:, -1] == 1).all()
    assert (Pack([replace(config, architecture="no_bias")], CPU).data["select inputs"][0, :, -1] == 0).all()


def test_the_ball_is_uniform_in_radius_to_the_power_of_its_dimension():
    data = Pack([replace(SMALL, data="ball", dimension=10, select_samples=20_000)], CPU).data
    inputs = data["select inputs"][0, :, :-1]
    share = (torch.linalg.vector_norm(inputs, dim=1) / 10**0.5) ** 10  # uniform on [0, 1]
    assert float(share.max()) <= 1 + 1e-5 and float(share.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(share.std()) == pytest.approx(12**-0.5, abs=0.01)
    assert torch.equal(data["select labels"][0], inputs[:, 0].abs() - inputs[:, 1].abs())


def test_what_neurons_do_is_read_off_a_network_by_hand():
    pack = Pack([replace(SMALL, dimension=4, width=2)], CPU)
    inner = torch.zeros(1, 5, 2)
    inner[0, 0, 0], inner[0, 2, 1] = 3.0, 4.0  # one unit sees x_1, the other x_3
    pack.weights = {"inner": inner, "outer": torch.tensor([[2.0, 0.0]])}
    (metrics,) = measure(pack, full=False)
    assert metrics["path_norm"] == 6 and metrics["signal_share"] == pytest.approx(9 / 25)
    assert metrics["points_per_neuron"] == int((pack.data["train inputs"][0, :, 0] > 0).sum())
    assert metrics["sharpness_is_hessian"] == 0


def test_the_floor_is_four_times_the_root_of_the_dimension_plus_one():
    for architecture, floor in (("bias", 4 * 31**0.5), ("no_bias", 4 * 30**0.5), ("sim_ln", 2.0)):
        (metrics,) = measure(Pack([replace(SMALL, dimension=30, architecture=architecture)], CPU), full=False)
        assert metrics["trace"] / metrics["trace_over_floor"] == pytest.approx(floor)


def test_the_top_eigenvalue_at_the_end_is_the_whole_hessians_where_the_loss_is_not_zero():
    config = replace(SMALL, architecture="sim_bn", dimension=4, width=3, samples=6)
    pack = Pack([config, replace(config, seed=1)], CPU)
    light, full = measure(pack, full=False), measure(pack, full=True)
    data = pack.lane_data(pack.data["train inputs"], pack.data["train labels"])
    for lane in range(2):
        flat = torch.cat([value[lane].flatten() for value in pack.weights.values()])
        one = {name: value[lane] for name, value in data.items()}

        def loss(flat, one=one):
            inner, outer = flat.split([15, 3])
            return pack.lane_loss({"inner": inner.view(5, 3), "outer": outer}, one)

        eigenvalues = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat).double())
        assert full[lane]["trace"] == pytest.approx(float(eigenvalues.sum()), rel=1e-4)
        assert full[lane]["top_eigenvalue"] == pytest.approx(float(eigenvalues[-1]), rel=1e-3)
        assert full[lane]["sharpness_is_hessian"] == 1 and light[lane]["sharpness_is_hessian"] == 0
        assert light[lane]["top_eigenvalue"] != full[lane]["top_eigenvalue"]


def test_a_projected_first_layer_keeps_its_norm():
    pack = Pack([replace(SMALL, architecture="sim_ln_projected", projected_norm=norm) for norm in (10.0, 3.0)], CPU)
    norms = torch.linalg.vector_norm(steps(pack, 50)["inner"], dim=(1, 2))
    assert norms.tolist() == pytest.approx([10.0, 3.0], rel=1e-5)


def test_phases_change_rate_and_radius_at_their_steps(monkeypatch):
    phases = dict(phase_parts=(1.0, 3.0), later_learning_rates=(0.002,), later_rhos=(0.4,))
    config = replace(STUDY.tiny, budget_steps=8, measure_every=5, **phases)
    assert config.phase_starts == (0, 2)
    seen = []
    step = Pack.step
    monkeypatch.setattr(
        Pack, "step", lambda self: (seen.append((self.knobs["rate"].item(), self.knobs["radius"].item())), step(self))
    )
    trained([config])
    assert [rate for rate, _ in seen] == pytest.approx([0.01] * 2 + [0.002] * 6)
    assert [radius for _, radius in seen] == pytest.approx([0.1] * 2 + [0.4] * 6)


def test_label_noise_is_added_to_the_labels_of_its_own_lanes():
    noisy = replace(SMALL, algorithm="label_noise", label_noise_std=0.5, seed=1)
    pack = Pack([noisy, replace(noisy, algorithm="sgd", label_noise_std=0.3, seed=2)], CPU)
    pack.draw_block(0)
    off = []
    for _ in range(BLOCK_STEPS):
        _, labels = pack.batch()
        off.append((labels.abs() - 1)[:, 0])
        pack.offset.add_(1)
    off = torch.stack(off, 1)
    assert (off[1] == 0).all() and float(off[0].square().mean() ** 0.5) == pytest.approx(0.5, rel=0.2)


def test_a_solved_problem_has_no_loss_and_a_nan_has_no_accuracy():
    pack = Pack([SMALL, SMALL], CPU)
    pack.weights["outer"][1] = nan
    metrics = measure(pack, full=False)
    assert metrics[1]["select/accuracy"] != metrics[1]["select/accuracy"] and isfinite(metrics[0]["trace"])
    assert set(fit(pack)) >= {"train/loss", "train/interpolation_error"}


@pytest.mark.parametrize(
    "values, words",
    [
        (dict(algorithm="gd", rho=0.2), "rho does nothing under algorithm=gd"),
        (dict(algorithm="gd", batch_size=4), "batch_size does nothing"),
        (dict(label_smoothing=0.1), "label_smoothing does nothing under loss=mse"),
        (dict(loss="logistic", algorithm="label_noise"), "labels -1 and \\+1"),
        (dict(phase_parts=(1.0, 1.0)), "2 phases under one_sam need 1 later_learning_rates and 1 later_rhos"),
        (
            dict(budget_steps=10, phase_parts=(1.0, 100.0), later_learning_rates=(1.0,), later_rhos=(1.0,)),
            "needs a step",
        ),
        (dict(learning_rate=0.0), "learning_rate must be above 0"),
        (dict(dimension=1), "dimension must be at least 2"),
        (dict(architecture="sim_tn"), "no architecture"),
    ],
)
def test_a_config_refuses_what_it_cannot_honour(values, words):
    with pytest.raises(ValueError, match=words):
        Config(**values)


def test_a_family_leaves_out_what_its_algorithm_does_not_read():
    searched = dict(rho=0.2, label_noise_std=0.7, weight_decay=0.01, budget_steps=1)
    (gd,) = family({**searched, "algorithm": "gd"}, [50])
    (sam,) = family({**searched, "algorithm": "one_sam"}, [50])
    assert (gd.rho, gd.label_noise_std, gd.weight_decay) == (0.1, 0.3, 0.01)
    assert (sam.rho, sam.label_noise_std, sam.budget_steps) == (0.2, 0.3, 50)


# figure: (architecture, rates, radii, samples a step, weight decay, epochs of the phases)
TABLE_2 = {
    "1a": ("no_bias", [0.01], [0], 100, 0.05, [1e5]),
    "1b": ("no_bias", [0.01], [0.05], 1, 0, [1e5]),
    "2a": ("sim_bn", [0.005, 0.003], [0.1, 1], 1, 0, [1e5, 1e5]),
    "4a": ("bias", [0.01], [0], 100, 0.05, [1e5]),
    "4b": ("bias", [0.01, 0.01], [0.05, 0.1], 1, 0, [2e5, 4e5]),
    "5a": ("softplus", [0.001], [0], 1, 0.05, [1e5]),
    "5b": ("softplus", [0.0005, 0.001, 0.005], [0.05, 0.1, 1], 1, 0, [1e5, 1e5, 5e3]),
    "6a": ("sim_ln", [0.1], [0.1], 1, 0, [1e5]),
    "6b": ("sim_ln_projected", [0.01] * 3, [0.1, 0.5, 1], 1, 0, [5e2] * 3),
    "7a": ("no_bias", [0.01], [0.2], 1, 0, [1e5]),
    "7b": ("bias", [0.01], [0.2], 1, 0, [1e5]),
    "8a": ("no_bias", [0.1], [0], 10, 0.01, [1e5]),
    "8b": ("no_bias", [0.1], [0.2], 1, 0, [1e5]),
    "9a": ("bias", [0.01], [0], 1, 0.05, [1e5]),
    "9b": ("bias", [0.1], [0.2], 1, 0, [1e5]),
    "10a": ("sim_bn", [0.1], [0.2], 1, 0, [4e4]),
    "10b": ("sim_ln", [1, 1], [0.5, 1], 1, 0, [1e3, 1e5]),
    "11a": ("three_layer", [0.01], [0], 1, 0.05, [1e5]),
    "11b": ("three_layer", [0.01], [0.05], 1, 0, [1e5]),
}


SPACE = load("flatness")


def only_config(scale, preset):
    resolved, types = resolve(SPACE, scale, preset), field_types(Config)
    space = parse(resolved.axes, fields=types, conditions=STUDY.conditions, cells=resolved.cells)
    study = {name: as_field(value, types[name], name) for name, value in resolved.study_in(space.pinned).items()}
    values = {**space.pinned, **study}
    (config,) = STUDY.configs(values, [values["budget_steps"]])
    return config


@pytest.mark.parametrize("figure", TABLE_2)
def test_the_presets_of_the_papers_figures_are_its_table(figure):
    architecture, rates, radii, batch, decay, epochs = TABLE_2[figure]
    config = only_config("paper", f"figure_{figure}")
    assert (config.architecture, list(config.rates), list(config.radii)) == (architecture, rates, radii)
    assert (config.samples_a_step, config.weight_decay, config.width) == (batch, decay, 500)
    starts = [sum(epochs[:phase]) * 100 // batch for phase in range(len(epochs) + 1)]
    assert [*config.phase_starts, config.budget_steps] == starts
    assert (config.samples, config.dimension) == (100, 10 if figure[0] == "7" else 30)
    assert (config.loss == "logistic") == (figure[:-1] in ("8", "9", "10"))
    assert config.first_layer_scale == (0.01 if figure in ("6a", "10b") else 1)
    for scale in ("tiny", "laptop", "gpu"):
        assert (
            only_config(scale, f"figure_{figure}").measure_every < only_config(scale, f"figure_{figure}").budget_steps
        )


def test_probes_take_the_same_steps_but_few_of_them():
    for config in (STUDY.tiny, only_config("laptop", "figure_10b"), only_config("laptop", "figure_5b")):
        short = flatness.probe(config)
        assert short.budget_steps <= BLOCK_STEPS and len(short.phase_starts) == len(config.phase_starts)
        kept = ("budget_steps", "select_samples", "report_samples", "interpolated_below")
        assert replace(short, **{name: getattr(config, name) for name in kept}) == config


def test_1_sam_flattens_what_sgd_leaves_sharp():
    """The paper's effect at a tenth of its size: both interpolate, and 1-SAM comes near the least trace there is."""
    base = replace(
        SMALL, dimension=10, samples=40, width=40, budget_steps=8000, measure_every=4000, learning_rate=0.02, rho=0.2
    )
    sam = [replace(base, seed=seed) for seed in range(3)]
    sgd = [replace(config, algorithm="sgd", rho=0.1) for config in sam]
    found = [stage.rows[-1].metrics for stage in trained([*sam, *sgd])]
    for mine, theirs in zip(found[:3], found[3:], strict=True):
        assert mine["trace_over_floor"] < 1.3 < 2 < theirs["trace_over_floor"]
