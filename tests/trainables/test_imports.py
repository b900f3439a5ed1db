"""Import paths against files written for the test; fingerprints against sha256 of the files' text."""

import functools
import hashlib
import importlib
import sys

import pytest

from trainables.common.imports import fingerprint, load

SOURCE = "from math import sqrt\n\nlimit = 3\n\n\ndef half(x):\n    return x / 2\n"


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module beside the working directory, which is not on the path."""
    (tmp_path / "of_my_own.py").write_text(SOURCE)
    (tmp_path / "again.py").write_text("from of_my_own import half\n")
    (tmp_path / "broken.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield tmp_path
    for name in ("of_my_own", "again", "broken"):
        sys.modules.pop(name, None)


def test_a_function_beside_the_working_directory(module):
    assert load("of_my_own:half")(3) == 1.5


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("of_my_own.half", "'package.module:name', got 'of_my_own.half'"),
        ("of_my_own:", "'package.module:name'"),
        ("nowhere:half", "no module 'nowhere'"),
        ("of_my_own.deeper:half", "no module 'of_my_own.deeper'"),
        ("of_my_own:third", "has no 'third' .*; it has half, sqrt"),
        ("of_my_own:limit", "must be a function or a class, got int 3"),
    ],
)
def test_a_bad_path_is_refused(module, path, words):
    with pytest.raises(ValueError, match=words):
        load(path)


def test_an_error_inside_the_module_is_its_own(module):
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        load("broken:anything")


def test_fingerprint_is_of_the_source_text(module):
    expected = hashlib.sha256(SOURCE.encode()).hexdigest()
    assert fingerprint("of_my_own:half") == fingerprint(load("of_my_own:half")) == expected
    assert fingerprint("again:half") != expected  # both modules count
    (module / "of_my_own.py").write_text(SOURCE.replace("/ 2", "/ 4 * 2"))
    importlib.reload(sys.modules["of_my_own"])
    assert fingerprint("of_my_own:half") != expected


@pytest.mark.parametrize("source", ["math:sqrt", len, functools.partial(max, 1)])
def test_what_has_no_source_is_refused(source):
    with pytest.raises(ValueError, match=r"no source|no module"):
        fingerprint(source)
