"""The confusion matrix in the report: drawn where a run left one, and never the report's end."""

import json
from xml.etree import ElementTree

import pytest

from colearn_hpc.studies.confusion import confusion_figure
from colearn_hpc.studies.run_folder import RunFolder


def run_with(tmp_path, text):
    (tmp_path / "centers" / "dc0").mkdir(parents=True)
    (tmp_path / "centers" / "dc0" / "confusion.json").write_text(text)
    return RunFolder(tmp_path, rounds=[{"centers": [{"name": "dc0"}]}])


def test_every_count_is_in_the_picture(tmp_path):
    classes, counts = ["cat", "<dog>", "frog"], [[7, 1, 0], [0, 8, 2], [0, 0, 9]]
    run = run_with(tmp_path, json.dumps({"stage": "val", "classes": classes, "counts": counts}))
    figure = confusion_figure(run, "run")
    assert figure.name == "run-confusion" and "24 of 27" in figure.caption and not run.problems
    root = ElementTree.fromstring(figure.svg)
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert sorted(text for text in texts if text.isdigit()) == ["1", "2", "7", "8", "9"]
    assert texts.count("<dog>") == 2
    assert [text for _, _, text in figure.points][3:6] == [
        "true <dog>, predicted cat: 0",
        "true <dog>, predicted <dog>: 8",
        "true <dog>, predicted frog: 2",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"classes": ["a", "b"], "counts": [[1, -1], [0, 1]]}',
        '{"classes": ["a", "b"], "counts": [[1, 2]]}',
        '{"classes": ["a", "b"], "counts": [[1], [2, 3]]}',
    ],
)
def test_a_damaged_file_is_a_problem_of_the_run(tmp_path, text):
    run = run_with(tmp_path, text)
    assert confusion_figure(run, "run") is None and "confusion.json" in run.problems[0]


def test_no_file_no_figure(tmp_path):
    run = RunFolder(tmp_path, rounds=[{"centers": [{"name": "dc0"}]}])
    assert confusion_figure(run, "run") is None and not run.problems
