# SPDX-FileCopyrightText: 2026 the authors of this repository
# SPDX-License-Identifier: MIT
"""P2PDRL: peer-to-peer distillation for reinforcement learning under domain randomisation.

    Zhao and Hospedales, "Robust Domain Randomised Reinforcement Learning through Peer-to-Peer Distillation", ACML 2021
    (PMLR 157; workshop version: arXiv 2012.04839). Sec., Table, Fig., Eq., line: see there. "Ours": not in the paper.

The idea
--------
A policy trained in many randomised domains copes with a new one, but the more the domains differ, the noisier its
gradient. P2PDRL gives each of K agents one domain at a time, where learning is easy, and adds one term to each agent's
PPO loss: stay close, on your own states, to what your peers would do there. Knowledge spreads through this term alone:
no data is exchanged, there is no central policy, and every agent ends up robust.
(`tests/plain_p2pdrl.py` is the same algorithm in a hundred plain lines.)

    code                    | paper               | shape, or what it is
    agents                  | K                   |
    domain                  | xi_i ~ Xi           | wind, gravity, friction, mass, position: see randomised_envs.py
    eps_tr, eps_te          | range of Xi         |
    actor, critic           | theta_i, phi_i      |
    batch                   | tau_i, B_i          | N steps of agent i in domain xi_i
    log_ratio               | log r(t)            | (N,)
    advantages              | A_{t,xi_i}          | (N,)
    targets                 | V^targ              | (N,)
    alpha, clip             | alpha, epsilon      |

    L_PPO(theta_i)  = E[min(r A, clip(r, 1 - epsilon, 1 + epsilon) A)]                                Eq. (2)
    L_dis(theta_i)  = 1/(K-1) sum_{k != i} E[ KL(pi_theta_i(.|s) || pi_theta_k(.|s)) ]                Eq. (3)
    L(theta_i)      = -L_PPO + alpha L_dis, which is minimised (the paper prints +L_PPO)              Eq. (4)
    L(phi_i)        = E[(V_phi_i(s) - V^targ)^2], which is minimised                                  line 15

The methods that it is compared with (Sec. 4.2, 4.4) run the same loop with other data and other teachers: one policy
trained by PPO or Distributed PPO, one that is kept close to itself (self-KL), agents with a central policy (Distral,
DnC). METHODS below says how they differ. A reader of P2PDRL can skip whatever mentions `central`, `old` or workers.

Commands (two cores)
--------------------
    python p2pdrl.py --env Hopper-v4 --total-steps 2e5          # toy: a minute, returns of 840 to 1420 at eps_te .2
    python p2pdrl.py --env Walker2d-v4 --eps-tr 0.2             # six to eight minutes, returns of 3200 to 4900
    python p2pdrl.py --env Walker2d-v4 --figure 4               # Figures 3 and 4, from the finished runs: seconds

To use it elsewhere, copy p2pdrl.py, baselines.py and randomised_envs.py.
"""

import copy
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from baselines import (
    Optimiser, Run, RunArgs, RunningNorm, compiled, discounted_sums, fail, find_runs, gae, generator, launch,
    make_envs, new_figure, numpy_policy, plot_lines, rollout, steps_per_agent,
)  # fmt: skip
from randomised_envs import Domain, episode_returns, evaluate


class Method(NamedTuple):
    """How a method differs from the others."""

    learning_rate: float  # App. A.2. Ours: self-KL takes P2PDRL's, since the paper replaces only the target of the KL
    learners: str  # "K" agents, each with a rollout of its own, or "one", which learns from all K rollouts
    one_domain: bool = False  # the K rollouts of an iteration are made in the same domain
    normalised_by_worker: bool = False  # advantages are normalised for each rollout ("worker") by itself
    teachers: str = "nobody"  # whose policy each agent is kept close to, and in which states
    both_ways: bool = False  # use both directions of the KL, not only KL(agent || teacher)
    central_learns: str = ""  # when a central policy learns from the agents; "" if there is none


METHODS = {  # "ppo" is the baseline in our results; most figures also show "ppo-union"
    "p2pdrl": Method(1e-4, "K", teachers="peers, in the agent's states"),
    "ppo": Method(3e-4, "one", one_domain=True),  # Sec. 4.2: "first randomly samples a domain"
    "ppo-union": Method(3e-4, "one"),  # the workshop version's PPO: the union of K domains
    # Heess et al. 2017. Ours: the norm of the averaged gradient is limited, not each worker's.
    "distributed-ppo": Method(3e-4, "one", normalised_by_worker=True),
    "self-kl": Method(1e-4, "one", one_domain=True, teachers="itself, before the iteration"),
    # Teh et al. 2017 (Distral), and Ghosh et al. 2018 (DnC, divide and conquer).
    "distral": Method(1e-4, "K", teachers="central policy", central_learns="after each minibatch"),
    "dnc": Method(1e-4, "K", teachers="peers, in their states", both_ways=True, central_learns="after each iteration"),
}


@dataclass
class Args(RunArgs):
    # environment
    env: str = "Walker2d-v4"  # a Gymnasium MuJoCo environment
    eps_tr: float = 0.2  # randomisation level in training, in [0, 1] (Sec. 4.3)

    # cohort
    method: Literal[tuple(METHODS)] = "p2pdrl"  # who learns from whom
    agents: int = 2  # K: number of agents; for methods with one learner, of rollouts in an iteration
    alpha: float = 1.0  # weight of the distillation loss (App. A.2)
    reset_every: int = 50  # R of DnC's paper: iterations after which its agents start again from their central policy

    # PPO (App. A.2, Table 2)
    total_steps: int = 2_000_000  # environment steps, summed over agents (Ours); another number is another run
    steps_per_iteration: int = 4096  # environment steps in each iteration, summed over agents
    learning_rate: float | None = None  # Adam's; if not given, the method's: 1e-4 or, for the three PPOs, 3e-4
    epochs: int = 10  # passes over an iteration's data
    minibatches: int = 32  # per epoch; of 64 steps by default, or, with one learner, of 128 from all rollouts (Ours)
    initial_std: float = 1.0  # standard deviation of the actions at the start, in each dimension
    clip: float = 0.2  # epsilon of Eq. (2)
    gamma: float = 0.99  # discount factor
    gae_lambda: float = 0.95  # of the advantage estimate
    entropy_coef: float = 0.0  # weight of an entropy bonus
    max_grad_norm: float = 0.5  # gradients are scaled down to this norm

    # log
    evaluations: int = 4  # evenly spaced over training, the last one at its end
    gradient_variance: bool = False  # log the variance of the actor's gradient in each iteration (Fig. 8b, c)

    def left_open(self) -> dict:
        """See RunArgs."""
        return {"learning_rate": METHODS[self.method].learning_rate}


# ---------------------------------------------------------------------------------------------------------
# Networks
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
        self.norm = RunningNorm((obs_size,))  # Ours: observations are normalised
        self.net = tanh_network(obs_size, action_size, gain=0.01)
        # Ours: the standard deviation does not depend on the state and starts at 1. With --initial-std 0.37 HalfCheetah
        # learns to run, with 1 to slide on its back; on Walker2d and Hopper .37 was not better.
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
# Losses
# ---------------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """N steps of one agent in its own domain(s)."""

    obs: torch.Tensor  # (N, obs)
    actions: torch.Tensor  # (N, act)
    log_probs: torch.Tensor  # (N,) log pi_theta_old(a|s)
    advantages: torch.Tensor  # (N,); in a minibatch (W, N / W), a row for each worker; W = 1 except in Distributed PPO
    targets: torch.Tensor  # (N,) V^targ

    def explained_variance(self) -> float:
        """1 - Var(targets - values) / Var(targets): how much the critic knows; 1 is best."""
        return 1 - (self.advantages.var() / (self.targets.var() + 1e-8)).item()


def gaussian_log_prob(mean, log_std, actions):
    """log Normal(actions; mean, exp(log_std)), summed over action dimensions: (N, act) -> (N,)."""
    return (-0.5 * ((actions - mean) / log_std.exp()) ** 2 - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


def gaussian_kl(p, q):
    """KL(p || q) of diagonal Gaussians, each a pair mean (N, act), log_std (act,) or (N, act): (N,)."""
    (mean_p, log_std_p), (mean_q, log_std_q) = p, q
    terms = (2 * (log_std_p - log_std_q)).exp() + ((mean_p - mean_q) / log_std_q.exp()) ** 2
    return (0.5 * (terms - 1) + log_std_q - log_std_p).sum(-1)


def ppo_loss(log_ratio, advantages, clip):                                                              # Eq. (2)
    """Clipped surrogate, negated: to be minimised. (N,), (N,) -> scalar"""
    assert log_ratio.shape == advantages.shape
    ratio = log_ratio.exp()
    return -torch.min(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages).mean()


def distillation_loss(pairs, both_ways=False):                                                          # Eq. (3)
    """Mean over teachers of KL(own || teacher). Teachers get no gradient. Scalar.

    pairs: for each teacher the agent's own policy and the teacher's in the same states, (mean, log_std) each.
    both_ways: half of KL(own || teacher) + KL(teacher || own) (Ours: DnC as in its authors' code).
    """
    divergences = []
    for own, teacher in pairs:
        teacher = tuple(each.detach() for each in teacher)
        kl = gaussian_kl(own, teacher)
        divergences.append(((kl + gaussian_kl(teacher, own)).mean() / 2) if both_ways else kl.mean())
    return sum(divergences) / len(divergences)


def central_loss(central, actors, all_obs):
    """Distral, DnC: mean over agents of KL(agent || central) on their states, a scalar. Agents get no gradient."""
    divergences = []
    for actor, obs in zip(actors, all_obs):  # Ours: P2PDRL's paper does not say which way the KL goes
        divergences.append(gaussian_kl(tuple(each.detach() for each in actor(obs)), central(obs)).mean())
    return sum(divergences) / len(divergences)


def value_loss(values, targets):                                                                        # line 15
    """Mean square error of the critic. (N,), (N,) -> scalar"""
    assert values.shape == targets.shape
    return ((values - targets) ** 2).mean()


def normalise_advantages(advantages):
    """Mean 0 and standard deviation 1 over the minibatch (N,). Ours: the paper does not mention it."""
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)


def agent_losses(actor, critic, teachers, batch, args):                                                 # Eq. (4)
    """Losses of an agent's actor and critic on a minibatch, and Agent.METRICS.

    teachers: pairs (teacher, states (N, obs)). The actor is kept close to the teacher in these states.
    """
    policy = actor(batch.obs)  # once for both terms
    log_ratio = gaussian_log_prob(*policy, batch.actions) - batch.log_probs
    advantages = torch.cat([normalise_advantages(each) for each in batch.advantages])  # a row for each worker
    surrogate = ppo_loss(log_ratio, advantages, args.clip)
    # Its own states are the very tensor batch.obs: there the policy is not computed twice.
    pairs = [(policy if obs is batch.obs else actor(obs), teacher(obs)) for teacher, obs in teachers]
    distillation = distillation_loss(pairs, METHODS[args.method].both_ways) if pairs else torch.zeros_like(surrogate)
    entropy = (actor.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum()
    actor_loss = surrogate + args.alpha * distillation - args.entropy_coef * entropy
    critic_loss = value_loss(critic(batch.obs), batch.targets)
    approx_kl = (log_ratio.exp() - 1 - log_ratio).mean()
    clip_fraction = ((log_ratio.exp() - 1).abs() > args.clip).float().mean()
    return (actor_loss, critic_loss), torch.stack(
        [surrogate, distillation, critic_loss, entropy, approx_kl, clip_fraction])


# ---------------------------------------------------------------------------------------------------------
# One update
# ---------------------------------------------------------------------------------------------------------


class Agent(nn.Module):
    """Actor theta_i, critic phi_i, their optimiser, and the running scale of this agent's rewards."""

    # surrogate: Eq. (2), negated
    # distillation: Eq. (3), or what the method has in its place, in nats
    # value_loss: line 15, in units of scaled reward, squared
    # entropy: of the policy, in nats
    # approx_kl: KL(old || new) of this iteration's steps, estimated from the sampled actions
    # clip_fraction: share of steps whose ratio lies outside [1 - epsilon, 1 + epsilon]
    METRICS = "surrogate", "distillation", "value_loss", "entropy", "approx_kl", "clip_fraction"

    def __init__(self, actor: GaussianActor, critic: ValueCritic, args):
        super().__init__()
        self.actor, self.critic, self.reward_scale = actor, critic, RunningNorm(())
        # Ours: Adam's epsilon, limits of the gradients' norms (actor and critic apart), a constant learning rate.
        self.optimiser = Optimiser([actor, critic], args.learning_rate, args, 1e-5, args.max_grad_norm)

    def update(self, minibatch: Batch, teachers, args):                                              # lines 13, 15
        """Take one gradient step on Eq. (4) and the value loss; return the metrics. teachers: see agent_losses."""
        return self.optimiser.minimise(agent_losses, self.actor, self.critic, teachers, minibatch, args)


class Central(nn.Module):
    """The central policy of Distral and DnC. It has no data of its own: it learns from the agents, supervised."""

    def __init__(self, actor: GaussianActor, args):
        super().__init__()
        self.actor = actor
        self.optimiser = Optimiser([actor], args.learning_rate, args, 1e-5, args.max_grad_norm)

    def update(self, agents, minibatches):
        """One step towards the agents, on a minibatch of states from each."""
        inputs = [agent.actor for agent in agents], [batch.obs for batch in minibatches]
        self.optimiser.minimise(central_loss, self.actor, *inputs)

    def learn_and_restart(self, agents, batches, rngs, iteration: int, args):
        """DnC: learn from the iteration's data; every `reset_every` iterations agents start again from this policy.

        Ours, as in the code of DnC's authors: one pass over the data, or 30 before a restart. Agents restart with the
        central policy's weights and its observation statistics, without which the weights mean nothing. They keep their
        standard deviations, critics and optimisers.
        """
        restart = (iteration + 1) % args.reset_every == 0
        for _ in range(30 if restart else 1):
            for minibatches in shuffle_all(batches, rngs, args):
                self.update(agents, minibatches)
        for agent in agents if restart else ():
            agent.actor.load_state_dict(self.actor.state_dict() | {"log_std": agent.actor.log_std})


def teachers_of(i: int, agents, minibatches, old, central, args) -> list[tuple[nn.Module, torch.Tensor]]:
    """Whose policy agent i is kept close to, and in which states: pairs (actor, states (N, obs))."""
    own, peers = minibatches[i].obs, [k for k in range(len(agents)) if k != i]
    match METHODS[args.method].teachers:
        case "peers, in the agent's states":  # P2PDRL: the peers as they are now
            return [(agents[k].actor, own) for k in peers]
        case "peers, in their states":
            return [(agents[k].actor, minibatches[k].obs) for k in peers]
        case "central policy":
            return [(central.actor, own)]
        case "itself, before the iteration":
            return [(old, own)]
        case "nobody":
            return []


@torch.no_grad()
def compute_advantages(agent, rollouts, args):                                                          # line 14
    """Advantages and value targets by the agent's current critic, two tensors (N,), in the order of its rollouts."""
    scale, discounts, estimates = agent.reward_scale.std().item(), (args.gamma, args.gae_lambda), []
    for data in rollouts:
        # Ours: a time limit or the end of the batch is not a death: the value of the last observation is bootstrapped.
        both = [torch.as_tensor(obs, device=args.device) for obs in (data.obs, data.next_obs[data.ends])]
        values, last_values = (agent.critic(obs).double().cpu().numpy() for obs in both)
        next_values = np.roll(values, -1)  # the next observation is the next row's, whose value is known already,
        next_values[data.ends] = last_values  # except where an episode ends
        advantages = gae(data.rewards / scale, values, next_values, data.terminated, data.ends, *discounts)
        estimates.append((advantages, advantages + values))
    return [torch.as_tensor(np.concatenate(each), dtype=torch.float32, device=args.device) for each in zip(*estimates)]


@torch.no_grad()
def make_batch(agent, rollouts, args) -> Batch:
    """Join an agent's rollouts into a batch, after updating the scale of its rewards with them."""
    for data in rollouts:  # Ours: rewards are divided by the running standard deviation of the discounted return
        agent.reward_scale.update(discounted_sums(data.rewards, data.ends, args.gamma))
    obs = torch.as_tensor(np.concatenate([data.obs for data in rollouts]), device=args.device)
    actions = torch.as_tensor(np.concatenate([data.actions for data in rollouts]), device=args.device)
    log_probs = gaussian_log_prob(*agent.actor(obs), actions)
    return Batch(obs, actions, log_probs, *compute_advantages(agent, rollouts, args))


def shuffle(batch: Batch, minibatches: int, rng: np.random.Generator) -> list[Batch]:
    """The batch in random order, cut into equal minibatches."""
    order = torch.as_tensor(rng.permutation(len(batch.obs)), device=batch.obs.device)
    return [Batch(*columns) for columns in zip(*(column[order].chunk(minibatches) for column in batch))]


def shuffle_all(batches, rngs, args):
    """Iterate over lists of minibatches, one from each agent. Advantages have a row for each worker: (W, N / W)."""
    by_worker = METHODS[args.method].normalised_by_worker
    if by_worker:  # the only learner's batch, cut into those of the workers
        batches = [Batch(*columns) for columns in zip(*(column.chunk(args.agents) for column in batches[0]))]
    for pieces in zip(*(shuffle(batch, args.minibatches, rng) for batch, rng in zip(batches, rngs))):
        pieces = [piece._replace(advantages=piece.advantages[None]) for piece in pieces]
        yield [Batch(*map(torch.cat, zip(*pieces)))] if by_worker else pieces  # joined: as many steps of each worker


def actor_gradient(agent, teachers, minibatch, args):
    """Gradient of Eq. (4) with respect to theta_i, as one vector (n,)."""
    (actor_loss, _), _ = agent_losses(agent.actor, agent.critic, teachers, minibatch, args)
    return torch.cat([each.flatten() for each in torch.autograd.grad(actor_loss, tuple(agent.actor.parameters()))])


def log_gradient_variance(i: int, agents, batches, old, central, rng, args) -> float:
    """Log of the variance of Eq. (4)'s gradient over 64 minibatches of 64 steps, averaged over theta_i (Sec. 4.4).

    Ours: the average over parameters, and the data: each learner's own; for a single learner, all K rollouts.
    """
    gradient, samples = compiled(actor_gradient), []
    for _ in range(64):
        rows = torch.as_tensor(rng.permutation(len(batches[i].obs))[:64], device=args.device)
        minibatches = [Batch(*(column[rows] for column in batch)) for batch in batches]
        minibatch = minibatches[i]._replace(advantages=minibatches[i].advantages[None])
        samples.append(gradient(agents[i], teachers_of(i, agents, minibatches, old, central, args), minibatch, args))
    return torch.stack(samples).var(0).mean().log().item()


# ---------------------------------------------------------------------------------------------------------
# The cohort loop
# ---------------------------------------------------------------------------------------------------------


def train(args):
    """Algorithm 1, and the methods it is compared with."""
    method, run = METHODS[args.method], Run(args, "p2pdrl", args.agents)  # with an environment for each agent
    args, envs, steps = run.args, run.envs, steps_per_agent(args, args.agents)
    if method.learners == "K" and args.agents < 2:
        fail(f"--agents {args.agents}: {args.method} needs at least 2")
    obs_size, action_size = envs[0].observation_space.shape[0], envs[0].action_space.shape[0]

    actor, critic = GaussianActor(obs_size, action_size, args.initial_std), ValueCritic(obs_size)       # line 2
    learners = range(args.agents if method.learners == "K" else 1)
    agents = [Agent(copy.deepcopy(actor), copy.deepcopy(critic), args) for _ in learners]               # line 3
    acting = agents * (args.agents // len(agents))  # who acts in each of the K domains: each agent, or one K times
    central = Central(copy.deepcopy(actor), args) if method.central_learns else None
    old = copy.deepcopy(actor).to(args.device) if method.teachers == "itself, before the iteration" else None
    # Ours, as the paper does not say whom it tests: every peer, or the central policy (as agent -1) if there is one.
    tested = {-1: central.actor} if central else {i: agents[i].actor for i in learners}

    parts = {f"agent{i}": agents[i] for i in learners} | ({"central": central} if central else {})  # what is saved
    for iteration in run.iterations(parts, steps * args.agents):                                        # line 4
        rngs = [generator(args.seed, i, iteration) for i in range(args.agents)]                         # lines 5 to 8
        domains = [env.sample_domain(args.eps_tr, rng) for env, rng in zip(envs, rngs)]                 # line 6
        domains = domains[:1] * args.agents if method.one_domain else domains
        policies = [numpy_policy(agent.actor) for agent in acting]
        stds = [agent.actor.log_std.exp().detach().cpu().numpy() for agent in acting]
        rollouts = list(run.pool.map(rollout, envs, policies, stds, domains, [steps] * args.agents, rngs))  # line 7
        data = [rollouts[i :: len(agents)] for i in learners]  # K learners: [rollouts[i]] each; one: all of them
        batches = list(run.pool.map(make_batch, agents, data, [args] * len(agents)))                    # line 14
        rows = [{"explained_variance": batch.explained_variance()} for batch in batches]
        if old:
            old.load_state_dict(agents[0].actor.state_dict())
        if args.gradient_variance:
            for i in learners:
                rng = generator(args.seed, i, iteration, "variance")
                rows[i]["gradient_variance"] = log_gradient_variance(i, agents, batches, old, central, rng, args)

        metrics = torch.zeros(len(agents), len(Agent.METRICS), device=args.device)
        epochs = args.epochs if iteration > 0 else 0  # Ours: the first one only gathers the normalisers' statistics
        for epoch in range(epochs):                                                                     # line 9
            # Ours: advantages once an epoch, not for each minibatch; with one learner once an iteration, as in PPO.
            if epoch > 0 and method.learners == "K":
                estimates = run.pool.map(compute_advantages, agents, data, [args] * len(agents))        # line 14
                batches = [batch._replace(advantages=a, targets=t) for batch, (a, t) in zip(batches, estimates)]
            for minibatches in shuffle_all(batches, rngs, args):                                        # lines 10, 12
                for i, agent in enumerate(agents):                                                      # line 11
                    teachers = teachers_of(i, agents, minibatches, old, central, args)
                    metrics[i] += agent.update(minibatches[i], teachers, args)                          # lines 13, 15
                if method.central_learns == "after each minibatch":
                    central.update(agents, minibatches)
        if method.central_learns == "after each iteration" and iteration > 0:
            central.learn_and_restart(agents, batches, rngs, iteration, args)

        for i, agent in enumerate(agents):
            for norm in (agent.actor.norm, agent.critic.norm):  # only now: the data was seen with the old statistics
                for each in data[i]:
                    norm.update(each.obs)
            returns = np.concatenate([each.returns for each in data[i]])
            row = {"return": returns.mean(), "episodes": len(returns)} | rows[i]
            run.log(i, agent, row, metrics[i] / (args.epochs * args.minibatches))  # means; 0 in the first iteration
        if central:
            for each in rollouts:
                central.actor.norm.update(each.obs)
        if iteration == 0:
            run.evaluate({}, [*tested.values()])  # saved, not evaluated: Figure 5 starts from this policy
        if run.evaluation_due:
            run.evaluate({i: numpy_policy(actor) for i, actor in tested.items()}, [*tested.values()])


# ---------------------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------------------

EPS_TEST = 0.5  # level of the "pre-defined" test domains of Figures 2, 5, 6 and 8a; the paper gives it for Figure 6
LEVELS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # eps_tr in Figures 2 and 6
COMPARED = {method: {"method": method} for method in ("ppo", "ppo-union", "p2pdrl")}  # in most figures
INTERVAL = "mean over seeds, 95 % bootstrap interval"


def load_actors(run, step: int | None = None) -> list[GaussianActor]:
    """The policies that a run was evaluated with at this step; the last ones if None."""
    return run.networks(lambda state: GaussianActor(len(state["norm.mean"]), len(state["log_std"])), step)


def load_policies(run) -> list:
    """A run's last policies as functions obs (obs,) -> mean action (act,)."""
    return [numpy_policy(actor) for actor in load_actors(run)]


def test_return(envs, run, args) -> float:
    """Mean return over peers and held-out domains at EPS_TEST, deterministic policy, at the end of a run."""
    policies = dict(enumerate(load_policies(run)))
    return float(np.mean([row["return"] for row in evaluate(envs, policies, (EPS_TEST,), args.eval_domains)]))


LINES = {
    "3": {method: {"method": method} for method in METHODS if method != "self-kl"},  # that is Figure 7
    "7": COMPARED | {"self-kl": {"method": "self-kl"}},
    "controls": {  # beyond the paper: P2PDRL without distillation, and each method at the other's learning rate
        "p2pdrl": {"method": "p2pdrl"},
        "p2pdrl, alpha 0": {"method": "p2pdrl", "alpha": 0.0},  # peers that know nothing of each other
        "p2pdrl, learning rate 3e-4": {"method": "p2pdrl", "learning_rate": 3e-4},
        "ppo": {"method": "ppo"},
        "ppo, learning rate 1e-4": {"method": "ppo", "learning_rate": 1e-4},
    },
}


def figure_returns(args):
    """Figures 3 (left) and 4 (right), 7, controls: learning curves, and test return against eps_te."""
    found = find_runs(args, "p2pdrl", LINES["3" if args.figure == "4" else args.figure])
    figure, (left, right) = new_figure(columns=2)
    trained = {label: [run.training_curve() for run in runs] for label, runs in found.items()}
    x = args.eps_te
    tested = {label: [(x, [run.test_curve(eps)[1][-1] for eps in x]) for run in runs] for label, runs in found.items()}
    plot_lines(left, trained, "environment steps, all agents", "training return")
    plot_lines(right, tested, "eps_te, randomisation level", "return in held-out domains", marker="o")
    return figure, f"{args.env}, eps_tr = {args.eps_tr:g}; {INTERVAL}"


def figures_2_and_6(args):
    """Training return at the end, and test return at EPS_TEST, against eps_tr; Figure 2 of PPO alone."""
    methods = list(COMPARED)[: 2 if args.figure == "2" else 3]
    wanted = {f"{method}, eps_tr {eps:g}": {"method": method, "eps_tr": eps} for method in methods for eps in LEVELS}
    found, envs = find_runs(args, "p2pdrl", wanted), make_envs(args, args.threads)
    trained, tested = ({method: [] for method in methods} for _ in range(2))
    for method in methods:
        pairs = [(eps, run) for eps in LEVELS for run in found[f"{method}, eps_tr {eps:g}"]]
        for seed in sorted({run.settings["seed"] for _, run in pairs}):
            levels, runs = zip(*((eps, run) for eps, run in pairs if run.settings["seed"] == seed))
            trained[method].append((levels, [run.training_curve()[1][-1] for run in runs]))
            tested[method].append((levels, [test_return(envs, run, args) for run in runs]))
    figure, (left, right) = new_figure(columns=2)
    for axis, lines, policy in ((left, trained, "actions sampled"), (right, tested, "deterministic policy")):
        plot_lines(axis, lines, "eps_tr, randomisation level in training", f"return, {policy}", marker="o")
    left.set_title("training domains, last 20 iterations")
    right.set_title(f"held-out domains, eps_te = {EPS_TEST:g}")
    return figure, f"{args.env}; {INTERVAL}"


def folded(actor: GaussianActor) -> torch.Tensor:
    """The policy's mean as a network of raw observations, its normaliser taken into the first layer: one vector.

    Without this a weighted sum of two policies would mix weights that expect differently normalised observations.
    """
    net, norm = copy.deepcopy(actor.net), actor.norm
    with torch.no_grad():
        net[0].weight.copy_(actor.net[0].weight / norm.std())
        net[0].bias.copy_(actor.net[0].bias - net[0].weight @ norm.mean.float())
    return nn.utils.parameters_to_vector(net.parameters()).detach().double()


def unfolded(vector: torch.Tensor, like: GaussianActor):
    """The numpy policy that `folded` made this vector from, except that observations are not clipped."""
    actor = copy.deepcopy(like)
    actor.norm = RunningNorm(like.norm.mean.shape, clip=math.inf)
    nn.utils.vector_to_parameters(vector.float(), actor.net.parameters())
    return numpy_policy(actor)


def plane_through(first, second, third):
    """Of three points (n,): unit vectors along first-second and across it, and the points' coordinates (3, 2)."""
    along = (second - first) / (second - first).norm()
    across = third - first - ((third - first) @ along) * along
    across /= across.norm()
    corners = [[((point - first) @ axis).item() for axis in (along, across)] for point in (first, second, third)]
    return along, across, np.array(corners)


def figure_5(args):
    """Return over the plane through a run's initial, middle and final policy, at the level of training and of the test.

    The paper's middle policy is that after 8 million steps. Here it is the one nearest to 40 % of the run.
    """
    found = {method: runs for method, runs in find_runs(args, "p2pdrl", COMPARED).items() if runs}
    levels = sorted({args.eps_tr, EPS_TEST})
    figure, axes = new_figure(columns=len(levels), rows=len(found))
    envs, domains = make_envs(args, args.threads), min(args.eval_domains, 10)  # more would take hours
    planes = {}
    for method, runs in found.items():
        steps = runs[0].steps()
        if len(steps) < 3:
            fail(f"{runs[0].path} kept no policy between its first and its last: --evaluations 2 or more")
        middle = min(steps[1:-1], key=lambda step: abs(step - 0.4 * steps[-1]))
        actors = [load_actors(runs[0], step)[0] for step in (steps[0], middle, steps[-1])]
        origin = folded(actors[0])
        along, across, corners = plane_through(*map(folded, actors))
        ends = zip(corners.min(0), corners.max(0))  # and a quarter beyond
        x, y = (np.linspace(1.25 * low - 0.25 * high, 1.25 * high - 0.25 * low, 13) for low, high in ends)
        policies = dict(enumerate(unfolded(origin + a * along + b * across, actors[-1]) for b in y for a in x))
        print(f"{method}: playing {len(policies)} policies at {len(levels)} levels, in {domains} domains each")
        returns = [row["return"] for row in evaluate(envs, policies, levels, domains)]
        planes[method] = x, y, corners, np.reshape(returns, (len(y), len(x), -1, domains)).mean(3)
    everywhere = np.array([returns for *_, returns in planes.values()])
    steps_of_colour = np.linspace(min(0, everywhere.min()), everywhere.max(), 11)
    for row, (method, (x, y, corners, returns)) in enumerate(planes.items()):
        for column, (axis, eps) in enumerate(zip(axes[len(levels) * row :], levels)):
            surface = axis.contourf(x, y, returns[:, :, column], levels=steps_of_colour)
            axis.plot(*corners.T, "o:", color="white", markeredgecolor="black")
            for name, at in zip(("$w_1$", "$w_2$", "$w_3$"), corners):
                axis.annotate(name, at, xytext=(5, 7), textcoords="offset points", bbox={"color": "white", "pad": 1})
            axis.set(title=f"{method}, eps_te = {eps:g}", xlabel="parameters, along $w_1 w_2$", ylabel="across")
    figure.colorbar(surface, ax=axes, label="return, deterministic policy")
    points = f"$w_1$ initial, $w_2$ after {middle:,} steps, $w_3$ after {steps[-1]:,}"
    return figure, f"{args.env}, one seed, mean of {domains} domains; {points}"


def figure_8a(args):
    """Test return at EPS_TEST against the final policy's entropy: PPO with entropy bonuses, P2PDRL without."""
    coefficients = [0.0, *(float(f"{10**power:.3g}") for power in np.arange(-3, 2.1, 0.5))]
    wanted = {
        f"{method}, {value:g}": {"method": method, "entropy_coef": value}
        for method in ("ppo", "ppo-union", "p2pdrl") for value in (coefficients if method != "p2pdrl" else (0.0,))
    }
    found, envs = find_runs(args, "p2pdrl", wanted), make_envs(args, args.threads)
    figure, (axis,) = new_figure()
    for method, marker in (("ppo", "x"), ("ppo-union", "+"), ("p2pdrl", "o")):
        runs = [run for label, runs in found.items() if label.startswith(f"{method},") for run in runs]
        points = [(run.training_curve("entropy")[1][-1], test_return(envs, run, args)) for run in runs]
        axis.scatter(*np.reshape(points, (-1, 2)).T, marker=marker, label=method if runs else None)
        for run, point in zip(runs, points):
            axis.annotate(f"{run.settings['entropy_coef']:g}", point, xytext=(4, 4), textcoords="offset points", size=7)
    axis.set(xscale="symlog", xlabel="entropy, last 20 iterations, nats", ylabel=f"test return, eps_te = {EPS_TEST:g}")
    return figure, f"{args.env}, eps_tr = {args.eps_tr:g}; at each run, its --entropy-coef"


def figure_8bc(args):
    """Log variance of the actor's gradient over training."""
    figure, (axis,) = new_figure()
    wanted = {method: line | {"gradient_variance": True} for method, line in COMPARED.items()}
    found = find_runs(args, "p2pdrl", wanted)
    lines = {method: [run.training_curve("gradient_variance") for run in runs] for method, runs in found.items()}
    plot_lines(axis, lines, "environment steps, all agents", "log variance of the gradient")
    return figure, f"{args.env}, eps_tr = {args.eps_tr:g}; {INTERVAL}"


def figure_9(args):
    """Cohort sizes: the steps of each agent held fixed (left), or those of all together (right).

    The return is that of deterministic policies in held-out domains of the training level: the training return counts
    finished episodes (if no episode finished, the unfinished one), which are short where each agent has few steps.
    """
    eps = min(args.eps_te, key=lambda each: abs(each - args.eps_tr))
    figure, axes = new_figure(columns=2)
    for axis, fixed in zip(axes, ("each agent", "all agents")):
        wanted = {}
        for agents in (1, 2, 4):
            factor = agents / 2 if fixed == "each agent" else 1
            sizes = {name: int(getattr(args, name) * factor) for name in ("steps_per_iteration", "total_steps")}
            wanted[f"K = {agents}"] = {"method": "ppo" if agents == 1 else "p2pdrl", "agents": agents} | sizes
        found, lines = find_runs(args, "p2pdrl", wanted), {}
        for label, runs in found.items():
            shared = wanted[label]["agents"] if fixed == "each agent" else 1
            lines[label] = [(steps / shared, returns) for steps, returns in (run.test_curve(eps) for run in runs)]
        plot_lines(axis, lines, f"environment steps, {fixed}", f"test return, eps_te = {eps:g}", marker="o")
        axis.set_title(f"the same steps for {fixed}" + " together" * (fixed == "all agents"))
    return figure, f"{args.env}, eps_tr = {args.eps_tr:g}; deterministic policies, {INTERVAL}; K = 1 is PPO"


def figure_map(args):
    """Beyond the paper: return of trained policies against two numbers of a domain, wind and mass."""
    from matplotlib.patches import Rectangle

    found = {method: runs for method, runs in find_runs(args, "p2pdrl", COMPARED).items() if runs}
    figure, axes = new_figure(columns=len(found))
    envs = make_envs(args, args.threads)
    wind, *_, mass, _ = args.ranges
    winds, masses = np.linspace(-wind, wind, 11), np.linspace(1 - mass, 1 + mass, 11)
    maps = []
    for method, runs in found.items():
        policies = [policy for run in runs for policy in load_policies(run)]
        print(f"{method}: playing {len(policies)} policies in {len(winds) * len(masses)} domains")
        jobs = [(policy, Domain(wind=wind, mass=mass), 0) for mass in masses for wind in winds for policy in policies]
        maps.append(np.reshape(episode_returns(envs, jobs), (len(masses), len(winds), -1)).mean(2))
    for axis, (method, runs), values in zip(axes, found.items(), maps):
        picture = axis.pcolormesh(winds, masses, values, vmin=min(0, np.min(maps)), vmax=np.max(maps))
        corner, size = (-wind * args.eps_tr, 1 - mass * args.eps_tr), (2 * wind * args.eps_tr, 2 * mass * args.eps_tr)
        axis.add_patch(Rectangle(corner, *size, fill=False, edgecolor="white", linestyle="--"))
        axis.set(title=f"{method}, {len(runs)} seeds", xlabel="wind, N", ylabel="mass, factor of nominal")
    figure.colorbar(picture, ax=axes, label="return, deterministic policy")
    return figure, f"{args.env}; dashed: the domains of training, eps_tr = {args.eps_tr:g}; mean over seeds and peers"


FIGURES = {
    "2": figures_2_and_6, "3": figure_returns, "4": figure_returns, "5": figure_5, "6": figures_2_and_6,
    "7": figure_returns, "8a": figure_8a, "8bc": figure_8bc, "9": figure_9, "controls": figure_returns,
    "map": figure_map,
}  # fmt: skip


if __name__ == "__main__":
    launch(Args, train, FIGURES, load_policies)
