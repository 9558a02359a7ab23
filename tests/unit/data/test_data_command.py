"""``colearn-hpc data`` as a user types it."""

import json
import os
import signal
import subprocess
import sys
import time

import h5py
import pytest
from miniatures import image_files, write_folder, write_zip

from colearn_hpc.cli.data import main


def test_digits_then_check(tmp_path, capsys):
    assert main(["digits", "--out", str(tmp_path / "d"), "--names", "lyon,tokyo", "--seed", "3"]) == 0
    out = capsys.readouterr().out
    assert "lyon.h5" in out and "719" in out and "10 classes" in out
    assert main(["check", str(tmp_path / "d")]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["file", "examples", "shape", "type", "classes", "per", "class"]
    assert {line.split()[0] for line in table[1:]} == {"lyon.h5", "tokyo.h5", "test.h5"}
    assert table[1].split()[1:5] == ["719", "1x8x8", "uint8", "10"]


def test_five_centers_by_default_and_a_second_run_says_so(tmp_path, capsys):
    arguments = ["digits", "--out", str(tmp_path / "d")]
    assert main(arguments) == 0
    assert sorted(p.name for p in (tmp_path / "d").glob("dc*.h5")) == [f"dc{k}.h5" for k in range(5)]
    capsys.readouterr()
    assert main(arguments) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main([*arguments, "--seed", "1"]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main([*arguments, "--seed", "1", "--overwrite"]) == 0


def test_imagefolder_reports_what_it_left_out(tmp_path, capsys):
    files = image_files() | {f"train/cat/broken{i:02d}.png": b"no image" for i in range(12)}
    source = write_zip(tmp_path / "s.zip", files | {"train/readme.txt": b"hello"})
    arguments = ["imagefolder", str(source), "--out", str(tmp_path / "d"), "--centers", "2"]
    assert main(arguments) == 1
    assert "broken00.png: is not a readable image" in capsys.readouterr().err
    assert main([*arguments, "--on-error", "skip"]) == 0
    out = capsys.readouterr().out
    assert (
        "12 unreadable examples" in out
        and "and 2 more" in out
        and "1 files are no images and were left out (1 .txt)" in out
    )
    assert len(json.loads((tmp_path / "d" / "dataset.json").read_text())["skipped"]["items"]) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits", "--centers", "0"], "--centers: 0"),
        (["digits", "--centers", "3", "--names", "a,b"], "2 names for 3 centers"),
        (["digits", "--names", "a,a"], "twice"),
        (["digits", "--seed", "-1"], "seed"),
        (["digits", "--partition", "by-class", "--centers", "11"], "only 10 classes"),
        (["digits", "--partition", "dirichlet", "--alpha", "0"], "alpha"),
        (["digits", "--alpha", "0.1"], "--alpha: was set, and --partition iid does not read it"),
        (["digits", "--group-list", "g.txt"], "--group-list: was set, and --partition iid"),
        (["digits", "--group-list", "g.txt", "--partition", "by-class"], "--partition by-class does not read it"),
        (
            ["csv-text", "a.csv", "--text", "t", "--labels", "l", "--group-by", "hospital"],
            "--group-by: was set, and --partition iid does not read it; set --partition by-group, or leave",
        ),
        (
            ["wav-folder", "x", "--partition", "by-group", "--group-by", "label", "--group-list", "g.txt"],
            "--group-by and --group-list both say",
        ),
        (["imagefolder", "nowhere"], "nowhere: does not exist"),
    ],
)
def test_impossible_requests_are_one_line_and_exit_code_1(tmp_path, capsys, arguments, message):
    assert main([*arguments, "--out", str(tmp_path / "d")]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("colearn-hpc data: ")
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("arguments", [[], ["digits"], ["nonsense"], ["digits", "--out", "x", "--partition", "other"]])
def test_wrong_usage_is_exit_code_2(arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def damage_two(folder):
    (folder / "dc0.h5").write_bytes(b"")
    with h5py.File(folder / "dc1.h5", "r+") as file:
        file["y"][0] = 77


CHECKS = {
    "two damaged": (damage_two, ["dc0.h5: is empty", "label 77 of example 0"]),
    "missing": (lambda folder: (folder / "dc1.h5").unlink(), ["dc1.h5: is missing"]),
    "no manifest": (lambda folder: (folder / "dataset.json").unlink(), ["dataset.json: is missing"]),
    "manifest damaged": (lambda folder: (folder / "dataset.json").write_text("{"), ["dataset.json: is damaged"]),
    "swapped": (
        lambda folder: (folder / "test.h5").replace(folder / "dc0.h5"),
        ["dataset.json says", "test.h5: is missing"],
    ),
    "emptied": (lambda folder: [path.unlink() for path in folder.iterdir()], ["holds no shards", "is missing"]),
}


@pytest.mark.parametrize("what", CHECKS)
def test_check_has_a_line_for_every_problem(tmp_path, capsys, what):
    damage, messages = CHECKS[what]
    main(["digits", "--out", str(tmp_path / "d"), "--centers", "2"])
    damage(tmp_path / "d")
    capsys.readouterr()
    assert main(["check", str(tmp_path / "d")]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("colearn-hpc data check: ")]
    assert len(lines) == len(messages)
    for message in messages:
        assert sum(message in line for line in lines) == 1


def test_check_notices_shards_that_do_not_belong_together(tmp_path, capsys):
    main(["digits", "--out", str(tmp_path / "d"), "--centers", "2"])
    write_folder(tmp_path / "s", image_files())
    main(["imagefolder", str(tmp_path / "s"), "--out", str(tmp_path / "i"), "--centers", "1"])
    (tmp_path / "i" / "dc0.h5").replace(tmp_path / "d" / "extra.h5")
    assert main(["check", str(tmp_path / "d")]) == 1
    assert "are no one data set" in capsys.readouterr().err
    assert main(["check", str(tmp_path / "nowhere")]) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_killed_run_leaves_no_file_and_exits_130(tmp_path, number):
    files = image_files(per_class=3)
    files |= {f"train/cat/{i:06d}.png": files["train/cat/0001.png"] for i in range(30000)}
    source = write_zip(tmp_path / "s.zip", files)
    program = "import sys; from colearn_hpc.cli.data import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "imagefolder", str(source), "--out", str(tmp_path / "d"), "--centers", "2"],
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("d/.dc0.h5.*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error.decode()
    assert b"interrupted" in error and b"Traceback" not in error
    assert list((tmp_path / "d").iterdir()) == []


def test_help_imports_nothing_heavy():
    program = (
        "import sys; from colearn_hpc.cli.data import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(','.join(sorted({'torch', 'numpy', 'h5py', 'sklearn', 'pytorch_lightning'} & set(sys.modules))) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "imagefolder" in result.stdout
