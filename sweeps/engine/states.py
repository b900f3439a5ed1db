"""The model itself: states of a trial from the store, trained again from the nearest kept one where they are gone."""

import json
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from search_spaces.fields import field_types, fit
from sweeps.engine.items import items
from sweeps.engine.plan import Trial, make_trial, plan
from sweeps.engine.store import Store
from sweeps.engine.worker import Job, Place, run_job
from trainables.registry import STUDIES
from trainables.study import LocalRun, StagedStudy, Tensors


class NoSuchTrial(ValueError):
    """No trial, or more than one, has this id in the results folder."""


def find_trial(results: Path, trial: str) -> tuple[StagedStudy, Any, dict[str, Any]]:
    """The study, config and row of a trial by the start of its id, or by its name. Raises NoSuchTrial."""
    files = sorted((results / "sweeps").glob("*/trials.parquet"))
    columns = ["study", "trial", "key", "name", "config", "scale", "sweep"]
    rows = [row for file in files for row in pq.read_table(file, columns=columns).to_pylist()]
    found = {row["config"]: row for row in rows if row["trial"].startswith(trial) or row["name"] == trial}
    if not found:
        raise NoSuchTrial(
            f"no trial {trial!r} among {len(rows)} in {results}; python -m analysis export lists ids and names"
        )
    if len(found) > 1:
        names = ", ".join(f"{row['trial']} ({row['name']})" for row in list(found.values())[:5])
        raise NoSuchTrial(f"{trial!r} names {len(found)} trials; give more of the id: {names}")
    row = next(iter(found.values()))
    study = STUDIES[row["study"]]
    if not isinstance(study, StagedStudy):
        raise NoSuchTrial(f"{study.name} trains lanes in packs and keeps no states; only its rows are there")
    return study, config_from(study, json.loads(row["config"])), row


def config_from(study: StagedStudy, values: dict[str, Any]) -> Any:
    """A config from its JSON, with the types of its fields. Raises ValueError for what does not fit."""
    types = field_types(study.config)
    return study.config(**{name: fit(value, types[name], name) for name, value in values.items()})


def states(results: Path, trial: Trial, keys: Sequence[str], device: str = "cpu") -> dict[str, Tensors]:
    """The states of a trial at these state keys (of its measured points), by key.

    What was not kept is trained again from the nearest kept state and then kept. Raises RuntimeError when that fails.
    """
    store = Store(results)
    store.prepare()
    wanted = frozenset(keys)
    index = store.scan()
    tree = plan([trial], index, wanted=wanted).trees[0]
    place = Place(str(results.resolve()), str(results.resolve() / "stop"))
    for number, item in enumerate(items(tree, inf)):
        start = None if item.start_key is None else index.states[trial.root_key][item.start_key]
        job = Job(f"states-{number}", ((item, start),))
        run_job(job, place, LocalRun(device=torch.device(device)), lambda told: None)
    kept = store.scan().states.get(trial.root_key, {})
    lost = [key for key in keys if key not in kept]
    if lost:
        raise RuntimeError(f"the state at {lost[0][:12]} could not be trained again; see its stage in {store.stages}")
    return {key: store.load_state(kept[key]) for key in keys}


def export(results: Path, trial_id: str, out: Path) -> list[Path]:
    """Write a trial's final model: model.safetensors, config.json, and the study's own files (such as tokenizer.json).

    Raises NoSuchTrial, and FileExistsError when `out` holds files.
    """
    study, config, row = find_trial(results, trial_id)
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty; name a new folder")
    trial = make_trial(study, config)
    tensors = states(results, trial, [trial.key])[trial.key]
    out.mkdir(parents=True, exist_ok=True)
    model = {
        name.removeprefix("model."): value.contiguous() for name, value in tensors.items() if name.startswith("model.")
    }
    save_file(model, out / "model.safetensors", metadata={"study": study.name, "trial": row["trial"]})
    (out / "model.safetensors").chmod(0o644)
    about = {"study": study.name, "trial": row["trial"], "name": row["name"], "config": json.loads(row["config"])}
    files = {"config.json": json.dumps(about, indent=1).encode(), **(study.files(trial.root) if study.files else {})}
    for name, content in files.items():
        (out / name).write_bytes(content)
    return sorted(out.iterdir())
