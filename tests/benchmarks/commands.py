"""shares, startup: our own commands as a user types them, on a fresh results folder and with no corpus built yet."""

import sys
from statistics import median

from tests.benchmarks import arms
from tests.benchmarks.meter import as_json, metered, run_arm
from tests.benchmarks.settings import Measured, Settings, fresh_folder


def shares(settings: Settings) -> Measured:
    """`python sweeps/wsd_budget.py scale=laptop`, once: where the time of all slots went, and the command's wall time.

    The mirror in MLflow, the verdicts and the figures are part of it, as they are of `make sweep`.
    """
    scale = "tiny" if settings.quick else "laptop"
    with fresh_folder() as folder:
        arguments = [f"scale={scale}", "cluster=local", f"results={folder / 'results'}"]
        spent, answer = run_arm(
            arms.__name__, "laptop", {"arguments": arguments}, {"ANABRANCH_DATA": str(folder / "data")}
        )
    parts = {name.replace("-", ""): value for name, value in answer["shares"].items()}
    values = {
        **parts,
        "training_and_evaluation": parts["training"] + parts["evaluation"],
        "training_slot_seconds": answer["slot_seconds"]["training"],
        "training_wall_seconds": answer["slot_seconds"]["training"] / answer["slots"],
        "wall_seconds": spent.wall_seconds,
        "cpu_seconds": spent.cpu_seconds,
    }
    return Measured(values, {"arguments": arguments[:2], **answer})


def startup(settings: Settings) -> Measured:
    """`python sweeps/wsd_budget.py scale=tiny`: the wall time of the whole command."""
    spent = []
    for _ in range(settings.rounds):
        with fresh_folder() as folder:
            command = [
                sys.executable,
                "sweeps/wsd_budget.py",
                "scale=tiny",
                "cluster=local",
                f"results={folder / 'results'}",
            ]
            spent.append(metered(command, environment={"ANABRANCH_DATA": str(folder / "data")})[0])
    values = {
        "wall_seconds": median(one.wall_seconds for one in spent),
        "cpu_seconds": median(one.cpu_seconds for one in spent),
    }
    return Measured(
        values, {"command": "python sweeps/wsd_budget.py scale=tiny", "runs": [as_json(one) for one in spent]}
    )
