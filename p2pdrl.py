"""P2PDRL: peer-to-peer distillation for reinforcement learning under domain randomisation.

    Zhao and Hospedales, "Robust Domain Randomised Reinforcement Learning through Peer-to-Peer Distillation"
    (2020), and its workshop version, "Peer-to-Peer Policy Distillation" (NeurIPS 2020 workshop).

The idea
--------
A policy trained in many randomised domains copes with a new one, but the more the domains differ, the noisier
its gradient. P2PDRL gives each of K agents one domain at a time, where learning is easy, and adds one term to
each agent's PPO loss: stay close, on your own states, to what your peers would do there. Knowledge spreads
through this term alone; no data is exchanged, there is no central policy, and every agent ends up robust.

    code                    | paper               | shape
    agents                  | K                   |
    domain                  | xi_i ~ Xi           | five numbers, see randomised_envs.py
    eps_tr, eps_te          | strength of Xi      |
    actor, critic           | theta_i, phi_i      |
    batch                   | tau_i, B_i          | N steps of agent i in domain xi_i
    ratio                   | r(t)                | (N,)
    advantages              | A_{t,xi_i}          | (N,)
    targets                 | V^targ              | (N,)
    alpha, clip             | alpha, epsilon      |

    L_PPO(theta_i)  = E[min(r A, clip(r, 1 - epsilon, 1 + epsilon) A)]          (maximised)           Eq. (2)
    L_dis(theta_i)  = 1/(K-1) sum_{k != i} E[ KL(pi_theta_i(.|s) || pi_theta_k(.|s)) ]                Eq. (3)
    L(theta_i)      = L_PPO + alpha L_dis          (with the sign of Eq. (2) turned: minimised)       Eq. (4)

What it is compared with (Sec. 4.2): the same loop, other company
----------------------------------------------------------------
    --method        | learns                 | and stays close to                | then
    p2pdrl          | K agents, one domain   | every peer, on its own states     |
                    | each                   |                                   |
    ppo             | one, from the union of |                                   |
                    | all K domains' data    |                                   |
    distributed-ppo | one, from the mean of  |                                   |
                    | K workers' gradients   |                                   |
    self-kl         | like ppo               | itself, before this iteration     |
    distral         | K agents               | a centre, on its own states       | at each step, the centre is
                    |                        |                                   | drawn to the agents
    dnc             | K agents               | every peer, on the peer's states, | after each iteration, the centre is
                    |                        | KL in both directions             | fitted to the agents, which now
                    |                        |                                   | and then start again from it

    L_reg(theta)    = E[ KL(pi_theta(.|s) || pi_theta_old(.|s)) ]                           self-kl, Sec. 4.4

Where this differs from, or completes, the paper
------------------------------------------------
* Eq. (2) is printed as a loss that is minimised, without its minus sign. It has one here.
* Not stated there, chosen here: observations normalised by running statistics inside each policy (frozen while
  an iteration's data is in use; the first iteration does nothing but gather them), rewards divided by the
  running standard deviation of the discounted return, gradient norm at most .5 (actor and critic apart),
  constant learning rate, orthogonal initialisation (gain sqrt 2; .01 and 1 for the heads), standard deviations
  independent of the state and starting at 1, advantages normalised per minibatch, neither value clipping nor
  entropy bonus, Adam's epsilon 1e-5.
* Line 14 stands in the innermost loop; here targets and advantages are computed anew for each epoch, with the critic
  as it then is. The methods with one learner compute them once for each iteration, as in the PPO paper. Which is better
  was not established: what was tried (see the README) lies within the differences between seeds.
* Time limits and the end of the batch are not deaths: the future is bootstrapped there. Every iteration begins with a
  reset. Actions are clipped to the robot's range by the environment only; their densities are of the unclipped ones.
* PPO is trained on the union of the K domains' data (the workshop version; `--agents 1` is the full version's
  one domain for each iteration). Self-KL likewise, with PPO's learning rate.
* Distributed PPO: the mean of the workers' gradients is scaled to the maximum norm, not each of them.
* Distral and DnC are described in a sentence each. Distral's centre minimises, at each step, the mean over agents
  of KL(agent || centre) on the agents' states. DnC follows its authors' code in the penalty (both directions of
  the KL halved and added, mean over peers), the period (R = 50, `--reset-every`), the passes of the centre (one
  for each iteration, 30 before agents restart) and the restart (all but the standard deviations); its centre
  minimises the same KL as Distral's and does no reinforcement learning of its own. Agents start again with the
  centre's observation statistics, without which its weights would mean something else.
* The paper does not say which peer it evaluates. All are evaluated here (of Distral and DnC the centre), with mean
  actions, in held-out domains that are the same for every run; figures show the mean over peers (Figure 5 the first).
  The paper's one "pre-defined testing domain" is ten domains at eps_te = .5 here, as it says for Figures 2 and 6.
* The variance of the gradient is that of one agent's share of the iteration's steps.
* The initial position, read literally, cannot change a return; see `--init` and randomised_envs.py.

Commands (two cores of a laptop; see the README for measured numbers)
---------------------------------------------------------------------
    python p2pdrl.py --env Hopper-v4 --total-steps 2e5          # toy: a minute, returns of about 900
    python p2pdrl.py --env Walker2d-v4 --eps-tr 0.2             # six to eight minutes, returns of 3000 to 4800
    python p2pdrl.py --env Walker2d-v4 --eps-tr 0.2 --total-steps 1e7 --seeds 0 1 2 3 4 5 6 7     # the paper's seeds

To use it elsewhere, copy p2pdrl.py, baselines.py and randomised_envs.py.
"""

import copy
import json
import math
import os
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import mujoco
import numpy as np
import torch
from torch import nn

from baselines import (
    CENTRE, COLOURS, COMPARED, Adam, Progress, Rollout, Run, RunningNorm, as_command, check_args, compiled,
    discounted_sums, draw_run, episode_returns, evaluate, fail, find_runs, gae, given, held_out_domains, make_envs,
    millions, new_figure, numpy_policy, one_vector, parse_args, plot_interval, read_csv, report, rollout, run_seeds,
    save_figure, set_up_torch, steps_of, test_curve, test_returns, training_curve, with_seeds, workers,
)
from randomised_envs import Domain, sample_domain

LEARNING_RATE = {  # App. A.2, by method
    "p2pdrl": 1e-4, "ppo": 3e-4, "distributed-ppo": 3e-4, "self-kl": 3e-4, "distral": 1e-4, "dnc": 1e-4,
}  # fmt: skip


@dataclass
class Args:
    # environment
    env: str = "Walker2d-v4"  # a Gymnasium MuJoCo environment
    xml_file: str = ""  # an MJCF file of your own in place of the environment's (v5 environments)
    eps_tr: float = 0.2  # strength of the randomisation in training, in [0, 1] (Sec. 4.3)
    init: Literal["root", "joints"] = "root"  # what Table 1's initial position moves

    # cohort
    method: Literal["p2pdrl", "ppo", "distributed-ppo", "self-kl", "distral", "dnc"] = "p2pdrl"  # who learns from whom
    agents: int = 2  # K: agents, and domains at a time
    alpha: float = 1.0  # weight of the distillation loss (App. A.2)
    reset_every: int = 50  # R: iterations after which DnC's agents start again from their centre

    # PPO (App. A.2, Table 2)
    total_steps: int = 2_000_000  # environment steps, summed over agents
    steps_per_iteration: int = 4096  # environment steps between updates, summed over agents
    learning_rate: float | None = None  # Adam's; if not given, the paper's for the method, 1e-4 or 3e-4
    epochs: int = 10  # passes over an iteration's data
    minibatches: int = 32  # for each epoch
    clip: float = 0.2  # epsilon of Eq. (2)
    gamma: float = 0.99  # discount factor
    gae_lambda: float = 0.95  # of the advantage estimate
    entropy_coef: float = 0.0  # weight of an entropy bonus
    max_grad_norm: float = 0.5  # gradients are scaled down to this norm

    # evaluation
    eps_te: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # strengths of the test domains
    eval_domains: int = 10  # held-out domains for each strength, one episode in each
    evaluations: int = 4  # evenly spaced over training, the last one at its end

    gradient_variance: bool = False  # log the variance of the actor's gradient in each iteration (Fig. 8b, c)

    # run
    seed: int = 0  # of everything random
    seeds: tuple[int, ...] = ()  # several seeds, each in a process of its own
    jobs: int = 2  # how many of these at a time
    threads: int = 0  # for the environments; 0: one for each core
    device: str = "cpu"  # of the networks: cpu or cuda
    compile: bool = True  # compile the gradient computation where a C++ compiler is found
    checkpoint_every: int = 10  # iterations between checkpoints
    runs: str = "runs"  # folder of all runs
    overwrite: bool = False  # start anew instead of resuming

    # instead of training
    figure: Literal["", "2", "3", "4", "5", "6", "7", "8a", "8bc", "9", "map"] = ""  # draw it from the runs that exist
    watch: str = ""  # a run's folder: show its policies in a window
    gif: str = ""  # a run's folder: write policy.gif into it


# ---------------------------------------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------------------------------------


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
    """V_phi(s), in units of scaled reward."""

    def __init__(self, obs_size: int):
        super().__init__()
        self.norm = RunningNorm((obs_size,))
        self.net = nn.Sequential(
            linear(obs_size, 64, math.sqrt(2)), nn.Tanh(),
            linear(64, 64, math.sqrt(2)), nn.Tanh(),
            linear(64, 1, 1.0),
        )

    def forward(self, obs):  # (N, obs) -> (N,)
        return self.net(self.norm(obs)).squeeze(-1)


# ---------------------------------------------------------------------------------------------------------
# Losses
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


def gaussian_kl(mean, log_std, other_mean, other_log_std):
    """KL(Normal(mean, std) || Normal(other_mean, other_std)), summed over action dimensions: (N, act) -> (N,)."""
    ratio = (2 * (log_std - other_log_std)).exp()
    return (0.5 * (ratio + ((mean - other_mean) / other_log_std.exp()) ** 2 - 1) + other_log_std - log_std).sum(-1)


def ppo_loss(policy, batch, clip):                                                                      # Eq. (2)
    """Clipped surrogate, negated: to be minimised. Scalar."""
    ratio = (gaussian_log_prob(*policy, batch.actions) - batch.log_probs).exp()                         # (N,)
    assert ratio.shape == batch.advantages.shape
    return -torch.min(ratio * batch.advantages, ratio.clamp(1 - clip, 1 + clip) * batch.advantages).mean()


def distillation_loss(policy, peers, obs):                                                              # Eq. (3)
    """Mean over peers of KL(own || peer) on the agent's own states. Peers get no gradient. Scalar.

    Distral's only peer is the centre; that of self-kl is the policy as it was before the iteration.
    """
    divergences = [gaussian_kl(*policy, *(x.detach() for x in peer(obs))).mean() for peer in peers]
    return sum(divergences, torch.zeros((), device=obs.device)) / max(len(peers), 1)


def dnc_loss(actor, peers, peers_obs):
    """DnC: mean over peers of the symmetric KL on the *peers'* states (N, obs) each. Peers get no gradient. Scalar."""
    divergences = []
    for peer, obs in zip(peers, peers_obs):
        own, other = actor(obs), tuple(x.detach() for x in peer(obs))
        divergences.append((gaussian_kl(*own, *other) + gaussian_kl(*other, *own)).mean() / 2)
    return sum(divergences) / len(divergences)


def centre_loss(centre, actors, all_obs):
    """Distral and DnC: mean over agents of KL(agent || centre) on the agent's states. Agents get no gradient. Scalar."""
    divergences = [
        gaussian_kl(*(x.detach() for x in actor(obs)), *centre(obs)).mean() for actor, obs in zip(actors, all_obs)
    ]
    return sum(divergences) / len(divergences)


def value_loss(critic, batch):                                                                          # Alg. 1, line 15
    """Mean square error of the critic. Scalar."""
    values = critic(batch.obs)
    assert values.shape == batch.targets.shape
    return ((values - batch.targets) ** 2).mean()


# ---------------------------------------------------------------------------------------------------------
# One update
# ---------------------------------------------------------------------------------------------------------


class Agent:
    """Actor theta_i, critic phi_i, their Adam, and the running scale of this agent's rewards."""

    def __init__(self, actor: GaussianActor, critic: ValueCritic, learning_rate: float):
        self.actor, self.critic = actor, critic
        self.reward_scale = RunningNorm(())
        self.parameters = one_vector(actor, critic)
        self.adam = Adam(self.parameters, learning_rate, eps=1e-5)

    def restart(self, centre: GaussianActor):
        """Act like the centre from now on, with standard deviations as they were (DnC)."""
        state = centre.state_dict()
        del state["log_std"]
        self.actor.load_state_dict(state, strict=False)


class Centre:
    """The policy in the middle of Distral and DnC. It has no data of its own: it learns from the agents."""

    def __init__(self, actor: GaussianActor, learning_rate: float):
        self.actor = actor
        self.parameters = one_vector(actor)
        self.adam = Adam(self.parameters, learning_rate, eps=1e-5)


def clip_norm(gradient, max_norm):
    """Scale a gradient so that its norm is at most max_norm."""
    return gradient * (max_norm / (gradient.norm() + 1e-6)).clamp(max=1.0)


def gradient_of(loss, network):
    """Gradient of a loss by a network's parameters, as one vector."""
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, tuple(network.parameters()))])


def gradients(actor, critic, peers, batch, peers_obs, clip, alpha, entropy_coef):
    """Gradients of an agent's two losses on a minibatch, each as one vector, and what the log tells.

    peers_obs: the peers' own minibatches of observations for DnC; empty for all others.
    """
    spread = batch.advantages.std() + 1e-8
    batch = batch._replace(advantages=(batch.advantages - batch.advantages.mean()) / spread)
    policy = actor(batch.obs)  # once for both losses
    surrogate = ppo_loss(policy, batch, clip)
    distillation = dnc_loss(actor, peers, peers_obs) if peers_obs else distillation_loss(policy, peers, batch.obs)
    entropy = (actor.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum()
    actor_loss = surrogate + alpha * distillation - entropy_coef * entropy                              # Eq. (4)
    critic_loss = value_loss(critic, batch)
    told = torch.stack([surrogate, distillation, critic_loss, entropy]).detach()
    return gradient_of(actor_loss, actor), gradient_of(critic_loss, critic), told


def adam_step(actor, critic, adam, parameters, peers, batches, peers_obs, clip, alpha, entropy_coef, max_grad_norm):
    """The vector of an agent's parameters after one step of Adam, and what the log tells. Compiled as one graph."""
    each = [gradients(actor, critic, peers, batch, peers_obs, clip, alpha, entropy_coef) for batch in batches]
    actor_gradient, critic_gradient, told = (sum(column) / len(each) for column in zip(*each))
    gradient = torch.cat([clip_norm(actor_gradient, max_grad_norm), clip_norm(critic_gradient, max_grad_norm)])
    return adam(parameters, gradient), told


def update(agent, peers, batches, peers_obs, adam_step, args):                                          # lines 13, 15
    """One step of Adam on theta_i and phi_i, along the mean gradient of the minibatches. `adam_step` may be compiled.

    There is one minibatch, but for Distributed PPO one from each worker.
    """
    networks = agent.actor, agent.critic, agent.adam, agent.parameters
    settings = args.clip, args.alpha, args.entropy_coef, args.max_grad_norm
    new, told = adam_step(*networks, peers, batches, peers_obs, *settings)
    agent.parameters.data.copy_(new)  # and with it both networks
    return told


def centre_step(centre, adam, parameters, actors, all_obs, max_grad_norm):
    """The vector of the centre's parameters after one step of Adam. Compiled as one graph."""
    return adam(parameters, clip_norm(gradient_of(centre_loss(centre, actors, all_obs), centre), max_grad_norm))


def update_centre(centre, actors, minibatches, centre_step, args):
    """One step of Adam towards the agents, on a minibatch of each one's states. `centre_step` may be compiled."""
    all_obs = [batch.obs for batch in minibatches]
    new = centre_step(centre.actor, centre.adam, centre.parameters, actors, all_obs, args.max_grad_norm)
    centre.parameters.data.copy_(new)


# ---------------------------------------------------------------------------------------------------------
# The cohort loop
# ---------------------------------------------------------------------------------------------------------


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


def log_gradient_variance(agent, peers, batches, peers_obs, rng, compiled_gradients, args) -> float:
    """log of the mean over theta of Var[gradient of Eq. (4)], over 64 minibatches of 64 steps (Sec. 4.4)."""
    batch = Batch(*map(torch.cat, zip(*batches)))
    samples = []
    for _ in range(64):
        rows = torch.as_tensor(rng.permutation(len(batch.obs))[:64], device=batch.obs.device)
        minibatch = Batch(*(column[rows] for column in batch))
        theirs = [obs[rows] for obs in peers_obs]
        samples.append(compiled_gradients(
            agent.actor, agent.critic, peers, minibatch, theirs, args.clip, args.alpha, args.entropy_coef
        )[0])
    return torch.stack(samples).var(0).mean().log().item()


def train(args):
    run = Run(args, "p2pdrl", args.method)
    title = f"{args.method}, {args.env}, eps_tr = {args.eps_tr:g}, seed {args.seed}"
    if run.finished:
        print(f"{run.path} is finished: nothing to do (--overwrite starts anew)")
        return report(run, title)
    envs = make_envs(args, max(args.agents, args.threads))
    set_up_torch(args)
    compiled_step, compiled_centre_step = compiled(adam_step, args), compiled(centre_step, args)
    compiled_gradients = compiled(gradients, args)

    # Alg. 1, lines 2, 3: the same theta_0 and phi_0 for every agent.
    actor = GaussianActor(envs[0].observation_space.shape[0], envs[0].action_space.shape[0]).to(args.device)
    critic = ValueCritic(envs[0].observation_space.shape[0]).to(args.device)
    learners = 1 if args.method in ("ppo", "distributed-ppo", "self-kl") else args.agents
    cohort = [Agent(copy.deepcopy(actor), copy.deepcopy(critic), args.learning_rate) for _ in range(learners)]
    actors = [agent.actor for agent in cohort]
    centre = Centre(copy.deepcopy(actor), args.learning_rate) if args.method in ("distral", "dnc") else None

    # To whom each agent stays close.
    before = copy.deepcopy(actor)  # theta_old: brought up to date at the start of each iteration
    others = [[other for other in actors if other is not own] for own in actors]
    company = {
        "p2pdrl": others, "ppo": [[]], "distributed-ppo": [[]], "self-kl": [[before]],
        "distral": [[centre and centre.actor]] * learners, "dnc": others,
    }[args.method]  # fmt: skip

    names = ("actor", "critic", "reward_scale", "adam")
    parts = {f"{name}{i}": getattr(agent, name) for i, agent in enumerate(cohort) for name in names}
    if centre:
        parts |= {"centre": centre.actor, "centre_adam": centre.adam}
    evaluated = [centre.actor] if centre else actors
    steps_per_domain = args.steps_per_iteration // args.agents
    iterations = args.total_steps // args.steps_per_iteration
    evaluate_at = {round(iterations * i / args.evaluations) for i in range(1, args.evaluations + 1)}
    first = run.resume(parts, args.steps_per_iteration)
    progress = Progress(iterations * args.steps_per_iteration, first * args.steps_per_iteration)
    pool = workers(args.threads)

    for iteration in range(first, iterations):                                                          # Alg. 1, line 4
        rngs = [np.random.default_rng([args.seed, i, iteration]) for i in range(args.agents)]           # line 5
        domains = [sample_domain(args.eps_tr, rng, envs[0].position_draws) for rng in rngs]             # line 6
        acting = [actors[i % learners] for i in range(args.agents)]
        policies = [numpy_policy(actor) for actor in acting]
        stds = [actor.log_std.exp().detach().cpu().numpy() for actor in acting]
        rollouts = list(pool.map(rollout, envs, policies, stds, domains, [steps_per_domain] * args.agents, rngs))  # line 7
        before.load_state_dict(actors[0].state_dict())

        # What each gradient is computed from: one domain's rollout, for PPO the union of all.
        shares = [rollouts] if args.method in ("ppo", "self-kl") else [[data] for data in rollouts]
        owners = [cohort[j % learners] for j in range(len(shares))]
        batches = [prepare(agent.actor, agent.reward_scale, share, args.gamma) for agent, share in zip(owners, shares)]

        def estimated():
            discounts = args.gamma, args.gae_lambda
            jobs = zip(batches, owners, shares)
            return list(pool.map(lambda job: estimate(job[0], job[1].critic, job[1].reward_scale, job[2], *discounts), jobs))

        def states_of_peers(minibatches, i):
            return [batch.obs for k, batch in enumerate(minibatches) if k != i] if args.method == "dnc" else []

        batches = estimated()
        variances = [math.nan] * learners
        if args.gradient_variance:
            for i, agent in enumerate(cohort):
                rng = np.random.default_rng([args.seed, i, iteration, 1])
                own, theirs = batches[i::learners], states_of_peers(batches, i)
                variances[i] = log_gradient_variance(agent, company[i], own, theirs, rng, compiled_gradients, args)

        told = [torch.zeros(4, device=args.device) for _ in cohort]
        # The first iteration only gathers the normalisers' statistics: no step is taken on raw observations.
        for epoch in range(args.epochs if iteration > 0 else 0):                                        # line 9
            if epoch > 0 and learners > 1:
                batches = estimated()                                                                   # line 14
            shuffled = [shuffle(batch, args.minibatches, rng) for batch, rng in zip(batches, rngs)]
            for minibatches in zip(*shuffled):                                                          # line 10
                for i, agent in enumerate(cohort):                                                      # line 11
                    own, theirs = minibatches[i::learners], states_of_peers(minibatches, i)             # line 12
                    told[i] += update(agent, company[i], own, theirs, compiled_step, args)              # lines 13, 15
                if args.method == "distral":
                    update_centre(centre, actors, minibatches, compiled_centre_step, args)

        if args.method == "dnc" and iteration > 0:
            restart = (iteration + 1) % args.reset_every == 0
            for _ in range(30 if restart else 1):
                for minibatches in zip(*(shuffle(batch, args.minibatches, rng) for batch, rng in zip(batches, rngs))):
                    update_centre(centre, actors, minibatches, compiled_centre_step, args)
            if restart:
                for agent in cohort:
                    agent.restart(centre.actor)

        step = (iteration + 1) * args.steps_per_iteration
        rows = []
        for i, agent in enumerate(cohort):
            own = rollouts[i::learners]
            for data in own:  # only now: this data was collected, and used, with the old statistics
                agent.actor.norm.absorb(data.obs)
                agent.critic.norm.absorb(data.obs)
            returns = np.concatenate([data.returns for data in own])
            losses = (told[i] / (args.epochs * args.minibatches)).tolist()
            run.check_finite(step, i, [*losses, *returns], agent.parameters)
            rows.append({  # the losses are means over the iteration's minibatches, 0 in the first, which has none
                "step": step, "agent": i,
                "return": returns.mean(), "episodes": len(returns),  # of this iteration's finished episodes
                "surrogate": losses[0],  # Eq. (2), negated
                "distillation": losses[1],  # Eq. (3), or what the method has in its place: KL in nats
                "value_loss": losses[2],  # line 15, in units of scaled reward, squared
                "entropy": losses[3],  # of the policy, in nats
                "gradient_variance": variances[i],  # its log, at the start of the iteration; nan if not asked for
                "seconds": round(run.elapsed(), 3),  # wall clock
            })
        if centre:
            run.check_finite(step, "centre", [], centre.parameters)
            for data in rollouts:
                centre.actor.norm.absorb(data.obs)
        run.write("log.csv", rows)
        mean_return = float(np.mean([row["return"] for row in rows]))
        if iteration == 0 or iteration + 1 in evaluate_at:
            run.snapshot(step, evaluated)
        if iteration + 1 in evaluate_at:
            policies = [numpy_policy(actor) for actor in evaluated]
            rows = evaluate(envs[: args.threads], policies, args.eps_te, args.eval_domains, step)
            run.write("eval.csv", [row | {"agent": CENTRE} for row in rows] if centre else rows)
            if iteration + 1 < iterations:  # the last one is drawn by report
                draw_run(run.path, title)
        if (iteration + 1) % args.checkpoint_every == 0 or iteration + 1 == iterations:
            run.save(parts, iteration + 1, finished=iteration + 1 == iterations)
        progress.show(step, mean_return)
    report(run, title)


# ---------------------------------------------------------------------------------------------------------
# Evaluation and figures
# ---------------------------------------------------------------------------------------------------------


METHODS = list(LEARNING_RATE)  # in this order they have their colours
EPS_TEST = 0.5  # strength of the "pre-defined" test domains of Figures 2, 5, 6 and 8a


def policies_of(path: Path, step: int | None = None) -> list[GaussianActor]:
    """The policies that a run was evaluated with at this step; the last ones if None."""
    actors = []
    try:
        step = max(steps_of(path)) if step is None else step
        for state in torch.load(path / f"policies-{step}.pt", weights_only=True, map_location="cpu"):
            actors.append(GaussianActor(len(state["norm.mean"]), len(state["log_std"])))
            actors[-1].load_state_dict(state)
    except Exception as error:  # whatever a missing or damaged file raises
        fail(f"{path} has no policies to be read, or damaged ones ({type(error).__name__})")
    return actors


def without_effect(method: str) -> list[str]:
    """Settings that change nothing with this method."""
    return ["alpha"] * (method in ("ppo", "distributed-ppo")) + ["reset_every"] * (method != "dnc")


def look_up(args, wanted: list[dict]) -> dict[tuple, list[Path]]:
    """Finished runs by the settings that `wanted` names, and for what is wanted but missing the command that makes it.

    Settings that change nothing with a method are not asked of its runs.
    """
    by, some = tuple(wanted[0]), ("alpha", "reset_every")
    found = {}
    for key, paths in find_runs(args, "p2pdrl", by + some).items():
        ignored = without_effect(key[by.index("method")])
        if key[len(by) :] == tuple(getattr(Args if name in ignored else args, name) for name in some):
            found[key[: len(by)]] = paths
    missing = [flags for flags in wanted if tuple(flags.values()) not in found]
    if missing:
        print("no finished runs yet of what these commands make:")
    for flags in missing:
        flags = {"env": args.env, "eps_tr": args.eps_tr} | given(args, COMPARED | {"runs", *without_effect(flags["method"])}) | flags
        # What is not in the name of a run's folder needs another folder above it.
        apart = [name for name in flags if name not in ("env", "method", "eps_tr", "total_steps")]
        names = (name + "-".join(f"{value}" for value in np.atleast_1d(flags[name])) for name in apart)
        flags["runs"] = "/".join([args.runs, *names])
        print("    " + as_command("p2pdrl.py", flags | {"seeds": (0, 1, 2)}))
    if not found:
        fail(f"nothing to draw below {args.runs}/")
    return found


def test_return(envs, path: Path, args) -> float:
    """Mean return over peers and held-out domains at EPS_TEST, mean actions, at the end of a run."""
    policies = [numpy_policy(actor) for actor in policies_of(path)]
    return float(np.mean([row["return"] for row in evaluate(envs, policies, (EPS_TEST,), args.eval_domains, 0)]))


def learning_curves(axis, runs: dict[str, list[Path]]):
    """Training return against steps, a line for each method."""
    for name, paths in runs.items():
        steps = np.unique(read_csv(paths[0] / "log.csv")["step"])
        curves = np.stack([training_curve(path, steps) for path in paths])
        plot_interval(axis, steps, curves, with_seeds(name, len(paths)), METHODS.index(name))
    millions(axis)
    axis.set_ylabel("training return")


def test_curves(axis, runs: dict[str, list[Path]]):
    """Return in held-out domains against their strength, a line for each method."""
    for name, paths in runs.items():
        strengths, values = test_returns(paths[0])[0], np.stack([test_returns(path)[1] for path in paths])
        plot_interval(axis, strengths, values, with_seeds(name, len(paths)), METHODS.index(name), marker="o", markersize=4)
        print(f"{axis.get_title()} {name}, by seed: " + "; ".join(
            f"eps_te {eps:g}: {' '.join(f'{value:.0f}' for value in column)}" for eps, column in zip(strengths, values.T)))
    axis.set(xlabel="eps_te, strength of the randomisation", ylabel="return in held-out domains, mean action")


def figures_3_and_4(args):
    """Learning curves, or test return against eps_te: a panel for each environment, methods side by side."""
    methods = [method for method in METHODS if method != "self-kl"]  # that is Figure 7
    found = look_up(args, [{"env": args.env, "method": method} for method in methods])
    environments = sorted({env for env, _ in found})
    figure, axes = new_figure(columns=len(environments))
    for axis, env in zip(axes, environments):
        axis.set_title(env)
        runs = {method: found[env, method] for method in methods if (env, method) in found}
        (learning_curves if args.figure == "3" else test_curves)(axis, runs)
    return figure, f"eps_tr = {args.eps_tr:g}; mean over seeds, 95 % bootstrap interval"


def figures_2_and_6(args):
    """Training return at the end, and test return at EPS_TEST, against eps_tr; Figure 2 of PPO alone."""
    methods = ["ppo"] if args.figure == "2" else ["ppo", "p2pdrl"]
    usual = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    found = look_up(args, [{"method": method, "eps_tr": eps} for method in methods for eps in usual])
    figure, (left, right) = new_figure(columns=2)
    envs = make_envs(args, args.threads)
    for method in methods:
        strengths = sorted(eps for each, eps in found if each == method)
        seeds = min((len(found[method, eps]) for eps in strengths), default=0)  # the same number for each strength
        if not seeds:
            continue
        runs = [[found[method, eps][i] for eps in strengths] for i in range(seeds)]
        trained = [[training_curve(path, read_csv(path / "log.csv")["step"][-1:])[0] for path in row] for row in runs]
        tested = [[test_return(envs, path, args) for path in row] for row in runs]
        for axis, values in ((left, trained), (right, tested)):
            label, index = with_seeds(method, seeds), METHODS.index(method)
            plot_interval(axis, strengths, np.array(values), label, index, marker="o", markersize=4)
    left.set(title="training domains, last 20 iterations", ylabel="return, actions sampled")
    right.set(title=f"held-out domains, eps_te = {EPS_TEST:g}", ylabel="return, mean action")
    for axis in (left, right):
        axis.set_xlabel("eps_tr, strength of the randomisation in training")
    return figure, f"{args.env}; mean over seeds, 95 % bootstrap interval"


def folded(actor: GaussianActor) -> torch.Tensor:
    """The policy's mean as a network of raw observations, its normaliser taken into the first layer: one vector.

    Only so is a weighted sum of two policies' parameters a policy halfway between them.
    """
    net, norm = copy.deepcopy(actor.net), actor.norm
    with torch.no_grad():
        net[0].weight.copy_(actor.net[0].weight / norm.std())
        net[0].bias.copy_(actor.net[0].bias - net[0].weight @ norm.mean.float())
    return one_vector(net).detach().double()


def unfolded(vector: torch.Tensor, like: GaussianActor):
    """The numpy policy that `folded` made this vector from, but for the clipping of observations."""
    actor = copy.deepcopy(like)
    actor.norm = RunningNorm(like.norm.mean.shape, clip=math.inf)
    one_vector(actor.net).data.copy_(vector)
    return numpy_policy(actor)


def figure_5(args):
    """Return over the plane through a run's initial, middle and final policy, in training and in test domains."""
    from matplotlib.ticker import MaxNLocator

    found = look_up(args, [{"method": method} for method in ("ppo", "p2pdrl")])
    methods = [method for method in ("ppo", "p2pdrl") if (method,) in found]
    if not methods:
        fail("nothing to draw: neither of these two methods has a finished run")
    figure, axes = new_figure(columns=2, rows=len(methods))
    envs = make_envs(args, args.threads)
    for row, method in enumerate(methods):
        path = found[method,][0]
        steps = steps_of(path)
        if len(steps) < 3:
            fail(f"{path} kept no policy between its first and its last: a plane needs three (--evaluations 2 or more)")
        middle = min(steps[1:-1], key=lambda step: abs(step - steps[-1] / 2))
        actors = [policies_of(path, step)[0] for step in (steps[0], middle, steps[-1])]
        origin, second, third = (folded(actor) for actor in actors)
        # Coordinates in the plane: along the way from the initial to the middle policy, and across it.
        along = (second - origin) / (second - origin).norm()
        across = third - origin - ((third - origin) @ along) * along
        across /= across.norm()
        corners = np.array([[((w - origin) @ axis).item() for axis in (along, across)] for w in (origin, second, third)])
        margin = 0.25 * (corners.max(0) - corners.min(0))
        x, y = (np.linspace(low, high, 13) for low, high in zip(corners.min(0) - margin, corners.max(0) + margin))
        policies = [unfolded(origin + a * along + b * across, actors[-1]) for b in y for a in x]
        print(f"{method}: playing {len(policies)} policies in {2 * args.eval_domains} domains each")
        rows = evaluate(envs, policies, (args.eps_tr, EPS_TEST), args.eval_domains, 0)
        returns = np.array([each["return"] for each in rows]).reshape(len(y), len(x), 2, args.eval_domains).mean(3)
        for column, (where, eps) in enumerate((("training", args.eps_tr), ("test", EPS_TEST))):
            axis = axes[2 * row + column]
            levels = MaxNLocator(10).tick_values(min(0, returns.min()), returns.max())
            filled = axis.contourf(x, y, returns[:, :, column], levels=levels, cmap="viridis")
            figure.colorbar(filled, ax=axis, label="return, mean action")
            axis.plot(*corners.T, "o:", color="white", markeredgecolor="black")
            for corner, name in zip(corners, ("$w_1$", "$w_2$", "$w_3$")):
                box = {"boxstyle": "round,pad=0.1", "facecolor": "white", "alpha": 0.7, "linewidth": 0}
                axis.annotate(name, corner, xytext=(5, 7), textcoords="offset points", bbox=box)
            axis.set(title=f"{method}, {where} domains, eps = {eps:g}", ylabel="across")
            axis.set_xlabel("distance in parameter space, along $w_1 w_2$")
            axis.grid(False)
    points = f"$w_1$ initial, $w_2$ after {middle:,} steps, $w_3$ final"
    return figure, f"{args.env}, one seed, mean of {args.eval_domains} domains; {points}"


def figure_7(args):
    """Learning curves and test return of P2PDRL beside the agent that is regularised by itself."""
    methods = ["ppo", "p2pdrl", "self-kl"]
    found = look_up(args, [{"method": method} for method in methods])
    runs = {method: found[method,] for method in methods if (method,) in found}
    figure, (left, right) = new_figure(columns=2)
    learning_curves(left, runs)
    right.set_title("held-out domains")
    test_curves(right, runs)
    left.set_title("training domains")
    return figure, f"{args.env}, eps_tr = {args.eps_tr:g}; mean over seeds, 95 % bootstrap interval"


def figure_8a(args):
    """Test return at EPS_TEST against the final policy's entropy: PPO with entropy bonuses, P2PDRL without."""
    coefficients = [0.0, *(10.0**power for power in np.arange(-3, 2.1, 0.5))]
    wanted = [{"method": "ppo", "entropy_coef": float(f"{value:.3g}")} for value in coefficients]
    found = look_up(args, [*wanted, {"method": "p2pdrl", "entropy_coef": 0.0}])
    figure, (axis,) = new_figure()
    envs = make_envs(args, args.threads)
    for method, marker in (("ppo", "x"), ("p2pdrl", "o")):
        points = []
        for coefficient, paths in ((key[1], paths) for key, paths in found.items() if key[0] == method):
            for path in paths if method == "ppo" or coefficient == 0 else ():
                end = read_csv(path / "log.csv")["step"][-1:]
                points.append((training_curve(path, end, column="entropy")[0], test_return(envs, path, args)))
                if method == "ppo":
                    axis.annotate(f"{coefficient:g}", points[-1], xytext=(4, 4), textcoords="offset points", fontsize=7)
        if points:
            label = {"ppo": "ppo, with its --entropy-coef", "p2pdrl": "p2pdrl, without a bonus"}[method]
            axis.scatter(*zip(*points), marker=marker, color=COLOURS[METHODS.index(method)], label=label)
    axis.set_xlabel("entropy of the policy, last 20 iterations, nats")
    axis.set_ylabel(f"test return, eps_te = {EPS_TEST:g}")
    axis.margins(x=0.12)
    return figure, f"{args.env}, eps_tr = {args.eps_tr:g}; mean actions in held-out domains, a point for each run"


def figure_8bc(args):
    """Log variance of the actor's gradient over training."""
    found = look_up(args, [{"method": method, "gradient_variance": True} for method in ("ppo", "p2pdrl")])
    figure, (axis,) = new_figure()
    for method in ("ppo", "p2pdrl"):
        paths = found.get((method, True), [])
        if paths:
            steps = np.unique(read_csv(paths[0] / "log.csv")["step"])
            curves = np.stack([training_curve(path, steps, column="gradient_variance") for path in paths])
            plot_interval(axis, steps, curves, with_seeds(method, len(paths)), METHODS.index(method))
    millions(axis)
    axis.set_ylabel("log variance of the gradient")
    return figure, f"{args.env}, eps_tr = {args.eps_tr:g}; mean over agents and seeds, 95 % bootstrap interval"


def figure_9(args):
    """Cohort sizes: the steps of each agent held fixed (left), or those of all together (right).

    The return is that of mean actions in held-out domains of the training strength: the training return counts
    finished episodes only, which with few steps for each agent are the short ones.
    """
    one, two, four = {"method": "ppo", "agents": 1}, {"method": "p2pdrl", "agents": 2}, {"method": "p2pdrl", "agents": 4}
    size, total = 4096, args.total_steps
    wanted = [
        flags | {"steps_per_iteration": size * factor // 2, "total_steps": total * factor // 2}
        for flags, factor in ((one, 1), (two, 2), (four, 4), (one, 2), (four, 2))
    ]
    print("(--evaluations 20 gives smooth lines)")
    found = look_up(args, wanted)
    eps = min(args.eps_te, key=lambda each: abs(each - args.eps_tr))
    figure, (left, right) = new_figure(columns=2)
    for axis, chosen in ((left, wanted[:3]), (right, [wanted[3], wanted[1], wanted[4]])):
        for flags in chosen:
            paths, agents = found.get(tuple(flags.values()), []), flags["agents"]
            if paths:
                curves = [test_curve(path, eps) for path in paths]
                steps = max((curve[0] for curve in curves), key=len)
                curves = np.stack([curve[1] for curve in curves if len(curve[0]) == len(steps)])  # evaluated as often
                x = steps / agents if axis is left else steps
                label, index = with_seeds(f"K = {agents}", len(curves)), int(math.log2(agents))
                plot_interval(axis, x, curves, label, index, marker="o", markersize=3)
        millions(axis)
        axis.set_ylabel(f"test return, eps_te = {eps:g}")
    left.set(title=f"{size // 2} steps for each agent", xlabel="environment steps of each agent")
    right.set(title=f"{size} steps for all agents together")
    explained = "mean actions in held-out domains, mean over seeds, 95 % bootstrap interval; K = 1 is PPO"
    return figure, f"{args.env}, eps_tr = {args.eps_tr:g}; {explained}"


def figure_map(args):
    """Beyond the paper: return of trained policies against two of a domain's five numbers, wind and mass."""
    from matplotlib.patches import Rectangle

    found = look_up(args, [{"method": method} for method in ("ppo", "p2pdrl")])
    methods = [method for method in ("ppo", "p2pdrl") if (method,) in found]
    if not methods:
        fail("nothing to draw: neither of these two methods has a finished run")
    figure, axes = new_figure(columns=len(methods))
    envs = make_envs(args, args.threads)
    winds, masses = np.linspace(-5, 5, 11), np.linspace(0.5, 1.5, 11)  # Table 1 at strength 1
    maps = {}
    for method in methods:
        policies = [numpy_policy(actor) for path in found[method,] for actor in policies_of(path)]
        print(f"{method}: playing {len(policies)} policies in {len(winds) * len(masses)} domains")
        jobs = [(policy, Domain(wind=wind, mass=mass), 0) for mass in masses for wind in winds for policy in policies]
        maps[method] = np.reshape(episode_returns(envs, jobs), (len(masses), len(winds), -1)).mean(2)
    for axis, method in zip(axes, methods):
        highest = max(values.max() for values in maps.values())
        picture = axis.pcolormesh(winds, masses, maps[method], vmin=0, vmax=highest, cmap="viridis", shading="nearest")
        trained = {"xy": (-5 * args.eps_tr, 1 - 0.5 * args.eps_tr), "width": 10 * args.eps_tr, "height": args.eps_tr}
        axis.add_patch(Rectangle(**trained, fill=False, edgecolor="white", linestyle="--"))
        axis.set(title=with_seeds(method, len(found[method,])), xlabel="wind, N", ylabel="mass, factor of nominal")
        axis.grid(False)
    figure.colorbar(picture, ax=axes, label="return, mean action")
    return figure, f"{args.env}; dashed: the domains of training, eps_tr = {args.eps_tr:g}; mean over seeds and peers"


FIGURES = {
    "2": figures_2_and_6, "3": figures_3_and_4, "4": figures_3_and_4, "5": figure_5, "6": figures_2_and_6,
    "7": figure_7, "8a": figure_8a, "8bc": figure_8bc, "9": figure_9, "map": figure_map,
}  # fmt: skip


def draw_figure(args):
    """A figure of the paper from all finished runs whose settings are those of this command line."""
    figure, explained = FIGURES[args.figure](args)
    lines = {label: line for axis in figure.axes for line, label in zip(*axis.get_legend_handles_labels())}
    if len(lines) > 3:  # too many to leave the data uncovered
        figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=3, fontsize=8)
    else:
        for axis in figure.axes:
            if axis.get_legend_handles_labels()[0]:
                axis.legend(loc="best")
    figure.suptitle(textwrap.fill(explained, int(12 * figure.get_figwidth())), fontsize=10)
    path = Path(args.runs) / f"p2pdrl-figure-{args.figure}.png"
    save_figure(figure, path)
    print(f"figure: {path}")


def show(path: Path, write_gif: bool):
    """Every policy of a run in the first held-out domain of its eps_tr: in a window, one after the other, or as a
    moving picture, side by side."""
    try:
        args = Args(**json.loads((path / "config.json").read_text())["settings"])
    except Exception as error:  # whatever a missing or damaged file raises
        fail(f"{path} is no run of p2pdrl.py ({type(error).__name__})")
    actors = policies_of(path)
    if sys.platform == "linux" and write_gif:
        os.environ.setdefault("MUJOCO_GL", "egl")  # needs no screen
    elif sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        fail("no screen for a window here: --gif writes a moving picture instead")  # GLFW would abort the process
    size = {"width": 160, "height": 160} if write_gif else {}
    env = make_envs(args, 1, render_mode="rgb_array" if write_gif else "human", **size)[0]
    renderer = env.unwrapped.mujoco_renderer
    follow = {"type": int(mujoco.mjtCamera.mjCAMERA_TRACKING), "trackbodyid": int(env.model.jnt_bodyid[0])}
    renderer.default_cam_config = (renderer.default_cam_config or {}) | follow  # or the robot leaves the picture
    renderer.camera_id = None  # which would set the camera free again
    domain = held_out_domains(args.eps_tr, 1, env.position_draws)[0]
    print(domain)
    movies = []
    for actor in actors:
        try:
            movies.append(play(env, numpy_policy(actor), domain, movie_seconds=5 if write_gif else None))
        except Exception as error:  # each backend of OpenGL fails in a way of its own
            fail(f"cannot draw: no OpenGL to be had here ({' '.join(str(error).split())[:80]})")
    env.close()
    if write_gif:
        save_gif(movies, path / "policy.gif", fps=20)
        print(f"moving picture: {path / 'policy.gif'}")


def play(env, policy, domain, movie_seconds: float | None) -> list[np.ndarray]:
    """One episode with mean actions; with movie_seconds, the frames of its beginning at 20 per second."""
    obs, _ = env.reset(seed=0, options={"domain": domain})
    frames, total, step, over = [], 0.0, 0, False
    every = max(1, round(1 / (20 * env.unwrapped.dt)))
    while not over and not (movie_seconds and step * env.unwrapped.dt >= movie_seconds):
        if movie_seconds and step % every == 0:
            frames.append(env.render())
        obs, reward, died, out_of_time, _ = env.step(np.clip(policy(obs), env.action_space.low, env.action_space.high))
        total, step, over = total + reward, step + 1, died or out_of_time
    print(f"{step} steps, return {total:.0f}")
    return frames


def save_gif(movies: list[list[np.ndarray]], path: Path, fps: int):
    """Write movies side by side; one that ends early keeps its last frame."""
    from matplotlib.animation import FuncAnimation, PillowWriter

    frames = [
        np.concatenate([movie[min(i, len(movie) - 1)] for movie in movies], axis=1) for i in range(max(map(len, movies)))
    ]
    height, width = frames[0].shape[:2]
    figure, (axis,) = new_figure()
    figure.set_layout_engine("none")
    figure.set_size_inches(width / 100, height / 100)
    axis.set_position((0, 0, 1, 1))
    axis.axis("off")
    picture = axis.imshow(frames[0])
    animation = FuncAnimation(figure, lambda i: picture.set_data(frames[i]), frames=len(frames))
    try:
        animation.save(path, writer=PillowWriter(fps=fps), dpi=100)
    except OSError as error:
        fail(f"cannot write {path}: {error.strerror}")


def main():
    args = parse_args(Args, __doc__.splitlines()[0])
    if args.watch or args.gif:
        return show(Path(args.watch or args.gif), write_gif=not args.watch)
    if args.learning_rate is None:
        args.learning_rate = LEARNING_RATE[args.method]
    least = 2 if args.method in ("p2pdrl", "distral", "dnc") else 1
    if args.agents < least:
        fail(f"--agents {args.agents}: {args.method} needs at least {least}")
    if args.reset_every < 1:
        fail(f"--reset-every must be at least 1, but is {args.reset_every}")
    if not 0 <= args.alpha < math.inf or not math.isfinite(args.entropy_coef):
        fail("--alpha must not be negative, nor --alpha or --entropy-coef infinite")
    check_args(args, domains=args.agents)
    for name in without_effect(args.method):
        if not args.figure and getattr(args, name) != getattr(Args, name):
            fail(f"--{name.replace('_', '-')} changes nothing with --method {args.method}")
    if args.figure:
        draw_figure(args)
    elif args.seeds:
        make_envs(args, 1)  # what is wrong with it is said once, not by each seed
        run_seeds(args.seeds, args.jobs)
    else:
        train(args)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        fail("stopped; the same command, without --overwrite, goes on from the last checkpoint", status=130)
