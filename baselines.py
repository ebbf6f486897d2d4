"""Single-agent baselines, PPO, DDPG and SAC, and behind them the plumbing that every script here shares.

    python baselines.py --algo ppo --env Hopper-v4                     # a million steps, minutes on a laptop
    python baselines.py --algo ppo --env Hopper-v4 --seeds 0 1 2 --jobs 2
    python baselines.py --algo ddpg --env HalfCheetah-v4 --total-steps 3e5
    python baselines.py --algo sac --env Hopper-v4 --total-steps 2e5
    python baselines.py --algo ppo --env Hopper-v4 --figure curves     # learning curves of the finished runs

Each algorithm is written to be read on its own: its arguments, networks, losses, update, loop. What is not the
algorithm (the gradient step, rollouts, the replay buffer, evaluation, the run's folder, the command line, figures)
stands behind them. A reader can take it on trust: each piece says in its first line what it does.

PPO: Schulman et al., "Proximal Policy Optimization Algorithms" (2017); equation numbers refer to it.

    code                | paper            | shape
    obs, actions        | s_t, a_t         | (N, obs), (N, act)
    log_ratio           | log r_t(theta)   | (N,)
    advantages          | A_t              | (N,)
    targets             | V_t^targ         | (N,)

    L^CLIP = E[min(r_t A_t, clip(r_t, 1 - clip, 1 + clip) A_t)]                                        Eq. (7)
    L^VF   = (V(s_t) - V_t^targ)^2                                                                     Eq. (9)
    A_t    = sum_l (gamma gae_lambda)^l delta_{t+l},  delta_t = r_t + gamma V(s_{t+1}) - V(s_t)   Eq. (11), (12)

DDPG: Lillicrap et al., "Continuous control with deep reinforcement learning" (2016); equation numbers refer to it,
hyperparameters to OpenAI's baselines: layers are normalised, and the exploration is noise on the actor's weights
(Plappert et al., "Parameter space noise for exploration", 2018). Not from there: random steps at the beginning, and
that noise is drawn for 100 steps at least, where theirs is drawn for each episode. Without normalised layers one seed
in four never learned to run, whichever noise it had: the L2 regularisation shrank the critic's hidden weights for
good. With them all that were tried did. (Noise on weights and on actions were compared without them only.)

    actor, critic       | mu(s), Q(s, a)   | (N, act), (N,)
    target_actor, ...   | mu', Q'          |
    targets             | y                | (N,)

SAC: Haarnoja et al., "Soft actor-critic algorithms and applications" (2018); equation numbers refer to it. Networks
begin with Glorot's uniform weights and biases of 0. All gradients of an update are taken where the parameters are
before it, so that they can be computed at the same time. (Elsewhere the actor's goes through the new critic.)

    L^Q     = E[1/2 (Q_i(s, a) - y)^2],  y = r + gamma (min_j Q'_j(s', a') - alpha log pi(a'|s'))      Eq. (5), (6)
    L^pi    = E[alpha log pi(a|s) - min_j Q_j(s, a)]                                                       Eq. (9)
    L^alpha = -alpha E[log pi(a|s) - dim(A)]                                                              Eq. (18)

    actor, critic       | pi(a|s), Q_1, Q_2 | (N, act) mean and log_std before the squash, (2, N)
    target_critic       | Q'_1, Q'_2        |
    targets             | y                 | (N,)
    alpha               | alpha             | (1,) the temperature, what entropy is worth
    log_probs           | log pi(a|s)       | (N,) of actions in (-1, 1), before they are scaled to the robot's

You should know
---------------
* A time limit is not a death. When an episode is truncated (by the limit, or because PPO's batch is full), its future
  is still worth what the critic says of the last observation. Only where the robot really fell is it worth nothing.
* An observation normaliser is part of the policy and saved with it. PPO's is frozen while a batch is in use, so that
  the policy that collected the data is the policy in the ratio's denominator. SAC has none.
* PPO divides rewards by the running standard deviation of the discounted return, and never shifts them: shifting
  would change which behaviour is best wherever episodes can end early. DDPG and SAC take them as they are.
* Initial weights come from torch's generator, all other random numbers from numpy generators keyed by seed, agent and
  iteration (or episode). So a run needs no hidden state to be resumed bit by bit, and the number of threads cannot
  change it.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import csv
import dataclasses
import inspect
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial, reduce
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn, get_args, get_origin, get_type_hints

import gymnasium as gym
import mujoco
import numpy as np
import torch
from torch import nn
from torch.optim.adam import adam

from randomised_envs import Domain, Parser, RandomisedEnv, make_env, sample_domain


@dataclasses.dataclass
class RunArgs:
    """What every script has; each adds its own. The comments are the help of the command line."""

    # environment
    xml_file: str = ""  # an MJCF file of your own in place of the environment's (v5 environments)
    init: Literal["root", "joints"] = "root"  # initial position: x, which no walker notices, or each joint's angle

    # evaluation
    eps_te: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # randomisation levels of the test domains
    eval_domains: int = 10  # held-out domains for each level, one episode in each

    # run
    seed: int = 0  # of everything random
    seeds: tuple[int, ...] = ()  # several seeds, each in a process of its own
    jobs: int = 2  # how many of these at a time
    threads: int = 0  # threads that work at the same time; 0: one for each core
    device: str = "cpu"  # of the networks: cpu or cuda
    compile: bool = True  # compile the gradient steps where a C++ compiler is found
    checkpoint_every: int = 10  # iterations (rows of the log) between checkpoints
    runs: str = "runs"  # folder of all runs
    overwrite: bool = False  # start anew instead of resuming


@dataclasses.dataclass
class SharedArgs(RunArgs):
    # algorithm
    algo: Literal["ppo", "ddpg", "sac"] = "ppo"  # each has options of its own: see --algo sac --help
    env: str = "Hopper-v4"  # a Gymnasium MuJoCo environment
    eps_tr: float = 0.0  # randomisation level in training, in [0, 1]; a new domain for each iteration (PPO) or episode
    total_steps: int = 1_000_000  # environment steps
    gamma: float = 0.99  # discount factor
    evaluations: int = 4  # evenly spaced over training, the last one at its end

    # instead of training
    figure: Literal["", "curves"] = ""  # draw the learning curves of the finished runs with these arguments


# =========================================================================================================
# PPO
# =========================================================================================================


@dataclasses.dataclass
class PPOArgs(SharedArgs):
    # PPO
    learning_rate: float = 3e-4  # Adam's
    steps_per_iteration: int = 2048  # environment steps between updates
    epochs: int = 10  # passes over an iteration's data
    minibatches: int = 32  # for each epoch
    initial_std: float = 1.0  # standard deviation of the actions at the start, in each dimension
    clip: float = 0.2  # of Eq. (7)
    gae_lambda: float = 0.95  # of Eq. (11)
    max_grad_norm: float = 0.5  # gradients are scaled down to this norm


# ---------------------------------------------------------------------------------------------------------
# PPO: networks
# ---------------------------------------------------------------------------------------------------------


def linear(inputs: int, outputs: int, gain: float) -> nn.Linear:
    """A layer with orthogonal weights and zero bias."""
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def tanh_network(inputs: int, outputs: int, gain: float) -> nn.Sequential:
    """Two hidden layers of 64 tanh; gain: of the last layer's weights."""
    first, second = linear(inputs, 64, math.sqrt(2)), linear(64, 64, math.sqrt(2))
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), linear(64, outputs, gain))


class GaussianActor(nn.Module):
    """pi_theta(a|s) = Normal(mean(s), std), from raw observations: the normaliser is part of the policy."""

    def __init__(self, obs_size: int, action_size: int, initial_std: float = 1.0):
        super().__init__()
        self.norm = RunningNorm((obs_size,))
        self.net = tanh_network(obs_size, action_size, gain=0.01)
        self.log_std = nn.Parameter(torch.full((action_size,), math.log(initial_std)))

    def forward(self, obs):  # (N, obs) -> mean (N, act), log_std (act,)
        return self.net(self.norm(obs)), self.log_std


class ValueCritic(nn.Module):
    """V_phi(s), in units of scaled reward."""

    def __init__(self, obs_size: int):
        super().__init__()
        self.norm = RunningNorm((obs_size,))
        self.net = tanh_network(obs_size, 1, gain=1.0)

    def forward(self, obs):  # (N, obs) -> (N,)
        return self.net(self.norm(obs)).squeeze(-1)


# ---------------------------------------------------------------------------------------------------------
# PPO: losses
# ---------------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """N steps of one agent in its own domain(s)."""

    obs: torch.Tensor  # (N, obs)
    actions: torch.Tensor  # (N, act)
    log_probs: torch.Tensor  # (N,) log pi_theta_old(a|s)
    advantages: torch.Tensor  # (N,)
    targets: torch.Tensor  # (N,) V^targ

    def explained_variance(self) -> float:
        """1 - Var(targets - values) / Var(targets): how much the critic knows; 1 is best."""
        return 1 - (self.advantages.var() / (self.targets.var() + 1e-8)).item()


def gaussian_log_prob(mean, log_std, actions):
    """log Normal(actions; mean, exp(log_std)), summed over action dimensions: (N, act) -> (N,)."""
    return (-0.5 * ((actions - mean) / log_std.exp()) ** 2 - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


def ppo_loss(log_ratio, advantages, clip):                                                              # Eq. (7)
    """Clipped surrogate, negated: to be minimised. (N,), (N,) -> scalar"""
    assert log_ratio.shape == advantages.shape
    ratio = log_ratio.exp()
    return -torch.min(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages).mean()


def value_loss(values, targets):                                                                        # Eq. (9)
    """Mean square error of the critic. (N,), (N,) -> scalar"""
    assert values.shape == targets.shape
    return ((values - targets) ** 2).mean()


def normalise_advantages(advantages):
    """Mean 0 and standard deviation 1 over the minibatch (N,)."""
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)


# surrogate: Eq. (7), negated. value_loss: in units of scaled reward, squared. log_std: of the actions, mean over their
# dimensions. approx_kl: KL(old || new) of this iteration's steps, estimated from the sampled actions. clip_fraction:
# part of the steps whose ratio is clipped.
PPO_METRICS = "surrogate", "value_loss", "log_std", "approx_kl", "clip_fraction"


def ppo_losses(actor, critic, batch, args):
    """Losses of actor and critic on a minibatch, and the metrics PPO_METRICS."""
    log_ratio = gaussian_log_prob(*actor(batch.obs), batch.actions) - batch.log_probs
    actor_loss = ppo_loss(log_ratio, normalise_advantages(batch.advantages), args.clip)
    critic_loss = value_loss(critic(batch.obs), batch.targets)
    approx_kl = (log_ratio.exp() - 1 - log_ratio).mean()
    clip_fraction = ((log_ratio.exp() - 1).abs() > args.clip).float().mean()
    metrics = torch.stack([actor_loss, critic_loss, actor.log_std.mean(), approx_kl, clip_fraction])
    return (actor_loss, critic_loss), metrics.detach().unbind()


# ---------------------------------------------------------------------------------------------------------
# PPO: batch, update and loop
# ---------------------------------------------------------------------------------------------------------


class PPOAgent(nn.Module):
    """Actor, critic, their optimiser, and the running scale of this agent's rewards."""

    def __init__(self, actor: nn.Module, critic: nn.Module, args):
        super().__init__()
        self.actor, self.critic, self.reward_scale = actor, critic, RunningNorm(())
        self.optimiser = Optimiser([actor, critic], args.learning_rate, args, 1e-5, args.max_grad_norm)

    def update(self, minibatch, args):
        """One step of both networks; the metrics."""
        return self.optimiser.minimise(ppo_losses, self.actor, self.critic, minibatch, args)


@torch.no_grad()
def compute_advantages(agent, rollouts, args):                                                          # Eq. (11)
    """Advantages and value targets by the agent's present critic, two tensors (N,), of its rollouts in their order."""
    scale, discounts, estimates = agent.reward_scale.std().item(), (args.gamma, args.gae_lambda), []
    for data in rollouts:
        ends = data.ends.nonzero()[0]  # elsewhere the next observation is the following row, and is not valued twice
        both = [torch.as_tensor(obs, device=args.device) for obs in (data.obs, data.next_obs[ends])]
        values, last_values = (agent.critic(obs).double().cpu().numpy() for obs in both)
        next_values = np.roll(values, -1)
        next_values[ends] = last_values
        advantages = gae(data.rewards / scale, values, next_values, data.terminated, data.ends, *discounts)
        estimates.append((advantages, advantages + values))
    return [torch.as_tensor(np.concatenate(each), dtype=torch.float32, device=args.device) for each in zip(*estimates)]


@torch.no_grad()
def make_batch(agent, rollouts, args) -> Batch:
    """Join an agent's rollouts to a batch. The scale of its rewards takes them into account from now on."""
    for data in rollouts:
        agent.reward_scale.update(discounted_sums(data.rewards, data.ends, args.gamma))
    obs = torch.as_tensor(np.concatenate([data.obs for data in rollouts]), device=args.device)
    actions = torch.as_tensor(np.concatenate([data.actions for data in rollouts]), device=args.device)
    log_probs = gaussian_log_prob(*agent.actor(obs), actions)
    return Batch(obs, actions, log_probs, *compute_advantages(agent, rollouts, args))


def shuffle(batch: Batch, minibatches: int, rng: np.random.Generator) -> list[Batch]:
    """The batch in random order, cut into equal minibatches."""
    order = torch.as_tensor(rng.permutation(len(batch.obs)), device=batch.obs.device)
    size = len(batch.obs) // minibatches
    return [Batch(*columns) for columns in zip(*(column[order].split(size) for column in batch))]


def ppo(args):
    """Proximal policy optimisation: act, estimate advantages, take small steps on the clipped surrogate, repeat."""
    envs = make_envs(args, args.threads)
    obs_size, action_size = envs[0].observation_space.shape[0], envs[0].action_space.shape[0]
    agent = PPOAgent(GaussianActor(obs_size, action_size, args.initial_std), ValueCritic(obs_size), args)
    steps = steps_per_agent(args, 1)

    run = Run(args, "baselines")
    for iteration in run.iterations({"agent0": agent}, steps, warm_up=steps):
        rng = np.random.default_rng([args.seed, 0, iteration])
        domain = sample_domain(args.eps_tr, rng, envs[0].position_draws)
        std = agent.actor.log_std.exp().detach().cpu().numpy()
        data = rollout(envs[0], numpy_policy(agent.actor), std, domain, steps, rng)
        batch = make_batch(agent, [data], args)
        explained = batch.explained_variance()

        metrics = torch.zeros(len(PPO_METRICS), device=args.device)
        epochs = args.epochs if iteration > 0 else 0  # the first one only gathers the normaliser's statistics
        for _ in range(epochs):
            for minibatch in shuffle(batch, args.minibatches, rng):
                metrics += agent.update(minibatch, args)
        for network in (agent.actor, agent.critic):  # only now: the data was used with the old statistics
            network.norm.update(data.obs)

        # Metrics are means over minibatches, in the first iteration 0.
        row = {"return": data.returns.mean(), "episodes": len(data.returns)}
        row |= zip(PPO_METRICS, (metrics / (args.epochs * args.minibatches)).tolist())
        run.log(0, agent, row | {"explained_variance": explained})
        if run.evaluation_due:
            run.evaluate(envs, {0: numpy_policy(agent.actor)})


# =========================================================================================================
# DDPG
# =========================================================================================================


@dataclasses.dataclass
class DDPGArgs(SharedArgs):
    # DDPG
    actor_learning_rate: float = 1e-4  # Adam's
    critic_learning_rate: float = 1e-3  # Adam's
    critic_decay: float = 1e-2  # L2 regularisation of the critic's hidden weights
    tau: float = 0.01  # part of the way to the networks that targets go at each update
    batch_size: int = 64  # transitions for an update
    buffer_size: int = 1_000_000  # transitions that are remembered
    updates: int = 50  # for every 100 steps
    warm_up: int = 10_000  # steps with random actions at the beginning
    exploration: Literal["parameter", "action"] = "parameter"  # noise on the actor's weights, or on its actions
    noise: float = 0.2  # by how much either changes the actions, root mean square, in parts of their scale


# ---------------------------------------------------------------------------------------------------------
# DDPG: networks
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
    """mu(s), from raw observations: the normaliser is part of the policy."""

    def __init__(self, obs_size: int, action_scale: np.ndarray):
        super().__init__()
        self.norm = RunningNorm((obs_size,), clip=5.0)
        self.net = relu_network(obs_size, len(action_scale)).append(nn.Tanh())
        self.register_buffer("action_scale", torch.as_tensor(action_scale))  # actions lie between - and + this

    def forward(self, obs):  # (N, obs) -> (N, act)
        return self.net(self.norm(obs)) * self.action_scale


class ActionCritic(nn.Module):
    """Q(s, a), with the statistics of the actor's normaliser."""

    def __init__(self, obs_size: int, action_size: int):
        super().__init__()
        self.norm = RunningNorm((obs_size,), clip=5.0)
        self.net = relu_network(obs_size + action_size, 1)

    def forward(self, obs, actions):  # (N, obs), (N, act) -> (N,)
        return self.net(torch.cat([self.norm(obs), actions], dim=-1)).squeeze(-1)


# ---------------------------------------------------------------------------------------------------------
# DDPG: losses
# ---------------------------------------------------------------------------------------------------------


def ddpg_targets(target_actor, target_critic, batch, gamma):                                             # Eq. (5)
    """y = r + gamma Q'(s', mu'(s')), and just r where the episode terminated. (N,)"""
    futures = target_critic(batch.next_obs, target_actor(batch.next_obs))
    assert futures.shape == batch.rewards.shape == batch.terminated.shape
    return (batch.rewards + gamma * (1 - batch.terminated) * futures).detach()


def ddpg_critic_loss(critic, batch, targets, decay):                                                     # Eq. (4)
    """Mean square error, and half the squares of the hidden layers' weights."""
    values = critic(batch.obs, batch.actions)
    assert values.shape == targets.shape
    weights = [layer.weight for layer in critic.net[:-1] if isinstance(layer, nn.Linear)]
    return ((values - targets) ** 2).mean() + decay * sum((weight**2).sum() for weight in weights) / 2


def ddpg_actor_loss(actor, critic, batch):                                                               # Eq. (6)
    """Minus what the critic says of the actor's own actions."""
    return -critic(batch.obs, actor(batch.obs)).mean()


DDPG_METRICS = "critic_loss", "value"  # value: Q(s, mu(s))


def ddpg_losses(actor, critic, target_actor, target_critic, batch, args):
    """Losses of actor and critic on a minibatch, and the metrics DDPG_METRICS."""
    targets = ddpg_targets(target_actor, target_critic, batch, args.gamma)
    critic_loss = ddpg_critic_loss(critic, batch, targets, args.critic_decay)
    actor_loss = ddpg_actor_loss(actor, critic, batch)
    return (actor_loss, critic_loss), (critic_loss, -actor_loss)


# ---------------------------------------------------------------------------------------------------------
# DDPG: update and loop
# ---------------------------------------------------------------------------------------------------------


class DDPGAgent(nn.Module):
    """Actor, critic, their slowly following targets, one normaliser for all four, and their optimiser."""

    def __init__(self, actor: nn.Module, critic: nn.Module, args):
        super().__init__()
        critic.norm = actor.norm
        self.actor, self.critic = actor, critic
        self.target_actor, self.target_critic = copy.deepcopy((actor, critic))
        self.target_actor.norm = self.target_critic.norm = actor.norm
        self.optimiser = Optimiser(
            [actor, critic], [args.actor_learning_rate, args.critic_learning_rate], args,
            targets=[self.target_actor, self.target_critic], tau=args.tau,
        )

    def update(self, batch, args):
        """One step of both networks, and of their targets after them; the metrics."""
        networks = self.actor, self.critic, self.target_actor, self.target_critic
        return self.optimiser.minimise(ddpg_losses, *networks, batch, args)


class Exploration:
    """What a DDPG agent does in training: random actions at first, then its policy with noise.

    Noise on the weights (Plappert et al. 2018) adapts its own size and is drawn anew when an episode has ended, or
    rather at the next hundred steps. An actor that is perturbed as a whole tries another gait, where noise on each
    action by itself only trembles.
    """

    def __init__(self, actor: nn.Module, args, agent: int):
        self.actor, self.args, self.agent = actor, args, agent
        self.perturbed = copy.deepcopy(actor)
        self.perturbed.norm = actor.norm
        self.sigma = args.noise  # standard deviation of the noise on the weights

    def policy_and_noise(self, step: int, stream: Stream, rng: np.random.Generator):
        """For the next CYCLE steps a policy obs (obs,) -> action (act,), and noise (CYCLE, act) to be added."""
        args, scale = self.args, self.actor.action_scale.cpu().numpy()
        if step < args.warm_up:
            return lambda obs: 0, rng.uniform(-scale, scale, (CYCLE, len(scale))).astype(np.float32)
        if args.exploration == "action":
            return numpy_policy(self.actor), args.noise * scale * rng.standard_normal((CYCLE, len(scale)), np.float32)
        obs = stream.buffer.latest(args.batch_size)[:, : stream.buffer.widths[0]]
        return self.perturbed_policy(stream.episode, obs), np.zeros((CYCLE, len(scale)), np.float32)

    @torch.no_grad()
    def perturbed_policy(self, episode: int, obs: np.ndarray):
        """The actor with this episode's noise on the weights of its linear layers, as it is now, in numpy.

        Brings sigma nearer to where actions in obs (N, obs) change by as much as they should.
        """
        rng = np.random.default_rng([self.args.seed, self.agent, episode, 3])
        for layer, noisy_layer in zip(self.actor.net, self.perturbed.net):
            for weight, noisy in zip(layer.parameters(), noisy_layer.parameters()):
                draw = torch.as_tensor(rng.standard_normal(weight.shape, dtype=np.float32), device=weight.device)
                noisy.copy_(weight + self.sigma * draw * isinstance(layer, nn.Linear))
        obs = torch.as_tensor(obs, device=self.actor.action_scale.device)
        change = (self.perturbed(obs) - self.actor(obs)) / self.actor.action_scale
        self.sigma *= 1.01 if change.square().mean().sqrt().item() < self.args.noise else 1 / 1.01
        return numpy_policy(self.perturbed)

    def state_dict(self):
        return {"sigma": self.sigma}

    def load_state_dict(self, state):
        self.sigma = state["sigma"]


CYCLE, CYCLES = 100, 20  # DDPG acts for 100 steps, then learns; a row of the log for every 20 times


def ddpg(args):
    """Deep deterministic policy gradient: act with noise, remember, climb the critic's slope, repeat."""
    envs = make_envs(args, args.threads + 1)
    obs_size, action_scale = envs[0].observation_space.shape[0], symmetric_action_scale(envs[0])
    agent = DDPGAgent(DeterministicActor(obs_size, action_scale), ActionCritic(obs_size, len(action_scale)), args)
    buffer = ReplayBuffer(obs_size, len(action_scale), min(args.buffer_size, args.total_steps))
    stream, exploration = Stream(envs[-1], args.seed, 0, buffer), Exploration(agent.actor, args, 0)

    run = Run(args, "baselines")
    parts = {"agent0": agent, "buffer": buffer, "stream": stream, "exploration": exploration}
    for iteration in run.iterations(parts, CYCLE * CYCLES, args.warm_up):
        metrics, updates, returns = torch.zeros(len(DDPG_METRICS), device=args.device), 0, []
        for cycle in range(CYCLES * iteration, CYCLES * (iteration + 1)):
            rng = np.random.default_rng([args.seed, 0, cycle])
            rows, finished = stream.collect(*exploration.policy_and_noise(cycle * CYCLE, stream, rng))
            returns += finished
            agent.actor.norm.update(rows[:, :obs_size])
            if cycle * CYCLE < args.warm_up:
                continue  # to learn much from random actions alone makes the critic expect too much of others
            minibatches = torch.as_tensor(buffer.sample((args.updates, args.batch_size), rng), device=args.device)
            for minibatch in minibatches.unbind():
                metrics += agent.update(buffer.split(minibatch), args)
            updates += args.updates
        # The return is that of the finished episodes; if there is none, of the last one. Metrics are means of updates.
        row = {"return": np.mean(returns or [stream.last_return]), "episodes": len(returns)}
        run.log(0, agent, row | dict(zip(DDPG_METRICS, (metrics / max(updates, 1)).tolist())))
        if run.evaluation_due:
            run.evaluate(envs[:-1], {0: numpy_policy(agent.actor)})


# =========================================================================================================
# SAC
# =========================================================================================================


@dataclasses.dataclass
class SACArgs(SharedArgs):
    # SAC
    learning_rate: float = 3e-4  # Adam's
    tau: float = 0.005  # part of the way to the critics that targets go at each update
    batch_size: int = 256  # transitions for an update
    buffer_size: int = 1_000_000  # transitions that are remembered
    warm_up: int = 10_000  # steps with random actions at the beginning


# ---------------------------------------------------------------------------------------------------------
# SAC: networks
# ---------------------------------------------------------------------------------------------------------


def glorot(module: nn.Module):
    """Begin with weights uniform within +- sqrt(6 / (inputs + outputs)) and biases of 0."""
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


def squashed_policy(actor: nn.Module):
    """The actor as a function obs (obs,), noise (act,) or 0 -> action (act,), in numpy; noise 0: tanh(mean).

    For use before the actor changes: copying its weights for each step would take longer than the step.
    """
    network, scale = numpy_network(actor.net, frozen=False), actor.action_scale.cpu().numpy()

    def policy(obs, noise=0):
        mean, log_std = np.split(network(obs.astype(np.float32)), 2)
        if np.any(noise):
            mean = mean + np.exp(np.clip(log_std, -20, 2)) * noise
        return scale * np.tanh(mean)

    return policy


# ---------------------------------------------------------------------------------------------------------
# SAC: losses
# ---------------------------------------------------------------------------------------------------------


def squash(policy, noise):                                                                             # App. C
    """Actions tanh(mean + std * noise) (N, act) in (-1, 1), and their log-probabilities (N,).

    log(1 - tanh(u)^2) is written as 2 (log 2 - u - softplus(-2u)), which is finite wherever tanh(u) rounds to 1.
    """
    mean, log_std = policy
    u = mean + log_std.exp() * noise
    log_normal = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
    log_slope = 2 * (math.log(2) - u - nn.functional.softplus(-2 * u))
    return u.tanh(), (log_normal - log_slope).sum(-1)


def sac_targets(actor, target_critic, alpha, batch, noise, gamma):                                     # Eq. (6)
    """y = r + gamma (min_i Q'_i(s', a') - alpha log pi(a'|s')), and just r where the episode terminated. (N,)"""
    actions, log_probs = squash(actor(batch.next_obs), noise)
    futures = target_critic(batch.next_obs, actor.action_scale * actions).min(0).values - alpha * log_probs
    assert futures.shape == batch.rewards.shape == batch.terminated.shape
    return (batch.rewards + gamma * (1 - batch.terminated) * futures).detach()


def sac_critic_loss(critic, batch, targets):                                                           # Eq. (5)
    """Half the mean square error, summed over the two critics."""
    values = critic(batch.obs, batch.actions)
    assert values.shape == (2, *targets.shape)
    return 0.5 * ((values - targets) ** 2).mean(1).sum()


def sac_actor_loss(actor, critic, alpha, obs, noise):                                                  # Eq. (9)
    """Mean of alpha log pi(a|s) - min_i Q_i(s, a) over the actor's own actions, and the log-probabilities (N,)."""
    actions, log_probs = squash(actor(obs), noise)
    values = critic(obs, actor.action_scale * actions).min(0).values
    assert values.shape == log_probs.shape
    return (alpha * log_probs - values).mean(), log_probs


def temperature_loss(log_alpha, log_probs, target_entropy):                                            # Eq. (18)
    """alpha grows while the entropy -log pi is below its target. Scalar."""
    return -(log_alpha.exp() * (log_probs.detach() + target_entropy)).mean()


SAC_METRICS = "critic_loss", "actor_loss", "entropy", "alpha"  # entropy: of the squashed policy, in nats


def sac_critic_losses(agent, batch, noise, args):
    """The loss of the twin critic, and the first of SAC_METRICS. noise: (N, act) standard normal."""
    alpha = agent.temperature.log_alpha.detach().exp()
    targets = sac_targets(agent.actor, agent.target_critic, alpha, batch, noise, args.gamma)
    loss = sac_critic_loss(agent.critic, batch, targets)
    return (loss,), (loss,)


def sac_actor_losses(agent, obs, noise):
    """Losses of actor and temperature, and the other SAC_METRICS. noise: (N, act) standard normal."""
    log_alpha = agent.temperature.log_alpha
    alpha = log_alpha.detach().exp()
    loss, log_probs = sac_actor_loss(agent.actor, agent.critic, alpha, obs, noise)
    losses = loss, temperature_loss(log_alpha, log_probs, -float(noise.shape[1]))
    return losses, (loss, -log_probs.mean(), alpha[0])


# ---------------------------------------------------------------------------------------------------------
# SAC: update and loop
# ---------------------------------------------------------------------------------------------------------


class SACAgent(nn.Module):
    """Actor, twin critic, its slowly following target, the temperature, and an optimiser for each half of an update."""

    def __init__(self, actor: nn.Module, critic: nn.Module, args):
        super().__init__()
        self.actor, self.critic, self.target_critic = actor, critic, copy.deepcopy(critic)
        self.temperature = nn.ParameterDict({"log_alpha": torch.zeros(1)})
        targets = {"targets": [self.target_critic], "tau": args.tau}
        self.critic_optimiser = Optimiser([critic], args.learning_rate, args, **targets)
        self.actor_optimiser = Optimiser([actor, self.temperature], [args.learning_rate] * 2, args)

    def update(self, batch, noise, args, pool):
        """One step of everything that learns, and of the target critic after it; the metrics.

        noise: (2, N, act) standard normal. Both halves are computed from the parameters as they are before the update.
        So a thread of the pool can take one of them: faster than two threads that share each matrix product, and
        bit-identical.
        """
        critic_half = partial(self.critic_optimiser.compute, sac_critic_losses, self, batch, noise[0], args)
        actor_half = partial(self.actor_optimiser.compute, sac_actor_losses, self, batch.obs, noise[1])
        if args.threads > 1 and args.device == "cpu":
            future = pool.submit(actor_half)  # the shorter one, as it begins later
            (new_critic, critic_metrics), (new_actor, actor_metrics) = critic_half(), future.result()
        else:
            (new_critic, critic_metrics), (new_actor, actor_metrics) = critic_half(), actor_half()
        self.critic_optimiser.assign(new_critic)
        self.actor_optimiser.assign(new_actor)
        return torch.cat([critic_metrics, actor_metrics])


def sac_batch(buffer: ReplayBuffer, args, rng: np.random.Generator) -> tuple[Transitions, torch.Tensor]:
    """A minibatch and the noise that an update needs."""
    rows = torch.as_tensor(buffer.sample((args.batch_size,), rng), device=args.device)
    noise = rng.standard_normal((2, args.batch_size, buffer.widths[1]), dtype=np.float32)
    return buffer.split(rows), torch.as_tensor(noise, device=args.device)


ROW = 1000  # steps of SAC for each row of the log


def sac(args):
    """Soft actor-critic: a step in the environment, a step of learning, repeat."""
    envs = make_envs(args, args.threads + 1)
    obs_size, action_scale = envs[0].observation_space.shape[0], symmetric_action_scale(envs[0])
    agent = SACAgent(SquashedActor(obs_size, action_scale), TwinCritic(obs_size, len(action_scale)), args)
    buffer = ReplayBuffer(obs_size, len(action_scale), min(args.buffer_size, args.total_steps))
    stream, pool = Stream(envs[-1], args.seed, 0, buffer), thread_pool(1)

    run = Run(args, "baselines")
    for iteration in run.iterations({"agent0": agent, "buffer": buffer, "stream": stream}, ROW, args.warm_up):
        acting, rng = (np.random.default_rng([args.seed, 0, iteration, use]) for use in (1, 0))
        metrics, updates, returns = torch.zeros(len(SAC_METRICS), device=args.device), 0, []
        for step in range(ROW * iteration, ROW * (iteration + 1)):
            if step < args.warm_up:
                action = acting.uniform(-action_scale, action_scale).astype(np.float32)
            else:
                noise = acting.standard_normal(len(action_scale), dtype=np.float32)
                action = squashed_policy(agent.actor)(stream.obs, noise)
            finished = stream.step(action)
            if finished is not None:
                returns.append(finished)
            if step >= args.warm_up:
                metrics += agent.update(*sac_batch(buffer, args, rng), args, pool)
                updates += 1
        row = {"return": np.mean(returns or [stream.last_return]), "episodes": len(returns)}
        run.log(0, agent, row | dict(zip(SAC_METRICS, (metrics / max(updates, 1)).tolist())))
        if run.evaluation_due:
            run.evaluate(envs[:-1], {0: squashed_policy(agent.actor)})


# =========================================================================================================
# Plumbing: the gradient step
# =========================================================================================================


class RunningNorm(nn.Module):
    """Running mean and variance over all data so far, and the map x -> (x - mean) / std, clipped.

    The statistics are buffers: they are saved with the module, and change in `update` only.
    """

    def __init__(self, shape: tuple[int, ...], clip: float = 10.0):
        super().__init__()
        self.clip = clip
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("var", torch.ones(shape, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, x):  # (N, *shape) -> (N, *shape)
        return ((x - self.mean.float()) / self.std().float()).clamp(-self.clip, self.clip)

    def std(self):
        return (self.var + 1e-8).sqrt()

    def update(self, x: np.ndarray):
        """Take the rows of x (N, *shape) into the statistics (parallel variance, Chan et al. 1979)."""
        x = torch.as_tensor(x, dtype=torch.float64, device=self.mean.device)
        count, var, delta = len(x), x.var(0, correction=0), x.mean(0) - self.mean
        total = self.count + count
        self.var.copy_((self.var * self.count + var * count + delta**2 * self.count * count / total) / total)
        self.mean.add_(delta * count / total)
        self.count.copy_(total)


def set_up_torch(args):
    """Seed torch, check the device, and compute each matrix product in one thread: small ones gain nothing from more.

    `args.compile` becomes False, with a line that says so, where nothing can compile.
    """
    set_up_thread()
    torch.manual_seed(args.seed)
    try:
        torch.zeros(1, device=args.device)
    except (RuntimeError, AssertionError) as error:
        fail(f"device {args.device!r} cannot be used: {str(error).splitlines()[0]}")
    try:
        torch.compile(torch.sin, disable=not args.compile)(torch.zeros(1, device=args.device))
    except Exception as error:  # no compiler, no Python headers, no Triton: each raises a class of its own
        print(f"note: running without torch.compile, which failed here ({type(error).__name__}); about half the speed")
        args.compile = False


def set_up_thread():
    """What torch keeps for each thread: one core for a product, and the options of its compiler."""
    from torch import _dynamo, _inductor

    torch.set_num_threads(1)
    _dynamo.config.trace_autograd_ops = True  # autograd.grad inside a full graph
    _dynamo.config.recompile_limit = 64  # one graph for each number of peers
    _inductor.config.compile_threads = 1  # no pool of processes for two small graphs
    _inductor.config.cpp_wrapper = not torch.cuda.is_available()  # a fifth less time for each call


def thread_pool(number: int) -> ThreadPoolExecutor:
    """Threads for work that goes on at the same time, each of which computes by itself."""
    return ThreadPoolExecutor(number, initializer=set_up_thread)


def one_vector(*networks: nn.Module) -> torch.Tensor:
    """All parameters of the networks as one vector, of which each is a view (from now on, if it was not yet)."""
    parameters = [parameter for network in networks for parameter in network.parameters()]
    first, last, size = parameters[0].data, parameters[-1].data, sum(each.numel() for each in parameters)
    if first.untyped_storage().data_ptr() == last.untyped_storage().data_ptr():  # they are one vector already
        return first.as_strided((size,), (1,))
    vector = nn.utils.parameters_to_vector(parameters).detach()
    nn.utils.vector_to_parameters(vector, parameters)
    return vector


class Adam(nn.Module):
    """Adam (Kingma and Ba 2015) on one vector, as a function that can stand inside a compiled graph.

    The arithmetic is torch's. Its optimiser object works outside of a graph only, where its bookkeeping takes ten
    times as long as its arithmetic does for networks of this size. (capturable: a graph on a GPU asks for it.)
    """

    def __init__(self, parameters: torch.Tensor, learning_rate: float, eps: float):
        super().__init__()
        self.learning_rate, self.eps = learning_rate, eps
        self.register_buffer("mean", torch.zeros_like(parameters))
        self.register_buffer("square", torch.zeros_like(parameters))
        self.register_buffer("steps", torch.zeros((), device=parameters.device))

    def forward(self, parameters, gradient):
        """The parameters (n,) after one step against the gradient (n,); only the running means change."""
        new = parameters.clone()
        adam(
            [new], [gradient], [self.mean], [self.square], [], [self.steps], amsgrad=False, beta1=0.9, beta2=0.999,
            lr=self.learning_rate, weight_decay=0, eps=self.eps, maximize=False, foreach=False, capturable=new.is_cuda,
        )
        return new


COMPILING = threading.Lock()  # one at a time: of two threads that compile together one may find nothing compiled


class Optimiser(nn.Module):
    """Gradient steps on some networks, each of which has a loss of its own.

    One step is one compiled graph: losses, the gradient of each loss by its own network, its norm scaled down to
    max_grad_norm, Adam, and then the step of the target networks (if any) by tau towards the networks they belong to.
    learning_rate: of all networks, which then share one vector, or a list with that of each. Moves them to args.device.
    """

    def __init__(self, networks, learning_rate, args, eps=1e-8, max_grad_norm=math.inf, targets=(), tau=0.0):
        super().__init__()
        rates = learning_rate if isinstance(learning_rate, list) else [learning_rate]
        self.groups = [[each] for each in networks] if len(rates) > 1 else [networks]  # a vector and an Adam for each
        self.vectors = [one_vector(*(network.to(args.device) for network in group)) for group in self.groups]
        self.target_vectors = [one_vector(target.to(args.device)) for target in targets]
        self.adams = nn.ModuleList(Adam(vector, rate, eps) for vector, rate in zip(self.vectors, rates))
        self.max_grad_norm, self.tau = max_grad_norm, tau
        self.used = False
        self.step = torch.compile(gradient_step, fullgraph=True, dynamic=False, disable=not args.compile)

    def minimise(self, losses, *arguments):
        """One step on losses(*arguments), which returns a loss for each network, and metrics; the metrics (M,)."""
        new, metrics = self.compute(losses, *arguments)
        self.assign(new)
        return metrics

    def compute(self, losses, *arguments):
        """The first half of minimise: the new values of all vectors, not yet written to them, and the metrics."""
        with contextlib.nullcontext() if self.used else COMPILING:
            self.used = True
            return self.step(self, losses, *arguments)

    def assign(self, new):
        """The second half of minimise."""
        for vector, value in zip(self.vectors + self.target_vectors, new):
            vector.copy_(value)


def gradient_step(optimiser, losses, *arguments):
    """See Optimiser; nothing but Adam's running means changes."""
    values, metrics = losses(*arguments)
    values, new = iter(values), []
    for group, vector, step in zip(optimiser.groups, optimiser.vectors, optimiser.adams):
        gradients = [gradient_of(next(values), network, optimiser.max_grad_norm) for network in group]
        new.append(step(vector, torch.cat(gradients)))
    new += [target.lerp(value, optimiser.tau) for target, value in zip(optimiser.target_vectors, new)]
    return new, torch.stack(metrics).detach() if metrics else None


def gradient_of(loss, network, max_norm):
    """Gradient of a loss by a network's parameters as one vector, scaled down so that its norm is at most max_norm."""
    gradients = torch.autograd.grad(loss, tuple(network.parameters()))
    gradient = torch.cat([each.flatten() for each in gradients])
    return gradient if max_norm == math.inf else gradient * (max_norm / (gradient.norm() + 1e-6)).clamp(max=1.0)


# =========================================================================================================
# Plumbing: rollouts (numpy and threads, no torch)
# =========================================================================================================


def layer_norm(weight, bias, x):
    """nn.LayerNorm of a vector."""
    size, eps = np.float32(len(x)), np.float32(1e-5)  # torch's default
    x = x - x.sum() / size
    return x * (weight / np.sqrt(x.dot(x) / size + eps)) + bias


NUMPY_LAYERS = {  # functions of a layer's parameters and x
    nn.Linear: lambda weight, bias, x: weight.dot(x) + bias, nn.LayerNorm: layer_norm,
    nn.Tanh: np.tanh, nn.ReLU: partial(np.maximum, np.float32(0)),
}  # fmt: skip


def numpy_network(net: nn.Sequential, frozen: bool = True):
    """Layers as a function of one vector (inputs,) -> (outputs,) float32, in numpy.

    For a single vector numpy takes 3 us where torch takes 18. frozen: a copy, which does not change while it is used.
    """
    layers = []
    for module in net:
        weights = [parameter.detach().cpu().numpy() for parameter in module.parameters()]
        weights = [weight.copy() for weight in weights] if frozen else weights
        layers.append(partial(NUMPY_LAYERS[type(module)], *weights))
    return lambda x: reduce(lambda y, layer: layer(y), layers, x)


def numpy_policy(actor: nn.Module):
    """A copy of an actor of PPO or DDPG as a function obs (obs,) -> mean action (act,), in numpy."""
    mean, scale = actor.norm.mean.cpu().numpy().copy(), 1 / actor.norm.std().cpu().numpy()
    network, clip = numpy_network(actor.net), np.float64(actor.norm.clip)
    action_scale = actor.action_scale.cpu().numpy() if hasattr(actor, "action_scale") else np.float32(1)

    def policy(obs):
        x = np.minimum(np.maximum((obs - mean) * scale, -clip), clip)
        return network(x.astype(np.float32)) * action_scale

    return policy


class Rollout(NamedTuple):
    """T steps of one policy in one domain; episodes follow each other."""

    obs: np.ndarray  # (T, obs) float32
    actions: np.ndarray  # (T, act) float32, before clipping to the action space
    rewards: np.ndarray  # (T,)
    next_obs: np.ndarray  # (T, obs) float32, where an episode ends its last observation
    terminated: np.ndarray  # (T,) bool: the robot fell
    ends: np.ndarray  # (T,) bool: episode boundaries: terminated, truncated, or last step of the rollout
    returns: np.ndarray  # (E,) undiscounted returns of the finished episodes; if there is none, of the one that was cut


def rollout(env: RandomisedEnv, policy, std: np.ndarray, domain: Domain, steps: int, rng) -> Rollout:
    """Act for `steps` steps in `domain` with actions policy(obs) + std * noise, from a fresh reset."""
    low, high, options = env.action_space.low, env.action_space.high, {"domain": domain}
    actions = std * rng.standard_normal((steps, len(low)), dtype=np.float32)
    obs = np.empty((steps, *env.observation_space.shape), np.float32)
    next_obs, rewards = np.empty_like(obs), np.empty(steps)
    terminated, ends = np.zeros(steps, bool), np.zeros(steps, bool)
    returns, episode_return = [], 0.0

    now, _ = env.reset(seed=int(rng.integers(2**31)), options=options)
    for t in range(steps):
        obs[t] = now
        actions[t] += policy(now)
        now, reward, terminated[t], truncated, _ = env.step(np.minimum(np.maximum(actions[t], low), high))
        next_obs[t], rewards[t], ends[t] = now, reward, terminated[t] or truncated
        episode_return += reward
        if ends[t]:
            returns.append(episode_return)
            episode_return = 0.0
            now, _ = env.reset(options=options)
    ends[-1] = True
    return Rollout(obs, actions, rewards, next_obs, terminated, ends, np.array(returns or [episode_return]))


def discounted_sums(rewards: np.ndarray, ends: np.ndarray, gamma: float) -> np.ndarray:
    """At each step the discounted sum of the episode's rewards so far (T,); its deviation is the scale of rewards."""
    sums, running = np.empty(len(rewards)), 0.0
    for t, (reward, end) in enumerate(zip(rewards, ends)):
        sums[t] = gamma * running + reward
        running = 0.0 if end else sums[t]
    return sums


def gae(rewards, values, next_values, terminated, ends, gamma: float, gae_lambda: float) -> np.ndarray:
    """Generalised advantage estimates (Schulman et al. 2016, eq. 16), shape (T,) like all arguments.

    Where an episode ended (`ends`) the sum stops; where it was terminated the future is worth
    nothing, but where it was merely cut, by a time limit or the end of the batch, it is worth next_values.
    """
    deltas = rewards + gamma * next_values * ~terminated - values
    advantages, running = [], 0.0
    for delta, factor in zip(deltas[::-1].tolist(), (gamma * gae_lambda * ~ends)[::-1].tolist()):
        running = delta + factor * running  # lists: four times faster than arrays
        advantages.append(running)
    return np.array(advantages[::-1])


def make_envs(args, number: int, **kwargs) -> list[RandomisedEnv]:
    """`number` environments of the kind that `args` names; whatever is wrong with it ends the program in one line."""
    kwargs |= {"xml_file": os.path.abspath(args.xml_file)} if args.xml_file else {}
    try:
        envs = [make_env(args.env, args.eps_tr, args.init, **kwargs) for _ in range(number)]
    except ValueError as error:
        fail(str(error))
    for space in (envs[0].action_space, envs[0].observation_space):
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            fail(f"{args.env} has {space}: actions and observations must be vectors")
    return envs


def symmetric_action_scale(env) -> np.ndarray:
    """The upper limit of the actions (act,), which the lower one must mirror: a squashed policy is scaled by it."""
    low, high = env.action_space.low, env.action_space.high
    if not (np.array_equal(low, -high) and np.isfinite(high).all()):
        fail(f"actions lie between {low} and {high}: DDPG and SAC need limits that are symmetric about 0")
    return high


# =========================================================================================================
# Plumbing: off-policy data
# =========================================================================================================


class Transitions(NamedTuple):
    """N steps, as the replay buffer gives them."""

    obs: torch.Tensor  # (N, obs)
    actions: torch.Tensor  # (N, act)
    rewards: torch.Tensor  # (N,)
    next_obs: torch.Tensor  # (N, obs)
    terminated: torch.Tensor  # (N,) 1 where the robot fell; 0 at a time limit, which is not the end of the world


class ReplayBuffer:
    """The latest `size` transitions, one row of float32 each."""

    def __init__(self, obs_size: int, action_size: int, size: int):
        self.widths = obs_size, action_size, 1, obs_size, 1
        self.rows, self.count = np.zeros((size, sum(self.widths)), np.float32), 0  # count: of all that were ever added

    def __len__(self):
        return min(self.count, len(self.rows))

    def add(self, row: np.ndarray):
        """Append a row (width,)."""
        self.rows[self.count % len(self.rows)] = row
        self.count += 1

    def latest(self, number: int) -> np.ndarray:
        """The last `number` rows, oldest first."""
        return self.at(np.arange(number)[::-1])

    def sample(self, shape: tuple[int, ...], rng: np.random.Generator, among: int | None = None) -> np.ndarray:
        """Rows (*shape, width), each drawn uniformly from the latest `among`, or from all."""
        return self.at(rng.integers(min(len(self), among or len(self)), size=shape))

    def at(self, ages: np.ndarray) -> np.ndarray:
        """The rows (*ages.shape, width) that were added so many rows ago; 0 is the newest."""
        return self.rows[(self.count - 1 - ages) % len(self.rows)]

    def split(self, rows: torch.Tensor) -> Transitions:
        obs, actions, rewards, next_obs, terminated = rows.split(self.widths, dim=-1)
        return Transitions(obs, actions, rewards.squeeze(-1), next_obs, terminated.squeeze(-1))

    def state_dict(self):
        return {"rows": torch.as_tensor(self.rows[: len(self)]), "count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]
        self.rows[: len(self)] = state["rows"].numpy()


class Stream:
    """One agent's episodes, one after the other, a few steps at a time.

    An episode is determined by its number (its start and domain) and its actions. So to resume, the present one is
    played again from its beginning, with the actions that the replay buffer holds. (MuJoCo's state alone would not do:
    some environments reward what is no part of it.)
    """

    def __init__(self, env: RandomisedEnv, seed: int, agent: int, buffer: ReplayBuffer):
        self.env, self.key, self.buffer = env, (seed, agent), buffer
        self.episode, self.last_return = 0, math.nan
        self._begin()

    def _begin(self):
        rng = np.random.default_rng([*self.key, self.episode, 2])
        domain = sample_domain(self.env.eps, rng, self.env.position_draws)
        self.obs, _ = self.env.reset(seed=int(rng.integers(2**31)), options={"domain": domain})
        self.steps, self.total = 0, 0.0

    def _act(self, action):
        self.obs, reward, terminated, truncated, _ = self.env.step(action)
        self.steps, self.total = self.steps + 1, self.total + float(reward)
        return reward, terminated, truncated

    def step(self, action: np.ndarray) -> float | None:
        """One step, into the buffer. If it ends the episode, that episode's return; the next one has then begun."""
        action, obs = np.clip(action, self.env.action_space.low, self.env.action_space.high), self.obs
        reward, terminated, truncated = self._act(action)
        self.buffer.add(np.concatenate([obs, action, [reward], self.obs, [terminated]], dtype=np.float32))
        if not (terminated or truncated):
            return None
        self.episode, self.last_return = self.episode + 1, self.total
        self._begin()
        return self.last_return

    def collect(self, policy, noise: np.ndarray) -> tuple[np.ndarray, list[float]]:
        """len(noise) steps with actions policy(obs) + noise; their rows, and the returns of episodes that ended."""
        returns = [self.step(policy(self.obs) + each) for each in noise]
        return self.buffer.latest(len(noise)), [each for each in returns if each is not None]

    def state_dict(self):
        return {"episode": self.episode, "steps": self.steps, "last_return": self.last_return}

    def load_state_dict(self, state):
        """After that of the buffer."""
        self.episode, self.last_return = state["episode"], state["last_return"]
        self._begin()
        obs_size, action_size = self.buffer.widths[:2]
        for row in self.buffer.latest(state["steps"]):
            self._act(row[obs_size : obs_size + action_size])


# =========================================================================================================
# Plumbing: evaluation in held-out domains
# =========================================================================================================

HELD_OUT = 2**32 - 1  # no training run is keyed by it: seeds are smaller


def held_out_domains(eps: float, number: int, hinges: int | None = None) -> list[Domain]:
    """The test domains of randomisation level eps: always the same ones, whoever asks."""
    rngs = [np.random.default_rng([HELD_OUT, round(eps * 10_000), i]) for i in range(number)]
    return [sample_domain(eps, rng, hinges) for rng in rngs]


def episode_return(env: RandomisedEnv, policy, domain: Domain, seed: int, frames: list | None = None) -> float:
    """Undiscounted return of one episode of a deterministic policy.

    frames: gets pictures, 20 for each of the first five seconds.
    """
    low, high = env.action_space.low, env.action_space.high
    obs, _ = env.reset(seed=seed, options={"domain": domain})
    total, over = 0.0, False
    while not over:
        if frames is not None and len(frames) < 100 and env.data.time >= len(frames) / 20:
            frames.append(env.render())
        obs, reward, terminated, truncated, _ = env.step(np.minimum(np.maximum(policy(obs), low), high))
        total, over = total + float(reward), terminated or truncated
    return total


def episode_returns(envs: list[RandomisedEnv], jobs: list[tuple]) -> list[float]:
    """Return of one episode for each job (policy, domain, seed), whatever the number of environments, a thread each."""
    number = len(envs)
    with ThreadPoolExecutor(number) as pool:
        each = pool.map(lambda k: [episode_return(envs[k], *job) for job in jobs[k::number]], range(number))
        parts = list(each)  # a list, so that errors are raised here
    return [parts[i % number][i // number] for i in range(len(jobs))]


def evaluate(envs: list[RandomisedEnv], policies: dict, eps_te: tuple[float, ...], number: int) -> list[dict]:
    """Rows of eval.csv: an episode of each policy {agent: policy} in each of `number` held-out domains for each eps."""
    domains = {eps: held_out_domains(eps, number, envs[0].position_draws) for eps in eps_te}
    places = [(agent, eps, i) for agent in policies for eps in eps_te for i in range(number)]
    returns = episode_returns(envs, [(policies[agent], domains[eps][i], i) for agent, eps, i in places])
    names = "agent", "eps_te", "domain", "return"
    return [dict(zip(names, (*place, value))) for place, value in zip(places, returns)]


# =========================================================================================================
# Plumbing: command line
# =========================================================================================================


def fail(message: str, status: int = 2) -> NoReturn:
    """End the program with one line on stderr; status 2 is the caller's mistake."""
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr, flush=True)
    raise SystemExit(status)


def launch(Args: type, train, figures: dict, load_policies=None):
    """A script's main: train(args), or what --figure, --watch, --gif or --seeds asks for instead.

    Args: the dataclass of its options. figures: {name: function of args that returns a figure and its title}.
    load_policies(run): the run's policies as functions obs (obs,) -> action (act,).
    """
    try:
        args = parse_args(Args)
        if args.figure:
            path = Path(args.runs) / f"{Path(sys.argv[0]).stem}-figure-{args.figure}.png"
            save_figure(*figures[args.figure](args), path)
            print(f"figure: {path}")
        elif load_policies and (args.watch or args.gif):
            watch(args, load_policies)
        elif args.seeds:
            run_seeds(args)
        else:
            set_up_torch(args)
            train(args)
    except KeyboardInterrupt:
        fail("stopped; the same command, without --overwrite, goes on from the last checkpoint", status=130)
    except OSError as error:  # it names the file
        fail(str(error))


def whole_number(text: str) -> int:
    """int, but 2e6 and 2_000_000 are numbers too."""
    value = float(text)
    if not value.is_integer():  # nan and inf are none
        raise ValueError(text)
    return int(value)


def parse_args(Args: type):
    """Fill the dataclass `Args` from the command line, and check the limits of its values.

    `steps: int = 4096  # of each agent` becomes `--steps`, with the comment as its help; a comment on a line of
    its own begins a group. Booleans become `--flag/--no-flag`, Literals choices, tuples lists.
    """
    parser = group = Parser(description=sys.modules["__main__"].__doc__.splitlines()[0], conflict_handler="resolve")
    for line in "\n".join(inspect.getsource(each) for each in Args.__mro__[:-1]).splitlines():
        if heading := re.fullmatch(r" +# (.+)", line):
            group = parser.add_argument_group(heading[1])
        elif field := re.fullmatch(r" +(\w+): .+? = .+?  # (.+)", line):
            name, comment, kind = field[1], field[2], get_type_hints(Args)[field[1]]
            options = {"type": (get_args(kind) or [kind])[0]}  # int, float, str, tuple[int, ...], float | None
            if kind is bool:
                options = {"action": argparse.BooleanOptionalAction}
            elif get_origin(kind) is Literal:
                options = {"choices": get_args(kind)}
            elif get_origin(kind) is tuple:
                options["nargs"] = "*"
            if options.get("type") is int:
                options["type"] = whole_number
            options |= {"default": getattr(Args, name), "help": comment.replace("%", "%%")}
            group.add_argument("--" + name.replace("_", "-"), **options)
    values = vars(parser.parse_args())
    args = Args(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
    check_limits(args)
    args.threads = args.threads or os.cpu_count() or 1
    return args


LIMITS = {  # (least, greatest): options, wherever a script has one of that name
    (1, math.inf): "total_steps steps_per_iteration epochs minibatches eval_domains evaluations evaluate_every jobs"
                   " updates checkpoint_every batch_size interval recent distill_epochs distill_steps distill_batch"
                   " distill_window reset_every agents ensemble_size",
    (1000, math.inf): "buffer_size",  # an episode must fit
    # More would overflow single precision.
    (1e-30, 1e30): "learning_rate clip max_grad_norm initial_std actor_learning_rate critic_learning_rate distill_lr",
    (0, 1e30): "alpha critic_decay noise warm_up distill_updates threads",
    (-1e30, 1e30): "entropy_coef",
    (0, 1): "gamma gae_lambda eps_tr eps_te tau",
    (0, HELD_OUT - 1): "seed seeds",
}  # fmt: skip


def check_limits(args):
    """Refuse values that cannot be meant, before anything is made."""
    for (least, greatest), names in LIMITS.items():
        for name in names.split():
            for value in np.atleast_1d(getattr(args, name, None)):
                if value is not None and not least <= value <= greatest:
                    fail(f"--{name.replace('_', '-')} must lie between {least:g} and {greatest:g}, but is {value}")
    if not args.eps_te or len(set(args.seeds)) < len(args.seeds):
        fail("--eps-te needs at least one level" if not args.eps_te else "--seeds names a seed twice")


def steps_per_agent(args, agents: int) -> int:
    """PPO's steps of each agent in an iteration: whole minibatches, rounded down, which is said."""
    minibatch = args.steps_per_iteration // agents // args.minibatches
    if minibatch < 2:
        fail("a minibatch needs at least two steps: fewer --minibatches or --agents, or more --steps-per-iteration")
    steps = minibatch * args.minibatches
    if steps * agents != args.steps_per_iteration:
        print(f"note: {steps} steps for each agent in an iteration, {steps * agents} in all: minibatches are equal")
    return steps


def run_seeds(args):
    """Run this very command once for each seed, --jobs at a time, and pass on what they print."""
    threads = max(1, (os.cpu_count() or 1) // min(args.jobs, len(args.seeds)))

    def run(seed):
        # Of two --threads the last one counts: the user's own, if there is one.
        options = ["--threads", str(threads), *sys.argv[1:], "--seeds", "--seed", str(seed)]
        command = [sys.executable, sys.argv[0], *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            for line in process.stdout:
                print(f"seed {seed} | {line}", end="", flush=True)
        return abs(process.returncode)

    with ThreadPoolExecutor(args.jobs) as pool:
        try:
            raise SystemExit(max(pool.map(run, args.seeds)))
        finally:  # after Ctrl-C, which the processes at work get too, no new ones
            pool.shutdown(wait=False, cancel_futures=True)


# =========================================================================================================
# Plumbing: a run's folder with config.json, log.csv, eval.csv, checkpoint.pt, figure.png
# =========================================================================================================

# Options that change no result are not in a folder's name. (device and compile do in the last bits.)
NOT_IN_NAME = {"env", "seed", "seeds", "jobs", "threads", "device", "compile", "checkpoint_every", "runs", "overwrite",
               "figure", "table", "watch", "gif"}  # fmt: skip


def run_name(args, script: str) -> str:
    """The script, the environment, every option that differs from its default, and the seed."""
    words = [script, args.env]
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        if field.name not in NOT_IN_NAME and value != field.default:
            items = value if isinstance(value, tuple) else (value,)
            text = "+".join(f"{item:.12g}" if isinstance(item, float) else str(item) for item in items)
            words.append(re.sub(r"[^\w.+=-]", "_", f"{field.name}={text}"))
    return "-".join([*words, f"seed{args.seed}"])


class Run:
    """A run's folder, and the frame of a training loop: `for iteration in run.iterations(parts, steps)`.

    A run that was stopped goes on from its last checkpoint. What was logged after that is written again, bit-identical
    (with the same device and compile) but for the column `seconds`. Checkpoints are written beside their target and
    renamed over it.
    """

    def __init__(self, args, script: str):
        self.args, self.path = args, Path(args.runs) / run_name(args, script)
        self.returns = {}  # the last one that each agent logged

    def iterations(self, parts: dict, steps: int, warm_up: int = 0):
        """Yield the number of each iteration to be made, of so many steps; log, evaluate and save as they come due.

        parts: by name whatever must be saved, with state_dict and load_state_dict. warm_up: steps without learning.
        """
        total = self.args.total_steps // steps
        if total * steps <= warm_up:
            fail(f"--total-steps must be at least {(warm_up // steps + 1) * steps}, but is {self.args.total_steps}")
        evaluations = min(getattr(self.args, "evaluations", 1), total)
        due = {round(total * i / evaluations) for i in range(1, evaluations + 1)}
        self._open()
        first = self._resume(parts)
        if first < total:  # a finished run keeps the versions that made it
            versions = {each.__name__: each.__version__ for each in (torch, gym, mujoco, np)} | {"python": sys.version}
            config = {"settings": dataclasses.asdict(self.args), "versions": versions}
            self._replace("config.json", lambda path: path.write_text(json.dumps(config, indent=1) + "\n"))
        self.began = shown = time.perf_counter()
        for done in range(first + 1, total + 1):
            self.step, self.evaluation_due, self.last = done * steps, done in due, done == total
            yield done - 1
            if done % self.args.checkpoint_every == 0 or self.last:
                self._save(parts, done)
            if sys.stdout.isatty() or self.last or done == first + 1 or time.perf_counter() - shown > 10:
                shown = time.perf_counter()
                self._show((done - first) * steps / (shown - self.began))
        if first == total:
            print(f"{self.path} is finished: nothing to do (--overwrite starts anew)")
        run = SavedRun(self.path)
        run.print_table()
        run.draw()
        print(f"\n{self.path}: config.json, log.csv, eval.csv, checkpoint.pt, figure.png")

    def _open(self):
        """Make the folder, and keep other processes out of it; they would write the same files."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.lock = open(self.path / ".lock", "w")  # ends with this object
        try:
            import fcntl

            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass  # Windows has no such locks
        except BlockingIOError:
            fail(f"another process is training in {self.path}: wait for it, or choose another --runs folder")
        for file in self.path.glob("[!.]*") if self.args.overwrite else ():  # not the lock
            file.unlink()

    def _resume(self, parts) -> int:
        """Go back to the last checkpoint, if there is one; the iterations done so far."""
        path, saved = self.path / "checkpoint.pt", {"iteration": 0, "step": 0, "parts": {}}
        try:
            if path.exists():
                saved = torch.load(path, weights_only=True, map_location="cpu")
                print(f"{self.path} is resumed after {saved['step']:,} steps")
            for name, state in saved["parts"].items():
                parts[name].load_state_dict(state)
        except Exception as error:  # torch.load has no common class for what a damaged file raises
            fail(f"{path} is damaged ({type(error).__name__}): start anew with --overwrite, or put a good copy there")
        for log in self.path.glob("*.csv"):  # rows that were written after it, the last one perhaps in part
            header, *rows = log.read_text().splitlines(keepends=True) or [""]
            kept = [row for row in rows if row.endswith("\n") and int(row.split(",")[0]) <= saved["step"]]
            self._replace(log.name, lambda path: path.write_text("".join([header, *kept])))
        return saved["iteration"]

    def _save(self, parts, iteration):
        """Tensors and plain numbers only. A finished run needs no replay buffer."""
        unneeded = (ReplayBuffer, Stream) if self.last else ()
        state = {name: part.state_dict() for name, part in parts.items() if not isinstance(part, unneeded)}
        saved = {"iteration": iteration, "step": self.step, "parts": state}
        self._replace("checkpoint.pt", lambda path: torch.save(saved, path))

    def _replace(self, name, write):
        beside = self.path / f".{name}.new"
        write(beside)
        os.replace(beside, self.path / name)

    def _show(self, rate):
        """One line that says how far the run is: rewritten in a terminal, one after the other elsewhere."""
        minutes, mean = (self.args.total_steps - self.step) / rate / 60, np.mean(list(self.returns.values()))
        line = f"{self.step:>11,} of {self.args.total_steps:,} steps   return {mean:8.1f}"
        line += f"   {rate:7,.0f} steps/s   {minutes:.0f} min left"
        start, end = ("\r\x1b[K", "\n" if self.last else "") if sys.stdout.isatty() else ("", "\n")
        print(start + line, end=end, flush=True)

    def log(self, agent: int, module: nn.Module, metrics: dict):
        """Append a row for this agent to log.csv. If a metric or a weight is not finite, end the program instead."""
        losses = [value for name, value in metrics.items() if name != "return"]  # of no episode at first: nan
        if not (np.all(np.isfinite(losses)) and all(each.isfinite().all() for each in module.parameters())):
            what = f"step {self.step}, agent {agent}: a metric or weight is not finite"
            fail(f"{what}; {self.path} keeps its last checkpoint", status=1)
        self.returns[agent] = metrics["return"]
        self.write("log.csv", [{"agent": agent, **metrics, "seconds": round(time.perf_counter() - self.began, 3)}])

    def write(self, name: str, rows: list[dict], step: int | None = None):
        """Append rows to one of the tables, before each row the step (that of the iteration's end if None)."""
        with open(self.path / name, "a", newline="") as file:
            writer = csv.DictWriter(file, ["step", *rows[0]], lineterminator="\n")
            if file.tell() == 0:
                writer.writeheader()
            writer.writerows({"step": step or self.step, **row} for row in rows)

    def evaluate(self, envs: list[RandomisedEnv], policies: dict):
        """Append a test of these policies {agent: policy} to eval.csv."""
        self.write("eval.csv", evaluate(envs, policies, self.args.eps_te, self.args.eval_domains))

    def snapshot(self, networks: list[nn.Module]):
        """Keep these networks as they are at this step, in policies-<step>.pt."""
        states = [network.state_dict() for network in networks]
        self._replace(f"policies-{self.step}.pt", lambda path: torch.save(states, path))


def where(table: dict[str, np.ndarray], **wanted) -> dict[str, np.ndarray]:
    """The rows of a table, by columns, that have these values; None asks for nothing."""
    for name, value in wanted.items():
        if value is not None:
            table = {column: values[table[name] == value] for column, values in table.items()}
    return table


class SavedRun:
    """A run's folder, to be read. Curves are pairs x (T,), y (T,)."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.settings = json.loads((path / "config.json").read_text())["settings"]
        except (OSError, ValueError):
            fail(f"{path} is no run's folder, or its config.json is damaged")

    def table(self, name: str) -> dict[str, np.ndarray]:
        """Columns of log.csv or eval.csv as float arrays, all of one length."""
        with open(self.path / name, newline="") as file:
            rows = list(csv.DictReader(file))
        return {column: np.array([float(row[column]) for row in rows]) for column in rows[0]}

    def training_curve(self, column: str = "return", agent: int | None = None, rows: int = 20):
        """Steps, and a column of log.csv, a mean of so many rows: of one agent, or the mean over agents."""
        log = where(self.table("log.csv"), agent=agent)
        steps = np.unique(log["step"])
        values = log[column].reshape(len(steps), -1).mean(1)
        return steps, np.array([values[max(0, end - rows) : end].mean() for end in range(1, len(steps) + 1)])

    def test_curve(self, eps: float, agent: int | None = None):
        """Steps of the evaluations, and the mean return at each over held-out domains of this level and over agents."""
        evaluation = where(self.table("eval.csv"), eps_te=eps, agent=agent)
        steps = np.unique(evaluation["step"])
        return steps, np.array([where(evaluation, step=step)["return"].mean() for step in steps])

    def test_returns(self):
        """Levels eps_te, and the mean return at each over agents and held-out domains at the end of the run."""
        levels = np.unique(self.table("eval.csv")["eps_te"])
        return levels, np.array([self.test_curve(eps)[1][-1] for eps in levels])

    def steps(self) -> list[int]:
        """The steps at which the run kept its networks."""
        return sorted(int(file.stem.removeprefix("policies-")) for file in self.path.glob("policies-*.pt"))

    def networks(self, make, step: int | None = None) -> list[nn.Module]:
        """The networks kept at this step (the last ones if None); make(state) gives one to be filled with a state."""
        try:
            name = f"policies-{max(self.steps()) if step is None else step}.pt"
            states = torch.load(self.path / name, weights_only=True, map_location="cpu")
        except Exception as error:  # whatever a missing or damaged file raises
            fail(f"{self.path} has no policies to be read, or damaged ones ({type(error).__name__})")
        networks = [make(state) for state in states]
        for network, state in zip(networks, states):
            network.load_state_dict(state)
        return networks

    def evaluations(self, last: bool) -> dict[str, dict[str, np.ndarray]]:
        """Rows of all evaluations, or of the last one, by the names of the agents; -1 is a central policy."""
        table = self.table("eval.csv")
        table = where(table, step=table["step"].max() if last else None)
        names = {agent: "central" if agent == -1 else f"agent {agent:.0f}" for agent in np.unique(table["agent"])}
        return {name: where(table, agent=agent) for agent, name in names.items()}

    def print_table(self):
        """Return by agent and eps_te at the last evaluation: mean over the held-out domains +- standard deviation."""
        agents = self.evaluations(last=True)
        levels, steps = (np.unique(next(iter(agents.values()))[name]) for name in ("eps_te", "step"))
        print(f"\nafter {steps[0]:,.0f} steps, return of the deterministic policy in held-out domains,")
        print("mean +- standard deviation over domains, by eps_te, the level of their randomisation:")
        print("eps_te " + "".join(f"{eps:>15g}" for eps in levels))
        for name, rows in agents.items():
            returns = [where(rows, eps_te=eps)["return"] for eps in levels]
            print(f"{name:7}" + "".join(f"{each.mean():>8.0f} +-{each.std():>5.0f}" for each in returns))

    def draw(self):
        """figure.png: each agent's learning curve, and its return in held-out domains by level (one level: by step)."""
        figure, (left, right) = new_figure(columns=2)
        agents = np.unique(self.table("log.csv")["agent"])
        trained = {f"agent {agent:.0f}": [self.training_curve(agent=agent)] for agent in agents}
        several = len(self.settings["eps_te"]) > 1  # of one level all evaluations say more than a single point
        x, xlabel = ("eps_te", "eps_te, randomisation level") if several else ("step", STEPS)
        tested = {name: [(rows[x], rows["return"])] for name, rows in self.evaluations(last=several).items()}
        plot_lines(left, trained, STEPS, "return", seeds=False)
        plot_lines(right, tested, xlabel, "return", seeds=False, marker="o", markersize=4)
        left.set_title("training domains, sampled actions, mean of 20 rows")
        right.set_title("held-out domains, deterministic policy")
        title = f"{self.path.name}\nright: 95 % bootstrap interval of the mean over domains"
        save_figure(figure, title, self.path / "figure.png")


def finished_runs(args, script: str) -> list[SavedRun]:
    """All below args.runs: figure.png is the last thing that a run writes."""
    return [SavedRun(file.parent) for file in sorted(Path(args.runs).glob(f"{script}-*/figure.png"))]


def find_runs(args, script: str, **changes) -> list[SavedRun]:
    """Finished runs of every seed whose folder has the name that these arguments, but for `changes`, would give it."""
    name = run_name(dataclasses.replace(args, **changes, seed="*"), script)
    found = [SavedRun(file.parent) for file in Path(args.runs).glob(f"{name}/figure.png")]
    return sorted(found, key=lambda run: run.settings["seed"])


def select_runs(args, script: str, lines: dict[str, dict]) -> dict[str, list[SavedRun]]:
    """Finished runs of each line of a figure, {label: arguments that are not those of `args`}; says what is missing."""
    found = {label: find_runs(args, script, **changes) for label, changes in lines.items()}
    missing = [label for label, runs in found.items() if not runs]
    place = f"below {args.runs}/: README.md, \"Every figure\", has the commands"
    if len(missing) == len(found):
        fail(f"no finished runs for this figure {place}")
    if missing:
        print(f"no finished runs of {'; '.join(missing)} {place}")
    return found


def runs_by_environment(args, script: str, lines: dict[str, dict]) -> dict[str, dict[str, list[SavedRun]]]:
    """`select_runs` in every environment that has at least one of these runs: {environment: {label: runs}}."""
    names = sorted({run.settings["env"] for run in finished_runs(args, script)})
    names = [env for env in names if any(find_runs(args, script, env=env, **line) for line in lines.values())]
    wanted = {f"{label}, {env}": {"env": env} | line for env in names for label, line in lines.items()}
    found = select_runs(args, script, wanted)
    return {env: {label: found[f"{label}, {env}"] for label in lines} for env in names}


# =========================================================================================================
# Plumbing: figures, moving pictures
# =========================================================================================================

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # safe for most eyes
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 3)))  # and on a grey printer
STEPS = "environment steps, all agents"


def bootstrap(values: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of values (n,)."""
    picks = np.random.default_rng(0).integers(len(values), size=(draws, len(values)))
    low, high = np.percentile(values[picks].mean(1), (2.5, 97.5))
    return float(low), float(high)


def compare(ours: dict[int, float], theirs: dict[int, float]) -> str:
    """Two methods' returns by seed: the mean difference of seeds that both have and its 95 % bootstrap interval, and
    the probability of improvement, that one of our runs is better than one of theirs (Agarwal et al. 2021)."""
    differences = np.array([value - theirs[seed] for seed, value in ours.items() if seed in theirs])
    low, high = bootstrap(differences)
    better = np.mean([(x > y) + 0.5 * (x == y) for x in ours.values() for y in theirs.values()])
    return f"{differences.mean():+.0f} [{low:+.0f}, {high:+.0f}], probability of improvement {better:.2f}"


def print_by_seed(title: str, found: dict[str, list[SavedRun]], returns_of, baseline: str):
    """What returns_of(run) -> {name: value} says of the runs of each label: mean over seeds, value of each, 95 %
    bootstrap interval of the mean, and how they compare with the runs of the label `baseline`."""
    tables = {label: {run.settings["seed"]: returns_of(run) for run in runs} for label, runs in found.items()}
    for label, table in tables.items():
        for name in next(iter(table.values()), {}):
            ours, theirs = ({seed: row[name] for seed, row in each.items()} for each in (table, tables[baseline]))
            values = np.array(list(ours.values()))
            says = f"{values.mean():.0f}, by seed {' '.join(f'{x:.0f}' for x in values)}"
            if len(values) > 1:  # one seed has no interval
                says += ", 95 % interval [{:.0f}, {:.0f}]".format(*bootstrap(values))
            if label != baseline and len(ours.keys() & theirs.keys()) > 1:
                says += f"; against {baseline} {compare(ours, theirs)}"
            print(f"{title} {label}, {name}: {says}")


def new_figure(columns: int = 1, rows: int = 1):
    """A matplotlib figure that needs no screen, and its axes as a flat list."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * columns, 4.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    return figure, list(axes.flat)


def plot_lines(axis, lines: dict[str, list], xlabel: str, ylabel: str, seeds: bool = True, **style):
    """A line for each label: the mean of all its curves, each a pair x (T,), y (T,), and the 95 % bootstrap interval.

    Where x has a value several times, in one curve or in several, the mean is over these. seeds: the legend says how
    many curves there are. A label without curves keeps its colour.
    """
    from matplotlib.ticker import EngFormatter

    axis.set(xlabel=xlabel, ylabel=ylabel)
    if "steps" in xlabel:
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    for index, (label, curves) in enumerate(lines.items()):
        if not curves:
            continue
        x, y = (np.concatenate(arrays) for arrays in zip(*curves))
        places = np.unique(x)
        groups = [y[x == place] for place in places]
        colour, line = COLOURS[index % len(COLOURS)], STYLES[index % len(STYLES)]
        label = f"{label}, {len(curves)} seed{'s' if len(curves) > 1 else ''}" if seeds else label
        axis.plot(places, [group.mean() for group in groups], color=colour, linestyle=line, label=label, **style)
        if max(map(len, groups)) > 1:
            axis.fill_between(places, *zip(*map(bootstrap, groups)), color=colour, alpha=0.2, linewidth=0)


def save_figure(figure, title: str, path: Path):
    """Put title and legends (below the panels, where they cover no data) on the figure, and write it."""
    for axis in figure.axes:
        if axis.get_legend_handles_labels()[0]:
            axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, fontsize=8)
    figure.suptitle(title, fontsize=10, wrap=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def watch(args, load_policies):
    """Every policy of the run args.watch in the first held-out domain of its eps_tr, in a window; or of the run
    args.gif, side by side, as a moving picture. load_policies(run): functions obs (obs,) -> action (act,)."""
    run, gif = SavedRun(Path(args.watch or args.gif)), not args.watch
    policies, settings = load_policies(run), argparse.Namespace(**run.settings)
    if sys.platform == "linux" and gif:
        os.environ.setdefault("MUJOCO_GL", "egl")  # needs no screen
    elif sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        fail("no screen for a window here: --gif writes a moving picture instead")  # GLFW would abort the process
    options = {"render_mode": "rgb_array", "width": 160, "height": 160} if gif else {"render_mode": "human"}
    env = make_envs(settings, 1, **options)[0]
    renderer = env.unwrapped.mujoco_renderer
    follow = {"type": int(mujoco.mjtCamera.mjCAMERA_TRACKING), "trackbodyid": int(env.model.jnt_bodyid[0])}
    renderer.default_cam_config = (renderer.default_cam_config or {}) | follow  # or the robot leaves the picture
    renderer.camera_id = None  # which would set the camera free again
    domain = held_out_domains(settings.eps_tr, 1, env.position_draws)[0]
    print(domain)
    movies = [[] for _ in policies]
    for policy, movie in zip(policies, movies):
        try:
            total = episode_return(env, policy, domain, 0, movie if gif else None)  # a window draws by itself
        except Exception as error:  # each backend of OpenGL fails in a way of its own
            sys.unraisablehook = lambda _: None  # what is left of a viewer would complain as it goes
            fail(f"cannot draw: no OpenGL to be had here ({' '.join(str(error).split())[:80]})")
        print(f"{env.data.time:.1f} s, return {total:.0f}")
    env.close()
    if gif:
        save_gif(movies, run.path / "policy.gif")


def save_gif(movies: list[list[np.ndarray]], path: Path):
    """Write movies side by side, 20 frames for each second; one that ends early keeps its last frame."""
    from matplotlib.animation import ArtistAnimation, PillowWriter
    from matplotlib.figure import Figure

    length = max(map(len, movies))
    frames = [np.concatenate([movie[min(i, len(movie) - 1)] for movie in movies], axis=1) for i in range(length)]
    figure = Figure(figsize=(frames[0].shape[1] / 100, frames[0].shape[0] / 100))
    ArtistAnimation(figure, [[figure.figimage(frame)] for frame in frames]).save(path, PillowWriter(fps=20), dpi=100)
    print(f"moving picture: {path}")


# =========================================================================================================
# Learning curves, and main
# =========================================================================================================


def draw_curves(args):
    """Learning curves of all finished runs with these arguments, a panel for each environment."""
    found = runs_by_environment(args, "baselines", {args.algo: {}})
    figure, axes = new_figure(columns=len(found))
    for axis, (env, runs) in zip(axes, found.items()):
        lines = {args.algo: [run.training_curve() for run in runs[args.algo]]}
        plot_lines(axis, lines, STEPS, "training return, mean of 20 rows")
        axis.set_title(env)
    return figure, f"{args.algo}; mean over seeds, 95 % bootstrap interval"


def main():
    algorithms = {"ppo": (PPOArgs, ppo), "ddpg": (DDPGArgs, ddpg), "sac": (SACArgs, sac)}
    first = Parser(add_help=False)
    first.add_argument("--algo", default="ppo", choices=algorithms)
    Args, train = algorithms[first.parse_known_args()[0].algo]
    launch(Args, train, {"curves": draw_curves})


if __name__ == "__main__":
    main()
