"""The runs that the README's numbers rest on: .github/results.csv has a row for each of their evaluations.

    python .github/results.py [FOLDER ...]        # appends finished runs below these folders (runs/) that are new

command repeats the run (on a processor like the one that made it); commit is the one checked out when the row was made
(no two in this table differ in what a run computes); training_return is the mean of log.csv over agents and the last
rows up to this step, 5 % of the run; then for each level eps_te the mean return over agents and held-out domains, and
its standard error over domains.
"""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from baselines import NOT_IN_NAME, SavedRun  # noqa: E402

TABLE, LEVELS = HERE / "results.csv", (0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0)
COLUMNS = ["command", "commit", "step", "training_return"]
COLUMNS += [f"{what}_{eps:g}" for eps in LEVELS for what in ("return", "error")]


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
    test, iterations = run.table("eval.csv"), len(run.training_curve()[0])
    steps, returns = run.training_curve(rows=max(1, iterations // 20))
    commit = subprocess.run(["git", "-C", run.path, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    for step in np.unique(test["step"]):
        row = {"command": command_of(run), "commit": commit.stdout.strip(), "step": int(step)}
        row["training_return"] = f"{returns[steps == step][0]:.1f}"
        for eps in LEVELS:
            here = test[(test["step"] == step) & (test["eps_te"] == eps)]
            means = [here["return"][here["domain"] == domain].mean() for domain in np.unique(here["domain"])]
            if means:
                row[f"return_{eps:g}"] = f"{np.mean(means):.1f}"
                row[f"error_{eps:g}"] = f"{np.std(means, ddof=1) / np.sqrt(len(means)):.1f}"
        yield row


if __name__ == "__main__":
    known = {row["command"] for row in csv.DictReader(open(TABLE, newline=""))} if TABLE.exists() else set()
    with open(TABLE, "a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if not known:
            writer.writeheader()
        for folder in sys.argv[1:] or ["runs"]:
            for file in sorted(Path(folder).glob("*/figure.png")):  # the last thing that a run writes
                run = SavedRun(file.parent)
                if command_of(run) not in known:
                    writer.writerows(rows_of(run))
                    print(command_of(run))
