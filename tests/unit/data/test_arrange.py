"""Classes and splits as the user asks, alike for every source."""

import json
import os

import numpy as np
import pytest
from miniatures import csv_bytes, image_bytes, images, tone, wav_bytes, write_folder, write_zip

from colearn_hpc.cli.data import main
from colearn_hpc.data.arrange import Wishes, arrange, read_classes, read_split_list
from colearn_hpc.data.shards import ShardDataset
from colearn_hpc.data.sources.base import Contents, Item
from colearn_hpc.errors import DataError


def grey(level):
    """A flat image of one grey level."""
    return image_bytes(np.full((8, 8, 3), level, dtype=np.uint8))


LEVELS = {"cat": 20, "dog": 120, "fox": 220}


def site(folder, classes, splits=("train/", "test/"), count=5):
    """Images whose grey level tells the class."""
    return write_folder(
        folder, {f"{s}{c}/{i}.png": grey(LEVELS[c] + i) for s in splits for c in classes for i in range(count)}
    )


def held(folder, name):
    dataset = ShardDataset(folder / f"{name}.h5")
    x, y = dataset[list(range(len(dataset)))]
    return x.numpy(), y.numpy()


def run(capsys, *arguments):
    code = main([str(a) for a in arguments])
    return code, capsys.readouterr()


def test_a_site_that_lacks_a_class_numbers_the_others_by_the_list(tmp_path, capsys):
    source = site(tmp_path / "in", ("cat", "fox"))
    (tmp_path / "classes.txt").write_text("\ufeffcat\n dog \nfox\n", encoding="utf-8")
    for how, given in (("list", "cat,dog,fox"), ("file", tmp_path / "classes.txt")):
        out = tmp_path / how
        code, said = run(capsys, "imagefolder", source, "--out", out, "--centers", 1, "--classes", given)
        assert code == 0 and "no examples of 'dog'" in said.out
        x, y = held(out, "dc0")
        assert [(int(image.mean()) - 20) // 100 for image in x] == y.tolist() == [0] * 5 + [2] * 5
        assert ShardDataset(out / "dc0.h5").info.classes == ("cat", "dog", "fox")
        assert held(out, "test")[1].tolist() == [0] * 5 + [2] * 5


def test_a_class_that_the_list_has_not_is_named(tmp_path, capsys):
    source = site(tmp_path / "in", ("cat", "fox"))
    code, said = run(capsys, "imagefolder", source, "--out", tmp_path / "out", "--classes", "cat,dog")
    assert code == 1 and "has examples of 'fox' (train/fox/0.png is one), which the list has not" in said.err
    assert not (tmp_path / "out").exists()


def test_another_order_of_the_classes_is_another_data_set(tmp_path, capsys):
    source = site(tmp_path / "in", ("cat", "fox"))
    arguments = ("imagefolder", source, "--out", tmp_path / "out", "--centers", 1)
    assert run(capsys, *arguments)[0] == 0
    code, said = run(capsys, *arguments, "--classes", "fox,cat")
    assert code == 1 and "another data set" in said.err
    assert run(capsys, *arguments, "--classes", "fox,cat", "--overwrite")[0] == 0
    x, y = held(tmp_path / "out", "dc0")
    assert [int(image.mean() < 100) for image in x] == y.tolist()


# Every source that has classes: (its input, its arguments, a list with one more class, labels of dc0 + test by name).
def wavs(folder):
    return write_folder(folder, {f"{c}/{i}.wav": wav_bytes(tone(300)) for c in ("no", "yes") for i in range(5)})


def words(folder):
    names = [f"{w}/{i:08x}_nohash_0.wav" for w in ("no", "yes") for i in range(40)]
    return write_folder(folder, {name: wav_bytes(tone(300, 0.1)) for name in names})


def table(folder):
    rows = [["text", "mood"], *([f"text {i}", ("no", "yes")[i % 2]] for i in range(20))]
    return write_folder(folder, {"a.csv": csv_bytes(rows)}) / "a.csv"


def folders(folder):
    jpeg = image_bytes(images(1, size=40)[0], "JPEG")
    return write_folder(
        folder, {f"{s}/{c}/{i}.jpg": jpeg for s in ("train", "val") for c in ("no", "yes") for i in range(4)}
    )


SOURCES = {
    "imagefolder": (lambda f: write_folder(f, {f"{c}/{i}.png": grey(9) for c in ("no", "yes") for i in range(5)}), ()),
    "wav-folder": (wavs, ()),
    "speech-commands": (words, ()),
    "csv-text": (table, ("--text", "text", "--labels", "mood")),
    "imagenet": (folders, ()),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_takes_a_list_of_classes(tmp_path, capsys, name):
    make, more = SOURCES[name]
    source = make(tmp_path / "in")
    common = (name, source, *more, "--centers", 1)
    assert run(capsys, *common, "--out", tmp_path / "plain")[0] == 0
    code, said = run(capsys, *common, "--out", tmp_path / "listed", "--classes", "maybe,yes,no")
    assert code == 0, said.err
    plain, listed = (json.loads((tmp_path / f / "dataset.json").read_text()) for f in ("plain", "listed"))
    assert plain["classes"] == ["no", "yes"] and listed["classes"] == ["maybe", "yes", "no"]
    count = {f["classes"][i]: n for f in (plain,) for i, n in enumerate(f["centers"][0]["class_counts"])}
    assert listed["centers"][0]["class_counts"] == [0, count["yes"], count["no"]]


def test_sources_with_fixed_classes_take_another_order(tmp_path, capsys):
    order = ",".join("9876543210")
    assert run(capsys, "digits", "--out", tmp_path / "a", "--centers", 1)[0] == 0
    assert run(capsys, "digits", "--out", tmp_path / "b", "--centers", 1, "--classes", order)[0] == 0
    code, said = run(capsys, "digits", "--out", tmp_path / "c", "--classes", "0,1,2")
    assert code == 1 and "has examples of '3', '4', '5', '6', '7' and 2 more" in said.err
    (plain, y), (other, reversed_y) = held(tmp_path / "a", "dc0"), held(tmp_path / "b", "dc0")
    assert {(i.tobytes(), 9 - k) for i, k in zip(plain, y, strict=True)} >= {
        (i.tobytes(), k) for i, k in zip(other, reversed_y, strict=True) if i.tobytes() in {p.tobytes() for p in plain}
    }


def test_several_labels_a_list_gives_the_columns_and_missing_ones_are_masked(tmp_path, capsys):
    rows = [["text", "p", "q"], *([f"word{i}", i % 2, 1] for i in range(20))]
    source = write_folder(tmp_path / "in", {"a.csv": csv_bytes(rows)}) / "a.csv"
    arguments = ("csv-text", source, "--text", "text", "--labels", "p,q", "--centers", 1, "--out", tmp_path / "out")
    assert run(capsys, *arguments, "--classes", "q,r,p")[0] == 0
    y = held(tmp_path / "out", "dc0")[1]
    assert (y[:, 0] == 1).all() and (y[:, 1] == -1).all() and set(y[:, 2]) == {0, 1}


def test_labels_that_come_with_the_examples_are_reordered_too():
    contents = Contents("multilabel", "features", ("a", "b"), {"train": 3, "test": 1})
    arranged = arrange(contents, Wishes(classes=("b", "c", "a")), 0.2, "here")
    item = Item("train", 2, np.zeros(1), np.array([0, 1], dtype=np.int8))
    assert arranged.contents.classes == ("b", "c", "a") and arranged.label(item).tolist() == [1, -1, 0]


def test_a_list_may_be_longer_than_a_file_name():
    names = [f"sound number {i}" for i in range(527)]
    assert read_classes(",".join(names)) == tuple(names)


BAD_LISTS = {
    "no file": ("cat", "there is no file cat"),
    "empty name": ("cat,,dog", "'' cannot name a class"),
    "twice": ("cat,dog,cat", "'cat' is there twice"),
    "control characters": ("cat,d\x1b[31mog", "cannot name a class"),
}


@pytest.mark.parametrize("what", BAD_LISTS)
def test_bad_lists_of_classes(what):
    text, message = BAD_LISTS[what]
    with pytest.raises(DataError, match=f"--classes: .*{message}"):
        read_classes(text)


def test_a_class_that_only_test_has_needs_a_list(tmp_path, capsys):
    files = {f"train/cat/{i}.png": grey(20) for i in range(3)} | {"test/dog/0.png": grey(120)}
    source = write_folder(tmp_path / "in", files)
    arguments = ("imagefolder", source, "--out", tmp_path / "out", "--centers", 1)
    code, said = run(capsys, *arguments)
    assert code == 1 and "test has classes that the training examples have not: 'dog'" in said.err
    assert run(capsys, *arguments, "--classes", "cat,dog")[0] == 0
    assert held(tmp_path / "out", "test")[1].tolist() == [1]


def test_one_name_in_two_unicode_forms_is_one_class(tmp_path, capsys):
    files = {f"train/caf\u00e9/{i}.png": grey(20) for i in range(2)} | {"test/cafe\u0301/0.png": grey(20)}
    files |= {"train/th\u00e9/0.png": grey(90)}
    code, said = run(
        capsys, "imagefolder", write_zip(tmp_path / "in.zip", files), "--out", tmp_path / "out", "--centers", 1
    )
    assert code == 0, said.err
    assert ShardDataset(tmp_path / "out" / "dc0.h5").info.classes == ("caf\u00e9", "th\u00e9")


def test_names_that_look_alike_are_noted(tmp_path, capsys):
    rows = [["text", "mood"], *([f"text {i}", ("no", "No")[i % 2]] for i in range(20))]
    source = write_folder(tmp_path / "in", {"a.csv": csv_bytes(rows)}) / "a.csv"
    code, said = run(capsys, "csv-text", source, "--text", "text", "--labels", "mood", "--out", tmp_path / "out")
    assert code == 0 and "'No' and 'no' are two classes" in said.out


@pytest.mark.parametrize("name", ["bad\x1b[2Jname", "line\nbreak", "tab\there"])
def test_folders_that_cannot_name_a_class(tmp_path, capsys, name):
    source = write_zip(tmp_path / "in.zip", {f"{name}/0.png": grey(1), "cat/0.png": grey(2)})
    code, said = run(capsys, "imagefolder", source, "--out", tmp_path / "out", "--centers", 1)
    assert code == 1 and "cannot name a class" in said.err and said.err.count("\n") == 1 and "\x1b" not in said.err


def test_a_folder_name_that_is_no_utf8_is_refused(tmp_path, capsys):
    folder = site(tmp_path / "in", ("cat",), splits=("",))
    write_folder(folder, {os.fsdecode(b"caf\xe9/0.png"): grey(3)})
    code, said = run(capsys, "imagefolder", folder, "--out", tmp_path / "out", "--centers", 1)
    assert code == 1 and "no UTF-8; rename it" in said.err


# Splits -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top", ["", "photos/"])
def test_folders_of_classes_alone_give_a_share_of_each_class_for_test(tmp_path, capsys, top):
    source = site(tmp_path / "in", ("cat", "dog", "fox"), splits=(top,), count=10)
    assert run(capsys, "imagefolder", source, "--out", tmp_path / "a", "--centers", 2)[0] == 0
    manifest = json.loads((tmp_path / "a" / "dataset.json").read_text())
    assert [e["class_counts"] for e in manifest["evaluation"]] == [[2, 2, 2]]
    assert sum(e["examples"] for e in manifest["centers"]) == 24
    code, _ = run(
        capsys, "imagefolder", source, "--out", tmp_path / "b", "--centers", 2, "--test-fraction", 0.5, "--seed", 3
    )
    assert code == 0
    x, y = held(tmp_path / "b", "test")
    assert np.bincount(y).tolist() == [5, 5, 5]
    assert [(int(image.mean()) - 20) // 100 for image in x] == y.tolist()
    trained = {int(image.mean()) for name in ("dc0", "dc1") for image in held(tmp_path / "b", name)[0]}
    assert trained.isdisjoint({int(image.mean()) for image in x}) and len(trained) == 15


def test_a_share_of_the_training_folder_and_none_of_data_with_their_own(tmp_path, capsys):
    source = site(tmp_path / "in", ("cat", "dog"), splits=("train/",), count=10)
    assert run(capsys, "imagefolder", source, "--out", tmp_path / "a", "--test-fraction", 0.3)[0] == 0
    assert held(tmp_path / "a", "test")[1].tolist() == [0] * 3 + [1] * 3
    both = site(tmp_path / "both", ("cat", "dog"))
    code, said = run(capsys, "imagefolder", both, "--out", tmp_path / "b", "--test-fraction", 0.3)
    assert code == 1 and "has 10 test examples of its own" in said.err
    code, said = run(capsys, "digits", "--out", tmp_path / "c", "--test-fraction", 1.0)
    assert code == 1 and "--test-fraction: 1.0 was set" in said.err


def test_texts_held_out_do_not_enter_the_vocabulary(tmp_path, capsys):
    rows = [["text", "mood"], *([f"word{i} word{i}", ("no", "yes")[i % 2]] for i in range(20))]
    source = write_folder(tmp_path / "in", {"a.csv": csv_bytes(rows)}) / "a.csv"
    arguments = ("csv-text", source, "--text", "text", "--labels", "mood", "--out", tmp_path / "out", "--centers", 1)
    assert run(capsys, *arguments, "--test-fraction", 0.4)[0] == 0
    vocabulary = json.loads((tmp_path / "out" / "vocabulary.json").read_text())
    assert len(vocabulary) == 2 + 12 and (held(tmp_path / "out", "test")[0][:, :2] == 1).all()


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize("separator", ["\t", ",", " ", ", "])
def test_a_list_file_gives_the_splits(tmp_path, capsys, form, separator):
    files = {f"{c}/my photo, {i}.png": grey(LEVELS[c] + i) for c in ("cat", "dog") for i in range(5)}
    source = write_folder(tmp_path / "in", files) if form == "folder" else write_zip(tmp_path / "in.zip", files)
    lines = {"cat/my photo, 1.png": "test", "dog/my photo, 4.png": "test", "dog/my photo, 0.png": "val"}
    (tmp_path / "s.txt").write_text("\n".join(f"{name}{separator}{split}" for name, split in lines.items()) + "\n\n")
    arguments = ("imagefolder", source, "--out", tmp_path / "out", "--centers", 1, "--split-list", tmp_path / "s.txt")
    code, said = run(capsys, *arguments)
    assert code == 0, said.err
    found = {name: sorted(int(i.mean()) for i in held(tmp_path / "out", name)[0]) for name in ("dc0", "val", "test")}
    assert found == {"dc0": [20, 22, 23, 24, 121, 122, 123], "val": [120], "test": [21, 124]}


def test_a_list_file_goes_before_the_folders(tmp_path, capsys):
    source = site(tmp_path / "in", ("cat", "dog"), count=2)
    (tmp_path / "s.txt").write_text("test/cat/0.png train\ntrain/dog/1.png test\n")
    arguments = ("imagefolder", source, "--out", tmp_path / "out", "--centers", 1, "--split-list", tmp_path / "s.txt")
    assert run(capsys, *arguments)[0] == 0
    assert sorted(int(i.mean()) for i in held(tmp_path / "out", "test")[0]) == [121]
    assert len(held(tmp_path / "out", "dc0")[1]) == 7


BAD_SPLITS = {
    "an unknown name": ("cat/7.png test\n", "has no example 'cat/7.png'; examples are named as in 'cat/0.png'"),
    "another split": ("cat/0.png testing\n", "line 1 of"),
    "no split": ("cat/0.png\n", "line 1 of"),
    "two splits": ("cat/0.png test\ncat/0.png val\n", "gives cat/0.png to test and to val"),
    "nothing": ("\n", "is empty"),
    "all for test": (
        "".join(f"{c}/{i}.png test\n" for c in ("cat", "dog") for i in range(2)),
        "training examples have not",
    ),
}


@pytest.mark.parametrize("what", BAD_SPLITS)
def test_bad_lists_of_splits(tmp_path, capsys, what):
    text, message = BAD_SPLITS[what]
    source = site(tmp_path / "in", ("cat", "dog"), splits=("",), count=2)
    (tmp_path / "s.txt").write_text(text)
    code, said = run(
        capsys, "imagefolder", source, "--out", tmp_path / "out", "--centers", 1, "--split-list", tmp_path / "s.txt"
    )
    assert code == 1 and message in said.err


def test_a_list_file_gives_the_groups(tmp_path, capsys):
    source = write_folder(
        tmp_path / "in", {f"{c}/{i}.png": grey(LEVELS[c] + i) for c in ("cat", "dog") for i in range(6)}
    )
    lines = [f"{c}/{i}.png, patient-{i % 3}" for c in ("cat", "dog") for i in range(5)]
    arguments = ("imagefolder", source, "--out", tmp_path / "out", "--names", "oslo,patient-1", "--test-fraction", 0)
    arguments = (*arguments, "--partition", "by-group", "--group-list", tmp_path / "g.txt")
    (tmp_path / "g.txt").write_text("\n".join(lines))
    code, said = run(capsys, *arguments)
    assert code == 1 and "cat/5.png is for training and has no group" in said.err
    (tmp_path / "g.txt").write_text("\n".join([*lines, "cat/5.png,patient-1", "dog/5.png,patient-1"]))
    code, said = run(capsys, *arguments)
    assert code == 0, said.err
    levels = {name: sorted(int(i.mean()) for i in held(tmp_path / "out", name)[0]) for name in ("oslo", "patient-1")}
    assert levels == {"oslo": [20, 22, 23, 120, 122, 123], "patient-1": [21, 24, 25, 121, 124, 125]}
    table = [line.split()[:3] for line in said.out.splitlines()]
    assert ["file", "examples", "groups"] in table and ["oslo.h5", "6", "2"] in table
    # What is not for training needs no group.
    (tmp_path / "g.txt").write_text("\n".join(lines))
    (tmp_path / "s.txt").write_text("cat/5.png test\ndog/5.png test\n")
    code, said = run(capsys, *arguments[:-4], "--overwrite", *arguments[-4:], "--split-list", tmp_path / "s.txt")
    assert code == 1 and "--split-list and --test-fraction" in said.err
    arguments = [a for a in arguments if a not in ("--test-fraction", 0)]
    code, said = run(capsys, *arguments, "--overwrite", "--split-list", tmp_path / "s.txt")
    assert code == 0, said.err
    assert len(held(tmp_path / "out", "test")[1]) == 2 and len(held(tmp_path / "out", "oslo")[1]) == 6
    (tmp_path / "g.txt").write_text("cat/0.png\n")
    code, said = run(capsys, *arguments)
    assert code == 1 and "NAME and a group expected" in said.err


def test_groups_of_examples_without_names(tmp_path, capsys):
    (tmp_path / "g.txt").write_text("".join(f"train/{i} g{i % 4}\n" for i in range(1797)))
    arguments = ("digits", "--out", tmp_path / "out", "--centers", 2, "--partition", "by-group")
    arguments = (*arguments, "--group-list", tmp_path / "g.txt")
    assert run(capsys, *arguments)[0] == 0
    (tmp_path / "g.txt").write_text("".join(f"train/{i} g{i % 4}\n" for i in range(1700)))
    code, said = run(capsys, *arguments, "--overwrite")
    assert code == 1 and "train/1700 is for training and has no group" in said.err


def test_examples_without_names_are_called_by_their_number(tmp_path, capsys):
    rows = [["text", "mood"], *([f"word{i}", ("no", "yes")[i % 2]] for i in range(20))]
    source = write_folder(tmp_path / "in", {"a.csv": csv_bytes(rows)}) / "a.csv"
    (tmp_path / "s.txt").write_text("train/3 test\ntrain/18 test\n")
    arguments = ("csv-text", source, "--text", "text", "--labels", "mood", "--out", tmp_path / "out", "--centers", 1)
    code, _ = run(capsys, *arguments, "--split-list", tmp_path / "s.txt", "--least-count", 1)
    assert code == 0 and held(tmp_path / "out", "test")[1].tolist() == [1, 0]
    vocabulary = json.loads((tmp_path / "out" / "vocabulary.json").read_text())
    assert "word4" in vocabulary and not {"word3", "word18"} & set(vocabulary)
    with pytest.raises(DataError, match="more labels than fit into memory"):
        arrange(
            Contents("multilabel", "features", ("a",), {"train": 3}), Wishes(split_list={"train/0": "test"}), 0, "x"
        )
    with pytest.raises(DataError, match=r"--split-list: .* cannot be read"):
        read_split_list(str(tmp_path / "nowhere.txt"))
