"""fork: a run that is forked at a step and goes on, against a straight run of the same config.

After the fork the same objects first train another future and then load the state, once from memory and once from a
file into new objects. Weights, optimizer state and all measurements are compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.benchmarks.settings import Measured, Settings, fresh_folder
from trainables import wsd
from trainables.common.process import reset_process
from trainables.common.timeline import Placed, segment
from trainables.study import Branch, LocalRun, Row, Run, Stage, StagedStudy, Tensors, alone, state_key
from trainables.walk import walk

LAPTOP = wsd.Config(budget_steps=60, warmup_steps=10, decay_fraction=0.4, measure_every=10, select_tokens=1024)


@dataclass(frozen=True)
class Ending:
    """Where a run arrives: its tensors (weights, optimizer state, running loss) and all measurements on the way."""

    tensors: Tensors
    rows: list[Row]

    def equals(self, other: "Ending") -> bool:
        """Bit for bit."""
        same = self.tensors.keys() == other.tensors.keys() and self.rows == other.rows
        return same and all(torch.equal(value, other.tensors[name]) for name, value in self.tensors.items())

    def weight_difference(self, other: "Ending") -> float:
        """The largest absolute difference between two weights."""
        weights = [name for name in self.tensors if name.startswith("model.")]
        return max(float((self.tensors[name] - other.tensors[name]).abs().max()) for name in weights)


def straight(study: StagedStudy, config: Any, run: Run | None = None, root: Any = None) -> Ending:
    """From step 0 to the end in one stage."""
    root, branch = alone(study, config, root, keep=True)
    stage = walked(study, root, [branch], run)[branch.key]
    return Ending(kept(stage), stage.rows)


def forked(
    study: StagedStudy, config: Any, cut: int, run: Run | None = None, root: Any = None, file: Path | None = None
) -> Ending:
    """Cut after `cut` steps, train one step of another future, load the fork, go on; through `file` where given."""
    root, whole = alone(study, config, root, keep=True)
    tail = replace(whole, start=cut, points=tuple(point for point in whole.points if point.step > cut))
    aside = Branch("aside", cut, cut + 1, (Placed(segment(1, lr=0.1), cut),), ())
    head = Branch(
        state_key(study.root_key(root), whole.placed, cut),
        *(0, cut, whole.placed),
        points=tuple(point for point in whole.points if point.step <= cut),
        keep=True,
        children=(tail, aside) if file is None else (aside,),
    )
    stages = walked(study, root, [head], run)
    if file is not None:
        save_file({name: value.contiguous() for name, value in kept(stages[head.key]).items()}, file)
        stages |= walked(study, root, [tail], run, load_file(file))
    return Ending(kept(stages[tail.key]), stages[head.key].rows + stages[tail.key].rows)


def walked(
    study: StagedStudy, root: Any, branches: Sequence[Branch], run: Run | None, tensors: Tensors | None = None
) -> dict[str, Stage]:
    """Finished stages by key. Raises RuntimeError when one did not complete."""
    stages: dict[str, Stage] = {}
    walk(study, root, branches, run or LocalRun(), commit=lambda s: stages.update({s.branch.key: s}), tensors=tensors)
    for stage in stages.values():
        if stage.status != "complete":
            raise RuntimeError(f"a stage {stage.branch.start}..{stage.branch.stop} {stage.status}: {stage.error}")
    return stages


def kept(stage: Stage) -> Tensors:
    assert stage.tensors is not None
    return stage.tensors


def fork(settings: Settings) -> Measured:
    """scale=tiny at every step under three methods, and the laptop's sizes at some steps."""
    reset_process(threads=1)
    tiny = [replace(wsd.STUDY.tiny, method=method) for method in ("wsd", "wsd_s", "cosine")]
    every = [(config, cut) for config in tiny for cut in range(1, config.budget_steps)]
    some = [(LAPTOP, cut) for cut in (1, 9, 10, 25, 36, 47, 59)]
    cases = every[::13] if settings.quick else every + some
    straights: dict[Any, Ending] = {}
    unequal = []
    with fresh_folder() as folder:
        for config, cut in cases:
            if config not in straights:
                straights[config] = straight(wsd.STUDY, config)
            for file in (None, folder / "state.safetensors"):
                if not forked(wsd.STUDY, config, cut, file=file).equals(straights[config]):
                    unequal.append(
                        {"method": config.method, "width": config.width, "cut": cut, "file": file is not None}
                    )
    return Measured({"forks": 2 * len(cases), "unequal_forks": len(unequal)}, {"unequal": unequal})
