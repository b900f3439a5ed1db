"""`python -m sweeps.mlflow_server [RESULTS]`: MLflow's server of a results folder, as long as Ray runs on this machine.

It listens on the loopback alone and keeps its database and artifacts in the folder. Said again it finds itself there
and starts nothing; a server that dies is started again; half a minute after Ray has ended it goes too. One whose keeper
was killed is ended when it is said again.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from sweeps.nodes.nearby import ray_folder

RAY = ray_folder() / "ray_current_cluster"  # there while a Ray runs on this machine: `ray stop` takes it away
STARTING_SECONDS = 300.0
ENDING_SECONDS = 30.0
GRACE_SECONDS = 30.0  # `ray up` on a running cluster stops Ray and starts it again


def serve(results: Path, port: int, ray: Path, grace: float) -> int:
    """Start a keeper of the server in the background and wait until it answers; the exit status."""
    results.mkdir(parents=True, exist_ok=True)
    log = results / "mlflow_server.log"
    keeper = None
    deadline = time.monotonic() + 2 * ENDING_SECONDS
    while held(keeping(results)) and not held(serving(results)) and time.monotonic() < deadline:
        time.sleep(0.2)  # it found that Ray had gone and ends its server
    if not held(keeping(results)):
        end_orphans(results, port)
        if answers(port):
            print(f"port {port} is taken by another server; end it, or choose one by --port", file=sys.stderr)
            return 1
        words = ["-m", "sweeps.mlflow_server", str(results), "--port", str(port), "--ray", str(ray), "--keep"]
        with log.open("ab") as written:
            keeper = subprocess.Popen(
                [sys.executable, *words, "--grace", str(grace)],
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=written,
                start_new_session=True,  # the shell that started it may close
            )
    deadline = time.monotonic() + STARTING_SECONDS
    while not answers(port):
        if (keeper and keeper.poll() is not None) or time.monotonic() > deadline:
            print(f"MLflow's server does not answer; {log} says why:\n{log.read_text()[-2000:]}", file=sys.stderr)
            return 1
        time.sleep(0.5)
    print(f"MLflow serves {results} at http://127.0.0.1:{port}, on this machine's loopback alone")
    return 0


def keeping(results: Path) -> FileLock:
    """Held by the one keeper of a folder, as long as it lives."""
    return FileLock(results / "mlflow_server.lock", timeout=0)


def serving(results: Path) -> FileLock:
    """Held by the same keeper until it has decided to go, and so to end its server."""
    return FileLock(results / "mlflow_server_serving.lock", timeout=0)


def held(lock: FileLock) -> bool:
    """Does another process hold this lock?"""
    try:
        with lock:
            return False
    except Timeout:
        return True


def end_orphans(results: Path, port: int) -> None:
    """End the server of a keeper that was killed; it is known by its whole command line."""
    ours = command(results, port)[1:]  # without the Python that runs it
    orphans = [one for one in psutil.process_iter(["cmdline"]) if (one.info["cmdline"] or [])[1:] == ours]
    family = [each for one in orphans for each in (one, *one.children(recursive=True))]
    for one in orphans:
        with suppress(ProcessLookupError):
            os.killpg(one.pid, signal.SIGTERM)
    psutil.wait_procs(family, ENDING_SECONDS)


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def keep(results: Path, port: int, ray: Path, grace: float) -> int:
    """Hold the folder's lock and keep a server alive until Ray has been gone for `grace` seconds."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))  # the server goes with its keeper
    with keeping(results).acquire(timeout=10):  # whoever asks whether it is held holds it for a moment
        server = start(results, port)
        try:
            with serving(results).acquire(timeout=10):
                seen = time.monotonic()
                while ray.exists() or time.monotonic() - seen < grace:
                    seen = time.monotonic() if ray.exists() else seen
                    if server.poll() is not None:
                        print(f"MLflow's server ended with status {server.returncode}; another one starts", flush=True)
                        time.sleep(5)
                        server = start(results, port)
                    time.sleep(1)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            server.wait(ENDING_SECONDS)
    return 0


def command(results: Path, port: int) -> list[str]:
    """What runs the server of a folder; nobody else says just this."""
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{results / 'mlflow.db'}"),
        *("--artifacts-destination", (results / "mlartifacts").as_uri()),
    ]


def start(results: Path, port: int) -> subprocess.Popen[bytes]:
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # its jobs of language models are processes of their own
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"} | quiet
    return subprocess.Popen(command(results, port), env=environment, cwd=results, start_new_session=True)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sweeps.mlflow_server", description=__doc__)
    here = os.environ.get("ANABRANCH_RESULTS", "results")
    parser.add_argument("results", type=Path, nargs="?", default=Path(here), help=f"the results folder ({here})")
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--ray", type=Path, default=RAY, help="the file that says that Ray runs here")
    parser.add_argument("--grace", type=float, default=GRACE_SECONDS, help="seconds that Ray may be gone")
    parser.add_argument("--keep", action="store_true", help="stay, and keep the server alive")
    given = parser.parse_args(words)
    results = given.results.expanduser().resolve()
    if given.keep:
        return keep(results, given.port, given.ray, given.grace)
    return serve(results, given.port, given.ray, given.grace)


if __name__ == "__main__":
    sys.exit(main())
