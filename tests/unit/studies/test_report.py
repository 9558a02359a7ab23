"""Run folders whole and broken, the budget rule, statistics, and the report in its three forms."""

import csv
import json
import math
import re
import shutil
import xml.etree.ElementTree as ET

import pytest
from handmade import round_line, write_run

from colearn_hpc.cli import main
from colearn_hpc.errors import ConfigurationError
from colearn_hpc.studies import tables
from colearn_hpc.studies.budget import check_budget
from colearn_hpc.studies.chart import Chart, Line
from colearn_hpc.studies.report import ablation_verdict, write_run_report, write_study_report
from colearn_hpc.studies.results import read_results
from colearn_hpc.studies.run_folder import read_run
from colearn_hpc.studies.statistics import mean_curve, of_trials, paired

GROUP = ("", "")


# --- one run folder ------------------------------------------------------------------------------------


def test_a_whole_run_folder(tmp_path):
    run = read_run(write_run(tmp_path / "run"))
    assert (run.status, run.epochs, run.method, run.problems) == ("finished", 6, "colearning", [])
    assert run.samples == 2 * 5 * 180 and run.bytes_sent == 2 * 5 * 1000 and run.batch == 32
    assert run.curve("val_acc") == [(3, 0.8), (6, 0.9)] and run.final("val_acc") == 0.9
    assert math.isnan(run.final("val_map")) and run.doublings() == []


def test_doublings_are_those_that_took_place(tmp_path):
    folder = write_run(tmp_path / "run")
    lines = [round_line(0, 3, 3, after=6), round_line(1, 9, 6, after=12), round_line(2, 10, 1, after=12)]
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_run(folder).doublings() == [3]  # the second was announced, and the budget cut its round short


def test_damaged_files_are_named_and_the_rest_is_read(tmp_path):
    folder = write_run(tmp_path / "run", (0.5, 0.6, 0.7))
    text = (folder / "rounds.jsonl").read_text()
    (folder / "rounds.jsonl").write_text(text[: len(text) - 40])
    (folder / "summary.json").write_text("{")
    (folder / "config.yaml").write_text("a: [")
    run = read_run(folder)
    assert len(run.rounds) == 2 and run.status == "running"
    assert [any(name in problem for problem in run.problems) for name in ("rounds", "summary", "config")] == [True] * 3


@pytest.mark.parametrize("line", ["[]", "{}", '{"round": 0}', "\x00\xff", '{"round": "x", "centers": 3}', "null"])
def test_no_line_of_rounds_can_break_the_reader(tmp_path, line):
    folder = write_run(tmp_path / "run")
    (folder / "rounds.jsonl").write_text(line + "\n")
    run = read_run(folder)
    assert run.rounds == [] and "line 1 is damaged" in " ".join(run.problems)


# --- statistics and budget -----------------------------------------------------------------------------


def test_mean_deviation_and_what_one_trial_cannot_say():
    assert of_trials([1.0, 2.0, 3.0, math.nan]) == of_trials([1.0, 2.0, 3.0])
    assert (of_trials([1.0, 2.0, 3.0]).mean, of_trials([1.0, 2.0, 3.0]).deviation) == (2.0, 1.0)
    assert of_trials([4.0]).count == 1 and math.isnan(of_trials([4.0]).deviation)
    assert of_trials([]).count == 0


def test_paired_differences_use_common_seeds_only():
    found = paired({0: 0.9, 1: 0.8, 2: 0.7}, {1: 0.7, 2: 0.7, 3: 0.1})
    assert (found.count, found.won, found.tied, found.lost) == (2, 1, 1, 0)
    assert found.mean == pytest.approx(0.05) and found.error == pytest.approx(0.05)


def test_a_mean_curve_holds_values_between_rounds():
    curve = mean_curve([[(2, 1.0), (6, 3.0), (8, 5.0)], [(4, 2.0), (8, 4.0)]])
    assert [(x, t.mean) for x, t in curve] == [(4, 1.5), (6, 2.5), (8, 4.5)]
    assert mean_curve([[], []]) == []


def test_an_equal_budget_is_seen_and_an_unequal_one_named(study_folder):
    budget = check_budget(read_results(study_folder), GROUP)
    assert (budget.epochs, budget.samples, budget.violations) == (6, 1800, ())
    write_run(study_folder / "runs" / "elr+fle-s1", (0.7,))
    write_run(study_folder / "runs" / "vanilla-s0", (0.7, 0.8), centers=1, examples=290, method="vanilla")
    violations = check_budget(read_results(study_folder), GROUP).violations
    assert [v.split(":")[0] for v in violations] == ["vanilla-s0", "elr+fle-s1"] or len(violations) == 2
    assert "Unequal budget: elr+fle-s1: 3 local epochs, 6 elsewhere" in text_of(study_folder)


def test_single_is_held_to_its_own_data_center(study_folder):
    plan = json.loads((study_folder / "plan.json").read_text())
    single = plan["runs"][0] | {"name": "single-s0", "arm": "single", "settings": {"method": "single"}}
    plan["runs"].append(single)
    (study_folder / "plan.json").write_text(json.dumps(plan))
    write_run(study_folder / "runs" / "single-s0", (0.5, 0.6), centers=1, method="single")
    assert check_budget(read_results(study_folder), GROUP).violations == ()
    write_run(study_folder / "runs" / "single-s0", (0.5, 0.6), centers=1, method="single", examples=50)
    assert "single-s0" in check_budget(read_results(study_folder), GROUP).violations[0]


# --- the report ----------------------------------------------------------------------------------------


def text_of(folder) -> str:
    write_study_report(folder)
    return (folder / "report.md").read_text()


def test_the_three_forms_agree(study_folder):
    page = write_study_report(study_folder).read_text()
    text = (study_folder / "report.md").read_text()
    for cell in ("95.50 ± 0.71 (2)", "91.50 ± 0.71 (2)", "97.50 ± 0.71 (2)"):
        assert cell in page and cell in text
    assert "<b>97.50 ± 0.71 (2)</b>" in page and "**97.50 ± 0.71 (2)**" in text
    rows = list(csv.DictReader((study_folder / "report.csv").open()))
    assert len(rows) == 6 and {row["samples"] for row in rows} == {"1800"}
    assert float(next(r for r in rows if r["run"] == "clr+ile-s1")["final_val_acc"]) == pytest.approx(0.96)
    assert len(list(csv.DictReader((study_folder / "rounds.csv").open()))) == 12


def test_the_page_needs_nothing_from_outside_and_its_pictures_are_whole(study_folder):
    page = write_study_report(study_folder).read_text()
    links = re.findall(r'(?:src|href)="([^"]*)"|url\(([^)]*)\)|@import', page)
    assert all((a or b).startswith(("data:", "#")) for a, b in links)
    assert "<script" not in page and "A toy &lt;study&gt; &amp; more" in page
    identities = re.findall(r' id="([^"]*)"', page)
    assert len(identities) == len(set(identities))
    for picture in (study_folder / "figures").glob("*.svg"):
        ET.parse(picture)  # raises unless it is well-formed
        assert picture.stem in (study_folder / "report.md").read_text()


def test_ddp_would_send_the_same_after_every_step(tmp_path):
    run = read_run(write_run(tmp_path / "run"))  # 60 examples an epoch in batches of 32: 2 steps, 12 in all
    assert tables.exchanged(run) == (10_000, 5_000 * 12)


def test_the_verdict_says_who_won(study_folder):
    clear = text_of(study_folder)
    assert "holds in the means here: CLR+ILE 95.50, ELR+FLE 91.50" in clear and "cannot tell" not in clear
    for seed in (0, 1):
        write_run(study_folder / "runs" / f"elr+fle-s{seed}", (0.7, 0.94 + 0.04 * seed))
    verdict = ablation_verdict(read_results(study_folder), GROUP)
    assert "NOT seen here: ELR+FLE 96.00, CLR+ILE 95.50 (over the 2 seeds" in verdict
    assert "cannot tell them apart" in verdict
    for seed in (0, 1):
        shutil.copytree(
            study_folder / "runs" / f"clr+ile-s{seed}", study_folder / "runs" / f"elr+fle-s{seed}", dirs_exist_ok=True
        )
    assert "NOT seen" in ablation_verdict(read_results(study_folder), GROUP)  # a tie is no win
    write_run(study_folder / "runs" / "elr+fle-s0", (0.7, 0.94))
    shutil.rmtree(study_folder / "runs" / "elr+fle-s1")  # means are over common seeds: 0.95 against 0.94
    assert "holds in the means here: CLR+ILE 95.00, ELR+FLE 94.00" in ablation_verdict(
        read_results(study_folder), GROUP
    )


def test_missing_half_written_and_failed_runs_leave_the_rest(study_folder):
    shutil.rmtree(study_folder / "runs" / "clr+ile-s0")
    broken = study_folder / "runs" / "elr+fle-s0"
    (broken / "summary.json").write_text(json.dumps({"status": "failed", "error": "NaN in dc3"}))
    (broken / "rounds.jsonl").write_text("{")
    text = text_of(study_folder)
    assert "4 of 6 runs finished" in text and "Never started (1 runs): clr+ile-s0" in text
    assert "elr+fle-s0 (failed: NaN in dc3" in text and "97.50 ± 0.71 (2)" in text and "91.50" not in text
    for path in (study_folder / "runs").glob("*"):
        shutil.rmtree(path)
    assert "nothing to compare yet" in text_of(study_folder)


def test_the_papers_figures_stand_beside_where_a_model_names_its_row(study_folder):
    plan = json.loads((study_folder / "plan.json").read_text())
    plan["study"]["models"] = [{"name": "", "paper_row": "DenseNet-40", "label": "DenseNet-40"}]
    (study_folder / "plan.json").write_text(json.dumps(plan))
    text = text_of(study_folder)
    assert "| the paper | 91.43 |  | 91.35 |" in re.sub(" +", " ", text).replace("| |", "|  |")
    assert "4.5 min per 5 epochs" in text


def test_a_run_folder_has_a_report_of_its_own(tmp_path):
    folder = write_run(tmp_path / "run")
    page = write_run_report(folder).read_text()
    for title in ("Learning rate", "Local epochs per round", "Relative change", "Training loss", "Divergence"):
        assert f"<title>{title}" in page
    assert "ε = 0.06" in page and page.count("<svg") == 6


def test_the_command_says_what_is_not_there(tmp_path, capsys, study_folder):
    assert main(["report", str(tmp_path / "absent")]) == 2
    assert "is no run folder" in capsys.readouterr().err
    assert main(["study", "report", str(tmp_path)]) == 2
    assert "no plan.json" in capsys.readouterr().err
    assert main(["report", str(study_folder)]) == 2
    assert "it is a study" in capsys.readouterr().err
    assert main(["study", "report", str(write_run(tmp_path / "run"))]) == 2
    assert "colearn-hpc report" in capsys.readouterr().err
    (study_folder / "plan.json").write_text('{"study": {}}')
    with pytest.raises(ConfigurationError, match=r"plan\.json is damaged"):
        write_study_report(study_folder)


@pytest.mark.parametrize(
    "points", [[], [(0.0, math.nan)], [(1.0, 0.5)], [(0.0, 0.0), (1.0, 0.0)], [(0.0, -1.0), (9.0, 1e9)]]
)
@pytest.mark.parametrize("log", [False, True])
def test_a_chart_draws_whatever_it_is_given(points, log):
    svg = Chart("t", "x", "y", [Line("a & b", points, marks=[0.5])], level=(0.1, "ε"), log=log).svg("name")
    ET.fromstring(svg)
    assert "nan" not in svg and "inf" not in svg
