"""Predictivity of neurons: how well "above its mean activation" tells the class (arXiv:2211.07349).

    baseline: mean activation over the training texts, per prompt position and neuron
    accuracy(p, f) = share of texts, classes weighing the same, with (activation > baseline) = (class is the one asked)
    predictivity(f) = max over p of max(accuracy, 1 - accuracy)

Everything is counted while the texts pass once; activations are never kept. Several classes make one question each,
"this class or another"; with two classes there is one.
"""

# N texts, B texts of a batch, T positions, C classes, G groups of texts, S questions,
# L layers, P prompt positions, F neurons

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from trainables.common.skills.encoders import Source
from trainables.common.skills.texts import Task, Texts
from trainables.common.skills.tuned import Tuned

BATCH = 32
TINY_SPREAD = 1e-12


class Activity(NamedTuple):
    """Over the training texts: mean per prompt position [L, P, F]; mean and standard deviation over all positions,
    prompt and text, [L, F]."""

    baseline: torch.Tensor
    mean: torch.Tensor
    spread: torch.Tensor


@torch.no_grad()
def activity_of(tuned: Tuned, texts: Texts, layers: int, neurons: int) -> Activity:
    """One pass of `texts` under the prompt. Sums are in float64."""
    device, leading = tuned.prompt.device, tuned.positions
    baseline = torch.zeros(layers, leading, neurons, dtype=torch.float64, device=device)
    sums = torch.zeros(2, layers, neurons, dtype=torch.float64, device=device)
    tokens = 0
    for batch in texts.batches(BATCH, device):
        there = torch.cat([batch.present.new_ones(len(batch.present), leading), batch.present], 1).flatten()

        def add(layer: int, values: torch.Tensor, there: torch.Tensor = there) -> None:
            baseline[layer] += values[:, :leading].sum(0)
            flat = values.flatten(0, 1)
            sums[0, layer] += there @ flat
            sums[1, layer] += there @ flat.square()

        with tuned.watching(add):
            tuned(batch)
        tokens += int(there.sum())
    mean = sums[0] / tokens
    spread = (sums[1] / tokens - mean**2).clamp_min(TINY_SPREAD).sqrt()
    return Activity((baseline / len(texts)).float(), mean.float(), spread.float())


@torch.no_grad()
def active_counts(tuned: Tuned, texts: Texts, groups_GN: torch.Tensor, baseline: torch.Tensor) -> torch.Tensor:
    """In how many texts of each group a neuron is above its baseline, [G, L, P, F]. One pass.

    A text may be in several groups: its class, its class in one half of the texts, a class it was dealt at random.
    """
    counts = torch.zeros(len(groups_GN), *baseline.shape, device=baseline.device)
    leading = tuned.positions
    for batch in texts.batches(BATCH, baseline.device):
        members = groups_GN[:, batch.rows]

        def add(layer: int, values: torch.Tensor, members: torch.Tensor = members) -> None:
            above = (values[:, :leading] > baseline[layer]).flatten(1).float()
            counts[:, layer] += (members @ above).view(-1, *baseline.shape[1:])

        with tuned.watching(add):
            tuned(batch)
    return counts


def accuracies(counts_C: torch.Tensor, sizes_C: torch.Tensor) -> torch.Tensor:
    """Balanced accuracy of "above the baseline" by question, [S, ...], from counts [C, ...] of classes of sizes [C].

    >>> accuracies(torch.tensor([[1.0], [3.0]]), torch.tensor([4.0, 4.0])).tolist()
    [[0.75]]
    """
    rates = counts_C / sizes_C.view(-1, *[1] * (counts_C.ndim - 1))
    asked = range(1, 2) if len(rates) == 2 else range(len(rates))
    others = [torch.cat([rates[:one], rates[one + 1 :]]).mean(0) for one in asked]
    return torch.stack([(rates[one] + 1 - rest) / 2 for one, rest in zip(asked, others, strict=True)])


@dataclass(frozen=True)
class Probe:
    """Balanced accuracies [S, L, P, F] on texts, and the best position of each neuron."""

    accuracy: torch.Tensor

    @property
    def by_position(self) -> torch.Tensor:
        return torch.maximum(self.accuracy, 1 - self.accuracy)

    @property
    def predictivity(self) -> torch.Tensor:
        """[S, L, F]."""
        return self.by_position.amax(2)

    def elsewhere(self, other: "Probe") -> torch.Tensor:
        """Accuracy on other texts, [S, L, F], at the position and with the sign that are best on these."""
        best = self.by_position.argmax(2, keepdim=True)
        here, there = self.accuracy.gather(2, best), other.accuracy.gather(2, best)
        return torch.where(here >= 0.5, there, 1 - there).squeeze(2)


def class_groups(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """[C, N]: 1 where a text is of the class."""
    return torch.nn.functional.one_hot(labels, classes).T.float()


def probe_of(counts: torch.Tensor, groups: torch.Tensor) -> Probe:
    """From counts [C, L, P, F] of the groups [C, N] of one labelling."""
    return Probe(accuracies(counts, groups.sum(1)))


def order_of(predictivity_SLF: torch.Tensor) -> torch.Tensor:
    """Places of the neurons within their layer, [L, F], 0 the best; of several questions a neuron's best place counts.

    >>> order_of(torch.tensor([[[0.6, 0.9, 0.7]]])).tolist()
    [[2, 0, 1]]
    """
    places = predictivity_SLF.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    return places.amin(0).argsort(dim=-1, stable=True).argsort(-1)


def top_mean(values_SLF: torch.Tensor, ranked_by_SLF: torch.Tensor, count: int) -> torch.Tensor:
    """Mean value of the `count` neurons of all layers that are ranked highest, over questions."""
    best = ranked_by_SLF.flatten(1).topk(count, 1).indices
    return values_SLF.flatten(1).gather(1, best).mean()


TOLD = (
    "top_dev", "top_test", "null_top_dev", "null_top_test", "best_dev", "best_test", "null_best_dev", "median_dev",
)  # fmt: skip
"""Numbers that the probe finds, in this order; see `findings`."""


def no_findings(layers: int, neurons: int, classes: int, device: torch.device) -> dict[str, torch.Tensor]:
    """The tensors of `findings`, empty."""
    questions = 1 if classes == 2 else classes
    whole = dict.fromkeys(("predictivity", "first_half", "second_half", "test_accuracy"), (questions, layers, neurons))
    shapes = {**whole, "mean": (layers, neurons), "spread": (layers, neurons), "layers": (3, layers)}
    return {name: torch.zeros(shape, device=device) for name, shape in {**shapes, "told": (len(TOLD),)}.items()}


def findings(
    tuned: Tuned, task: Task, source: Source, seed: int, *, top: int, shuffles: int
) -> dict[str, torch.Tensor]:
    """One pass over the training texts, one over dev, one over test (the report split).

    predictivity: on dev, [S, L, F]; first_half, second_half: on alternate texts of dev; test_accuracy: on test, at the
    position and with the sign that dev chose. mean, spread: of activations. layers: mean of the best `top` neurons of
    each layer on dev, the same neurons on test, and under shuffled labels on test, [3, L].
    told: of the `top` best neurons of all layers, and of the best: mean on dev and on test; null_*: the same when the
    labels of both are shuffled, so that the maximum over positions and neurons is the same; the median on dev.
    """
    layers, neurons, classes = source.layers, source.neurons, len(task.classes)
    activity = activity_of(tuned, task.train, layers, neurons)
    generator = torch.Generator().manual_seed(seed)

    def labelled(texts: Texts) -> list[torch.Tensor]:
        """Groups of the true labels, then of each shuffle."""
        dealt = [texts.labels[torch.randperm(len(texts), generator=generator)] for _ in range(shuffles)]
        return [class_groups(labels, classes) for labels in (texts.labels, *dealt)]

    device = activity.mean.device
    dev, test = ([groups.to(device) for groups in labelled(texts)] for texts in (task.dev, task.report))
    # Alternate texts of each class, so that both halves hold as many of each.
    first = ((dev[0].cumsum(1) * dev[0]).sum(0) % 2)[None]
    halves = [dev[0] * first, dev[0] * (1 - first)]
    on_dev = active_counts(tuned, task.dev, torch.cat([*dev, *halves]), activity.baseline).split(classes)
    on_test = active_counts(tuned, task.report, torch.cat(test), activity.baseline).split(classes)
    probes = [probe_of(*pair) for pair in zip(on_dev, [*dev, *halves], strict=True)]
    true, nulls, (one, other) = probes[0], probes[1 : 1 + shuffles], probes[1 + shuffles :]
    tests = [probe_of(*pair) for pair in zip(on_test, test, strict=True)]
    test_accuracy = true.elsewhere(tests[0])
    null_pairs = [(null.predictivity, null.elsewhere(test)) for null, test in zip(nulls, tests[1:], strict=True)]

    def over_nulls(at: int, count: int) -> torch.Tensor:
        return torch.stack([top_mean(pair[at], pair[0], count) for pair in null_pairs]).mean()

    ranked = true.predictivity
    told = [
        *(top_mean(ranked, ranked, top), top_mean(test_accuracy, ranked, top), over_nulls(0, top), over_nulls(1, top)),
        *(top_mean(ranked, ranked, 1), top_mean(test_accuracy, ranked, 1), over_nulls(0, 1), ranked.median()),
    ]
    by_layer = [
        [top_mean(values[:, at : at + 1], order[:, at : at + 1], top) for at in range(layers)]
        for values, order in ((ranked, ranked), (test_accuracy, ranked))
    ]
    by_layer.append(
        [torch.stack([top_mean(b[:, at : at + 1], a[:, at : at + 1], top) for a, b in null_pairs]).mean()
         for at in range(layers)]
    )  # fmt: skip
    return {
        "predictivity": ranked, "first_half": one.predictivity, "second_half": other.predictivity,
        "test_accuracy": test_accuracy, "mean": activity.mean, "spread": activity.spread,
        "layers": torch.tensor(by_layer), "told": torch.stack(told),
    }  # fmt: skip


def told(found: Mapping[str, torch.Tensor], lists: bool) -> dict[str, float | list[float]]:
    """What was found as metrics; with `lists` also the predictivity of every neuron. Nothing before the probe."""
    if not bool(found["told"].any()):
        return {}
    metrics: dict[str, float | list[float]] = dict(zip(TOLD, found["told"].tolist(), strict=True))
    for name, values in zip(("layers_dev", "layers_test", "layers_null"), found["layers"].tolist(), strict=True):
        metrics[name] = values
    if lists:
        for name in ("predictivity", "first_half", "second_half", "test_accuracy"):
            metrics[name] = found[name].flatten().tolist()
    return metrics
