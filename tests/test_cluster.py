"""The shipped cluster.yaml, and copies of it with one thing wrong each, against Ray's check and ours."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sweeps.cluster import main, validate

SHIPPED = Path(__file__).parent.parent / "cluster.yaml"


def test_the_shipped_file_is_in_order(capsys: pytest.CaptureFixture[str]):
    cluster = validate(SHIPPED)
    assert cluster.available_node_types["gpu"].resources["GPU"] == 1
    assert cluster.available_node_types["head"].resources == {"CPU": 0}
    assert main([str(SHIPPED)]) == 0
    assert "in order: anabranch on aws" in capsys.readouterr().out


def test_what_the_file_mounts_is_there():
    content = yaml.safe_load(SHIPPED.read_text())
    for source in content["file_mounts"].values():
        assert source == "~/.ray/auth_token" or (SHIPPED.parent / source).exists()


def gpu(content: dict[str, Any]) -> dict[str, Any]:
    return content["available_node_types"]["gpu"]


WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no name": (lambda c: c.pop("cluster_name"), "cluster_name: Field required"),
    "a negative count": (lambda c: gpu(c).update(max_workers=-1), "greater than or equal to 0"),
    "a count in words": (lambda c: c.update(max_workers="8"), "max_workers: Input should be a valid integer"),
    "swapped counts": (lambda c: gpu(c).update(min_workers=9), "min_workers <= max_workers, got 9 > 8"),
    "more at least than at most": (
        lambda c: (c.update(max_workers=3), gpu(c).update(min_workers=4)),
        "got 4 > 3",
    ),
    "no such head": (lambda c: c.update(head_node_type="haed"), "got haed"),
    "no GPU": (lambda c: gpu(c)["resources"].pop("GPU"), "GPU >= 1"),
    "no token": (lambda c: c["file_mounts"].pop("~/.ray/auth_token"), "auth_token"),
    "an open head": (
        lambda c: c.update(head_start_ray_commands=["ray start --head --dashboard-host=127.0.0.1"]),
        "RAY_AUTH_MODE=token",
    ),
    "an open dashboard": (
        lambda c: c.update(head_start_ray_commands=["RAY_AUTH_MODE=token ray start --head --dashboard-host=0.0.0.0"]),
        "--dashboard-host=127.0.0.1",
    ),
    "another Ray": (lambda c: c["setup_commands"].append("pip install 'ray[default]==2.40.0'"), "got 2.40.0"),
    "any Ray": (lambda c: c.update(setup_commands=["pip install ray"]), "pin Ray"),
    "a key that Ray does not know": (lambda c: c.update(max_wrokers=3), "Ray refuses it"),
    "no provider type": (lambda c: c.update(provider={"region": "us-west-2"}), "Ray refuses it"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_with_one_thing_wrong_is_refused(tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]):
    spoil, words = WRONG[case]
    content = copy.deepcopy(yaml.safe_load(SHIPPED.read_text()))
    spoil(content)
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(content))
    assert main([str(file)]) == 1
    said = capsys.readouterr().err
    assert words in said and str(file) in said


def test_what_is_no_file_or_no_yaml_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(tmp_path / "none.yaml")]) == 1
    for text in ("a: [", "just words"):
        (tmp_path / "bad.yaml").write_text(text)
        assert main([str(tmp_path / "bad.yaml")]) == 1
    assert "is not YAML" in capsys.readouterr().err
