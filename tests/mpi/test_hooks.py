"""An error or a ``sys.exit()`` in any hook of model, data module, callback or logger, in one rank of one data center,
ends all ranks: with one message, with nobody left behind, in time; what it says stays in its data center."""

import json

import pytest
from hooks import OWNERS, ending, hooks

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(7200)]  # the fixture runs all cases
WAYS = ("raise", "exit", "mute")
CASES = [(ranks, owner, hook, way) for ranks in (1, 2) for owner in OWNERS for hook in hooks(owner) for way in WAYS]


def world_rank(ranks, owner, hook, way):
    """Who raises: in either data center, leaders and others."""
    return sum(map(ord, f"{owner}.{hook} {way}")) % (2 * ranks)


@pytest.fixture(scope="module")
def ended(request, launch, tmp_path_factory):
    """A case -> its folder, and whether processes were left behind."""
    chosen = [item.callspec.params["case"] for item in request.session.items if item.module is request.module]
    found = {}
    for ranks in (1, 2):
        mine = [case for case in chosen if case[0] == ranks]
        folder = tmp_path_factory.mktemp(f"hooks{ranks}")
        (folder / "cases.json").write_text(json.dumps([[*case[1:], world_rank(*case)] for case in mine]))
        first = 0
        while first < len(mine):
            done = launch(2 * ranks, "hooks.py", folder / "cases.json", first, timeout=3600)
            last = max((int(path.name) for path in folder.iterdir() if path.is_dir()), default=first)
            # A case that ended the processes has said so on some rank, and left no codes.
            for number in range(first, last + 1):
                found[mine[number]] = (folder / str(number), done.orphans if number == last else [])
            (folder / str(last) / "launcher.txt").write_text(f"{done.code}\n{done.out}\n{done.err}")
            first = last + 1
    return found


@pytest.mark.exhaustive(sample=8)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[1]}.{case[2]}-{case[3]}-L{case[0]}")
def test_an_error_in_a_hook(ended, case):
    ranks, _, hook, way = case
    folder, orphans = ended[case]
    said = {path.stem: path.read_text() for path in sorted(folder.glob("*.err"))}
    launcher = folder / "launcher.txt"
    text = "\n".join(said.values()) + (launcher.read_text() if launcher.exists() else "")
    codes = {path.stem: int(path.read_text()) for path in folder.glob("*.code")}
    assert orphans == [] and "Timeout (" not in text, text
    raised = list(folder.glob("*.struck"))
    if not raised:  # it is no hook of a fit
        assert set(codes.values()) == {0}, text
        return
    summary = folder / "run" / "summary.json"
    status = json.loads(summary.read_text())["status"] if summary.exists() else "failed"
    if not codes:  # all were ended, wherever they were
        assert status != "finished" and int(launcher.read_text().split("\n")[0]) != 0, text
    elif status == "finished" and way == "mute" and "could not be written (TimeoutError)" in text:
        assert set(codes.values()) == {0}, text  # in a resume point an OSError is a disk's: the point before it stays
        return
    elif status == "finished":  # it came after the run's end, and is its own rank's affair
        assert codes[str(world_rank(*case))] == 1, (codes, text)
    else:
        assert set(codes.values()) == {1}, (codes, text)
    assert text.count("colearn-hpc: error:") == 1, text
    if codes:
        states = {path.name: json.loads(path.read_text())["state"] for path in folder.glob("run/status/*.json")}
        assert {*states.values()} <= {"failed", "finished"}, (states, text)
    own = f"patient 4711 in {hook}" if way == "raise" else type(ending(way, hook)).__name__
    if (hook, way) == ("__init__", "mute"):
        own = "IndexError"  # jsonargparse looks for the first line of the error's text, and fails itself
    assert own in text  # in the output of its own rank
    others = "".join(text for rank, text in said.items() if int(rank) // ranks != world_rank(*case) // ranks)
    logs = [
        path for path in folder.glob("run/centers/*/log.txt") if path.parent.name != f"dc{world_rank(*case) // ranks}"
    ]
    open_files = [*folder.glob("run/*.json*"), *folder.glob("run/status/*"), *logs]
    assert "patient 4711" not in others + "".join(path.read_text() for path in open_files)
