"""The examples of docs/extending.md run as they stand."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from colearn_hpc import CoLearning
from colearn_hpc.algorithm import EpochPosition
from colearn_hpc.between import Offer, Vector
from colearn_hpc.protocol.conversation import Conversation
from colearn_hpc.protocol.messages import Topic, TopicKind
from colearn_hpc.studies.grid import expand
from colearn_hpc.studies.study_file import read_study
from colearn_hpc.trainer.means import Means

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "extending.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)


@pytest.fixture(scope="module")
def names():
    found = {"__name__": "extending"}
    for code in EXAMPLES:
        exec(compile(code, str(PAGE), "exec"), found)
    return found


def test_every_example_is_short():
    assert len(EXAMPLES) == 4 and all(len(code.splitlines()) <= 40 for code in EXAMPLES)


def test_schedule(names):
    triangle = names["Triangle"](low=0.2)
    rates = [triangle.factor(EpochPosition(0, j, 5, j)) for j in range(5)]
    assert rates == pytest.approx([0.2, 0.6, 1.0, 0.6, 0.2])
    assert CoLearning(rounds=1, schedule=triangle).settings.schedule is triangle


def test_study_of_a_schedule(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.S)
    (tmp_path / "triangle.yaml").write_text(text)
    shutil.copytree(REPOSITORY / "configs", tmp_path / "configs")
    plans = expand(read_study(tmp_path / "triangle.yaml"))
    assert [plan.name for plan in plans][-1] == "triangle-s2" and len(plans) == 6
    assert plans[-1].settings["colearning"]["schedule"]["class_path"] == "my_code.Triangle"
    assert plans[0].settings["colearning"]["schedule"] == "clr"


def test_combination_rule(names):
    rule, out = names["Midrange"](), torch.empty(2)
    rows = [torch.tensor(row) for row in ([1.0, 5.0], [2.0, -1.0], [9.0, 0.0])]
    assert rule.combine(rows, [1.0] * 3, out).tolist() == [5.0, 2.0]
    assert CoLearning(rounds=1, combine=rule).settings.combiner is rule


def test_outer_optimizer(names):
    step, before = names["SignStep"](0.5), torch.tensor([0.0, 1.0])
    assert step.step(before, torch.tensor([0.2, 9.0]), None)[0].tolist() == pytest.approx([0.2, 1.5])
    assert CoLearning(rounds=1, outer_optimizer=step).settings.outer_optimizer is step


class OneRank:
    """A site of one process."""

    name, host, rank, size, broken, carriers = "here", "host", 0, 1, "", (0,)

    def gather(self, content):
        return [content]

    def bcast(self, content):
        return content

    def calls(self):
        return []

    def break_(self, why): ...

    def regroup(self, content, patience=None):
        return [content]


def test_transport(names):
    between = names["Alone"]()
    conversation = Conversation(OneRank(), between)
    met = conversation.meet(Topic(TopicKind.ROUND, 0), {"examples": 7})
    assert met.present == (0,) and met.contents == {0: {"examples": 7}}
    assert conversation.decide(Topic(TopicKind.MEAN, 0), lambda: [0.5, 2, None]) == [0.5, 2, None]
    result = torch.empty(4)
    facts = Means(OneRank(), between).take(Offer(Vector(torch.arange(4.0)), result, [1.0], 4, torch.zeros(4)), (0,))
    assert result.tolist() == [0.0, 1.0, 2.0, 3.0] and facts.finite and facts.squares.after == 14.0
    conversation.fail(error := ValueError("lost"))
    assert error.everywhere and "lost" in conversation.verdict
