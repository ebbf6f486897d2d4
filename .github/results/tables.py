"""The tables, verdicts and figures of the README and of the pages beside this file, from the rows of results.csv.

    python .github/results/tables.py                                # writes and draws them all
    python .github/results/tables.py mine.csv "--method mine" ""    # prints one effect, from rows of your own

The second compares runs that have these options with runs that have others in their place (here none, the defaults),
over every environment and setting of which there are both. In a page an HTML comment above a table or a figure says
what it shows, in tasks (see SETTINGS) and names from ARMS and QUANTITIES; this script makes the table or the figure.

An effect is the difference between runs of the same seed, as a percentage of the second arm's mean on that task,
averaged over tasks. [ ] is its 95 % bootstrap interval; seeds are drawn anew within each task (Agarwal et al. 2021).
A task counts from three seeds on.
"""

import csv
import re
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from baselines import COLOURS, STYLES, bootstrap, save_figure  # noqa: E402

QUANTITIES = {  # of a run: the mean of these columns of its last row
    "training": ["training_return"], "near": ["return_0", "return_0.2"], "far": ["return_0.6", "return_0.8", "return_1"],
    "test": ["return_0"], "best episode": ["best_episode"], "best agent": ["best_agent"], "worst agent": ["worst_agent"],
}  # fmt: skip
LONG = "p2pdrl.py --total-steps 4e6 --eval-domains 100 --evaluations 2"
SHORT = "p2pdrl.py --eval-domains 100 --evaluations 1 --eps-te 0 0.2 0.4 0.5 0.6 0.8 1"
SETTINGS = {  # a task is an environment and one of these, as in "HalfCheetah-v4 on its feet"
    "": LONG, "on its back": LONG, "on its feet": f"{LONG} --initial-std 0.37", "cohorts": f"{SHORT} --initial-std 0.37",
    "at eps_tr .6": f"{SHORT} --eps-tr 0.6", "at eps_tr 1": f"{SHORT} --eps-tr 1", "at eps_tr .2": SHORT,
    "at eps_tr .8 (joints)": f"{LONG} --eps-tr 0.8 --init joints", "on SAC": "piekd_cikd.py --total-steps 1e5",
    "on DDPG": "dpd.py --evaluations 10 --eps-te 0", "on PPO": "dpd.py --base ppo --total-steps 4e6 --eps-te 0",
}  # fmt: skip
ALONE = "--method ppo --agents 1 --steps-per-iteration 2048 --total-steps 1e6"  # as each peer of the cohorts
ARMS = {
    "P2PDRL": "", "P2PDRL at PPO's rate": "--learning-rate 3e-4", "no distillation": "--alpha 0", "DnC": "--method dnc",
    "no distillation at PPO's rate": "--alpha 0 --learning-rate 3e-4", "PPO": "--method ppo",
    "PPO at P2PDRL's rate": "--method ppo --learning-rate 1e-4", "PPO, bonus .01": "--method ppo --entropy-coef 0.01",
    "PPO, bonus .001": "--method ppo --entropy-coef 0.001", "PPO, bonus .1": "--method ppo --entropy-coef 0.1",
    "workshop's PPO": "--method ppo-union", "Distributed PPO": "--method distributed-ppo", "Distral": "--method distral",
    "four peers": "--agents 4 --steps-per-iteration 8192 --total-steps 4e6", "two peers": "", "one agent": ALONE,
    "one agent at P2PDRL's rate": f"{ALONE} --learning-rate 1e-4", "self-KL": "--method self-kl",
    "DPD": "", "DPD, 320 distillation steps": "--distil-steps 320", "equal weights": "--weighting none",
    "one learner": "--method vanilla", "PIEKD": "", "ensemble": "--method ensemble",
}  # fmt: skip


def options_of(command: str) -> frozenset:
    """In any order, and with numbers in one spelling."""
    words = [f"{float(word):g}" if re.fullmatch(r"-?\d*\.?\d+(e-?\d+)?", word) else word for word in command.split()]
    return frozenset(option.strip() for option in " ".join(words).split("--")) - {""}


def load(path: Path) -> dict[frozenset, dict[int, dict]]:
    """By the options of a run and by seed: its last row, and "COLUMN at STEP" of all its rows."""
    runs = {}
    for row in csv.DictReader(open(path, newline="")):
        options, seed = row["command"].removeprefix("python ").split(" --seed ")
        run = runs.setdefault(options_of(options), {}).setdefault(int(seed), {})
        run |= row | {f"{column} at {row['step']}": value for column, value in row.items()}
    return runs


def run_of(where: str, arm: str) -> frozenset:
    """The options of its runs. where: a task."""
    env, _, setting = where.partition(" ")
    return options_of(f"{SETTINGS[setting]} --env {env} {ARMS[arm]}")


def values(rows: dict[int, dict], quantity: str) -> dict[int, float]:
    """By seed, of those whose rows have it. quantity: one of QUANTITIES, or a column."""
    found = {seed: [row[column] for column in QUANTITIES.get(quantity, [quantity])] for seed, row in rows.items()}
    return {seed: np.mean([float(each) for each in columns]) for seed, columns in found.items() if all(columns)}


def effects(runs, pairs: dict[str, tuple[frozenset, frozenset]], quantity: str) -> dict[str, np.ndarray]:
    """By task, if it has three seeds or more: the differences of its pair of runs, in per cent. (seeds,)"""
    tasks = {}
    for where, (ours, theirs) in pairs.items():
        ours, theirs = (values(runs.get(each, {}), quantity) for each in (ours, theirs))
        if len(seeds := sorted(ours.keys() & theirs.keys())) >= 3:
            mean = np.mean([theirs[seed] for seed in seeds])
            tasks[where] = np.array([100 * (ours[seed] - theirs[seed]) / mean for seed in seeds])
    return tasks


def interval(tasks: dict[str, np.ndarray], draws: int = 10000) -> tuple[float, float, float]:
    """Mean over tasks, and the ends of its 95 % interval, stratified by task."""
    rng = np.random.default_rng(0)
    means = [task[rng.integers(len(task), size=(draws, len(task)))].mean(1) for task in tasks.values()]
    return np.mean([task.mean() for task in tasks.values()]), *np.percentile(np.mean(means, 0), (2.5, 97.5))


def verdict(kind: str, tasks: dict[str, np.ndarray]) -> str:
    """Of a claim that the first arm has `more`, or is `as good`."""
    if not tasks:
        return "not tested"
    _, low, high = interval(tasks)
    if low > (0 if kind == "more" else -10):
        return "holds"
    return "reversed" if high < 0 else "level" if -10 < low and high < 10 else "undecided"


def effect_cell(tasks: dict[str, np.ndarray]) -> str:
    """Bold where the interval lies on one side of 0."""
    mean, low, high = interval(tasks)
    bold = "**" if low > 0 or high < 0 else ""
    return f"{bold}{mean:+.0f} %{bold} [{low:+.0f}, {high:+.0f}]"


def basis(tasks: dict[str, np.ndarray]) -> str:
    """How many tasks, or which, and how many seeds of each."""
    seeds = " or ".join(map(str, sorted({len(task) for task in tasks.values()})))
    return f"{', '.join(tasks) if len(tasks) < 3 else f'{len(tasks)} tasks'}, {seeds} seeds" if tasks else ""


def pairs_of(spec: str) -> dict[str, tuple[frozenset, frozenset]]:
    """By task, the runs to compare. spec: `ours - theirs (a remark, or none): task; task`."""
    arms, tasks = spec.split(": ")
    return {where: tuple(run_of(where, arm) for arm in arms.split(" (")[0].split(" - ")) for where in tasks.split("; ")}


def effects_table(runs, columns: list[str], lines: list[str]):
    """lines: see pairs_of. The verdict is on the last column: have ours more of it?"""
    yield ["", *columns, "on", f"first ahead ({columns[-1]})?"]
    for line in lines:
        found = [effects(runs, pairs_of(line), column) for column in columns]
        cells = [effect_cell(tasks) if tasks else "" for tasks in found]
        yield [line.split(": ")[0].replace(" - ", " minus "), *cells, basis(found[-1]), verdict("more", found[-1])]


def returns_table(runs, columns: list[str], lines: list[str]):
    """columns: arms. lines: `task: quantity; quantity`. Means over seeds."""
    yield ["", *columns]
    for where, quantities in (line.split(": ") for line in lines):
        for quantity in quantities.split("; "):
            found = [[*values(runs.get(run_of(where, arm), {}), quantity).values()] for arm in columns]
            cells = ("{:.0f} [{:.0f}, {:.0f}]".format(np.mean(x), *bootstrap(x)) if len(x) >= 3 else "" for x in found)
            yield [f"{where}, {quantity}", *cells]


def claims_table(runs, columns: list[str], lines: list[str]):
    """lines: `claim | kind, quantity | ours - theirs: task; task`, or claim, result and verdict in words."""
    yield ["claim", "result", "verdict"]
    for line in lines:
        claim, result, says = line.split(" | ")
        if " - " in says:
            kind, quantity = result.split(", ")
            tasks = effects(runs, pairs_of(says), quantity)
            result = f"{quantity}: {effect_cell(tasks)}, {basis(tasks)}" if tasks else ""
            says = verdict(kind, tasks)
        yield [claim, result, says]


TABLES = {"effects": effects_table, "returns": returns_table, "claims": claims_table}


def fill(text: str, runs) -> str:
    """A page with its tables made anew."""

    def table(match):
        head, kind, columns, lines = match.groups()
        rows = list(TABLES[kind](runs, columns.split("; "), lines.splitlines()))
        rows.insert(1, ["---"] * len(rows[0]))
        return head + "".join(f"| {' | '.join(row)} |\n" for row in rows)

    return re.sub(r"(<!-- (\w+): ?(.*)\n((?:.+\n)*?)-->\n)(?:\|.*\n)*", table, text)


def draw(runs, name: str, arms: str, baseline: str, tasks: str, prefix: str, over: str):
    """Left: return relative to the baseline's mean, mean over tasks. Right of it: returns, task by task.

    name: of the file; arms, tasks: separated by "; ". The horizontal axis has all columns of all tasks that begin with
    `prefix` and go on with a number; over: its label.
    """
    arms, tasks, figure = arms.split("; "), tasks.split("; "), Figure(figsize=(13, 4.4), layout="constrained")
    found = [runs[run_of(task, arms[0])] for task in tasks]
    columns = [c for c in found[0][0] if re.fullmatch(prefix + r"[\d.]+", c) and all(values(rows, c) for rows in found)]
    places = np.array([each.removeprefix(prefix) for each in columns], float)
    left, *others = figure.subplots(1, 1 + len(tasks), width_ratios=[2.2] + [1] * len(tasks))
    left.set(title="mean and 95 % interval", ylabel=f"return, % of the mean of {baseline}", xlabel=over)
    for index, (arm, colour, style) in enumerate(zip(arms, COLOURS, STYLES)):
        pairs, look = pairs_of(f"{arm} - {baseline}: {'; '.join(tasks)}"), {"color": colour, "linestyle": style}
        mean, low, high = 100 + np.array([interval(effects(runs, pairs, column)) for column in columns]).T
        x = places + 0.012 * max(places) * (index - (len(arms) - 1) / 2)  # so that intervals stand side by side
        left.errorbar(x, mean, (mean - low, high - mean), capsize=3, marker="o", markersize=4, label=arm, **look)
        for axis, task in zip(others, tasks):
            means = [np.mean([*values(runs[run_of(task, arm)], column).values()]) for column in columns]
            axis.plot(places, means, marker=".", **look)
    for axis, task in zip(others, tasks):
        axis.axhline(0, color="0.8", zorder=0)
        axis.set(title=task.replace(" ", "\n", 1), xlabel=over.split(",")[0], ylabel="return" * (axis is others[0]))
    save_figure(figure, "", HERE / f"{name}.png")


def main():
    if len(sys.argv) not in (1, 4):
        sys.exit(__doc__)
    rows, *arms = sys.argv[1:] or [HERE / "results.csv"]
    runs = load(rows)
    if arms:
        ours, theirs = map(options_of, arms)
        others = {each: each - ours | theirs for each in runs if ours <= each}
        pairs = {", ".join(sorted(each - ours)): (each, other) for each, other in others.items() if each != other}
        found = {name: tasks for name in QUANTITIES if (tasks := effects(runs, pairs, name))}
        lines = [f"{name:15}{effect_cell(found[name]).replace('**', ''):24}{basis(found[name])}" for name in found]
        print("\n".join(lines) or "there is no task of which both have three seeds")
        return
    for page in (HERE.parents[1] / "README.md", *HERE.glob("*.md")):
        text = fill(page.read_text(), runs)
        page.write_text(text)
        for figure in re.findall("<!-- figure: (.*) -->", text):
            draw(runs, *figure.split(" | "))


if __name__ == "__main__":
    main()
