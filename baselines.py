# SPDX-FileCopyrightText: 2026 the authors of this repository
# SPDX-License-Identifier: MIT
"""Single-agent baselines, PPO, DDPG and SAC, and behind them the plumbing that every script here shares.

    python baselines.py --algo ppo --env Hopper-v4                     # a million steps, minutes on a laptop
    python baselines.py --algo ppo --env Hopper-v4 --seeds 0 1 2 --jobs 2
    python baselines.py --algo ddpg --env HalfCheetah-v4 --total-steps 3e5
    python baselines.py --algo sac --env Hopper-v4 --total-steps 2e5
    python baselines.py --algo ppo --env Hopper-v4 --figure curves     # learning curves of the finished runs

Each algorithm is written to be read on its own: its arguments, networks, losses, update, loop. What is not the
algorithm (the gradient step, rollouts, the replay buffer, the command line, the run's folder, figures) stands behind
them. A reader can take it on trust: each piece says in its first line what it does.

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
(Plappert et al., "Parameter space noise for exploration", 2018).

    actor, critic       | mu(s), Q(s, a)   | (N, act), (N,)
    target_actor, ...   | mu', Q'          |
    targets             | y                | (N,)

SAC: Haarnoja et al., "Soft actor-critic algorithms and applications" (2018); equation numbers refer to it.

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
* Torch's generator draws the initial weights; numpy generators keyed by seed, agent, counter (iteration, episode, ...)
  and use draw everything else. So a run resumes bit for bit without any saved generator, and the number of threads
  cannot change it.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import functools
import inspect
import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import nn

from randomised_envs import HELD_OUT, RANGES, Domain, Parser, RandomisedEnv, agent_name, bootstrap, episode_return
from randomised_envs import evaluate, held_out_domains, make_env, print_table, save_gif


@dataclasses.dataclass
class RunArgs:
    """What every script has; each adds its own. The comments are the help of the command line."""

    # environment
    xml_file: str = ""  # an MJCF file of your own in place of the environment's (v5 environments)
    init: Literal["root", "joints"] = "root"  # initial position: x, which no walker notices, or each joint's angle
    ranges: tuple[float, float, float, float, float] = RANGES  # half widths at level 1 of wind (N), gravity, ...

    # evaluation
    eps_te: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # randomisation levels of the test domains
    eval_domains: int = 10  # held-out domains for each level, one episode in each

    # run
    seed: int = 0  # seed of all random numbers
    seeds: tuple[int, ...] = ()  # several seeds, each in a process of its own
    jobs: int = 2  # seeds to run in parallel
    threads: int = 0  # threads of one run; 0: one for each core
    device: Literal["cpu", "cuda"] = "cpu"  # where the networks are
    compile: bool = True  # compile the gradient steps where a C++ compiler is found
    checkpoint_every: int = 10  # iterations (rows of the log) between checkpoints
    runs: str = "runs"  # folder of all runs
    overwrite: bool = False  # start anew instead of resuming

    # instead of training
    figure: str = ""  # draw this figure from the finished runs with these arguments
    watch: str = ""  # a run's folder: show its policies in a window
    gif: tuple[str, ...] = ()  # run folders: save a GIF, a row per run, at --eps-te if one level, else at its eps_tr

    def left_open(self) -> dict:
        """The values of options whose default is None: they depend on other options."""
        return {}


@dataclasses.dataclass
class SharedArgs(RunArgs):
    # algorithm
    algo: Literal["ppo", "ddpg", "sac"] = "ppo"  # each has options of its own: see --algo sac --help
    env: str = "Hopper-v4"  # a Gymnasium MuJoCo environment
    eps_tr: float = 0.0  # randomisation level in training, in [0, 1]; a new domain for each iteration (PPO) or episode
    total_steps: int = 1_000_000  # environment steps; another number is another run
    gamma: float = 0.99  # discount factor
    evaluations: int = 4  # evenly spaced over training, the last one at its end


# =========================================================================================================
# PPO
# =========================================================================================================


@dataclasses.dataclass
class PPOArgs(SharedArgs):
    # PPO
    learning_rate: float = 3e-4  # learning rate of Adam
    steps_per_iteration: int = 2048  # environment steps between updates
    epochs: int = 10  # passes over an iteration's data
    minibatches: int = 32  # for each epoch
    initial_std: float = 1.0  # standard deviation of the actions at the start, in each dimension
    clip: float = 0.2  # clip range of the probability ratio, Eq. (7)
    gae_lambda: float = 0.95  # lambda of the advantage estimate, Eq. (11)
    max_grad_norm: float = 0.5  # clip each network's gradient to this norm


# ---------------------------------------------------------------------------------------------------------
# PPO: networks
# ---------------------------------------------------------------------------------------------------------


def tanh_network(inputs: int, outputs: int, gain: float, hidden: int = 2) -> nn.Sequential:
    """Hidden layers of 64 tanh, with orthogonal weights and zero biases; gain: of the last layer's weights."""
    sizes, gains, layers = [inputs, *hidden * [64], outputs], [*hidden * [math.sqrt(2)], gain], []
    for size, next_size, scale in zip(sizes, sizes[1:], gains):
        layers += [nn.Linear(size, next_size), nn.Tanh()]
        nn.init.orthogonal_(layers[-2].weight, scale)
        nn.init.zeros_(layers[-2].bias)
    return nn.Sequential(*layers[:-1])


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


def ppo_losses(actor, critic, batch, args):
    """Losses of actor and critic on a minibatch, and PPOAgent.METRICS."""
    log_ratio = gaussian_log_prob(*actor(batch.obs), batch.actions) - batch.log_probs
    actor_loss = ppo_loss(log_ratio, normalise_advantages(batch.advantages), args.clip)
    critic_loss = value_loss(critic(batch.obs), batch.targets)
    approx_kl = (log_ratio.exp() - 1 - log_ratio).mean()
    clip_fraction = ((log_ratio.exp() - 1).abs() > args.clip).float().mean()
    metrics = torch.stack([actor_loss, critic_loss, actor.log_std.mean(), approx_kl, clip_fraction])
    return (actor_loss, critic_loss), metrics


# ---------------------------------------------------------------------------------------------------------
# PPO: batch, update and loop
# ---------------------------------------------------------------------------------------------------------


class PPOAgent(nn.Module):
    """Actor, critic, their optimiser, and the running scale of this agent's rewards."""

    # Eq. (7), negated; the critic's loss, in squared units of scaled reward; log std, mean over action dimensions;
    # KL(old || new) of this iteration's steps, estimated from the actions; share of ratios outside [1 - clip, 1 + clip]
    METRICS = "surrogate", "value_loss", "log_std", "approx_kl", "clip_fraction"

    def __init__(self, actor: nn.Module, critic: nn.Module, args):
        super().__init__()
        self.actor, self.critic, self.reward_scale = actor, critic, RunningNorm(())
        self.optimiser = Optimiser([actor, critic], args.learning_rate, args, 1e-5, args.max_grad_norm)

    def update(self, minibatch: Batch, args):
        """One step of both networks; the metrics."""
        return self.optimiser.minimise(ppo_losses, self.actor, self.critic, minibatch, args)


@torch.no_grad()
def compute_advantages(agent, rollouts, args):                                                          # Eq. (11)
    """Advantages and value targets by the agent's present critic, two tensors (N,), of its rollouts in their order."""
    scale, discounts, estimates = agent.reward_scale.std().item(), (args.gamma, args.gae_lambda), []
    for data in rollouts:
        both = [torch.as_tensor(obs, device=args.device) for obs in (data.obs, data.next_obs[data.ends])]
        values, last_values = (agent.critic(obs).double().cpu().numpy() for obs in both)
        next_values = np.roll(values, -1)  # the next observation is the next row's, which has been valued already,
        next_values[data.ends] = last_values  # except where an episode ends
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


def normalise_advantages(advantages):
    """Mean 0 and standard deviation 1 over the minibatch (N,)."""
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)


def shuffle(batch: Batch, minibatches: int, rng: np.random.Generator) -> list[Batch]:
    """The batch in random order, cut into equal minibatches."""
    order = torch.as_tensor(rng.permutation(len(batch.obs)), device=batch.obs.device)
    return [Batch(*columns) for columns in zip(*(column[order].chunk(minibatches) for column in batch))]


def ppo(args):
    """Proximal policy optimisation: act, estimate advantages, take small steps on the clipped surrogate, repeat."""
    run = Run(args, "baselines")
    args, (env,) = run.args, run.envs
    obs_size, action_size = env.observation_space.shape[0], env.action_space.shape[0]
    agent = PPOAgent(GaussianActor(obs_size, action_size, args.initial_std), ValueCritic(obs_size), args)
    steps = steps_per_agent(args, 1)

    for iteration in run.iterations({"agent0": agent}, steps):
        rng = generator(args.seed, 0, iteration)
        domain = env.sample_domain(args.eps_tr, rng)
        std = agent.actor.log_std.exp().detach().cpu().numpy()
        data = rollout(env, numpy_policy(agent.actor), std, domain, steps, rng)
        batch = make_batch(agent, [data], args)

        metrics = torch.zeros(len(agent.METRICS), device=args.device)
        epochs = args.epochs if iteration > 0 else 0  # the first one only gathers the normaliser's statistics
        for _ in range(epochs):
            for minibatch in shuffle(batch, args.minibatches, rng):
                metrics += agent.update(minibatch, args)
        for network in (agent.actor, agent.critic):  # only now: the data was used with the old statistics
            network.norm.update(data.obs)

        row = {"return": data.returns.mean(), "episodes": len(data.returns)}
        row["explained_variance"] = batch.explained_variance()
        run.log(0, agent, row, metrics / (args.epochs * args.minibatches))  # means; 0 in the first iteration
        if run.evaluation_due:
            run.evaluate({0: numpy_policy(agent.actor)}, [agent.actor])


# =========================================================================================================
# DDPG
# =========================================================================================================


@dataclasses.dataclass
class DDPGArgs(SharedArgs):
    # DDPG
    actor_learning_rate: float = 1e-4  # learning rate of Adam
    critic_learning_rate: float = 1e-3  # learning rate of Adam
    critic_decay: float = 1e-2  # L2 regularisation of the critic's hidden weights
    tau: float = 0.01  # target update rate
    batch_size: int = 64  # transitions for an update
    buffer_size: int = 1_000_000  # transitions that are remembered
    updates: int = 50  # for every 100 steps
    warm_up: int = 10_000  # steps with random actions at the beginning
    noise: float = 0.2  # target RMS change of the action under noise on the weights, as a fraction of its limit


# ---------------------------------------------------------------------------------------------------------
# DDPG: networks
# ---------------------------------------------------------------------------------------------------------


def relu_network(inputs: int, outputs: int) -> nn.Sequential:
    """Three hidden layers of 64 ReLU, each normalised. The last weights are small: initial outputs are near 0.

    Ours: layer normalisation, as in OpenAI's baselines. Without it one seed in four never learned to run, whichever
    noise it had: the L2 regularisation shrank the critic's hidden weights for good. With it all that were tried did.
    """
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
    """Mean squared error, and the L2 penalty: decay / 2 times the sum of squared weights of the hidden layers."""
    values = critic(batch.obs, batch.actions)
    assert values.shape == targets.shape
    weights = [layer.weight for layer in critic.net[:-1] if isinstance(layer, nn.Linear)]
    return ((values - targets) ** 2).mean() + decay * sum((weight**2).sum() for weight in weights) / 2


def ddpg_actor_loss(actor, critic, batch):                                                               # Eq. (6)
    """Minus what the critic says of the actor's own actions."""
    return -critic(batch.obs, actor(batch.obs)).mean()


def ddpg_losses(agent, batch, args):
    """Losses of actor and critic on a minibatch, and DDPGAgent.METRICS."""
    targets = ddpg_targets(agent.target_actor, agent.target_critic, batch, args.gamma)
    critic_loss = ddpg_critic_loss(agent.critic, batch, targets, args.critic_decay)
    actor_loss = ddpg_actor_loss(agent.actor, agent.critic, batch)
    return (actor_loss, critic_loss), torch.stack([critic_loss, -actor_loss])


# ---------------------------------------------------------------------------------------------------------
# DDPG: update and loop
# ---------------------------------------------------------------------------------------------------------


class DDPGAgent(nn.Module):
    """Actor, critic, their target networks, one normaliser for all four, their optimiser, and the way to explore."""

    METRICS = "critic_loss", "value"  # Eq. (4) and the L2 penalty; mean of Q(s, mu(s))

    def __init__(self, actor: nn.Module, critic: nn.Module, args):
        super().__init__()
        self.actor, self.critic = actor, critic
        self.target_actor, self.target_critic, self.noisy_actor = map(copy.deepcopy, (actor, critic, actor))
        for network in (critic, self.target_actor, self.target_critic, self.noisy_actor):
            network.norm = actor.norm
        self.register_buffer("sigma", torch.tensor(args.noise, dtype=torch.float64))  # of the noise on weights
        rates, targets = [args.actor_learning_rate, args.critic_learning_rate], [self.target_actor, self.target_critic]
        self.optimiser = Optimiser([actor, critic], rates, args, targets=targets, tau=args.tau)
        self.to(args.device)

    def update(self, minibatch: Transitions, args):
        """One step of both networks, and of their targets after them; the metrics."""
        rewards, terminated = minibatch.rewards.contiguous(), minibatch.terminated.contiguous()  # sums in a fixed order
        minibatch = minibatch._replace(rewards=rewards, terminated=terminated)
        return self.optimiser.minimise(ddpg_losses, self, minibatch, args)

    @torch.no_grad()
    def exploring_policy(self, step: int, stream: Stream, rng: np.random.Generator, args):
        """How to act from this step of training on: a function obs (obs,) -> action (act,), in numpy.

        At first at random (Ours: the paper begins with the policy). Then with noise on the weights of the linear layers
        (Plappert et al. 2018), drawn anew in the first cycle after an episode has ended: an actor that is perturbed
        as a whole tries another gait, where noise on each action by itself only trembles. Also moves sigma towards the
        value at which the actions of the latest transitions change by args.noise.
        """
        scale = self.actor.action_scale.cpu().numpy()
        if step < args.warm_up:
            return lambda obs: rng.uniform(-scale, scale).astype(np.float32)
        rng, obs = generator(*stream.key, stream.episode, "weights"), stream.buffer.latest(args.batch_size).obs
        for layer, noisy_layer in zip(self.actor.net, self.noisy_actor.net):
            for weight, noisy in zip(layer.parameters(), noisy_layer.parameters()):
                draw = torch.as_tensor(rng.standard_normal(weight.shape, dtype=np.float32), device=weight.device)
                noisy.copy_(weight + self.sigma.item() * draw * isinstance(layer, nn.Linear))
        change = (self.noisy_actor(obs) - self.actor(obs)) / self.actor.action_scale
        self.sigma *= 1.01 if change.square().mean().sqrt() < args.noise else 1 / 1.01
        return numpy_policy(self.noisy_actor)


CYCLE, CYCLES = 100, 20  # DDPG acts for 100 steps, then learns; a row of the log for every 20 times


def ddpg(args):
    """Deep deterministic policy gradient: act with noise, remember, climb the critic's slope, repeat."""
    run = Run(dataclasses.replace(args, algo="ddpg"), "baselines")
    args, stream = run.args, Stream(run.envs[0], run.args, 0)
    obs_size, scale = len(stream.obs), stream.action_scale
    agent = DDPGAgent(DeterministicActor(obs_size, scale), ActionCritic(obs_size, len(scale)), args)

    for iteration in run.iterations({"agent0": agent, "stream": stream}, CYCLE * CYCLES):
        metrics, updates, returns = torch.zeros(len(agent.METRICS), device=args.device), 0, []
        for cycle in range(CYCLES * iteration, CYCLES * (iteration + 1)):
            rng = generator(args.seed, 0, cycle)
            returns += stream.collect(agent.exploring_policy(cycle * CYCLE, stream, rng, args), CYCLE)
            agent.actor.norm.update(stream.buffer.latest(CYCLE).obs)
            if cycle * CYCLE < args.warm_up:
                continue  # to learn much from random actions alone makes the critic expect too much of others
            for minibatch in stream.buffer.sample(args.updates, args.batch_size, rng):
                metrics += agent.update(minibatch, args)
            updates += args.updates
        # The return is that of the finished episodes; if there is none, of the last one. Metrics are means of updates.
        row = {"return": np.mean(returns or [stream.last_return]), "episodes": len(returns)}
        run.log(0, agent, row, metrics / max(updates, 1))
        if run.evaluation_due:
            run.evaluate({0: numpy_policy(agent.actor)}, [agent.actor])


# =========================================================================================================
# SAC
# =========================================================================================================


@dataclasses.dataclass
class SACArgs(SharedArgs):
    # SAC
    learning_rate: float = 3e-4  # learning rate of Adam
    tau: float = 0.005  # target update rate
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
        return scale * np.tanh(mean + np.exp(np.clip(log_std, -20, 2)) * noise)

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


def sac_critic_half(agent, batch, noise, args):
    """The loss of the twin critic. noise: (N, act) standard normal."""
    alpha = agent.temperature.log_alpha.detach().exp()
    targets = sac_targets(agent.actor, agent.target_critic, alpha, batch, noise, args.gamma)
    return sac_critic_loss(agent.critic, batch, targets)


def sac_actor_half(agent, obs, noise):
    """Losses of actor and temperature, and SACAgent.METRICS but for the first. noise: (N, act) standard normal."""
    log_alpha = agent.temperature.log_alpha
    alpha = log_alpha.detach().exp()
    loss, log_probs = sac_actor_loss(agent.actor, agent.critic, alpha, obs, noise)
    losses = loss, temperature_loss(log_alpha, log_probs, -float(noise.shape[1]))
    return losses, torch.stack([loss, -log_probs.mean(), alpha[0]])


# ---------------------------------------------------------------------------------------------------------
# SAC: update and loop
# ---------------------------------------------------------------------------------------------------------


class SACAgent(nn.Module):
    """Actor, twin critic, its target network, the temperature, and an optimiser for each half of an update."""

    METRICS = "critic_loss", "actor_loss", "entropy", "alpha"  # entropy: of the squashed policy, in nats

    def __init__(self, actor: nn.Module, critic: nn.Module, args):
        super().__init__()
        self.actor, self.critic, self.target_critic = actor, critic, copy.deepcopy(critic)
        self.temperature = nn.ParameterDict({"log_alpha": torch.zeros(1)})
        targets = {"targets": [self.target_critic], "tau": args.tau}
        self.critic_optimiser = Optimiser([critic], args.learning_rate, args, **targets)
        self.actor_optimiser = Optimiser([actor, self.temperature], args.learning_rate, args)

    def update(self, minibatch: Transitions, noise: torch.Tensor, args, pool: ThreadPoolExecutor):
        """One step of everything that learns, and of the target critic after it; the metrics.

        noise: (2, N, act) standard normal. Ours: both halves take their gradients at the old parameters (in other
        implementations the actor's goes through the new critic). So a thread of the pool can do one half: faster
        than two threads that share each matrix product, and bit-identical to a single thread.
        """
        critic_half = functools.partial(self.critic_optimiser.compute, sac_critic_half, self, minibatch, noise[0], args)
        actor_half = functools.partial(self.actor_optimiser.compute, sac_actor_half, self, minibatch.obs, noise[1])
        waiting = pool.submit(actor_half) if args.threads > 1 and args.device == "cpu" else None
        new_critic, critic_loss = critic_half()
        new_actor, metrics = waiting.result() if waiting else actor_half()
        self.critic_optimiser.assign(new_critic)
        self.actor_optimiser.assign(new_actor)
        return torch.cat([critic_loss[None], metrics])


def sac_batch(buffer: ReplayBuffer, args, rng: np.random.Generator) -> tuple[Transitions, torch.Tensor]:
    """A minibatch and the noise that an update needs."""
    (minibatch,) = buffer.sample(1, args.batch_size, rng)
    noise = rng.standard_normal((2, *minibatch.actions.shape), dtype=np.float32)
    return minibatch, torch.as_tensor(noise, device=args.device)


ROW = 1000  # steps of SAC for each row of the log


def sac(args):
    """Soft actor-critic: a step in the environment, a step of learning, repeat."""
    run = Run(dataclasses.replace(args, algo="sac"), "baselines")
    args, stream = run.args, Stream(run.envs[0], run.args, 0)
    obs_size, scale = len(stream.obs), stream.action_scale
    agent = SACAgent(SquashedActor(obs_size, scale), TwinCritic(obs_size, len(scale)), args)

    for iteration in run.iterations({"agent0": agent, "stream": stream}, ROW):
        acting, rng = generator(args.seed, 0, iteration, "acting"), generator(args.seed, 0, iteration)
        metrics, updates, returns = torch.zeros(len(agent.METRICS), device=args.device), 0, []
        for step in range(ROW * iteration, ROW * (iteration + 1)):
            if step < args.warm_up:
                action = acting.uniform(-scale, scale).astype(np.float32)
            else:
                noise = acting.standard_normal(len(scale), dtype=np.float32)
                action = squashed_policy(agent.actor)(stream.obs, noise)
            returns += stream.step(action)
            if step >= args.warm_up:
                metrics += agent.update(*sac_batch(stream.buffer, args, rng), args, run.pool)
                updates += 1
        row = {"return": np.mean(returns or [stream.last_return]), "episodes": len(returns)}
        run.log(0, agent, row, metrics / max(updates, 1))
        if run.evaluation_due:
            run.evaluate({0: squashed_policy(agent.actor)}, [agent.actor])


# =========================================================================================================
# Plumbing: random numbers, torch, the gradient step
# =========================================================================================================

# The last number of a generator's key. Where two uses have the same one, no script has both.
USES = {"learning": 0, "acting": 1, "variance": 1, "episode": 2, "weights": 3, "phase": 3, "turn": 5, "teacher": 6}


def generator(seed: int, agent: int, count: int, use: str = "learning") -> np.random.Generator:
    """Random numbers of one agent for one use. count: of iterations, cycles, episodes or phases."""
    return np.random.default_rng([seed, agent, count, USES[use]])


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

    def update(self, x):
        """Take the rows of x (N, *shape) into the statistics (parallel variance, Chan et al. 1979)."""
        x = torch.as_tensor(x, dtype=torch.float64, device=self.mean.device)
        count, var, delta = len(x), x.var(0, correction=0), x.mean(0) - self.mean
        total = self.count + count
        self.var.copy_((self.var * self.count + var * count + delta**2 * self.count * count / total) / total)
        self.mean.add_(delta * count / total)
        self.count.copy_(total)


def cores() -> int:
    """The cores that this process may use: under taskset or Slurm fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_up_torch(args):
    """Seed torch and check the device. Where nothing can be compiled, say so, and set args.compile to False."""
    set_up_thread()
    torch.manual_seed(args.seed)
    if args.device == "cuda" and not torch.cuda.is_available():
        fail("no CUDA device can be used here")
    torch.compiler.set_stance("default" if args.compile else "force_eager")
    try:
        torch.compile(torch.sin)(torch.zeros(1, device=args.device))
    except Exception as error:  # no compiler, no Python headers, no Triton: each raises a class of its own
        print(f"note: running without torch.compile, which failed here ({type(error).__name__}); about half the speed")
        torch.compiler.set_stance("force_eager")
        args.compile = False


def set_up_thread():
    """What torch keeps for each thread: one core for a product (small ones gain nothing from more), its compiler."""
    from torch import _dynamo, _inductor

    torch.set_num_threads(1)
    _dynamo.config.trace_autograd_ops = True  # autograd.grad inside a full graph
    _dynamo.config.recompile_limit = _dynamo.config.accumulated_recompile_limit = 10**6  # a graph for each setting
    _inductor.config.compile_threads = 1  # no pool of processes for two small graphs
    _inductor.config.cpp_wrapper = not torch.cuda.is_available()  # a fifth less time for each call


class Optimiser(nn.Module):
    """Adam (Kingma and Ba 2015) on some networks, each of which has a loss of its own.

    learning_rate: of all networks, or a list with that of each. max_grad_norm: the gradient of each network is scaled
    down to this norm. targets: networks that after each step move by tau towards those in the same places of
    `networks`. All of them move to args.device.
    """

    LOCK, announced = threading.Lock(), False  # two threads that compile at the same time disturb each other

    def __init__(self, networks, learning_rate, args, eps=1e-8, max_grad_norm=math.inf, targets=(), tau=0.0):
        super().__init__()
        self.networks, self.targets = list(networks), list(targets)  # in lists, as they are saved by their owner
        self.rates = learning_rate if isinstance(learning_rate, list) else [learning_rate] * len(self.networks)
        self.eps, self.max_grad_norm, self.tau, self.compile, self.called = eps, max_grad_norm, tau, args.compile, set()
        sizes = [sum(each.numel() for each in network.parameters()) for network in self.networks]
        self.means, self.squares = (nn.ParameterList(torch.zeros(size) for size in sizes) for _ in range(2))
        self.register_buffer("steps", torch.zeros(()))
        for module in (*self.networks, *self.targets, self.requires_grad_(False)):
            module.to(args.device)

    def minimise(self, losses, *arguments):
        """One step on losses(*arguments), in one graph; the metrics (M,).

        losses: a pure function that returns a loss, or losses (one for each network, in a tuple) and metrics (M,).
        """
        return self._call(gradient_step, losses, *arguments)

    def compute(self, losses, *arguments):
        """The first half of minimise: new values of all parameters, which do not change yet, and the metrics."""
        return self._call(new_values, losses, *arguments)

    @torch.no_grad()
    def assign(self, values):
        """The second half of minimise."""
        torch._foreach_copy_(self.all_parameters(), values)

    def all_parameters(self) -> list[torch.Tensor]:
        """Those of the networks, then those of the targets."""
        return [each for network in (*self.networks, *self.targets) for each in network.parameters()]

    @torch.no_grad()
    def move_targets(self):
        """A step of the target networks towards the others, as it follows each gradient step."""
        for target, network in zip(self.targets, self.networks):
            for old, new in zip(target.parameters(), network.parameters()):
                old.lerp_(new, self.tau)

    def _call(self, function, *arguments):
        with contextlib.nullcontext() if function in self.called else self.LOCK:
            if self.compile and not Optimiser.announced:
                Optimiser.announced = True
                print("\r\x1b[K" * sys.stdout.isatty() + "compiling the gradient steps: half a minute", flush=True)
            self.called.add(function)
            return compiled(function)(self, *arguments)


compiled = functools.cache(functools.partial(torch.compile, fullgraph=True, dynamic=False))


def new_values(optimiser, losses, *arguments):
    """See Optimiser.compute. Adam is Algorithm 1 of Kingma and Ba (torch's, outside of a graph, is far slower)."""
    result, new = losses(*arguments), []
    values, metrics = result if isinstance(result, tuple) else (result, result)
    values, moments = values if isinstance(values, tuple) else (values,), (optimiser.means, optimiser.squares)
    optimiser.steps += 1
    steps = optimiser.steps if torch.compiler.is_compiling() else optimiser.steps.item()  # in double precision
    bias1, bias2 = 1 - 0.9**steps, 1 - 0.999**steps
    for network, value, mean, square, rate in zip(optimiser.networks, values, *moments, optimiser.rates):
        parameters = tuple(network.parameters())
        gradient = torch.cat([each.flatten() for each in torch.autograd.grad(value, parameters)])
        if optimiser.max_grad_norm < math.inf:
            gradient = gradient * (optimiser.max_grad_norm / (gradient.norm() + 1e-6)).clamp(max=1.0)
        mean.lerp_(gradient, 0.1)
        square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        sizes, scale = [each.numel() for each in parameters], square.sqrt() / bias2**0.5 + optimiser.eps
        for old, m, v in zip(parameters, mean.split(sizes), scale.split(sizes)):
            new.append(old.detach().clone().addcdiv_(m.view_as(old), v.view_as(old), value=-rate / bias1))
    targets = [each for target in optimiser.targets for each in target.parameters()]
    return [*new, *(old.lerp(value, optimiser.tau) for old, value in zip(targets, new))], metrics.detach()


def gradient_step(optimiser, losses, *arguments):
    """See Optimiser.minimise."""
    values, metrics = new_values(optimiser, losses, *arguments)
    with torch.no_grad():
        for old, value in zip(optimiser.all_parameters(), values):
            old.copy_(value)
    return metrics


# =========================================================================================================
# Plumbing: rollouts (numpy and threads, no torch)
# =========================================================================================================


def layer_norm(weight, bias, x):
    """nn.LayerNorm of a vector."""
    size, x = np.float32(len(x)), x - x.sum() / np.float32(len(x))
    return x * (weight / np.sqrt(x.dot(x) / size + np.float32(1e-5))) + bias  # torch's default epsilon


RELU = functools.partial(np.maximum, np.float32(0))
# Functions of a layer's parameters, w and b, if it has any, and x.
NUMPY_LAYERS = {nn.Linear: lambda w, b, x: w.dot(x) + b, nn.LayerNorm: layer_norm, nn.Tanh: np.tanh, nn.ReLU: RELU}


def numpy_network(net: nn.Sequential, frozen: bool = True):
    """Layers as a function of one vector (inputs,) -> (outputs,) float32, in numpy.

    For a single vector numpy takes 3 us where torch takes 18. frozen: a copy, which does not change while it is used.
    """
    layers = []
    for module in net:
        weights = [each.detach().cpu().numpy() for each in module.parameters()]
        layers.append(functools.partial(NUMPY_LAYERS[type(module)], *(map(np.copy, weights) if frozen else weights)))
    return lambda x: functools.reduce(lambda y, layer: layer(y), layers, x)


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
    returns: np.ndarray  # (E,) undiscounted returns of finished episodes; if no episode finished, the unfinished one's


def rollout(env: RandomisedEnv, policy, std: np.ndarray, domain: Domain, steps: int, rng) -> Rollout:
    """Act for `steps` steps in `domain` with actions policy(obs) + std * noise, from a fresh reset."""
    low, high, options = env.action_space.low, env.action_space.high, {"domain": domain}
    noise = std * rng.standard_normal((steps, len(low)), dtype=np.float32)
    rows, returns, total = [], [], 0.0
    obs, _ = env.reset(seed=int(rng.integers(2**31)), options=options)
    for t in range(steps):
        action = noise[t] + policy(obs)
        next_obs, reward, terminated, truncated, _ = env.step(np.minimum(np.maximum(action, low), high))
        over, total = terminated or truncated, total + reward
        rows.append((np.float32(obs), action, reward, np.float32(next_obs), terminated, over or t == steps - 1))
        obs = next_obs
        if over:
            returns.append(total)
            total, (obs, _) = 0.0, env.reset(options=options)
    return Rollout(*map(np.array, zip(*rows)), np.array(returns or [total]))


def discounted_sums(rewards: np.ndarray, ends: np.ndarray, gamma: float) -> np.ndarray:
    """At each step the discounted sum of the episode's rewards so far (T,); its deviation is the scale of rewards."""
    sums, running = np.empty(len(rewards)), 0.0
    for t, (reward, end) in enumerate(zip(rewards, ends)):
        sums[t] = gamma * running + reward
        running = 0.0 if end else sums[t]
    return sums


def gae(rewards, values, next_values, terminated, ends, gamma: float, gae_lambda: float) -> np.ndarray:
    """Generalised advantage estimates (Schulman et al. 2016, eq. 16), shape (T,) like all arguments.

    At an episode boundary (`ends`) the sum stops. Where the episode was terminated, the future is worth nothing; where
    it was truncated, by a time limit or the end of the batch, it is worth next_values.
    """
    deltas = rewards + gamma * next_values * ~terminated - values
    advantages, running = [], 0.0
    for delta, factor in zip(deltas[::-1].tolist(), (gamma * gae_lambda * ~ends)[::-1].tolist()):
        running = delta + factor * running  # lists: four times faster than arrays
        advantages.append(running)
    return np.array(advantages[::-1])


def make_envs(args, number: int, **kwargs) -> list[RandomisedEnv]:
    """`number` environments as `args` says (0: one for each core). What is wrong ends the program in one line."""
    kwargs |= {"ranges": args.ranges} | ({"xml_file": os.path.abspath(args.xml_file)} if args.xml_file else {})
    try:
        return [make_env(args.env, args.eps_tr, args.init, **kwargs) for _ in range(number or cores())]
    except ValueError as error:
        fail(str(error))


def steps_per_agent(args, agents: int) -> int:
    """PPO's steps of each agent in an iteration, rounded down to whole minibatches; says so if any are dropped."""
    minibatch = args.steps_per_iteration // agents // args.minibatches
    if minibatch < 2:
        fail("a minibatch needs at least two steps: fewer --minibatches, or more --steps-per-iteration")
    steps = minibatch * args.minibatches
    if steps * agents != args.steps_per_iteration:
        print(f"note: {steps} steps for each agent in an iteration, {steps * agents} in all, for equal minibatches")
    return steps


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
    """The latest `size` transitions, in one array of float32."""

    def __init__(self, obs_size: int, action_size: int, size: int, device: str):
        shapes = (obs_size,), (action_size,), (), (obs_size,), ()
        columns = [(name, np.float32, shape) for name, shape in zip(Transitions._fields, shapes)]
        self.rows, self.count, self.device = np.zeros(size, columns), 0, device  # count: of all that were ever added

    def __len__(self):
        return min(self.count, len(self.rows))

    def add(self, *transition):
        """Append a step: obs, action, reward, next_obs, terminated."""
        self.rows[self.count % len(self.rows)] = transition
        self.count += 1

    def latest(self, number: int) -> Transitions:
        """The last `number` steps, or as many as there are, oldest first."""
        return self.at(np.arange(min(number, len(self)))[::-1])

    def sample(self, number: int, size: int, rng: np.random.Generator, among: int | None = None) -> list[Transitions]:
        """`number` minibatches of `size` steps, each drawn uniformly from the latest `among`, or from all."""
        return [self.at(ages) for ages in rng.integers(min(len(self), among or len(self)), size=(number, size))]

    def at(self, ages: np.ndarray) -> Transitions:
        """The steps that were added so long ago (N,); 0 is the newest."""
        rows = self.rows.take((self.count - 1 - ages) % len(self.rows))
        return Transitions(*(torch.as_tensor(rows[name], device=self.device) for name in Transitions._fields))

    def state_dict(self):
        return {"rows": torch.as_tensor(self.rows[: len(self)].view(np.float32)), "count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]
        self.rows[: len(self)] = state["rows"].numpy().view(self.rows.dtype)


class Stream:
    """One agent's episodes, one after the other, a few steps at a time, into a replay buffer.

    An episode is determined by its number (its start and domain) and its actions. So to resume, the present one is
    played again from its beginning. (MuJoCo's state would not do: some environments reward what is no part of it.)
    """

    def __init__(self, env: RandomisedEnv, args, agent: int):
        self.env, self.key, self.action_scale = env, (args.seed, agent), env.action_space.high
        if not (np.array_equal(env.action_space.low, -self.action_scale) and np.isfinite(self.action_scale).all()):
            fail(f"DDPG and SAC need finite limits of actions, symmetric about 0, not those of {env.action_space}")
        self.episode, self.last_return = 0, math.nan
        self._begin()
        sizes = len(self.obs), len(self.action_scale), min(args.buffer_size, args.total_steps)
        self.buffer = ReplayBuffer(*sizes, args.device)

    def _begin(self):
        rng = generator(*self.key, self.episode, "episode")
        domain = self.env.sample_domain(self.env.eps, rng)
        self.obs, _ = self.env.reset(seed=int(rng.integers(2**31)), options={"domain": domain})
        self.actions, self.total = [], 0.0  # of the present episode

    def step(self, action: np.ndarray) -> list[float]:
        """One step, into the buffer. If it ends the episode, a list of its return, and the next one has begun."""
        action, obs = np.clip(action, -self.action_scale, self.action_scale), self.obs
        self.obs, reward, terminated, truncated, _ = self.env.step(action)
        self.actions.append(action)
        self.total += float(reward)
        self.buffer.add(obs, action, reward, self.obs, terminated)
        if not (terminated or truncated):
            return []
        self.episode, self.last_return = self.episode + 1, self.total
        self._begin()
        return [self.last_return]

    def collect(self, policy, steps: int) -> list[float]:
        """So many steps with actions policy(obs); the returns of the episodes that ended."""
        return [ended for _ in range(steps) for ended in self.step(policy(self.obs))]

    def state_dict(self):
        actions = torch.as_tensor(np.array(self.actions, np.float32))
        return {"episode": self.episode, "last_return": self.last_return, "actions": actions} | self.buffer.state_dict()

    def load_state_dict(self, state):
        self.episode, self.last_return = state["episode"], state["last_return"]
        self._begin()
        for action in state["actions"].numpy():
            self.step(action)
        self.buffer.load_state_dict(state)  # which has these steps already


# =========================================================================================================
# Plumbing: command line
# =========================================================================================================


def fail(message: str, status: int = 2) -> NoReturn:
    """End the program with one line on stderr; status 2 is the caller's mistake."""
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr, flush=True)
    raise SystemExit(status)


def launch(Args: type, train, figures: dict, load_policies):
    """A script's main: train(args), or what --figure, --watch, --gif or --seeds asks for instead.

    Args: the dataclass of its options. figures: {name: function of args that returns a figure and its title, or prints
    a table}. load_policies(run): the run's policies as functions obs (obs,) -> action (act,).
    """
    stopped = "stopped; the same command, without --overwrite, goes on from the last checkpoint"
    for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C, and what a cluster sends before it kills
        signal.signal(number, lambda number, _: fail(stopped, status=128 + number))
    try:
        args = parse_args(Args, figures)
        if args.figure:
            if drawn := figures[args.figure](args):
                save_figure(*drawn, Path(args.runs) / f"{Path(sys.argv[0]).stem}-figure-{args.figure}.png")
        elif args.watch or args.gif:
            look_at(args, load_policies)
        elif args.seeds:
            run_seeds(args)
        else:
            train(args)
    except (FloatingPointError, MemoryError, OSError) as error:  # of the environment, the buffer, a file
        fail(str(error))


def number_between(kind: type, least: float, most: float):
    """An argparse type: a number of this kind within these limits. 2e6 and 2_000_000 count as integers."""

    def number(text: str):
        if not (least <= float(text) <= most and kind(float(text)) == float(text)):
            raise argparse.ArgumentTypeError(f"{text} is no {kind.__name__} between {least:g} and {most:g}")
        return kind(float(text))

    return number


# Limits of numbers. Others: whole numbers from 1, or from 0 if that is the default; numbers from 0.
LIMITS = dict.fromkeys(("gamma", "gae_lambda", "tau", "eps_tr", "eps_te"), (0, 1))
LIMITS |= {"warm_up": (0, HELD_OUT), "initial_std": (1e-6, 1e6)}


def parse_args(Args: type, figures: dict):
    """Fill the dataclass `Args` from the command line.

    `steps: int = 4096  # of each agent` becomes `--steps`, with the comment as its help; a comment on a line of
    its own begins a group. Booleans become `--flag/--no-flag`, Literals choices, tuples lists;
    a level or seed that is named twice counts once.
    """
    parser, comments, groups = Parser(description=sys.modules["__main__"].__doc__.splitlines()[0]), {}, {}
    for line in "\n".join(inspect.getsource(each) for each in Args.__mro__[:-1]).splitlines():
        if found := re.fullmatch(r"    # (.+)", line):
            heading = found[1]
        elif found := re.fullmatch(r"    (\w+): .+? = .+?  # (.+)", line):
            comments.setdefault(found[1], (heading, found[2]))  # a class's own before its base's
    for name, (heading, comment) in comments.items():
        kind, default = get_type_hints(Args)[name], getattr(Args, name)
        single = (get_args(kind) or [kind])[0]  # of int, float, str, tuple[int, ...], float | None
        options = {"default": default, "help": comment.replace("%", "%%")}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif get_origin(kind) is Literal or name == "figure":
            options["choices"] = get_args(kind) or [*figures]
        elif single in (int, float):
            usual = (int(default not in (0, ())), HELD_OUT - 1) if single is int else (0, 1e30)
            options["type"] = number_between(single, *LIMITS.get(name, usual))
        if get_origin(kind) is tuple:
            options["nargs"] = len(get_args(kind)) if ... not in get_args(kind) else "*" if name == "seeds" else "+"
        group = groups.setdefault(heading, parser.add_argument_group(heading))  # one without options is not shown
        group.add_argument("--" + name.replace("_", "-"), **options)
    values = {k: dict.fromkeys(v) if k in ("eps_te", "seeds") else v for k, v in vars(parser.parse_args()).items()}
    return Args(**{name: tuple(value) if isinstance(value, (list, dict)) else value for name, value in values.items()})


def run_seeds(args):
    """Run this very command once for each seed, --jobs at a time, and pass on what they print."""
    threads, processes = max(1, cores() // min(args.jobs, len(args.seeds))), []

    def run(seed):
        # Of two --threads the last one counts: the user's own, if there is one.
        command = [sys.executable, sys.argv[0], f"--threads={threads}", *sys.argv[1:], "--seeds", f"--seed={seed}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            processes.append(process)
            for line in process.stdout:
                print(f"seed {seed} | {line}", end="", flush=True)
        return abs(process.returncode)

    with ThreadPoolExecutor(args.jobs) as pool:
        try:
            raise SystemExit(max(pool.map(run, args.seeds)))
        finally:  # no new ones after Ctrl-C, which the processes at work get too, or SIGTERM, which they do not
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()


# =========================================================================================================
# Plumbing: a run's folder with config.json, log.csv, eval.csv, checkpoint.pt, figure.png
# =========================================================================================================

# Not among a folder name's options: env and seed (named anyway), and what changes no result beyond the last bits.
NOT_IN_NAME = {"env", "seed", "seeds", "jobs", "threads", "device", "compile", "checkpoint_every", "runs", "overwrite",
               "figure", "watch", "gif"}  # fmt: skip


def run_name(args, script: str, seed: int | str) -> str:
    """The script, the environment, every option that differs from its default, and the seed.

    What a file system might not take becomes _ or is cut off; then eight digits of a hash of the whole follow.
    """
    words = [script, args.env]
    for field in dataclasses.fields(args):
        value, default = getattr(args, field.name), args.left_open().get(field.name, field.default)
        if field.name not in NOT_IN_NAME and value not in (None, default):
            if field.name == "xml_file":  # its content counts, and that of files that it includes: the compiled model
                value = f"{Path(value).stem}-{zlib.crc32(pickle.dumps(make_envs(args, 1)[0].model)):08x}"
            items = value if isinstance(value, tuple) else (value,)
            text = "+".join(f"{item:.12g}" if isinstance(item, float) else str(item) for item in items)
            words.append(f"{field.name}={text}")
    name = "-".join(words)
    safe = re.sub(r"[^\w.+=-]", "_", name)[:200]
    return f"{safe if safe == name else f'{safe}-{zlib.crc32(name.encode()):08x}'}-seed{seed}"


class Run:
    """A run: its arguments as they are used, its folder, environments and threads, and the frame of its loop.

        run = Run(args, "p2pdrl")
        for iteration in run.iterations(parts, steps): ...

    A run that was stopped goes on from its last checkpoint. What was logged after that is written again, bit-identical
    (with the same device and compile) but for the column `seconds`. Checkpoints are written beside their target and
    renamed over it.
    """

    def __init__(self, args, script: str, number: int = 1):
        """number: of environments to train in. Sets torch up, so networks are to be made afterwards."""
        left_open = {name: value for name, value in args.left_open().items() if getattr(args, name) is None}
        self.args = args = dataclasses.replace(args, threads=args.threads or cores(), **left_open)
        envs = make_envs(args, number + args.threads)
        self.path = Path(args.runs) / run_name(args, script, args.seed)
        self.envs, self.test_envs = envs[:number], envs[number:]
        set_up_torch(args)
        self.pool = ThreadPoolExecutor(args.threads, initializer=set_up_thread)
        self.returns = {}  # the last one that each agent logged

    def iterations(self, parts: dict, steps: int):
        """Yield the number of each iteration that is still to be made, of so many steps, and save as it is time.

        parts: by name whatever must be saved, with state_dict and load_state_dict.
        """
        total, streams = self.args.total_steps // steps, sum(isinstance(part, Stream) for part in parts.values())
        warm_up = self.args.warm_up * streams if streams else steps  # PPO's first iteration only gathers statistics
        if total * steps <= warm_up:
            fail(f"--total-steps must be at least {(warm_up // steps + 1) * steps}, but is {self.args.total_steps}")
        evaluations = min(getattr(self.args, "evaluations", 1), total)
        due = {round(total * i / evaluations) for i in range(1, evaluations + 1)}
        self._open()
        self.parts, first = parts, self._resume(parts)
        if first < total:  # a finished run keeps the versions that made it
            versions = {name: version(name) for name in ("torch", "gymnasium", "mujoco", "numpy")}
            config = {"settings": dataclasses.asdict(self.args), "versions": versions | {"python": sys.version}}
            self._replace("config.json", lambda path: path.write_text(json.dumps(config, indent=1) + "\n"))
        self.began = shown = time.perf_counter()
        marks = []  # when the last iterations ended
        for done in range(first + 1, total + 1):
            self.step, self.evaluation_due, self.last = done * steps, done in due, done == total
            yield done - 1
            if done % self.args.checkpoint_every == 0 or self.last:
                self._save(done)
            marks = [*marks[-20:], time.perf_counter()]
            if sys.stdout.isatty() or self.last or len(marks) == 1 or marks[-1] - shown > 10:
                shown = marks[-1]
                self._show((marks[-1] - marks[0]) / max(len(marks) - 1, 1) / steps)
        if first == total:
            print(f"{self.path} is finished: nothing to do (--overwrite starts anew)")
        run = SavedRun(self.path)
        test = run.table("eval.csv")
        print_table(test[test["step"] == test["step"].max()])
        run.draw()

    def _open(self):
        """Make the folder, and keep other processes out of it; they would write the same files."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.lock = open(self.path / ".lock", "w")  # ends with this object
        try:
            import fcntl

            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fail(f"another process is training in {self.path}: wait for it, or choose another --runs folder")
        except (ImportError, OSError):
            pass  # Windows has no such locks, nor have some shared folders
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
            fail(f"{path} is damaged, or of other code ({type(error).__name__}): a good copy or --overwrite will help")
        for log in self.path.glob("*.csv"):  # rows that were written after it, the last one perhaps in part
            header, *rows = log.read_text().splitlines(keepends=True) or [""]
            kept = [row for row in rows if row.endswith("\n") and int(row.split(",")[0]) <= saved["step"]]
            self._replace(log.name, lambda path: path.write_text("".join([header, *kept])))
        return saved["iteration"]

    def _save(self, iteration: int):
        """Tensors and plain numbers only. A finished run needs no replay buffer."""
        unneeded = Stream if self.last else ()
        state = {name: part.state_dict() for name, part in self.parts.items() if not isinstance(part, unneeded)}
        saved = {"iteration": iteration, "step": self.step, "parts": state}
        self._replace("checkpoint.pt", lambda path: torch.save(saved, path))

    def _replace(self, name, write):
        beside = self.path / f".{name}.new"
        try:
            write(beside)
            os.replace(beside, self.path / name)
        except (OSError, RuntimeError):  # the latter is torch.save's
            beside.unlink(missing_ok=True)
            fail(f"cannot write {self.path / name}; the former one stays, if there is one. Is the disk full?")

    def _show(self, seconds: float):
        """A line of progress: rewritten on a terminal, one after the other elsewhere. seconds: of a step, if known."""
        line = f"{self.step:>11,} of {self.args.total_steps:,} steps   return {np.mean([*self.returns.values()]):8.1f}"
        if seconds:
            left = (self.args.total_steps - self.step) * seconds / 60
            line += f"   {1 / seconds:7,.0f} steps/s   {left:.0f} min left"
        start, end = ("\r\x1b[K", "\n" if self.last else "") if sys.stdout.isatty() else ("", "\n")
        print(start + line, end=end, flush=True)

    def log(self, number: int, agent: nn.Module, row: dict, metrics: torch.Tensor):
        """Append a row for this agent to log.csv. metrics: of agent.METRICS. If not finite, they end the program."""
        row |= zip(agent.METRICS, metrics.tolist())
        weights = [each for part in self.parts.values() if isinstance(part, nn.Module) for each in part.parameters()]
        if not all(each.isfinite().all() for each in (metrics, *weights)):
            fail(f"step {self.step}, agent {number}: a metric or weight is not finite; the last checkpoint stays", 1)
        self.returns[number] = row["return"]
        self.write("log.csv", [{"agent": number, **row, "seconds": round(time.perf_counter() - self.began, 3)}])

    def write(self, name: str, rows: list[dict], step: int | None = None):
        """Append rows to one of the tables, before each row the step (that of the iteration's end if None)."""
        with open(self.path / name, "a") as file:
            if file.tell() == 0:
                print("step", *rows[0], sep=",", file=file)
            for row in rows:
                print(step or self.step, *row.values(), sep=",", file=file)

    def evaluate(self, policies: dict, networks: list[nn.Module]):
        """Append a test of policies {agent: function obs -> action} to eval.csv; networks go to policies-<step>.pt."""
        if policies:
            self.write("eval.csv", evaluate(self.test_envs, policies, self.args.eps_te, self.args.eval_domains))
        if networks:
            states = [network.state_dict() for network in networks]
            self._replace(f"policies-{self.step}.pt", lambda path: torch.save(states, path))


class SavedRun:
    """A run's folder, to be read. Curves are pairs x (T,), y (T,)."""

    def __init__(self, path: Path):
        self.path = path
        self.settings = json.loads((path / "config.json").read_text())["settings"]

    def table(self, name: str) -> np.ndarray:
        """log.csv or eval.csv as a structured array: a float for each column of each row."""
        with open(self.path / name) as file:
            columns = [(column, float) for column in file.readline().strip().split(",")]
            return np.loadtxt(file, columns, delimiter=",", ndmin=1)

    def training_curve(self, column: str = "return", agent: int | None = None, rows: int = 20):
        """Steps, and a column of log.csv, a mean of so many rows: of one agent, or the mean over agents."""
        log = self.table("log.csv")
        log = log if agent is None else log[log["agent"] == agent]
        steps = np.unique(log["step"])
        values = log[column].reshape(len(steps), -1).mean(1)
        return steps, np.array([values[max(0, end - rows) : end].mean() for end in range(1, len(steps) + 1)])

    def test_curve(self, eps: float, agent: int | None = None):
        """Steps of the evaluations, and the mean return at each over held-out domains of this level and over agents."""
        test = self.table("eval.csv")
        test = test[(test["eps_te"] == eps) & ((test["agent"] == agent) | (agent is None))]
        steps = np.unique(test["step"])
        return steps, np.array([test["return"][test["step"] == step].mean() for step in steps])

    def steps(self) -> list[int]:
        """The steps at which the run kept its networks."""
        return sorted(int(file.stem.removeprefix("policies-")) for file in self.path.glob("policies-*.pt"))

    def networks(self, make, step: int | None = None) -> list[nn.Module]:
        """The networks kept at this step (the last ones if None); make(state) gives one to be filled with a state."""
        name = f"policies-{max(self.steps(), default='') if step is None else step}.pt"
        states = torch.load(self.path / name, weights_only=True, map_location="cpu")
        networks = [make(state) for state in states]
        for network, state in zip(networks, states):
            network.load_state_dict(state)
        return networks

    def draw(self):
        """figure.png: each agent's learning curve, and its return in held-out domains by level (one level: by step)."""
        figure, (left, right) = new_figure(columns=2)
        log, test, x, xlabel = self.table("log.csv"), self.table("eval.csv"), "step", STEPS
        if len(np.unique(test["eps_te"])) > 1:  # of one level all evaluations say more than a single point
            test, x, xlabel = test[test["step"] == test["step"].max()], "eps_te", "eps_te, randomisation level"
        trained = {agent_name(agent): [self.training_curve(agent=agent)] for agent in np.unique(log["agent"])}
        tested = {}
        for agent in np.unique(test["agent"]):
            tested[agent_name(agent)] = [(test[x][test["agent"] == agent], test["return"][test["agent"] == agent])]
        plot_lines(left, trained, STEPS, "return", seeds=False)
        plot_lines(right, tested, xlabel, "return", seeds=False, marker="o", markersize=4)
        left.set_title("training domains, with exploration, mean of 20 rows")
        right.set_title("held-out domains, deterministic policy")
        save_figure(figure, f"{self.path.name}\nright: 95 % bootstrap interval of the mean", self.path / "figure.png")


def find_runs(args, script: str, lines: dict[str, dict]) -> dict[str, list[SavedRun]]:
    """Finished runs of every seed for each line of a figure, {label: arguments that are not those of `args`}.

    A run is found by its folder's name. (figure.png is the last thing that a run writes.) Says what is missing.
    """
    found = {}
    for label, changes in lines.items():
        name = run_name(dataclasses.replace(args, **changes), script, seed="*")
        runs = [SavedRun(file.parent) for file in Path(args.runs).glob(f"{name}/figure.png")]
        found[label] = sorted(runs, key=lambda run: run.settings["seed"])
    if missing := [label for label, runs in found.items() if not runs]:
        say = fail if len(missing) == len(found) else print
        say(f"no finished runs of {'; '.join(missing)} on {args.env} below {args.runs}/")
    return found


# =========================================================================================================
# Plumbing: figures, moving pictures
# =========================================================================================================

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # safe for most eyes
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 3)))  # and on a grey printer
STEPS = "environment steps, all agents"


def new_figure(columns: int = 1, rows: int = 1):
    """A matplotlib figure that needs no screen, and its axes as a flat list."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * columns, 4.4 * rows), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def plot_lines(axis, lines: dict[str, list], xlabel: str, ylabel: str, seeds: bool = True, **style):
    """A line for each label: the mean of all its curves, each a pair x (T,), y (T,), and the 95 % bootstrap interval.

    Where x has a value several times, in one curve or in several, the mean is over these. seeds: the legend says how
    many curves there are. A label without curves keeps its colour.
    """
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.grid(alpha=0.3)
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
            axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, fontsize=8, handlelength=4)
    figure.suptitle(title, fontsize=10, wrap=True)
    figure.savefig(path, dpi=150)
    print(f"figure: {path}")


def look_at(args, load_policies):
    """--watch: every policy of a run in a held-out domain, in a window. --gif: the first policy of each run in four.

    Domains are those of --eps-te if it is one level, else of the run's eps_tr. load_policies(run): functions obs (obs,)
    -> action (act,).
    """
    runs, films = [SavedRun(Path(path)) for path in args.gif or (args.watch,)], []
    if sys.platform == "linux" and args.gif:
        os.environ.setdefault("MUJOCO_GL", "egl")  # needs no screen
    elif sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        fail("no screen for a window here: --gif writes a moving picture instead")  # GLFW would abort the process
    options = {"render_mode": "rgb_array", "width": 100, "height": 100} if args.gif else {"render_mode": "human"}
    for run in runs:
        env = make_envs(argparse.Namespace(**run.settings), 1, **options)[0]
        eps = args.eps_te[0] if len(args.eps_te) == 1 else run.settings["eps_tr"]
        policies, domains = load_policies(run), held_out_domains(env, eps, 4)
        filmed = [(policies[0], each, seed) for seed, each in enumerate(domains)]
        for policy, domain, seed in filmed if args.gif else [(each, domains[0], 0) for each in policies]:
            films.append([])
            try:
                total = episode_return(env, policy, domain, seed, films[-1] if args.gif else None)
            except Exception as error:  # each backend of OpenGL fails in a way of its own
                sys.unraisablehook = lambda _: None  # what is left of a viewer would complain as it goes
                fail(f"cannot draw: no OpenGL to be had here ({' '.join(str(error).split())[:80]})")
            print(f"{run.path.name}: {domain}, {env.data.time:.1f} s, return {total:.0f}")
        env.close()
    if args.gif:  # a row is named by the options in which the runs differ
        differing = [name for name in runs[0].settings if len({str(run.settings.get(name)) for run in runs}) > 1]
        labels = ["\n".join(str(run.settings.get(name)) for name in differing) for run in runs]
        save_gif(films, labels, runs[0].path / "policy.gif")


# =========================================================================================================
# Learning curves, and main
# =========================================================================================================


def load_policies(run: SavedRun) -> list:
    """The last policy of a run, whichever algorithm it is of, as a function obs (obs,) -> action (act,)."""

    def make(state):
        if "log_std" in state:
            return GaussianActor(len(state["norm.mean"]), len(state["log_std"]))
        network = DeterministicActor if "norm.mean" in state else SquashedActor
        return network(state["net.0.weight"].shape[1], state["action_scale"].numpy())

    policy_of = squashed_policy if run.settings["algo"] == "sac" else numpy_policy
    return [policy_of(actor) for actor in run.networks(make)]


def draw_curves(args):
    """Learning curves of all finished runs with these arguments."""
    found = find_runs(args, "baselines", {args.algo: {}})
    figure, (axis,) = new_figure()
    curves = {label: [run.training_curve() for run in runs] for label, runs in found.items()}
    plot_lines(axis, curves, STEPS, "training return, mean of 20 rows")
    return figure, f"{args.env}; mean over seeds, 95 % bootstrap interval"


def main():
    algorithms = {"ppo": (PPOArgs, ppo), "ddpg": (DDPGArgs, ddpg), "sac": (SACArgs, sac)}
    first = Parser(add_help=False)
    first.add_argument("--algo", default="ppo", choices=algorithms)
    Args, train = algorithms[first.parse_known_args()[0].algo]
    launch(Args, train, {"curves": draw_curves}, load_policies)


if __name__ == "__main__":
    main()
