"""Study files, and the grid they mean."""

import importlib
import math

import pytest
import torch
from torch import nn

from colearn_hpc.errors import ConfigurationError
from colearn_hpc.studies.grid import expand
from colearn_hpc.studies.methods import ARMS, LABELS, completed, label
from colearn_hpc.studies.settings import lookup, merged
from colearn_hpc.studies.study_file import read_study


def test_settings_are_merged_by_dotted_keys_and_left_alone():
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 4}
    result = merged(base, {"a.b": 2, "e.f.g": 5}, {"a": {"c": [3]}})
    assert result == {"a": {"b": 2, "c": [3]}, "d": 4, "e": {"f": {"g": 5}}}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 4}
    assert lookup(result, "e.f.g") == 5 and lookup(result, "e.x.g", "no") == "no"


def test_another_class_brings_its_own_arguments():
    base = {"model": {"class_path": "Old", "init_args": {"x": 1}}}
    other = merged(base, {"model": {"class_path": "New", "init_args": {"y": 2}}})
    assert other["model"] == {"class_path": "New", "init_args": {"y": 2}}
    same = merged(base, {"model": {"class_path": "Old", "init_args": {"y": 2}}})
    assert same["model"]["init_args"] == {"x": 1, "y": 2}


def test_a_key_below_a_value_is_refused():
    with pytest.raises(ConfigurationError, match="nothing below it"):
        merged({"a": 1}, {"a.b": 2})


def test_the_grid_is_every_combination_with_one_budget(study_file):
    models = {"small": {"set": {"model.init_args.network": "n1"}}, "large": {"set": {"model.init_args.network": "n2"}}}
    plans = expand(read_study(study_file(models=models, seeds=[4, 7], trials=None)))
    assert len(plans) == len({plan.name for plan in plans}) == 2 * 3 * 2
    assert {plan.settings["trainer"]["max_epochs"] for plan in plans} == {6}
    assert {plan.settings["colearning"]["rounds"] for plan in plans} == {None}
    first = plans[0]
    assert (first.name, first.seed) == ("small-clr+ile-s4", 4)
    assert first.settings["seed_everything"] == first.settings["data"]["init_args"]["seed"] == 4
    assert first.settings["colearning"]["schedule"] == "clr"
    assert [plan.seed for plan in plans] == [4] * 6 + [7] * 6  # whole trials first


def test_vanilla_runs_on_the_ranks_of_one_center_unless_told(study_file):
    plans = expand(read_study(study_file(trials=1, ranks_per_center=2)))
    assert [(plan.arm, plan.ranks) for plan in plans] == [("clr+ile", 10), ("elr+fle", 10), ("vanilla", 2)]
    arms = {"vanilla": {"ranks": "all"}}
    assert expand(read_study(study_file(trials=1, arms=arms)))[0].ranks == 5


def test_a_changed_setting_changes_the_fingerprint_and_a_seed_too(study_file):
    prints = [plan.fingerprint for plan in expand(read_study(study_file()))]
    changed = [plan.fingerprint for plan in expand(read_study(study_file(set={"colearning.epsilon": 0.5})))]
    assert len(set(prints)) == len(prints) and not set(prints) & set(changed)
    assert prints == [plan.fingerprint for plan in expand(read_study(study_file()))]


def test_smoke_is_tiny_and_has_a_name_of_its_own(study_file):
    study = read_study(study_file(seeds=[0, 1, 2], trials=None, smoke={"epochs": 1, "set": {"x.y": 1}}), smoke=True)
    assert (study.name, study.epochs, study.seeds, study.smoke) == ("toy-smoke", 1, (0,), True)
    assert study.settings == {"x.y": 1}
    assert read_study(study_file(), smoke=True).epochs == 2
    arms = {"clr+ile": None, "mine": {"like": "vanilla", "ranks": "all"}}
    small = read_study(study_file(arms=arms, smoke={"arms": ["mine"]}), smoke=True)
    assert [(arm.name, arm.ranks) for arm in small.arms] == [("mine", "all")]


def test_qsr_derives_its_alpha_from_rate_and_first_interval():
    settings = merged({"colearning": {"local_epochs": 4, "learning_rate": 0.1}}, ARMS["qsr"])
    rule = completed(settings)["colearning"]["local_epochs_rule"]
    assert rule["init_args"] == {"initial": 4, "alpha": pytest.approx(0.1 * math.sqrt(4))}
    with pytest.raises(ConfigurationError, match="starting rate"):
        completed(merged({"colearning": {"local_epochs": 4}}, ARMS["qsr"]))


def test_rules_that_depend_on_the_budget_are_spelled_out():
    base = {"colearning": {"local_epochs": 4}, "trainer": {"max_epochs": 30}}
    for arm, name, arguments in (
        ("post-local", "PostLocalEpochs", {"switch": 15, "after": 4}),
        ("decaying", "DecayingEpochs", {"initial": 4}),
        ("adacomm", "AdaptiveEpochs", {"initial": 4}),
    ):
        rule = completed(merged(base, ARMS[arm]))["colearning"]["local_epochs_rule"]
        assert rule == {"class_path": f"colearn_hpc.{name}", "init_args": arguments}
    with pytest.raises(ConfigurationError, match="half of the budget"):
        completed(merged({"colearning": {"local_epochs": 4}}, ARMS["post-local"]))


def test_every_arm_has_a_label_and_names_what_exists():
    for arm, settings in ARMS.items():
        assert label(arm) and arm.removesuffix("-k1") in LABELS
        for key, made in settings.items():
            if isinstance(made, dict) and "class_path" in made:
                package, name = made["class_path"].rsplit(".", 1)
                parameters = [[nn.Parameter(torch.ones(2, 2))]] if key == "optimizer" else []
                getattr(importlib.import_module(package), name)(*parameters, **made.get("init_args", {}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"link": {"megabits": 0}}, "link: megabits must be a positive number"),
        ({"arms": ["clr+lie"]}, r"did you mean 'clr\+ile'"),
        ({"arms": []}, "must be a list of names"),
        ({"arms": {"vanilla": {"ranks": "some"}}}, "center or all"),
        ({"arms": {"../evil": {"like": "vanilla"}}}, "becomes a folder"),
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"epochs": None}, "'epochs' is missing"),
        ({"epochs": 0}, "at least 1; found 0"),
        ({"centers": "five"}, "whole number"),
        ({"seeds": [1, 1], "trials": None}, "different whole numbers"),
        ({"seeds": [], "trials": None}, "different whole numbers"),
        ({"config": "absent.yaml"}, "cannot be read"),
        ({"name": "a/b"}, "becomes a folder"),
        ({"smoke": {"arms": ["fedavg"]}}, "must list some of clr"),
        ({"set": [1]}, "must hold `setting: value` lines"),
    ],
)
def test_bad_study_files_say_what_is_wrong(study_file, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        read_study(study_file(**changes), smoke="smoke" in changes)


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "\x00\x01", ""])
def test_what_is_no_yaml_is_refused_by_name(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"bad\.yaml"):
        read_study(path)
