"""Schedules of made-up ledgers against what can be read off them by hand; the picture against its bars."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from matplotlib.collections import PolyCollection

from analysis import plots
from analysis.opening import with_schema
from analysis.records import SCHEMAS, Records, RecordsError
from analysis.schedule import schedule_of
from analysis.schedule_plot import KINDS, caption, plot_schedule
from tests.analysis.test_figures import texts_inside

BEGUN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def stage(job, start, train, trials, *, session="first", node="a", from_step=0, lanes=1, **parts):
    """A ledger row that begins `start` seconds after BEGUN."""
    seconds = {f"{part}_seconds": parts.get(part, 0.0) for part in ("startup", "evaluation", "checkpoint")}
    return {
        **{"sweep": "s", "stage": f"{job}-{start}-{trials}", "trials": list(trials), "root": "r", "lanes": lanes},
        **{"from_step": from_step, "to_step": from_step + 10, "executed_steps": 10, "train_seconds": float(train)},
        **seconds,
        **{"device": "cpu", "job": job, "node": node, "session": session, "status": "complete"},
        "started_at": (BEGUN + timedelta(seconds=start)).isoformat(timespec="milliseconds"),
    }


def records_of(rows, slots=2, sessions=("first",), fresh=()):
    trials = sorted({trial for row in rows for trial in row["trials"]})
    trial_of = {"sweep": "s", "study": "toy", "status": "complete", "config": "{}", "root": "r", "seed": 0}
    phases = {trial: "confirm" if trial in fresh else "tune" for trial in trials}
    table = [{**trial_of, "trial": t, "key": t, "phase": phase, "budget_steps": 10} for t, phase in phases.items()]
    spec = {"sweep": "s", "sessions": [{"name": name, "slots": slots} for name in sessions]}
    return Records(
        with_schema(pa.Table.from_pylist(table), "trials"),
        pa.schema(SCHEMAS["measurements"].items()).empty_table(),
        with_schema(pa.Table.from_pylist(rows), "ledger"),
        sweeps=(spec,),
    )


# A trunk of 10 s with a fork after 6, a branch of 6 s on the other slot, a job of two small ones of 2 s each.
ROWS = [
    stage("job-1", 0, 5, "ab", startup=1.0),
    stage("job-1", 6, 3.5, "a", evaluation=0.5, from_step=10),
    stage("job-2", 6, 6, "b", from_step=10),
    stage("job-3", 10, 2, "c"),
    stage("job-3", 12.5, 2, "d"),
]


def test_the_numbers_are_those_read_off_by_hand():
    schedule = schedule_of(records_of(ROWS, fresh="d"))
    assert schedule.seconds == pytest.approx(14.5)
    assert schedule.critical_path == pytest.approx(12)  # a trunk of 6, then 6
    busy = 10 + 6 + 4.5  # the half second between job-3's stages is its own
    assert schedule.work_per_slot == pytest.approx(busy / 2)
    assert schedule.busy_share == pytest.approx(busy / 29)
    assert schedule.efficiency == pytest.approx(12 / 14.5)
    assert schedule.rows == ("a", "a")
    assert [(bar.job, bar.slot, bar.kind, bar.fresh) for bar in schedule.bars] == [
        ("job-1", 0, "trunk", False),
        ("job-1", 0, "branch", False),
        ("job-2", 1, "branch", False),
        ("job-3", 0, "whole", False),
        ("job-3", 0, "whole", True),
    ]
    words = schedule.in_words()
    assert "busy 71%" in words and "1.21x" in words and "critical path 12 s, work / slots 10 s" in words


def test_work_bounds_where_the_longest_way_is_short():
    schedule = schedule_of(records_of([stage(f"job-{n}", 5 * (n // 2), 5, "abcd"[n]) for n in range(4)]))
    assert schedule.critical_path == pytest.approx(5) and schedule.work_per_slot == pytest.approx(10)
    assert schedule.efficiency == pytest.approx(1) and schedule.busy_share == pytest.approx(1)


def test_a_pause_between_two_runs_of_the_command_is_left_out_and_equal_names_of_jobs_stay_apart():
    later = [stage("job-1", 1_000 + row, 5, trial, session="second") for row, trial in ((0, "e"), (5, "f"))]
    schedule = schedule_of(records_of([*ROWS, *later], sessions=("first", "second")))
    assert schedule.seconds == pytest.approx(24.5) and len(schedule.sessions) == 2
    assert schedule.critical_path == pytest.approx(12 + 5)
    assert schedule.efficiency == pytest.approx((12 + 5) / 24.5)  # 10 s on one slot of two: 5 s would do
    assert [bar.start for bar in schedule.bars[-2:]] == pytest.approx([14.5, 19.5])
    assert "2 runs of the command" in schedule.in_words()


def test_each_node_has_its_own_slots_and_unused_ones_are_rows_too():
    rows = [stage("job-1", 0, 4, "a"), stage("job-2", 0, 4, "b", node="b"), stage("job-3", 4.0, 1, "c", node="b")]
    schedule = schedule_of(records_of(rows, slots=4))
    assert schedule.rows == ("a", "b", "never used", "never used")
    assert [bar.slot for bar in schedule.bars] == [0, 1, 1]
    assert schedule.busy_share == pytest.approx(9 / 20)


def test_lanes_of_a_pack_are_one_bar_as_long_as_their_shares_together():
    rows = [stage("job-1", 0, 1.5, trial, lanes=4, startup=2.0 * (trial == "a")) for trial in "abcd"]
    (bar,) = schedule_of(records_of(rows)).bars
    assert (bar.kind, bar.lanes, bar.stop) == ("pack", 4, pytest.approx(8))


def test_stages_that_another_command_trained_are_counted_and_left_out():
    schedule = schedule_of(records_of([*ROWS, stage("job-9", 50, 9, "z", session="another")]))
    assert schedule.elsewhere == 1 and schedule.seconds == pytest.approx(14.5)


def test_what_cannot_be_drawn_says_why():
    with pytest.raises(RecordsError, match="which run of its command"):
        schedule_of(records_of([stage("job-1", 0, 1, "a", session="")]))
    two = records_of(ROWS)
    two = Records(two.trials, two.measurements, two.ledger, ({"sweep": "s"}, {"sweep": "t"}))
    with pytest.raises(RecordsError, match="one sweep's"):
        schedule_of(two)


def test_the_picture_has_every_second_of_every_bar_in_its_row_and_nothing_is_cut_off(tmp_path):
    schedule = schedule_of(records_of(ROWS, slots=3, fresh="d"))
    figure = plot_schedule(schedule)
    (axes,) = figure.axes
    drawn = {row: 0.0 for row in range(3)}
    for collection in axes.collections:
        assert isinstance(collection, PolyCollection)
        for box in [path.get_extents() for path in collection.get_paths()]:
            if collection.get_zorder() == 3:
                drawn[round(box.y0 + 0.4)] += box.width
    assert drawn == pytest.approx({0: 14.0, 1: 6.0, 2: 0.0})
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a 1", "a 2", "never used 1"]
    assert caption(schedule) == axes.get_title()
    legend = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {KINDS["trunk"][0], KINDS["branch"][0], KINDS["whole"][0], "fresh seeds"} <= legend
    texts_inside(figure)
    assert all(file.stat().st_size > 1_000 for file in plots.save(figure, tmp_path / "schedule"))


@pytest.mark.parametrize("slots", [1, 64, 256])
def test_few_and_many_slots_keep_their_labels_apart(slots):
    rows = [stage(f"job-{n}", n % 7, 3, [f"t{n}"], node=f"node-{n % 8}") for n in range(slots)]
    texts_inside(plot_schedule(schedule_of(records_of(rows, slots=slots))))
