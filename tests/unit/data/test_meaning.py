"""What a number means: said by every shard, compared within a data center, offered for comparison between them."""

import json

import numpy as np
import pytest
from miniatures import csv_bytes, tone, toxic, wav_bytes, write_folder

from colearn_hpc.cli.data import main
from colearn_hpc.data import ShardDataModule
from colearn_hpc.data.pack import Request, pack
from colearn_hpc.data.shard_info import difference
from colearn_hpc.data.shards import ShardWriter, read_info
from colearn_hpc.data.sources.csv_text import CsvText
from colearn_hpc.data.sources.toxic import Toxic
from colearn_hpc.data.sources.wav_folder import WavFolder
from colearn_hpc.errors import DataError


def shard(path, classes=("cat", "dog"), values=(1, 2, 3), **options):
    with ShardWriter(path, task="classification", classes=classes, **options) as writer:
        for i in range(4):
            writer.append(np.array(values, np.float32), i % len(classes))
    return path


def test_the_meaning_of_a_shard(tmp_path):
    info = read_info(shard(tmp_path / "a.h5", metadata={"scale": 0.5, "layout": "age [a], mass [kg], height [m]"}))
    assert info.meaning == {
        "task": "classification",
        "kind": "features",
        "encoding": "array",
        "shape": "(3,)",
        "classes": "2: cat, dog",
        "class 0": "cat",
        "class 1": "dog",
        "scale": "0.5",
        "offset": "0.0",
        "layout": "age [a], mass [kg], height [m]",
    }


# Two shards that a model may not be trained on together -> the first thing they do not share.
OTHERS = {
    "order of classes": ({"classes": ("dog", "cat")}, ("classes", "2: cat, dog", "2: dog, cat")),
    "another class": ({"classes": ("cat", "fox")}, ("classes", "2: cat, dog", "2: cat, fox")),
    "a class less": ({"classes": ("cat",)}, ("classes", "2: cat, dog", "1: cat")),
    "scale": ({"metadata": {"scale": 1 / 255}}, ("scale", "1.0", repr(1 / 255))),
    "offset": ({"metadata": {"offset": -1}}, ("offset", "0.0", "-1.0")),
    "kind": ({"kind": "wave"}, ("kind", "features", "wave")),
    "sample rate": ({"metadata": {"sample_rate": 8000}}, ("sample_rate", "nothing", "8000")),
    "vocabulary": ({"metadata": {"vocabulary": "ab12"}}, ("vocabulary", "nothing", "ab12")),
    "layout": ({"metadata": {"layout": "mass, age"}}, ("layout", "nothing", "mass, age")),
    "shape": ({"values": (1, 2)}, ("shape", "(3,)", "(2,)")),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_differs_is_named(tmp_path, what):
    change, found = OTHERS[what]
    ours, theirs = shard(tmp_path / "a.h5"), shard(tmp_path / "b.h5", **change)
    assert difference(read_info(ours).meaning, read_info(theirs).meaning) == found
    module = ShardDataModule(str(ours), test=str(theirs))
    for ask in (
        module.meaning,
        lambda: module.setup("fit"),
        lambda: ShardDataModule([str(ours), str(theirs)]).meaning(),
    ):
        with pytest.raises(DataError, match=rf"b.h5: {found[0]} is .*, but .*a.h5 has .*--classes and --vocabulary"):
            ask()


def test_a_difference_beyond_the_first_hundred_classes_is_named(tmp_path):
    names = [f"class number {i}" for i in range(300)]
    ours = read_info(shard(tmp_path / "a.h5", names)).meaning
    theirs = read_info(shard(tmp_path / "b.h5", [*names[:250], "other", *names[251:]])).meaning
    assert difference(ours, theirs) == ("class 250", "class number 250", "other")


def test_what_may_differ_between_data_centers(tmp_path):
    ours = shard(tmp_path / "a.h5", source="one", metadata={"mean": [0.1], "std": [1.0], "center": "lyon", "day": 1})
    theirs = shard(tmp_path / "b.h5", source="two", metadata={"mean": [0.3], "std": [2.0], "center": "oslo"})
    one, other = (ShardDataModule(str(path)).meaning() for path in (ours, theirs))
    assert difference(one, other) is None and one["normalised"] == "by mean and std of the training shard"
    plain = ShardDataModule(str(ours), normalize=False).meaning()
    assert difference(one, plain) == ("normalised", "by mean and std of the training shard", "no")
    assert difference(plain, ShardDataModule(str(ours), normalize=False, image_size=8).meaning())[0] == "image_size"


def test_a_test_shard_need_not_carry_the_statistics_of_training(tmp_path):
    ours = shard(tmp_path / "a.h5", metadata={"mean": [0.1], "std": [1.0]})
    ShardDataModule(str(ours), test=str(shard(tmp_path / "b.h5"))).meaning()


def test_vocabularies_of_one_size_are_told_apart(tmp_path):
    def pack_words(name, words, **options):
        rows = [["text", "label"], *([f"{words[i % 2]} {words[i % 2]}", i % 2] for i in range(20))]
        path = write_folder(tmp_path / name, {"a.csv": csv_bytes(rows)}) / "a.csv"
        pack(CsvText(str(path), "text", ("label",), **options), Request(tmp_path / name / "out", ("dc",)))
        return read_info(tmp_path / name / "out" / "dc.h5").meaning

    one, other = pack_words("a", ("fever", "cough")), pack_words("b", ("pain", "sleep"))
    assert difference(one, other)[0] == "vocabulary"
    given = str(tmp_path / "a" / "out" / "vocabulary.json")
    assert difference(one, pack_words("c", ("pain", "sleep"), vocabulary=given)) is None


def test_sources_say_rate_and_vocabulary(tmp_path):
    waves = write_folder(tmp_path / "w", {f"{c}/{i}.wav": wav_bytes(tone(300)) for c in "ab" for i in range(5)})
    pack(WavFolder(str(waves), rate=8000), Request(tmp_path / "w8", ("dc",)))
    assert read_info(tmp_path / "w8" / "dc.h5").meaning["sample_rate"] == "8000"
    pack(Toxic(str(toxic(tmp_path / "t"))), Request(tmp_path / "t8", ("dc",)))
    words = json.loads((tmp_path / "t8" / "vocabulary.json").read_text())
    meaning = read_info(tmp_path / "t8" / "dc.h5").meaning
    assert meaning["vocabulary_size"] == str(len(words)) and len(meaning["vocabulary"]) == 16


def test_info_says_what_the_numbers_mean(tmp_path, capsys):
    folder = write_folder(tmp_path / "w", {f"{c}/{i}.wav": wav_bytes(tone(300)) for c in "ab" for i in range(5)})
    assert main(["wav-folder", str(folder), "--out", str(tmp_path / "out"), "--centers", "1"]) == 0
    capsys.readouterr()
    assert main(["info", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("dc0.h5\n") and "\ntest.h5\n" in said
    lines = [line.split(maxsplit=1) for line in said.partition("test.h5")[0].splitlines()[1:]]
    found = {line[0]: line[1] for line in lines}
    assert found["examples"] == "8 of wav-folder" and found["classes"] == "2: a, b"
    assert found["sample_rate"] == "16000" and found["center"] == "dc0" and "request" not in found
    assert main(["info", str(tmp_path / "out" / "dc0.h5")]) == 0
    assert "test.h5" not in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert main(["info", str(tmp_path / "empty")]) == 1
    assert "holds no shards" in capsys.readouterr().err


def test_info_says_what_was_done_to_images(tmp_path, capsys):
    from test_images import xrays

    assert main(["imagefolder", str(xrays(tmp_path / "in")), "--out", str(tmp_path / "out"), "--size", "4"]) == 0
    capsys.readouterr()
    assert main(["info", str(tmp_path / "out" / "dc0.h5")]) == 0
    done = "decoded to 3 planes of uint16, 65535 is white; turned upright as EXIF says, resized to 4 x 4 (bilinear)"
    assert done in capsys.readouterr().out


def test_check_names_what_differs_between_the_shards_of_a_folder(tmp_path, capsys):
    shard(tmp_path / "a.h5")
    shard(tmp_path / "b.h5", metadata={"scale": 0.5})
    assert main(["check", str(tmp_path)]) == 1
    assert "b.h5: scale is 0.5, in a.h5 1.0: the two differ in what their numbers mean" in capsys.readouterr().err
