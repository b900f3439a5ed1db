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
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlparse

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
    shown, place = without_password(uri), urlparse(uri)
    bare = place._replace(netloc=place.netloc.rpartition("@")[2]).geturl()  # its health needs no password
    way = "start it: mlflow server --backend-store-uri sqlite:///RESULTS/mlflow.db; or tracking=none, to sync later"
    try:
        with urllib.request.urlopen(f"{bare.rstrip('/')}/health", timeout=SECONDS) as answer:
            said = answer.read(100).decode(errors="replace").strip()
    except urllib.error.HTTPError as error:
        return Finding("fault", "MLflow", f"{shown} answers with status {error.code}", way)
    except OSError as error:
        return Finding("fault", "MLflow", f"{shown} does not answer: {getattr(error, 'reason', error)}", way)
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
    """Does a service answer at other addresses of this machine than the loopback? Whoever reaches it may use it."""
    place = urlparse(url if url is None or "://" in url else f"http://{url}")
    if not place.port or not place.hostname:
        return []
    open_at = [one for one in addresses if not ip_address(one).is_loopback and reaches(one, place.port)]
    if open_at:
        way = "start it on 127.0.0.1 and reach it through ssh (ray dashboard CLUSTER.yaml, or ssh -L)"
        return [Finding("fault", what, f"answers at {open_at[0]}:{place.port}, not on the loopback alone", way)]
    return [Finding("ok", what, f"port {place.port} answers on the loopback alone")]


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
