"""Loss and accuracy of a tuned encoder on texts, as it is and under a perturbation of each arm's neurons."""

# L layers, F neurons

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from trainables.common.skills.perturbing import (
    KINDS,
    RANDOM_KINDS,
    Kind,
    disturbance,
    matched_neurons,
    random_neurons,
    top_neurons,
)
from trainables.common.skills.predictivity import BATCH, order_of
from trainables.common.skills.texts import Texts
from trainables.common.skills.tuned import OnActivations, Tuned

ARMS = ("skill", "random", "matched")


@dataclass(frozen=True)
class Arms:
    """A perturbation of the most predictive neurons, of random others and of matched others, `draws` times each."""

    kind: Kind
    size: float
    draws: int
    skill_LF: torch.Tensor
    mean_LF: torch.Tensor
    spread_LF: torch.Tensor
    output_norm_LF: torch.Tensor
    seed: int

    @classmethod
    def of(
        cls, perturbation: Sequence[float], found: Mapping[str, torch.Tensor], output_norm_LF: torch.Tensor, seed: int
    ) -> "Arms | None":
        """From kind (below 0: none), size, fraction, draws and first layer, and what the probe found."""
        kind, size, fraction, draws, first_layer = perturbation
        if kind < 0:
            return None
        skill = top_neurons(order_of(found["predictivity"]), fraction, int(first_layer))
        return cls(KINDS[int(kind)], size, int(draws), skill, found["mean"], found["spread"], output_norm_LF, seed)

    def chosen(self, arm: str, draw: int) -> torch.Tensor:
        """Neurons of an arm, [L, F]; of the controls new ones in each draw."""
        generator = torch.Generator().manual_seed((self.seed * 1009 + draw) * 2 + 1)
        skill = self.skill_LF.cpu()
        if arm == "random":
            skill = random_neurons(skill, generator)
        elif arm == "matched":
            skill = matched_neurons(skill, self.spread_LF.cpu(), self.output_norm_LF.cpu(), generator)
        return skill.to(self.skill_LF.device)

    def push(self, arm: str) -> float:
        """How far noise of one spread on these neurons moves a layer's output: the root of sum (spread * norm)^2 over

        the neurons of a layer, mean over layers that have some, and over draws. One outlier can be most of it.
        """
        squares = (self.spread_LF * self.output_norm_LF).square()
        draws = range(1 if arm == "skill" else self.draws)
        layers = torch.stack([(squares * self.chosen(arm, draw)).sum(1).sqrt() for draw in draws])
        return float(layers[:, self.skill_LF.any(1)].mean())

    def disturbances(self, arm: str) -> Iterator[OnActivations]:
        """One per draw. Arms share noise; the skill neurons are the same in all draws: one is enough without noise."""
        for draw in range(self.draws if arm != "skill" or self.kind in RANDOM_KINDS else 1):
            seed = (self.seed * 1009 + draw) * 2
            yield disturbance(self.kind, self.chosen(arm, draw), self.size, self.mean_LF, self.spread_LF, seed)


def evaluate(tuned: Tuned, texts: Texts, arms: Arms | None = None, names: Sequence[str] = ARMS) -> dict[str, float]:
    """loss and accuracy; with arms, also drop_* of accuracy, rise_* of loss and push_* for each, means over draws, and

    separation, separation_matched: drop of the skill neurons less that of random and of matched ones.
    """
    loss, accuracy = judged(tuned, texts, None)
    found = {"loss": loss, "accuracy": accuracy}
    if arms is None:
        return found
    for arm in names:
        results = torch.tensor([judged(tuned, texts, disturb) for disturb in arms.disturbances(arm)])
        mean_loss, mean_accuracy = results.mean(0).tolist()
        found |= {
            f"drop_{arm}": accuracy - mean_accuracy,
            f"rise_{arm}": mean_loss - loss,
            f"push_{arm}": arms.push(arm),
        }
    for control, name in (("random", "separation"), ("matched", "separation_matched")):
        if control in names:
            found[name] = found["drop_skill"] - found[f"drop_{control}"]
    return found


@torch.no_grad()
def judged(tuned: Tuned, texts: Texts, disturb: OnActivations | None) -> tuple[float, float]:
    """Mean cross-entropy in nats, and share of texts right."""
    loss, right = 0.0, 0
    with tuned.watching(disturb):
        for batch in texts.batches(BATCH, tuned.prompt.device):
            scores = tuned(batch)
            loss += float(F.cross_entropy(scores, batch.labels, reduction="sum"))
            right += int((scores.argmax(1) == batch.labels).sum())
    return loss / len(texts), right / len(texts)
