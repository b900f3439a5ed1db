"""Every command and snippet of the README and the pages in docs/ runs, at scale=tiny; links and figures exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import analysis
from trainables.registry import STUDIES

ROOT = Path(__file__).parent.parent
DOCUMENTS = {file: file.read_text() for file in (ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")))}
BLOCKS = [
    block
    for text in DOCUMENTS.values()
    for block in re.findall(r"^```(bash|python|yaml)(?: (\S+))?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
]
NOT_HERE = {
    "make": "what CI itself calls, or a benchmark of minutes",
    "mlflow": "a server; test_tracking.py holds what it shows",
    "git": "the clone that this is",
    "ray": "a cluster",
    "python -m trainables.common.data": "downloads, or minutes; test_corpora.py holds it",
}


def commands() -> list[str]:
    lines = [line for kind, _, text in BLOCKS if kind == "bash" for line in text.splitlines()]
    return [re.split(r"\s# ", line)[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def at_tiny_scale(command: str, folder: Path) -> str:
    """The same command at scale=tiny; a trial of the laptop sweep becomes one of the tiny sweep."""
    if command.startswith("python -m sweeps.store"):
        trials = (
            analysis.open(folder / "results")
            .where(study="wsd", method="wsd", budget_steps=40, status="complete")
            .trials
        )
        trial = trials["trial"][0].as_py()
        return re.sub(r'"wsd [^"]*"', trial, command).replace("--at 600 --decay 60", "--at 20 --decay 6")
    if "sweeps/" not in command or "--help" in command or "sweeps.simulate" in command:  # which trains nothing
        return command
    command = re.sub(r" (scale|executor|tracking)=\S+", "", command)
    return command + " scale=tiny executor=local tracking=none"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that stands for the clone, with the README's own files beside the sweeps."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("sweeps", "cluster.yaml", "cluster.local.yaml"):
        (folder / name).symlink_to(ROOT / name)
    for kind, name, text in BLOCKS:
        if kind == "python" and name:
            (folder / name).write_text(text)
    return folder


def run(command: str, folder: Path) -> str:
    words = command.replace("python ", f"{sys.executable} ", 1) if command.startswith("python ") else command
    done = subprocess.run(["bash", "-c", words], cwd=folder, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


HERE = [command for command in commands() if not any(command.startswith(words) for words in NOT_HERE)]
SCRIPTS = sorted({command.split()[1] for command in HERE if command.startswith("python sweeps/")})
READ = ("sweeps/wsd_budget.py", "sweeps/flatness_vs_generalization.py")  # whose results other commands read


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("script", [script for script in SCRIPTS if script not in READ])
def test_every_command_of_a_sweep_runs(clone: Path, script: str):
    for command in HERE:
        if command.split()[1] == script:
            run(at_tiny_scale(command, clone), clone)


@pytest.mark.timeout(3000)  # some 25 commands, beside which other tests run
def test_every_command_that_reads_results_runs(clone: Path):
    makers = [command for command in HERE if command.split()[1] in READ]
    readers = [command for command in HERE if not command.startswith("python sweeps/")]
    assert len(makers) >= 10 and len(readers) >= 10
    for command in [*makers, *readers]:
        run(at_tiny_scale(command, clone), clone)


@pytest.mark.parametrize("name", [name for kind, name, _ in BLOCKS if kind == "python" and name.endswith("_sweep.py")])
def test_every_script_runs_and_is_as_short_as_promised(clone: Path, name: str):
    text = (clone / name).read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    assert len(lines) < 15
    run(f"python {name}", clone)


def test_own_parts_are_as_short_as_promised():
    for kind, name, text in BLOCKS:
        if kind == "python" and name == "mine.py":
            assert len([line for line in text.splitlines() if line.strip()]) <= 10


def test_every_link_within_the_project_leads_to_a_file_and_every_picture_is_one():
    pictures = 0
    for document, text in DOCUMENTS.items():
        for picture, target in re.findall(r"(!?)\[[^\]]*\]\(([^)#]+)\)", text):
            if "://" not in target:
                assert (document.parent / target).stat().st_size > (1000 if picture else 0), (
                    f"{document.name}: {target}"
                )
                pictures += bool(picture)
    assert pictures >= 12


def test_every_study_has_a_page():
    pages = {word for text in DOCUMENTS.values() for word in re.findall(r"docs/studies/(\w+)\.md", text)}
    assert pages == {file.stem for file in DOCUMENTS if file.parent.name == "studies"}
    assert not [name for name in STUDIES if f"`{name}`" not in DOCUMENTS[ROOT / "README.md"]]
