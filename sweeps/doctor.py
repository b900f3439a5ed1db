"""`python -m sweeps.doctor [sweeps/NAME.py] [WORD=VALUE ...]`: is all in order for a sweep, before it costs anything?

The words are those of the sweep (default: sweeps/wsd_budget.py): scale=gpu, results=FOLDER, cluster=ADDRESS and so on.
It looks at the Ray that the sweep would join, or at this machine where the sweep would start its own; it starts none.
One line per finding; the exit status is 1 where one is a fault, 2 for words that mean nothing.
"""

import os
import socket
import sys
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sweeps import cluster
from sweeps.engine.dry_run import dry_run
from sweeps.engine.estimate import Estimate, estimate
from sweeps.engine.launch import Question, question_of
from sweeps.engine.progress import duration
from sweeps.engine.spec import Spec
from sweeps.engine.words import Refused, Words, make_spec
from sweeps.nodes import health, services
from sweeps.nodes.gathering import CannotWrite, NodeFacts, gather, here
from sweeps.nodes.ground import own_rooms
from sweeps.nodes.health import Finding, Level
from sweeps.nodes.joining import Offer, dashboard, jobs_at_once, join, offered, slots_of
from sweeps.nodes.nearby import CLUSTER_FILES, ray_address

ANSWER_SECONDS = 120.0
STYLES = {"ok": "green", "warning": "yellow", "fault": "bold red"}


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if {"--help", "-h", "help"} & set(given):
        print(__doc__)
        return 0
    try:
        own_rooms()
        script = given.pop(0) if given and "=" not in given[0] else Path(__file__).with_name("wsd_budget.py")
        findings = list(check_up(question_of(script), given))
    except Refused as error:
        Console(stderr=True).print(Text.assemble(("refused: ", "bold red"), str(error)), soft_wrap=True)
        return 2
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table(findings))
    console.print(health.tally(findings))
    return 1 if health.worst(findings) == "fault" else 0


def table(findings: Sequence[Finding]) -> Table:
    drawn = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for finding in findings:
        text = Text(finding.found)
        if finding.way_out:
            text.append(f" -> {finding.way_out}", "italic")
        drawn.add_row(Text(finding.level, STYLES[finding.level]), Text(finding.about, "bold"), text)
    return drawn


def check_up(question: Question, arguments: Sequence[str]) -> Iterator[Finding]:
    """All findings about one sweep's command. Raises Refused for words that mean nothing."""
    spec, words = make_spec(question.study, arguments, question.name)
    notes: list[str] = []
    address = ray_address(words, notes.append)
    yield from cluster_files("warning" if address is None else "fault")
    for note in notes:
        yield Finding("warning", "Ray", note)
    slots = slots_of(words.resources)
    if address is None:
        yield Finding("ok", "Ray", "none runs here that a sweep would join; it would start its own on this machine")
        offer = this_machine()
    else:
        try:
            join(address, slots)
        except Refused as error:
            yield Finding("fault", "Ray", str(error))
            return
        offer = offered()
        yield Finding("ok", "Ray", f"a sweep joins the one at {address}")
    try:
        driver, nodes = facts(spec.results, offer, joined=address is not None, gpus=words.resources.gpus > 0)
    except CannotWrite as error:  # the driver itself, so no node can be tried
        yield Finding("fault", "storage", error.args[0], error.way_out)
        return
    if address is not None:
        yield from health.answering(nodes)
        yield from health.missing(offer)
    yield from health.software(nodes, driver, gpus=words.resources.gpus > 0)
    yield from health.storage(nodes, str(spec.results.resolve()))
    yield from health.resources(slots, offer, words.scale)
    yield from health.seen_gpus(nodes)
    expected = yield from planned(spec, words, words.slots or jobs_at_once(slots, offer))
    yield from health.disks(nodes, 0.0 if expected is None else expected.disk_bytes)
    yield from services.mlflow(words.tracking, spec.results)
    yield from services.loopback_only("MLflow", words.tracking, own_addresses())
    if address is not None:
        yield from services.loopback_only("dashboard", dashboard(), own_addresses())
        yield from services.token(address)
        yield from health.clocks(nodes)


def cluster_files(level: Level) -> Iterator[Finding]:
    """The cluster files of this folder against Ray's schema and ours; a sweep on this machine alone needs none."""
    for name in CLUSTER_FILES:
        if Path(name).is_file():
            try:
                cluster.validate(Path(name))
                yield Finding("ok", "file", f"{name} is in order")
            except ValueError as error:
                yield Finding(level, "file", str(error))


def this_machine() -> Offer:
    """This machine as the one node of the Ray that a sweep would start here."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Offer(({"CPU": float(cores), "GPU": float(torch.cuda.device_count())},))


def facts(results: Path, offer: Offer, *, joined: bool, gpus: bool) -> tuple[NodeFacts, list[NodeFacts]]:
    """What is known of the driver, which runs here, and of all nodes. Raises CannotWrite where the driver cannot."""
    if not joined:
        driver = here(results, resources=offer.nodes[0])
        return driver, [driver]
    return here(results), gather(results, seconds=ANSWER_SECONDS, whole_files=True, count_gpus=gpus)


def planned(spec: Spec, words: Words, slots: int) -> Generator[Finding, None, Estimate | None]:
    """What the sweep would take, as far as its first plan says."""
    try:
        driver, _ = dry_run(spec, words, slots)
    except Refused as error:
        yield Finding("fault", "plan", str(error))
        return None
    expected = estimate(driver.current_plan(), driver.index, slots, "gpu" if words.resources.gpus else "cpu")
    basis = "as measured in this store" if expected.measured else "at an assumed speed"
    gpus = slots * words.resources.gpus * words.resources.workers
    hours = f", {expected.seconds / 3600 * gpus:,.1f} GPU-hours" if gpus else ""
    text = f"{expected.steps_to_run:,} steps to run, about {duration(expected.seconds)}{hours} {basis}"
    yield Finding("ok", "plan", f"{text}; {expected.disk_bytes / 1e6:,.1f} MB of disk")
    for damaged in driver.index.damaged:
        yield Finding("warning", "store", f"damaged, counts as never written: {damaged}")
    return expected


def own_addresses() -> list[str]:
    """The IPv4 addresses of this machine."""
    found = [one for each in psutil.net_if_addrs().values() for one in each]
    return sorted({one.address for one in found if one.family == socket.AF_INET})


if __name__ == "__main__":
    sys.exit(main())
