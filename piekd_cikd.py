# SPDX-FileCopyrightText: 2026 the authors of this repository
# SPDX-License-Identifier: MIT
"""PIEKD and CIKD: an ensemble of SAC agents with one replay buffer, whose best member periodically teaches the others.

    Hong, Nagarajan and Maeda, "Periodic Intra-Ensemble Knowledge Distillation for Reinforcement Learning" (2020).
    Hong, Nagarajan and Maeda, "Collaborative Inter-agent Knowledge Distillation for Reinforcement Learning" (2019).

The idea
--------
K agents with different initialisations learn one task from one replay buffer. For each episode one of them, drawn at
random, acts; at each step all of them learn. So they share experience, but each has a policy of its own, and at any
time one of them is ahead. Periodically the agent with the best recent returns becomes the teacher: the others are
trained by supervised learning to act as it does, and to value actions as it does, on the states of the buffer. They
keep what else they have learned, go on from a better place, and may be ahead the next time.

    code                | paper                 | shape
    agents              | pi_phi_k, Q_theta_k   | K of them
    teacher             | k_t                   |
    recent              | R_k                   | (K,) mean return of the last M = `--recent` episodes of each
    steps_since         | t_acc                 |
    interval            | I                     |

    policy:  minimise E_{s ~ D} KL(pi_teacher(.|s) || pi_student(.|s))                 PIEKD Eq. (1), CIKD Eq. (1)
    critic:  minimise E_{(s, a) ~ D} (Q_teacher(s, a) - Q_student(s, a))^2             PIEKD Eq. (2)

The two write-ups describe one method, but treat the step counter differently after a phase: `--method piekd` resets it
to 0 (line 21); `--method cikd` keeps the remainder, as CIKD distils at multiples of the interval (its line 20). Other
line numbers are those of PIEKD's Algorithm 1. "Ours": not in the papers.

You should know
---------------
The best of K agents is chosen and reported from the same episodes, as in the papers. That is more than the mean even if
all are equally good. So compare it with the best of `--method ensemble`, or look at the worst as well: a single agent
(`--method vanilla`) is too easy a comparison.

Commands (two cores)
--------------------
    python piekd_cikd.py --env Hopper-v4 --total-steps 6000 --warm-up 2000 --interval 1000    # toy: a minute or two
    python piekd_cikd.py --env Hopper-v4 --total-steps 1e5                     # an hour, best agent 1000 to 2200
    python piekd_cikd.py --env Hopper-v4 --method ensemble --total-steps 1e5   # without distillation: half an hour

To use it elsewhere, copy piekd_cikd.py, baselines.py and randomised_envs.py.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from baselines import (
    ROW, Optimiser, Run, RunArgs, SACAgent, Stream, fail, find_runs, generator, launch, new_figure, plot_lines,
    sac_batch, squashed_policy,
)  # fmt: skip
from randomised_envs import evaluate


class Method(NamedTuple):
    """How a method differs from the others."""

    one_agent: bool = False  # whatever --ensemble-size says
    distils: bool = False  # there are phases, in which the best agent teaches the others
    keeps_remainder: bool = False  # the counter keeps steps % I after a phase, so that phases stay near multiples of I


METHODS = {
    "piekd": Method(distils=True),
    "cikd": Method(distils=True, keeps_remainder=True),  # Ours: CIKD's line 20, at the end of an episode
    "ensemble": Method(),
    "vanilla": Method(one_agent=True),
}


@dataclass
class Args(RunArgs):
    # ensemble
    env: str = "Hopper-v4"  # a Gymnasium MuJoCo environment; Ours: v4, as CIKD's v2 needs mujoco-py
    method: Literal[tuple(METHODS)] = "piekd"  # ensemble: no distillation; vanilla: K = 1
    ensemble_size: int = 3  # K
    eps_tr: float = 0.0  # Ours: randomisation level in training, in [0, 1]; a new domain for each episode
    total_steps: int = 1_000_000  # environment steps; another number is another run
    recent: int = 5  # M, episodes over which an agent's return is averaged for the election

    # distillation
    interval: int = 5000  # I, environment steps between phases of distillation
    share: Literal["distil", "hardcopy", "extra"] = "distil"  # in a phase: distil, copy networks, or extra SAC updates
    teacher: Literal["best", "random"] = "best"  # who teaches
    distil: Literal["both", "policy", "critic"] = "both"  # what is taught
    reset_students: bool = False  # begin each phase with new networks for the students
    distil_epochs: int = 5  # passes over the buffer in a phase; Ours: the released code's number
    distil_updates: int = 0  # minibatches for each student in a phase; 0: those of --distil-epochs passes
    distil_lr: float = 1e-3  # learning rate of Adam in a phase; Ours: the released code's

    # SAC
    learning_rate: float = 3e-4  # learning rate of Adam
    gamma: float = 0.99  # discount factor
    tau: float = 0.005  # target update rate
    batch_size: int = 256  # transitions for an update, and for one of distillation
    buffer_size: int = 1_000_000  # transitions in the replay buffer that all agents share
    warm_up: int = 10_000  # steps with random actions at the beginning

    # evaluation
    eps_te: tuple[float, ...] = (0.0,)  # randomisation levels of the test domains (if one: of --watch and --gif, too)
    eval_domains: int = 20  # held-out domains for each level, one episode in each
    evaluate_every: int = 10_000  # environment steps between evaluations

    # run
    checkpoint_every: int = 5  # rows of the log, of 1000 steps each, between checkpoints


# ---------------------------------------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------------------------------------


def glorot(module: nn.Module):
    """Begin with weights uniform within +- sqrt(6 / (inputs + outputs)) and biases of 0 (Ours: the released code's)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def two_layers(inputs: int, outputs: int) -> nn.Sequential:
    """Two hidden layers of 256 ReLU."""
    layers = nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, outputs)
    return nn.Sequential(*layers).apply(glorot)


class SquashedActor(nn.Module):
    """pi(a|s): a = tanh(u) with u ~ Normal(mean(s), std(s)); the robot gets action_scale * a."""

    def __init__(self, obs_size: int, action_scale: np.ndarray):
        super().__init__()
        self.net = two_layers(obs_size, 2 * len(action_scale))
        self.register_buffer("action_scale", torch.as_tensor(action_scale))

    def forward(self, obs):  # (N, obs) -> mean (N, act), log_std (N, act), before the squash
        mean, log_std = self.net(obs).chunk(2, dim=-1)
        return mean, log_std.clamp(-20, 2)


class TwinCritic(nn.Module):
    """Q_1(s, a) and Q_2(s, a), which share nothing."""

    def __init__(self, obs_size: int, action_size: int):
        super().__init__()
        self.nets = nn.ModuleList([two_layers(obs_size + action_size, 1) for _ in range(2)])

    def forward(self, obs, actions):  # (N, obs), (N, act) -> (2, N)
        inputs = torch.cat([obs, actions], dim=-1)
        return torch.stack([net(inputs).squeeze(-1) for net in self.nets])


# ---------------------------------------------------------------------------------------------------------
# Losses (of distillation; those of SAC stand in baselines.py)
# ---------------------------------------------------------------------------------------------------------


def gaussian_kl(p, q):
    """KL(p || q) of diagonal Gaussians, each a pair mean (N, act), log_std (act,) or (N, act): (N,)."""
    (mean_p, log_std_p), (mean_q, log_std_q) = p, q
    terms = (2 * (log_std_p - log_std_q)).exp() + ((mean_p - mean_q) / log_std_q.exp()) ** 2
    return (0.5 * (terms - 1) + log_std_q - log_std_p).sum(-1)


def policy_distillation_loss(student, teacher, obs):                                  # PIEKD Eq. (1), CIKD Eq. (1)
    """Mean of KL(teacher || student) over the states obs (N, obs). Scalar.

    Of the Gaussians before the squash: tanh is one-to-one, and a KL does not change when both variables go through the
    same one-to-one map.
    """
    with torch.no_grad():
        wanted = teacher(obs)
    return gaussian_kl(wanted, student(obs)).mean()


def critic_distillation_loss(student, teacher, obs, actions):                                       # PIEKD Eq. (2)
    """Mean square difference of values, Q_1 to Q_1 and Q_2 to Q_2. (N, obs), (N, act) -> scalar"""
    with torch.no_grad():
        wanted = teacher(obs, actions)
    values = student(obs, actions)
    assert values.shape == wanted.shape == (2, len(obs))
    return ((values - wanted) ** 2).mean()


# ---------------------------------------------------------------------------------------------------------
# One update: a phase of distillation
# ---------------------------------------------------------------------------------------------------------


class Standings:
    """Who acts, who may teach, and when: each agent's last returns (for R_k), steps since the last phase (t_acc)."""

    def __init__(self, agents: int, episodes: int):
        self.returns = np.full((agents, episodes), np.nan)  # of each agent's last episodes, the newest at the end
        self.acting, self.counts = 0, False  # in the present episode; whether it is to count in the election
        self.steps_since, self.phases = 0, 0

    def record(self, episode_return: float):
        """The present episode is over."""
        self.returns[self.acting] = np.append(self.returns[self.acting, 1:], episode_return)

    def recent(self) -> np.ndarray:
        """Mean return of each agent's last episodes (K,), of fewer at the beginning; -inf for an agent without one."""
        return np.array([own[~np.isnan(own)].mean() if not np.isnan(own[-1]) else -np.inf for own in self.returns])

    def state_dict(self):
        return vars(self) | {"returns": torch.as_tensor(self.returns)}

    def load_state_dict(self, state):
        vars(self).update(state | {"returns": state["returns"].numpy()})


def elect(recent: np.ndarray, how: str, rng: np.random.Generator) -> int | None:
    """The teacher: the best recent return (ties: the first), or a random agent; None if none finished an episode."""
    candidates = np.flatnonzero(recent > -np.inf)
    if len(candidates) == 0:
        return None
    return int(rng.choice(candidates)) if how == "random" else int(np.argmax(recent))


def number_of_minibatches(buffer, args) -> int:
    """In a phase, for each student."""
    return args.distil_updates or args.distil_epochs * (len(buffer) // args.batch_size)


def minibatches_of_phase(buffer, args, rng: np.random.Generator):
    """Passes over the whole buffer; what does not fill a minibatch is left out.

    Ours: each pass in a new random order, where the released code takes consecutive transitions.
    """
    each_pass = len(buffer) // args.batch_size
    for i in range(number_of_minibatches(buffer, args)):
        if i % each_pass == 0:
            order = rng.permutation(len(buffer))
        yield buffer.at(order[args.batch_size * (i % each_pass) : args.batch_size * (i % each_pass + 1)])


def distil(student, teacher, buffer, args, rng) -> list[float]:
    """Fit the student's policy and critic to the teacher's; mean losses of both. Nothing else changes.

    Ours: each network gets a new Adam, discarded after the phase. In the released code the student's own optimisers go
    on with the learning rate and the moments of the distillation.
    """
    actor_optimiser = Optimiser([student.actor], args.distil_lr, args)
    critic_optimiser = Optimiser([student.critic], args.distil_lr, args)
    metrics = torch.zeros(2, device=args.device)
    for batch in minibatches_of_phase(buffer, args, rng):
        if args.distil != "critic":                                                        # PIEKD Alg. 1, line 19
            metrics[0] += actor_optimiser.minimise(policy_distillation_loss, student.actor, teacher.actor, batch.obs)
        if args.distil != "policy":                                                        # PIEKD Alg. 1, line 20
            arguments = student.critic, teacher.critic, batch.obs, batch.actions
            metrics[1] += critic_optimiser.minimise(critic_distillation_loss, *arguments)
    return (metrics / number_of_minibatches(buffer, args)).tolist()


def reset_networks(student, seed: int):
    """Give the student a new policy and a new critic, as at the beginning."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        student.actor.apply(glorot)
        student.critic.apply(glorot)


def teach(agents, teacher: int, buffer, args, phase_number: int, pool) -> list[list[float]]:
    """Bring all other agents nearer to the teacher, a thread for each; the mean losses (policy, critic) of every agent.

    Students share nothing that changes, so the number of threads changes nothing. Ours: a student keeps its temperature
    and its own optimisers, also where its networks are copied or reset; its target critics are not distilled, but take
    one step of their ordinary kind. So every ablation changes one thing.
    """
    losses, rngs = [[0.0, 0.0] for _ in agents], {}
    for k in (k for k in range(len(agents)) if k != teacher):
        rngs[k] = generator(args.seed, k, phase_number, "phase")
        if args.reset_students:
            reset_networks(agents[k], int(rngs[k].integers(2**62)))

    def teach_one(k):
        if args.share == "hardcopy":
            agents[k].actor.load_state_dict(agents[teacher].actor.state_dict())
            agents[k].critic.load_state_dict(agents[teacher].critic.state_dict())
        else:
            losses[k] = distil(agents[k], agents[teacher], buffer, args, rngs[k])
        agents[k].critic_optimiser.move_targets()

    list(pool.map(teach_one, rngs))
    return losses


def learn_on(agents, buffer, args, phase_number: int, pool):
    """Give each agent as many extra SAC updates as a phase of distillation has minibatches; nothing is shared.

    They train policy and critics, as in the papers; the released code leaves the critics out.
    """
    for k, agent in enumerate(agents):
        rng = generator(args.seed, k, phase_number, "phase")
        for _ in range(number_of_minibatches(buffer, args)):
            agent.update(*sac_batch(buffer, args, rng), args, pool)


def phase(agents, standings, buffer, run) -> list[dict]:
    """One phase, unless no agent can teach yet; restarts the counter of steps. Returns rows for distillation.csv."""
    args, rows = run.args, []
    if args.share == "extra":
        learn_on(agents, buffer, args, standings.phases, run.pool)
    else:
        recent, rng = standings.recent(), generator(args.seed, 0, standings.phases, "teacher")
        teacher = elect(recent, args.teacher, rng)                                         # PIEKD Alg. 1, line 18
        if teacher is None:
            return []  # wait until somebody has finished an episode
        losses = teach(agents, teacher, buffer, args, standings.phases, run.pool)          # lines 19, 20
        policies = {k: squashed_policy(agent.actor) for k, agent in enumerate(agents)}
        tests = evaluate(run.test_envs, policies, (min(args.eps_te),), args.eval_domains)
        for k, (policy_loss, critic_loss) in enumerate(losses):
            rows.append({
                "agent": k, "teacher": teacher,
                "recent": recent[k],  # mean training return of the last episodes; -inf: had none
                "policy_loss": policy_loss, "critic_loss": critic_loss,  # Eq. (1), (2), mean over the phase
                "return": np.mean([row["return"] for row in tests if row["agent"] == k]),  # just after the phase
            })
    standings.phases += 1
    remainder = standings.steps_since % args.interval
    standings.steps_since = remainder if METHODS[args.method].keeps_remainder else 0       # line 21
    return rows


# ---------------------------------------------------------------------------------------------------------
# The loop
# ---------------------------------------------------------------------------------------------------------


def train(args):
    """PIEKD's and CIKD's Algorithm 1; line numbers are PIEKD's."""
    method = METHODS[args.method]
    has_phases = method.distils or args.share == "extra"
    if not method.one_agent and args.ensemble_size < 2:
        fail(f"--method {args.method} needs --ensemble-size 2 or more; one agent is --method vanilla")
    steps = args.total_steps // ROW * ROW  # those that are made
    if has_phases and args.interval > steps - args.warm_up:
        fail(f"{steps} steps leave no --interval {args.interval} after --warm-up {args.warm_up}")
    if has_phases and args.batch_size > min(args.buffer_size, steps):
        fail(f"--batch-size {args.batch_size} is more than the buffer ever holds: no phase could begin")
    run = Run(args, "piekd_cikd")
    args, stream = run.args, Stream(run.envs[0], run.args, 0)
    buffer, obs_size, scale = stream.buffer, len(stream.obs), stream.action_scale
    numbers = range(1 if method.one_agent else args.ensemble_size)
    agents = [SACAgent(SquashedActor(obs_size, scale), TwinCritic(obs_size, len(scale)), args) for _ in numbers]
    standings = Standings(len(numbers), args.recent)

    parts = {f"agent{k}": agents[k] for k in numbers} | {"standings": standings, "stream": stream}
    for iteration in run.iterations(parts, ROW):
        acting = generator(args.seed, 0, iteration, "acting")
        rngs = [generator(args.seed, k, iteration) for k in numbers]
        metrics = torch.zeros(len(agents), len(SACAgent.METRICS), device=args.device)
        updates, returns = 0, [[] for _ in numbers]
        for step in range(ROW * iteration, ROW * (iteration + 1)):
            if not stream.actions:  # an episode begins; Ours: it counts only if it begins after the random steps
                standings.acting = int(generator(args.seed, 0, stream.episode, "turn").integers(len(agents)))  # line 9
                standings.counts = step >= args.warm_up
            if step < args.warm_up:
                action = acting.uniform(-scale, scale).astype(np.float32)
            else:
                noise = acting.standard_normal(len(scale), dtype=np.float32)
                action = squashed_policy(agents[standings.acting].actor)(stream.obs, noise)
            ended = stream.step(action)                                                          # lines 10, 11
            if step >= args.warm_up:
                for k, (agent, rng) in enumerate(zip(agents, rngs)):  # Ours: each has a minibatch of its own
                    metrics[k] += agent.update(*sac_batch(buffer, args, rng), args, run.pool)    # lines 12, 13
                updates += 1
                standings.steps_since += 1                                                       # line 15
            if not ended:
                continue
            returns[standings.acting] += ended
            if standings.counts:
                standings.record(*ended)                                                         # line 14
            # Line 17. Ours: at the end of an episode, where the released code distils in the middle of one.
            if has_phases and standings.steps_since >= args.interval and len(buffer) >= args.batch_size:
                if rows := phase(agents, standings, buffer, run):
                    run.write("distillation.csv", rows, step + 1)
        last = np.where(np.isnan(standings.returns[:, -1]), stream.last_return, standings.returns[:, -1])
        for k, agent in enumerate(agents):
            # Mean over this agent's episodes that ended in these steps, random ones too; if none, its last counted one;
            # if it has none, the ensemble's last one. Metrics: means over updates, 0 if none.
            row = {"return": np.mean(returns[k] or [last[k]]), "episodes": len(returns[k])}
            run.log(k, agent, row, metrics[k] / max(updates, 1))
        if run.evaluation_due or run.step // args.evaluate_every > (run.step - ROW) // args.evaluate_every:
            policies = {k: squashed_policy(agent.actor) for k, agent in enumerate(agents)}
            run.evaluate(policies, [agent.actor for agent in agents] if run.last else [])


# ---------------------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------------------


# What a line of a figure is: its label, and the arguments that are not the command line's.
METHOD = {"{method}": {}}
ENSEMBLE, VANILLA = {"ensemble": {"method": "ensemble"}}, {"vanilla": {"method": "vanilla"}}
EXTRA = {f"{method} (extra)": {"method": method, "share": "extra"} for method in ("ensemble", "vanilla")}
HARDCOPY = {"{method} (hardcopy)": {"share": "hardcopy"}}
RANDOM = {"{method} (random teacher)": {"teacher": "random"}}
RESET = {"{method} (reset)": {"reset_students": True}}
SIZES = {f"{{method}}, K = {size}": {"ensemble_size": size} for size in (2, 3, 5)}
INTERVALS = {f"{{method}}, I = {interval}": {"interval": interval} for interval in (1000, 5000, 10_000, 100_000)}
PARTS = {f"{part} only": {"distil": part} for part in ("policy", "critic")}
CURVES = {
    "piekd-3": METHOD | ENSEMBLE | VANILLA, "piekd-4": METHOD | EXTRA,
    "piekd-5": METHOD | HARDCOPY | ENSEMBLE | VANILLA, "piekd-6": METHOD | RANDOM | ENSEMBLE,
    "piekd-7": SIZES | ENSEMBLE, "piekd-8": INTERVALS | ENSEMBLE,
    "cikd-2": METHOD | ENSEMBLE | VANILLA, "cikd-3a": METHOD | EXTRA, "cikd-3b": METHOD | HARDCOPY | ENSEMBLE | VANILLA,
    "cikd-4": METHOD | RANDOM | ENSEMBLE | VANILLA, "cikd-6": SIZES | ENSEMBLE, "cikd-7": METHOD | PARTS | VANILLA,
    "cikd-8": METHOD | ENSEMBLE | VANILLA,
}


def load_policies(run) -> list:
    """The last policies of a run as functions obs (obs,) -> action (act,)."""
    networks = run.networks(lambda state: SquashedActor(state["net.0.weight"].shape[1], state["action_scale"].numpy()))
    return [squashed_policy(actor) for actor in networks]


def look_up(args, lines: dict[str, dict]) -> dict[str, list]:
    """Finished runs of each line of a figure, by label; {method} in it is that of the figure's paper."""
    method = args.figure.split("-")[0]
    wanted = {label.format(method=method.upper()): {"method": method} | changes for label, changes in lines.items()}
    return find_runs(args, "piekd_cikd", wanted)


def by_agent(run, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Steps of the evaluations (T,), and each agent's mean return at them (T, K)."""
    curves = [run.test_curve(eps, agent) for agent in np.unique(run.table("eval.csv")["agent"])]
    return curves[0][0], np.stack([returns for _, returns in curves], axis=1)


def plot_best(axis, args, found: dict[str, list], worst: bool = False):
    """Return of the best agent at each evaluation; if asked, of the worst as well."""
    lines, eps = {}, min(args.eps_te)
    for label, runs in found.items():
        tested = [by_agent(run, eps) for run in runs]
        several = worst and any(returns.shape[1] > 1 for _, returns in tested)
        lines[f"{label}, best" if several else label] = [(steps, returns.max(1)) for steps, returns in tested]
        if several:
            lines[f"{label}, worst"] = [(steps, returns.min(1)) for steps, returns in tested]
    plot_lines(axis, lines, "environment steps", f"return, deterministic policy, eps_te = {eps:g}")


def figure_curves(args):
    """The best agent's return against steps, a line for each variant; in two figures the worst one's as well."""
    figure, (axis,) = new_figure()
    worst = args.figure in ("piekd-3", "cikd-2")
    plot_best(axis, args, look_up(args, CURVES[args.figure]), worst)
    which = "best and worst agent" if worst else "best agent"
    return figure, f"{args.env}: {which}; mean over seeds, 95 % bootstrap interval"


def plot_indices(left, right, steps, runs: list[np.ndarray], agents: int, who: str):
    """Left: the index over time, in the first run. Right: how often each index occurs, a bar for each run."""
    left.plot(steps, runs[0], "o", markersize=4)
    left.set(xlabel="environment steps", ylabel=f"index of the {who}", yticks=range(agents))
    width = 0.8 / len(runs)
    for i, indices in enumerate(runs):
        shares = [np.mean(indices == k) for k in range(agents)]
        right.bar(np.arange(agents) + (i - (len(runs) - 1) / 2) * width, shares, 0.9 * width)
    right.set(xlabel="agent", ylabel=f"share of times as {who}", xticks=range(agents), ylim=(0, 1))


def surpassing(table: dict[str, np.ndarray], low: float, high: float) -> float:
    """Of all students in phases at low < step <= high, the share that was better than its teacher just after."""
    better = []
    for step in np.unique(table["step"][(low < table["step"]) & (table["step"] <= high)]):
        now = table["step"] == step
        teacher = table["agent"][now] == table["teacher"][now]
        returns = table["return"][now]
        better += list(returns[~teacher] > returns[teacher])
    return float(np.mean(better)) if better else math.nan


def figure_cikd_5(args):
    """Who teaches, how often each, how often a student is better than its teacher after a phase, and the reset."""
    found = look_up(args, METHOD | RESET | ENSEMBLE)
    tables = [run.table("distillation.csv") for run in found["CIKD"] if (run.path / "distillation.csv").exists()]
    if not tables:
        fail("--figure cikd-5 needs a run of --method cikd in which something was distilled")
    figure, axes = new_figure(columns=2, rows=2)
    first = [table["agent"] == 0 for table in tables]  # a row for each phase
    teachers = [table["teacher"][rows] for table, rows in zip(tables, first)]
    plot_indices(axes[0], axes[1], tables[0]["step"][first[0]], teachers, int(tables[0]["agent"].max()) + 1, "teacher")
    thirds = np.linspace(0, args.total_steps, 4)
    spans = {"first": thirds[:2], "second": thirds[1:3], "last": thirds[2:], "all": thirds[[0, 3]]}
    shares = {}
    for name, (low, high) in spans.items():
        known = [share for table in tables if not math.isnan(share := surpassing(table, low, high))]
        shares[name] = np.mean(known) if known else math.nan
    axes[2].bar(shares.keys(), shares.values())
    axes[2].set(xlabel="third of training", ylabel="share of students better than their teacher", ylim=(0, 1))
    print(f"students better than their teacher: {shares['all']:.0%} overall, {shares['last']:.0%} in the last third")
    plot_best(axes[3], args, found)
    titles = "(a) first seed", "(b) a bar for each seed", "(c) just after a phase", "(d) students reset before phases"
    for axis, title in zip(axes, titles):
        axis.set_title(title)
    return figure, f"{args.env}; (d): best agent, mean over seeds, 95 % bootstrap interval"


def figure_cikd_9(args):
    """Who is best at each evaluation when nothing is distilled: in one ensemble, among as many independent agents."""
    found = look_up(args, ENSEMBLE | VANILLA)
    if not found["ensemble"] or len(found["vanilla"]) < args.ensemble_size:
        fail(f"--figure cikd-9 needs a run of --method ensemble and {args.ensemble_size} seeds of --method vanilla")
    steps, together = by_agent(found["ensemble"][0], min(args.eps_te))
    alone = [by_agent(run, min(args.eps_te))[1][:, 0] for run in found["vanilla"][: args.ensemble_size]]
    figure, axes = new_figure(columns=2, rows=2)
    pairs = ("ensemble, first seed", together, axes[:2]), ("independent agents", np.stack(alone, axis=1), axes[2:])
    for name, returns, (left, right) in pairs:
        plot_indices(left, right, steps, [returns.argmax(1)], args.ensemble_size, "best agent")
        left.set_title(name)
        right.set_title(name)
    return figure, args.env


FIGURES = dict.fromkeys(CURVES, figure_curves) | {"cikd-5": figure_cikd_5, "cikd-9": figure_cikd_9}


if __name__ == "__main__":
    launch(Args, train, FIGURES, load_policies)
