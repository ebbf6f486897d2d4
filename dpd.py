"""DPD: dual policy distillation, two learners on one task that teach each other.

    Lai, Zha, Li and Hu, "Dual Policy Distillation" (IJCAI 2020).

The idea
--------
Two learners with different initialisations explore the same task. Neither is an expert, but each is better than
the other somewhere. In a state where the peer's value is higher, do what the peer does: the policy that in every
state follows whichever of the two has the higher value is at least as good as both, everywhere (Proposition 1;
`tests/test_dpd.py` checks it on random Markov decision processes solved exactly). So after each step of ordinary
reinforcement learning, each learner takes a step of regression towards its peer's actions on the peer's states, and
the regression counts more where the peer seems to be better.

    code                    | paper               | shape
    learner, peer           | pi_theta, pi~_phi   |
    better                  | xi(s)               | (N,) V_peer(s) - V_self(s)
    weights                 | exp(alpha xi)       | (N,) normalised to sum 1
    obs                     | s ~ pi~             | (N, obs) the peer's states

    pi_hypo(.|s) = pi~(.|s) where xi(s) > 0, else pi(.|s)                                             Eq. (2)
    J   = E_{s ~ pi~}[ D(pi(.|s), pi~(.|s)) 1(xi(s) > 0) ]              `--weighting hard`            Eq. (9)
    J^w = E_{s ~ pi~}[ D(pi(.|s), pi~(.|s)) exp(alpha xi(s)) ]          `--weighting exp`             Eq. (11), (12)

Where this differs from, or completes, the paper
------------------------------------------------
* D is the mean over action dimensions of the squared difference between mean actions, not samples.
* The weights have no gradient, are clipped to [.01, 100] and divided by their sum over the minibatch. (The released
  code does so too, but then multiplies weights of shape (N, 1) with distances of shape (N,), which makes them
  cancel; and its PPO has the sign of xi reversed. The sign here is the paper's.) So where the two critics' levels
  differ by more than log(100) / alpha in most states, or by much less than 1 / alpha, nearly all states count alike. The
  log's column `effective` says how many count: 1 is all alike.
* V for DDPG is Q(s, mu(s)), each learner's own critic at its own action. For PPO both values are brought to the
  learner's own scale of rewards before they are compared.
* One distillation step after every gradient step of reinforcement learning, with an Adam of its own, on the actor
  alone; states from the peer's most recent 1000 steps, normalised by each learner's own statistics.
* Both learners act at the same time, one thread each; then the first learns, then the second. (In Algorithm 1 the
  second acts after the first has learned; only which of its states are the latest differs by this.)
* DDPG is that of baselines.py, with normalised layers and noise on the actors' weights. PPO is that of baselines.py, but
  for the critic of 64-64-64. (The paper takes all settings from OpenAI's baselines; there PPO's learning rate falls to 0,
  here it is constant.)
* Figure 3 compares learners of the same age: two that teach each other after so many steps of each with two apart.
* What is counted, plotted and compared is the total of both learners' environment steps.
* `--eps-tr` trains under domain randomisation, which the paper did not try.

Commands (two cores of a laptop; see the README for measured numbers)
----------------------------------------------------------------------
    python dpd.py --env HalfCheetah-v4 --total-steps 6e4                       # toy: a minute, returns around 0
    python dpd.py --env HalfCheetah-v4 --total-steps 3e5                       # five minutes, returns of 3200 to 4600
    python dpd.py --env HalfCheetah-v4 --total-steps 5e6 --seeds 0 1 2 3 4     # the paper's steps, two hours each

To use it elsewhere, copy dpd.py, baselines.py and randomised_envs.py.
"""

import copy
import math
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from baselines import (
    COLOURS, COMPARED, CYCLE, CYCLES, STYLES, Adam, ParameterNoise, Progress, ReplayBuffer, Rollout, Run, RunningNorm,
    Stream, as_command, check_args, check_buffer_args, compiled, discounted_sums, evaluate, fail, find_runs, gae,
    given, make_envs, millions, new_figure, numpy_policy, one_vector, parse_args, reach_of, read_csv, report, rollout,
    run_seeds, save_figure, set_up_torch, steps_of, training_curve, with_seeds, workers,
)
from randomised_envs import sample_domain

ALPHA = {"ddpg": 0.75, "ppo": 0.5}  # of the released code, by base
DISTILLATION = {"ddpg": (1e-4, 64), "ppo": (1e-5, 256)}  # learning rate and batch size (Sec. 4.2)
RECENT = 1000  # of the peer's steps, from which the states are drawn (Sec. 4.2)


@dataclass
class Args:
    # environment
    env: str = "HalfCheetah-v4"  # a Gymnasium MuJoCo environment
    xml_file: str = ""  # an MJCF file of your own in place of the environment's (v5 environments)
    eps_tr: float = 0.0  # strength of the randomisation in training, in [0, 1]
    init: Literal["root", "joints"] = "root"  # what randomisation moves as initial position

    # learners
    base: Literal["ddpg", "ppo"] = "ddpg"  # what each learner does apart from distillation
    method: Literal["dpd", "vanilla"] = "dpd"  # two learners, or one with the same total of steps
    total_steps: int = 1_000_000  # environment steps, summed over learners

    # distillation
    alpha: float | None = None  # confidence in the values (Eq. 11); if not given, .75 for DDPG and .5 for PPO
    weighting: Literal["exp", "hard", "none"] = "exp"  # of states: Eq. (11), Eq. (9), or all alike

    # DDPG
    actor_learning_rate: float = 1e-4  # Adam's
    critic_learning_rate: float = 1e-3  # Adam's
    critic_decay: float = 1e-2  # L2 regularisation of the critic's hidden weights
    tau: float = 0.01  # part of the way to the networks that targets go at each update
    batch_size: int = 64  # transitions for an update
    buffer_size: int = 1_000_000  # transitions that each learner remembers
    updates: int = 50  # for every 100 steps of a learner
    exploration: Literal["parameter", "action"] = "parameter"  # noise on the actor's weights, or on its actions
    noise: float = 0.2  # by how much either changes the actions, root mean square, in parts of their reach (half the range)
    warm_up: int = 10_000  # steps of each learner with random actions at the beginning

    # PPO
    steps_per_iteration: int = 2048  # of each learner between updates
    learning_rate: float = 3e-4  # Adam's
    epochs: int = 10  # passes over an iteration's data
    minibatches: int = 32  # for each epoch
    clip: float = 0.2  # of the probability ratio
    gae_lambda: float = 0.95  # of the advantage estimate
    max_grad_norm: float = 0.5  # gradients are scaled down to this norm

    # both
    gamma: float = 0.99  # discount factor

    # evaluation
    eps_te: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # strengths of the test domains
    eval_domains: int = 10  # held-out domains for each strength, one episode in each
    evaluations: int = 4  # evenly spaced over training, the last one at its end

    # run
    seed: int = 0  # of everything random
    seeds: tuple[int, ...] = ()  # several seeds, each in a process of its own
    jobs: int = 2  # how many of these at a time
    threads: int = 0  # for the environments; 0: one for each core
    device: str = "cpu"  # of the networks: cpu or cuda
    compile: bool = True  # compile the gradient computations where a C++ compiler is found
    checkpoint_every: int = 20  # iterations between checkpoints
    runs: str = "runs"  # folder of all runs
    overwrite: bool = False  # start anew instead of resuming

    # instead of training
    figure: Literal["", "2", "3"] = ""  # draw this figure of the paper from the runs that exist
    table: Literal["", "1"] = ""  # print this table of the paper from the runs that exist


# ---------------------------------------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------------------------------------


def relu_network(inputs: int, outputs: int) -> nn.Sequential:
    """Three hidden layers of 64 ReLU, each normalised, and last weights so small that the first outputs are near zero."""
    net = nn.Sequential(
        nn.Linear(inputs, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU(),
        nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, outputs),
    )
    nn.init.uniform_(net[-1].weight, -3e-3, 3e-3)
    nn.init.uniform_(net[-1].bias, -3e-3, 3e-3)
    return net


class DeterministicActor(nn.Module):
    """mu(s), from raw observations: the normaliser is part of the policy."""

    def __init__(self, obs_size: int, reach: np.ndarray):
        super().__init__()
        self.norm = RunningNorm((obs_size,), clip=5.0)
        self.net = relu_network(obs_size, len(reach)).append(nn.Tanh())
        self.register_buffer("reach", torch.as_tensor(reach))  # actions lie in [-reach, reach]

    def forward(self, obs):  # (N, obs) -> (N, act)
        return self.net(self.norm(obs)) * self.reach


class ActionCritic(nn.Module):
    """Q(s, a), with the statistics of the actor's normaliser."""

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


class GaussianActor(nn.Module):
    """pi_theta(a|s) = Normal(mean(s), std), from raw observations: the normaliser is part of the policy."""

    def __init__(self, obs_size: int, action_size: int):
        super().__init__()
        self.norm = RunningNorm((obs_size,))
        self.net = nn.Sequential(
            linear(obs_size, 64, math.sqrt(2)), nn.Tanh(),
            linear(64, 64, math.sqrt(2)), nn.Tanh(),
            linear(64, action_size, 0.01),
        )
        self.log_std = nn.Parameter(torch.zeros(action_size))

    def forward(self, obs):  # (N, obs) -> mean (N, act), log_std (act,)
        return self.net(self.norm(obs)), self.log_std


class ValueCritic(nn.Module):
    """V(s), in units of scaled reward; a layer more than that of baselines.py (Sec. 4.2)."""

    def __init__(self, obs_size: int):
        super().__init__()
        self.norm = RunningNorm((obs_size,))
        self.net = nn.Sequential(
            linear(obs_size, 64, math.sqrt(2)), nn.Tanh(),
            linear(64, 64, math.sqrt(2)), nn.Tanh(),
            linear(64, 64, math.sqrt(2)), nn.Tanh(),
            linear(64, 1, 1.0),
        )

    def forward(self, obs):  # (N, obs) -> (N,)
        return self.net(self.norm(obs)).squeeze(-1)


# ---------------------------------------------------------------------------------------------------------
# Distillation
# ---------------------------------------------------------------------------------------------------------


def mean_action(actor, obs):
    """What the policy does without noise. (N, obs) -> (N, act)"""
    return actor(obs) if isinstance(actor, DeterministicActor) else actor(obs)[0]


def state_value(actor, critic, obs):
    """V(s); for DDPG Q(s, mu(s)). (N, obs) -> (N,)"""
    return critic(obs, actor(obs)) if isinstance(critic, ActionCritic) else critic(obs)


def distillation_weights(better, alpha, weighting):
    """How much each state counts, from xi = V_peer - V_self there. (N,) -> (N,), sum 1 (or 0 if nothing counts)."""
    if weighting == "exp":                                                                        # Eq. (11), (12)
        weights = (alpha * better).exp().clamp(0.01, 100.0)
    else:                                                                                         # Eq. (9)
        weights = (better > 0).float() if weighting == "hard" else torch.ones_like(better)
    return (weights / weights.sum().clamp(min=1e-8)).detach()


def effective_share(weights):
    """Which part of the states has as much influence, all alike, as these weights (N,) have (Kish's sample size over N)."""
    return weights.sum() ** 2 / (len(weights) * (weights**2).sum()).clamp(min=1e-8)


def distillation_loss(actions, peer_actions, weights):                                            # Eq. (11), (12)
    """Weighted mean of the squared distance to the peer's actions. (N, act), (N, act), (N,) -> scalar"""
    distances = ((actions - peer_actions.detach()) ** 2).mean(-1)
    if distances.shape != weights.shape:  # (N,) against (N, 1) would pass as (N, N), and the weights cancel
        raise ValueError(f"weights {tuple(weights.shape)} for distances {tuple(distances.shape)}")
    return (weights * distances).sum()


def distillation_step(actor, critic, peer_actor, peer_critic, adam, parameters, obs, unit, alpha, weighting):
    """The actor's network after one step towards the peer, as a vector, and what the log tells. Compiled as one graph.

    unit: the peer's scale of values in terms of one's own.
    """
    with torch.no_grad():
        better = unit * state_value(peer_actor, peer_critic, obs) - state_value(actor, critic, obs)
        weights = distillation_weights(better, alpha, weighting)
        peer_actions = mean_action(peer_actor, obs)
    loss = distillation_loss(mean_action(actor, obs), peer_actions, weights)
    gradient = gradient_of(loss, actor.net)
    return adam(parameters, gradient), torch.stack([loss.detach(), (better > 0).float().mean(), effective_share(weights)])


def distil(learner, peer, obs, compiled_step, args):                                              # Alg. 1, lines 5, 8
    """One step of regression to the peer on (N, obs) of its states; nothing but the actor's network changes."""
    networks = learner.actor, learner.critic, peer.actor, peer.critic
    unit = peer.value_unit() / learner.value_unit()
    new, told = compiled_step(*networks, learner.distillation_adam, learner.policy, obs, unit, args.alpha, args.weighting)
    learner.policy.copy_(new)
    return told


# ---------------------------------------------------------------------------------------------------------
# DDPG: losses and one update, as in baselines.py
# ---------------------------------------------------------------------------------------------------------


def ddpg_targets(target_actor, target_critic, batch, gamma):
    """y = r + gamma Q'(s', mu'(s')), and just r where the robot died. (N,)"""
    futures = target_critic(batch.next_obs, target_actor(batch.next_obs))
    assert futures.shape == batch.rewards.shape == batch.terminated.shape
    return (batch.rewards + gamma * (1 - batch.terminated) * futures).detach()


def ddpg_critic_loss(critic, batch, targets, decay):
    """Mean square error, and half the squares of the hidden layers' weights."""
    values = critic(batch.obs, batch.actions)
    assert values.shape == targets.shape
    weights = [layer.weight for layer in critic.net[:-1] if isinstance(layer, nn.Linear)]
    return ((values - targets) ** 2).mean() + decay * sum((weight**2).sum() for weight in weights) / 2


def ddpg_actor_loss(actor, critic, batch):
    """Minus what the critic says of the actor's own actions."""
    return -critic(batch.obs, actor(batch.obs)).mean()


class DDPGLearner:
    """Networks, their slowly following targets, an Adam for each of the two, and one normaliser for all four."""

    def __init__(self, obs_size: int, reach: np.ndarray, args):
        self.actor, self.critic = DeterministicActor(obs_size, reach), ActionCritic(obs_size, len(reach))
        self.critic.norm = self.actor.norm
        self.target_actor, self.target_critic = copy.deepcopy((self.actor, self.critic))
        self.target_actor.norm = self.target_critic.norm = self.actor.norm
        networks = self.actor, self.critic, self.target_actor, self.target_critic
        self.vectors = [one_vector(network.to(args.device)) for network in networks]
        self.actor_adam = Adam(self.vectors[0], args.actor_learning_rate)
        self.critic_adam = Adam(self.vectors[1], args.critic_learning_rate)
        self.networks = (*networks, self.actor_adam, self.critic_adam)
        self.policy = self.vectors[0].data  # what distillation changes
        self.distillation_adam = Adam(self.policy, DISTILLATION["ddpg"][0])
        self.one = torch.ones((), device=args.device)

    def value_unit(self):
        """Values are in units of reward."""
        return self.one

    def parts(self) -> dict:
        """What a checkpoint holds, by name."""
        names = "actor", "critic", "target_actor", "target_critic", "actor_adam", "critic_adam"
        return dict(zip(names, self.networks)) | {"distillation_adam": self.distillation_adam}


def gradient_of(loss, network):
    """Gradient of a loss by a network's parameters, as one vector."""
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, tuple(network.parameters()))])


def ddpg_step(actor, critic, target_actor, target_critic, actor_adam, critic_adam, vectors, batch, gamma, tau, decay):
    """All four vectors of parameters after one update, and what the log tells. Compiled as one graph."""
    targets = ddpg_targets(target_actor, target_critic, batch, gamma)
    critic_loss, actor_loss = ddpg_critic_loss(critic, batch, targets, decay), ddpg_actor_loss(actor, critic, batch)
    new_actor = actor_adam(vectors[0], gradient_of(actor_loss, actor))
    new_critic = critic_adam(vectors[1], gradient_of(critic_loss, critic))
    new_targets = [old.detach().lerp(new, tau) for old, new in zip(vectors[2:], (new_actor, new_critic))]
    return [new_actor, new_critic, *new_targets], torch.stack([critic_loss, -actor_loss]).detach()


def ddpg_update(learner, batch, compiled_step, args):
    """One step of both networks, and of their targets after them."""
    new, told = compiled_step(*learner.networks, learner.vectors, batch, args.gamma, args.tau, args.critic_decay)
    for vector, value in zip(learner.vectors, new):
        vector.data.copy_(value)
    return told


def exploration(shape, scale: float, reach: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise for actions, `scale` in parts of their reach."""
    return scale * reach * rng.standard_normal((*shape, len(reach)), dtype=np.float32)


# ---------------------------------------------------------------------------------------------------------
# PPO: losses and one update, as in baselines.py
# ---------------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """N steps of one agent in its own domain(s)."""

    obs: torch.Tensor  # (N, obs)
    actions: torch.Tensor  # (N, act)
    log_probs: torch.Tensor  # (N,) log pi_theta_old(a|s)
    advantages: torch.Tensor  # (N,)
    targets: torch.Tensor  # (N,) V^targ


def gaussian_log_prob(mean, log_std, actions):
    """log Normal(actions; mean, exp(log_std)), summed over action dimensions: (N, act) -> (N,)."""
    return (-0.5 * ((actions - mean) / log_std.exp()) ** 2 - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


def ppo_loss(policy, batch, clip):
    """Clipped surrogate, negated: to be minimised. Scalar."""
    ratio = (gaussian_log_prob(*policy, batch.actions) - batch.log_probs).exp()                         # (N,)
    assert ratio.shape == batch.advantages.shape
    return -torch.min(ratio * batch.advantages, ratio.clamp(1 - clip, 1 + clip) * batch.advantages).mean()


def value_loss(critic, batch):
    """Mean square error of the critic. Scalar."""
    values = critic(batch.obs)
    assert values.shape == batch.targets.shape
    return ((values - batch.targets) ** 2).mean()


def clip_norm(gradient, max_norm):
    """Scale a gradient so that its norm is at most max_norm."""
    return gradient * (max_norm / (gradient.norm() + 1e-6)).clamp(max=1.0)


def ppo_gradients(actor, critic, batch, clip, max_grad_norm):
    """Gradient of both losses on a minibatch, as one vector, and what the log tells of them."""
    spread = batch.advantages.std() + 1e-8
    batch = batch._replace(advantages=(batch.advantages - batch.advantages.mean()) / spread)
    surrogate, critic_loss = ppo_loss(actor(batch.obs), batch, clip), value_loss(critic, batch)
    actor_gradient, critic_gradient = gradient_of(surrogate, actor), gradient_of(critic_loss, critic)
    told = torch.stack([surrogate, critic_loss, actor.log_std.mean()]).detach()
    return torch.cat([clip_norm(actor_gradient, max_grad_norm), clip_norm(critic_gradient, max_grad_norm)]), told


def ppo_adam_step(actor, critic, adam, parameters, batch, clip, max_grad_norm):
    """The vector of both networks' parameters after one step of Adam, and what the log tells. Compiled as one graph."""
    gradient, told = ppo_gradients(actor, critic, batch, clip, max_grad_norm)
    return adam(parameters, gradient), told


@torch.no_grad()
def prepare(actor, reward_scale, rollouts: list[Rollout], gamma: float) -> Batch:
    """Join rollouts to a batch, with the log-probabilities of their actions; `estimate` adds what is missing.

    The scale of rewards takes these rollouts into account from now on.
    """
    for data in rollouts:
        reward_scale.absorb(discounted_sums(data.rewards, data.ends, gamma))
    device = actor.log_std.device
    obs, actions = (
        torch.as_tensor(np.concatenate(arrays), device=device)
        for arrays in ([data.obs for data in rollouts], [data.actions for data in rollouts])
    )
    return Batch(obs, actions, gaussian_log_prob(*actor(obs), actions), None, None)


@torch.no_grad()
def estimate(batch: Batch, critic, reward_scale, rollouts: list[Rollout], gamma: float, gae_lambda: float) -> Batch:
    """The batch of these rollouts with advantages and value targets by the present critic."""
    device, scale = batch.obs.device, reward_scale.std().item()
    advantages, targets = [], []
    for data in rollouts:
        last = data.ends.nonzero()[0]  # elsewhere the next observation is the following row, and is not valued twice
        values, last_values = (
            critic(torch.as_tensor(x, device=device)).cpu().numpy().astype(np.float64)
            for x in (data.obs, data.next_obs[last])
        )
        next_values = np.roll(values, -1)
        next_values[last] = last_values
        advantages.append(gae(data.rewards / scale, values, next_values, data.terminated, data.ends, gamma, gae_lambda))
        targets.append(advantages[-1] + values)
    advantages, targets = (
        torch.as_tensor(np.concatenate(arrays), dtype=torch.float32, device=device) for arrays in (advantages, targets)
    )
    return batch._replace(advantages=advantages, targets=targets)


def shuffle(batch: Batch, minibatches: int, rng: np.random.Generator) -> list[Batch]:
    """The batch in random order, cut into equal minibatches."""
    order = torch.as_tensor(rng.permutation(len(batch.obs)), device=batch.obs.device)
    size = len(batch.obs) // minibatches
    return [Batch(*columns) for columns in zip(*(column[order].split(size) for column in batch))]


class PPOLearner:
    """Actor, critic, their Adam, and the running scale of this learner's rewards."""

    def __init__(self, obs_size: int, action_size: int, args):
        self.actor, self.critic = GaussianActor(obs_size, action_size), ValueCritic(obs_size)
        self.reward_scale = RunningNorm(())
        self.parameters = one_vector(self.actor.to(args.device), self.critic.to(args.device))
        self.adam = Adam(self.parameters, args.learning_rate, eps=1e-5)
        size = sum(parameter.numel() for parameter in self.actor.net.parameters())
        self.policy = self.parameters.data[action_size : action_size + size]  # what distillation changes: not log_std
        self.distillation_adam = Adam(self.policy, DISTILLATION["ppo"][0])

    def value_unit(self):
        """Values are in units of scaled reward."""
        return self.reward_scale.std().float().to(self.parameters.device)

    def parts(self) -> dict:
        """What a checkpoint holds, by name."""
        names = "actor", "critic", "reward_scale", "adam", "distillation_adam"
        return {name: getattr(self, name) for name in names}


# ---------------------------------------------------------------------------------------------------------
# The loops
# ---------------------------------------------------------------------------------------------------------


def begin(args):
    """What both loops begin with: the run, environments and learners."""
    run = Run(args, "dpd", f"{args.method}-{args.base}")
    title = f"{args.method} on {args.base}, {args.env}, eps_tr = {args.eps_tr:g}, seed {args.seed}"
    if run.finished:
        print(f"{run.path} is finished: nothing to do (--overwrite starts anew)")
        return run, title, None, None
    number = 2 if args.method == "dpd" else 1
    envs = make_envs(args, args.threads + number)
    set_up_torch(args)
    obs_size, action_size = envs[0].observation_space.shape[0], envs[0].action_space.shape[0]
    learners = [
        DDPGLearner(obs_size, reach_of(envs[0]), args) if args.base == "ddpg" else PPOLearner(obs_size, action_size, args)
        for _ in range(number)  # with different initialisations
    ]
    return run, title, envs, learners


def train_ddpg(args):
    run, title, envs, learners = begin(args)
    if run.finished:
        return report(run, title)
    compiled_update, compiled_distillation = compiled(ddpg_step, args), compiled(distillation_step, args)
    obs_size, reach = envs[0].observation_space.shape[0], reach_of(envs[0])
    interval = CYCLE * CYCLES  # steps of each learner between rows of the log
    iterations = args.total_steps // (interval * len(learners))
    evaluate_at = {round(iterations * i / args.evaluations) for i in range(1, args.evaluations + 1)}
    size, resuming = min(args.buffer_size, args.total_steps // len(learners)), run.state is not None
    run.make_folder(room=len(learners) * ReplayBuffer.bytes(obs_size, len(reach), size))
    buffers = [
        ReplayBuffer(run.path / f"buffer{i}.dat", obs_size, len(reach), size, resuming) for i in range(len(learners))
    ]
    streams = [Stream(env, args.seed, i, buffer) for i, (env, buffer) in enumerate(zip(envs, buffers))]
    weight_noises = [ParameterNoise(learner.actor, args.noise, (args.seed, i)) for i, learner in enumerate(learners)]
    parts = {}
    for i, learner in enumerate(learners):
        parts |= {f"{name}{i}": part for name, part in learner.parts().items()}
        parts |= {f"buffer{i}": buffers[i], f"stream{i}": streams[i], f"weight_noise{i}": weight_noises[i]}
    first = run.resume(parts, interval * len(learners))
    progress = Progress(iterations * interval * len(learners), first * interval * len(learners))
    pool = workers(args.threads)

    for iteration in range(first, iterations):
        told = [torch.zeros(2, device=args.device) for _ in learners]
        taught = [torch.zeros(3, device=args.device) for _ in learners]
        returns, updates = [[] for _ in learners], 0
        for cycle in range(CYCLES * iteration, CYCLES * (iteration + 1)):
            rngs = [np.random.default_rng([args.seed, i, cycle]) for i in range(len(learners))]
            if cycle * CYCLE < args.warm_up:
                policies = [lambda obs: 0] * len(learners)
                noises = [rng.uniform(-reach, reach, (CYCLE, len(reach))).astype(np.float32) for rng in rngs]
            elif args.exploration == "action":
                policies = [numpy_policy(learner.actor) for learner in learners]
                noises = [exploration((CYCLE,), args.noise, reach, rng) for rng in rngs]
            else:
                policies = [
                    noise.policy(stream.episode, buffer.latest(args.batch_size)[:, :obs_size])
                    for noise, stream, buffer in zip(weight_noises, streams, buffers)
                ]
                noises = [np.zeros((CYCLE, len(reach)), np.float32)] * len(learners)
            collected = list(pool.map(Stream.collect, streams, policies, noises))                 # Alg. 1, lines 3, 6
            for i, (rows, finished) in enumerate(collected):
                returns[i] += finished
                learners[i].actor.norm.absorb(rows[:, :obs_size])
            if cycle * CYCLE < args.warm_up:
                continue  # as in baselines.py, nothing is learned from random actions alone
            updates += args.updates
            for i, (learner, buffer, rng) in enumerate(zip(learners, buffers, rngs)):
                drawn = torch.as_tensor(buffer.draw((args.updates, args.batch_size), rng), device=args.device)
                if args.method == "dpd":
                    peer, theirs = learners[1 - i], buffers[1 - i]
                    states = theirs.draw((args.updates, DISTILLATION["ddpg"][1]), rng, among=RECENT)[..., :obs_size]
                    states = torch.as_tensor(states, device=args.device)
                for u, minibatch in enumerate(drawn.unbind()):
                    told[i] += ddpg_update(learner, buffer.split(minibatch), compiled_update, args)  # lines 4, 7
                    if args.method == "dpd":
                        taught[i] += distil(learner, peer, states[u], compiled_distillation, args)   # lines 5, 8
                weights = torch.cat([vector.detach() for vector in learner.vectors])
                run.check_finite(CYCLE * (cycle + 1) * len(learners), i, told[i].tolist(), weights)
        step = (iteration + 1) * interval * len(learners)
        rows = []
        for i, (learner, stream) in enumerate(zip(learners, streams)):
            losses, lessons = (told[i] / max(updates, 1)).tolist(), (taught[i] / max(updates, 1)).tolist()
            ended = returns[i] or [stream.last_return]
            rows.append({
                "step": step, "agent": i,
                "return": float(np.mean(ended)), "best_return": max(ended),  # the last one's if no episode ended
                "critic_loss": losses[0], "value": losses[1],  # means over minibatches; value: Q(s, mu(s))
                "distillation": lessons[0],  # Eq. (11), (12)
                "peer_better": lessons[1],  # share of the peer's states in which its value is higher
                "effective": lessons[2],  # share of them that counts, by their weights
                "seconds": round(run.elapsed(), 3),  # wall clock
            })
        finish_iteration(args, run, envs[len(learners) :], learners, parts, rows, iteration, iterations, evaluate_at, progress)
    report(run, title)


def train_ppo(args):
    run, title, envs, learners = begin(args)
    if run.finished:
        return report(run, title)
    compiled_update, compiled_distillation = compiled(ppo_adam_step, args), compiled(distillation_step, args)
    iterations = args.total_steps // (args.steps_per_iteration * len(learners))
    evaluate_at = {round(iterations * i / args.evaluations) for i in range(1, args.evaluations + 1)}
    parts = {f"{name}{i}": part for i, learner in enumerate(learners) for name, part in learner.parts().items()}
    first = run.resume(parts, args.steps_per_iteration * len(learners))
    progress = Progress(*(n * args.steps_per_iteration * len(learners) for n in (iterations, first)))
    pool = workers(args.threads)

    for iteration in range(first, iterations):
        rngs = [np.random.default_rng([args.seed, i, iteration]) for i in range(len(learners))]
        domains = [sample_domain(args.eps_tr, rng, envs[0].position_draws) for rng in rngs]
        policies = [numpy_policy(learner.actor) for learner in learners]
        stds = [learner.actor.log_std.exp().detach().cpu().numpy() for learner in learners]
        lengths = [args.steps_per_iteration] * len(learners)
        rollouts = list(pool.map(rollout, envs, policies, stds, domains, lengths, rngs))          # Alg. 1, lines 3, 6
        told, taught = ([torch.zeros(3, device=args.device) for _ in learners] for _ in range(2))
        batches = [prepare(each.actor, each.reward_scale, [data], args.gamma) for each, data in zip(learners, rollouts)]
        updates = args.epochs * args.minibatches if iteration > 0 else 0  # the first iteration only gathers statistics
        for i, (learner, rng) in enumerate(zip(learners, rngs)):
            batch = estimate(batches[i], learner.critic, learner.reward_scale, [rollouts[i]], args.gamma, args.gae_lambda)
            if args.method == "dpd":
                recent = rollouts[1 - i].obs[-RECENT:]
                states = torch.as_tensor(recent[rng.integers(len(recent), size=(updates, DISTILLATION["ppo"][1]))])
                states = states.to(args.device)
            for u in range(updates):
                if u % args.minibatches == 0:
                    minibatches = shuffle(batch, args.minibatches, rng)
                networks = learner.actor, learner.critic, learner.adam, learner.parameters
                new, tells = compiled_update(*networks, minibatches[u % args.minibatches], args.clip, args.max_grad_norm)
                learner.parameters.data.copy_(new)                                                # lines 4, 7
                told[i] += tells
                if args.method == "dpd":
                    taught[i] += distil(learner, learners[1 - i], states[u], compiled_distillation, args)  # lines 5, 8
        step = (iteration + 1) * args.steps_per_iteration * len(learners)
        rows = []
        for i, (learner, data) in enumerate(zip(learners, rollouts)):
            learner.actor.norm.absorb(data.obs)  # only now: this data was collected, and used, with the old statistics
            learner.critic.norm.absorb(data.obs)
            losses, lessons = (told[i] / max(updates, 1)).tolist(), (taught[i] / max(updates, 1)).tolist()
            run.check_finite(step, i, [*losses, *lessons, *data.returns], learner.parameters)
            rows.append({
                "step": step, "agent": i,
                # Of this iteration's finished episodes; if there is none, of the one that was cut.
                "return": data.returns.mean(), "best_return": data.returns.max(),
                "surrogate": losses[0], "value_loss": losses[1], "log_std": losses[2],  # means over minibatches
                "distillation": lessons[0],  # Eq. (11), (12)
                "peer_better": lessons[1],  # share of the peer's states in which its value is higher
                "effective": lessons[2],  # share of them that counts, by their weights
                "seconds": round(run.elapsed(), 3),  # wall clock
            })
        finish_iteration(args, run, envs[len(learners) :], learners, parts, rows, iteration, iterations, evaluate_at, progress)
    report(run, title)


def finish_iteration(args, run, envs, learners, parts, rows, iteration, iterations, evaluate_at, progress):
    """Log, evaluate, save and show, where it is time."""
    step = rows[0]["step"]
    run.write("log.csv", rows)
    if iteration + 1 in evaluate_at:
        policies = [numpy_policy(learner.actor) for learner in learners]
        run.write("eval.csv", evaluate(envs, policies, args.eps_te, args.eval_domains, step))
        run.snapshot(step, [network for learner in learners for network in (learner.actor, learner.critic)])
    if (iteration + 1) % args.checkpoint_every == 0 or iteration + 1 == iterations:
        run.save(parts, iteration + 1, finished=iteration + 1 == iterations)
    progress.show(step, float(np.mean([row["return"] for row in rows])))


# ---------------------------------------------------------------------------------------------------------
# Evaluation and figures
# ---------------------------------------------------------------------------------------------------------


def look_up(args, by: tuple[str, ...]) -> dict[tuple, list[Path]]:
    """Finished runs with these settings, by method (and environment), and which command makes what is missing."""
    found = find_runs(args, "dpd", by)
    usual = {"alpha"} if args.alpha == ALPHA[args.base] else set()
    for method in ("dpd", "vanilla"):
        if method not in {key[by.index("method")] for key in found}:
            settings = {"env": args.env, "base": args.base, "method": method, "total_steps": args.total_steps}
            settings |= given(args, COMPARED - {"evaluations"} | usual) | {"method": method, "seeds": (0, 1, 2)}
            print(f"no finished runs yet of what this command makes:\n    {as_command('dpd.py', settings)}")
    if not found:
        fail(f"nothing to draw below {args.runs}/")
    return found


def by_learner(path: Path, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps (T,), and a column of log.csv of each learner (learners, T)."""
    log = read_csv(path / "log.csv")
    return np.unique(log["step"]), np.stack([log[column][log["agent"] == agent] for agent in np.unique(log["agent"])])


def figure_2(args):
    """Learning curves, mean +- standard deviation over seeds, against the steps of both learners together."""
    found = look_up(args, ("env", "method"))
    environments = sorted({env for env, _ in found})
    figure, axes = new_figure(columns=len(environments))
    for axis, env in zip(axes, environments):
        axis.set_title(env)
        for index, (method, label, over_learners) in enumerate((
            ("vanilla", args.base, np.mean), ("dpd", "dpd, mean of both", np.mean), ("dpd", "dpd, better of both", np.max),
        )):
            paths = found.get((env, method), [])
            if paths:
                steps = by_learner(paths[0], "return")[0]
                agents, rows = (range(2), 10) if method == "dpd" else (range(1), 20)  # as many environment steps
                of_all = [[training_curve(path, steps, agent, rows=rows) for agent in agents] for path in paths]
                curves = over_learners(of_all, axis=1)
                mean, std = np.mean(curves, axis=0), np.std(curves, axis=0)
                axis.plot(steps, mean, color=COLOURS[index], linestyle=STYLES[index], label=with_seeds(label, len(paths)))
                axis.fill_between(steps, mean - std, mean + std, color=COLOURS[index], alpha=0.15, linewidth=0)
        millions(axis)
        axis.set(xlabel="environment steps, all learners", ylabel="training return")
        axis.legend(loc="best")
    smoothed = "each point is a mean of 20 rows of the log, or of 10 of dpd's, which are twice as long"
    explained = f"{args.base}; mean over seeds, +- standard deviation; {smoothed}"
    figure.suptitle(textwrap.fill(explained, int(12 * figure.get_figwidth())), fontsize=10)
    return figure


def table_1(args):
    """Mean and maximum episodic return, +- standard deviation over seeds, and what mean actions achieve at the end."""
    found = look_up(args, ("env", "method"))
    print(f"{args.base}, {args.total_steps:,} environment steps; +- is the standard deviation over seeds")
    print(f"{'':18}{'method':10}{'seeds':>6}{'mean':>18}{'max':>18}{'mean actions':>18}{'better learner':>18}")
    for (env, method), paths in found.items():
        statistics = []
        for path in paths:
            steps, returns = by_learner(path, "return")
            evaluation = read_csv(path / "eval.csv")
            last = (evaluation["step"] == evaluation["step"].max()) & (evaluation["eps_te"] == min(args.eps_te))
            final = [evaluation["return"][last & (evaluation["agent"] == agent)].mean() for agent in range(len(returns))]
            late = returns[:, steps > 0.9 * steps[-1]]
            statistics.append((late.mean(), by_learner(path, "best_return")[1].max(), np.mean(final), np.max(final)))
        cells = [f"{np.mean(each):.0f} +- {np.std(each):.0f}" for each in zip(*statistics)]
        print(f"{env:18}{method:10}{len(paths):>6}" + "".join(f"{cell:>18}" for cell in cells))
    print("mean: training return, mean of the log's rows in the last tenth of training; max: the best episode of training;")
    print("mean actions: return in held-out domains at the smallest eps_te, mean over learners; better learner: of the better")


def networks_of(path: Path, step: int) -> list[tuple[nn.Module, nn.Module]]:
    """Actor and critic of each DDPG learner of a run at this step."""
    states = torch.load(path / f"policies-{step}.pt", weights_only=True, map_location="cpu")
    networks = []
    for actor_state, critic_state in zip(states[::2], states[1::2]):
        obs_size, reach = len(actor_state["norm.mean"]), actor_state["reach"].numpy()
        networks.append((DeterministicActor(obs_size, reach), ActionCritic(obs_size, len(reach))))
        for network, state in zip(networks[-1], (actor_state, critic_state)):
            network.load_state_dict(state)
    return networks


@torch.no_grad()
def figure_3(args):
    """Values of ten states and distances between actions in a hundred, early, in the middle and late: two learners that
    teach each other beside two that do not know of each other (two seeds of vanilla DDPG), all of the same age."""
    if args.base != "ddpg":
        fail("--figure 3 is of DDPG")
    found = look_up(args, ("method",))
    if len(found) < 2 or len(found["vanilla",]) < 2:
        fail("--figure 3 needs a run of dpd and two seeds of vanilla")
    together, alone, other = found["dpd",][0], *found["vanilla",][:2]
    last = networks_of(alone, max(steps_of(alone)))[0][0]
    env = make_envs(args, 1)[0]
    rng = np.random.default_rng(args.seed)
    visited = rollout(env, numpy_policy(last), np.zeros_like(env.action_space.high), sample_domain(0, rng), 2000, rng).obs
    states = torch.as_tensor(rng.permutation(visited)[:100])
    steps = steps_of(together)
    kept = set(steps_of(alone)) & set(steps_of(other))
    ages = {step: min(kept, key=lambda age: abs(age - step / 2)) for step in steps}  # of each of two, and of one alone
    exact = [step for step in steps if ages[step] == step / 2]
    steps = exact if len(exact) > 2 else steps
    figure, axes = new_figure(columns=3, rows=2)
    for column, (when, step) in enumerate(zip(("early", "middle", "late"), (steps[0], steps[len(steps) // 2], steps[-1]))):
        pairs = {
            "DPD": networks_of(together, step),
            "DDPG": [networks_of(path, ages[step])[0] for path in (alone, other)],
        }
        top, bottom = axes[column], axes[column + 3]
        for index, (name, networks) in enumerate(pairs.items()):
            for i, (actor, critic) in enumerate(networks):
                style = {"color": COLOURS[index], "linestyle": STYLES[i], "marker": "o", "markersize": 3}
                top.plot(range(1, 11), state_value(actor, critic, states[:10]), label=f"{name}-{i + 1}", **style)
            distances = (networks[0][0](states) - networks[1][0](states)).norm(dim=1)
            bottom.plot(range(1, 101), distances, color=COLOURS[index], linewidth=0.7, alpha=0.6)
            label = f"{name}, mean {distances.mean():.2f}"
            bottom.axhline(distances.mean(), color=COLOURS[index], linestyle=STYLES[index], label=label)
        top.set(title=f"{when}: {step // 2:,} steps of each learner", xlabel="state", ylabel="Q(s, mu(s))")
        if ages[step] != step / 2:
            top.set_title(f"{when}: DPD {step // 2:,}, DDPG {ages[step]:,} steps")
        bottom.set(xlabel="state", ylabel="distance between the two learners' actions")
        for axis in (top, bottom):
            axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=4, fontsize=8)  # below: it covers nothing
    figure.suptitle(f"{args.env}; states of a trained DDPG", fontsize=10)
    return figure


def draw_figure(args):
    """A figure of the paper from all finished runs whose settings are those of this command line."""
    figure = {"2": figure_2, "3": figure_3}[args.figure](args)
    path = Path(args.runs) / f"dpd-figure-{args.figure}.png"
    save_figure(figure, path)
    print(f"figure: {path}")


def main():
    args = parse_args(Args, __doc__.splitlines()[0])
    if args.alpha is None:
        args.alpha = ALPHA[args.base]
    if not 0 <= args.alpha < math.inf:
        fail("--alpha must neither be negative nor infinite")
    interval = CYCLE * CYCLES if args.base == "ddpg" else args.steps_per_iteration
    check_args(args, steps=interval * (2 if args.method == "dpd" else 1))
    if args.base == "ddpg":
        check_buffer_args(args, interval, learners=2 if args.method == "dpd" else 1)
    if args.table:
        table_1(args)
    elif args.figure:
        draw_figure(args)
    elif args.seeds:
        make_envs(args, 1)  # what is wrong with it is said once, not by each seed
        run_seeds(args.seeds, args.jobs)
    else:
        {"ddpg": train_ddpg, "ppo": train_ppo}[args.base](args)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        fail("stopped; the same command, without --overwrite, goes on from the last checkpoint", status=130)
