"""packing: fused studies in packs of the chosen size against the same lanes one at a time, in CPU seconds.

For each study 16 lanes of its smallest config, with a budget long enough that the measurement is taken. What the
measurement itself costs is paid once per shape and left out here.
"""

import time
from dataclasses import replace
from statistics import median
from typing import Any

from sweeps.engine.packs import pack_size
from tests.benchmarks.settings import Measured, Settings, fresh_folder
from trainables.common.process import reset_process
from trainables.pack import train_pack
from trainables.registry import STUDIES
from trainables.study import FusedStudy, LocalRun

LANES, LONGER = 16, 8  # lanes of each study, and how many times the smallest config's steps they train


def packing(settings: Settings) -> Measured:
    reset_process(threads=1)
    lanes, longer, rounds = (2, 1, 1) if settings.quick else (LANES, LONGER, max(3, settings.rounds))
    sizes: dict[str, int] = {}
    seconds: dict[str, dict[str, list[float]]] = {}
    for study in (study for study in STUDIES.values() if isinstance(study, FusedStudy)):
        base = replace(study.tiny, **{study.budget: longer * getattr(study.tiny, study.budget)})
        configs = [replace(base, seed=seed) for seed in range(lanes)]
        with fresh_folder() as folder:
            sizes[study.name] = pack_size(folder, study, configs, LocalRun())
        arms = {"chosen": sizes[study.name], "alone": 1}
        seconds[study.name] = {name: [] for name in arms}
        for number in range(rounds):
            for name in sorted(arms, reverse=number % 2 == 1):  # who goes first changes from round to round
                seconds[study.name][name].append(spent(study, configs, arms[name]))
    ratios = {name: median(arms["chosen"]) / median(arms["alone"]) for name, arms in seconds.items()}
    values = {"worst_ratio": max(ratios.values()), **{f"{name}_ratio": ratio for name, ratio in ratios.items()}}
    return Measured(values, {"lanes": lanes, "sizes": sizes, "seconds": seconds})


def spent(study: FusedStudy, configs: list[Any], size: int) -> float:
    """CPU seconds of these lanes in packs of `size`."""
    began = time.process_time()
    for first in range(0, len(configs), size):
        train_pack(study, configs[first : first + size], LocalRun(), commit=lambda lane, stage: None)
    return time.process_time() - began
