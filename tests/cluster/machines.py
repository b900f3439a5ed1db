"""Three pretend machines on this one: a laptop, and two nodes `head` and `worker` that it reaches by ssh alone.

Each has processes, network, host name, home and /tmp of its own, in Linux namespaces that end with the command that
made them. The nodes cannot see this checkout's code, so that what runs there is what came by ssh.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("trainables", "search_spaces", "sweeps", "analysis")
PLACE = Path("/run/anabranch")  # in a /run of its own
HOME = PLACE / "home"  # of each node: its own folder, under one path
KEY = PLACE / "laptop" / ".ssh" / "id_ed25519"
ADDRESSES = {"head": "10.99.0.1", "worker": "10.99.0.2"}
LAPTOP = "10.99.0.254"
TOOLS = {
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "mount": "mount",
    "ip": "iproute2",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "rsync": "rsync",
}
OWN = ("--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "--mount-proc", "--kill-child")
SHARED_NAMESPACES = ("pid", "net", "mnt")  # what a Ray outside could be reached by
HIDDEN = ("/run", "/tmp", "/dev/shm")  # where Ray, ssh and a tester's other programs leave their files
SSHD = """\
Port 22
ListenAddress {address}
HostKey {place}/host_key
AuthorizedKeysFile {place}/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
PidFile none
"""


def tool(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def missing() -> list[str]:
    """What this machine lacks to make the pretend machines, each with the way out; empty when they can be made."""
    if sys.platform != "linux":
        return [f"namespaces are Linux's, this is {sys.platform}"]
    lacking = [f"`{name}` (apt install {package})" for name, package in TOOLS.items() if tool(name) is None]
    if os.geteuid() != 0:
        lacking.append("root (run it as root, or in a privileged container)")
    if lacking:
        return lacking
    words = (
        "mount -t tmpfs none /run",
        "ip netns add try0",
        "ip link add try1 type bridge",
        "ip link add try2 type veth",
    )
    tried = subprocess.run([str(tool("unshare")), *OWN, "sh", "-ec", "\n".join(words)], capture_output=True, text=True)
    if tried.returncode:
        return [f"the right to make namespaces, mounts, bridges and veth pairs: {tried.stderr.strip()}"]
    return []


def namespaces() -> dict[str, str]:
    return {name: os.readlink(f"/proc/self/ns/{name}") for name in SHARED_NAMESPACES}


def enter(words: Sequence[str]) -> int:
    """Run `python -m WORDS` in namespaces of its own, with the ids of ours as last words; its exit status."""
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_", "ANABRANCH_"))
    }
    clean.pop("PYTHONPATH", None)
    clean |= {"PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}:/usr/sbin:/sbin", "HOME": str(PLACE / "laptop")}
    outside = [f"{name}={value}" for name, value in namespaces().items()]
    dying = [str(tool("setpriv")), "--pdeathsig", "KILL"]  # who ends this process ends all of it
    command = [*dying, str(tool("unshare")), *OWN, sys.executable, "-m", *words, *outside]
    return subprocess.run(command, cwd=ROOT, env=clean, check=False).returncode


def refuse_to_touch_others(outside: Sequence[str]) -> None:
    """Raise SystemExit unless this process is alone: namespaces other than `outside`'s, and no Ray in sight."""
    before = dict(word.split("=", 1) for word in outside)
    shared = [name for name, value in namespaces().items() if before.get(name, value) == value]
    rays = [line for line in processes().values() if "raylet" in line or "gcs_server" in line]
    if shared or rays or os.getpid() != 1:
        raise SystemExit(
            f"refused: this is no place of its own (shared namespaces: {', '.join(shared) or 'none'}; process "
            f"{os.getpid()}; Rays in sight: {len(rays)}), and `ray stop` and `ray down` would end Rays of others; "
            "start it by: make cluster-test"
        )


def processes() -> dict[int, str]:
    """Command lines of all living processes in sight, those of the nodes among them; without zombies."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:  # ended just now
            continue
        if line:  # a zombie has none
            found[int(folder.name)] = line
    return found


def run(*words: object) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))}: {done.stderr.strip()}")


def own_folders(hidden: Sequence[str] = HIDDEN) -> None:
    """Empty folders over `hidden`; of what lies there, this checkout and its Python stay in sight."""
    for cover in map(Path, hidden):
        wanted = {Path(path).resolve() for path in (ROOT, sys.prefix, sys.base_prefix)}
        kept = {path: os.open(path, os.O_PATH) for path in sorted(wanted) if path.is_relative_to(cover)}
        run("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", cover)
        for path, handle in kept.items():
            path.mkdir(parents=True, exist_ok=True)
            run("mount", "--no-canonicalize", "--bind", f"/proc/{os.getpid()}/fd/{handle}", path)
            os.close(handle)


def prepare_laptop() -> None:
    """Private folders, keys, and a network with nothing in it but the laptop."""
    run("mount", "--make-rprivate", "/")
    own_folders()
    for folder in (KEY.parent, Path("/run/sshd")):
        folder.mkdir(parents=True)
    for key in (KEY, PLACE / "host_key"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
    shutil.copy(KEY.with_suffix(".pub"), PLACE / "authorized_keys")
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", "lan", "type", "bridge")
    run("ip", "addr", "add", f"{LAPTOP}/24", "dev", "lan")
    run("ip", "link", "set", "lan", "up")


@contextmanager
def nodes() -> Iterator[None]:
    """The head and the worker, up and reachable by ssh."""
    started = []
    for name, address in ADDRESSES.items():
        (PLACE / name / "anabranch" / "results").mkdir(parents=True)
        (PLACE / name / "venv").mkdir()
        run("ip", "netns", "add", name)
        run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "link", "set", name, "master", "lan", "up")
        inside = ("ip", "-n", name)
        run(*inside, "link", "set", "lo", "up")
        run(*inside, "addr", "add", f"{address}/24", "dev", "eth0")
        run(*inside, "link", "set", "eth0", "up")
        run(*inside, "route", "add", "default", "via", LAPTOP)  # leads nowhere; Ray finds its own address by it
        unshared = [word for word in OWN if word != "--net"]
        words = [
            "ip",
            "netns",
            "exec",
            name,
            "unshare",
            *unshared,
            sys.executable,
            "-m",
            "tests.cluster.machines",
            name,
        ]
        started.append(subprocess.Popen(words, cwd=ROOT))
    try:
        for address in ADDRESSES.values():
            run(
                "ssh",
                "-i",
                KEY,
                "-o",
                "StrictHostKeyChecking=no",
                "-o",
                "ConnectionAttempts=60",
                f"root@{address}",
                ":",
            )
        yield
    finally:
        for node in started:
            node.kill()
            node.wait()


def become_node(name: str) -> None:
    """Turn this process, in namespaces of its own, into a node with an sshd."""
    run("hostname", name)
    own_folders(("/tmp", "/dev/shm"))
    HOME.mkdir(exist_ok=True)
    run("mount", "--bind", PLACE / name, HOME)
    run("mount", "--bind", sys.prefix, HOME / "venv")
    if name != "head":  # stands for the NFS mount: a namespace has no NFS server
        run("mount", "--bind", PLACE / "head" / "anabranch" / "results", HOME / "anabranch" / "results")
    for room in ROOMS:
        run("mount", "-t", "tmpfs", "tmpfs", ROOT / room)
    users = [line.split(":") for line in Path("/etc/passwd").read_text().splitlines()]
    others = [":".join(user) for user in users if user[0] != "root"]
    hosts = [f"127.0.0.1 localhost\n{ADDRESSES[name]} {name}"]
    for file, lines in {
        "passwd": [f"root:x:0:0:root:{HOME}:/bin/bash", *others],
        "shadow": ["root:*:::::::", "sshd:!:::::::"],
        "hosts": hosts,
        "resolv.conf": ["nameserver 127.0.0.1"],  # refuses at once, where another would be waited for
    }.items():
        if Path("/etc", file).exists():
            own = Path(tempfile.mkdtemp()) / file
            own.write_text("\n".join([*lines, ""]))
            run("mount", "--bind", own, Path("/etc", file))
    config = Path(tempfile.mkdtemp()) / "sshd_config"
    config.write_text(SSHD.format(address=ADDRESSES[name], place=PLACE))
    # bash is the first process of the node and, unlike Python, clears away the children that others leave
    os.execv("/bin/bash", ["bash", "-c", f"{tool('sshd')} -D -e -f {config} 2>{PLACE}/sshd_{name}.log & wait"])


if __name__ == "__main__":
    become_node(sys.argv[1])
