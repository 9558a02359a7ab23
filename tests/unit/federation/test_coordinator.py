"""A real coordinator, and what sites may say to it: bad words and bad streams are refused, and the server lives."""

import io
import json
import socket
import time
import urllib.request
from dataclasses import replace

import grpc
import numpy as np
import pytest
from federated import Consortium, free_port

from colearn_hpc.cli.watch import main as watch
from colearn_hpc.errors import FederationError
from colearn_hpc.federation import transport, wire
from colearn_hpc.federation.coordinator.events import Events
from colearn_hpc.federation.link import Link
from colearn_hpc.federation.wire import HELLO, MEAN, ROW, WELCOME, Hello
from colearn_hpc.protocol.messages import Arrival, Present, Topic, TopicKind, from_plain, to_plain

NAMES = ("lyon", "kiel")
USUAL = ("join", "give", "see_mean", "preside")


@pytest.fixture(scope="module")
def consortium(tmp_path_factory):
    made = Consortium(tmp_path_factory.mktemp("run"), NAMES)
    sites = [replace(site, may=(*USUAL, "stop_all")) if site.name == "kiel" else site for site in made.federation.sites]
    made.write(replace(made.federation, sites=tuple(sites)))
    made.metrics = free_port()
    made.serve("--metrics", str(made.metrics))
    yield made
    made.end()


@pytest.fixture(scope="module")
def links(consortium):
    """A connection of each site, after the run has begun and all have been at the end of round 0."""
    links = [Link(consortium.membership(name)) for name in NAMES]
    for topic in (Topic(TopicKind.START), Topic(TopicKind.RUN_ID), Topic(TopicKind.ROUND, 0)):
        meet(links, topic)
    return links


def say(topic, content="same"):
    return to_plain(Arrival(topic, Present(content)))


def meet(links, topic):
    questions = [link.ask(say(topic)) for link in links]
    answers = [None] * len(links)
    while None in answers:
        answers = [a or q.poll() for a, q in zip(answers, questions, strict=True)]
        time.sleep(0.005)
    return [from_plain(answer["outcome"]) for answer in answers]


def code_of(answers):
    """With what a stream ends."""
    with pytest.raises(grpc.RpcError) as error:
        for _ in answers:
            pass
    return error.value.code()


def hello(number=1, size=4, weights=(1.0, 1.0), present=(0, 1), dtype="<f4"):
    return wire.frame(HELLO, number, 0, wire.pack(Hello(number, size, dtype, weights, present).to_plain()))


def alive(links):
    return links[0].ask_now(["status"], 10)["status"]["run"] == "gut"


def test_figures_for_prometheus(consortium, links):
    with urllib.request.urlopen(f"http://127.0.0.1:{consortium.metrics}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    assert 'colearn_site_state{site="lyon",state="here"} 1.0' in text
    assert "colearn_bytes_in_total" in text and 'colearn_site_heard_seconds{site="kiel"}' in text


@pytest.mark.parametrize("who", [["--site", "kiel"], []], ids=["a site", "the coordinator's machine"])
def test_watch(consortium, links, capsys, who):
    deadline = time.monotonic() + 10
    while "lyon  here" not in (seen := shown(capsys, consortium.path, *who)) and time.monotonic() < deadline:
        time.sleep(0.2)  # it is written every 2 s
    assert seen.startswith("run gut\n") and "lyon  here" in seen and "kiel  here" in seen


def shown(capsys, path, *who):
    watch(["--federation", str(path), "--once", *who])
    return capsys.readouterr().out


def test_watch_where_no_coordinator_writes(tmp_path, capsys):
    assert watch(["--federation", str(tmp_path / "federation.yaml"), "--once"]) == 2
    assert "at a site say --site NAME" in capsys.readouterr().err
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "status.json").write_text(json.dumps({"written": time.time() - 100}))
    assert watch(["--federation", str(tmp_path / "federation.yaml"), "--once"]) == 1
    assert "it does not run, or hangs" in capsys.readouterr().err


def test_events_as_json():
    out = io.StringIO()
    Events(as_json=True, out=out)("away", "kiel: walltime\x1b[2J", site="kiel")
    found = json.loads(out.getvalue())
    assert (found["event"], found["text"], found["site"]) == ("away", "kiel: walltime [2J", "kiel")
    assert abs(found["time"] - time.time()) < 60


def test_a_run_of_another_name(consortium):
    member = consortium.membership("lyon")
    other = Link(replace(member, federation=replace(member.federation, run="other")), session="")
    with pytest.raises(FederationError, match="is for the run gut, and this is other"):
        other.ask_now(["status"], 10)


def test_another_federation_yaml(consortium):
    member = consortium.membership("lyon")
    other = Link(replace(member, federation=replace(member.federation, round_timeout=77.0)), session="")
    with pytest.raises(FederationError, match=r"federation\.yaml says other things"):
        other.ask_now(["status"], 10)


@pytest.mark.parametrize(
    "words", [["nonsense"], ["arrival", 1, 2], ["away", 1, 2], ["news"], [""], ["outcome", ["round", 0, ""], []]]
)
def test_words_that_are_none(links, words):
    with pytest.raises(FederationError, match="refuses"):
        links[0].ask_now(words, 10)
    assert alive(links)


def test_bytes_that_are_no_request(links):
    stub = links[0]._channel().unary_unary(transport.MEET)
    for message in (b"", b"\xff" * 100, b"\xdd\xff\xff\xff\xff", bytes(1 << 20)):
        with pytest.raises(grpc.RpcError) as error:
            stub(message, timeout=10)
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.RpcError) as error:
        stub(bytes(wire.LARGEST_CONTROL + 10_000), timeout=10)
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert alive(links)


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([], "INVALID_ARGUMENT"),
        ([b"CL"], "INVALID_ARGUMENT"),
        ([wire.frame(ROW, 1, 0, b"1234")], "INVALID_ARGUMENT"),
        ([hello(number=5)], "INVALID_ARGUMENT"),  # a round that has not come
        ([hello(present=(0,), weights=(1.0, 0.0))], "INVALID_ARGUMENT"),  # not those who were there
        ([wire.frame(HELLO, 1, 0, wire.pack([1, 1 << 60, "<f4", [1.0, 1.0], [0, 1]]))], "INVALID_ARGUMENT"),
        ([wire.frame(HELLO, 1, 0, wire.pack([1, 4, "<f4", [1.5, 1.0], [0, 1]]))], "INVALID_ARGUMENT"),
    ],
)
def test_streams_that_are_none(links, frames, code):
    assert code_of(links[0].mean(iter(frames))).name == code
    assert alive(links)


def held(*frames):
    """Frames, and then nothing, without an end."""
    yield from frames
    time.sleep(5)


def both(links, lyons, kiels):
    """Streams of both sites."""
    return [links[0].mean(held(*lyons)), links[1].mean(held(*kiels))]


def test_sites_that_offer_different_vectors(links):
    first = links[0].mean(held(hello()))
    time.sleep(0.3)
    assert code_of(links[1].mean(held(hello(size=5)))) is grpc.StatusCode.INVALID_ARGUMENT
    first.cancel()
    assert alive(links)


def test_more_than_the_credit_is_refused(links):
    size = wire.CHUNK // 4 * 40
    chunk = bytes(wire.CHUNK)
    flood = [wire.frame(ROW, 1, k, chunk) for k in range(30)]
    streams = both(links, [hello(size=size), *flood], [hello(size=size)])
    assert code_of(streams[0]) is grpc.StatusCode.INVALID_ARGUMENT
    assert code_of(streams[1]) is grpc.StatusCode.ABORTED  # the others begin again
    assert alive(links)


def test_rows_out_of_order(links):
    streams = both(links, [hello(), wire.frame(ROW, 1, 1, bytes(16))], [hello()])
    assert code_of(streams[0]) is grpc.StatusCode.INVALID_ARGUMENT
    streams[1].cancel()
    assert alive(links)


def test_a_mean_and_one_that_comes_late(links):
    rows = [np.arange(4, dtype="<f4"), np.full(4, 3, dtype="<f4")]
    streams = [
        link.mean(held(hello(), wire.frame(ROW, 1, 0, row.tobytes()))) for link, row in zip(links, rows, strict=True)
    ]
    want = (rows[0] + rows[1]) / 2
    for stream in streams:
        assert wire.unpack(wire.expect(next(stream), WELCOME, 1, 0)) == {"rows": True, "void": ""}
        assert np.frombuffer(wire.expect(next(stream), MEAN, 1, 0), "<f4").tolist() == want.tolist()
    late = links[1].mean(held(hello()))
    assert wire.unpack(wire.expect(next(late), WELCOME, 1, 0)) == {"rows": False, "void": ""}
    assert np.frombuffer(wire.expect(next(late), MEAN, 1, 0), "<f4").tolist() == want.tolist()
    assert code_of(links[0].mean(held(hello(size=5)))) is grpc.StatusCode.INVALID_ARGUMENT


def test_who_may_stop_all(links):
    with pytest.raises(FederationError, match="may not stop all"):
        links[0].ask_now(["stop", "maintenance"], 10)
    assert links[1].ask_now(["stop", "maintenance\x1b[2J"], 10) is not None
    links[0].ask_now(["news", "in epoch 3", None], 10)
    assert links[0].stop_asked == "maintenance [2J (asked by kiel)"


def test_connections_without_a_word(links, consortium):
    silent = [socket.create_connection(("127.0.0.1", consortium.port)) for _ in range(200)]
    assert alive(links)
    for connection in silent:
        connection.close()


def test_a_second_process_of_a_site_takes_its_place(links, consortium):
    newer = Link(consortium.membership("kiel"))
    assert newer.ask_now(["news", "here", None], 10) is not None
    with pytest.raises(FederationError, match="another process of kiel has taken its place"):
        links[1].ask_now(["news", "here", None], 10)
    assert newer.stop_asked == ""  # those that come after a stop are not meant


def test_a_question_outlives_the_coordinator(links, consortium):
    question = links[0].ask(say(Topic(TopicKind.ROUND, 0), "another content"))
    consortium.kill()
    waiting = links[0].ask(say(Topic(TopicKind.ROUND, 0)))
    consortium.serve()
    for one in (question, waiting):
        end = time.monotonic() + 60
        while (answer := one.poll()) is None:
            assert time.monotonic() < end
            one.wait(0.05)
        assert from_plain(answer["outcome"]).present == (0, 1)  # as it was told before


def test_a_site_is_taken_off_the_roster(links, consortium):
    """Last: the file in the coordinator's place says who may come, from the next call on."""
    gone = replace(consortium.federation, sites=consortium.federation.sites[1:])
    consortium.path.write_text(gone.to_yaml())
    with pytest.raises(FederationError, match="not on the roster"):
        links[0].ask_now(["news", "here", None], 10)
    assert "taken off: lyon" in consortium.said()
