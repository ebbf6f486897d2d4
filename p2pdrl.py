"""P2PDRL: peer-to-peer distillation for reinforcement learning under domain randomisation.

    Zhao and Hospedales, "Robust Domain Randomised Reinforcement Learning through Peer-to-Peer Distillation". The
    workshop version is arXiv 2012.04839 (Deep RL Workshop, NeurIPS 2020); the full version, to which sections, tables
    and figures here refer, is ACML 2021 (PMLR 157).

The idea
--------
A policy trained in many randomised domains copes with a new one, but the more the domains differ, the noisier
its gradient. P2PDRL gives each of K agents one domain at a time, where learning is easy, and adds one term to
each agent's PPO loss: stay close, on your own states, to what your peers would do there. Knowledge spreads
through this term alone; no data is exchanged, there is no central policy, and every agent ends up robust.
(`tests/plain_p2pdrl.py` is the same algorithm in a hundred plain lines.)

    code                    | paper               | shape
    agents                  | K                   |
    domain                  | xi_i ~ Xi           | wind, gravity, friction, mass, position: see randomised_envs.py
    eps_tr, eps_te          | range of Xi         |
    actor, critic           | theta_i, phi_i      |
    batch                   | tau_i, B_i          | N steps of agent i in domain xi_i
    log_ratio               | log r(t)            | (N,)
    advantages              | A_{t,xi_i}          | (N,)
    targets                 | V^targ              | (N,)
    alpha, clip             | alpha, epsilon      |

    L_PPO(theta_i)  = E[min(r A, clip(r, 1 - epsilon, 1 + epsilon) A)]          (maximised)           Eq. (2)
    L_dis(theta_i)  = 1/(K-1) sum_{k != i} E[ KL(pi_theta_i(.|s) || pi_theta_k(.|s)) ]                Eq. (3)
    L(theta_i)      = L_PPO + alpha L_dis          (with the sign of Eq. (2) turned: minimised)       Eq. (4)

What it is compared with (Sec. 4.2, 4.4): the same loop, other data and other peers
----------------------------------------------------------------------------------
    --method        | learns                      | and stays close to                | then
    p2pdrl          | K agents, one domain each   | every peer, on its own states     |
    ppo             | one, K rollouts in one      |                                   |
                    | domain                      |                                   |
    ppo-union       | one, a rollout in each of   |                                   |
                    | K domains (the workshop's)  |                                   |
    distributed-ppo | one, the mean gradient of   |                                   |
                    | K workers, a domain each    |                                   |
    self-kl         | like ppo                    | itself, before this iteration     |
    distral         | K agents, one domain each   | a central policy, on the agent's  | after each step, the central
                    |                             | own states                        | policy takes one towards them
    dnc             | K agents, one domain each   | every peer, on the peer's states, | after each iteration, a central
                    |                             | KL in both directions             | policy is fitted to the agents;
                    |                             |                                   | at times they restart from it

    L_reg(theta)    = E[ KL(pi_theta(.|s) || pi_theta_old(.|s)) ]                           self-kl, Sec. 4.4

Where this differs from, or completes, the paper
------------------------------------------------
* Eq. (2) is printed as a loss that is minimised, without its minus sign. It has one here.
* Not stated there, chosen here: observations normalised by running statistics inside each policy (frozen while
  an iteration's data is in use; the first iteration does nothing but gather them), rewards divided by the
  running standard deviation of the discounted return, gradient norm at most .5 (actor and critic apart),
  constant learning rate, orthogonal initialisation (gain sqrt 2; .01 and 1 for the heads), standard deviations
  independent of the state and starting at 1, advantages normalised per minibatch, neither value clipping nor
  entropy bonus, Adam's epsilon 1e-5. Neither version states its total of steps.
* The initial standard deviation decides how HalfCheetah moves: with 1 it slides on its back, with `--initial-std 0.37`
  it runs, three times as fast. On Walker2d and Hopper .37 was not better, so 1 is the default, as elsewhere.
* An epoch has 32 minibatches (Table 2). For K = 2 an agent's have 64 steps each, as in the workshop's version; those of
  the methods with one learner have 128. (The workshop's PPO has 64: `--method ppo-union --minibatches 64`.)
* Line 14 recomputes V^targ for each minibatch. Here targets and advantages are computed anew for each epoch, with the
  critic as it then is. The methods with one learner compute them once for each iteration, as in the PPO paper. Which is
  better was not established.
* Time limits and the end of the batch are not deaths: the future is bootstrapped there. Every iteration begins with a
  reset. Training returns are means over finished episodes; an episode that this reset cuts counts only where its
  rollout has no finished one.
  Actions are clipped to the robot's range by the environment only; their densities are of the unclipped ones.
* PPO's rollouts of an iteration share one domain ("randomly samples a domain", Sec. 4.2). There are K of them, so that
  it has as much data as the cohort. Self-KL is the same PPO with the KL term and P2PDRL's learning rate, as the paper
  gives none for it.
* Distributed PPO: the gradient is that of the workers' joined minibatches, with advantages normalised for each worker;
  its norm is limited, not that of each worker's.
* Distral and DnC are described in a sentence each. Distral's central policy minimises, at each step, the mean over
  agents of KL(agent || central) on the agents' states. DnC follows its authors' code in the penalty (both directions of
  the KL halved and added, mean over peers), the period (R = 50, `--reset-every`), the passes of the central policy (one
  for each iteration, 30 before agents restart) and the restart (all but the standard deviations); its central policy
  minimises the same KL as Distral's and does no reinforcement learning of its own. Agents start again with the
  central policy's observation statistics, without which its weights would mean something else.
* The paper does not say which peer it evaluates. All are evaluated here (of Distral and DnC the central policy), as a
  deterministic policy (its mean), in held-out domains that are the same for every run; figures show the mean over
  peers (Figure 5 the first). The paper's one "pre-defined testing domain" is ten domains at eps_te = .5 here, the
  level that it gives for Figure 6.
* The variance of the gradient is over each learner's data: K agents have a share each, one learner has all.
* The initial position, read literally, cannot change a return; see `--init` and randomised_envs.py.

Commands (two cores; see the README for measured numbers)
---------------------------------------------------------
    python p2pdrl.py --env Hopper-v4 --total-steps 2e5          # toy: a minute, returns of 900 to 1200
    python p2pdrl.py --env Walker2d-v4 --eps-tr 0.2             # six to eight minutes, returns of 3000 to 4800
    python p2pdrl.py --env Walker2d-v4 --eps-tr 0.2 --total-steps 1e7 --seeds 0 1 2 3 4 5 6 7     # the paper's
        # eight seeds, and our guess at its steps: half an hour for each, not measured

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
    Optimiser, Run, RunArgs, RunningNorm, discounted_sums, episode_returns, evaluate, fail, gae, launch, make_envs,
    new_figure, numpy_policy, plot_lines, print_by_seed, rollout, runs_by_environment, select_runs, steps_per_agent,
    thread_pool,
)
from randomised_envs import Domain, sample_domain


class Method(NamedTuple):
    """A row of the table in the docstring above; the loop reads it."""

    learning_rate: float  # App. A.2, but for self-KL's
    data: str  # each learner's "own" rollout, or one learner's K: in "one domain", in K ("union"), by K "workers"
    peers: str = "none"  # whom it stays close to: "others", "itself" before this iteration, the "central" policy
    states: str = "own"  # where
    central: str = "none"  # a central policy learns after each "minibatch" or each "iteration"

    @property
    def one_learner(self) -> bool:
        return self.data != "own"


METHODS = {
    "p2pdrl": Method(1e-4, data="own", peers="others"),
    "ppo": Method(3e-4, data="one domain"),
    "ppo-union": Method(3e-4, data="union"),
    "distributed-ppo": Method(3e-4, data="workers"),
    "self-kl": Method(1e-4, data="one domain", peers="itself"),
    "distral": Method(1e-4, data="own", peers="central", central="minibatch"),
    "dnc": Method(1e-4, data="own", peers="others", states="peers", central="iteration"),
}


@dataclass
class Args(RunArgs):
    # environment
    env: str = "Walker2d-v4"  # a Gymnasium MuJoCo environment
    eps_tr: float = 0.2  # randomisation level in training, in [0, 1] (Sec. 4.3)

    # cohort
    method: Literal[tuple(METHODS)] = "p2pdrl"  # who learns from whom
    agents: int = 2  # K: agents (of ppo: rollouts) at a time
    alpha: float = 1.0  # weight of the distillation loss (App. A.2)
    reset_every: int = 50  # R: iterations after which DnC's agents start again from their central policy

    # PPO (App. A.2, Table 2)
    total_steps: int = 2_000_000  # environment steps, summed over agents
    steps_per_iteration: int = 4096  # environment steps between updates, summed over agents
    learning_rate: float | None = None  # Adam's; if not given, 3e-4 for the three PPO methods, 1e-4 for the others
    epochs: int = 10  # passes over an iteration's data
    minibatches: int = 32  # for each epoch
    initial_std: float = 1.0  # standard deviation of the actions at the start, in each dimension
    clip: float = 0.2  # epsilon of Eq. (2)
    gamma: float = 0.99  # discount factor
    gae_lambda: float = 0.95  # of the advantage estimate
    entropy_coef: float = 0.0  # weight of an entropy bonus
    max_grad_norm: float = 0.5  # gradients are scaled down to this norm

    # log
    evaluations: int = 4  # evenly spaced over training, the last one at its end
    gradient_variance: bool = False  # log the variance of the actor's gradient in each iteration (Fig. 8b, c)

    # instead of training
    figure: Literal["", "2", "3", "4", "5", "6", "7", "8a", "8bc", "9", "controls", "map"] = ""  # draw it from its runs
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
# Losses
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


def gaussian_kl(mean, log_std, other_mean, other_log_std):
    """KL(Normal(mean, std) || Normal(other_mean, other_std)), summed over action dimensions: (N, act) -> (N,)."""
    variances = (2 * (log_std - other_log_std)).exp()  # (act,) the first's in units of the other's
    return (0.5 * (variances + ((mean - other_mean) / other_log_std.exp()) ** 2 - 1) + other_log_std - log_std).sum(-1)


def ppo_loss(log_ratio, advantages, clip):                                                              # Eq. (2)
    """Clipped surrogate, negated: to be minimised. (N,), (N,) -> scalar"""
    assert log_ratio.shape == advantages.shape
    ratio = log_ratio.exp()
    return -torch.min(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages).mean()


def distillation_loss(policy, peers, obs):                                                              # Eq. (3)
    """Mean over peers of KL(own || peer) on the agent's own states (N, obs). Peers get no gradient. Scalar.

    policy: (mean, log_std) of the agent there. Distral's only peer is the central policy; that of self-kl is the policy
    as it was before the iteration.
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


def central_loss(central, actors, all_obs):
    """Distral, DnC: mean over agents of KL(agent || central) on the agent's states. Agents get no gradient. Scalar."""
    divergences = [
        gaussian_kl(*(x.detach() for x in actor(obs)), *central(obs)).mean() for actor, obs in zip(actors, all_obs)
    ]
    return sum(divergences) / len(divergences)


def value_loss(values, targets):                                                                        # line 15
    """Mean square error of the critic. (N,), (N,) -> scalar"""
    assert values.shape == targets.shape
    return ((values - targets) ** 2).mean()


def normalise_advantages(advantages):
    """Mean 0 and standard deviation 1 over the minibatch (N,)."""
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)


METRICS = (
    "surrogate",  # Eq. (2), negated
    "distillation",  # Eq. (3), or what the method has in its place: KL in nats
    "value_loss",  # line 15, in units of scaled reward, squared
    "entropy",  # of the policy, in nats
    "approx_kl",  # KL(old || new) of this iteration's steps, estimated from the sampled actions
    "clip_fraction",  # part of the steps whose ratio is clipped
)


def agent_losses(actor, critic, peers, peers_obs, batch, args):                                         # Eq. (4)
    """Losses of an agent's actor and critic on a minibatch, and METRICS. peers_obs: for DnC (N, obs) of each peer."""
    parts = args.agents if METHODS[args.method].data == "workers" else 1  # each worker's advantages by themselves
    advantages = [normalise_advantages(part) for part in batch.advantages.chunk(parts)]
    policy = actor(batch.obs)  # once for both terms
    log_ratio = gaussian_log_prob(*policy, batch.actions) - batch.log_probs
    surrogate = ppo_loss(log_ratio, torch.cat(advantages) if parts > 1 else advantages[0], args.clip)
    distillation = dnc_loss(actor, peers, peers_obs) if peers_obs else distillation_loss(policy, peers, batch.obs)
    entropy = (actor.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum()
    actor_loss = surrogate + args.alpha * distillation - args.entropy_coef * entropy
    critic_loss = value_loss(critic(batch.obs), batch.targets)
    approx_kl = (log_ratio.exp() - 1 - log_ratio).mean()
    clip_fraction = ((log_ratio.exp() - 1).abs() > args.clip).float().mean()
    metrics = torch.stack([surrogate, distillation, critic_loss, entropy, approx_kl, clip_fraction])
    return (actor_loss, critic_loss), metrics.detach().unbind()


def central_losses(central, actors, all_obs):
    """The only loss of the central policy, without metrics."""
    return (central_loss(central, actors, all_obs),), ()


# ---------------------------------------------------------------------------------------------------------
# One update
# ---------------------------------------------------------------------------------------------------------


class Agent(nn.Module):
    """Actor theta_i, critic phi_i, their optimiser, and the running scale of this agent's rewards."""

    def __init__(self, actor: GaussianActor, critic: ValueCritic, learning_rate: float, args):
        super().__init__()
        self.actor, self.critic, self.reward_scale = actor, critic, RunningNorm(())
        self.optimiser = Optimiser([actor, critic], learning_rate, args, eps=1e-5, max_grad_norm=args.max_grad_norm)

    def restart(self, central: GaussianActor):
        """Act like the central policy from now on, with standard deviations as they were (DnC)."""
        state = central.state_dict()
        del state["log_std"]
        self.actor.load_state_dict(state, strict=False)


class Central(nn.Module):
    """The central policy of Distral and DnC. It has no data of its own: it learns from the agents."""

    def __init__(self, actor: GaussianActor, learning_rate: float, args):
        super().__init__()
        self.actor = actor
        self.optimiser = Optimiser([actor], learning_rate, args, eps=1e-5, max_grad_norm=args.max_grad_norm)

    def update(self, agents, minibatches):
        """One step of Adam towards the agents, on a minibatch of each one's states."""
        actors, all_obs = [agent.actor for agent in agents], [batch.obs for batch in minibatches]
        self.optimiser.minimise(central_losses, self.actor, actors, all_obs)


@torch.no_grad()
def compute_advantages(agent, rollouts, args):                                                          # line 14
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


def others(items, i: int) -> list:
    """All items but number i."""
    return [item for k, item in enumerate(items) if k != i]


def shuffle(batch, minibatches: int, rngs: list[np.random.Generator]) -> list:
    """The batch in random order, cut into equal minibatches.

    With an rng for each worker, whose steps stand together in the batch, each minibatch has as many of every worker.
    """
    steps = len(batch.obs) // len(rngs)
    orders = [worker * steps + rng.permutation(steps) for worker, rng in enumerate(rngs)]
    order = np.reshape(orders, (len(rngs), minibatches, -1)).swapaxes(0, 1).ravel()
    columns = [column[torch.as_tensor(order, device=column.device)].chunk(minibatches) for column in batch]
    return [batch._make(each) for each in zip(*columns)]


def shuffle_all(batches, rngs, args):
    """Iterate over minibatches, one of each agent at a time."""
    by_worker = METHODS[args.method].data == "workers"
    return zip(*(shuffle(batch, args.minibatches, rngs if by_worker else [rng]) for batch, rng in zip(batches, rngs)))


def actor_gradient(agent, peers, peers_obs, minibatch, args):
    """Gradient of Eq. (4) by theta_i, as one vector (n,)."""
    (actor_loss, _), _ = agent_losses(agent.actor, agent.critic, peers, peers_obs, minibatch, args)
    return torch.cat([each.flatten() for each in torch.autograd.grad(actor_loss, tuple(agent.actor.parameters()))])


def log_gradient_variance(agent, peers, peers_obs, batch, rng, args) -> float:
    """log of the mean over theta of Var[gradient of Eq. (4)], over 64 minibatches of 64 steps (Sec. 4.4)."""
    gradient = torch.compile(actor_gradient, fullgraph=True, dynamic=False) if args.compile else actor_gradient
    samples = []
    for _ in range(64):
        rows = torch.as_tensor(rng.permutation(len(batch.obs))[:64], device=batch.obs.device)
        minibatch = batch._make(column[rows] for column in batch)
        samples.append(gradient(agent, peers, [obs[rows] for obs in peers_obs], minibatch, args))
    return torch.stack(samples).var(0).mean().log().item()


# ---------------------------------------------------------------------------------------------------------
# The cohort loop
# ---------------------------------------------------------------------------------------------------------


def train(args):
    """Algorithm 1, and the methods that it is compared with."""
    if args.agents < 2 and not METHODS[args.method].one_learner:
        fail(f"--agents {args.agents}: {args.method} needs at least 2")
    method, steps = METHODS[args.method], steps_per_agent(args, args.agents)
    envs, pool = make_envs(args, max(args.agents, args.threads)), thread_pool(args.threads)
    obs_size, action_size = envs[0].observation_space.shape[0], envs[0].action_space.shape[0]

    actor = GaussianActor(obs_size, action_size, args.initial_std)                                      # lines 2, 3
    critic = ValueCritic(obs_size)
    learning_rate = args.learning_rate or method.learning_rate
    old, central = copy.deepcopy(actor).to(args.device), Central(copy.deepcopy(actor), learning_rate, args)
    learners = range(1 if method.one_learner else args.agents)
    agents = [Agent(copy.deepcopy(actor), copy.deepcopy(critic), learning_rate, args) for _ in learners]
    actors = [agent.actor for agent in agents]
    peers = [
        {"others": others(actors, i), "itself": [old], "central": [central.actor], "none": []}[method.peers]
        for i in learners
    ]
    tested = dict(enumerate(actors)) if method.central == "none" else {-1: central.actor}  # by agent, in eval.csv
    acting = actors * args.agents if method.one_learner else actors  # who acts in each of the K domains

    run = Run(args, "p2pdrl")
    parts = {f"agent{i}": agent for i, agent in enumerate(agents)} | {"central": central}
    for iteration in run.iterations(parts, steps * args.agents, warm_up=steps * args.agents):           # line 4
        rngs = [np.random.default_rng([args.seed, i, iteration]) for i in range(args.agents)]           # line 5
        domains = [sample_domain(args.eps_tr, rng, envs[0].position_draws) for rng in rngs]             # line 6
        domains = domains[:1] * args.agents if method.data == "one domain" else domains
        policies = [numpy_policy(actor) for actor in acting]
        stds = [actor.log_std.exp().detach().cpu().numpy() for actor in acting]
        rollouts = list(pool.map(rollout, envs, policies, stds, domains, [steps] * args.agents, rngs))  # line 7
        data = [rollouts] if method.one_learner else [[each] for each in rollouts]  # of each learner
        batches = list(pool.map(make_batch, agents, data, [args] * len(agents)))
        explained = [batch.explained_variance() for batch in batches]
        old.load_state_dict(actors[0].state_dict())

        if args.gradient_variance:
            variances = []
            for i in learners:
                rng = np.random.default_rng([args.seed, i, iteration, 1])
                theirs = [batch.obs for batch in others(batches, i)] if method.states == "peers" else []
                variances.append(log_gradient_variance(agents[i], peers[i], theirs, batches[i], rng, args))

        metrics = [torch.zeros(len(METRICS), device=args.device) for _ in learners]
        epochs = args.epochs if iteration > 0 else 0  # the first one only gathers the normalisers' statistics
        for epoch in range(epochs):                                                                     # line 9
            if epoch > 0 and not method.one_learner:
                estimates = pool.map(compute_advantages, agents, data, [args] * len(agents))            # line 14
                batches = [batch._replace(advantages=a, targets=t) for batch, (a, t) in zip(batches, estimates)]
            for minibatches in shuffle_all(batches, rngs, args):                                        # line 10
                for i in learners:                                                                      # lines 11, 12
                    theirs = [batch.obs for batch in others(minibatches, i)] if method.states == "peers" else []
                    networks = actors[i], agents[i].critic
                    metrics[i] += agents[i].optimiser.minimise(                                         # lines 13, 15
                        agent_losses, *networks, peers[i], theirs, minibatches[i], args)
                if method.central == "minibatch":
                    central.update(agents, minibatches)

        if method.central == "iteration" and iteration > 0:
            restart = (iteration + 1) % args.reset_every == 0
            for _ in range(30 if restart else 1):
                for minibatches in shuffle_all(batches, rngs, args):
                    central.update(agents, minibatches)
            if restart:
                for agent in agents:
                    agent.restart(central.actor)

        for i, agent in enumerate(agents):
            for each in data[i]:  # only now: this data was collected, and used, with the old statistics
                agent.actor.norm.update(each.obs)
                agent.critic.norm.update(each.obs)
            returns = np.concatenate([each.returns for each in data[i]])
            means = (metrics[i] / (args.epochs * args.minibatches)).tolist()
            run.log(i, nn.ModuleList([agent, central]), {
                "return": returns.mean(), "episodes": len(returns),  # of a rollout without a finished one, the one cut
                **dict(zip(METRICS, means)),  # over the iteration's minibatches; 0 in the first, which has none
                "explained_variance": explained[i],  # of the targets, by the critic
                **({"gradient_variance": variances[i]} if args.gradient_variance else {}),  # its log
            })
        for each in rollouts:
            central.actor.norm.update(each.obs)
        if iteration == 0 or run.evaluation_due:
            run.snapshot(list(tested.values()))
        if run.evaluation_due:
            run.evaluate(envs[: args.threads], {i: numpy_policy(actor) for i, actor in tested.items()})


# ---------------------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------------------

EPS_TEST = 0.5  # level of the "pre-defined" test domains of Figures 2, 5, 6 and 8a; the paper gives it for Figure 6
LEVELS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # eps_tr in Figures 2 and 6


def load_actors(run, step: int | None = None) -> list[GaussianActor]:
    """The policies that a run was evaluated with at this step; the last ones if None."""
    return run.networks(lambda state: GaussianActor(len(state["norm.mean"]), len(state["log_std"])), step)


def load_policies(run) -> list:
    """The last of them as functions obs (obs,) -> mean action (act,)."""
    return [numpy_policy(actor) for actor in load_actors(run)]


def test_return(envs, run, args) -> float:
    """Mean return over peers and held-out domains at EPS_TEST, deterministic policy, at the end of a run."""
    policies = dict(enumerate(load_policies(run)))
    return float(np.mean([row["return"] for row in evaluate(envs, policies, (EPS_TEST,), args.eval_domains)]))


def runs_of(args, methods, **changes) -> dict[str, list]:
    """Finished runs by method. The other methods get an empty list, so that each method keeps its colour."""
    found = select_runs(args, "p2pdrl", {method: {"method": method} | changes for method in methods})
    return {method: found.get(method, []) for method in METHODS}


def plot_training(axis, found, column: str = "return", ylabel: str = "training return"):
    """A column of the log against steps, a line for each method."""
    lines = {method: [run.training_curve(column) for run in runs] for method, runs in found.items()}
    plot_lines(axis, lines, "environment steps, all agents", ylabel)


def plot_test(axis, found):
    """Return in held-out domains against their level, a line for each method."""
    lines = {method: [run.test_returns() for run in runs] for method, runs in found.items()}
    plot_lines(axis, lines, "eps_te, randomisation level", "return in held-out domains", marker="o")


def returns_of(run) -> dict[str, float]:
    """Of a run at its end: the training return, mean over the last 5 % of the steps, and the test return by level."""
    last = max(1, run.settings["total_steps"] // run.settings["steps_per_iteration"] // 20)
    tested = {f"eps_te {eps:g}": value for eps, value in zip(*run.test_returns())}
    return {"training": run.training_curve(rows=last)[1][-1]} | tested


def figures_3_and_4(args):
    """Learning curves, or test return against eps_te: a panel for each environment, methods side by side."""
    methods = {method: {"method": method} for method in METHODS if method != "self-kl"}  # that is Figure 7
    both = runs_by_environment(args, "p2pdrl", methods)
    figure, axes = new_figure(columns=len(both))
    for axis, (env, found) in zip(axes, both.items()):
        axis.set_title(env)
        (plot_training if args.figure == "3" else plot_test)(axis, found)
        print_by_seed(env, found, returns_of, baseline="ppo")
    return figure, f"eps_tr = {args.eps_tr:g}; mean over seeds, 95 % bootstrap interval"


def figures_2_and_6(args):
    """Training return at the end, and test return at EPS_TEST, against eps_tr; Figure 2 of PPO alone."""
    methods = ["ppo", "ppo-union", "p2pdrl"][: 2 if args.figure == "2" else 3]
    wanted = {f"{method}, eps_tr {eps:g}": {"method": method, "eps_tr": eps} for method in methods for eps in LEVELS}
    found = select_runs(args, "p2pdrl", wanted)
    envs = make_envs(args, args.threads)
    trained, tested = ({method: [] for method in METHODS} for _ in range(2))
    for method in methods:
        each = [(eps, run) for eps in LEVELS for run in found[f"{method}, eps_tr {eps:g}"]]
        for seed in sorted({run.settings["seed"] for _, run in each}):
            levels, runs = zip(*((eps, run) for eps, run in each if run.settings["seed"] == seed))
            trained[method].append((levels, [run.training_curve()[1][-1] for run in runs]))
            tested[method].append((levels, [test_return(envs, run, args) for run in runs]))
    figure, (left, right) = new_figure(columns=2)
    for axis, lines, policy in ((left, trained, "actions sampled"), (right, tested, "deterministic policy")):
        plot_lines(axis, lines, "eps_tr, randomisation level in training", f"return, {policy}", marker="o")
    left.set_title("training domains, last 20 iterations")
    right.set_title(f"held-out domains, eps_te = {EPS_TEST:g}")
    return figure, f"{args.env}; mean over seeds, 95 % bootstrap interval"


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
    """The numpy policy that `folded` made this vector from, but for the clipping of observations."""
    actor = copy.deepcopy(like)
    actor.norm = RunningNorm(like.norm.mean.shape, clip=math.inf)
    nn.utils.vector_to_parameters(vector.float(), actor.net.parameters())
    return numpy_policy(actor)


def plane_through(first, second, third):
    """The plane through three points (n,): the way from the first to the second, and across; corners (3, 2) in it."""
    along = (second - first) / (second - first).norm()
    across = third - first - ((third - first) @ along) * along
    across /= across.norm()
    corners = [[((point - first) @ axis).item() for axis in (along, across)] for point in (first, second, third)]
    return along, across, np.array(corners)


def figure_5(args):
    """Return over the plane through a run's initial, middle and final policy, at the level of training and of the test.

    The paper's middle policy is that after 8 million steps. Here it is the one nearest to 40 % of the run.
    """
    found = {method: runs for method, runs in runs_of(args, ("ppo", "ppo-union", "p2pdrl")).items() if runs}
    figure, axes = new_figure(columns=2, rows=len(found))
    envs, domains = make_envs(args, args.threads), min(args.eval_domains, 10)  # more make hours of it
    for row, (method, runs) in enumerate(found.items()):
        steps = runs[0].steps()
        if len(steps) < 3:
            fail(f"{runs[0].path} kept no policy between its first and its last: --evaluations 2 or more")
        middle = min(steps[1:-1], key=lambda step: abs(step - 0.4 * steps[-1]))
        actors = [load_actors(runs[0], step)[0] for step in (steps[0], middle, steps[-1])]
        origin = folded(actors[0])
        along, across, corners = plane_through(*map(folded, actors))
        margin = 0.25 * (corners.max(0) - corners.min(0))
        x, y = (np.linspace(low, high, 13) for low, high in zip(corners.min(0) - margin, corners.max(0) + margin))
        policies = dict(enumerate(unfolded(origin + a * along + b * across, actors[-1]) for b in y for a in x))
        print(f"{method}: playing {len(policies)} policies in {2 * domains} domains each")
        rows = evaluate(envs, policies, (args.eps_tr, EPS_TEST), domains)
        returns = np.array([each["return"] for each in rows]).reshape(len(y), len(x), 2, domains).mean(3)
        levels = np.linspace(min(0, returns.min()), returns.max(), 11)
        for column, eps in enumerate((args.eps_tr, EPS_TEST)):
            axis = axes[2 * row + column]
            surface = axis.contourf(x, y, returns[:, :, column], levels=levels)
            figure.colorbar(surface, ax=axis, label="return, deterministic policy")
            axis.plot(*corners.T, "o:", color="white", markeredgecolor="black")
            for corner, name in zip(corners, ("$w_1$", "$w_2$", "$w_3$")):
                box = {"boxstyle": "round,pad=0.1", "facecolor": "white", "alpha": 0.7, "linewidth": 0}
                axis.annotate(name, corner, xytext=(5, 7), textcoords="offset points", bbox=box)
            axis.set(title=f"{method}, held-out domains, eps = {eps:g}", ylabel="across")
            axis.set_xlabel("distance in parameter space, along $w_1 w_2$")
            axis.grid(False)
    points = f"$w_1$ initial, $w_2$ after {middle:,} steps, $w_3$ after {steps[-1]:,}"
    return figure, f"{args.env}, one seed, mean of {domains} domains; {points}"


def draw_training_and_test(args, found, baseline: str):
    """Learning curves beside test return, and both printed."""
    figure, (left, right) = new_figure(columns=2)
    left.set_title("training domains")
    right.set_title("held-out domains")
    plot_training(left, found)
    plot_test(right, found)
    print_by_seed(args.env, found, returns_of, baseline)
    return figure, f"{args.env}, eps_tr = {args.eps_tr:g}; mean over seeds, 95 % bootstrap interval"


def figure_7(args):
    """P2PDRL beside the agent that is regularised by itself."""
    return draw_training_and_test(args, runs_of(args, ("ppo", "ppo-union", "p2pdrl", "self-kl")), baseline="ppo")


CONTROLS = {  # beyond the paper: what is left of the difference to PPO without distillation, or at equal learning rates
    "p2pdrl": {"method": "p2pdrl"},
    "p2pdrl, alpha 0": {"method": "p2pdrl", "alpha": 0.0},  # peers that know nothing of each other
    "p2pdrl, learning rate 3e-4": {"method": "p2pdrl", "learning_rate": 3e-4},
    "ppo": {"method": "ppo"},
    "ppo, learning rate 1e-4": {"method": "ppo", "learning_rate": 1e-4},
}


def figure_controls(args):
    """P2PDRL beside CONTROLS."""
    return draw_training_and_test(args, select_runs(args, "p2pdrl", CONTROLS), baseline="p2pdrl")


def figure_8a(args):
    """Test return at EPS_TEST against the final policy's entropy: PPO with entropy bonuses, P2PDRL without."""
    coefficients = [0.0, *(float(f"{10**power:.3g}") for power in np.arange(-3, 2.1, 0.5))]
    wanted = {
        f"{method}, {value:g}": {"method": method, "entropy_coef": value}
        for method in ("ppo", "ppo-union", "p2pdrl") for value in (coefficients if method != "p2pdrl" else (0.0,))
    }
    found, envs = select_runs(args, "p2pdrl", wanted), make_envs(args, args.threads)
    figure, (axis,) = new_figure()
    for method, marker in (("ppo", "x"), ("ppo-union", "+"), ("p2pdrl", "o")):
        runs = [run for label, runs in found.items() if label.startswith(f"{method},") for run in runs]
        points = [(run.training_curve("entropy")[1][-1], test_return(envs, run, args)) for run in runs]
        axis.scatter(*np.reshape(points, (-1, 2)).T, marker=marker, label=f"{method}, --entropy-coef at each point")
        for run, point in zip(runs, points):
            axis.annotate(f"{run.settings['entropy_coef']:g}", point, xytext=(4, 4), textcoords="offset points", size=7)
    axis.set_xlabel("entropy of the policy, last 20 iterations, nats")
    axis.set_ylabel(f"test return, eps_te = {EPS_TEST:g}")
    return figure, f"{args.env}, eps_tr = {args.eps_tr:g}; deterministic policy, held-out domains, a point for each run"


def figure_8bc(args):
    """Log variance of the actor's gradient over training."""
    figure, (axis,) = new_figure()
    found = runs_of(args, ("ppo", "ppo-union", "p2pdrl"), gradient_variance=True)
    plot_training(axis, found, "gradient_variance", "log variance of the gradient")
    return figure, f"{args.env}, eps_tr = {args.eps_tr:g}; mean over agents and seeds, 95 % bootstrap interval"


def figure_9(args):
    """Cohort sizes: the steps of each agent held fixed (left), or those of all together (right).

    The return is that of deterministic policies in held-out domains of the training level: the training return counts
    finished episodes (if there is none, the one that was cut), which are short where each agent has few steps.
    """
    eps = min(args.eps_te, key=lambda each: abs(each - args.eps_tr))
    figure, axes = new_figure(columns=2)
    for axis, fixed in zip(axes, ("each agent", "all agents")):
        wanted = {}
        for agents in (1, 2, 4):
            factor = agents / 2 if fixed == "each agent" else 1
            sizes = {"steps_per_iteration": int(4096 * factor), "total_steps": int(args.total_steps * factor)}
            wanted[f"K = {agents}"] = {"method": "ppo" if agents == 1 else "p2pdrl", "agents": agents} | sizes
        found, lines = select_runs(args, "p2pdrl", wanted), {}
        for label, runs in found.items():
            shared = wanted[label]["agents"] if fixed == "each agent" else 1
            lines[label] = [(steps / shared, returns) for steps, returns in (run.test_curve(eps) for run in runs)]
        plot_lines(axis, lines, f"environment steps, {fixed}", f"test return, eps_te = {eps:g}", marker="o")
        axis.set_title(f"the same steps for {fixed}" + " together" * (fixed == "all agents"))
    explained = "deterministic policies in held-out domains, mean over seeds, 95 % bootstrap interval; K = 1 is PPO"
    return figure, f"{args.env}, eps_tr = {args.eps_tr:g}; {explained}"


def figure_map(args):
    """Beyond the paper: return of trained policies against two numbers of a domain, wind and mass."""
    from matplotlib.patches import Rectangle

    found = {method: runs for method, runs in runs_of(args, ("ppo", "ppo-union", "p2pdrl")).items() if runs}
    figure, axes = new_figure(columns=len(found))
    envs = make_envs(args, args.threads)
    winds, masses = np.linspace(-5, 5, 11), np.linspace(0.5, 1.5, 11)  # Table 1 at level 1
    maps = []
    for method, runs in found.items():
        policies = [policy for run in runs for policy in load_policies(run)]
        print(f"{method}: playing {len(policies)} policies in {len(winds) * len(masses)} domains")
        jobs = [(policy, Domain(wind=wind, mass=mass), 0) for mass in masses for wind in winds for policy in policies]
        maps.append(np.reshape(episode_returns(envs, jobs), (len(masses), len(winds), -1)).mean(2))
    for axis, (method, runs), values in zip(axes, found.items(), maps):
        picture = axis.pcolormesh(winds, masses, values, vmin=0, vmax=np.max(maps), shading="nearest")
        trained = {"xy": (-5 * args.eps_tr, 1 - 0.5 * args.eps_tr), "width": 10 * args.eps_tr, "height": args.eps_tr}
        axis.add_patch(Rectangle(**trained, fill=False, edgecolor="white", linestyle="--"))
        axis.set(title=f"{method}, {len(runs)} seeds", xlabel="wind, N", ylabel="mass, factor of nominal")
        axis.grid(False)
    figure.colorbar(picture, ax=axes, label="return, deterministic policy")
    return figure, f"{args.env}; dashed: the domains of training, eps_tr = {args.eps_tr:g}; mean over seeds and peers"


FIGURES = {
    "2": figures_2_and_6, "3": figures_3_and_4, "4": figures_3_and_4, "5": figure_5, "6": figures_2_and_6,
    "7": figure_7, "8a": figure_8a, "8bc": figure_8bc, "9": figure_9, "controls": figure_controls, "map": figure_map,
}  # fmt: skip


if __name__ == "__main__":
    launch(Args, train, FIGURES, load_policies)
