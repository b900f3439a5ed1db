"""The logit table in lanes against a plain loop with autograd, its curvature against autograd's Hessian."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from trainables.bigram import STUDY, Config, Source, Tables, dirichlet
from trainables.common.laned_schedules import timeline
from trainables.common.streams import Streams
from trainables.common.timeline import knobs_at
from trainables.pack import train_pack
from trainables.study import LocalRun

CPU = torch.device("cpu")
SMALL = Config(
    budget_steps=30, deterministic=5, uncertain=3, batch_size=6, peak_lr=3.0, replicas=4, measure_every=10, seed=4
)


def packed(configs):
    stages = {}
    train_pack(STUDY, configs, LocalRun(), commit=lambda lane, stage: stages.update({lane: stage}))
    return [stages[lane] for lane in range(len(configs))]


def trained(configs, steps):
    tables = Tables(configs, CPU)
    for _ in range(steps):
        tables.step()
    return tables


def models_of(tables):
    return tables.table.view(tables.lanes, tables.replicas, tables.contexts, tables.contexts)


def test_a_lane_is_the_plain_loop_with_autograd():
    pack = [replace(SMALL, seed=1), SMALL, replace(SMALL, peak_lr=9.0, zipf=0.0)]
    tables = trained(pack, 30)
    drawn = Tables([SMALL], CPU)
    logits = torch.zeros(SMALL.replicas, SMALL.contexts, SMALL.contexts, requires_grad=True)
    for step in range(30):
        rows, targets = (part.view(SMALL.replicas, SMALL.batch_size) for part in drawn.draw())
        drawn.done.add_(1)
        for replica in range(SMALL.replicas):
            contexts = rows[replica] - replica * SMALL.contexts
            loss = F.cross_entropy(logits[replica, contexts], targets[replica])
            (gradient,) = torch.autograd.grad(loss, logits)
            with torch.no_grad():
                logits -= knobs_at(timeline(SMALL), step)["lr"] * gradient
    assert torch.allclose(models_of(tables)[1], logits.detach(), atol=2e-5)


def test_batches_are_drawn_from_the_source():
    config = replace(SMALL, batch_size=2000, replicas=2)
    tables = Tables([replace(config, seed=0), config], CPU)
    rows, targets = tables.draw()
    contexts = (rows.view(2, 4000)[1] % config.contexts).numpy()
    counts = np.zeros((config.contexts, config.contexts))
    np.add.at(counts, (contexts, targets.view(2, 4000)[1].numpy()), 1)
    chance = (tables.source.context_PC[1][:, None] * tables.source.next_PCV[1]).numpy()
    assert (counts[chance == 0] == 0).all()
    assert np.abs(counts - 4000 * chance).max() < 5 * np.sqrt(4000 * chance.max())
    assert (rows.view(2, 2, 2000)[1, 0] % 8 != rows.view(2, 2, 2000)[1, 1] % 8).any()  # replicas: other batches


def test_the_source_is_zipf_and_dirichlet():
    pack = [replace(SMALL, seed=seed, uncertain_mass=0.2 + 0.1 * seed, zipf=0.5 * seed) for seed in range(3)]
    source = Source(pack, CPU)
    for lane, config in enumerate(pack):
        chances = source.context_PC[lane].numpy()
        assert chances.sum() == pytest.approx(1) and chances[5:].sum() == pytest.approx(config.uncertain_mass)
        assert chances[4] / chances[0] == pytest.approx(5.0**-config.zipf)
        assert np.allclose(source.next_PCV[lane].sum(1), 1)
        entropy = [-sum(q * np.log(q) for q in row if q > 0) for row in source.next_PCV[lane].numpy()]
        assert np.allclose(source.entropy_PC[lane], entropy) and np.allclose(entropy[:5], 0)


@pytest.mark.parametrize("concentration", [0.05, 0.3, 4.0])
def test_dirichlet_samples_have_the_moments_of_their_law(concentration):
    """Coordinate of Dirichlet(a, ..., a) in K parts: mean 1/K, variance (K - 1) / (K^2 (K a + 1))."""
    parts, count = 5, 20_000
    streams = Streams([0, 1], "test")
    samples = dirichlet(streams, torch.tensor([concentration, 1.0]), count, parts)[0].numpy()
    variance = (parts - 1) / (parts**2 * (parts * concentration + 1))
    assert samples.mean(0) == pytest.approx(1 / parts, abs=5 * np.sqrt(variance / count))
    assert samples.var(0).mean() == pytest.approx(variance, rel=0.03)
    alone = dirichlet(Streams([1], "test"), torch.tensor([1.0]), 10, parts)
    assert torch.equal(alone[0], dirichlet(Streams([0, 1], "test"), torch.tensor([9.0, 1.0]), 10, parts)[1])


def test_kl_and_hessian_share_against_autograd():
    config = replace(SMALL, deterministic=3, uncertain=2, replicas=2)
    tables = trained([replace(config, seed=8), config], 12)
    light, last = tables.measure()
    chances, table = tables.source.context_PC[1], tables.source.next_PCV[1]
    for replica, got, prefix in ((0, light, ""), (1, last, "report/")):
        logits = models_of(tables)[1, replica].double()

        def loss(flat):
            return -(chances[:, None] * table * F.log_softmax(flat.view(5, 5), 1)).sum()

        curvature = torch.autograd.functional.hessian(loss, logits.flatten()).diagonal().view(5, 5).sum(1)
        share = float(curvature[3:].sum() / curvature.sum())
        kl = chances * F.kl_div(F.log_softmax(logits, 1), table, reduction="none").sum(1)
        assert float(got[f"{prefix}hessian_share_uncertain"][1]) == pytest.approx(share, rel=1e-5)
        assert float(got[f"{prefix}kl_deterministic"][1]) == pytest.approx(float(kl[:3].sum()), rel=1e-5)
        assert float(got[f"{prefix}kl_uncertain"][1]) == pytest.approx(float(kl[3:].sum()), rel=1e-5)
    wanted = light["kl_deterministic"] + light["kl_uncertain"]
    assert torch.allclose(light["select/loss"], wanted)


def test_before_any_step_the_share_is_the_mass_of_uncertain_rows():
    tables = Tables([SMALL], CPU)
    tables.done.add_(1)  # a rate is that of the step before
    light, _ = tables.measure()
    assert float(light["hessian_share_uncertain"][0]) == pytest.approx(SMALL.uncertain_mass, rel=1e-6)


def test_lanes_of_all_methods_are_themselves_alone():
    own = [{}, dict(method="cosine"), dict(method="constant"), dict(zipf=0.0, uncertain_mass=0.5, concentration=2.0)]
    pack = [replace(SMALL, seed=lane % 2, **one) for lane, one in enumerate(own)]
    for config, stage in zip(pack, packed(pack), strict=True):
        alone = packed([config])[0]
        for ours, theirs in zip(stage.rows, alone.rows, strict=True):
            assert ours.metrics == pytest.approx(theirs.metrics, rel=1e-6)


def test_a_sharp_decay_lowers_the_kl_of_uncertain_rows_and_hardly_the_other():
    config = Config(budget_steps=600, deterministic=40, uncertain=8, peak_lr=30.0, measure_every=600)
    row = packed([config])[0].rows[-1].metrics
    fall = {
        name: row[f"report/{name}_before_decay"] - row[f"report/{name}"]
        for name in ("kl_uncertain", "kl_deterministic")
    }
    assert fall["kl_uncertain"] > 5 * abs(fall["kl_deterministic"]) > 0


@pytest.mark.parametrize(
    "values, words",
    [
        (dict(uncertain=0), "uncertain must be at least 1, got 0"),
        (dict(uncertain_mass=1.0), "uncertain_mass in"),
        (dict(concentration=0.0), "concentration > 0"),
        (dict(replicas=1), "even and >= 2; got 1"),
        (dict(method="constant", min_lr_ratio=0.2), "min_lr_ratio does nothing"),
    ],
)
def test_a_config_refuses_what_it_cannot_honour(values, words):
    with pytest.raises(ValueError, match=words):
        Config(**values)
