"""Equal tuning: as many trials for every arm, by other seeds and other data than are reported."""

import json

import pytest
import yaml
from handmade import write_run

from colearn_hpc.errors import ConfigurationError
from colearn_hpc.studies.grid import expand
from colearn_hpc.studies.report import write_study_report
from colearn_hpc.studies.runner import write_plan
from colearn_hpc.studies.study_file import read_study
from colearn_hpc.studies.tuning import chosen, points, read_tuning, tuned_plans, tuning_plans, write_tuning

RATE, EPSILON = "model.init_args.learning_rate", "colearning.epsilon"
TUNE = {
    "set": {"data.init_args.val": "data/val.h5"},
    "grid": {RATE: [0.01, 0.1]},
    "arms": {"clr+ile": {RATE: [0.01, 0.1], EPSILON: [0.02, 0.04]}},
}


@pytest.fixture
def study(study_file):
    path = study_file(tune=TUNE, set={"data.init_args.test": "data/test.h5"})
    return read_study(path)


def test_every_arm_has_as_many_trials(study):
    assert {arm.name: len(points(study, arm.name)) for arm in study.arms} == {"clr+ile": 2, "elr+fle": 2, "vanilla": 2}
    assert points(study, "clr+ile") == points(study, "clr+ile"), "the draw from the larger grid is the same every time"
    plans = tuning_plans(study)
    assert len(plans) == 6 and {plan.seed for plan in plans} == {1000}
    for plan in plans:
        assert plan.settings["data"]["init_args"]["val"] == "data/val.h5"
    assert all("val" not in plan.settings["data"]["init_args"] for plan in expand(study))


def scored(study, folder, score):
    for plan in tuning_plans(study):
        write_run(folder / "runs" / plan.name, (0.1, score(plan)), status="finished")


def test_the_best_on_validation_is_reported(study, tmp_path):
    scored(study, tmp_path, lambda plan: 0.9 - abs(plan.settings["model"]["init_args"]["learning_rate"] - 0.1))
    found = {one.arm: one for one in chosen(study, tmp_path)}
    assert found["elr+fle"].settings == {RATE: 0.1}
    rates = {
        plan.arm: plan.settings["model"]["init_args"]["learning_rate"] for plan in tuned_plans(study, [*found.values()])
    }
    assert rates["elr+fle"] == rates["vanilla"] == 0.1
    assert [plan.name for plan in tuned_plans(study, [*found.values()])] == [plan.name for plan in expand(study)]


def test_of_equal_settings_the_first_and_of_failed_ones_none(study, tmp_path):
    scored(study, tmp_path, lambda plan: 0.5)
    found = {one.arm: one for one in chosen(study, tmp_path)}
    assert found["elr+fle"].chosen == 0
    (tmp_path / "runs" / "elr+fle-t0-s1000" / "summary.json").write_text('{"status": "failed"}')
    found = {one.arm: one for one in chosen(study, tmp_path)}
    assert found["elr+fle"].chosen == 1
    (tmp_path / "runs" / "elr+fle-t1-s1000" / "rounds.jsonl").unlink()
    found = {one.arm: one for one in chosen(study, tmp_path)}
    assert found["elr+fle"].chosen is None and found["elr+fle"].settings == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [0]}, "seed 0 is a reported one too"),
        ({"set": None}, "names the validation data"),
        ({"trials": 3}, r"have fewer settings to try: elr\+fle 2, vanilla 2"),
        ({"grid": {RATE: 0.1}}, "must be a list of values"),
        ({"arms": {"clr+lie": {}}}, r"did you mean 'clr\+ile'"),
        ({"grids": {}}, "did you mean 'grid'"),
    ],
)
def test_what_is_not_equal_is_refused(study_file, changes, message):
    tune = {key: value for key, value in (TUNE | changes).items() if value is not None}
    with pytest.raises(ConfigurationError, match=message):
        read_study(study_file(tune=tune))


def test_trials_are_not_judged_on_what_is_reported(study_file):
    tune = TUNE | {"set": {"data.init_args.batch_size": 8}}
    study = read_study(study_file(tune=tune, set={"data.init_args.test": "data/test.h5"}))
    with pytest.raises(ConfigurationError, match=r"would be judged on data/test.h5, and so are the reported runs"):
        tuning_plans(study)


def test_the_report_shows_budget_and_choice(study, tmp_path):
    out = tmp_path / "out"
    scored(study, out / "tuning", lambda plan: 0.8 + plan.settings["model"]["init_args"]["learning_rate"])
    found = chosen(study, out / "tuning")
    write_plan(out, study, plans := tuned_plans(study, found))
    write_tuning(out / "tuning.json", study, found)
    assert read_tuning(out / "tuning.json")[1] == found
    for plan in plans:
        write_run(out / "runs" / plan.name, (0.7, 0.9 + 0.001 * plan.seed * (plan.arm == "clr+ile")))
    write_study_report(out)
    text = (out / "report.md").read_text()
    assert "Every arm was tuned by 2 trials, each of 6 local epochs with seeds 1000" in text
    assert "learning_rate 0.1" in text and "cannot be told apart by these runs" in text
    assert "Seconds over links of 100 Mbit/s and 20 ms are a model of the link" in text
    assert "How the data centers fare" not in text, "all measure the same"
    assert yaml.safe_load((out / "report.csv").read_text().splitlines()[0])


def test_an_unequal_judgement_of_sites_has_a_table(study_folder):
    path = study_folder / "runs" / "clr+ile-s0" / "rounds.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[-1]["centers"][3]["shared_metrics"]["val_acc"] = 0.5
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_study_report(study_folder)
    text = (study_folder / "report.md").read_text()
    assert "How the data centers fare" in text and "worst data center" in text
