"""Every row of the two tables of meetings in protocol/README.md is run, and says in the row's words what came of it."""

import re
from pathlib import Path

import pytest

from colearn_hpc.protocol import pacing
from colearn_hpc.protocol.meeting import FINISHED, Attendee, Chair, GaveUp, ProtocolError
from colearn_hpc.protocol.messages import Absent, Arrival, LeftOut, Outcome, Present, Topic, TopicKind

README = Path(__file__).parents[3] / "colearn_hpc" / "protocol" / "README.md"
ROWS = dict(re.findall(r"^\| ([CA]\d+) \|(.+)\|$", README.read_text(), re.M))
R0, R1 = Topic(TopicKind.ROUND, 0), Topic(TopicKind.ROUND, 1)
PATIENCE = 5.0


def chair(*come, may_miss=False, patience=PATIENCE, topic=R0):
    made = Chair(["dc0", "dc1", "dc2"])
    for leader in come:
        made.receive(leader, Arrival(topic, Present(leader)))
    made.open(topic, 0.0, patience, may_miss)
    return made


def attendee(patience=PATIENCE):
    made = Attendee(1)
    made.arrive(R0, Present(), 0.0, patience)
    return made


def quietly(made, now, heard=None, chair_is_here=False):
    """What the attendee makes of it that nothing has come."""
    return made.due(now, now if heard is None else heard, chair_is_here)


def c1():
    assert chair(0).due(1.0) is None and chair(0).missing == {1, 2}
    return "it waits for all members"


def c2():
    made = Chair(["dc0", "dc1"])
    made.receive(1, Arrival(R0, Present("early")))
    made.open(R0, 0.0, None, False)
    assert made.missing == {0}
    return "what it brings is kept"


def c3():
    made = chair(0, 1, 2)
    outcome = made.due(1.0)
    assert [message for _, message in made.outbox()] == [outcome] * 3
    made.open(R1, 2.0, None, False)
    return "each of them gets the one outcome; idle"


def c4():
    made = chair(0, 2, may_miss=True)
    outcome = made.due(PATIENCE + 0.1)
    assert isinstance(outcome, Outcome) and outcome.present == (0, 2) and made.members == {0, 2}
    assert made.outbox() == [(1, LeftOut(R0)), (0, outcome), (2, outcome)]
    return "who is missing is told so and is no member; the others get the outcome; idle"


def c5():
    assert chair(0, 2).due(PATIENCE + 0.1) == GaveUp(R0, frozenset({1}))
    return "it gives up, names who is missing"


def c6():
    made = chair(0, 2, may_miss=True)
    made.due(PATIENCE + 0.1)
    for leader, topic in ((0, R1), (1, R0), (2, R1)):
        made.receive(leader, Arrival(topic, Present(leader)))
    made.open(R1, 10.0, PATIENCE, True)
    outcome = made.due(11.0)
    assert outcome.arrivals[1] == Arrival(R1, Absent("missed round 0", 1)) and made.members == {0, 1, 2}
    return "it is a member again. In this round it is absent"


def c7():
    made = chair(0, 2, may_miss=True)
    made.due(PATIENCE + 0.1)
    made.outbox()
    assert made.close() == {1} and made.outbox() == [(1, Outcome(FINISHED, (None, None, None)))]
    return "it is told that the run is finished"


def c8():
    with pytest.raises(ProtocolError):
        chair(0).open(R1, 1.0, None, False)
    return "refused"


def c9():
    made = chair(0, 1, 2)
    made.withdraw(1)
    assert made.missing == {1} and made.due(1.0) is None
    made.receive(1, Arrival(R0, Present(1)))
    assert made.due(1.0).present == (0, 1, 2)
    return "it is waited for as if it had not come"


def c10():
    made = chair(0, 1)
    made.cancel()
    made.open(R0, 1.0, PATIENCE, False)
    assert made.missing == {2}
    return "who had come has still arrived"


def a1():
    made = Attendee(1)
    assert made.arrive(R0, Present("x"), 0.0, PATIENCE) == Arrival(R0, Present("x")) and quietly(made, 1.0) is None
    return "it tells the chair, and waits"


def a2():
    made, outcome = attendee(), Outcome(R1, (None, Arrival(R1, Absent("missed round 0"))))
    made.receive(outcome)
    assert quietly(made, 1.0) == outcome
    made.arrive(R1, Present(), 2.0, PATIENCE)
    return "idle; the outcome may be of a later topic"


def a3():
    made = attendee()
    made.receive(LeftOut(R0))
    assert quietly(made, 100 * PATIENCE) is None
    return "it waits on past its patience, as long as the chair is heard of"


def a4():
    assert quietly(attendee(None), 1e9, heard=0.0) is None
    return "it waits on"


def a5():
    assert quietly(attendee(), PATIENCE + 1.0) == GaveUp(R0, frozenset({0}))
    return "it gives up, names the chair"


def a6():
    made, end = attendee(), 2 * PATIENCE + pacing.GRACE + 0.5
    assert quietly(made, end - 0.1, chair_is_here=True) is None
    assert isinstance(quietly(made, end + 0.1, chair_is_here=True), GaveUp)
    return f"it waits one patience and {pacing.GRACE:.0f} s more"


def a7():
    made = attendee()
    made.receive(LeftOut(R0))
    silence = pacing.SILENCE + PATIENCE
    assert quietly(made, silence - 0.1, heard=0.0) is None
    assert isinstance(quietly(made, silence + 0.1, heard=0.0), GaveUp)
    return "it gives up"


def a8():
    with pytest.raises(ProtocolError):
        attendee().arrive(R1, Present(), 1.0, None)
    return "refused"


RUNNERS = {name.upper(): run for name, run in globals().items() if re.fullmatch(r"[ca]\d+", name)}


def test_each_row_has_a_runner_and_each_runner_a_row():
    assert set(RUNNERS) == set(ROWS) and len(ROWS) == 18


@pytest.mark.parametrize("row", ROWS)
def test_row(row):
    said = RUNNERS[row]()
    assert said in ROWS[row].split("|")[-1]
