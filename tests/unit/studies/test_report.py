"""Run folders whole and broken, the budget rule, statistics, and the report in its three forms."""

import base64
import csv
import hashlib
import html
import json
import math
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml
from handmade import STATUS, round_line, write_run

from colearn_hpc.cli import main
from colearn_hpc.errors import ConfigurationError
from colearn_hpc.studies.budget import check_budget
from colearn_hpc.studies.charts import Line, Panel, alone, chart
from colearn_hpc.studies.figures import slug
from colearn_hpc.studies.report import write_run_report, write_study_report
from colearn_hpc.studies.results import read_results
from colearn_hpc.studies.run_folder import read_run
from colearn_hpc.studies.statistics import mean_curve, of_trials, paired
from colearn_hpc.studies.study_report import ablation_verdict
from colearn_hpc.studies.tables import table_1
from colearn_hpc.studies.verdicts import the_same_models, verdict

GROUP = ("", "")
REPOSITORY = Path(__file__).parents[3]


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
    said = "rounds.jsonl: line 3 of 3 is cut off or damaged; its round is missing here"
    assert said in write_run_report(folder).read_text() and said in (folder / "report.md").read_text()


def test_a_damaged_line_hides_no_other(tmp_path):
    folder = write_run(tmp_path / "run", (0.5, 0.6, 0.7))
    lines = (folder / "rounds.jsonl").read_text().splitlines()
    (folder / "rounds.jsonl").write_text("\n".join([lines[0], lines[1][:-9], lines[2]]) + "\n")
    run = read_run(folder)
    assert [line["round"] for line in run.rounds] == [0, 2]
    assert run.problems == ["rounds.jsonl: line 2 of 3 is damaged; its round is missing here"]


BAD = ["[]", "{}", '{"round": 0}', "\x00\xff", '{"round": "x", "centers": 3}', "null", "[" * 100_000]
for key, value in {"examples": "many", "shared_metrics": {"a": "b"}, "steps": [1], "wait_seconds": 10**400}.items():
    broken = round_line(0, 3)
    broken["centers"][0][key] = value
    BAD.append(json.dumps(broken))


@pytest.mark.parametrize("line", BAD, ids=range(len(BAD)))
def test_no_line_of_rounds_can_break_the_reader(tmp_path, line):
    folder = write_run(tmp_path / "run")
    (folder / "rounds.jsonl").write_text(line + "\n")
    run = read_run(folder)
    assert run.rounds == [] and "line 1 of 1 is cut off or damaged" in " ".join(run.problems)


def test_statuses_are_read_from_either_place_the_open_one_first(tmp_path):
    folder = write_run(tmp_path / "run", centers=2)
    for name in ("dc1", "dc2"):
        (folder / "centers" / name).mkdir(parents=True)
        (folder / "centers" / name / "status.json").write_text(json.dumps(STATUS | {"host": "inside"}))
    (folder / "summary.json").write_text(json.dumps({"centers": ["dc0", "dc10"]}))
    (folder / "status" / "dc0.json").write_text('{"state": "training", "time": "now"}')
    found = read_run(folder).statuses
    assert list(found) == ["dc0", "dc1", "dc2", "dc10"]
    assert [status.get("host") for status in found.values()] == [None, "n1", "inside", None]


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


def test_a_study_as_json_has_its_finished_runs(study_folder, tmp_path):
    shutil.rmtree(study_folder / "runs" / "vanilla-s1")
    write_study_report(study_folder)
    script, written = REPOSITORY / "benchmarks" / "study_rows.py", tmp_path / "out.json"
    subprocess.run([sys.executable, script, study_folder, "--curve", "val_acc", "--json", written], check=True)
    found = json.loads(written.read_text())
    assert all(row["val_acc"][-1] == [row["epochs"], row["final_val_acc"]] for row in found["rows"])
    assert len(found["rows"]) == 5 and found["rows"][0]["final_val_acc"] == 0.95
    assert found["command"] == f"colearn-hpc study run configs/studies/{study_folder.name}.yaml"


def test_equal_differences_are_no_verdict():
    """Two seeds and a test set of some hundred examples: equal differences are chance, their interval no width."""
    said = [verdict("A", "B", paired({0: 0.9 + gap, 1: 0.8 + gap}, {0: 0.9, 1: 0.8}), "val_acc") for gap in (0.0, 0.1)]
    assert said[0] == "A and B have the same val_acc in all 2 paired seeds."
    assert said[1].startswith("A and B differ by +10.00 points in each of 2 paired seeds: without a spread")


def test_arms_that_went_the_same_way_are_named(study_folder):
    assert the_same_models(read_results(study_folder), GROUP) == []
    for seed in (0, 1):
        ours, theirs = (study_folder / "runs" / f"{arm}-s{seed}" / "rounds.jsonl" for arm in ("clr+ile", "elr+fle"))
        shutil.copy(ours, theirs)
    assert the_same_models(read_results(study_folder), GROUP) == [
        "co-learning (CLR+ILE) and ELR+FLE trained the same models in every round of every seed: what tells them "
        "apart did not come to act within this budget."
    ]


@pytest.mark.parametrize(
    ("epochs", "said"), [((3, 3, 1), "3"), ((3, 6, 1), "3 → 6"), ((3, 2, 1, 1), "3 → 1"), ((3,), "3")]
)
def test_the_cost_says_where_t_went(study_folder, epochs, said):
    for seed in (0, 1):
        lines = [round_line(i, sum(epochs[: i + 1]), t) for i, t in enumerate(epochs)]
        path = study_folder / "runs" / f"clr+ile-s{seed}" / "rounds.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert table_1(read_results(study_folder), GROUP).rows[0][1] == said


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
    assert all((a or b).startswith(("data:", "#")) or a.endswith("/config.yaml") for a, b in links)
    assert page.count("<script") == 1 and "A toy &lt;study&gt; &amp; more" in page
    digest = base64.b64encode(hashlib.sha256(re.search("<script>(.*?)</script>", page, re.S)[1].encode()).digest())
    assert "default-src 'none'" in page and f"script-src 'sha256-{digest.decode()}'" in page
    identities = re.findall(r' id="([^"]*)"', page)
    assert len(identities) == len(set(identities))
    for picture in (study_folder / "figures").glob("*.svg"):
        ET.parse(picture)  # raises unless it is well-formed
        assert quote(picture.stem) in (study_folder / "report.md").read_text()


def test_synchronous_training_sends_its_gradients_after_every_step(tmp_path):
    run = read_run(write_run(tmp_path / "run"))
    # 5 data centers, 400 bytes of gradients, 2 rounds of 3 epochs of 2 steps; each center sent 1000 bytes a round.
    assert run.steps == 12 and run.synchronous_bytes == 2 * 4 * 400 * 12 and run.bytes_sent == 10_000
    assert run.saving == pytest.approx(3.84)


@pytest.mark.parametrize("unknown", ["steps", "parameter_bytes", "method", "rounds"])
def test_no_factor_where_something_is_unknown(tmp_path, unknown):
    folder = write_run(tmp_path / "run", method="ensemble" if unknown == "method" else "colearning")
    if unknown == "steps":
        (folder / "rounds.jsonl").write_text(
            (folder / "rounds.jsonl").read_text().replace('"steps": 6', '"steps": null', 1)
        )
    if unknown == "parameter_bytes":
        (folder / "summary.json").write_text(json.dumps({"status": "finished", "parameters": 100}))
    if unknown == "rounds":
        (folder / "rounds.jsonl").write_text("")
    assert read_run(folder).saving is None
    assert "fewer bytes" not in write_run_report(folder).read_text()


def test_what_is_on_top_of_a_runs_report(tmp_path):
    page = write_run_report(write_run(tmp_path / "run", (0.95, 0.9))).read_text()
    assert "<b>90.00 %</b> val_acc of the shared model after the last round" in page
    assert "<b>3.8 ×</b> fewer bytes between data centers than synchronous training" in page
    assert "2 × 4 × 400 × 12 = 0.04 MB. This run sent 0.01 MB." in page
    for name, text in {
        "ended": "1970-01-12 13:46 UTC",
        "duration": "12 s",
        "data centers": "dc0 on n0, dc1 on n1, dc2 on n2, dc3 on n3, dc4 on n4",
        "model": "digits_cnn, 100 parameters",
        "best round": "round 0: val_acc 95.00 % (found by looking; the last one counts)",
        "settings": '<a href="config.yaml">config.yaml</a>',
        "colearning.epsilon": "0.06",
    }.items():
        assert f"<dt>{name}</dt><dd>{text}</dd>" in page
    assert "<td><b>0.9500</b></td>" in page


def test_a_studys_numbers_on_top(study_folder):
    page = write_study_report(study_folder).read_text()
    assert "<b>95.50 %</b> val_acc of co-learning (CLR+ILE), mean of 2 trials" in page
    assert "<b>97.50 %</b> val_acc of vanilla, mean of 2 trials" in page and "<b>3.8 ×</b> fewer bytes" in page
    for name, text in {
        "last run ended": "1970-01-12 13:46 UTC",
        "duration": "75 s in all runs together",
        "hosts": "n0, n1, n2, n3, n4",
        "model": "digits_cnn, 100 parameters",
    }.items():
        assert f"<dt>{name}</dt><dd>{text}</dd>" in page


EVIL = "<script>alert(1)</script> [x](javascript:1) **b** `c` $\\frac$ \x1b[2J | ![i](http://e)"


def test_nothing_of_a_run_folder_is_markup(tmp_path):
    """Metrics, data centers, states, errors and settings may be called anything."""
    folder = write_run(tmp_path / "run")
    rounds, evil = (folder / "rounds.jsonl").read_text(), json.dumps(EVIL)
    rounds = (
        rounds.replace('"dc0"', evil).replace('"val_acc"', evil).replace('"train_loss"', json.dumps(f"loss {EVIL}"))
    )
    (folder / "rounds.jsonl").write_text(rounds)
    (folder / "summary.json").write_text(json.dumps({"status": EVIL, "error": EVIL, "ranks": 5}))
    (folder / "config.yaml").write_text(yaml.safe_dump({"method": EVIL, "model": {"class_path": EVIL}}))
    page, text = write_run_report(folder).read_text(), (folder / "report.md").read_text()
    pictures = [path.read_text() for path in (folder / "figures").iterdir()]
    assert len(pictures) == 6 and sum("&lt;script&gt;alert" in picture for picture in pictures) == 3
    for written in (page, text, *pictures):
        assert "<script>alert" not in written and "\x1b" not in written
    assert page.count("<script") == 1 and r"\x1b[2J" in page
    shown = r"&lt;script&gt;alert(1)&lt;/script&gt; \[x\](javascript:1) \*\*b\*\* \`c\` $\\frac$ \\x1b\[2J \| !\[i\](http://e)"
    assert f"- method: {shown}\n" in text and text.count(shown) > 10
    assert re.findall(r"(?<!\\)\]\(([^)]*)\)", text) == [
        "config.yaml",
        *re.findall(r"(?<!\\)\]\((figures/[^)]*)\)", text),
    ]


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
    titles = [
        "val_acc of the shared model",
        "val_loss of the shared model",
        "Learning rate, and local epochs per round",
    ]
    titles += ["Change of the shared model", "train_loss per data center", "Divergence before averaging"]
    for title in titles:
        assert f"<title>{title}</title>" in page
    assert "ε = 0.06" in page and page.count("<svg") == len(titles)
    assert "val_loss (log scale)" in page and "relative change (log scale)" in page and ">rate<" in page


def test_each_data_centers_own_evaluation_is_a_line(tmp_path):
    folder = write_run(tmp_path / "run")
    assert "own evaluation data" not in write_run_report(folder).read_text()
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    lines[1]["centers"][3]["shared_metrics"]["val_acc"] = 0.123
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = html.unescape(write_run_report(folder).read_text())
    assert "val_acc of the shared model after every round, on each data center's own evaluation data" in page
    assert "dc3: val_acc 0.123, local epochs 6" in page


def test_a_folder_that_cannot_be_written_and_a_link_in_the_way(tmp_path, capsys, monkeypatch):
    folder = write_run(tmp_path / "run")
    (tmp_path / "other").write_text("mine")
    (folder / ".report.md.tmp").symlink_to(tmp_path / "other")
    (folder / "report.csv").symlink_to(tmp_path / "other")
    assert main(["report", str(folder)]) == 0
    assert (tmp_path / "other").read_text() == "mine" and not (folder / "report.csv").is_symlink()
    assert [path.name for path in folder.glob(".*")] == [".report.md.tmp"], "nothing is left behind"

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("colearn_hpc.studies.report.write_atomically", refuse)
    assert main(["report", str(folder)]) == 2
    assert "the report cannot be written there (Permission denied); copy the folder" in capsys.readouterr().err


def test_the_command_says_what_is_not_there(tmp_path, capsys, study_folder):
    assert main(["report", str(tmp_path / "absent")]) == 2
    assert "is no run folder" in capsys.readouterr().err
    assert main(["study", "report", str(tmp_path)]) == 2
    assert "no plan.json" in capsys.readouterr().err
    assert main(["report", str(study_folder)]) == 2
    assert "it is a study" in capsys.readouterr().err
    assert main(["study", "report", str(write_run(tmp_path / "run"))]) == 2
    assert "colearn-hpc report" in capsys.readouterr().err
    assert main(["study", "report", str(study_folder)]) == 0
    said = capsys.readouterr()
    assert re.search(r"^report: drawing \d+ runs$", said.err, re.MULTILINE) and "report.html" in said.out
    (study_folder / "plan.json").write_text('{"study": {}}')
    with pytest.raises(ConfigurationError, match=r"plan\.json is damaged"):
        write_study_report(study_folder)


def test_more_lines_than_a_legend_can_hold():
    many = [Line(f"dc{k}", [(0, k), (1, k)]) for k in range(13)]
    assert ">dc3<" in chart("n", "t", "x", [Panel("y", many[:12])], "c").svg
    figure = chart("n", "t", "x", [Panel("y", many)], "c")
    assert ">dc3<" not in figure.svg and figure.caption == "c Point at a line to see whose it is."
    assert figure.points[-1][2] == "dc12: y 12, x 1"


def test_a_name_of_any_length_names_a_file():
    names = ["val_acc", "a/b", "a_b", "a~2f~b", "x" * 300, "x" * 299 + "y", ""]
    slugs = [slug(name) for name in names]
    assert len(set(slugs)) == len(names) and slugs[0] == "val_acc"
    assert all(re.fullmatch(r"[\w+.~-]{0,60}", found) for found in slugs)


@pytest.mark.parametrize(
    "points", [[], [(0.0, math.nan)], [(1.0, 0.5)], [(0.0, 0.0), (1.0, 0.0)], [(0.0, -1.0), (9.0, 1e9)]]
)
@pytest.mark.parametrize("log", [False, True])
def test_a_chart_draws_whatever_it_is_given(points, log):
    panel = Panel("y", [Line("a & b", points, marks=[0.5])], level=(0.1, "ε"), log=log)
    figure = chart("name", "t", "x", [panel], "caption")
    for svg in (figure.svg, alone(figure.svg)):
        ET.fromstring(svg)
        assert "nan" not in svg and "inf" not in svg
    assert len(figure.points) == sum(math.isfinite(y) and (y > 0 or not log) for _, y in points)


def test_a_picture_takes_the_colour_of_the_text_around_it_and_is_the_same_every_time():
    one, two = (chart("n", "t", "x", [Panel("y", [Line("", [(0, 1), (1, 2)])])], "c") for _ in range(2))
    assert one == two and "currentColor" in one.svg and "#1b1f24" not in one.svg
    assert one.points[1][2] == "y 2, x 1"
    (x0, y0, _), (x1, y1, _) = one.points
    assert x0 < x1 and y0 > y1, "an SVG's y grows downwards"
