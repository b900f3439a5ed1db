"""Sweeps on Ray of which a process is killed, against the same sweep unbroken in one process; one random time each.

`make fault-test` does the same ten times each and prints a table. FAULT_SEED=NUMBER repeats what a failure names.
"""

from __future__ import annotations

import os
from random import Random

import pytest

from tests.faults import mlflow_down, soak
from tests.faults.clusters import raylets
from tests.faults.kills import rehearse

pytestmark = pytest.mark.timeout(600)  # a busy machine takes minutes to start two raylets


@pytest.fixture(scope="module")
def cluster():
    with raylets(cpus=1) as running:
        yield running


@pytest.fixture
def seed():
    """Another time in each run of the tests; what it was is in the failure's own words."""
    return int(os.environ.get("FAULT_SEED", Random().randrange(2**32)))


def test_a_tune_actor_killed(cluster, tmp_path, seed):
    cost = rehearse(cluster, ("actor",), tmp_path, seed)
    assert cost.good, cost


def test_a_driver_killed_and_the_same_command_again(cluster, tmp_path, seed):
    cost = rehearse(cluster, ("driver",), tmp_path, seed, kind="adaptive")
    assert cost.good, cost


def test_a_worker_of_a_group_killed_and_then_its_controller(cluster, tmp_path, seed):
    cost = rehearse(cluster, ("worker", "controller"), tmp_path, seed, kind="short", step_seconds=0.05)
    assert cost.killed == ["worker", "controller"] and cost.good, cost


def test_a_hundred_trials_in_a_row_leave_nothing_behind(tmp_path):
    """Failing, diverging, dying, lost on rungs, told to stop; memory: a slope over the last two thirds."""
    found = soak.soak_alone(tmp_path)
    assert found.jobs >= 100 and found.stops == 1, found
    assert {"complete", "diverged", "failed"} <= set(found.statuses), found
    assert found.good and found.megabytes_per_100 < 30, found


def test_a_raylet_killed(cluster, tmp_path, seed):
    """It has one CPU, so one job was on it, which loses what it trained since its last checkpoint; even where it
    outlives the raylet by seconds, since it may not commit then and ends."""
    cost = rehearse(cluster, ("raylet",), tmp_path, seed, kind="halving", checkpoint_every=12)
    assert cost.good, cost
    assert cost.steps_lost <= 12, cost


def test_mlflow_killed_in_the_middle_and_synced_to_a_new_server(tmp_path, seed):
    found = mlflow_down.rehearse(tmp_path, seed)
    assert found.good, found
    assert found.said.count("The records are whole and the sweep goes on without it") == 1, found
