"""`python -m sweeps.store export|branch TRIAL ...`: write a trial's model to a folder, or decay its trunk anew."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from search_spaces import field_types, parse
from search_spaces.files import ResolvedSpace, Seeds
from sweeps.engine.launch import Question, launch
from sweeps.engine.spec import Search, Spec
from sweeps.engine.states import export, find_trial
from sweeps.engine.words import Refused, Words


def branch(results: Path, trial: str, at: int, decay: int, shape: str) -> Spec:
    """A trial's trunk, left at a step and decayed, as a sweep of one trial.

    Raises ValueError for a step outside the trunk, sweeps.engine.states.NoSuchTrial for an unknown trial.
    """
    study, config, row = find_trial(results, trial)
    if study.branch is None:
        raise ValueError(f"{study.name} has no trunk to branch from; it is not a study of schedules")
    values = asdict(study.branch(config, at, decay, shape))
    budget, seed = values.pop(study.budget), values.pop("seed")
    axes = {study.budget: budget}
    return Spec(
        name="branch",
        study=study,
        scale=row["scale"],
        preset=row["trial"],
        command=f"python -m sweeps.store branch {trial} --at {at} --decay {decay} --shape {shape}",
        axes=axes,
        space=parse(axes, fields=field_types(study.config), conditions=study.conditions),
        resolved=ResolvedSpace(axes, values, Seeds(1, 0), {}, ()),
        budgets=(budget,),
        tuning_seeds=(seed,),
        fresh_seeds=(),
        search=Search(),
        compare=(),
        results=results,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sweeps.store", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    exporting = commands.add_parser("export", help="write a trial's model: safetensors, config and tokenizer")
    exporting.add_argument("trial", help="the start of its id, or its name")
    exporting.add_argument("out", type=Path, help="a new folder")
    branching = commands.add_parser("branch", help="leave a trial's stable trunk at a step and decay")
    branching.add_argument("trial", help="the start of its id, or its name")
    branching.add_argument("--at", type=int, required=True, help="step at which the decay begins")
    branching.add_argument("--decay", type=int, required=True, help="steps of the decay")
    branching.add_argument("--shape", default="linear", help="a decay shape, or package.module:function")
    for command in (exporting, branching):
        command.add_argument("--results", type=Path, default=Path(Words().results).expanduser())
    given = parser.parse_args(arguments)
    try:
        if given.command == "export":
            for file in export(given.results, given.trial, given.out):
                print(file)
            return 0
        spec = branch(given.results, given.trial, given.at, given.decay, given.shape)
        words = Words(scale=spec.scale, executor="local", slots=1, results=str(given.results))
        found = launch(Question("branch", spec.study, about=""), spec, words, Console())
    except (ValueError, OSError, RuntimeError, Refused) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    assert found is not None
    for row in found.trials.to_pylist():
        losses = ", ".join(f"{name} {row[name]:.4f}" for name in (spec.study.select.name, spec.study.report.name))
        print(
            f"{row['trial']}  {row['name']}  {losses}"
            if row["status"] == "complete"
            else f"{row['status']}: {row['error']}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
