# SPDX-FileCopyrightText: 2026 the authors of this repository
# SPDX-License-Identifier: MIT
"""DPD: dual policy distillation, two learners on one task that teach each other.

    Lai, Zha, Li and Hu, "Dual Policy Distillation" (IJCAI 2020): equations, sections and Algorithm 1 are its own.

The idea
--------
Two learners with different initialisations explore the same task. Neither is an expert, but each is better than
the other somewhere. In a state where the peer's value is higher, do what the peer does: the policy that in every
state follows whichever of the two has the higher value is at least as good as both, everywhere (Proposition 1;
`tests/test_dpd.py` checks it on random Markov decision processes solved exactly). So after its ordinary reinforcement
learning each learner takes a step of regression towards its peer's actions on the peer's states, and a state counts
more where the peer seems to be better.

    code                    | paper               | shape
    learner, peer           | pi_theta, pi~_phi   |
    better                  | xi(s)               | (N,) V_peer(s) - V_self(s)
    weights                 | exp(alpha xi)       | (N,) normalised to sum 1
    states                  | s ~ pi~             | (N, obs) the peer's states

    pi_hypo(.|s) = pi~(.|s) where xi(s) > 0, else pi(.|s)                                             Eq. (2)
    J   = E_{s ~ pi~}[ D(pi(.|s), pi~(.|s)) 1(xi(s) > 0) ]              `--weighting hard`            Eq. (9)
    J^w = E_{s ~ pi~}[ D(pi(.|s), pi~(.|s)) exp(alpha xi(s)) ]          `--weighting exp`             Eq. (11), (12)

Eq. (12) is Eq. (11) with the two learners exchanged. D is the mean square difference between their mean actions.

Commands (two cores)
--------------------
    python dpd.py --env HalfCheetah-v4 --total-steps 6e4                       # toy: a minute, returns around 0
    python dpd.py --env HalfCheetah-v4 --total-steps 3e5                       # five minutes, returns of 1600 to 3700
    python dpd.py --env HalfCheetah-v4 --figure table-1                        # Table 1, from the finished runs

To use it elsewhere, copy dpd.py, baselines.py and randomised_envs.py. "Ours": not in the paper.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

from baselines import (
    DDPGAgent, Optimiser, PPOAgent, Run, RunArgs, RunningNorm, Stream, fail, find_runs, generator, launch, make_batch,
    make_envs, new_figure, numpy_policy, plot_lines, rollout, shuffle, steps_per_agent,
)  # fmt: skip
from randomised_envs import bootstrap

LEARNERS = {"dpd": 2, "vanilla": 1}  # by method

PAPER = {  # what is used where the option is not given, by base: Sec. 4.2; Ours: alpha, the released code's
    "ddpg": {"alpha": 0.75, "distil_lr": 1e-4, "distil_batch": 64},
    "ppo": {"alpha": 0.5, "distil_lr": 1e-5, "distil_batch": 256},
}


@dataclass
class Args(RunArgs):
    # learners
    env: str = "HalfCheetah-v4"  # a Gymnasium MuJoCo environment; Ours: v4, as the paper's v2 needs mujoco-py
    base: Literal["ddpg", "ppo"] = "ddpg"  # what each learner does apart from distillation
    method: Literal[tuple(LEARNERS)] = "dpd"  # two learners, or one with the same total of steps
    eps_tr: float = 0.0  # Ours: randomisation level in training, in [0, 1]; each learner has domains of its own
    total_steps: int = 1_000_000  # environment steps, summed over learners; another number is another run
    gamma: float = 0.99  # discount factor
    evaluations: int = 4  # evenly spaced over training, the last one at its end

    # distillation
    alpha: float | None = None  # confidence in the values (Eq. 11); if not given, .75 for DDPG and .5 for PPO
    weighting: Literal["exp", "hard", "none"] = "exp"  # of states: Eq. (11), Eq. (9), or all alike
    distil_lr: float | None = None  # Adam's; if not given, the paper's, 1e-4 for DDPG and 1e-5 for PPO
    distil_batch: int | None = None  # states of a minibatch; if not given, the paper's, 64 for DDPG and 256 for PPO
    distil_window: int = 1000  # draw states from this many of the peer's latest steps (PPO: at most this iteration's)
    distil_steps: int = 1  # PPO: distillation steps per iteration; DDPG: ignored, one per gradient step

    # DDPG
    actor_learning_rate: float = 1e-4  # learning rate of Adam
    critic_learning_rate: float = 1e-3  # learning rate of Adam
    critic_decay: float = 1e-2  # L2 regularisation of the critic's hidden weights
    tau: float = 0.01  # target update rate
    batch_size: int = 64  # transitions for an update
    buffer_size: int = 1_000_000  # transitions that each learner remembers
    updates: int = 50  # for every 100 steps of a learner
    warm_up: int = 10_000  # Ours: steps of each learner with random actions at the beginning
    noise: float = 0.2  # target RMS change of the action under noise on the weights, as a fraction of its limit

    # PPO
    learning_rate: float = 3e-4  # Adam's; Ours: constant, where OpenAI's baselines let it fall to 0
    steps_per_iteration: int = 2048  # of each learner between updates
    epochs: int = 10  # passes over an iteration's data
    minibatches: int = 32  # for each epoch
    initial_std: float = 1.0  # standard deviation of the actions at the start, in each dimension
    clip: float = 0.2  # of the probability ratio; Ours: values are not clipped
    gae_lambda: float = 0.95  # of the advantage estimate
    max_grad_norm: float = 0.5  # clip gradients to this norm; Ours: actor's and critic's separately

    def left_open(self) -> dict:
        """See RunArgs."""
        return PAPER[self.base]


# ---------------------------------------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------------------------------------


def relu_network(inputs: int, outputs: int) -> nn.Sequential:
    """Three hidden layers of 64 ReLU, each normalised (Ours, as in OpenAI's baselines). Initial outputs are near 0."""
    sizes = (inputs, 64), (64, 64), (64, 64)
    layers = [layer for size in sizes for layer in (nn.Linear(*size), nn.LayerNorm(64), nn.ReLU())]
    net = nn.Sequential(*layers, nn.Linear(64, outputs))
    for parameter in net[-1].parameters():
        nn.init.uniform_(parameter, -3e-3, 3e-3)
    return net


class DeterministicActor(nn.Module):
    """DDPG's mu(s), from raw observations: the normaliser is part of the policy."""

    def __init__(self, obs_size: int, action_scale: np.ndarray):
        super().__init__()
        self.norm = RunningNorm((obs_size,), clip=5.0)
        self.net = relu_network(obs_size, len(action_scale)).append(nn.Tanh())
        self.register_buffer("action_scale", torch.as_tensor(action_scale))  # actions lie between - and + this

    def forward(self, obs):  # (N, obs) -> (N, act)
        return self.net(self.norm(obs)) * self.action_scale


class ActionCritic(nn.Module):
    """DDPG's Q(s, a), with the statistics of the actor's normaliser."""

    def __init__(self, obs_size: int, action_size: int):
        super().__init__()
        self.norm = RunningNorm((obs_size,), clip=5.0)
        self.net = relu_network(obs_size + action_size, 1)

    def forward(self, obs, actions):  # (N, obs), (N, act) -> (N,)
        return self.net(torch.cat([self.norm(obs), actions], dim=-1)).squeeze(-1)


def tanh_network(inputs: int, outputs: int, gain: float, hidden: int = 2) -> nn.Sequential:
    """Hidden layers of 64 tanh, with orthogonal weights and zero biases; gain: of the last layer's weights."""
    sizes, gains, layers = [inputs, *hidden * [64], outputs], [*hidden * [math.sqrt(2)], gain], []
    for size, next_size, scale in zip(sizes, sizes[1:], gains):
        layers += [nn.Linear(size, next_size), nn.Tanh()]
        nn.init.orthogonal_(layers[-2].weight, scale)
        nn.init.zeros_(layers[-2].bias)
    return nn.Sequential(*layers[:-1])


class GaussianActor(nn.Module):
    """PPO's pi_theta(a|s) = Normal(mean(s), std), from raw observations: the normaliser is part of the policy."""

    def __init__(self, obs_size: int, action_size: int, initial_std: float = 1.0):
        super().__init__()
        self.norm = RunningNorm((obs_size,))
        self.net = tanh_network(obs_size, action_size, gain=0.01)
        self.log_std = nn.Parameter(torch.full((action_size,), math.log(initial_std)))

    def forward(self, obs):  # (N, obs) -> mean (N, act), log_std (act,)
        return self.net(self.norm(obs)), self.log_std


class ValueCritic(nn.Module):
    """PPO's V(s), in units of scaled reward; a layer more than that of baselines.py (Sec. 4.2)."""

    def __init__(self, obs_size: int):
        super().__init__()
        self.norm = RunningNorm((obs_size,))
        self.net = tanh_network(obs_size, 1, gain=1.0, hidden=3)

    def forward(self, obs):  # (N, obs) -> (N,)
        return self.net(self.norm(obs)).squeeze(-1)


# ---------------------------------------------------------------------------------------------------------
# Losses (of distillation; those of DDPG and PPO stand in baselines.py)
# ---------------------------------------------------------------------------------------------------------


def distillation_weights(better, alpha, weighting):
    """How much each state counts, from xi = V_peer - V_self there. (N,) -> (N,), sum 1 (or 0 if nothing counts).

    Ours, as in the released code: clipped, divided by their sum, detached. The sign is the paper's: the code's PPO
    reverses it. If |xi| > log(100) / alpha in most states and both signs occur, Eq. (11) is nearly Eq. (9). If one sign
    prevails, all states count alike.
    """
    if weighting == "exp":                                                                        # Eq. (11), (12)
        weights = (alpha * better).exp().clamp(0.01, 100.0)
    else:                                                                                         # Eq. (9)
        weights = (better > 0).float() if weighting == "hard" else torch.ones_like(better)
    return (weights / weights.sum().clamp(min=1e-8)).detach()


def effective_share(weights):
    """How many states count, as a share of N: Kish's effective sample size over N. (N,) weights -> scalar"""
    return weights.sum() ** 2 / (len(weights) * (weights**2).sum()).clamp(min=1e-8)


def regression_loss(actions, peer_actions, weights):                                              # Eq. (9), (11), (12)
    """Weighted mean over states of D, the mean over action dimensions of squared differences. (N, act) twice, (N,).

    Raises ValueError unless weights are (N,): the released code's (N, 1) broadcast to (N, N), where they cancel. Ours:
    D compares mean actions, not samples.
    """
    distances = ((actions - peer_actions.detach()) ** 2).mean(-1)
    if distances.shape != weights.shape:
        raise ValueError(f"weights {tuple(weights.shape)} for distances {tuple(distances.shape)}")
    return (weights * distances).sum()


def distillation_losses(learner, peer, states, args):
    """The loss of a learner's actor on (N, obs) of its peer's states, and METRICS."""
    with torch.no_grad():
        better = learner.better(peer, states)
        weights = distillation_weights(better, args.alpha, args.weighting)
        peer_actions = peer.mean_action(states)
    loss = regression_loss(learner.mean_action(states), peer_actions, weights)
    return loss, torch.stack([loss, (better > 0).float().mean(), effective_share(weights)])


# ---------------------------------------------------------------------------------------------------------
# One update
# ---------------------------------------------------------------------------------------------------------

# The distillation loss; share of the peer's states where the peer's value is higher; effective share of all of them.
# With one learner there is nothing to distil, and all are 0.
METRICS = "distillation", "peer_better", "effective"


class DDPGLearner(DDPGAgent):
    """An agent of baselines.py, and what distillation asks of it."""

    METRICS = DDPGAgent.METRICS + METRICS

    def __init__(self, obs_size: int, action_scale: np.ndarray, args):
        super().__init__(DeterministicActor(obs_size, action_scale), ActionCritic(obs_size, len(action_scale)), args)
        self.distillation = Optimiser([self.actor.net], args.distil_lr, args)  # Ours: an Adam of its own

    def mean_action(self, obs):  # (N, obs) -> (N, act)
        return self.actor(obs)

    def better(self, peer, obs):
        """xi(s) = V_peer(s) - V_self(s). (N, obs) -> (N,). Sec. 4.1: V(s) is Q(s, mu(s)), each learner's own."""
        return peer.critic(obs, peer.actor(obs)) - self.critic(obs, self.actor(obs))


class PPOLearner(PPOAgent):
    """An agent of baselines.py, and what distillation asks of it."""

    METRICS = PPOAgent.METRICS + METRICS

    def __init__(self, obs_size: int, action_size: int, args):
        super().__init__(GaussianActor(obs_size, action_size, args.initial_std), ValueCritic(obs_size), args)
        self.distillation = Optimiser([self.actor.net], args.distil_lr, args)  # Ours: standard deviations stay

    def mean_action(self, obs):  # (N, obs) -> (N, act)
        return self.actor(obs)[0]

    def better(self, peer, obs):
        """xi(s) = V_peer(s) - V_self(s). (N, obs) -> (N,). Ours: both in units of this learner's scaled reward."""
        return peer.reward_scale.std().float() / self.reward_scale.std().float() * peer.critic(obs) - self.critic(obs)


def distil_step(learner, peer, states, args):                                                     # Alg. 1, lines 5, 8
    """One step of regression to the peer on (N, obs) of its states; METRICS. Only the actor's network changes."""
    return learner.distillation.minimise(distillation_losses, learner, peer, states, args)


def share_out(states, updates: int) -> list:
    """Spread minibatches of states evenly over `updates` gradient steps; the last one follows the last step."""
    return [states[len(states) * u // updates : len(states) * (u + 1) // updates] for u in range(updates)]


# ---------------------------------------------------------------------------------------------------------
# The loops
# ---------------------------------------------------------------------------------------------------------

CYCLE, CYCLES = 100, 20  # as in baselines.py: DDPG acts for 100 steps, then learns; a row of the log for every 20 times


def train_ddpg(args):
    """Algorithm 1 on DDPG: both act for a hundred steps, then one learns and then the other, repeat."""
    run = Run(args, "dpd", LEARNERS[args.method])
    args, number = run.args, len(run.envs)
    streams = [Stream(env, args, i) for i, env in enumerate(run.envs)]
    learners = [DDPGLearner(len(stream.obs), stream.action_scale, args) for stream in streams]  # initialised apart

    parts = {f"agent{i}": learner for i, learner in enumerate(learners)}
    parts |= {f"stream{i}": stream for i, stream in enumerate(streams)}
    for iteration in run.iterations(parts, CYCLE * CYCLES * number):
        own = torch.zeros(number, len(DDPGAgent.METRICS), device=args.device)
        distillation = torch.zeros(number, len(METRICS), device=args.device)
        returns, updates = [[] for _ in learners], 0
        for cycle in range(CYCLES * iteration, CYCLES * (iteration + 1)):                         # Alg. 1, line 2
            rngs = [generator(args.seed, i, cycle) for i in range(number)]
            policies = [  # Ours: both act at the same time, a thread each
                learner.exploring_policy(cycle * CYCLE, stream, rng, args)
                for learner, stream, rng in zip(learners, streams, rngs)
            ]
            finished = list(run.pool.map(Stream.collect, streams, policies, [CYCLE] * number))    # lines 3, 6
            for i, learner in enumerate(learners):
                returns[i] += finished[i]
                learner.actor.norm.update(streams[i].buffer.latest(CYCLE).obs)
            if cycle * CYCLE < args.warm_up:
                continue  # as in baselines.py, nothing is learned from random actions alone
            updates += args.updates
            for i, learner in enumerate(learners):
                minibatches = streams[i].buffer.sample(args.updates, args.batch_size, rngs[i])
                others = streams[i - 1].buffer.sample(args.updates, args.distil_batch, rngs[i], args.distil_window)
                for minibatch, other in zip(minibatches, others):
                    own[i] += learner.update(minibatch, args)                                     # lines 4, 7
                    if number > 1:  # Ours: a step of distillation for each gradient step, as in the released code
                        distillation[i] += distil_step(learner, learners[i - 1], other.obs, args)  # lines 5, 8
        for i, learner in enumerate(learners):
            finished = returns[i] or [streams[i].last_return]  # if no episode ended, the last one's
            row = {"return": np.mean(finished), "best_return": max(finished)}
            run.log(i, learner, row, torch.cat([own[i], distillation[i]]) / max(updates, 1))  # means over updates
        evaluate_learners(run, learners)


def train_ppo(args):
    """Algorithm 1 on PPO: both act, then one learns and then the other, repeat."""
    run = Run(args, "dpd", LEARNERS[args.method])
    args, envs, number = run.args, run.envs, len(run.envs)
    obs_size, action_size = envs[0].observation_space.shape[0], envs[0].action_space.shape[0]
    learners = [PPOLearner(obs_size, action_size, args) for _ in envs]  # with different initialisations
    steps, updates = steps_per_agent(args, 1), args.epochs * args.minibatches

    distil_steps = args.distil_steps if number > 1 else 0  # per iteration; Ours: as in Sec. 3.2, not the released code
    parts = {f"agent{i}": learner for i, learner in enumerate(learners)}
    for iteration in run.iterations(parts, steps * number):                                       # Alg. 1, line 2
        rngs = [generator(args.seed, i, iteration) for i in range(number)]
        domains = [env.sample_domain(args.eps_tr, rng) for env, rng in zip(envs, rngs)]
        policies = [numpy_policy(learner.actor) for learner in learners]
        stds = [learner.actor.log_std.exp().detach().cpu().numpy() for learner in learners]
        rollouts = list(run.pool.map(rollout, envs, policies, stds, domains, [steps] * number, rngs))  # lines 3, 6
        batches = [make_batch(learner, [data], args) for learner, data in zip(learners, rollouts)]
        own = torch.zeros(number, len(PPOAgent.METRICS), device=args.device)
        distillation = torch.zeros(number, len(METRICS), device=args.device)
        epochs = args.epochs if iteration > 0 else 0  # the first one only gathers the normalisers' statistics
        for i, (learner, batch, rng) in enumerate(zip(learners, batches, rngs)):
            theirs = rollouts[i - 1].obs[-args.distil_window :]  # the peer's
            rows = theirs[rng.integers(len(theirs), size=(distil_steps, args.distil_batch))]
            shares = share_out(torch.as_tensor(rows, device=args.device), updates)
            minibatches = [each for _ in range(epochs) for each in shuffle(batch, args.minibatches, rng)]
            for minibatch, share in zip(minibatches, shares):
                own[i] += learner.update(minibatch, args)                                         # lines 4, 7
                for states in share:
                    distillation[i] += distil_step(learner, learners[i - 1], states, args)        # lines 5, 8
        for i, (learner, data) in enumerate(zip(learners, rollouts)):
            for network in (learner.actor, learner.critic):  # only now: the data was used with the old statistics
                network.norm.update(data.obs)
            row = {"return": data.returns.mean(), "best_return": data.returns.max()}
            row["explained_variance"] = batches[i].explained_variance()  # of the targets, by the critic; 1 is best
            run.log(i, learner, row, torch.cat([own[i] / updates, distillation[i] / max(distil_steps, 1)]))
        evaluate_learners(run, learners)


def evaluate_learners(run, learners):
    """Test and keep them, where it is time."""
    if run.evaluation_due:
        policies = {i: numpy_policy(learner.actor) for i, learner in enumerate(learners)}
        run.evaluate(policies, [network for learner in learners for network in (learner.actor, learner.critic)])


def train(args):
    """Algorithm 1, on the base that was chosen."""
    {"ddpg": train_ddpg, "ppo": train_ppo}[args.base](args)


# ---------------------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------------------


BOTH = {method: {"method": method} for method in LEARNERS}  # the lines of a figure


def make_network(state: dict) -> nn.Module:
    """A new network of the kind that has such a state: the names and shapes in it show which."""
    obs_size, inputs = len(state["norm.mean"]), state["net.0.weight"].shape[1]
    if "action_scale" in state:
        return DeterministicActor(obs_size, state["action_scale"].numpy())
    if "log_std" in state:
        return GaussianActor(obs_size, len(state["log_std"]))
    return ActionCritic(obs_size, inputs - obs_size) if inputs > obs_size else ValueCritic(obs_size)


def load_learners(run, step: int | None = None) -> list[tuple[nn.Module, nn.Module]]:
    """Actor and critic of each learner of a run at this step; the last ones if None."""
    networks = run.networks(make_network, step)
    return list(zip(networks[::2], networks[1::2]))


def load_policies(run) -> list:
    """The last policies as functions obs (obs,) -> mean action (act,)."""
    return [numpy_policy(actor) for actor, _ in load_learners(run)]


def better_curve(run):
    """Steps (T,), and the return of the better learner at each (T,)."""
    curves = [run.training_curve(agent=agent, rows=10) for agent in range(LEARNERS["dpd"])]
    return curves[0][0], np.max([returns for _, returns in curves], axis=0)


def figure_2(args):
    """Learning curves against the steps of all learners together. Ours: with bootstrap intervals of the mean."""
    found = find_runs(args, "dpd", BOTH)
    figure, (axis,) = new_figure()
    plot_lines(axis, {
        args.base: [run.training_curve() for run in found["vanilla"]],
        "dpd, mean of both": [run.training_curve(rows=10) for run in found["dpd"]],
        "dpd, better of both": [better_curve(run) for run in found["dpd"]],
    }, "environment steps, all learners", "training return")
    smoothed = "moving mean of 20 rows of the log, or of 10 of dpd's, which have twice as many steps"
    return figure, f"{args.env}, {args.base}; mean over seeds, 95 % bootstrap interval; {smoothed}"


@torch.no_grad()
def figure_3(args):
    """Values of ten states, and distances of actions in a hundred, early, midway and late in training: DPD's two
    learners beside two independent ones (two seeds of vanilla DDPG), of the same age or the nearest that was saved."""
    found = find_runs(args, "dpd", {method: line | {"base": "ddpg"} for method, line in BOTH.items()})
    if not found["dpd"] or len(found["vanilla"]) < 2:
        fail("--figure 3 needs a run of dpd and two seeds of vanilla, on DDPG")
    together, alone, other, third = found["dpd"][0], *found["vanilla"][:2], found["vanilla"][-1]
    env, rng = make_envs(args, 1)[0], np.random.default_rng(args.seed)
    still = np.zeros_like(env.action_space.high)
    visited = rollout(env, load_policies(third)[0], still, env.sample_domain(0, rng), 2000, rng).obs
    states = torch.as_tensor(rng.permutation(visited)[:100])

    steps, kept = together.steps(), set(alone.steps()) & set(other.steps())
    # Two learners have made half of the steps each: a learner alone is of their age when it has made half as many.
    ages = {step: min(kept, key=lambda age: abs(age - step / 2)) for step in steps}
    exact = [step for step in steps if ages[step] == step / 2]
    steps = exact if len(exact) > 2 else steps
    figure, axes = new_figure(columns=3, rows=2)
    stages = zip(("early", "middle", "late"), (steps[0], steps[len(steps) // 2], steps[-1]), axes[:3], axes[3:])
    for when, step, top, bottom in stages:
        apart = [load_learners(run, ages[step])[0] for run in (alone, other)]
        pairs, values, distances = {"DPD": load_learners(together, step), "DDPG": apart}, {}, {}
        for i in range(2):
            for name, learners in pairs.items():
                actor, critic = learners[i]
                values[f"{name}-{i + 1}"] = [(np.arange(1, 11), critic(states[:10], actor(states[:10])).numpy())]
        for name, ((actor, _), (other_actor, _)) in pairs.items():
            far = (actor(states) - other_actor(states)).norm(dim=1).numpy()
            distances[f"{name}, mean {far.mean():.2f}"] = [(np.arange(1, 101), far)]
        plot_lines(top, values, "state", "Q(s, mu(s))", seeds=False, marker="o", markersize=3)
        plot_lines(bottom, distances, "state", "distance between actions", seeds=False, linewidth=0.8)
        same = f"{when}: {step // 2:,} steps of each learner"
        title = same if ages[step] == step / 2 else f"{when}: DPD {step // 2:,}, DDPG {ages[step]:,} steps"
        top.set_title(title)
    return figure, f"{args.env}; states of a trained DDPG, seed {third.settings['seed']}"


def returns_of(run) -> dict[str, float]:
    """Returns in training, and of the deterministic policies at the end in held-out domains of the smallest eps_te."""
    log, level, agents = run.table("log.csv"), min(run.settings["eps_te"]), range(LEARNERS[run.settings["method"]])
    final = [run.test_curve(level, agent)[1][-1] for agent in agents]
    late = np.nanmean(log["return"][log["step"] > 0.9 * log["step"].max()])  # nan: no episode had ended yet
    return {
        "training, mean of the last tenth": late, "training, best episode": np.nanmax(log["best_return"]),
        "deterministic, mean of the learners": np.mean(final), "deterministic, better learner": np.max(final),
    }


def table_1(args):
    """Print the returns of both methods, and, which is not in the paper, of DPD with all states alike."""
    lines = BOTH | {"dpd, all states alike": {"method": "dpd", "weighting": "none"}}
    print(f"{args.env}, {args.base}: mean over seeds [95 % bootstrap interval], number of seeds")
    for label, runs in find_runs(args, "dpd", lines).items():
        tables = [returns_of(run) for run in runs]
        for name in tables[0] if tables else ():
            values = [table[name] for table in tables]
            low, high = bootstrap(values)
            print(f"{label}, {name}: {np.mean(values):.0f} [{low:.0f}, {high:.0f}], {len(values)}")


FIGURES = {"2": figure_2, "3": figure_3, "table-1": table_1}


if __name__ == "__main__":
    launch(Args, train, FIGURES, load_policies)
