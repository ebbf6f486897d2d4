"""The README's tables and figures of P2PDRL after four million steps, made from the rows of .github/results.csv.

    python .github/tables.py        # writes the tables into README.md, and the figures to .github/

In the README each table's command stands above it. An interval is the 95 % bootstrap interval of the mean over seeds; a
difference is of runs with the same seed, and bold where all seeds have one sign; behind its comma is the probability of
improvement (Agarwal et al. 2021).
"""

import csv
import re
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from baselines import COLOURS, bootstrap, new_figure, plot_lines, save_figure  # noqa: E402

README, ROWS = HERE.parent / "README.md", list(csv.DictReader(open(HERE / "results.csv", newline="")))
RUNS = {}  # by their options, in any order, and the step of an evaluation: by seed, its row
for row in ROWS:
    options, seed = row["command"].split(" --seed ")
    RUNS.setdefault((frozenset(options.split(" --")), int(row["step"])), {})[int(seed)] = row
SAME = "--total-steps 4000000 --eval-domains 100 --evaluations 2"  # options of all these runs
HALF, END = 1998848, 3997696  # steps of their two evaluations
LEVELS = (0, 0.2, 0.4, 0.6, 0.8, 1)
COLUMNS = ["training_return", *(f"return_{eps:g}" for eps in LEVELS)]
HEAD = "| | training | eps_te 0 | 0.2 | 0.4 | 0.6 | 0.8 | 1 |\n|---|---|---|---|---|---|---|---|\n"

SETTINGS = {  # environment and domains: in words, and as options
    "walker2d": ("Walker2d-v4", "--env Walker2d-v4"),
    "hopper": ("Hopper-v4", "--env Hopper-v4"),
    "halfcheetah-back": ("HalfCheetah-v4, on its back", "--env HalfCheetah-v4"),
    "halfcheetah": ("HalfCheetah-v4, on its feet", "--env HalfCheetah-v4 --initial-std 0.37"),
    "wide": ("Walker2d-v4, wide", "--env Walker2d-v4 --eps-tr 0.8 --init joints"),
}
ARMS = {
    "p2pdrl": "",
    "p2pdrl, alpha 0": "--alpha 0.0",
    "p2pdrl, 3e-4": "--learning-rate 0.0003",
    "p2pdrl, alpha 0, 3e-4": "--alpha 0.0 --learning-rate 0.0003",
    "ppo": "--method ppo",
    "ppo, 1e-4": "--method ppo --learning-rate 0.0001",
    "ppo-union": "--method ppo-union",
    "distributed-ppo": "--method distributed-ppo",
    "self-kl": "--method self-kl",
    "distral": "--method distral",
    "dnc": "--method dnc",
    "dnc, no restarts": "--method dnc --reset-every 1000",
}
OWN, RIVALS = list(ARMS)[:7], list(ARMS)[7:]
OWN_PAIRS = [  # label, ours, theirs
    ("p2pdrl - ppo, the paper's learning rates", "p2pdrl", "ppo"),
    ("p2pdrl - ppo, both 1e-4", "p2pdrl", "ppo, 1e-4"),
    ("p2pdrl - ppo, both 3e-4", "p2pdrl, 3e-4", "ppo"),
    ("ppo, 1e-4 - 3e-4", "ppo, 1e-4", "ppo"),
    ("p2pdrl, 3e-4 - 1e-4", "p2pdrl, 3e-4", "p2pdrl"),
    ("p2pdrl, 3e-4 - ppo, 1e-4", "p2pdrl, 3e-4", "ppo, 1e-4"),
    ("p2pdrl - alpha 0, both 1e-4", "p2pdrl", "p2pdrl, alpha 0"),
    ("p2pdrl - alpha 0, both 3e-4", "p2pdrl, 3e-4", "p2pdrl, alpha 0, 3e-4"),
    ("p2pdrl - ppo-union", "p2pdrl", "ppo-union"),
    ("ppo-union - ppo", "ppo-union", "ppo"),
]
RIVAL_PAIRS = [(f"p2pdrl - {rival}", "p2pdrl", rival) for rival in RIVALS] + [
    ("distributed-ppo - ppo", "distributed-ppo", "ppo"),
    ("distributed-ppo - ppo-union", "distributed-ppo", "ppo-union"),
    ("self-kl - ppo, both 1e-4", "self-kl", "ppo, 1e-4"),
    ("distral - p2pdrl, alpha 0", "distral", "p2pdrl, alpha 0"),
    ("dnc - p2pdrl, alpha 0", "dnc", "p2pdrl, alpha 0"),
    ("dnc - dnc, no restarts", "dnc", "dnc, no restarts"),
]
BLOCKS = {name: (name, OWN, OWN_PAIRS) for name in SETTINGS}  # the README's blocks: setting, arms, differences
BLOCKS["competitors"] = ("walker2d", ["p2pdrl", *RIVALS], RIVAL_PAIRS)
BLOCKS["competitors-halfcheetah"] = ("halfcheetah", ["p2pdrl", *RIVALS], RIVAL_PAIRS)
GLANCE = [  # label, ours, theirs, step of ours, step of theirs
    ("the paper's rates", "p2pdrl", "ppo", END, END),
    ("both 1e-4", "p2pdrl", "ppo, 1e-4", END, END),
    ("both 3e-4", "p2pdrl, 3e-4", "ppo", END, END),
    ("own steps", "p2pdrl", "ppo, 1e-4", END, HALF),
]


def returns(setting: str, arm: str, step: int) -> dict[int, np.ndarray]:
    """By seed: the return in training and at each level, (7,). Empty where there are no such runs."""
    options = f"python p2pdrl.py {SETTINGS[setting][1]} {SAME} {ARMS[arm]}".strip()
    rows = RUNS.get((frozenset(options.split(" --")), step), {})
    return {seed: np.array([float(row[column]) for column in COLUMNS]) for seed, row in sorted(rows.items())}


def returns_of(setting: str, arms: list[str], step: int) -> dict[str, dict[int, np.ndarray]]:
    """By arm: its returns, of the seeds that all arms with runs have, so that their means are of the same seeds."""
    by_arm = {arm: each for arm in arms if (each := returns(setting, arm, step))}
    shared = [seed for seed in range(5) if all(seed in each for each in by_arm.values())]
    return {arm: {seed: each[seed] for seed in shared} for arm, each in by_arm.items()}


def differences(ours: dict, theirs: dict) -> np.ndarray:
    """Of runs with the same seed, (seeds, 7)."""
    return np.array([ours[seed] - theirs[seed] for seed in ours if seed in theirs])


def decided(values: np.ndarray) -> bool:
    """Whether all seeds have one sign."""
    return abs(np.sign(values).sum()) == len(values)


def compare(ours: dict[int, float], theirs: dict[int, float]) -> str:
    """Two methods' returns by seed: the mean difference of seeds that both have and its 95 % bootstrap interval, and
    the probability of improvement, that one of our runs is better than one of theirs (Agarwal et al. 2021)."""
    differences = np.array([value - theirs[seed] for seed, value in ours.items() if seed in theirs])
    low, high = bootstrap(differences)
    better = np.mean([(x > y) + 0.5 * (x == y) for x in ours.values() for y in theirs.values()])
    return f"{differences.mean():+.0f} [{low:+.0f}, {high:+.0f}], {better:.2f}"


def comparison(ours: dict, theirs: dict) -> list[str]:
    """For each column the cell of a table: see `compare`."""
    cells = []
    for column, values in enumerate(differences(ours, theirs).T):
        says = compare(*({seed: x[column] for seed, x in each.items()} for each in (ours, theirs)))
        mean, rest = says.split(" ", 1)
        cells.append(f"**{mean}** {rest}" if decided(values) else f"{mean} {rest}")
    return cells


def glance(setting: str):
    """The terms on which this setting was run: their place in GLANCE, label, our returns and theirs."""
    for place, (label, ours, theirs, our_step, their_step) in enumerate(GLANCE):
        ours, theirs = returns(setting, ours, our_step), returns(setting, theirs, their_step)
        if ours and theirs:
            yield place, label, ours, theirs


def line(label: str, cells) -> str:
    return f"| {label} | " + " | ".join(cells) + " |\n"


def means_table(setting: str, arms: list[str], step: int) -> str:
    table = HEAD
    for arm, each in returns_of(setting, arms, step).items():
        values = np.array([*each.values()])
        table += line(arm, ("{:.0f} [{:.0f}, {:.0f}]".format(x.mean(), *bootstrap(x)) for x in values.T))
    return table


def differences_table(setting: str, arms: list[str], pairs: list[tuple], step: int) -> str:
    table = HEAD
    for label, ours, theirs in pairs:
        by_arm = returns_of(setting, [*arms, ours, theirs], step)
        if ours in by_arm and theirs in by_arm:
            table += line(label, comparison(by_arm[ours], by_arm[theirs]))
    return table


def seeds_table(setting: str, arms: list[str], step: int) -> str:
    by_arm = returns_of(setting, arms, step).items()
    by_seed = [(f"{arm}, seed {seed}", x) for arm, each in by_arm for seed, x in each.items()]
    return HEAD + "".join(line(label, map("{:.0f}".format, x)) for label, x in by_seed)


def glance_table() -> str:
    table = "| P2PDRL minus PPO | | training | eps_te .2 | .6 | 1 |\n|---|---|---|---|---|---|\n"
    for setting, (words, _) in SETTINGS.items():
        link = f"[{words}](#{setting})"
        for _, label, ours, theirs in glance(setting):
            cells = (cell.rpartition(",")[0] for cell in comparison(ours, theirs)[::2])  # without probabilities
            table += line(f"{link} | {label}", cells)
            link = ""
    return table


def tables() -> dict[str, list[str]]:
    """For each block of the README, by its name: its tables in their order. (A method without runs has no line.)"""
    found = {"glance": [glance_table()]}
    for name, (setting, arms, pairs) in BLOCKS.items():
        found[name] = []
        for step in (END, HALF):
            found[name] += [means_table(setting, arms, step), differences_table(setting, arms, pairs, step)]
        found[name].append(seeds_table(setting, arms, END))
    return found


def block_of(text: str, name: str) -> tuple[int, int]:
    """Where the block of this name begins and ends in the README."""
    start = text.index(f'<a name="{name}"></a>')
    return start, text.index("</details>", start)


def tables_in(block: str) -> list[re.Match]:
    """The tables of a block that this file makes, known by their first lines."""
    return list(re.finditer(r"^\|.*\| training \| eps_te .*\n(\|.*\n)+", block, re.M))


def write_tables():
    text = README.read_text()
    for name, made in tables().items():
        start, end = block_of(text, name)
        block = text[start:end]
        old = tables_in(block)
        if len(old) != len(made):
            sys.exit(f"README.md: {name} has {len(old)} tables, not {len(made)}")
        for match, new in zip(old[::-1], made[::-1]):
            block = block[: match.start()] + new + block[match.end() :]
        text = text[:start] + block + text[end:]
    README.write_text(text)


def draw_levels(name: str):
    """Return in held-out domains against their level, half way and at the end, of a block's methods."""
    setting, arms, _ = BLOCKS[name]
    figure, axes = new_figure(columns=2)
    for axis, step, when in zip(axes, (HALF, END), ("two", "four")):
        by_arm = returns_of(setting, arms, step).items()
        lines = {arm: [(LEVELS, x[1:]) for x in each.values()] for arm, each in by_arm}
        plot_lines(axis, lines, "eps_te, randomisation level", "return in held-out domains", marker="o")
        axis.set(title=f"after {when} million steps", ylim=(0, None))
    axes[0].sharey(axes[1])
    title = f"{SETTINGS[setting][0]}; mean over seeds, 95 % bootstrap interval"
    save_figure(figure, title, HERE / f"p2pdrl-{name}.png")


def draw_glance():
    """P2PDRL minus PPO in each setting and on each terms, in per cent of PPO's mean: a dot for each seed, a bar for
    their mean, pale where the seeds disagree about the sign."""
    figure, axes = new_figure(columns=2)
    for axis, column, title in zip(axes, (0, 4), ("training domains", "held-out domains, eps_te = 0.6")):
        for group, setting in enumerate(SETTINGS):
            for place, _, ours, theirs in glance(setting):
                share = 100 * differences(ours, theirs)[:, column] / np.mean([*theirs.values()], 0)[column]
                alpha, y = 1 if decided(share) else 0.35, 5 * group + place
                axis.barh(y, share.mean(), height=0.8, alpha=alpha, color=COLOURS[place])
                axis.plot(share, [y] * len(share), "o", color="black", markersize=3)
        axis.axvline(0, color="black", linewidth=1)
        axis.set(title=title, xlabel="P2PDRL minus PPO, % of PPO's mean return")
        axis.set_yticks([5 * group + 1.5 for group in range(len(SETTINGS))], [words for words, _ in SETTINGS.values()])
        axis.invert_yaxis()
        axis.grid(visible=False, axis="y")
        for index, (label, *_) in enumerate(GLANCE):
            axis.barh(0, 0, color=COLOURS[index], label=label)
    axes[1].set_yticklabels([])
    title = "after four million steps (own steps: PPO after two); a dot for each seed; pale: undecided"
    save_figure(figure, title, HERE / "p2pdrl-glance.png")


if __name__ == "__main__":
    write_tables()
    draw_glance()
    for name in ("walker2d", "hopper", "halfcheetah", "competitors", "competitors-halfcheetah"):
        draw_levels(name)
