"""Two defects of 0.1.0: a setting that only one door refused, and checkpoints that could not be resumed."""

import json

import pytest

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(900)]  # the fixtures start many runs

ENSEMBLE = {
    'on_failure="continue_without" goes on with the others\' mean, which combine="predictions" does not allow': [
        "--colearning.on_failure=continue_without"
    ],
    "exchange: codec='int8' is for weights on the wire, and with combine=\"predictions\" none travel": [
        "--colearning.exchange={codec: int8}"
    ],
    'exchange: lanes=2 cannot be combined with combine="predictions"': ["--colearning.exchange={lanes: 2}"],
}
NETS, CASES = ["draws nothing", "draws"], ["T=2", "overlap, T=2", "overlap, T=1"]
WRITERS = ["validated", "epoch-end", "mid-epoch"]


@pytest.fixture(scope="module")
def refused(launch, tmp_path_factory):
    """Of each case the exit codes of two ranks, and what they said."""
    folder = tmp_path_factory.mktemp("ensemble")
    base = ["fit", "--model=faulty.Plain", "--method=ensemble", "--centers=2", "--colearning.rounds=1"]
    base += ["--trainer.accelerator=cpu", f"--runs={folder}"]
    arguments = {says: [*base, *more, f"--name={k}"] for k, (says, more) in enumerate(ENSEMBLE.items())}
    arguments["nothing"] = [*base, "--name=plain"]
    cases = {str(k): {"arguments": given} for k, given in enumerate(arguments.values())}
    (folder / "cases.json").write_text(json.dumps(cases))
    launch(2, "exit_codes.py", folder / "cases.json")
    found = [[sorted((folder / k).glob(f"*.{kind}")) for kind in ("code", "err")] for k in cases]
    return {
        says: ([path.read_text() for path in codes], "".join(path.read_text() for path in errors))
        for says, (codes, errors) in zip(arguments, found, strict=True)
    }


def test_an_ensemble_is_trained_otherwise(refused):
    assert refused["nothing"][0] == ["0", "0"], refused["nothing"][1]


@pytest.mark.parametrize("says", ENSEMBLE)
def test_the_command_line_refuses_of_an_ensemble_what_the_api_refuses(refused, says):
    codes, said = refused[says]
    assert codes == ["1", "1"] and said.count(says) == 1, said


@pytest.fixture(scope="module")
def resumed(launch, tmp_path_factory):
    """What became of each checkpoint: {net: {case: {writer: {file: text}}}}."""
    out = launch(2, "checkpoints.py", tmp_path_factory.mktemp("checkpoints"), timeout=400).ok()
    return json.loads(out.strip().splitlines()[-1])


def test_a_checkpoint_in_mid_round_is_resumed(resumed):
    for writer in ("validated", "epoch-end"):
        found = resumed["draws nothing"]["T=2"][writer]
        assert {said for file, said in found.items() if file[:7] in ("epoch=0", "epoch=2", "epoch=4")} == {"same"}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("net", NETS)
def test_a_checkpoint_at_an_epochs_end_is_resumed(resumed, net, case):
    """Also at a round's last epoch, where it holds the shared model."""
    found = resumed[net][case]["epoch-end"]
    assert len(found) > 2 and found == dict.fromkeys(found, "same")


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("net", NETS)
def test_any_checkpoint_is_resumed_to_the_same_bits_or_refused(resumed, net, case, writer):
    found = resumed[net][case][writer]
    assert {file: said for file, said in found.items() if said != "same" and not said.startswith("refused: ")} == {}
