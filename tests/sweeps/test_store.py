"""The store against damage done to its files by hand: what does not match counts as never written, and is reported."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import pickle
import random
import shutil
import struct
import subprocess

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sweeps.engine import store as store_module
from sweeps.engine.store import DamagedStore, Store
from trainables.study import Branch, Cost, Point, Row, Stage


def a_stage(key="ab" * 32, start=0, stop=10, *, tensors=True, status="complete", loss=1.5):
    points = (Point(5, key[:60] + "0005", False), Point(stop, key, True))
    rows = [Row(point.key, point.step, point.full, {"select/loss": loss}, {}, {"lr": 0.1}) for point in points]
    branch = Branch(key, start, stop, (), points, keep=tensors)
    state = {"w": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(7)} if tensors else None
    error = None if status == "complete" else "Traceback ..."
    return Stage(branch, rows, state, Cost(1.0, 0.5, 0.25), stop - start, status, error)


def write(store, stage=None, **named):
    return store.commit(
        "toy", "root", stage or a_stage(**named), job="job-0001", device="cpu", started_at="now", startup=0.5
    )


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path)
    made.prepare()
    return made


def files(store, kind):
    return sorted(path for path in (store.folder / kind).rglob("*") if path.is_file())


def test_a_commit_is_read_back_as_it_was_written(store):
    written = write(store)
    index = store.scan()
    assert index.commits == {written.name: written} and not index.damaged
    assert [(row.step, row.metrics) for row in index.rows.values()] == [
        (5, {"select/loss": 1.5}),
        (10, {"select/loss": 1.5}),
    ]
    assert index.kept("root") == {"ab" * 32: 10}
    tensors = store.load_state(written)
    assert torch.equal(tensors["w"], torch.arange(6.0).reshape(2, 3)) and tensors["count"] == 7
    assert (written.train_seconds, written.startup_seconds, written.executed_steps) == (1.0, 0.5, 10)
    assert not list(store.folder.rglob(".writing-*"))


def test_every_file_but_the_manifest_is_named_by_the_sha256_of_its_content(store):
    write(store)
    for path in (*files(store, "rows"), *files(store, "states")):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem


def test_non_finite_measurements_survive(store):
    write(store, loss=math.nan)
    index = store.scan()
    assert not any(index.finite(key) for key in index.rows)


def test_a_full_measurement_replaces_a_light_one_and_not_the_other_way_round(store):
    key = "cd" * 32

    def one_row(full):
        stage = a_stage(key, tensors=False)
        stage.rows = [Row(key, 10, full, {"select/loss": 1.0, **({"report/loss": 2.0} if full else {})}, {}, {})]
        return stage

    for order in ((False, True), (True, False)):
        shutil.rmtree(store.folder)
        for full in order:
            write(store, one_row(full))
        assert store.scan().measured(key) is True


# Damage


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def replace_by_json(path):
    path.write_text('{"hello": [1, 2]}')


def replace_by_text(path):
    path.write_bytes(b"\xff\xfe not json at all")


DAMAGE = [truncate, empty, flip_a_bit, replace_by_json, replace_by_text]


@pytest.mark.parametrize("kind", ["stages", "rows"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_manifest_or_rows_file_counts_as_never_written_and_is_reported(store, kind, damage):
    whole = write(store, key="ef" * 32, loss=2.5)
    before = set(files(store, kind))
    write(store)
    (path,) = set(files(store, kind)) - before
    damage(path)
    index = store.scan()
    assert set(index.commits) == {whole.name}
    assert set(index.rows) == {point.key for point in a_stage("ef" * 32).branch.points}
    assert len(index.damaged) == 1 and ("does not match" in index.damaged[0] or "cannot be read" in index.damaged[0])
    assert str(store.folder) in index.damaged[0]


@pytest.mark.parametrize("seed", range(40))
def test_any_flipped_bit_of_a_manifest_is_noticed(store, seed):
    write(store)
    (path,) = files(store, "stages")
    content = bytearray(path.read_bytes())
    draw = random.Random(seed)
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    if bytes(content) == path.read_bytes():
        return
    path.write_bytes(bytes(content))
    index = store.scan()
    assert len(index.commits) + len(index.damaged) == 1
    for commit in index.commits.values():  # a flip between the parts, such as of a blank, changes nothing that is said
        assert commit.key == "ab" * 32 and len(index.rows) == 2


@pytest.mark.parametrize("kind", ["stages", "rows"])
def test_a_file_torn_after_any_byte_counts_as_never_written(store, kind):
    """Every length that a write may have reached, also those at which the text happens to be whole JSON."""
    write(store)
    (path,) = files(store, kind)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        index = store.scan()
        assert not index.commits and not index.rows and len(index.damaged) == 1, length
    path.write_bytes(whole)
    assert len(store.scan().commits) == 1


def test_a_state_torn_after_any_byte_is_not_loaded(store):
    written = write(store)
    (path,) = files(store, "states")
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedStore):
            store.load_state(written)
    path.write_bytes(whole + b"\0")  # and one that grew
    with pytest.raises(DamagedStore):
        store.load_state(written)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bits_of_rows_or_states_are_noticed(store, data):
    shutil.rmtree(store.folder)
    written = write(store)
    kind = data.draw(st.sampled_from(["rows", "states"]))
    (path,) = files(store, kind)
    content = bytearray(path.read_bytes())
    for bit in data.draw(st.sets(st.integers(0, 8 * len(content) - 1), min_size=1, max_size=5)):
        content[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(bytes(content))
    if kind == "rows":
        index = store.scan()
        assert not index.commits and len(index.damaged) == 1
    else:
        with pytest.raises(DamagedStore):
            store.load_state(written)


def test_what_a_killed_process_left_half_written_goes_after_a_day_and_no_sooner(store):
    write(store)
    old, fresh = store.states / ".writing-old", store.stages / "ab" / ".writing-fresh"
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    store.prepare()
    assert not old.exists() and fresh.exists()
    assert len(store.scan().commits) == 1 and not store.scan().damaged


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_not_loaded(store, damage):
    written = write(store)
    (path,) = files(store, "states")
    damage(path)
    with pytest.raises(DamagedStore, match=r"does not match its checksum; delete it and its stage is trained again"):
        store.load_state(written)


def test_a_state_that_is_gone_is_not_offered(store):
    written = write(store)
    store.drop_state(written)
    index = store.scan()
    assert index.kept("root") == {} and len(index.rows) == 2
    with pytest.raises(DamagedStore, match="cannot be read"):
        store.load_state(written)


@pytest.mark.parametrize(
    "name", ["notes.json", "ab/ab.json", f"ab/{'ab' * 32}-0-deadbeef.json", "zz/x-0-1.json", ".hidden/a.json"]
)
def test_a_foreign_file_among_the_manifests_is_reported_or_ignored(store, name):
    written = write(store)
    path = store.stages / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"format": 1, "key": "x"}))
    assert set(store.scan().commits) == {written.name}


def test_a_manifest_of_another_format_is_reported_with_the_format_it_should_have(store):
    written = write(store)
    (path,) = files(store, "stages")
    content = json.loads(json.loads(path.read_text())["content"])
    content["format"] = 99
    text = json.dumps(content)
    path.write_text(json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "content": text}))
    (words,) = store.scan().damaged
    assert "format 1" in words and written.name in words


def forge(store, **changed):
    """A manifest whose checksum is right and whose content is not what the store would write."""
    (path,) = files(store, "stages")
    content = json.loads(json.loads(path.read_text())["content"])
    reseal(path, json.dumps({**content, **changed}))
    return path


def reseal(path, text):
    path.write_text(json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "content": text}))


@pytest.mark.parametrize("field", ["state_file", "rows_file"])
@pytest.mark.parametrize(
    "value",
    ["../../../precious", "/etc/passwd", "/dev/zero", "a" * 64, "a" * 64 + ".pt", "../rows/" + "a" * 64 + ".json", 7],
)
def test_a_sealed_manifest_that_points_outside_the_store_is_refused(store, field, value):
    """/dev/zero would never end, were it opened before its name is looked at."""
    write(store)
    forge(store, **{field: value})
    index = store.scan()
    assert not index.commits and len(index.damaged) == 1 and field in index.damaged[0]


WRONG = {
    "start": [-1, 1.5, "0", None, True, 2**70],
    "executed_steps": [-5, "many"],
    "train_seconds": [-1.0, math.inf, math.nan, "long"],
    "status": ["complete ", "", 1],
    "lost_keys": [[1], "ab", {}],
    "error": [7],
    "name": ["../../x.json", "another.json"],
    "__class__": ["os.system"],
}


@pytest.mark.parametrize("field", WRONG)
def test_a_sealed_manifest_with_absurd_values_is_refused(store, field):
    write(store)
    for value in WRONG[field]:
        path = forge(store, **{field: value})
        index = store.scan()
        assert not index.commits and len(index.damaged) == 1 and str(path) in index.damaged[0], value


DEEP = "[" * 100_000


@pytest.mark.parametrize("text", [DEEP, '{"ended": ' + DEEP, '{"start": ' + "9" * 10_000 + "}", "1e999", "[]", '"x"'])
def test_json_of_absurd_depth_or_length_is_refused_whether_sealed_or_not(store, text):
    write(store)
    (path,) = files(store, "stages")
    for forged in (lambda: reseal(path, text), lambda: path.write_text(text)):
        forged()
        index = store.scan()
        assert not index.commits and len(index.damaged) == 1


@pytest.mark.parametrize(
    "rows",
    [
        DEEP,
        "{}",
        '[{"key": "k", "step": 1e400, "full": true, "metrics": {}, "arrays": {}, "knobs": {}}]',
        '[{"key": "k", "step": 1, "full": "yes", "metrics": {}, "arrays": {}, "knobs": {}}]',
        '[{"key": "k", "step": 1, "full": true, "metrics": {"loss": "low"}, "arrays": {}, "knobs": {}}]',
        '[{"key": "k", "step": 1, "full": true, "metrics": {"loss": [1]}, "arrays": {}, "knobs": {}}]',
        '[{"key": "k", "step": 1, "full": true, "metrics": {}, "arrays": {}, "knobs": {}, "_asdict": 1}]',
    ],
)
def test_rows_that_are_not_of_their_types_are_refused_though_all_checksums_are_right(store, rows):
    write(store)
    name = hashlib.sha256(rows.encode()).hexdigest() + ".json"
    (store.rows / name).write_text(rows)
    forge(store, rows_file=name)
    index = store.scan()
    assert not index.commits and not index.rows and len(index.damaged) == 1


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.floats(allow_nan=False), whole=st.integers(-(2**53), 2**53))
def test_every_number_comes_back_to_the_bit(store, value, whole):
    shutil.rmtree(store.folder, ignore_errors=True)
    stage = a_stage(loss=value)
    stage.rows[0].metrics["count"] = whole
    write(store, stage)
    rows = list(store.scan().rows.values())
    assert [row.metrics["select/loss"] for row in rows] == [value, value] and rows[0].metrics["count"] == whole


@pytest.mark.parametrize("kind", ["stages", "rows", "states"])
@pytest.mark.parametrize("what", ["link", "pipe"])
def test_links_and_pipes_among_the_files_are_not_opened(store, tmp_path, kind, what):
    """A link leads out of the store, also where what it leads to has the right checksum; a pipe is never at its end."""
    written = write(store)
    (path,) = files(store, kind)
    if what == "link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.unlink()
        os.mkfifo(path)
    if kind == "states":
        with pytest.raises(DamagedStore, match=r"is a link, a folder, a pipe or a device"):
            store.load_state(written)
    else:
        index = store.scan()
        assert not index.commits and "is a link, a folder, a pipe or a device" in index.damaged[0]


# Nothing is executed


class Bomb:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_pickle_in_place_of_a_state_is_never_executed(store, tmp_path, wrapped):
    mark = tmp_path / "executed"
    payload = pickle.dumps(Bomb(mark))
    if wrapped:  # as torch.save would write it
        torch.save(Bomb(mark), tmp_path / "bomb.pt")
        payload = (tmp_path / "bomb.pt").read_bytes()
    stage = a_stage()
    written = write(store, stage)
    name = hashlib.sha256(payload).hexdigest() + ".safetensors"  # with the right name and a manifest that says so
    (store.states / name).write_bytes(payload)
    forged = type(written)(**{**written.__dict__, "state_file": name})
    with pytest.raises(DamagedStore, match="cannot be read"):
        store.load_state(forged)
    assert not mark.exists()


@pytest.mark.parametrize(
    "header",
    [
        b'{"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 1000000]}}',
        b'{"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        b'{"w": {"dtype": "os.system", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"__import__": 1}',
        b"not json",
    ],
)
def test_a_malicious_safetensors_file_is_refused(store, header):
    payload = struct.pack("<Q", len(header)) + header + b"\0" * 4
    name = hashlib.sha256(payload).hexdigest() + ".safetensors"
    written = write(store)
    (store.states / name).write_bytes(payload)
    with pytest.raises(DamagedStore):
        store.load_state(type(written)(**{**written.__dict__, "state_file": name}))


def test_a_header_that_claims_the_size_of_the_universe_is_refused(store):
    payload = struct.pack("<Q", 2**60) + b"{}"
    name = hashlib.sha256(payload).hexdigest() + ".safetensors"
    written = write(store)
    (store.states / name).write_bytes(payload)
    with pytest.raises(DamagedStore):
        store.load_state(type(written)(**{**written.__dict__, "state_file": name}))


# Several writers


def _commit_many(folder, count):
    torch.set_num_threads(1)
    made = Store(folder)
    for _ in range(count):
        write(made)


def test_two_processes_that_commit_the_same_stage_leave_a_whole_store(store):
    processes = [
        multiprocessing.get_context("fork").Process(target=_commit_many, args=(store.folder.parent, 20))
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    index = store.scan()
    assert not index.damaged and len(index.commits) == 40
    assert len(files(store, "rows")) == 1 and len(files(store, "states")) == 1
    assert not list(store.folder.rglob(".writing-*"))
    store.load_state(next(iter(index.commits.values())))


def test_a_reader_never_sees_half_a_file(store, monkeypatch):
    """Killed between any two steps of a commit, the store holds all of the stage or nothing."""
    steps = []
    real = os.replace

    def replace(source, target):
        steps.append(str(target))
        real(source, target)
        index = store.scan()
        assert not index.damaged
        assert bool(index.commits) == ("stages" in steps[-1])

    monkeypatch.setattr(store_module.os, "replace", replace)
    write(store)
    assert [name.split(os.sep)[-2] for name in steps][:2] == ["rows", "states"] and len(steps) == 3


# Places that cannot be written


def test_a_place_that_is_a_file_gives_one_clear_error(tmp_path):
    (tmp_path / "results").write_text("I am a file")
    with pytest.raises(OSError, match=r"cannot write to .*results/store: .*choose results=FOLDER"):
        Store(tmp_path / "results").prepare()


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 256 KiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=False, capture_output=True)
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_read_only_place_gives_one_clear_error(tiny_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    with pytest.raises(OSError, match=r"cannot write to .*store: .*Read-only.*choose results=FOLDER"):
        Store(tiny_disk).prepare()


def test_a_full_disk_refuses_a_new_sweep_and_loses_nothing_that_was_committed(tiny_disk):
    store = Store(tiny_disk)
    store.prepare()
    done = write(store)
    large = a_stage("cd" * 32)
    large.tensors = {"w": torch.zeros(200_000)}
    with pytest.raises(OSError):
        write(store, large)
    index = store.scan()
    assert set(index.commits) == {done.name} and not index.damaged
    assert not list(store.folder.rglob(".writing-*"))  # what could not be written does not fill the disk
    (tiny_disk / "filler").write_bytes(b"")
    with (tiny_disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError):
        while True:
            filler.write(b"\0" * 4096)
    with pytest.raises(
        OSError, match=r"cannot write to .*store: .*No space.*free space there or choose results=FOLDER"
    ):
        Store(tiny_disk).prepare()
    with pytest.raises(OSError):
        write(store, a_stage("12" * 32, tensors=False, loss=9.0))
    assert set(store.scan().commits) == {done.name}
    assert not list(store.folder.rglob(".writing-*"))
