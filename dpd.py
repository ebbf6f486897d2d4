"""DPD: dual policy distillation, two learners on one task that teach each other.

    Lai, Zha, Li and Hu, "Dual Policy Distillation" (IJCAI 2020).

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
    obs                     | s ~ pi~             | (N, obs) the peer's states

    pi_hypo(.|s) = pi~(.|s) where xi(s) > 0, else pi(.|s)                                             Eq. (2)
    J   = E_{s ~ pi~}[ D(pi(.|s), pi~(.|s)) 1(xi(s) > 0) ]              `--weighting hard`            Eq. (9)
    J^w = E_{s ~ pi~}[ D(pi(.|s), pi~(.|s)) exp(alpha xi(s)) ]          `--weighting exp`             Eq. (11), (12)

Eq. (12) is Eq. (11) with the two learners exchanged.

Where this differs from, or completes, the paper
------------------------------------------------
* D is the mean over action dimensions of the squared difference between mean actions, not samples.
* The weights have no gradient, are clipped to [.01, 100] and divided by their sum over the minibatch. (The released
  code does so too, but then multiplies weights of shape (N, 1) with distances of shape (N,), which makes them
  cancel; and its PPO has the sign of xi reversed. The sign here is the paper's.)
* Where the two critics differ by more than log(100) / alpha, the weight is clipped: to 100 where the peer's value is
  higher, to .01 where it is lower. If most states are like that, Eq. (11) is nearly Eq. (9); if moreover one critic is
  higher in nearly all of them, the states count alike. They also do if the critics differ by much less than 1 / alpha.
  The log's column `effective` is the share of states that count: 1 is all alike.
* With `--weighting hard` a minibatch in which no state counts has a gradient of 0, but Adam's running mean still moves
  the actor. Where few states count, each counts more than in Eq. (9), as the weights are divided by their sum.
* V for DDPG is Q(s, mu(s)), each learner's own critic at its own action. For PPO both values are brought to the
  learner's own scale of rewards before they are compared.
* How often to distil: in Algorithm 1 one step of distillation (line 5) follows the update of an iteration (line 4).
  So it is here with PPO: one step after all 320 gradient steps. `--distill-steps N` makes N steps, spread evenly over
  the gradient steps, the last one after the last of them; with 320 one follows each. (The released code distils in
  one of five iterations.) With DDPG one step of distillation follows each gradient step, as in the released code.
* Distillation has an Adam of its own and changes the actor's network alone, not PPO's standard deviations. The states
  are drawn from the peer's most recent 1000 steps, and each learner normalises them by its own statistics.
* Both learners act at the same time, one thread each; then the first learns, then the second. (In Algorithm 1 the
  second acts after the first has learned; only which of its states are the latest differs by this.)
* DDPG is that of baselines.py, with normalised layers and noise on the actors' weights. Each learner begins with 10 000
  random steps, in which nothing is learned: two learners take 20 000 together.
* PPO is that of baselines.py, but for the critic of 64-64-64. The paper takes all hyperparameters from OpenAI's
  baselines. There PPO's learning rate falls to 0, its values are clipped, and the norm that is clipped is that of both
  networks' gradient together. Here the rate is constant, values are not clipped, and actor and critic have a norm each.
* What is counted, plotted and compared is the total of both learners' environment steps.
* Table 1 of the paper is of PPO: it takes `--table 1 --base ppo`. Without `--base` the same table is of DDPG.
* Figure 2 has bootstrap intervals of the mean where the paper's has the standard deviation.
* Figure 3's states are those of 2000 steps of the last seed of DDPG, without noise. With three seeds or more it is none
  of those that are compared. The paper has "a pre-trained model". The figure compares learners of the same age: two
  that teach each other, after so many steps of each, with two apart. The paper's is of Walker2d after .5, 1.5 and 2.5
  million steps of each. Runs with `--total-steps 5e6 --evaluations 10` keep exactly these.
* The paper used the v2 environments, which need a MuJoCo of their time. The v4 ones are their successors.
* `--eps-tr` trains under domain randomisation, which the paper did not try: each learner in domains of its own.

Commands (two cores; see the README for measured numbers)
---------------------------------------------------------
    python dpd.py --env HalfCheetah-v4 --total-steps 6e4                       # toy: a minute, returns around 0
    python dpd.py --env HalfCheetah-v4 --total-steps 3e5                       # five minutes, returns of 1600 to 3800
    python dpd.py --env HalfCheetah-v4 --total-steps 5e6 --seeds 0 1 2 3 4     # the paper's steps: two hours
        # each; not measured

To use it elsewhere, copy dpd.py, baselines.py and randomised_envs.py.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

import baselines
from baselines import (
    CYCLE, CYCLES, DDPG_METRICS, PPO_METRICS, DDPGAgent, Exploration, Optimiser, PPOAgent, ReplayBuffer, Run, RunArgs,
    RunningNorm, Stream, make_batch, numpy_policy, rollout, shuffle,
)  # what is used more rarely is written baselines.name
from randomised_envs import sample_domain

LEARNERS = {"dpd": 2, "vanilla": 1}  # by method

PAPER = {  # what is used where the option is not given, by base: Sec. 4.2; alpha is the released code's
    "ddpg": {"alpha": 0.75, "distill_lr": 1e-4, "distill_batch": 64},
    "ppo": {"alpha": 0.5, "distill_lr": 1e-5, "distill_batch": 256},
}


@dataclass
class Args(RunArgs):
    # learners
    env: str = "HalfCheetah-v4"  # a Gymnasium MuJoCo environment
    base: Literal["ddpg", "ppo"] = "ddpg"  # what each learner does apart from distillation
    method: Literal["dpd", "vanilla"] = "dpd"  # two learners, or one with the same total of steps
    eps_tr: float = 0.0  # randomisation level in training, in [0, 1]; a new domain for each episode (PPO: iteration)
    total_steps: int = 1_000_000  # environment steps, summed over learners
    gamma: float = 0.99  # discount factor
    evaluations: int = 4  # evenly spaced over training, the last one at its end

    # distillation
    alpha: float | None = None  # confidence in the values (Eq. 11); if not given, .75 for DDPG and .5 for PPO
    weighting: Literal["exp", "hard", "none"] = "exp"  # of states: Eq. (11), Eq. (9), or all alike
    distill_lr: float | None = None  # Adam's; if not given, the paper's, 1e-4 for DDPG and 1e-5 for PPO
    distill_batch: int | None = None  # states of a minibatch; if not given, the paper's, 64 for DDPG and 256 for PPO
    distill_window: int = 1000  # states are drawn from so many latest steps of the peer (PPO: this iteration's at most)
    distill_steps: int = 1  # PPO: minibatches for each iteration; DDPG has one for each of its updates

    # DDPG
    actor_learning_rate: float = 1e-4  # Adam's
    critic_learning_rate: float = 1e-3  # Adam's
    critic_decay: float = 1e-2  # L2 regularisation of the critic's hidden weights
    tau: float = 0.01  # part of the way to the networks that targets go at each update
    batch_size: int = 64  # transitions for an update
    buffer_size: int = 1_000_000  # transitions that each learner remembers
    updates: int = 50  # for every 100 steps of a learner
    warm_up: int = 10_000  # steps of each learner with random actions at the beginning
    exploration: Literal["parameter", "action"] = "parameter"  # noise on the actor's weights, or on its actions
    noise: float = 0.2  # by how much either changes the actions, root mean square, in parts of their scale

    # PPO
    learning_rate: float = 3e-4  # Adam's
    steps_per_iteration: int = 2048  # of each learner between updates
    epochs: int = 10  # passes over an iteration's data
    minibatches: int = 32  # for each epoch
    initial_std: float = 1.0  # standard deviation of the actions at the start, in each dimension
    clip: float = 0.2  # of the probability ratio
    gae_lambda: float = 0.95  # of the advantage estimate
    max_grad_norm: float = 0.5  # gradients are scaled down to this norm

    # instead of training
    figure: Literal["", "2", "3"] = ""  # draw this figure of the paper from the runs that exist
    table: Literal["", "1"] = ""  # print this table of the paper from the runs that exist
    watch: str = ""  # a run's folder: show its policies in a window
    gif: str = ""  # a run's folder: write policy.gif into it


def with_paper(args: Args) -> Args:
    """The arguments, with the paper's for this base where none were given."""
    return Args(**PAPER[args.base] | {name: value for name, value in vars(args).items() if value is not None})


# ---------------------------------------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------------------------------------


def relu_network(inputs: int, outputs: int) -> nn.Sequential:
    """Three hidden layers of 64 ReLU, each normalised. The last weights are small: the first outputs are near zero."""
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


def linear(inputs: int, outputs: int, gain: float) -> nn.Linear:
    """A layer with orthogonal weights and zero bias."""
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def tanh_network(inputs: int, hidden: int, outputs: int, gain: float) -> nn.Sequential:
    """So many hidden layers of 64 tanh; gain: of the last layer's weights."""
    sizes = [inputs] + hidden * [64]
    layers = [layer for pair in zip(sizes, sizes[1:]) for layer in (linear(*pair, math.sqrt(2)), nn.Tanh())]
    return nn.Sequential(*layers, linear(64, outputs, gain))


class GaussianActor(nn.Module):
    """PPO's pi_theta(a|s) = Normal(mean(s), std), from raw observations: the normaliser is part of the policy."""

    def __init__(self, obs_size: int, action_size: int, initial_std: float = 1.0):
        super().__init__()
        self.norm = RunningNorm((obs_size,))
        self.net = tanh_network(obs_size, 2, action_size, gain=0.01)
        self.log_std = nn.Parameter(torch.full((action_size,), math.log(initial_std)))

    def forward(self, obs):  # (N, obs) -> mean (N, act), log_std (act,)
        return self.net(self.norm(obs)), self.log_std


class ValueCritic(nn.Module):
    """PPO's V(s), in units of scaled reward; a layer more than that of baselines.py (Sec. 4.2)."""

    def __init__(self, obs_size: int):
        super().__init__()
        self.norm = RunningNorm((obs_size,))
        self.net = tanh_network(obs_size, 3, 1, gain=1.0)

    def forward(self, obs):  # (N, obs) -> (N,)
        return self.net(self.norm(obs)).squeeze(-1)


# ---------------------------------------------------------------------------------------------------------
# Losses (of distillation; those of DDPG and PPO stand in baselines.py)
# ---------------------------------------------------------------------------------------------------------


def distillation_weights(better, alpha, weighting):
    """How much each state counts, from xi = V_peer - V_self there. (N,) -> (N,), sum 1 (or 0 if nothing counts)."""
    if weighting == "exp":                                                                        # Eq. (11), (12)
        weights = (alpha * better).exp().clamp(0.01, 100.0)
    else:                                                                                         # Eq. (9)
        weights = (better > 0).float() if weighting == "hard" else torch.ones_like(better)
    return (weights / weights.sum().clamp(min=1e-8)).detach()


def effective_share(weights):
    """How many states count, as a share of N: Kish's effective sample size over N. (N,) weights -> scalar"""
    return weights.sum() ** 2 / (len(weights) * (weights**2).sum()).clamp(min=1e-8)


def distillation_loss(actions, peer_actions, weights):                                            # Eq. (11), (12)
    """Weighted mean of the squared distance to the peer's actions. (N, act), (N, act), (N,) -> scalar"""
    distances = ((actions - peer_actions.detach()) ** 2).mean(-1)
    if distances.shape != weights.shape:  # (N,) against (N, 1) would pass as (N, N), and the weights cancel
        raise ValueError(f"weights {tuple(weights.shape)} for distances {tuple(distances.shape)}")
    return (weights * distances).sum()


METRICS = (
    "distillation",  # Eq. (11), (12)
    "peer_better",  # share of the peer's states in which its value is higher
    "effective",  # share of them that counts, by their weights
)


def distillation_losses(learner, peer, obs, unit, args):
    """The loss of a learner's actor on (N, obs) of its peer's states, and the METRICS.

    unit: what to multiply the peer's values with, to have them in the learner's units of reward. Scalar.
    """
    with torch.no_grad():
        better = unit * peer.state_value(obs) - learner.state_value(obs)
        weights = distillation_weights(better, args.alpha, args.weighting)
        peer_actions = peer.mean_action(obs)
    loss = distillation_loss(learner.mean_action(obs), peer_actions, weights)
    return (loss,), (loss, (better > 0).float().mean(), effective_share(weights))


# ---------------------------------------------------------------------------------------------------------
# One update
# ---------------------------------------------------------------------------------------------------------


class DDPGLearner(DDPGAgent):
    """An agent of baselines.py, and what distillation asks of it."""

    def __init__(self, obs_size: int, action_scale: np.ndarray, args):
        super().__init__(DeterministicActor(obs_size, action_scale), ActionCritic(obs_size, len(action_scale)), args)
        self.distillation = Optimiser([self.actor.net], args.distill_lr, args)

    def mean_action(self, obs):  # (N, obs) -> (N, act)
        return self.actor(obs)

    def state_value(self, obs):  # (N, obs) -> (N,)
        return self.critic(obs, self.actor(obs))

    def value_unit(self):
        """What a value of 1 is worth, in units of reward. Scalar."""
        return 1.0


class PPOLearner(PPOAgent):
    """An agent of baselines.py, and what distillation asks of it."""

    def __init__(self, obs_size: int, action_size: int, args):
        super().__init__(GaussianActor(obs_size, action_size, args.initial_std), ValueCritic(obs_size), args)
        self.distillation = Optimiser([self.actor.net], args.distill_lr, args)

    def mean_action(self, obs):  # (N, obs) -> (N, act)
        return self.actor(obs)[0]

    def state_value(self, obs):  # (N, obs) -> (N,)
        return self.critic(obs)

    def value_unit(self):
        """What a value of 1 is worth, in units of reward. Scalar."""
        return self.reward_scale.std().float()


def distil(learner, peer, obs, args):                                                             # Alg. 1, lines 5, 8
    """One step of regression to the peer on (N, obs) of its states; the METRICS. Only the actor's network changes."""
    unit = peer.value_unit() / learner.value_unit()
    return learner.distillation.minimise(distillation_losses, learner, peer, obs, unit, args)


def share_out(states, updates: int) -> list:
    """Share minibatches of states out among so many updates, as evenly as can be: the last update gets the last one."""
    return [states[len(states) * u // updates : len(states) * (u + 1) // updates] for u in range(updates)]


# ---------------------------------------------------------------------------------------------------------
# The loops
# ---------------------------------------------------------------------------------------------------------


def train_ddpg(args):
    """Algorithm 1 on DDPG: both act for a hundred steps, then one learns and then the other, repeat."""
    run, args = Run(args, "dpd"), with_paper(args)  # the folder's name has only what was given
    number = LEARNERS[args.method]
    envs, pool = baselines.make_envs(args, args.threads + number), baselines.thread_pool(args.threads)
    obs_size, action_scale = envs[0].observation_space.shape[0], baselines.symmetric_action_scale(envs[0])
    learners = [DDPGLearner(obs_size, action_scale, args) for _ in range(number)]  # with different initialisations
    size = min(args.buffer_size, args.total_steps // number)
    buffers = [ReplayBuffer(obs_size, len(action_scale), size) for _ in learners]
    streams = [Stream(env, args.seed, i, buffer) for i, (env, buffer) in enumerate(zip(envs, buffers))]
    explorations = [Exploration(learner.actor, args, i) for i, learner in enumerate(learners)]

    distill_steps = args.updates if number > 1 else 0  # for each hundred steps
    kinds = {"agent": learners, "buffer": buffers, "stream": streams, "exploration": explorations}
    parts = {f"{kind}{i}": part for kind, each in kinds.items() for i, part in enumerate(each)}
    for iteration in run.iterations(parts, CYCLE * CYCLES * number, args.warm_up * number):
        metrics = [torch.zeros(len(DDPG_METRICS), device=args.device) for _ in learners]
        lessons = [torch.zeros(len(METRICS), device=args.device) for _ in learners]
        returns, updates = [[] for _ in learners], 0
        for cycle in range(CYCLES * iteration, CYCLES * (iteration + 1)):                         # Alg. 1, line 2
            rngs = [np.random.default_rng([args.seed, i, cycle]) for i in range(number)]
            acting = [each.policy_and_noise(cycle * CYCLE, *own) for each, *own in zip(explorations, streams, rngs)]
            collected = list(pool.map(Stream.collect, streams, *zip(*acting)))                    # lines 3, 6
            for i, (rows, finished) in enumerate(collected):
                returns[i] += finished
                learners[i].actor.norm.update(rows[:, :obs_size])
            if cycle * CYCLE < args.warm_up:
                continue  # as in baselines.py, nothing is learned from random actions alone
            updates += args.updates
            for i, (learner, buffer, rng) in enumerate(zip(learners, buffers, rngs)):
                minibatches = torch.as_tensor(buffer.sample((args.updates, args.batch_size), rng), device=args.device)
                peer, theirs = learners[i - 1], buffers[i - 1]  # the other's; a learner alone is not taught
                rows = theirs.sample((distill_steps, args.distill_batch), rng, among=args.distill_window)
                states = torch.as_tensor(rows[..., :obs_size], device=args.device)
                for minibatch, due in zip(minibatches.unbind(), share_out(states, args.updates)):
                    metrics[i] += learner.update(buffer.split(minibatch), args)                   # lines 4, 7
                    for obs in due:
                        lessons[i] += distil(learner, peer, obs, args)                            # lines 5, 8
        for i, (learner, stream) in enumerate(zip(learners, streams)):
            finished = returns[i] or [stream.last_return]
            run.log(i, learner, {
                "return": np.mean(finished), "best_return": max(finished),  # if no episode ended, the last one's
                **dict(zip(DDPG_METRICS, (metrics[i] / max(updates, 1)).tolist())),  # means over the row's updates
                **dict(zip(METRICS, (lessons[i] / max(updates, 1)).tolist())),
            })
        finish_iteration(run, envs[number:], learners, args)


def train_ppo(args):
    """Algorithm 1 on PPO: both act, then one learns and then the other, repeat."""
    run, args = Run(args, "dpd"), with_paper(args)  # the folder's name has only what was given
    number = LEARNERS[args.method]
    envs, pool = baselines.make_envs(args, max(args.threads, number)), baselines.thread_pool(args.threads)
    obs_size, action_size = envs[0].observation_space.shape[0], envs[0].action_space.shape[0]
    learners = [PPOLearner(obs_size, action_size, args) for _ in range(number)]  # with different initialisations
    steps, updates = baselines.steps_per_agent(args, 1), args.epochs * args.minibatches

    distill_steps = args.distill_steps if number > 1 else 0  # for each iteration
    parts = {f"agent{i}": learner for i, learner in enumerate(learners)}
    for iteration in run.iterations(parts, steps * number, warm_up=steps * number):               # Alg. 1, line 2
        rngs = [np.random.default_rng([args.seed, i, iteration]) for i in range(number)]
        domains = [sample_domain(args.eps_tr, rng, envs[0].position_draws) for rng in rngs]
        policies = [numpy_policy(learner.actor) for learner in learners]
        stds = [learner.actor.log_std.exp().detach().cpu().numpy() for learner in learners]
        rollouts = list(pool.map(rollout, envs, policies, stds, domains, [steps] * number, rngs))  # lines 3, 6
        batches = [make_batch(learner, [data], args) for learner, data in zip(learners, rollouts)]
        metrics = [torch.zeros(len(PPO_METRICS), device=args.device) for _ in learners]
        lessons = [torch.zeros(len(METRICS), device=args.device) for _ in learners]
        epochs = args.epochs if iteration > 0 else 0  # the first one only gathers the normalisers' statistics
        for i, (learner, batch, rng) in enumerate(zip(learners, batches, rngs)):
            peer, theirs = learners[i - 1], rollouts[i - 1].obs[-args.distill_window :]  # the other one's
            rows = theirs[rng.integers(len(theirs), size=(distill_steps, args.distill_batch))]
            states = torch.as_tensor(rows, device=args.device)
            minibatches = [each for _ in range(epochs) for each in shuffle(batch, args.minibatches, rng)]
            for minibatch, due in zip(minibatches, share_out(states, updates)):
                metrics[i] += learner.update(minibatch, args)                                     # lines 4, 7
                for obs in due:
                    lessons[i] += distil(learner, peer, obs, args)                                # lines 5, 8
        for i, (learner, data) in enumerate(zip(learners, rollouts)):
            for network in (learner.actor, learner.critic):  # only now: the data was used with the old statistics
                network.norm.update(data.obs)
            run.log(i, learner, {
                # Of this iteration's finished episodes; if there is none, of the one that was cut.
                "return": data.returns.mean(), "best_return": data.returns.max(),
                **dict(zip(PPO_METRICS, (metrics[i] / updates).tolist())),  # means over minibatches; at first 0
                **dict(zip(METRICS, (lessons[i] / max(distill_steps, 1)).tolist())),
                "explained_variance": batches[i].explained_variance(),  # of the targets, by the critic; 1 is best
            })
        finish_iteration(run, envs, learners, args)


def finish_iteration(run, envs, learners, args):
    """Evaluate and keep the networks, where it is time."""
    if run.evaluation_due:
        policies = {i: numpy_policy(learner.actor) for i, learner in enumerate(learners)}
        run.evaluate(envs, policies)
        run.snapshot([network for learner in learners for network in (learner.actor, learner.critic)])


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
    """Learning curves against the steps of all learners together."""
    both = baselines.runs_by_environment(args, "dpd", BOTH)
    figure, axes = baselines.new_figure(columns=len(both))
    for axis, (env, runs) in zip(axes, both.items()):
        baselines.plot_lines(axis, {
            args.base: [run.training_curve() for run in runs["vanilla"]],
            "dpd, mean of both": [run.training_curve(rows=10) for run in runs["dpd"]],
            "dpd, better of both": [better_curve(run) for run in runs["dpd"]],
        }, "environment steps, all learners", "training return")
        axis.set_title(env)
    smoothed = "a point is a mean of 20 rows of the log, or of 10 of dpd's, which are twice as long"
    return figure, f"{args.base}; mean over seeds, 95 % bootstrap interval; {smoothed}"


@torch.no_grad()
def figure_3(args):
    """Values of ten states and distances between actions in a hundred, early, in the middle and late: two learners that
    teach each other beside two that do not know of each other (two seeds of vanilla DDPG), all of the same age."""
    found = baselines.select_runs(args, "dpd", {method: line | {"base": "ddpg"} for method, line in BOTH.items()})
    if not found["dpd"] or len(found["vanilla"]) < 2:
        baselines.fail("--figure 3 needs a run of dpd and two seeds of vanilla, on DDPG")
    together, alone, other, third = found["dpd"][0], *found["vanilla"][:2], found["vanilla"][-1]
    env, rng = baselines.make_envs(args, 1)[0], np.random.default_rng(args.seed)
    still = np.zeros_like(env.action_space.high)
    visited = rollout(env, load_policies(third)[0], still, sample_domain(0, rng), 2000, rng).obs
    states = torch.as_tensor(rng.permutation(visited)[:100])

    steps, kept = together.steps(), set(alone.steps()) & set(other.steps())
    # Two learners have made half of the steps each: a learner alone is of their age when it has made half as many.
    ages = {step: min(kept, key=lambda age: abs(age - step / 2)) for step in steps}
    exact = [step for step in steps if ages[step] == step / 2]
    steps = exact if len(exact) > 2 else steps
    figure, axes = baselines.new_figure(columns=3, rows=2)
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
        baselines.plot_lines(top, values, "state", "Q(s, mu(s))", seeds=False, marker="o", markersize=3)
        baselines.plot_lines(bottom, distances, "state", "distance between actions", seeds=False, linewidth=0.8)
        same = f"{when}: {step // 2:,} steps of each learner"
        title = same if ages[step] == step / 2 else f"{when}: DPD {step // 2:,}, DDPG {ages[step]:,} steps"
        top.set_title(title)
    return figure, f"{args.env}; states of a trained DDPG, seed {third.settings['seed']}"


def returns_of(run) -> dict[str, float]:
    """Returns in training, and of the deterministic policies at the end in held-out domains of the smallest eps_te."""
    log, level, agents = run.table("log.csv"), min(run.settings["eps_te"]), range(LEARNERS[run.settings["method"]])
    final = [run.test_curve(level, agent)[1][-1] for agent in agents]
    late = log["return"][log["step"] > 0.9 * log["step"].max()].mean()
    return {
        "training, mean of the last tenth": late, "training, best episode": log["best_return"].max(),
        "deterministic, mean of the learners": np.mean(final), "deterministic, better learner": np.max(final),
    }


def table_1(args):
    """The returns of both methods, and, which is not in the paper, of DPD with all states alike."""
    lines = BOTH | {"dpd, all states alike": {"method": "dpd", "weighting": "none"}}
    for env, found in baselines.runs_by_environment(args, "dpd", lines).items():
        baselines.print_by_seed(f"{env} {args.base}", found, returns_of, baseline="vanilla")


def train(args):
    """Algorithm 1, on the base that was chosen; or the table that was asked for instead."""
    if args.table:
        table_1(args)
    else:
        {"ddpg": train_ddpg, "ppo": train_ppo}[args.base](args)


if __name__ == "__main__":
    baselines.launch(Args, train, {"2": figure_2, "3": figure_3}, load_policies)
