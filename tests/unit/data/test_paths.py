"""Paths, names and temporary files: what cannot be is said in a sentence, and nothing is written through a link."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from miniatures import image_bytes, images, write_folder, write_zip

from colearn_hpc.cli.data import main
from colearn_hpc.data import ShardDataModule, shard_writer
from colearn_hpc.data.pack import check_names
from colearn_hpc.data.shards import ShardWriter
from colearn_hpc.errors import DataError


@pytest.mark.parametrize("name", ["", ".", "..", "a" * 300, "a/b", "a\0b", "a\nb", "a\x1b[31m", "-a", "a b", "test"])
def test_names_that_cannot_become_files(name):
    with pytest.raises(DataError, match=r"--names: .* cannot name a data center") as caught:
        check_names((name,))
    assert len(str(caught.value)) < 250 and str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["a" * 300, "..", "../../etc", "a\x1b[31m", "a\nb"])
def test_a_center_that_cannot_name_a_file(tmp_path, monkeypatch, name):
    monkeypatch.setenv("COLEARN_CENTER", name)
    with pytest.raises(DataError, match=r"data.train: COLEARN_CENTER=.* cannot name a file") as caught:
        ShardDataModule(str(tmp_path / "{center}.h5")).setup("fit")
    assert str(caught.value).isprintable()


def test_paths_that_no_file_can_have(tmp_path, capsys):
    with pytest.raises(DataError, match=r"data.train: 'xxx.* cannot be looked up: File name too long"):
        ShardDataModule("x" * 300).setup("fit")
    for arguments in (["digits", "--out", "x" * 300], ["check", "x" * 300], ["imagefolder", "x" * 300, "--out", "y"]):
        assert main(arguments) == 1
        assert "File name too long" in capsys.readouterr().err


def test_without_a_home_folder_a_tilde_is_named(tmp_path):
    """A container's user number is often in no table of users, and HOME is not set."""
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    program = (
        "import sys, pwd\n"
        "def nobody(number): raise KeyError(number)\n"
        "pwd.getpwuid = nobody\n"
        "from colearn_hpc.cli.data import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    for arguments in (["digits", "--out", "~/shards"], ["imagefolder", "~/in", "--out", "x"], ["check", "~/shards"]):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert "begins with ~, but no home folder is known (HOME is not set); write the whole path" in done.stderr
    done = subprocess.run(
        [sys.executable, "-c", program, "digits", "--out", "d"], env=environment, cwd=tmp_path, capture_output=True
    )
    assert done.returncode == 0


def test_names_from_an_archive_do_not_command_the_terminal(tmp_path, capsys):
    good = image_bytes(images(1)[0])
    files = {f"train/cat/{i}.png": good for i in range(4)} | {"test/cat/0.png": good}
    files["train/cat/\x1b]0;evil\x07\x1b[2J.png"] = b"no image"
    source = write_zip(tmp_path / "in.zip", files)
    arguments = ["imagefolder", str(source), "--out", str(tmp_path / "out"), "--centers", "1"]
    assert main(arguments) == 1
    assert "\x1b" not in (said := capsys.readouterr()).err and "\\x1b]0;evil\\x07" in said.err
    assert main([*arguments, "--on-error", "skip"]) == 0
    assert "\x1b" not in (said := capsys.readouterr()).out and "\\x1b]0;evil" in said.out


def test_a_file_name_that_is_no_utf8_can_be_skipped(tmp_path, capsys):
    good = image_bytes(images(1)[0])
    files = {f"train/cat/{i}.png": good for i in range(4)} | {"test/cat/0.png": good}
    source = write_folder(tmp_path / "in", files | {os.fsdecode(b"train/cat/\xe9.png"): b"no image"})
    arguments = ["imagefolder", str(source), "--out", str(tmp_path / "out"), "--centers", "1", "--on-error", "skip"]
    assert main(arguments) == 0
    skipped = json.loads((tmp_path / "out" / "dataset.json").read_text())["skipped"]["items"]
    assert [os.fsencode(name) for name, _ in skipped] == [b"train/cat/\xe9.png"]


def test_temporary_files_are_created_and_never_follow_a_link(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr(shard_writer.secrets, "token_hex", lambda n: "guessed")
    for path in (tmp_path / "dc0.h5", tmp_path / "dataset.json"):
        shard_writer.temporary_name(path).symlink_to(victim)
    with pytest.raises(DataError, match="cannot be written"):
        ShardWriter(tmp_path / "dc0.h5", task="classification", classes=["a"])
    with pytest.raises(DataError, match="cannot be written"):
        shard_writer.write_atomically(tmp_path / "dataset.json", lambda file: None)
    assert victim.read_text() == "precious"


def test_a_shard_replaces_a_link_and_not_what_it_leads_to(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "dc0.h5").symlink_to(victim)
    with ShardWriter(tmp_path / "dc0.h5", task="classification", classes=["a"]) as writer:
        writer.append(np.zeros(2), 0)
    assert victim.read_text() == "precious" and not (tmp_path / "dc0.h5").is_symlink()


MANIFESTS = {
    "only a head": {},
    "a file elsewhere": {"centers": [{"file": "../dc0.h5", "examples": 3}]},
    "an entry without a number": {"centers": [{"file": "dc0.h5"}]},
    "centers no list": {"centers": 3},
}


@pytest.mark.parametrize("what", MANIFESTS)
def test_damaged_manifests_are_one_sentence(tmp_path, capsys, what):
    assert main(["digits", "--out", str(tmp_path), "--centers", "1"]) == 0
    path = tmp_path / "dataset.json"
    whole = json.loads(path.read_text())
    head = {name: whole[name] for name in ("format", "version")}
    path.write_text(json.dumps(head | ({} if what == "only a head" else whole) | MANIFESTS[what]))
    for arguments in (["digits", "--out", str(tmp_path), "--centers", "1"], ["check", str(tmp_path)]):
        assert main(arguments) == 1
        assert "dataset.json: is damaged: entries are missing or name files elsewhere" in capsys.readouterr().err
