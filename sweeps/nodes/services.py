"""What a sweep talks to beside its nodes: MLflow, the dashboards, and whether a cluster asks for its token.

Each check tries the thing itself from this machine and gives its findings.
"""

import json
import os
import socket
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import closing
from http.client import HTTPException
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import ParseResult, urlparse

from sweeps.engine.tracking import without_password
from sweeps.nodes.health import Finding

SECONDS = 5.0
ASK = "import sys; from ray._raylet import GcsClient; GcsClient(sys.argv[1]).internal_kv_keys(b'', timeout=5)"


def mlflow(uri: str | None, results: Path) -> list[Finding]:
    """Does the MLflow of a sweep answer: a server, or the database in the results folder?"""
    if uri == "none":
        return [Finding("ok", "MLflow", "tracking=none: no mirror")]
    if uri and uri.startswith(("http://", "https://")):
        return [mlflow_server(uri)]
    file = Path(uri.removeprefix("sqlite:///")) if uri and uri.startswith("sqlite:///") else results / "mlflow.db"
    if uri and not uri.startswith("sqlite:///"):
        return [Finding("warning", "MLflow", f"{without_password(uri)} is no server and no SQLite file; not checked")]
    return [mlflow_database(file)]


def mlflow_server(uri: str) -> Finding:
    """The server at an address, asked for its health."""
    try:
        shown, place = without_password(uri), address(uri)
    except ValueError:  # its text may show a part of the password
        text = "tracking=... is no address of the form http://HOST:PORT, with a port of 1 .. 65535"
        return Finding("fault", "MLflow", text, "give it in that form, or tracking=none")
    bare = place._replace(netloc=place.netloc.rpartition("@")[2]).geturl()  # its health needs no password
    way = "start it: python -m sweeps.mlflow_server RESULTS; or tracking=none, to sync later"
    try:
        with urllib.request.urlopen(f"{bare.rstrip('/')}/health", timeout=SECONDS) as answer:
            said = answer.read(100).decode(errors="replace").strip()
    except urllib.error.HTTPError as error:
        return Finding("fault", "MLflow", f"{shown} answers with status {error.code}", way)
    except OSError as error:
        return Finding("fault", "MLflow", f"{shown} does not answer: {getattr(error, 'reason', error)}", way)
    except HTTPException as error:
        return Finding("fault", "MLflow", f"{shown} answers, but is no MLflow server: {type(error).__name__}", way)
    if said != "OK":
        return Finding("fault", "MLflow", f"{shown} answers, but is no MLflow server: {said[:40]!r}", way)
    return Finding("ok", "MLflow", f"the server at {shown} answers")


def mlflow_database(file: Path) -> Finding:
    """A SQLite file that MLflow can read, or the place where it will make one."""
    if not file.exists():
        return Finding("ok", "MLflow", f"no server; a sweep makes its database {file}")
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=SECONDS)) as database:
            database.execute("select version_num from alembic_version").fetchone()
    except sqlite3.Error as error:
        way = "move it away; it is made again by: python -m sweeps.tracking sync RESULTS"
        return Finding("fault", "MLflow", f"the database {file} cannot be read: {error}", way)
    return Finding("ok", "MLflow", f"no server; the database {file} can be read")


def loopback_only(what: str, url: str | None, addresses: list[str]) -> list[Finding]:
    """Does a service of this machine answer at other addresses than the loopback? Whoever reaches it may use it.

    Of one on another machine nothing can be said from here.
    """
    try:
        place = address(url if url is None or "://" in url else f"http://{url}")
    except ValueError:  # said where it was asked whether it answers
        return []
    if not place.port or not place.hostname or not is_own(place.hostname, addresses):
        return []
    open_at = [one for one in addresses if not ip_address(one).is_loopback and reaches(one, place.port)]
    if open_at:
        way = "start it on 127.0.0.1 and reach it through ssh (ray dashboard CLUSTER.yaml, or ssh -L)"
        return [Finding("fault", what, f"answers at {open_at[0]}:{place.port}, not on the loopback alone", way)]
    if not reaches(place.hostname, place.port):
        return []
    return [Finding("ok", what, f"port {place.port} answers on the loopback alone")]


def address(url: str | None) -> ParseResult:
    """The parts of an address. Raises ValueError, also where its port is none."""
    parts = urlparse(url or "")
    if parts.port == 0:
        raise ValueError("a port lies in 1 .. 65535, got 0")
    return parts


def is_own(host: str, addresses: Sequence[str]) -> bool:
    """Does a name or address lead to this machine, whose own `addresses` are?

    >>> is_own("localhost", []), is_own("127.0.0.1", []), is_own("10.0.0.1", ["10.0.0.1"]), is_own("10.0.0.2", [])
    (True, True, True, False)
    """
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
    except OSError:  # nobody knows the name
        return False
    places = [ip_address(str(one)) for one in found]
    return any(place.is_loopback or place.is_unspecified or str(place) in addresses for place in places)


def reaches(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=SECONDS):
            return True
    except OSError:
        return False


def token(gcs_address: str) -> list[Finding]:
    """Does the cluster answer one who comes without a token? Asked by a process that has none."""
    bare = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH_")}
    asked = [sys.executable, "-c", ASK, gcs_address]
    try:
        done = subprocess.run(
            asked, env={**bare, "RAY_AUTH_MODE": "disabled"}, capture_output=True, text=True, timeout=60
        )
    except subprocess.TimeoutExpired:
        return [Finding("warning", "token", "whether the cluster asks for a token is not known: no answer in 60 s")]
    if done.returncode == 0:
        way = "ray get-auth-token --generate, then RAY_AUTH_MODE=token before every `ray start` (as in cluster.yaml)"
        return [Finding("fault", "token", f"{gcs_address} answers without one: whoever reaches it runs code", way)]
    if "unauthenticated" in done.stderr.lower() or "token" in done.stderr.lower():
        return [Finding("ok", "token", f"{gcs_address} refuses whoever comes without one")]
    reason = (done.stderr.strip().splitlines() or ["no reason"])[-1]
    return [Finding("warning", "token", f"whether the cluster asks for a token is not known: {json.dumps(reason)}")]
