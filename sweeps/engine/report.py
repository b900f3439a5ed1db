"""What a sweep shows at its end: the frontier table, verdicts on its claims, and figures."""

import json
from collections.abc import Callable, Iterable, Sequence

from matplotlib.figure import Figure
from rich.console import Console
from rich.text import Text

from analysis import plots, tables
from analysis.claims import Claim, Decision, decide, decisions_table
from analysis.curves import trunk
from analysis.figures import by_groups, draw_all
from analysis.frontier import frontier
from analysis.reading import Reading
from analysis.records import Records, RecordsError
from analysis.schedule import schedule_of
from analysis.schedule_plot import plot_schedule
from sweeps.engine import landscape
from sweeps.engine.spec import Spec
from trainables.study import StagedStudy


def show_schedules(claims: Iterable[Claim]) -> Callable[[Records, Spec, Console], None]:
    """The report of a study of schedules: frontier, trunk, best values, hill and river, interpolation, claims."""

    def show(records: Records, spec: Spec, console: Console) -> None:
        folder = spec.folder / "figures"
        by = [*spec.space.cell_axes, *spec.compare] or ["method"]
        points = frontier(records, by=by)
        console.print("\n" + points.table("text", notes=False), highlight=False, soft_wrap=True, markup=False)
        draw_all(records, folder, by_groups(by))
        try:
            plots.save(_interpolation(records, spec), folder / "interpolation")
        except (RecordsError, ValueError) as error:
            console.print(Text(f"no lines between checkpoints: {error}"), soft_wrap=True)
        (spec.folder / "frontier.md").write_text(points.table("markdown") + "\n")
        show_claims(decide(list(claims), records), spec, console)
        console.print(f"pictures and tables: {folder}, {spec.folder}", highlight=False, soft_wrap=True)

    return show


def show_reading(reading: Reading) -> Callable[[Records, Spec, Console], None]:
    """The report of any other study: its summary, its figures, its claims."""

    def show(records: Records, spec: Spec, console: Console) -> None:
        folder = spec.folder / "figures"
        try:
            table = reading.summary(records)
            console.print("\n" + tables.of_frame(table, "text"), highlight=False, soft_wrap=True, markup=False)
            (spec.folder / "summary.md").write_text(tables.of_frame(table, "markdown") + "\n")
        except RecordsError as error:
            console.print(Text(f"no summary: {error}"), soft_wrap=True)
        for line in draw_all(records, folder, reading.figures):
            if "not drawn" in line:
                console.print(Text(line), soft_wrap=True)
        show_claims(decide(reading.claims, records, reading.statistics), spec, console)
        console.print(f"pictures and tables: {folder}, {spec.folder}", highlight=False, soft_wrap=True)

    return show


def show_claims(decisions: Sequence[Decision], spec: Spec, console: Console) -> None:
    """Write the decisions beside the tables, and say in one line what became of which claim."""
    (spec.folder / "claims.json").write_text(json.dumps([_decision(d) for d in decisions], indent=1))
    (spec.folder / "claims.md").write_text(decisions_table(decisions, "markdown") + "\n")
    verdicts: dict[str, list[str]] = {}
    for decision in decisions:
        verdicts.setdefault(decision.verdict, []).append(decision.claim.id)
    words = "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in verdicts.items())
    console.print(f"\nclaims {words}\n  python -m analysis claims {spec.folder}", highlight=False, soft_wrap=True)


def show_schedule(records: Records, spec: Spec, console: Console) -> None:
    """Draw when which slot ran what, and say in one line how close that came to the least possible time."""
    try:
        schedule = schedule_of(records)
    except RecordsError as error:
        console.print(Text(f"no picture of the schedule: {error}"), soft_wrap=True)
        return
    plots.save(plot_schedule(schedule), spec.folder / "figures" / "schedule")
    console.print(Text(schedule.in_words()), soft_wrap=True)


def _interpolation(records: Records, spec: Spec) -> Figure:
    """Lines between the checkpoints of the best trunk of the first tuning seed, whose states are kept."""
    mine = records.where(method="wsd", phase="tune", seed=spec.tuning_seeds[0])
    ids = {branch.trial for branch in trunk(mine).branches}
    rows = sorted((row for row in mine.trials.to_pylist() if row["trial"] in ids), key=lambda row: row["budget_steps"])
    configs = {row["key"]: json.loads(row["config"]) for row in rows}
    assert isinstance(spec.study, StagedStudy)
    table = landscape.lines(spec.study, list(configs.values()), spec.results)
    table.to_csv(spec.folder / "interpolation.csv", index=False)
    return plots.plot_interpolation(table)


def _decision(decision: Decision) -> dict[str, object]:
    ends = decision.interval
    return {
        "claim": decision.claim.id,
        "hash": decision.claim.hash,
        "verdict": decision.verdict,
        "p_value": decision.p_value,
        "estimate": decision.estimate,
        "interval": None if ends is None else [ends.low, ends.high],
        "roots": decision.roots,
        "scale": decision.scale,
        "regime": dict(decision.regime),
        "looks": decision.looks,
        "declared_before": decision.declared,
        "why": decision.why,
    }
