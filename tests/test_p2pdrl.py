"""Tests of p2pdrl.py.

The equations are compared with torch.distributions, loops and .backward(); the whole program with Algorithm 1
written out once more, slowly, with none of the program's own networks, losses or optimisers.
"""

import copy
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import baselines  # noqa: E402
import p2pdrl  # noqa: E402
from baselines import Batch, Optimiser, SavedRun, numpy_policy  # noqa: E402
from p2pdrl import (  # noqa: E402
    Agent, Args, Central, GaussianActor, ValueCritic, agent_losses, central_loss, distillation_loss, dnc_loss, gaussian_kl,
    gaussian_log_prob, log_gradient_variance, ppo_loss,
)  # fmt: skip
from randomised_envs import Domain, make_env, sample_domain  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")
torch.set_num_threads(1)

OBS, ACT = 5, 3  # sizes of hand-made observations and actions
Normal, kl_divergence = torch.distributions.Normal, torch.distributions.kl_divergence


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """MuJoCo writes its log to the current directory."""
    monkeypatch.chdir(tmp_path)


# Helpers -------------------------------------------------------------------------------------------------


def actor_and_critic(seed):
    """Networks that have seen data and differ from seed to seed, in their means, spreads and statistics."""
    torch.manual_seed(seed)
    actor, critic = GaussianActor(OBS, ACT), ValueCritic(OBS)
    with torch.no_grad():
        actor.net[-1].weight.mul_(100)
        for network in (actor, critic):
            for layer in network.net[::2]:
                layer.bias.normal_(0, 0.2)
        actor.log_std.copy_(0.4 * torch.randn(ACT))
    seen = np.random.default_rng(seed).normal(seed, 1 + seed, (40, OBS))
    actor.norm.update(seen)
    critic.norm.update(seen)
    return actor, critic


def actors(number):
    return [actor_and_critic(seed)[0] for seed in range(number)]


def random_batch(actor, steps=16, shift=0.3, seed=1):
    """Steps whose old log-probabilities differ from those of `actor`, some by more than the clip range."""
    torch.manual_seed(seed)
    obs, actions = torch.randn(steps, OBS) * 2 + 1, torch.randn(steps, ACT)
    with torch.no_grad():
        log_probs = gaussian_log_prob(*actor(obs), actions) + shift * torch.randn(steps)
    return Batch(obs, actions, log_probs, torch.randn(steps), torch.randn(steps))


def policy_of(actor, obs):
    mean, log_std = actor(obs)
    return Normal(mean, log_std.exp())


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def settings(**changes):
    """Arguments without compilation."""
    return Args(**{"compile": False, "learning_rate": 1e-2} | changes)


def agent_of(seed, args):
    return Agent(*actor_and_critic(seed), args.learning_rate, args)


def tiny(tmp_path, **changes):
    """Arguments of a run of a second."""
    return settings(**{
        "env": "Hopper-v4", "eps_tr": 0.5, "total_steps": 384, "steps_per_iteration": 128, "epochs": 2, "minibatches": 2,
        "learning_rate": 1e-3, "eval_domains": 1, "eps_te": (0.2,), "evaluations": 1, "threads": 1, "runs": str(tmp_path),
    } | changes)  # fmt: skip


def trained(tmp_path, **changes):
    """A finished run, and the state that it ended with."""
    args = tiny(tmp_path, **changes)
    baselines.set_up_torch(args)
    p2pdrl.train(args)
    (path,) = tmp_path.glob("p2pdrl-*")
    return SavedRun(path), torch.load(path / "checkpoint.pt", weights_only=True)


@pytest.fixture
def no_figures(monkeypatch):
    monkeypatch.setattr(SavedRun, "draw", lambda _: None)
    monkeypatch.setattr(SavedRun, "print_table", lambda _: None)


# Eq. (3): distillation -----------------------------------------------------------------------------------


def test_gaussian_kl():
    """Against torch.distributions, and against the mean of log p - log q over samples of p."""
    torch.manual_seed(0)
    mean, other = torch.randn(2, 20, ACT)
    log_std, other_log_std = torch.tensor([-0.5, 0.0, 0.3]), torch.tensor([0.4, -0.1, -0.3])
    p, q = Normal(mean, log_std.exp()), Normal(other, other_log_std.exp())
    kl = gaussian_kl(mean, log_std, other, other_log_std)
    torch.testing.assert_close(kl, kl_divergence(p, q).sum(1))
    samples = p.sample((20_000,))
    estimate = (p.log_prob(samples) - q.log_prob(samples)).sum(2).mean(0)
    torch.testing.assert_close(kl, estimate, rtol=0.1, atol=0.03)


def test_gaussian_kl_by_hand():
    """N(0, 1) against N(0, 2^2): log 2 + 1/8 - 1/2, and -log 2 + 2 - 1/2 the other way round."""
    narrow, wide = (torch.zeros(1, 1), torch.zeros(1)), (torch.zeros(1, 1), torch.full((1,), math.log(2)))
    assert gaussian_kl(*narrow, *wide).item() == pytest.approx(math.log(2) + 1 / 8 - 1 / 2, rel=1e-5)
    assert gaussian_kl(*wide, *narrow).item() == pytest.approx(-math.log(2) + 2 - 1 / 2, rel=1e-5)


@pytest.mark.parametrize("agents", [2, 3, 4])
def test_distillation_is_the_mean_divergence_from_the_peers(agents):
    """Eq. (3): 1/(K-1) sum over peers, mean over own states, of KL(own || peer); state by state, and not reversed."""
    own, *peers = actors(agents)
    obs = random_batch(own).obs
    total, reverse = 0.0, 0.0
    for peer in peers:
        for state in obs:
            p, q = policy_of(own, state[None]), policy_of(peer, state[None])
            total += kl_divergence(p, q).sum().item() / len(obs) / (agents - 1)
            reverse += kl_divergence(q, p).sum().item() / len(obs) / (agents - 1)
    loss = distillation_loss(own(obs), peers, obs)
    assert loss.shape == () and loss.item() == pytest.approx(total, rel=1e-4)
    assert abs(total - reverse) > 0.01 * total


def test_distillation_from_equals_or_from_nobody_is_nothing():
    """Zero, also in its gradient."""
    own, other = actors(2)
    obs = random_batch(own).obs
    loss = distillation_loss(own(obs), [copy.deepcopy(own), copy.deepcopy(own)], obs)
    assert abs(loss.item()) < 1e-6
    assert max(gradient.abs().max() for gradient in torch.autograd.grad(loss, list(own.parameters()))) < 1e-6
    assert distillation_loss(own(obs), [], obs).item() == 0


def test_distillation_pulls_its_own_actor_only():
    """A gradient to every own parameter, none to a peer's; a step against it brings the policies together."""
    own, *peers = actors(3)
    obs = random_batch(own).obs
    loss = distillation_loss(own(obs), peers, obs)
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in own.parameters())
    assert all(parameter.grad is None for peer in peers for parameter in peer.parameters())
    with torch.no_grad():
        for parameter in own.parameters():
            parameter -= 1e-3 * parameter.grad
    assert distillation_loss(own(obs), peers, obs) < loss


# DnC, and the central policy -------------------------------------------------------------------------------------


def states_of(actors):
    """For each actor some states of its own."""
    return [random_batch(actor, seed=30 + i).obs for i, actor in enumerate(actors)]


@pytest.mark.parametrize("agents", [2, 3, 4])
def test_dnc_loss_is_the_mean_symmetric_divergence_on_the_peers_states(agents):
    """(KL(own || peer) + KL(peer || own)) / 2, mean over each peer's own states, mean over peers; state by state."""
    own, *peers = actors(agents)
    all_obs = states_of(peers)
    total = 0.0
    for peer, obs in zip(peers, all_obs):
        for state in obs:
            p, q = policy_of(own, state[None]), policy_of(peer, state[None])
            both = kl_divergence(p, q).sum().item() + kl_divergence(q, p).sum().item()
            total += both / 2 / len(obs) / (agents - 1)
    loss = dnc_loss(own, peers, all_obs)
    assert loss.shape == () and loss.item() == pytest.approx(total, rel=1e-4)
    on_own_states = distillation_loss(own(random_batch(own).obs), peers, random_batch(own).obs).item()
    assert abs(on_own_states - total) > 0.01 * total


def test_dnc_pulls_its_own_actor_only():
    """A gradient to every own parameter, none to a peer's; zero among equals; a step against it brings them together."""
    own, *peers = actors(3)
    all_obs = states_of(peers)
    loss = dnc_loss(own, peers, all_obs)
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in own.parameters())
    assert all(parameter.grad is None for peer in peers for parameter in peer.parameters())
    with torch.no_grad():
        for parameter in own.parameters():
            parameter -= 1e-3 * parameter.grad
    assert dnc_loss(own, peers, all_obs) < loss
    equal = dnc_loss(own, [copy.deepcopy(own), copy.deepcopy(own)], all_obs)
    assert abs(equal.item()) < 1e-6
    assert max(gradient.abs().max() for gradient in torch.autograd.grad(equal, list(own.parameters()))) < 1e-6


@pytest.mark.parametrize("agents", [2, 3, 4])
def test_central_loss_is_the_mean_divergence_of_the_agents_from_the_central(agents):
    """KL(agent || central), not reversed, mean over each agent's own states, mean over agents; state by state."""
    central, *cohort = actors(agents + 1)
    all_obs = states_of(cohort)
    total, reverse = 0.0, 0.0
    for actor, obs in zip(cohort, all_obs):
        for state in obs:
            p, q = policy_of(actor, state[None]), policy_of(central, state[None])
            total += kl_divergence(p, q).sum().item() / len(obs) / agents
            reverse += kl_divergence(q, p).sum().item() / len(obs) / agents
    loss = central_loss(central, cohort, all_obs)
    assert loss.shape == () and loss.item() == pytest.approx(total, rel=1e-4)
    assert abs(total - reverse) > 0.01 * total
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in central.parameters())
    assert all(parameter.grad is None for actor in cohort for parameter in actor.parameters())


@pytest.mark.parametrize("max_grad_norm", [0.05, 1e3])
def test_the_central_update_is_one_step_of_adam(max_grad_norm):
    """Three updates against Adam on separate parameters with the gradient clipped; the agents stay as they are."""
    args = settings(max_grad_norm=max_grad_norm)
    central, cohort = Central(actors(1)[0], args.learning_rate, args), [agent_of(seed, args) for seed in (1, 2, 3)]
    slow = copy.deepcopy(central.actor)
    optimiser = torch.optim.Adam(slow.parameters(), lr=args.learning_rate, eps=1e-5)
    before = copy.deepcopy([agent.state_dict() for agent in cohort])
    start = flat(slow.parameters())
    for step in range(3):
        minibatches = [random_batch(agent.actor, seed=10 * step + i) for i, agent in enumerate(cohort)]
        central.update(cohort, minibatches)
        loss = 0.0
        for agent, batch in zip(cohort, minibatches):
            with torch.no_grad():
                theirs = policy_of(agent.actor, batch.obs)
            loss = loss + kl_divergence(theirs, policy_of(slow, batch.obs)).sum(1).mean() / 3
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(slow.parameters(), max_grad_norm)
        optimiser.step()
    torch.testing.assert_close(flat(central.actor.parameters()), flat(slow.parameters()), rtol=0, atol=2e-5)
    assert (flat(slow.parameters()) - start).abs().max() > 0.02
    for agent, state in zip(cohort, before):
        assert all(torch.equal(state[name], value) for name, value in agent.state_dict().items())


def test_an_agent_that_restarts_acts_like_the_central_policy():
    """Same means on raw observations; its log_std, its critic and its Adam as before; nothing is shared."""
    args = settings()
    agent, central = agent_of(0, args), actors(2)[1]
    agent.update([], [], random_batch(agent.actor), args)
    before, theirs = copy.deepcopy(agent.state_dict()), copy.deepcopy(central.state_dict())
    obs = torch.randn(50, OBS) * 4 + 1
    agent.restart(central)
    assert torch.equal(agent.actor(obs)[0], central(obs)[0])
    assert not torch.allclose(agent.actor.log_std, central.log_std, atol=0.1)
    kept = [name for name in before if not name.startswith(("actor.net", "actor.norm"))]
    assert all(torch.equal(before[name], agent.state_dict()[name]) for name in kept) and "actor.log_std" in kept
    agent.update([], [], random_batch(agent.actor), args)
    agent.actor.norm.update(np.ones((9, OBS)))
    assert not torch.equal(agent.actor(obs)[0], central(obs)[0])
    assert all(torch.equal(theirs[name], value) for name, value in central.state_dict().items())


# Eq. (2), (4) --------------------------------------------------------------------------------------------


def test_ppo_loss_by_hand():
    """Two actions: a good one that has become too likely, a bad one; the gradient stops where the ratio is clipped."""
    log_ratio = torch.tensor([math.log(1.5), math.log(1.1)], requires_grad=True)
    loss = ppo_loss(log_ratio, torch.tensor([2.0, -3.0]), 0.2)
    assert loss.item() == pytest.approx(-(1.2 * 2.0 - 1.1 * 3.0) / 2)
    loss.backward()
    assert log_ratio.grad.tolist() == pytest.approx([0.0, 1.1 * 3.0 / 2])
    with pytest.raises(AssertionError):
        ppo_loss(torch.zeros(4), torch.zeros(4, 1), 0.2)


def normalised(batch):
    """The batch with advantages of mean 0 and standard deviation 1."""
    advantages = batch.advantages.numpy().astype(np.float64)
    advantages = (advantages - advantages.mean()) / advantages.std(ddof=1)
    return batch._replace(advantages=torch.tensor(advantages, dtype=batch.advantages.dtype))


def slow_losses(actor, critic, peers, batch, args, peers_obs=()):
    """Eq. (4) from torch.distributions, and the critic's error. peers_obs: DnC's penalty in place of Eq. (3)."""
    batch, policy = normalised(batch), policy_of(actor, batch.obs)
    ratio = (policy.log_prob(batch.actions).sum(1) - batch.log_probs).exp()
    clipped = torch.clamp(ratio, 1 - args.clip, 1 + args.clip)
    surrogate = -torch.minimum(ratio * batch.advantages, clipped * batch.advantages).mean()
    distillation = torch.zeros(())
    for k, peer in enumerate(peers):
        own = policy_of(actor, peers_obs[k]) if peers_obs else policy
        with torch.no_grad():
            other = policy_of(peer, peers_obs[k] if peers_obs else batch.obs)
        divergence = kl_divergence(own, other).sum(1).mean()
        if peers_obs:
            divergence = (divergence + kl_divergence(other, own).sum(1).mean()) / 2
        distillation = distillation + divergence / len(peers)
    entropy = policy.entropy().sum(1).mean()
    loss = surrogate + args.alpha * distillation - args.entropy_coef * entropy
    error = ((critic(batch.obs) - batch.targets) ** 2).mean()
    log_ratio = ratio.log()
    approx_kl, clipped = (ratio - 1 - log_ratio).mean(), ((ratio < 1 - args.clip) | (ratio > 1 + args.clip)).float().mean()
    return loss, error, torch.stack([surrogate, distillation, error, entropy, approx_kl, clipped]).detach()


@pytest.mark.parametrize(
    ("peers", "on_their_states", "changes"),
    [
        (1, False, {}),
        (3, False, {"alpha": 0.3}),
        (2, False, {"alpha": 5.0}),
        (1, False, {"entropy_coef": 2.0}),
        (0, False, {"clip": 0.05}),
        (1, True, {"alpha": 5.0}),
        (3, True, {"alpha": 0.3}),
    ],
)
def test_gradients_are_those_of_eq_4_and_of_the_critics_error(peers, on_their_states, changes):
    """Against .backward() on losses computed separately; and the metrics."""
    args = settings(**changes)
    actor, critic = actor_and_critic(0)
    others, batch = actors(1 + peers)[1:], random_batch(actor)
    peers_obs = [random_batch(actor, seed=50 + k).obs for k in range(peers)] if on_their_states else []
    losses, metrics = agent_losses(actor, critic, others, peers_obs, batch, args)
    loss, error, expected = slow_losses(actor, critic, others, batch, args, peers_obs)
    for own, slow, network in zip(losses, (loss, error), (actor, critic)):
        gradients = (torch.autograd.grad(each, list(network.parameters())) for each in (own, slow))
        torch.testing.assert_close(*map(flat, gradients), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(torch.stack(metrics), expected, rtol=1e-4, atol=1e-5)


def test_gradients_by_finite_differences():
    """A few coordinates of the actor, in float64."""
    args = settings(alpha=0.7, entropy_coef=0.1)
    actor, critic = actor_and_critic(0)
    batch = Batch(*(column.double() for column in random_batch(actor)))
    actor, critic, *peers = (network.double() for network in (actor, critic, *actors(3)[1:]))
    (loss, _), _ = agent_losses(actor, critic, peers, [], batch, args)
    for parameter, gradient in zip(actor.parameters(), torch.autograd.grad(loss, list(actor.parameters()))):
        index, entry, values = int(gradient.abs().argmax()), parameter.data.view(-1), []
        before = entry[index].item()
        for step in (1e-6, -1e-6):
            entry[index] = before + step
            values.append(slow_losses(actor, critic, peers, batch, args)[0].item())
        entry[index] = before
        assert gradient.view(-1)[index].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)


def slow_update(actor, critic, optimiser, peers, batch, args, workers=1):
    """Algorithm 1, lines 13 and 15, the ordinary way; with workers, along the mean of their gradients."""
    optimiser.zero_grad()
    metrics = 0.0
    for own in zip(*(column.chunk(workers) for column in batch)):
        loss, error, each = slow_losses(actor, critic, peers, Batch(*own), args)
        ((loss + error) / workers).backward()
        metrics = metrics + each / workers
    for network in (actor, critic):
        nn.utils.clip_grad_norm_(network.parameters(), args.max_grad_norm)
    optimiser.step()
    return metrics


@pytest.mark.parametrize(("workers", "max_grad_norm", "compiled"), [(1, 0.5, False), (1, 0.05, True), (3, 0.05, False), (2, 1e3, False)])
def test_update_is_one_step_of_adam_for_one_agent(workers, max_grad_norm, compiled):
    """Three updates against torch's Adam on separate parameters; peers and all statistics stay."""
    method = {"method": "distributed-ppo", "agents": workers} if workers > 1 else {}
    args = settings(max_grad_norm=max_grad_norm, compile=compiled, entropy_coef=0.1, **method)
    baselines.set_up_torch(args)
    agent, peers = agent_of(0, args), [agent_of(1, args).actor] if workers == 1 else []
    slow = copy.deepcopy((agent.actor, agent.critic))
    optimiser = torch.optim.Adam([*slow[0].parameters(), *slow[1].parameters()], lr=args.learning_rate, eps=1e-5)
    before, theirs = copy.deepcopy(agent.state_dict()), [copy.deepcopy(peer.state_dict()) for peer in peers]
    for seed in range(3):
        batch = random_batch(agent.actor, steps=24, seed=seed)
        metrics = agent.update(peers, [], batch, args)
        expected = slow_update(*slow, optimiser, peers, batch, args, workers)
        torch.testing.assert_close(metrics, expected, rtol=1e-4, atol=1e-5)
    after = flat([*agent.actor.parameters(), *agent.critic.parameters()])
    torch.testing.assert_close(after, flat([*slow[0].parameters(), *slow[1].parameters()]), rtol=0, atol=5e-5)
    assert (agent.state_dict()["actor.net.0.weight"] - before["actor.net.0.weight"]).abs().max() > 0.01
    norms = [name for name in before if "norm" in name]
    assert all(torch.equal(before[name], agent.state_dict()[name]) for name in norms)
    for peer, state in zip(peers, theirs):
        assert all(torch.equal(state[name], value) for name, value in peer.state_dict().items())


@pytest.mark.parametrize("case", ["p2pdrl", "dnc", "ppo"])
def test_log_gradient_variance_is_that_of_64_small_minibatches(case):
    """Gradients of Eq. (4) by .backward() on 64 times 64 steps; numpy's variance, mean, log."""
    args = settings(alpha=2.0, entropy_coef=0.1)
    agent, peers = agent_of(0, args), actors(3)[1:] if case != "ppo" else []
    batch = random_batch(agent.actor, 90)
    peers_obs = [random_batch(peer, 90, seed=4).obs for peer in peers] if case == "dnc" else []
    got = log_gradient_variance(agent, peers, peers_obs, batch, np.random.default_rng(7), args)
    rng, samples = np.random.default_rng(7), []
    for _ in range(64):
        rows = rng.permutation(90)[:64]
        minibatch, theirs = Batch(*(column[rows] for column in batch)), [obs[rows] for obs in peers_obs]
        loss, _, _ = slow_losses(agent.actor, agent.critic, peers, minibatch, args, theirs)
        samples.append(flat(torch.autograd.grad(loss, list(agent.actor.parameters()))).numpy())
    assert got == pytest.approx(math.log(np.var(samples, axis=0, ddof=1).mean()), abs=2e-3)


def test_shuffle_gives_every_worker_its_part():
    """Each step once; each minibatch has equally many steps of every worker, the workers one after the other."""
    column = torch.arange(48)
    batch = Batch(column[:, None].float(), column, column, column, column)
    for workers in (1, 3):
        rngs = [np.random.default_rng(seed) for seed in range(workers)]
        minibatches = p2pdrl.shuffle(batch, 4, rngs)
        assert len(minibatches) == 4 and all(len(each.targets) == 12 for each in minibatches)
        assert sorted(torch.cat([each.targets for each in minibatches]).tolist()) == list(range(48))
        for each in minibatches:
            assert torch.equal(each.obs[:, 0], each.targets.float())
            owners = (each.targets // (48 // workers)).tolist()
            assert owners == sorted(owners) and {owners.count(worker) for worker in range(workers)} == {12 // workers}
        assert minibatches[0].targets.tolist() != sorted(minibatches[0].targets.tolist())


# Algorithm 1 ---------------------------------------------------------------------------------------------


class SlowAgent:
    """Networks without the program's normaliser: it remembers all observations and asks numpy."""

    def __init__(self, actor, critic, args):
        self.actor_net, self.critic_net = copy.deepcopy((actor.net, critic.net))
        self.log_std = nn.Parameter(actor.log_std.detach().clone())
        groups = [self.log_std, *self.actor_net.parameters()], [*self.critic_net.parameters()]
        self.groups = groups
        self.optimiser = torch.optim.Adam([*groups[0], *groups[1]], lr=args.learning_rate, eps=1e-5)
        self.actor_seen, self.critic_seen, self.sums = [], [], []

    def normal(self, obs, seen):
        seen = np.concatenate(seen).astype(np.float64) if seen else np.array([[-1.0], [1.0]])
        mean, std = seen.mean(0), np.sqrt(seen.var(0) + 1e-8)
        return torch.tensor(np.clip((np.asarray(obs, np.float64) - mean) / std, -10, 10), dtype=torch.float32)

    def actor(self, obs):
        return self.actor_net(self.normal(obs, self.actor_seen)), self.log_std

    def critic(self, obs):
        return self.critic_net(self.normal(obs, self.critic_seen))[:, 0]


def slow_log_probs(agent, rollouts, args):
    """Of the actions by the policy that took them; the discounted sums of rewards are noted on the way."""
    for data in rollouts:
        start = 0
        for t in range(len(data.rewards)):
            agent.sums.append(sum(args.gamma ** (t - s) * data.rewards[s] for s in range(start, t + 1)))
            start = t + 1 if data.ends[t] else start
    return [policy_of(agent.actor, data.obs).log_prob(torch.tensor(data.actions)).sum(1).numpy() for data in rollouts]


def slow_batch(agent, rollouts, log_probs, args):
    """Line 14: advantages and targets by the critic as it is now; sums as in their definitions."""
    scale = np.std(agent.sums)
    columns = []
    for data, old in zip(rollouts, log_probs):
        values = agent.critic(data.obs).double().numpy()
        futures = np.where(data.terminated, 0, agent.critic(data.next_obs).double().numpy())
        deltas = data.rewards / scale + args.gamma * futures - values
        advantages = []
        for t in range(len(deltas)):
            last = t + int(np.argmax(data.ends[t:]))
            advantages.append(sum((args.gamma * args.gae_lambda) ** (s - t) * deltas[s] for s in range(t, last + 1)))
        columns.append((data.obs, data.actions, old, np.array(advantages), np.array(advantages) + values))
    return [np.concatenate(column) for column in zip(*columns)]


def slow_central_update(central, agents, states, args):
    """One step of Adam on the mean over agents of KL(agent || central) on the agent's own states."""
    loss = 0.0
    for agent, obs in zip(agents, states):
        with torch.no_grad():
            theirs = policy_of(agent.actor, obs)
        loss = loss + kl_divergence(theirs, policy_of(central.actor, obs)).sum(1).mean() / len(agents)
    central.optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(central.groups[0], args.max_grad_norm)
    central.optimiser.step()


def slow_algorithm_1(args):
    """Algorithm 1, line by line, for all methods; rows of the log, parameters of the agents, of the central policy or None."""
    envs = [make_env(args.env) for _ in range(args.agents)]
    torch.manual_seed(args.seed)
    actor, critic = GaussianActor(11, 3), ValueCritic(11)
    learners = args.agents if args.method in ("p2pdrl", "distral", "dnc") else 1
    agents = [SlowAgent(actor, critic, args) for _ in range(learners)]
    central = SlowAgent(actor, critic, args)
    central.optimiser = torch.optim.Adam(central.groups[0], lr=args.learning_rate, eps=1e-5)
    rows = []
    for iteration in range(args.total_steps // args.steps_per_iteration):
        rngs = [np.random.default_rng([args.seed, i, iteration]) for i in range(args.agents)]
        domains, data = [sample_domain(args.eps_tr, rng) for rng in rngs], [[] for _ in agents]
        for i in range(args.agents):
            owner = agents[i % learners]
            domain = domains[0 if args.method in ("ppo", "self-kl") else i]
            with torch.no_grad():
                std = owner.log_std.exp().numpy().copy()
                act = lambda obs, owner=owner: owner.actor(obs[None])[0][0].detach().numpy()  # noqa: E731
                steps = args.steps_per_iteration // args.agents
                data[i % learners].append(baselines.rollout(envs[i], act, std, domain, steps, rngs[i]))
        # Distributed PPO shuffles and normalises each worker's data by itself, but they are one agent's.
        shares = [[each] for each in data[0]] if args.method == "distributed-ppo" else data
        owners = agents * (args.agents if args.method == "distributed-ppo" else 1)
        with torch.no_grad():
            log_probs = [slow_log_probs(agent, share, args) for agent, share in zip(owners, shares)]
        itself = copy.deepcopy(agents[0])

        def shuffled():
            return [np.array_split(rng.permutation(len(batch[0])), args.minibatches) for rng, batch in zip(rngs, batches)]

        metrics = [torch.zeros(6) for _ in agents]
        for epoch in range(args.epochs if iteration > 0 else 0):  # the first iteration only gathers statistics
            if epoch == 0 or learners > 1:  # line 14: for each epoch, but once for each iteration of a single learner
                with torch.no_grad():
                    batches = [slow_batch(agent, share, old, args) for agent, share, old in zip(owners, shares, log_probs)]
            orders = shuffled()
            for m in range(args.minibatches):
                minibatches = [
                    Batch(*(torch.tensor(column[order[m]], dtype=torch.float32) for column in batch))
                    for batch, order in zip(batches, orders)
                ]
                for i, agent in enumerate(agents):
                    peers_obs = []
                    peers = {"distral": [central.actor], "self-kl": [itself.actor]}.get(args.method, [])
                    if args.method in ("p2pdrl", "dnc"):
                        peers = [peer.actor for peer in agents if peer is not agent]
                    if args.method == "dnc":
                        peers_obs = [minibatches[k].obs for k in range(len(agents)) if k != i]
                    own = [minibatch for minibatch, owner in zip(minibatches, owners) if owner is agent]
                    agent.optimiser.zero_grad()
                    for minibatch in own:
                        loss, error, each = slow_losses(agent.actor, agent.critic, peers, minibatch, args, peers_obs)
                        ((loss + error) / len(own)).backward()
                        metrics[i] += each / len(own) / args.epochs / args.minibatches
                    for group in agent.groups:
                        nn.utils.clip_grad_norm_(group, args.max_grad_norm)
                    agent.optimiser.step()
                if args.method == "distral":
                    slow_central_update(central, agents, [minibatch.obs for minibatch in minibatches], args)
        if args.method == "dnc" and iteration > 0:
            again = (iteration + 1) % args.reset_every == 0
            for _ in range(30 if again else 1):
                for pieces in zip(*shuffled()):
                    slow_central_update(central, agents, [batch[0][piece] for batch, piece in zip(batches, pieces)], args)
            for agent in agents if again else ():
                agent.actor_net.load_state_dict(central.actor_net.state_dict())
                agent.actor_seen = list(central.actor_seen)
        for i, agent in enumerate(agents):
            for each in data[i]:
                agent.actor_seen.append(each.obs)
                agent.critic_seen.append(each.obs)
                central.actor_seen.append(each.obs)
            returns = np.concatenate([each.returns for each in data[i]])
            step = (iteration + 1) * args.steps_per_iteration
            rows.append([step, i, returns.mean(), len(returns), *metrics[i].tolist()])
    ends = [flat([*agent.groups[0], *agent.groups[1]]) for agent in agents]
    return np.array(rows), ends, flat(central.groups[0]) if args.method in ("distral", "dnc") else None


THREE = {"agents": 3, "steps_per_iteration": 192, "total_steps": 576, "alpha": 3.0}


@pytest.mark.parametrize(("method", "changes"), [
    ("p2pdrl", {}), ("p2pdrl", THREE | {"entropy_coef": 0.1, "seed": 5}), ("ppo", {"agents": 1}), ("ppo", {"threads": 2}),
    ("ppo-union", {"threads": 2}), ("distributed-ppo", THREE), ("self-kl", {"alpha": 3.0}), ("distral", THREE),
    ("dnc", {"reset_every": 2, "seed": 2}), ("dnc", THREE),
])  # fmt: skip
def test_train_is_algorithm_1(tmp_path, no_figures, method, changes):
    """Three iterations: log and final parameters against Algorithm 1 written out, agents in turn, peers current."""
    run, saved = trained(tmp_path, method=method, **changes)
    rows, parameters, central = slow_algorithm_1(tiny(tmp_path, method=method, **changes))
    log = run.table("log.csv")
    names = ("step", "agent", "return", "episodes", *p2pdrl.METRICS)
    np.testing.assert_allclose(np.stack([log[name] for name in names], 1), rows, rtol=2e-3, atol=5e-5)
    assert saved["iteration"] == 3 and len(saved["parts"]) == len(parameters) + 1
    for i, expected in enumerate(parameters):
        state = saved["parts"][f"agent{i}"]
        actor, critic = GaussianActor(11, 3), ValueCritic(11)
        for name, network in (("actor.", actor), ("critic.", critic)):
            own = {key.removeprefix(name): value for key, value in state.items() if key.startswith(name)}
            network.load_state_dict(own)
        torch.testing.assert_close(flat([*actor.parameters(), *critic.parameters()]), expected, rtol=0, atol=5e-5)
    if central is not None:
        (actor,) = run.networks(lambda _: GaussianActor(11, 3))  # the central policy is what is kept
        torch.testing.assert_close(flat(actor.parameters()), central, rtol=0, atol=5e-5)


def test_explained_variance(tmp_path, no_figures, monkeypatch):
    """1 - Var(targets - values) / Var(targets), of the batch that the iteration ended with."""
    batches, original = [], p2pdrl.make_batch
    monkeypatch.setattr(p2pdrl, "make_batch", lambda *rest: batches.append(original(*rest)) or batches[-1])
    run, _ = trained(tmp_path, method="ppo", agents=1)
    expected = [1 - np.var(batch.advantages.numpy()) / np.var(batch.targets.numpy()) for batch in batches]
    np.testing.assert_allclose(run.table("log.csv")["explained_variance"], expected, rtol=1e-4)


def test_each_peer_is_as_its_own_last_update_left_it(tmp_path, no_figures, monkeypatch):
    """At each update the peers are the others, with the parameters that their own last update left."""
    latest, calls, update = {}, [], Agent.update

    def watched(agent, peers, *rest):
        turn, start = len(calls) % 3, flat(agent.actor.parameters())
        expected = [latest.setdefault(i, start) for i in range(3) if i != turn]  # at first all are the same
        assert len(peers) == 2 and all(map(torch.equal, (flat(peer.parameters()) for peer in peers), expected))
        metrics = update(agent, peers, *rest)
        latest[turn] = flat(agent.actor.parameters())
        assert not torch.equal(latest[turn], start)
        calls.append(agent)
        return metrics

    monkeypatch.setattr(Agent, "update", watched)
    trained(tmp_path, agents=3, steps_per_iteration=192, total_steps=384)
    assert calls == calls[:3] * 4 and len(set(calls)) == 3  # 2 epochs of 2 minibatches, agents in turn


@pytest.mark.parametrize(("method", "number"), [("p2pdrl", 6), ("ppo", 3), ("self-kl", 3), ("ppo-union", 6), ("distributed-ppo", 6)])
def test_who_acts_in_which_domain(tmp_path, no_figures, monkeypatch, method, number):
    """A domain for each agent and iteration, or one for each iteration (Sec. 4.2), all within eps_tr."""
    domains, original = [], p2pdrl.rollout

    def watched(env, policy, std, domain, *rest):
        domains.append(domain)
        return original(env, policy, std, domain, *rest)

    monkeypatch.setattr(p2pdrl, "rollout", watched)
    trained(tmp_path, method=method)
    assert len(domains) == 6 and len(set(domains)) == number
    assert all(abs(domain.gravity - 1) <= 0.125 and abs(domain.wind) <= 2.5 for domain in domains)


def test_statistics_are_frozen_while_data_is_in_use(tmp_path, no_figures, monkeypatch):
    """At each update an agent's statistics are those of its own data before this iteration, in both networks."""
    rollouts, updates, original, update = [], [], p2pdrl.rollout, Agent.update
    monkeypatch.setattr(p2pdrl, "rollout", lambda *rest: rollouts.append(original(*rest)) or rollouts[-1])

    def watched(agent, *rest):
        norms = [copy.deepcopy(network.norm) for network in (agent.actor, agent.critic)]
        updates.append((len(rollouts), norms))
        return update(agent, *rest)

    monkeypatch.setattr(Agent, "update", watched)
    trained(tmp_path)
    assert [number for number, _ in updates] == [4] * 8 + [6] * 8  # the first iteration does not learn
    for k, (number, norms) in enumerate(updates):
        own = np.concatenate([data.obs for data in rollouts[k % 2 : number - 2 : 2]]).astype(np.float64)
        for norm in norms:
            np.testing.assert_allclose(norm.mean.numpy(), own.mean(0), rtol=1e-6)
            np.testing.assert_allclose(norm.var.numpy(), own.var(0), rtol=1e-6)
            assert norm.count == len(own)


def same_state(first, second):
    return all(torch.equal(first[name], value) for name, value in second.items())


def test_self_kl_without_its_weight_is_ppo(tmp_path, no_figures):
    """alpha = 0: the same bits; with alpha = 1 others, and no divergence at the first step of an iteration."""
    ends = []
    for method, alpha in (("ppo", 1.0), ("self-kl", 0.0), ("self-kl", 1.0)):
        run, saved = trained(tmp_path / f"{method}{alpha}", method=method, alpha=alpha)
        ends.append(saved["parts"]["agent0"])
    assert same_state(ends[0], ends[1]) and not same_state(ends[0], ends[2])
    assert (run.table("log.csv")["distillation"][1:] > 0).all()


def test_self_kl_holds_to_the_policy_at_the_start_of_the_iteration(tmp_path, no_figures, monkeypatch):
    """theta_old, with its statistics, is that of the iteration's first update and is renewed in each iteration."""
    starts, olds, update = [], [], Agent.update

    def watched(agent, peers, *rest):
        (old,) = peers
        starts.append(flat(agent.actor.state_dict().values()))
        olds.append(flat(old.state_dict().values()))
        return update(agent, peers, *rest)

    monkeypatch.setattr(Agent, "update", watched)
    trained(tmp_path, method="self-kl")
    assert len(olds) == 2 * 4 and all(torch.equal(old, starts[k // 4 * 4]) for k, old in enumerate(olds))
    assert not torch.equal(olds[0], olds[4]) and not torch.equal(starts[0], starts[1])


def test_without_distillation_the_agents_are_alone(tmp_path, no_figures):
    """alpha = 0: agent 0 ends the same whatever its peer's learning does; with alpha = 1 it does not."""
    for alpha, alone in ((0.0, True), (1.0, False)):
        states = []
        for agents, steps in ((2, 128), (3, 192)):
            folder = tmp_path / f"{alpha}-{agents}"
            _, saved = trained(folder, agents=agents, alpha=alpha, steps_per_iteration=steps, total_steps=3 * steps)
            states.append(saved["parts"]["agent0"])
        assert same_state(*states) == alone


def test_gradient_variance_is_logged_and_changes_nothing(tmp_path, no_figures):
    """A column for each agent and iteration, there only if asked for; all else bit-identical."""
    logs = []
    for asked in (False, True):
        run, _ = trained(tmp_path / str(asked), gradient_variance=asked)
        logs.append(run.table("log.csv"))
    assert logs[1].keys() - logs[0].keys() == {"gradient_variance"} and np.isfinite(logs[1]["gradient_variance"]).all()
    assert all(np.array_equal(logs[0][name], logs[1][name]) for name in logs[0].keys() - {"seconds"})


@pytest.mark.parametrize(("method", "tested"), [("p2pdrl", [0, 1]), ("ppo", [0]), ("distral", [-1]), ("dnc", [-1])])
def test_who_is_evaluated_and_kept(tmp_path, no_figures, method, tested):
    """Every peer, or the central policy as agent -1, by slow episodes in held-out domains; the same policies are on disk."""
    changes = {"evaluations": 2, "eps_te": (0.0, 0.5), "eval_domains": 2}
    run, saved = trained(tmp_path, method=method, **changes)
    evaluation = run.table("eval.csv")
    assert sorted(set(evaluation["agent"])) == tested and sorted(set(evaluation["step"])) == [256, 384]
    assert run.steps() == [128, 256, 384]
    for number, actor in zip(tested, p2pdrl.load_actors(run), strict=True):
        state = saved["parts"]["central" if number < 0 else f"agent{number}"]
        assert all(torch.equal(value, state[f"actor.{name}"]) for name, value in actor.state_dict().items())
        expected = [
            baselines.episode_return(make_env("Hopper-v4"), numpy_policy(actor), domain, seed)
            for eps in changes["eps_te"] for seed, domain in enumerate(baselines.held_out_domains(eps, 2))
        ]  # fmt: skip
        assert evaluation["return"][(evaluation["step"] == 384) & (evaluation["agent"] == number)].tolist() == expected


def test_the_defaults_are_the_papers():
    """Appendix A.2, Table 2, section 4.3."""
    args = Args()
    assert (args.agents, args.steps_per_iteration, args.epochs, args.minibatches) == (2, 4096, 10, 32)
    assert (args.clip, args.gamma, args.gae_lambda, args.alpha, args.eps_tr) == (0.2, 0.99, 0.95, 1.0, 0.2)
    rates = {name: method.learning_rate for name, method in p2pdrl.METHODS.items()}
    slow, fast = ("p2pdrl", "distral", "dnc", "self-kl"), ("ppo", "ppo-union", "distributed-ppo")
    assert rates == dict.fromkeys(slow, 1e-4) | dict.fromkeys(fast, 3e-4) and args.reset_every == 50


@pytest.mark.parametrize(("method", "rate"), [("p2pdrl", 1e-4), ("ppo", 3e-4)])
def test_each_method_has_its_learning_rate(tmp_path, no_figures, monkeypatch, method, rate):
    """The paper's for the method, if none is given; and Adam's epsilon is 1e-5."""
    seen, original = [], Optimiser.__init__

    def watched(self, networks, learning_rate, args, **rest):
        seen.append((learning_rate, rest["eps"]))
        original(self, networks, learning_rate, args, **rest)

    monkeypatch.setattr(Optimiser, "__init__", watched)
    trained(tmp_path, method=method, learning_rate=None, total_steps=128)
    assert set(seen) == {(rate, 1e-5)}


# Figures -------------------------------------------------------------------------------------------------


def write_run(args, training, testing, policies=None, **columns):
    """A finished run's folder as train would leave it, with these returns and the level as part of them."""
    path = Path(args.runs) / baselines.run_name(args, "p2pdrl")
    path.mkdir(parents=True)
    config = {"settings": vars(args) | {"eps_te": list(args.eps_te), "seeds": []}}
    (path / "config.json").write_text(json.dumps(config))
    steps = np.array([1, 2]) * args.total_steps // 2
    agents = range(args.agents if args.method == "p2pdrl" else 1)
    names = ["step", "agent", "return", *columns]
    rows = [[step, i, training + i, *columns.values()] for step in steps for i in agents]
    (path / "log.csv").write_text("\n".join(",".join(map(str, row)) for row in [names, *rows]) + "\n")
    rows = [[step, i, eps, 0, testing + i - 100 * eps] for step in steps for i in agents for eps in args.eps_te]
    table = [["step", "agent", "eps_te", "domain", "return"], *rows]
    (path / "eval.csv").write_text("\n".join(",".join(map(str, row)) for row in table) + "\n")
    for step, actors in (policies or {}).items():
        torch.save([actor.state_dict() for actor in actors], path / f"policies-{step}.pt")
    (path / "figure.png").touch()


def lines_of(axis):
    """{label: (x, y)} of an axis; the label without the number of seeds."""
    return {line.get_label().split(",")[0]: np.array(line.get_data()).tolist() for line in axis.lines}


def hopper_actor(seed):
    torch.manual_seed(seed)
    actor = GaussianActor(11, 3)
    actor.norm.update(np.random.default_rng(seed).normal(0.5, 2, (50, 11)))
    return actor


def figure_args(tmp_path, **changes):
    return tiny(tmp_path, **{"eps_te": (0.0, 0.4), "eps_tr": 0.2, "total_steps": 400} | changes)


def test_figures_3_4_and_7_show_the_means_of_the_right_runs(tmp_path, capsys):
    """Two seeds of two methods; runs with other settings are left out; what is missing is named."""
    for method, base in (("p2pdrl", 1000), ("ppo", 500), ("self-kl", 200)):
        for seed in (0, 1):
            write_run(figure_args(tmp_path, method=method, seed=seed), base + 10 * seed, 2 * base + 10 * seed)
    write_run(figure_args(tmp_path, method="p2pdrl", alpha=3.0), 9999, 9999)
    figure, _ = p2pdrl.FIGURES["3"](figure_args(tmp_path, figure="3"))
    assert lines_of(figure.axes[0]) == {"p2pdrl": [[200, 400], [1005.5, 1005.5]], "ppo": [[200, 400], [505, 505]]}
    figure, _ = p2pdrl.FIGURES["4"](figure_args(tmp_path, figure="4"))
    assert lines_of(figure.axes[0]) == {"p2pdrl": [[0, 0.4], [2005.5, 1965.5]], "ppo": [[0, 0.4], [1005, 965]]}
    out = capsys.readouterr().out
    assert "ppo-union; distributed-ppo; distral; dnc" in out and "p2pdrl, eps_te 0.4, by seed: 1960 1970" in out
    figure, _ = p2pdrl.FIGURES["7"](figure_args(tmp_path, figure="7"))
    assert lines_of(figure.axes[0]).keys() == lines_of(figure.axes[1]).keys() == {"p2pdrl", "ppo", "self-kl"}
    assert figure.axes[0].lines[0].get_color() == figure.axes[1].lines[0].get_color()


def test_a_figure_without_runs_says_so(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        p2pdrl.FIGURES["4"](figure_args(tmp_path, figure="4"))
    assert exit_.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_figures_2_and_6_show_returns_against_the_level_of_training(tmp_path, monkeypatch):
    """Training return of the end, and the test return at EPS_TEST of the policies on disk, for each level with runs."""
    for eps in (0.0, 0.4):
        args = figure_args(tmp_path, method="ppo", eps_tr=eps, agents=2)
        write_run(args, 100 + 10 * eps, 0, policies={400: [hopper_actor(int(10 * eps))]})
    figure, _ = p2pdrl.FIGURES["2"](figure_args(tmp_path, figure="2"))
    assert lines_of(figure.axes[0]) == {"ppo": [[0, 0.4], [100, 104]]}
    domain = baselines.held_out_domains(p2pdrl.EPS_TEST, 1)[0]
    policies = [numpy_policy(hopper_actor(seed)) for seed in (0, 4)]
    expected = [baselines.episode_return(make_env("Hopper-v4"), policy, domain, 0) for policy in policies]
    assert lines_of(figure.axes[1])["ppo"][1] == pytest.approx(expected)


def test_folded_policies_act_as_they_did_and_halfway_is_halfway():
    """The normaliser inside the first layer changes no action; the mean of two linear policies acts as their mean."""
    first, second = hopper_actor(0), hopper_actor(1)
    obs = np.random.default_rng(0).normal(0.5, 1, (20, 11))
    for actor in (first, second):
        folded = p2pdrl.unfolded(p2pdrl.folded(actor), hopper_actor(7))
        np.testing.assert_allclose([folded(each) for each in obs], [numpy_policy(actor)(each) for each in obs], atol=1e-5)
    for actor in (first, second):
        actor.net = nn.Sequential(nn.Linear(11, 3))
    half = p2pdrl.unfolded((p2pdrl.folded(first) + p2pdrl.folded(second)) / 2, first)
    expected = [(numpy_policy(first)(each) + numpy_policy(second)(each)) / 2 for each in obs]
    np.testing.assert_allclose([half(each) for each in obs], expected, atol=1e-5)


def test_the_plane_goes_through_its_three_points():
    """Distances between the corners are those between the points; the axes are orthonormal."""
    points = torch.randn(3, 40, dtype=torch.float64, generator=torch.manual_seed(0))
    along, across, corners = p2pdrl.plane_through(*points)
    for point, (x, y) in zip(points, corners):
        torch.testing.assert_close(points[0] + x * along + y * across, point)
    assert abs(along @ across) < 1e-9 and along.norm() == pytest.approx(1) and corners[0].tolist() == [0, 0]


def test_figure_5_takes_the_policy_at_40_per_cent(tmp_path, monkeypatch, capsys):
    """Of the steps kept, the nearest; 13 x 13 policies at two levels, in held-out domains."""
    args = figure_args(tmp_path, method="ppo")
    kept = {step: [hopper_actor(step)] for step in (4, 100, 180, 300, 400)}
    write_run(args, 0, 0, policies=kept)
    asked = []

    def evaluate(envs, policies, levels, number):
        asked.append((len(policies), levels))
        return [{"return": 1.0 + i} for i in range(len(policies) * len(levels) * number)]

    monkeypatch.setattr(p2pdrl, "evaluate", evaluate)
    figure, title = p2pdrl.FIGURES["5"](figure_args(tmp_path, figure="5"))
    assert "after 180 steps" in title and asked == [(169, (0.2, 0.5))]
    titles = [axis.get_title() for axis in figure.axes[:2]]
    assert titles == ["ppo, held-out domains, eps = 0.2", "ppo, held-out domains, eps = 0.5"]


def test_figures_8_and_9_and_the_map(tmp_path, monkeypatch):
    """Entropy against test return; variance over steps; steps of each agent or of all; return by wind and mass."""
    actor = {400: [hopper_actor(0)], 200: [hopper_actor(0)], 800: [hopper_actor(0)]}
    write_run(figure_args(tmp_path, method="ppo", entropy_coef=0.01), 0, 0, actor, entropy=3.5)
    figure, _ = p2pdrl.FIGURES["8a"](figure_args(tmp_path, figure="8a"))
    expected = baselines.episode_return(make_env("Hopper-v4"), numpy_policy(hopper_actor(0)), baselines.held_out_domains(0.5, 1)[0], 0)
    (point,) = figure.axes[0].collections[0].get_offsets().tolist()
    assert point == pytest.approx([3.5, expected])

    write_run(figure_args(tmp_path, method="p2pdrl", gradient_variance=True), 0, 0, gradient_variance=-7.0)
    figure, _ = p2pdrl.FIGURES["8bc"](figure_args(tmp_path, figure="8bc"))
    assert lines_of(figure.axes[0]) == {"p2pdrl": [[200, 400], [-7, -7]]}

    write_run(figure_args(tmp_path, agents=4, steps_per_iteration=8192, total_steps=800), 0, 50)
    write_run(figure_args(tmp_path, agents=2, steps_per_iteration=4096), 0, 70)
    write_run(figure_args(tmp_path, agents=1, method="ppo", steps_per_iteration=4096), 0, 20)
    figure, _ = p2pdrl.FIGURES["9"](figure_args(tmp_path, figure="9"))
    left, right = map(lines_of, figure.axes)
    assert left == {"K = 2": [[100, 200], [70.5, 70.5]], "K = 4": [[100, 200], [51.5, 51.5]]}
    assert right == {"K = 1": [[200, 400], [20, 20]], "K = 2": [[200, 400], [70.5, 70.5]]}

    jobs = []
    monkeypatch.setattr(p2pdrl, "episode_returns", lambda envs, each: jobs.extend(each) or [job[1].wind for job in each])
    write_run(figure_args(tmp_path, method="ppo"), 0, 0, actor)
    figure, _ = p2pdrl.FIGURES["map"](figure_args(tmp_path, figure="map"))
    assert len(jobs) == 121 and jobs[0][1] == Domain(wind=-5, mass=0.5) and jobs[1][1] == Domain(wind=-4, mass=0.5)
    values = figure.axes[0].collections[0].get_array().reshape(11, 11)
    np.testing.assert_allclose(values[3], np.linspace(-5, 5, 11))
