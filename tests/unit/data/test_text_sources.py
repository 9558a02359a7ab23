"""Toxic comments and any other CSV: every letter arrives, every bad row is named, one vocabulary for all."""

import bz2
import gzip
import io
import json
import lzma
import zipfile

import numpy as np
import pytest
from miniatures import (
    COMMENTS,
    TOXIC_LABELS,
    csv_bytes,
    toxic,
    toxic_files,
    word_vectors,
    write_folder,
    write_zip,
)

from colearn_hpc.cli.data import main
from colearn_hpc.data.arrange import Wishes
from colearn_hpc.data.pack import Request, pack
from colearn_hpc.data.shards import ShardDataset, check_shard
from colearn_hpc.data.sources import vocabulary as vocabulary_module
from colearn_hpc.data.sources.csv_rows import CsvForm
from colearn_hpc.data.sources.csv_text import CsvText
from colearn_hpc.data.sources.toxic import Toxic
from colearn_hpc.data.sources.vocabulary import Vocabulary, WordCounter, tokenize
from colearn_hpc.data.sources.word_vectors import read_vectors
from colearn_hpc.errors import DataError

NAMES = ("a", "b")


def packed(source, out, **options):
    return pack(source, Request(out, NAMES, **options))


def held(folder, name):
    dataset = ShardDataset(folder / f"{name}.h5")
    x, y = dataset[list(range(len(dataset)))]
    return x.numpy(), y.numpy()


def words_of(folder, numbers):
    words = json.loads((folder / "vocabulary.json").read_text())
    return [words[n] for n in numbers if n]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("You're an IDIOT!!", ["you're", "an", "idiot", "!", "!"]),
        ("s’il vous plaît — 漢字", ["s'il", "vous", "plaît", "—", "漢字"]),
        ("a\nb\t😡😡 x_1", ["a", "b", "😡", "😡", "x_1"]),
        ("   \n", []),
        ("'quoted' \"text\"", ["'", "quoted", "'", '"', "text", '"']),
    ],
)
def test_tokens(text, words):
    assert tokenize(text) == words


def test_the_vocabulary_is_by_count_then_alphabet():
    counter = WordCounter()
    for text in ("b a c c", "a b c", "rare"):
        counter.add(text)
    assert counter.vocabulary(10, 2).words == ("<pad>", "<unk>", "c", "a", "b")
    assert counter.vocabulary(2, 1).words == ("<pad>", "<unk>", "c", "a")


def test_counting_is_bounded(monkeypatch):
    monkeypatch.setattr(vocabulary_module, "MOST_COUNTED", 10)
    counter = WordCounter()
    for i in range(100):
        counter.add(f"often word{i}")
        assert len(counter._counts) <= 12
    assert "often" in counter.vocabulary(1, 1).words


def test_texts_are_cut_padded_and_never_empty():
    vocabulary = Vocabulary(["a", "b"])
    assert vocabulary.encode("a b ? a b", 4).tolist() == [2, 3, 1, 2]
    assert vocabulary.encode("b", 4).tolist() == [3, 0, 0, 0]
    assert vocabulary.encode(" ", 4).tolist() == [1, 0, 0, 0]


# Toxic --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["folder", "folder of zips", "zip", "zip of zips"])
def test_every_comment_arrives_with_its_labels(tmp_path, form):
    files = toxic_files()
    if form.endswith("of zips"):
        files = {f"{n}.zip": write_zip(tmp_path / "z" / n, {n: content}).read_bytes() for n, content in files.items()}
    make = write_folder if form.startswith("folder") else write_zip
    source = make(tmp_path / ("in" if form.startswith("folder") else "in.zip"), files)
    manifest = packed(Toxic(str(source), tokens=12, least_count=1), tmp_path / "out").manifest
    assert manifest["task"] == "multilabel" and manifest["classes"] == list(TOXIC_LABELS)
    x, y = (np.concatenate(parts) for parts in zip(*(held(tmp_path / "out", name) for name in NAMES), strict=True))
    assert x.shape == (40, 12) and y.shape == (40, 6) and set(np.unique(y)) == {0, 1}
    expected = sorted((COMMENTS[i % 8] + (f" number {i % 5}" if i >= 8 else "")) for i in range(40))
    assert sorted(words_of(tmp_path / "out", row) for row in x) == sorted(
        tokenize(text)[:12] or ["<unk>"] for text in expected
    )
    for name in (*NAMES, "test"):
        check_shard(tmp_path / "out" / f"{name}.h5")


def test_test_labels_are_joined_by_id_and_unscored_rows_masked(tmp_path):
    result = packed(Toxic(str(toxic(tmp_path / "in"))), tmp_path / "out")
    _, y = held(tmp_path / "out", "test")
    expected = np.random.RandomState(0).randint(0, 2, (64, 6))[40:]
    expected[::3] = -1
    assert np.array_equal(y, expected)
    assert "8 of 24 test rows are not scored" in " ".join(result.notes)
    packed(Toxic(str(tmp_path / "in"), scored_only=True), tmp_path / "scored")
    assert np.array_equal(held(tmp_path / "scored", "test")[1], expected[np.arange(24) % 3 != 0])


def test_the_vocabulary_knows_training_texts_only_and_can_be_given(tmp_path):
    files = toxic_files()
    files["test.csv"] = files["test.csv"].replace(b"number", b"secretword")
    source = write_folder(tmp_path / "in", files)
    packed(Toxic(str(source)), tmp_path / "out")
    words = json.loads((tmp_path / "out" / "vocabulary.json").read_text())
    assert words[:2] == ["<pad>", "<unk>"] and "idiot" in words and "secretword" not in words
    (tmp_path / "given.json").write_text(json.dumps(["<pad>", "<unk>", "idiot", "secretword"]))
    packed(Toxic(str(source), vocabulary=str(tmp_path / "given.json")), tmp_path / "out2")
    assert ShardDataset(tmp_path / "out2" / "test.h5").info.metadata["vocabulary_size"] == 4
    assert held(tmp_path / "out2", "test")[0].max() == 3


def test_word_vectors_become_the_embedding(tmp_path):
    source = toxic(tmp_path / "in")
    vectors = word_vectors(tmp_path / "wiki.vec")
    packed(Toxic(str(source), vectors=str(vectors)), tmp_path / "out")
    matrix = np.load(tmp_path / "out" / "embedding.npy")
    words = json.loads((tmp_path / "out" / "vocabulary.json").read_text())
    assert matrix.shape == (len(words), 5) and matrix.dtype == np.float32
    assert np.allclose(matrix[words.index("thanks")], [1.0, 1.1, 1.2, 1.3, 1.4])


OTHER_REQUESTS = {
    "tokens": {"tokens": 7},
    "words": {"most_words": 3},
    "least count": {"least_count": 1},
    "scored only": {"scored_only": True},
}


@pytest.mark.parametrize("what", OTHER_REQUESTS)
def test_other_options_are_another_data_set(tmp_path, what):
    source = str(toxic(tmp_path / "in"))
    packed(Toxic(source), tmp_path / "out")
    with pytest.raises(DataError, match="another data set"):
        packed(Toxic(source, **OTHER_REQUESTS[what]), tmp_path / "out")


def edited(name, change):
    return lambda files: files | {name: change(files[name])}


def train_row(text):
    """A further row of train.csv."""
    return edited("train.csv", lambda b: b + text)


# Rows that are refused one by one: (damage, split, reason).
BAD_ROWS = {
    "too few columns": (train_row(b"x1,only text\n"), "has 2 columns, 8 expected"),
    "too many columns": (train_row(b"x1,a text, with a comma,0,0,0,0,0,0\n"), "has 9 columns"),
    "label 2": (train_row(b"x1,text,0,0,2,0,0,0\n"), "has the labels"),
    "label -1 in training": (train_row(b"x1,text,-1,-1,-1,-1,-1,-1\n"), "has the labels"),
    "label missing": (train_row(b"x1,text,0,0,,0,0,0\n"), "has the labels"),
    "label as text": (train_row(b"x1,text,0,0,no,0,0,0\n"), "has the labels"),
    "label as float": (train_row(b"x1,text,0,0,0.5,0,0,0\n"), "has the labels"),
    "NUL bytes": (train_row(b"x1,te\0xt,0,0,0,0,0,0\n"), "NUL characters"),
    "latin-1": (train_row("x1,caf\xe9,0,0,0,0,0,0\n".encode("latin-1")), "is not UTF-8"),
    "cut UTF-8": (train_row(b"x1,ab\xf0\x9f\x98,0,0,0,0,0,0\n"), "is not UTF-8"),
    "cut line": (train_row(b"x1,te"), "has 2 columns"),
    "test id without labels": (edited("test.csv", lambda b: b + b"new,hello\n"), "id without labels: 'new'"),
    "test label out of range": (
        edited("test_labels.csv", lambda b: b.replace(b"te0003,-1,-1", b"te0003,7,-1")),
        "id without labels: 'te0003'",
    ),
    "test label line cut": (
        edited("test_labels.csv", lambda b: b.replace(b"te0003,-1,-1,-1,-1,-1,-1", b"te0003,-1")),
        "id without labels: 'te0003'",
    ),
}


@pytest.mark.parametrize("what", BAD_ROWS)
def test_bad_rows_are_refused_or_skipped(tmp_path, what):
    damage, reason = BAD_ROWS[what]
    source = write_folder(tmp_path / "in", damage(toxic_files()))
    with pytest.raises(DataError, match=rf"(train|test).csv, line \d+: .*{reason}.*--on-error skip"):
        packed(Toxic(str(source)), tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))
    result = packed(Toxic(str(source)), tmp_path / "out", on_error="skip")
    assert len(result.skipped) == 1
    counted = sum(e["examples"] for e in result.manifest["centers"] + result.manifest["evaluation"])
    assert counted == 40 + 24 - ("te0003" in reason)


def missing(name):
    return lambda files: {n: c for n, c in files.items() if n != name}


BAD_FILES = {
    "train missing": (missing("train.csv"), "has no train.csv"),
    "labels missing": (missing("test_labels.csv"), "has no test_labels.csv"),
    "train empty": (edited("train.csv", lambda b: b""), "is empty"),
    "only a head": (edited("train.csv", lambda b: b.split(b"\n")[0] + b"\n"), "no rows below its head"),
    "column missing": (edited("train.csv", lambda b: b.replace(b"threat", b"thread", 1)), "has no column threat"),
    "column twice": (edited("train.csv", lambda b: b.replace(b"threat", b"insult", 1)), "has no column threat"),
    "label column twice": (edited("train.csv", lambda b: b.replace(b"id,", b"toxic,", 1)), "column toxic twice"),
    "quote never closed": (train_row(b'x1,"open,0,0,0,0,0,0\n'), "is damaged or no CSV"),
    "text behind a quote": (train_row(b'x1,"a"b,0,0,0,0,0,0\n'), "is damaged or no CSV"),
    "id twice in the labels": (
        edited("test_labels.csv", lambda b: b + b"te0003,0,0,0,0,0,0\n"),
        "the id 'te0003' again",
    ),
    "no CSV": (edited("train.csv", lambda b: b"\x89PNG\r\n\x1a\n" + bytes(50)), "has no column|is damaged"),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_bad_files_are_refused(tmp_path, what):
    damage, message = BAD_FILES[what]
    source = write_folder(tmp_path / "in", damage(toxic_files()))
    for on_error in ("stop", "skip"):
        with pytest.raises(DataError, match=message):
            packed(Toxic(str(source)), tmp_path / "out", on_error=on_error)
    assert not list(tmp_path.glob("out/*"))


def test_a_damaged_zip_is_refused(tmp_path):
    source = write_zip(tmp_path / "in.zip", toxic_files())
    content = bytearray(source.read_bytes())
    at = content.index(b"tr0000") + 50
    content[at : at + 4] = b"\xff\xff\xff\xff"
    source.write_bytes(bytes(content))
    with pytest.raises(DataError, match="damaged"):
        packed(Toxic(str(source)), tmp_path / "out")
    (tmp_path / "no.zip").write_bytes(b"hello")
    with pytest.raises(DataError, match="neither a folder nor a zip"):
        Toxic(str(tmp_path / "no.zip"))
    with pytest.raises(DataError, match="does not exist"):
        Toxic(str(tmp_path / "nowhere"))


# Any CSV ------------------------------------------------------------------------------------------------------------


def reviews(n=40):
    return [["text", "mood", "x"], *([f'text {i}, "quoted"\nnext 🙂', ("good", "bad")[i % 2], i] for i in range(n))]


def test_one_label_column_gives_classes(tmp_path):
    path = write_folder(tmp_path, {"a.csv": csv_bytes(reviews())}) / "a.csv"
    manifest = packed(CsvText(str(path), "text", ("mood",)), tmp_path / "out").manifest
    assert manifest["classes"] == ["bad", "good"] and manifest["task"] == "classification"
    assert [e["class_counts"] for e in manifest["evaluation"]] == [[2, 2]]
    assert sum(e["examples"] for e in manifest["centers"]) == 36
    seen = set()
    for name in (*NAMES, "test"):
        x, y = held(tmp_path / "out", name)
        for row, label in zip(x, y, strict=True):
            words = words_of(tmp_path / "out", row)
            seen.add(words[1])
            assert words[1] == "<unk>" or int(words[1]) % 2 == 1 - label
    assert packed(CsvText(str(path), "text", ("mood",)), tmp_path / "out").already_there


def test_several_label_columns_own_test_file_and_tabs(tmp_path):
    rows = [["text", "p", "q"], *([f"word{i}", i % 2, "-1" if i % 5 == 0 else 1] for i in range(20))]
    text = "\n".join("\t".join(map(str, row)) for row in rows).encode()
    write_folder(tmp_path, {"a.tsv": text, "t.tsv": text, "v.tsv": text})
    files = {"test": str(tmp_path / "t.tsv"), "val": str(tmp_path / "v.tsv")}
    source = CsvText(str(tmp_path / "a.tsv"), "text", ("p", "q"), form=CsvForm("\t"), **files)
    manifest = packed(source, tmp_path / "out").manifest
    assert {e["split"]: e["examples"] for e in manifest["evaluation"]} == {"val": 20, "test": 20}
    y = held(tmp_path / "out", "test")[1]
    assert y.tolist() == [[i % 2, -1 if i % 5 == 0 else 1] for i in range(20)]


def test_a_column_tells_who_a_row_comes_from(tmp_path):
    rows = [["text", "hospital", "p", "q"], *([f"word{i}", ("a", "b", "oslo")[i % 3], i % 2, 1] for i in range(30))]
    rows += [["cut"], ["nobody's", " ", 1, 1]]
    path = str(write_folder(tmp_path, {"a.csv": csv_bytes(rows)}) / "a.csv")
    options = {"text": "text", "least_count": 1, "group_by": "hospital"}
    request = {"rule": "by-group", "wishes": Wishes(test_fraction=0.0), "on_error": "skip"}
    for labels in (("p", "q"), ("p",), ("hospital",)):
        folder = tmp_path / labels[-1]
        result = packed(CsvText(path, labels=labels, **options), folder, **request)
        texts = {name: {words_of(folder, row)[0] for row in held(folder, name)[0]} for name in NAMES}
        # Groups a and b are the data centers a and b; oslo's rows go to one of them.
        assert texts["a"] >= {f"word{i}" for i in range(0, 30, 3)}
        assert texts["b"] >= {f"word{i}" for i in range(1, 30, 3)}
        assert sorted(map(len, texts.values())) == [10, 20]
        nobody = "has the labels ' '" if labels == ("hospital",) else "has no hospital"
        assert [item.reason for item in result.skipped] == ["has 1 columns, 4 expected", nobody]
    (tmp_path / "a.csv").write_bytes(csv_bytes([row for row in rows if row != ["cut"]]))
    with pytest.raises(DataError, match="line 32: has no hospital"):
        packed(CsvText(path, labels=("p",), **options), tmp_path / "out", **request | {"on_error": "stop"})
    with pytest.raises(DataError, match="has no column ward"):
        packed(CsvText(path, labels=("p",), **options | {"group_by": "ward"}), tmp_path / "out", **request)


BAD_CSV = {
    "no such column": (reviews(), {"text": "body"}, "has no column body; it has 'text', 'mood', 'x'"),
    "no such label": (reviews(), {"labels": ("stars",)}, "has no column stars"),
    "column twice": (reviews(), {"labels": ("text",)}, "must be different"),
    "empty label name": (reviews(), {"labels": ("",)}, "must be different"),
    "other delimiter": (reviews(), {"form": CsvForm(";")}, "has no column text"),
    "only a head": (reviews(0), {}, "no rows"),
    "tokens": (reviews(), {"tokens": 0}, "--tokens"),
    "words": (reviews(), {"most_words": 0}, "--words"),
    "no vectors": (reviews(), {"vectors": "nowhere.vec"}, "--vectors: there is no file"),
    "no vocabulary": (reviews(), {"vocabulary": "nowhere.json"}, "--vocabulary: there is no file"),
    "label missing in a row": ([*reviews(), ["text", "", 1]], {}, "has the labels"),
    "a number as a multi-label": (reviews(), {"labels": ("mood", "x")}, "has the labels 'good, 0'"),
}


@pytest.mark.parametrize("what", BAD_CSV)
def test_impossible_csv_requests(tmp_path, what):
    rows, change, message = BAD_CSV[what]
    path = write_folder(tmp_path, {"a.csv": csv_bytes(rows)}) / "a.csv"
    options = {"text": "text", "labels": ("mood",)} | change
    with pytest.raises(DataError, match=message):
        packed(CsvText(str(path), **options), tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


def test_classes_only_in_the_test_file(tmp_path):
    write_folder(tmp_path, {"a.csv": csv_bytes(reviews()), "t.csv": csv_bytes([["text", "mood"], ["x", "odd"]])})
    with pytest.raises(DataError, match="training examples have not: 'odd'"):
        packed(CsvText(str(tmp_path / "a.csv"), "text", ("mood",), test=str(tmp_path / "t.csv")), tmp_path / "out")


@pytest.mark.parametrize("text", ["", "{", '["a"]', '["<pad>", "<unk>", "a", "a"]', '["<pad>", "<unk>", 3]', "{}"])
def test_bad_vocabularies(tmp_path, text):
    (tmp_path / "v.json").write_text(text)
    with pytest.raises(DataError, match=r"vocabulary|list of different words"):
        Vocabulary.from_file(tmp_path / "v.json")


# Word vectors -------------------------------------------------------------------------------------------------------


def test_the_rule_for_words_without_a_vector(tmp_path):
    path = word_vectors(tmp_path / "a.vec", ["Idiot", "IDIOT", "good", "NASA"])
    vocabulary = Vocabulary(["idiot", "nasa", "qqq", "good", "zzz"])
    embedding = read_vectors(path, vocabulary)
    matrix = embedding.matrix
    assert embedding.found == 3
    assert np.allclose(matrix[2], [0.0, 0.1, 0.2, 0.3, 0.4])  # Idiot goes before IDIOT
    assert np.allclose(matrix[3], [3.0, 3.1, 3.2, 3.3, 3.4])
    known = matrix[[2, 3, 5]]
    assert not matrix[0].any() and np.allclose(matrix[1], known.mean(axis=0))
    # The row of an unknown word depends on the word and the file, not on its place in the vocabulary.
    other = read_vectors(path, Vocabulary(["zzz", "good", "nasa", "idiot"])).matrix
    assert np.array_equal(other[2], matrix[6]) and not np.array_equal(matrix[4], matrix[6])
    many = read_vectors(path, Vocabulary(["idiot", "nasa", "good", *(f"w{i}" for i in range(4000))])).matrix[5:]
    assert abs(many.mean() - known.mean()) < 0.05 and abs(many.std() - known.std()) < 0.05


def test_packed_vectors_and_broken_words(tmp_path):
    plain = word_vectors(tmp_path / "a.vec", ["good", "bad"])
    content = plain.read_bytes().replace(b"2 5", b"4 5") + b"\xff\xfe 1 1 1 1 1\n" + "a\u00a0b 2 2 2 2 2\n".encode()
    (tmp_path / "b.vec.gz").write_bytes(gzip.compress(content))
    vocabulary = Vocabulary(["bad", "good"])
    assert np.array_equal(
        read_vectors(tmp_path / "b.vec.gz", vocabulary).matrix, read_vectors(plain, vocabulary).matrix
    )


GOOD_VEC = b"2 3\ngood 1 2 3\nbad 4 5 6\n"
BAD_VECTORS = {
    "empty": (b"", "first line"),
    "no head": (b"good 1 2 3\n", "first line"),
    "head of text": (b"two three\ngood 1 2 3\n", "first line"),
    "negative": (b"2 -3\ngood 1 2 3\n", "first line"),
    "absurd": (b"2 99999999\ngood 1 2 3\n", "first line"),
    "binary": (bytes(range(256)), "first line"),
    "cut": (b"3 3\ngood 1 2 3\nbad 4 5 6\n", "announces 3 words, has 2"),
    "cut in a line": (b"2 3\ngood 1 2 3\nbad 4 5\n", "line 3 has 2 numbers"),
    "too many numbers": (b"2 3\ngood 1 2 3 4\nbad 4 5 6\n", "line 2 has 4 numbers"),
    "no number": (b"2 3\ngood 1 x 3\nbad 4 5 6\n", "line 2 holds something"),
    "NaN": (b"2 3\ngood 1 nan 3\nbad 4 5 6\n", "finite"),
    "infinite": (b"2 3\ngood 1 inf 3\nbad 4 5 6\n", "finite"),
    "other language": (b"2 3\nbon 1 2 3\nmal 4 5 6\n", "none of the vocabulary"),
    "cut gzip": (gzip.compress(GOOD_VEC)[:-9], "breaks off|first line"),
}


@pytest.mark.parametrize("what", BAD_VECTORS)
def test_bad_vectors_are_refused(tmp_path, what):
    content, message = BAD_VECTORS[what]
    (tmp_path / "a.vec").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_vectors(tmp_path / "a.vec", Vocabulary(["good", "bad"]))


# CSV as people have it ------------------------------------------------------------------------------------------------

ROWS = [(f"café number {i} ok", ("yes", "no")[i % 2]) for i in range(40)]
BODY = "text,label\n" + "".join(f"{text},{label}\n" for text, label in ROWS)
TABS = "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in ROWS)


def zipped(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("_", "."), content)
    return buffer.getvalue()


# What the file holds, and with which options it is read.
READABLE = {
    "UTF-8": (BODY.encode(), ()),
    "a byte order mark": (BODY.encode("utf-8-sig"), ()),
    "UTF-16": (BODY.encode("utf-16"), ()),
    "UTF-16, big end first": (b"\xfe\xff" + BODY.encode("utf-16-be"), ()),
    "UTF-32": (BODY.encode("utf-32"), ()),
    "UTF-16 without a mark": (BODY.encode("utf-16-le"), ("--encoding", "utf-16-le")),
    "cp1252": (BODY.encode("cp1252"), ("--encoding", "cp1252")),
    "line ends of Windows": (BODY.replace("\n", "\r\n").encode(), ()),
    "line ends of an old Mac": (BODY.replace("\n", "\r").encode(), ()),
    "gzip": (gzip.compress(BODY.encode()), ()),
    "bzip2": (bz2.compress(BODY.encode()), ()),
    "xz": (lzma.compress(BODY.encode()), ()),
    "zip": (zipped(a_csv=BODY), ()),
    "gzip of UTF-16": (gzip.compress(BODY.encode("utf-16")), ()),
    "zip with another file": (zipped(a_csv=BODY, readme_md="hello"), ()),
    "Excel's first line": (("sep=,\n" + BODY).encode(), ()),
    "semicolons": (("sep=;\n" + BODY.replace(",", ";")).encode(), ("--delimiter", ";")),
    "spaces in the head": (BODY.replace("text,label", " text , label ").encode(), ()),
    "spaces around labels": (BODY.replace(",no", ",  no\u00a0").encode(), ()),
    "an empty last column": (BODY.replace("\n", ",\n").encode(), ()),
    "no head line": (BODY.partition("\n")[2].encode(), ("--columns", "text,label")),
    "tabs": (TABS.encode(), ("--delimiter", "\\t")),
    "a long field": (BODY.replace("number 7 ok", "number 7 ok" + " x" * 200_000).encode(), ()),
}


@pytest.mark.parametrize("what", READABLE)
def test_forms_of_csv_that_are_read(tmp_path, what):
    content, options = READABLE[what]
    (tmp_path / "a.csv").write_bytes(content)
    arguments = [str(tmp_path / "a.csv"), "--text", "text", "--labels", "label", "--tokens", "4", "--centers", "1"]
    assert main(["csv-text", *arguments, *options, "--out", str(tmp_path / "out"), "--test-fraction", "0"]) == 0
    x, y = held(tmp_path / "out", "dc0")
    words = [words_of(tmp_path / "out", row) for row in x]
    assert [(row[0], row[1], "yes" if label else "no") for row, label in zip(words, y, strict=True)] == [
        ("café", "number", label) for _, label in ROWS
    ]


# What is not read, and what must be said.
NAMED = {
    "cp1252": (BODY.encode("cp1252"), (), "line 2: is not UTF-8; if the whole file is of another encoding, set --enc"),
    "UTF-16 without a mark": (BODY.encode("utf-16-le"), (), "looks like UTF-16 without a mark: set --encoding utf-16"),
    "cut UTF-16": (BODY.encode("utf-16")[:-1], (), "is not UTF-16"),
    "an unknown encoding": (BODY.encode(), ("--encoding", "nonsense"), "--encoding: unknown encoding: nonsense"),
    "an encoding of bytes": (BODY.encode(), ("--encoding", "zlib"), "--encoding: 'zlib' is not a text encoding"),
    "semicolons": (BODY.replace(",", ";").encode(), (), "columns are parted by ';': set --delimiter"),
    "tabs": (TABS.encode(), (), "columns are parted by '\\t': set --delimiter"),
    "no head line": (BODY.partition("\n")[2].encode(), (), "name the columns of a file without a head line with --col"),
    "a head line and names": (BODY.encode(), ("--columns", "text,label"), "in line 1; leave the option out"),
    "names twice": (BODY.encode(), ("--columns", "text,text"), "--columns: text,text has a name that is empty or"),
    "quoted tabs": (
        TABS.replace("text\tlabel", '"text"\t"label"').encode(),
        ("--delimiter", "\t"),
        "set --quoting double",
    ),
    "two delimiters": (BODY.encode(), ("--delimiter", ";;"), "--delimiter: ';;' was set; one character"),
    "two tables in a zip": (zipped(a_csv=BODY, b_csv=BODY), (), "holds 2 tables"),
    "cut gzip": (gzip.compress(BODY.encode())[:-9], (), "is damaged"),
    "gzip damaged at its start": (gzip.compress(BODY.encode())[:10] + b"\xff" * 40, (), "is damaged"),
    "cut zip": (zipped(a_csv=BODY)[:200], (), "cannot be read"),
    "NUL characters": (BODY.replace("number 5", "num\0ber 5").encode(), (), "line 7: holds NUL characters"),
    "a line without end": (gzip.compress(b"text,label\n" + bytes(70 * 2**20)), (), "a line of more than"),
}


@pytest.mark.parametrize("what", NAMED)
def test_forms_of_csv_that_are_named(tmp_path, capsys, what):
    content, options, message = NAMED[what]
    (tmp_path / "a.csv").write_bytes(content)
    arguments = [str(tmp_path / "a.csv"), "--text", "text", "--labels", "label", "--out", str(tmp_path / "out")]
    assert main(["csv-text", *arguments, *options]) == 1
    said = capsys.readouterr().err
    assert message in said and said.endswith("\n") and "Traceback" not in said


def test_quotes_in_a_table_with_tabs_are_letters(tmp_path):
    """GLUE, Common Voice and Rotten Tomatoes quote nothing: an opening quote must not swallow the rows behind it."""
    rows = [(f"plain sentence number {i}", i % 2) for i in range(60)]
    rows[10], rows[31] = ('"never closes, a film', 1), ('and ends with "finis"', 0)
    (tmp_path / "a.tsv").write_text("sentence\tlabel\n" + "".join(f"{t}\t{y}\n" for t, y in rows))
    source = CsvText(str(tmp_path / "a.tsv"), "sentence", ("label",), form=CsvForm("\t"), least_count=1)
    packed(source, tmp_path / "out")
    assert sum(len(held(tmp_path / "out", name)[1]) for name in (*NAMES, "test")) == 60
    assert '"' in json.loads((tmp_path / "out" / "vocabulary.json").read_text())


def test_tables_with_tabs_that_are_quoted(tmp_path):
    rows = "".join(f'"word{i}\tin ""quotes"" {i % 2}"\tc{i % 2}\n' for i in range(20))
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + rows)
    form = CsvForm("\t", quoting="double")
    packed(CsvText(str(tmp_path / "a.tsv"), "text", ("label",), form=form), tmp_path / "out")
    assert {'"', "quotes"} <= set(json.loads((tmp_path / "out" / "vocabulary.json").read_text()))


def test_a_row_of_very_many_lines_is_noted(tmp_path):
    rows = [(f"plain {i}", i % 2) for i in range(300)]
    rows[10], rows[250] = ('"opens', 1), ('closes"', 0)
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"{t},{y}\n" for t, y in rows))
    result = packed(CsvText(str(tmp_path / "a.csv"), "text", ("label",)), tmp_path / "out")
    assert "ends in line 252 has 241 lines; if quotes are characters like any other" in " ".join(result.notes)


def test_several_text_columns_are_put_one_behind_the_other(tmp_path):
    rows = [["title", "body", "label"], *([f"head{i % 2}", f"tail{i % 2}", i % 2] for i in range(20))]
    path = write_folder(tmp_path, {"a.csv": csv_bytes(rows)}) / "a.csv"
    packed(CsvText(str(path), ("title", "body"), ("label",)), tmp_path / "out")
    for row, label in zip(*held(tmp_path / "out", "a"), strict=True):
        assert words_of(tmp_path / "out", row) == [f"head{label}", f"tail{label}"]
    with pytest.raises(DataError, match="another data set"):
        packed(CsvText(str(path), ("title",), ("label",)), tmp_path / "out")


def test_vectors_of_tokens_with_spaces_and_a_byte_order_mark(tmp_path):
    content = b"\xef\xbb\xbf3 3\ngood morning 9 9 9\ngood 1 2 3\nbad 4 5 6\n"
    (tmp_path / "a.vec").write_bytes(content)
    matrix = read_vectors(tmp_path / "a.vec", Vocabulary(["bad", "good"])).matrix
    assert matrix[2:].tolist() == [[4, 5, 6], [1, 2, 3]]


def test_a_line_without_end_in_vectors(tmp_path):
    (tmp_path / "a.vec.gz").write_bytes(gzip.compress(b"2 3\n" + b"1" * 2**21))
    with pytest.raises(DataError, match="line 2 has more than 1048576 bytes"):
        read_vectors(tmp_path / "a.vec.gz", Vocabulary(["good"]))
