"""The README, the course and the pages of results: their rooms, links, commands, and tables that come from rows."""

import csv
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import write_run

import baselines
import dpd
import p2pdrl
import piekd_cikd

ROOT = Path(baselines.__file__).resolve().parent
RESULTS = ROOT / ".github" / "results"
PAGES = [ROOT / "README.md", ROOT / ".github" / "course.md", *sorted(RESULTS.glob("*.md"))]
ROOMS = {"README.md": 220, "course.md": 260, "speed.md": 80}
tables, collect = (runpy.run_path(str(RESULTS / f"{name}.py")) for name in ("tables", "collect"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_its_room_and_its_tables_are_those_of_the_rows(page):
    text = page.read_text()
    assert len(text.splitlines()) <= ROOMS.get(page.name, 200)
    assert page.name != "README.md" or (len(text) <= 16000 and text.count("<details>") == 1)
    assert tables["fill"](text, tables["load"](RESULTS / "results.csv")) == text


def anchors(text):
    """GitHub's, of the headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "")).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    assert links
    for link in links:
        if not link.startswith("https://"):
            file, _, anchor = link.partition("#")
            target = (page.parent / file).resolve() if file else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target.read_text()), link


def commands_in(text):
    """Of the code blocks and the code in a line: all commands, with loops unrolled by bash, as lists of words."""
    blocks = re.findall(r"^ *```(?:bash)?\n(.*?)^ *```", text, re.M | re.S)
    spans = re.findall(r"(?<!`)`([^`]+)`(?!`)", re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S))
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += [" ".join(span.split()) for span in spans]
    lines = [line.replace(".venv/bin/", "") for line in lines if re.match(r"(python|for|python3|sbatch) ", line)]
    shell = 'python() { printf "%s\\n" "$*"; }; python3() { :; }; pip() { :; }; SLURM_ARRAY_TASK_ID=3\n'
    shell += 'sbatch() { eval "${@: -1}"; }\n'.replace('eval "${@: -1}"', 'w="${@: -1}"; eval "${w#--wrap }"')
    done = subprocess.run(["bash", "-c", shell + "\n".join(lines)], capture_output=True, text=True, check=True)
    return [shlex.split(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_accepted(page, monkeypatch):
    """By the parser of its script. (The ring is a method that the reader adds.)"""
    found = commands_in(page.read_text())
    assert found
    scripts = {f"{module.__name__}.py": (module.Args, module.FIGURES) for module in (p2pdrl, dpd, piekd_cikd)}
    algorithms = {"ppo": baselines.PPOArgs, "ddpg": baselines.DDPGArgs, "sac": baselines.SACArgs}
    for words in found:
        monkeypatch.setattr(sys, "argv", words)
        if words[0] == "baselines.py":
            algorithm = words[words.index("--algo") + 1] if "--algo" in words else "ppo"
            baselines.parse_args(algorithms[algorithm], {"curves": None})
        elif words[0] in scripts and "ring" not in words:
            baselines.parse_args(*scripts[words[0]])
        elif words[0] not in scripts and words[0] != "-m":
            assert (ROOT / words[0]).exists() or words[0] == "look.py", words


def test_a_row_has_what_its_run_wrote(tmp_path, monkeypatch):
    """Two learners of DPD, two evaluations in two domains; means over the last 5 % of the iterations, here two."""
    args = dpd.Args(env="Hopper-v4", runs=str(tmp_path / "runs"), seed=3, total_steps=200)
    cells = [(step, agent) for step in range(5, 201, 5) for agent in (0, 1)]
    log = [["step", "agent", "return", "best_return", "entropy"]]
    log += [[step, agent, step + agent, 2 * step + agent, step / 100] for step, agent in cells]
    tests = [(step, agent, domain) for step in (100, 200) for agent in (0, 1) for domain in (0, 1)]
    test = [["step", "agent", "eps_te", "domain", "return"]]
    test += [[step, agent, 0.0, domain, step + 10 * agent + domain] for step, agent, domain in tests]
    write_run(args, "dpd", log=log, eval=test)
    rows, command = tmp_path / "rows.csv", "python dpd.py --env Hopper-v4 --total-steps 200 --seed 3"
    monkeypatch.setattr(sys, "argv", ["collect.py", str(rows), args.runs])
    collect["main"]()
    collect["main"]()  # which adds nothing
    first, last = csv.DictReader(open(rows, newline=""))
    assert first["command"] == last["command"] == command
    expected = {"step": "200", "training_return": "198.0", "entropy": "1.975", "best_episode": "401.0",
                "return_0.2": "", "best_agent": "160.5", "worst_agent": "150.5", "return_0": "205.5", "error_0": "0.5"}  # fmt: skip
    assert {name: last[name] for name in expected} == expected
    assert (first["step"], first["training_return"], first["best_episode"]) == ("100", "98.0", "201.0")


ROWS = [  # options in any order, seed, training_return: two arms on two tasks, and a task with two seeds
    *(("--env A --alpha 1e-05 --method mine", seed, value) for seed, value in enumerate((12, 15, 18))),
    *(("--env A", seed, value) for seed, value in enumerate((10, 10, 10))),
    *(("--env B --method mine --alpha 1e-05", seed, value) for seed, value in enumerate((9, 9, 9))),
    *(("--env B", seed, value) for seed, value in enumerate((10, 5, 15))),
    *(("--env C --method mine --alpha 1e-05", seed, value) for seed, value in enumerate((1, 1))),
    *(("--env C", seed, value) for seed, value in enumerate((9, 9))),
]


def test_effects_by_hand(tmp_path, monkeypatch, capsys):
    """Differences of equal seeds, in per cent of the second arm's mean; tasks count alike, from three seeds on."""
    with open(tmp_path / "mine.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, collect["COLUMNS"])
        writer.writeheader()
        for options, seed, value in ROWS:
            writer.writerow({"command": f"python p2pdrl.py {options} --seed {seed}", "training_return": value})
    runs = tables["load"](tmp_path / "mine.csv")
    arms = "--method mine --alpha 0.00001", ""
    pairs = {env: tuple(tables["options_of"](f"p2pdrl.py --env {env} {arm}") for arm in arms) for env in "ABC"}
    found = tables["effects"](runs, pairs, "training_return")
    assert {env: each.tolist() for env, each in found.items()} == {"A": [20, 50, 80], "B": [-10, 40, -60]}
    mean, low, high = tables["interval"](found)
    rng = np.random.default_rng(1)  # the slow way: draw seeds anew within each task, again and again
    means = [np.mean([np.mean(rng.choice(task, 3)) for task in found.values()]) for _ in range(20000)]
    assert mean == 20 and np.allclose((low, high), np.percentile(means, (2.5, 97.5)), atol=2)
    monkeypatch.setattr(sys, "argv", ["tables.py", str(tmp_path / "mine.csv"), *arms])
    tables["main"]()
    effect = f"training       +20 % [{round(low):+d}, {round(high):+d}]"
    assert capsys.readouterr().out == f"{effect:39}env A, p2pdrl.py, env B, p2pdrl.py, 3 seeds\n"


@pytest.mark.parametrize(("values", "more", "as_good"), [
    ((1, 3), "holds", "holds"), ((-9, 30), "undecided", "holds"), ((-9, 9), "level", "holds"),
    ((-30, 30), "undecided", "undecided"), ((-30, -1), "reversed", "reversed"), ((-9, -1), "reversed", "holds"),
])  # fmt: skip
def test_the_verdict_follows_from_the_interval(values, more, as_good):
    """Three seeds at each end of the interval and none between: it reaches from end to end."""
    tasks = {"A": np.repeat(np.array(values, float), 2)}
    assert tables["interval"](tasks)[1:] == values
    assert [tables["verdict"](kind, tasks) for kind in ("more", "as good")] == [more, as_good]
    empty = [*tables["effects_table"]({}, ["far"], ["PPO - DnC (a remark): Ant-v4"])][1]
    assert empty == ["PPO minus DnC (a remark)", "", "", "not tested"]
