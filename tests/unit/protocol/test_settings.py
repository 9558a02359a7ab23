"""What cannot be had together is refused with one text, by Settings and by CoLearning alike."""

from dataclasses import FrozenInstanceError, replace
from types import SimpleNamespace

import pytest

from colearn_hpc import CoLearning
from colearn_hpc.algorithm.codec import codec_of
from colearn_hpc.algorithm.combine import combiner_of
from colearn_hpc.algorithm.kept_model import LatestMean
from colearn_hpc.algorithm.learning_rate import schedule_of
from colearn_hpc.algorithm.local_correction import FedProx, Scaffold
from colearn_hpc.algorithm.local_epochs import FixedEpochs, InSteps
from colearn_hpc.algorithm.outer import OuterSGD
from colearn_hpc.errors import ConfigurationError
from colearn_hpc.protocol.settings import CLASHES, Settings, describe

PREDICTIONS, AVERAGE = {"combine": "predictions"}, {"optimizer_state": "average"}
SECURE = {"privacy": {"secure": True}}
OUTER, WITHOUT = {"outer_optimizer": OuterSGD()}, {"on_failure": "continue_without"}
PROX, LOCAL, KEPT = {"local_correction": FedProx()}, {"local_layers": "batch_norm"}, {"kept_model": LatestMean()}
SITE = {"federation": SimpleNamespace(federation=SimpleNamespace(round_timeout=None, on_failure="stop"))}
FRAGMENTS = {"exchange": {"fragments": 4}}
LEFT_OUT = (
    'on_failure="continue_without" goes on with the others\' mean, which {} does not allow: a data center that is left '
    'out has no part of it. Use on_failure="stop"'
)
# (arguments of CoLearning, what is said), in the order of CLASHES.
CASES = [
    (
        {"schedule": "none", "learning_rate": 0.1},
        'schedule="none" leaves rates to the optimizer, but learning_rate=0.1 is set; drop one of the two '
        '(schedule="constant" holds a rate)',
    ),
    (
        {"schedule": "none", "warmup_steps": 9},
        'schedule="none" leaves rates to the optimizer\'s own scheduler, but a warm-up is set (warmup_epochs=0, '
        "warmup_steps=9); let that scheduler warm up, or drop schedule",
    ),
    (
        {"warmup_epochs": 2, "warmup_steps": 9},
        "warmup_epochs=2 and warmup_steps=9 are one thing in two units; drop one of the two",
    ),
    (
        {"local_steps": 5, "warmup_epochs": 1},
        "warmup_epochs=1 counts local epochs, and with local_steps the run counts optimizer steps; use warmup_steps",
    ),
    (
        OUTER | PREDICTIONS,
        'outer_optimizer steps from one shared model to the next, and with combine="predictions" there is none; drop '
        "one of the two",
    ),
    (WITHOUT | AVERAGE, LEFT_OUT.format('optimizer_state="average"')),
    (WITHOUT | PREDICTIONS, LEFT_OUT.format('combine="predictions"')),
    (WITHOUT | OUTER, LEFT_OUT.format(f"outer_optimizer={OuterSGD()}")),
    (
        {"combine": "median", "weighting": "examples"},
        'combine=Median() counts every data center once, and weighting="examples" does not; use weighting="uniform", '
        'or combine="weights"',
    ),
    (
        PREDICTIONS | {"exchange": {"codec": "bf16"}},
        "exchange: codec='bf16' is for weights on the wire, and with combine=\"predictions\" none travel; drop one of "
        "the two",
    ),
    (
        PREDICTIONS | {"exchange": {"lanes": 2}},
        'exchange: lanes=2 cannot be combined with combine="predictions": no weights travel. Drop one of the two',
    ),
    (
        OUTER | {"exchange": {"lanes": 2}},
        "exchange: lanes=2 cannot be combined with an outer_optimizer: its state is the leader's. Drop one of the two",
    ),
    (
        {"exchange": {"lanes": 2, "codec": "int8"}},
        'exchange: lanes=2 cannot be combined with codec="int8": what its messages lack is the leader\'s to remember. '
        "Drop one of the two",
    ),
    (
        {"exchange": {"mixing": 0.5}},
        "exchange: mixing=0.5 says what becomes of the epoch that is trained while a mean travels, and nothing is "
        "without overlap: true; set it too, or leave mixing out",
    ),
    (
        PREDICTIONS | {"exchange": {"overlap": True}},
        'exchange: overlap=True cannot be combined with combine="predictions": with it no weights travel. Drop one of '
        "the two",
    ),
    (
        AVERAGE | {"exchange": {"overlap": True}},
        'exchange: overlap=True cannot be combined with optimizer_state="average": a correction of state that went on '
        'meanwhile may make a variance negative. Use "reset" or "keep"',
    ),
    (
        WITHOUT | {"exchange": {"overlap": True}},
        'exchange: overlap=True cannot be combined with on_failure="continue_without": while a mean is under way every '
        'data center is needed. Use "stop"',
    ),
    (
        {"exchange": {"sums": "fixed32", "codec": "bf16"}},
        'exchange: sums=fixed32 writes steps as whole numbers, and codec="bf16" writes them in its own way; drop one '
        "of the two",
    ),
    (
        {"combine": "median", "exchange": {"sums": "fixed64"}},
        "exchange: sums=fixed64 adds whole numbers up, and combine=Median() is no sum; drop one of the two",
    ),
    (
        SECURE | {"combine": "median"},
        "privacy: secure=True hides single models, and combine=Median() has to see them to know which to trust; decide "
        "which of the two you need, and drop the other",
    ),
    (
        PREDICTIONS | {"exchange": {"sums": "fixed64"}},
        'exchange: sums=fixed64 is for weights, and with combine="predictions" none travel; drop one of the two',
    ),
    (
        AVERAGE | {"exchange": {"sums": "fixed32"}},
        'exchange: sums=fixed32 is too coarse for optimizer_state="average"; use sums=fixed64, or "reset" or "keep"',
    ),
    (
        SECURE | {"exchange": {"sums": "float64"}},
        "privacy: secure=True hides whole numbers, and exchange: sums=float64 are none; use fixed32 or fixed64, or "
        "leave sums out",
    ),
    (
        SECURE | {"weighting": "examples"},
        'privacy: secure=True with weighting="examples" would tell everyone how many examples each data center has; '
        'use exchange: sums=fixed64, which adds the numbers up under masks, or weighting="uniform"',
    ),
    (
        SECURE | {"exchange": {"lanes": 2}},
        "privacy: secure=True cannot be combined with exchange: lanes=2: the vector that may be sent once more is the "
        "leader's to keep. Drop one of the two",
    ),
    (
        SECURE | {"exchange": {"overlap": True}},
        "privacy: secure=True cannot be combined with exchange: overlap=True: a resumed run would send a model whose "
        "sum has begun before it can say with whom. Drop one of the two",
    ),
    (
        {"privacy": {"share_metrics": True}},
        "privacy: share_metrics and public_validation loosen secure=True, which is not set; without it all metrics "
        "travel. Set secure, or drop them",
    ),
    (
        PROX | PREDICTIONS,
        'local_correction=FedProx(mu=0.01) pulls towards the shared model, and with combine="predictions" there is '
        "none; drop one of the two",
    ),
    (
        PROX | {"exchange": {"overlap": True}},
        "exchange: overlap=True cannot be combined with local_correction=FedProx(mu=0.01): the shared model is not "
        "where a round begins. Drop one of the two",
    ),
    (WITHOUT | {"local_correction": Scaffold()}, LEFT_OUT.format("local_correction=Scaffold()")),
    (
        LOCAL | PREDICTIONS,
        'local_layers=batch_norm stay in their data center, and with combine="predictions" all layers do; drop one of '
        "the two",
    ),
    (
        LOCAL | AVERAGE,
        'local_layers=batch_norm stay in their data center, and optimizer_state="average" would mix their optimizer '
        'state; use "reset" or "keep"',
    ),
    (
        KEPT | PREDICTIONS,
        'kept_model=LatestMean(last=5) is made of shared models, and with combine="predictions" there are none; drop '
        "one of the two",
    ),
    (
        KEPT | {"exchange": {"overlap": True}},
        "exchange: overlap=True cannot be combined with kept_model=LatestMean(last=5): both show another model than is "
        "trained. Drop one of the two",
    ),
    (WITHOUT | KEPT, LEFT_OUT.format("kept_model=LatestMean(last=5)")),
    (
        KEPT | {"exchange": {"lanes": 2}},
        "exchange: lanes=2 cannot be combined with kept_model=LatestMean(last=5): its state is the leader's. Drop one "
        "of the two",
    ),
    (
        PREDICTIONS | FRAGMENTS,
        'exchange: fragments=4 are parts of a model that travels, and with combine="predictions" none '
        "does; drop one of the two",
    ),
    (
        AVERAGE | FRAGMENTS,
        'exchange: fragments=4 averages one part of the model at a time, and optimizer_state="average" the state of '
        'all of it; use "keep" or "reset"',
    ),
    (WITHOUT | FRAGMENTS, LEFT_OUT.format("exchange: fragments=4")),
    (
        {"exchange": {"fragments": 4, "sums": "fixed32"}},
        "exchange: fragments=4 cannot be combined with sums=fixed32, whose scales are those of a whole model's last "
        "step; leave one of the two out (privacy: secure=True needs the sums)",
    ),
    (
        PROX | FRAGMENTS,
        "exchange: fragments=4 cannot be combined with local_correction=FedProx(mu=0.01): a round begins from no "
        "shared model to which it could pull. Drop one of the two",
    ),
    (
        KEPT | FRAGMENTS,
        "exchange: fragments=4 cannot be combined with kept_model=LatestMean(last=5): both show another model than is "
        "trained. Drop one of the two",
    ),
    (
        {"exchange": {"fragments": 4, "lanes": 2}},
        "exchange: lanes=2 cannot be combined with fragments=4: the last means of all fragments are the leader's. Drop "
        "one of the two",
    ),
    *(
        (
            SITE | given,
            f"{what} works inside one MPI world, and not yet between the sites of a federation; leave it out",
        )
        for given, what in (
            (FRAGMENTS, "exchange: fragments=4"),
            (PREDICTIONS, 'combine="predictions"'),
            ({"combine": "median"}, "combine=Median()"),
            ({"exchange": {"codec": "int4"}}, 'exchange: codec="int4", unlike bf16, fp16 and int8,'),
            ({"exchange": {"lanes": 2}}, "exchange: lanes=2"),
            ({"exchange": {"device": True}}, "exchange: device=True"),
        )
    ),
    *(
        (
            given | {"exchange": {"device": True} | exchange},
            f"exchange: device=True takes the mean of eq. 2 in the GPU's memory, and {why}. Drop one of the two",
        )
        for given, exchange, why in (
            ({}, {"codec": "int8"}, 'codec="int8" is written for CPUs'),
            ({}, {"sums": "fixed32"}, "sums=fixed32 are written for CPUs"),
            ({"combine": "median"}, {}, "combine=Median() is written for CPUs"),
            (PREDICTIONS, {}, 'with combine="predictions" no model travels'),
            (PROX, {}, "local_correction=FedProx(mu=0.01) keeps its vectors in host memory"),
            (KEPT, {}, "kept_model=LatestMean(last=5) keeps its vectors in host memory"),
            ({}, {"overlap": True}, "with overlap=True its sums would wait in the GPU's queue behind training's"),
            ({}, {"fragments": 4}, "fragments=4 are kept in host memory"),
        )
    ),
]


def as_settings(
    exchange=None, privacy=None, schedule="clr", combine="weights", federation=None, local_steps=None, **arguments
):
    """Arguments of CoLearning as those of Settings."""
    arguments["federated"] = federation is not None
    hides = {"sums": "fixed32"} if (privacy or {}).get("secure") else {}
    found = (
        arguments
        | hides
        | dict(exchange or {})
        | dict(privacy or {})
        | {"schedule": schedule_of(schedule, 0.25), "rule": None if local_steps is None else InSteps(FixedEpochs(5))}
    )
    found |= {"codec": codec_of(found.get("codec", "fp32")), "combiner": combiner_of(combine)}
    return found | {"combine": "predictions" if combine == "predictions" else "weights"}


def unchecked(arguments):
    """Settings that nobody has checked."""
    found = object.__new__(Settings)
    for name, field in Settings.__dataclass_fields__.items():
        object.__setattr__(found, name, arguments.get(name, field.default))
    return found


def test_every_clash_has_a_case():
    """... that no other row refuses."""
    held = [
        [row for row, (holds, _) in enumerate(CLASHES) if holds(unchecked(as_settings(**given)))] for given, _ in CASES
    ]
    assert held == [[row] for row in range(len(CLASHES))]


@pytest.mark.parametrize(("arguments", "said"), CASES, ids=lambda value: str(value)[:40])
def test_clashes(arguments, said):
    with pytest.raises(ConfigurationError) as by_settings:
        Settings(**as_settings(**arguments))
    with pytest.raises(ConfigurationError) as by_callback:
        CoLearning(**arguments)
    assert str(by_settings.value) == str(by_callback.value) == said


@pytest.mark.parametrize(("arguments", "said"), CASES, ids=lambda value: str(value)[:40])
def test_a_change_is_checked_again(arguments, said):
    """As the command line changes settings that a file has made."""
    given = as_settings(**arguments)
    with pytest.raises(ConfigurationError) as error:
        replace(CoLearning().settings, **given)
    assert str(error.value) == said


IMPOSSIBLE = [
    ({"optimizer_state": "forget"}, "optimizer_state must be one of reset, keep, average; found 'forget'"),
    ({"weighting": "size"}, "weighting must be one of uniform, examples; found 'size'"),
    ({"on_failure": "hope"}, "on_failure must be one of stop, continue_without; found 'hope'"),
    ({"rounds": 0}, "rounds must be a whole number, at least 1, or None; found 0"),
    ({"rounds": True}, "rounds must be a whole number, at least 1, or None; found True"),
    ({"rounds": 1.5}, "rounds must be a whole number, at least 1, or None; found 1.5"),
    ({"restarts": -1}, "restarts must be a whole number, at least 0; found -1"),
    ({"restarts": None}, "restarts must be a whole number, at least 0; found None"),
    ({"exchange": {"lanes": 0}}, "exchange: lanes must be a whole number, at least 1, or null; found 0"),
    ({"exchange": {"fragments": 0}}, "exchange: fragments must be a whole number, at least 1, or null; found 0"),
    *(
        (
            {"exchange": {"overlap": True, "mixing": given}},
            f"exchange: mixing must be a number, at least 0 and below 1, or null; found {given!r}",
        )
        for given in (1, -0.1, True, "half", float("nan"))
    ),
    ({"exchange": {"overlap": 1}}, "exchange: overlap must be true or false; found 1"),
    ({"exchange": {"sums": "int"}}, "exchange: sums must be one of float64, fixed32, fixed64; found 'int'"),
    ({"privacy": {"secure": "yes"}}, "privacy: secure must be true or false; found 'yes'"),
    ({"learning_rate": 0.0}, "learning_rate must be positive, or None for the optimizer's own; found 0.0"),
    (
        {"learning_rate": float("nan")},
        "learning_rate must be positive, or None for the optimizer's own; found nan",
    ),
    ({"round_timeout": 0}, "round_timeout must be a positive number of seconds, or None; found 0"),
    (
        {"outer_optimizer": "sgd"},
        "outer_optimizer='sgd' has no `step(previous, mean, state)` method; use OuterSGD",
    ),
    ({"local_correction": "prox"}, "local_correction='prox' has no method `correct`; use FedProx or Scaffold"),
    ({"kept_model": 5}, "kept_model=5 has no method `keep`; use LatestMean"),
    (
        {"local_layers": "bn"},
        'local_layers must be "batch_norm" or a list of layers\' names, such as ["network.head"]; found \'bn\'',
    ),
]


@pytest.mark.parametrize(("arguments", "said"), IMPOSSIBLE, ids=lambda value: str(value)[:40])
def test_impossible_values(arguments, said):
    with pytest.raises(ConfigurationError) as by_settings:
        Settings(**as_settings(**arguments))
    with pytest.raises(ConfigurationError) as by_callback:
        CoLearning(**arguments)
    assert str(by_settings.value) == str(by_callback.value) == said


def test_a_choice_that_the_callback_makes_itself():
    with pytest.raises(ConfigurationError, match=r"combine must be one of weights, predictions; found .votes."):
        replace(CoLearning().settings, combine="votes")


def test_settings_do_not_change():
    settings = CoLearning(rounds=3).settings
    with pytest.raises(FrozenInstanceError):
        settings.rounds = 4
    assert replace(settings, rounds=4).rounds == 4


@pytest.mark.parametrize(
    ("arguments", "lanes"),
    [
        ({}, None),
        ({"exchange": {"lanes": 2}}, 2),
        (PREDICTIONS, 1),
        (OUTER, 1),
        (FRAGMENTS, 1),
        ({"exchange": {"codec": "int8"}}, 1),
        (SECURE, 1),
    ],
    ids=str,
)
def test_where_only_leaders_can_take_part_there_is_one_lane(arguments, lanes):
    assert Settings(**as_settings(**arguments)).transfer_lanes == lanes


def test_only_one_setting_lets_a_round_miss_somebody():
    assert CoLearning(on_failure="continue_without").settings.may_miss
    assert not CoLearning().settings.may_miss


def test_the_fingerprint():
    plain = CoLearning(rounds=3).settings.fingerprint()
    assert plain["rounds"] == "3" and plain["codec"] == "fp32" and "overlap" not in plain
    other = CoLearning(rounds=3, exchange={"codec": "int8", "overlap": True}).settings.fingerprint()
    assert {key for key in other if other[key] != plain.get(key)} == {"codec", "overlap"}
    secure = CoLearning(rounds=3, **SECURE).settings.fingerprint()
    assert {key for key in secure if secure[key] != plain.get(key)} == {"secure", "sums"}


class Rule:
    def __init__(self, epochs):
        self.epochs = epochs


def test_a_rule_of_the_users_own_is_the_same_text_everywhere():
    assert describe(Rule(3)) == describe(Rule(3)) == "Rule({'epochs': 3})"
    assert describe(OuterSGD()) == "OuterSGD(learning_rate=0.7, momentum=0.9, nesterov=True)"
