"""Rows for tables.py: one for each evaluation of each finished run.

    python .github/results/collect.py                  # of the runs in runs/, into results.csv beside this file
    python .github/results/collect.py mine.csv runs    # of those in one or more folders, into a file of your own

A run that has rows already is left out. The columns:

command         repeats the run (bit-identical on a processor like the one that made it)
commit          the version that was checked out when the row was made; no two differ in what a run computes
step            of the evaluation
training_return mean of log.csv over agents and the last 5 % of the run's rows, up to this step
entropy         of the policies, in nats, the same mean (P2PDRL and what it is compared with)
best_episode    highest return of a training episode so far, of any agent (DPD)
best_agent      the best agent's return at eps_te = 0, mean over the last three evaluations (cohorts and ensembles)
worst_agent     the same of the worst agent
return_X        at eps_te = X, mean over agents and held-out domains; error_X: its standard error over domains

Older runs have best_episode, best_agent and worst_agent in their last row only, or not at all.
"""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from baselines import NOT_IN_NAME, SavedRun  # noqa: E402

COLUMNS = ["command", "commit", "step", "training_return", "entropy", "best_episode", "best_agent", "worst_agent"]
COLUMNS += [f"{what}_{eps:g}" for eps in (0, 0.2, 0.4, 0.5, 0.6, 0.8, 1) for what in ("return", "error")]


def command_of(run: SavedRun) -> str:
    """The command that repeats a run; the folder's name has every option that is not its default."""
    words = [f"python {run.path.name.split('-')[0]}.py --env {run.settings['env']}"]
    for option, value in run.settings.items():
        if option not in NOT_IN_NAME and f"-{option}=" in run.path.name:
            flag, text = option.replace("_", "-"), " ".join(map(str, np.atleast_1d(value)))
            words.append({"True": f"--{flag}", "False": f"--no-{flag}"}.get(text, f"--{flag} {text}"))
    return " ".join([*words, f"--seed {run.settings['seed']}"])


def rows_of(run: SavedRun):
    """A row for each evaluation."""
    log, test = run.table("log.csv"), run.table("eval.csv")
    last = max(1, len(np.unique(log["step"])) // 20)
    columns = ("training_return", 1, "return"), ("entropy", 3, "entropy")
    curves = [(*each, run.training_curve(name, rows=last)) for *each, name in columns if name in log.dtype.names]
    commit = subprocess.run(["git", "-C", run.path, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    by_agent = np.array([run.test_curve(0.0, agent)[1] for agent in np.unique(test["agent"])])  # (agents, evaluations)
    for index, step in enumerate(np.unique(test["step"])):
        row = {"command": command_of(run), "commit": commit.stdout.strip(), "step": int(step)}
        row |= {column: f"{values[steps == step][0]:.{digits}f}" for column, digits, (steps, values) in curves}
        if "best_return" in log.dtype.names:
            row["best_episode"] = f"{np.nanmax(log['best_return'][log['step'] <= step]):.1f}"
        if by_agent.size and len(by_agent) > 1:
            recent = by_agent[:, max(0, index - 2) : index + 1]
            row |= {"best_agent": f"{recent.max(0).mean():.1f}", "worst_agent": f"{recent.min(0).mean():.1f}"}
        for eps in np.unique(test["eps_te"]):
            here = test[(test["step"] == step) & (test["eps_te"] == eps)]
            means = np.array([here["return"][here["domain"] == domain].mean() for domain in np.unique(here["domain"])])
            row[f"return_{eps:g}"] = f"{means.mean():.1f}"
            row[f"error_{eps:g}"] = f"{means.std(ddof=1) / len(means) ** 0.5:.1f}"
        yield {column: row.get(column) for column in COLUMNS}


def main():
    rows, *folders = map(Path, sys.argv[1:] or [HERE / "results.csv", "runs"])
    known = {row["command"] for row in csv.DictReader(open(rows, newline=""))} if rows.exists() else set()
    with open(rows, "a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        for finished in sorted(path for folder in folders for path in folder.glob("*/figure.png")):
            run = SavedRun(finished.parent)  # a run writes its figure last
            if command_of(run) not in known:
                writer.writerows(rows_of(run))
                print(command_of(run))


if __name__ == "__main__":
    main()
