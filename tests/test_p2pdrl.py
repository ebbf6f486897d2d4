"""Tests of p2pdrl.py.

The equations are compared with torch.distributions, loops and .backward(); the whole program with Algorithm 1
written out once more, slowly, with none of the program's own networks, losses or optimisers.
"""

import ast
import copy
import dataclasses
import inspect
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
from p2pdrl import (  # noqa: E402
    Agent, Args, Batch, GaussianActor, ValueCritic, adam_step, distillation_loss, gaussian_kl, gaussian_log_prob,
    gradients, ppo_loss, update,
)  # fmt: skip
from randomised_envs import make_env, sample_domain  # noqa: E402

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
    actor.norm.absorb(seen)
    critic.norm.absorb(seen)
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


def tiny(tmp_path, **changes):
    """Settings of a run of a second."""
    settings = {
        "env": "Hopper-v4", "eps_tr": 0.5, "total_steps": 256, "steps_per_iteration": 128, "epochs": 2, "minibatches": 2,
        "learning_rate": 1e-3, "eval_domains": 1, "eps_te": (0.2,), "evaluations": 1, "threads": 1, "compile": False,
        "runs": str(tmp_path),
    }  # fmt: skip
    return Args(**settings | changes)


@pytest.fixture
def no_figures(monkeypatch):
    monkeypatch.setattr(p2pdrl, "draw_run", lambda *_: None)
    monkeypatch.setattr(p2pdrl, "report", lambda *_: None)


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


# Eq. (2), (4) --------------------------------------------------------------------------------------------


def test_ppo_loss_is_minimised():
    """A step against its gradient makes good actions likelier and bad ones less likely."""
    actor, _ = actor_and_critic(0)
    batch = random_batch(actor, shift=0.0)
    loss = ppo_loss(actor(batch.obs), batch, 0.2)
    assert loss.item() == pytest.approx(-batch.advantages.mean().item(), rel=1e-3)
    loss.backward()
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter -= 1e-3 * parameter.grad
    change = gaussian_log_prob(*actor(batch.obs), batch.actions) - batch.log_probs
    assert (change * batch.advantages).mean() > 0


def normalised(batch):
    """The batch with advantages of mean 0 and standard deviation 1."""
    advantages = batch.advantages.numpy().astype(np.float64)
    advantages = (advantages - advantages.mean()) / advantages.std(ddof=1)
    return batch._replace(advantages=torch.tensor(advantages, dtype=batch.advantages.dtype))


def slow_losses(actor, critic, peers, batch, args):
    """Eq. (4) from torch.distributions, and the critic's error."""
    batch, policy = normalised(batch), policy_of(actor, batch.obs)
    ratio = (policy.log_prob(batch.actions).sum(1) - batch.log_probs).exp()
    clipped = torch.clamp(ratio, 1 - args.clip, 1 + args.clip)
    surrogate = -torch.minimum(ratio * batch.advantages, clipped * batch.advantages).mean()
    with torch.no_grad():
        theirs = [policy_of(peer, batch.obs) for peer in peers]
    distillation = sum((kl_divergence(policy, other).sum(1).mean() for other in theirs), torch.zeros(())) / max(1, len(peers))
    entropy = policy.entropy().sum(1).mean()
    loss = surrogate + args.alpha * distillation - args.entropy_coef * entropy
    error = ((critic(batch.obs) - batch.targets) ** 2).mean()
    return loss, error, torch.stack([surrogate, distillation, error, entropy]).detach()


@pytest.mark.parametrize(
    ("peers", "changes"),
    [
        (1, {}),
        (3, {"alpha": 0.3}),
        (2, {"alpha": 0.0, "max_grad_norm": 1e3}),
        (2, {"alpha": 5.0, "max_grad_norm": 1e3}),
        (1, {"entropy_coef": 2.0, "max_grad_norm": 1e3}),
        (0, {"clip": 0.05}),
        (2, {"max_grad_norm": 1e-3}),
    ],
)
def test_gradients_are_those_of_eq_4_and_of_the_critics_error(peers, changes):
    """Against .backward() on losses computed separately, each network's gradient clipped by itself."""
    args = Args(**changes)
    actor, critic = actor_and_critic(0)
    others = actors(1 + peers)[1:]
    batch = random_batch(actor)
    gradient, told = gradients(actor, critic, others, batch, args.clip, args.alpha, args.entropy_coef, args.max_grad_norm)
    loss, error, expected_told = slow_losses(actor, critic, others, batch, args)
    loss.backward()
    error.backward()
    expected = []
    for network in (actor, critic):
        nn.utils.clip_grad_norm_(network.parameters(), args.max_grad_norm)
        expected += [parameter.grad for parameter in network.parameters()]
    torch.testing.assert_close(gradient, flat(expected), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(told, expected_told, rtol=1e-4, atol=1e-5)
    assert not told.requires_grad


def test_gradients_by_finite_differences():
    """A few coordinates of actor and critic, in float64."""
    args = Args(alpha=0.7, entropy_coef=0.1, max_grad_norm=1e6)
    actor, critic = (network.double() for network in actor_and_critic(0))
    peers = [actor.double() for actor in actors(3)[1:]]
    batch = Batch(*(column.double() for column in random_batch(actor.float())))
    actor.double()
    gradient, _ = gradients(actor, critic, peers, batch, args.clip, args.alpha, args.entropy_coef, args.max_grad_norm)
    parameters = [*actor.parameters(), *critic.parameters()]
    owners = [0] * len(list(actor.parameters())) + [1] * len(list(critic.parameters()))
    pieces = gradient.split([parameter.numel() for parameter in parameters])
    for parameter, piece, owner in zip(parameters, pieces, owners):
        index = int(piece.abs().argmax())
        entry = parameter.data.view(-1)
        before, values = entry[index].item(), []
        for step in (1e-6, -1e-6):
            entry[index] = before + step
            values.append(slow_losses(actor, critic, peers, batch, args)[owner].item())
        entry[index] = before
        assert piece[index].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)


def test_actor_and_critic_do_not_meet():
    """The actor's part of the gradient knows nothing of the targets, the critic's nothing of peers and actions."""
    actor, critic = actor_and_critic(0)
    peers, batch = actors(3)[1:], random_batch(actor)
    size = sum(parameter.numel() for parameter in actor.parameters())

    def both(peers, batch):
        gradient, _ = gradients(actor, critic, peers, batch, 0.2, 1.0, 0.0, 0.5)
        return gradient[:size], gradient[size:]

    first = both(peers, batch)
    other_targets = both(peers, batch._replace(targets=batch.targets * 100))
    other_peers = both(peers[:1], batch._replace(actions=batch.actions + 0.1, advantages=batch.advantages**2))
    assert torch.equal(first[0], other_targets[0]) and not torch.equal(first[1], other_targets[1])
    assert torch.equal(first[1], other_peers[1]) and not torch.equal(first[0], other_peers[0])


# One update ----------------------------------------------------------------------------------------------


def slow_adam(agent, args):
    """Adam on the separate parameters of copies of an agent's networks."""
    actor, critic = copy.deepcopy((agent.actor, agent.critic))
    return actor, critic, torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=args.learning_rate, eps=1e-5)


def slow_update(actor, critic, optimiser, peers, batch, args):
    """Algorithm 1, lines 13 and 15, the ordinary way."""
    optimiser.zero_grad()
    loss, error, told = slow_losses(actor, critic, peers, batch, args)
    (loss + error).backward()
    for network in (actor, critic):
        nn.utils.clip_grad_norm_(network.parameters(), args.max_grad_norm)
    optimiser.step()
    return told


def parameters_of(actor, critic):
    return flat([*actor.parameters(), *critic.parameters()])


def test_update_is_one_step_of_adam_for_one_agent():
    """Three updates against Adam on separate parameters; peers, their optimisers and all statistics stay."""
    args = Args(learning_rate=1e-2)
    agent, peer = (Agent(*actor_and_critic(seed), args.learning_rate) for seed in (0, 1))
    slow = slow_adam(agent, args)
    before = parameters_of(peer.actor, peer.critic).clone()
    statistics = copy.deepcopy([dict(network.named_buffers()) for network in (agent.actor, agent.critic, peer.actor)])
    for seed in range(3):
        batch = random_batch(agent.actor, seed=seed)
        told = update(agent, [peer.actor], batch, adam_step, args)
        torch.testing.assert_close(told, slow_update(*slow, [peer.actor], batch, args), rtol=1e-4, atol=1e-5)
    after = parameters_of(agent.actor, agent.critic)
    torch.testing.assert_close(after, parameters_of(*slow[:2]), rtol=0, atol=2e-5)
    assert torch.equal(after, agent.parameters.detach())
    assert (parameters_of(*actor_and_critic(0)) - after).abs().max() > 0.02
    assert torch.equal(before, parameters_of(peer.actor, peer.critic))
    assert peer.adam.steps == 0 and not peer.adam.mean.any() and peer.parameters.grad is None
    for old, network in zip(statistics, (agent.actor, agent.critic, peer.actor)):
        assert all(torch.equal(old[name], buffer) for name, buffer in network.named_buffers())


# Algorithm 1 ---------------------------------------------------------------------------------------------


class SlowAgent:
    """Networks without the program's normaliser: it remembers all observations and asks numpy."""

    def __init__(self, actor, critic, args):
        self.actor_net, self.critic_net = copy.deepcopy((actor.net, critic.net))
        self.log_std = nn.Parameter(actor.log_std.detach().clone())
        groups = [self.log_std, *self.actor_net.parameters()], [*self.critic_net.parameters()]
        self.groups = groups
        self.optimiser = torch.optim.Adam([*groups[0], *groups[1]], lr=args.learning_rate, eps=1e-5)
        self.seen, self.sums = [], []

    def normal(self, obs):
        seen = np.concatenate(self.seen).astype(np.float64) if self.seen else np.array([[-1.0], [1.0]])
        mean, std = seen.mean(0), np.sqrt(seen.var(0) + 1e-8)
        return torch.tensor(np.clip((np.asarray(obs, np.float64) - mean) / std, -10, 10), dtype=torch.float32)

    def actor(self, obs):
        return self.actor_net(self.normal(obs)), self.log_std

    def critic(self, obs):
        return self.critic_net(self.normal(obs))[:, 0]


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


def slow_algorithm_1(args, line_14_once=False):
    """Algorithm 1, line by line; rows of the log, parameters of the agents. line_14_once: not for each epoch."""
    envs = [make_env(args.env) for _ in range(args.agents)]
    torch.manual_seed(args.seed)
    actor, critic = GaussianActor(11, 3), ValueCritic(11)
    learners = args.agents if args.method == "p2pdrl" else 1
    agents = [SlowAgent(actor, critic, args) for _ in range(learners)]
    rows = []
    for iteration in range(args.total_steps // args.steps_per_iteration):
        rngs, data = [], [[] for _ in agents]
        for i in range(args.agents):
            rngs.append(np.random.default_rng([args.seed, i, iteration]))
            domain = sample_domain(args.eps_tr, rngs[i])
            owner = agents[i % learners]
            with torch.no_grad():
                std = owner.log_std.exp().numpy().copy()
                act = lambda obs, owner=owner: owner.actor(obs[None])[0][0].detach().numpy()  # noqa: E731
                steps = args.steps_per_iteration // args.agents
                data[i % learners].append(baselines.rollout(envs[i], act, std, domain, steps, rngs[i]))
        with torch.no_grad():
            log_probs = [slow_log_probs(agent, own, args) for agent, own in zip(agents, data)]
        told = [torch.zeros(4) for _ in agents]
        for epoch in range(args.epochs if iteration > 0 else 0):  # the first iteration only gathers statistics
            if epoch == 0 or not line_14_once:
                with torch.no_grad():
                    batches = [slow_batch(agent, own, old, args) for agent, own, old in zip(agents, data, log_probs)]
            orders = [np.array_split(rng.permutation(len(batch[0])), args.minibatches) for rng, batch in zip(rngs, batches)]
            for m in range(args.minibatches):
                for i, agent in enumerate(agents):
                    minibatch = Batch(*(torch.tensor(column[orders[i][m]], dtype=torch.float32) for column in batches[i]))
                    peers = [peer.actor for peer in agents if peer is not agent]
                    loss, error, tells = slow_losses(agent.actor, agent.critic, peers, minibatch, args)
                    agent.optimiser.zero_grad()
                    loss.backward()
                    error.backward()
                    for group in agent.groups:
                        nn.utils.clip_grad_norm_(group, args.max_grad_norm)
                    agent.optimiser.step()
                    told[i] += tells / args.epochs / args.minibatches
        for i, agent in enumerate(agents):
            agent.seen += [each.obs for each in data[i]]
            returns = np.concatenate([each.returns for each in data[i]])
            rows.append([(iteration + 1) * args.steps_per_iteration, i, returns.mean(), len(returns), *told[i].tolist()])
    return np.array(rows), [flat([*agent.groups[0], *agent.groups[1]]) for agent in agents]


@pytest.mark.parametrize(
    ("method", "agents", "changes"),
    [
        ("p2pdrl", 2, {}),
        ("p2pdrl", 3, {"steps_per_iteration": 192, "total_steps": 576, "alpha": 3.0, "entropy_coef": 0.1, "seed": 5}),
        ("ppo", 1, {}),
        ("ppo", 2, {"threads": 2}),
    ],
)
def test_train_is_algorithm_1(tmp_path, no_figures, method, agents, changes):
    """Three iterations: log and final parameters against Algorithm 1 written out, agents in turn, peers current."""
    args = tiny(tmp_path, method=method, agents=agents, **{"total_steps": 384, **changes})
    p2pdrl.train(args)
    rows, parameters = slow_algorithm_1(args)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    log = baselines.read_csv(folder / "log.csv")
    names = ("step", "agent", "return", "episodes", "surrogate", "distillation", "value_loss", "entropy")
    np.testing.assert_allclose(np.stack([log[name] for name in names], 1), rows, rtol=2e-3, atol=2e-5)
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert saved["finished"] and saved["iteration"] == 3
    actor, critic = GaussianActor(11, 3), ValueCritic(11)
    for i, expected in enumerate(parameters):
        actor.load_state_dict(saved["state"][f"actor{i}"])
        critic.load_state_dict(saved["state"][f"critic{i}"])
        torch.testing.assert_close(parameters_of(actor, critic), expected, rtol=0, atol=3e-5)
    assert sum(name.startswith("actor") for name in saved["state"]) == len(parameters)


def test_ppo_of_baselines_is_algorithm_1_for_one_agent(tmp_path, monkeypatch):
    """Without peers, and with targets computed once for each iteration."""
    monkeypatch.setattr(baselines, "report", lambda *_: None)
    args = tiny(tmp_path, method="ppo", agents=1, total_steps=384)
    shared = {field.name for field in dataclasses.fields(baselines.Args)} & set(vars(args))
    baselines.ppo(baselines.Args(**{name: getattr(args, name) for name in shared}))
    rows, (parameters,) = slow_algorithm_1(args, line_14_once=True)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    log = baselines.read_csv(folder / "log.csv")
    names = ("step", "agent", "return", "episodes", "surrogate", "value_loss")
    np.testing.assert_allclose(np.stack([log[name] for name in names], 1), rows[:, [0, 1, 2, 3, 4, 6]], rtol=2e-3, atol=2e-5)
    entropies = ACT * (log["log_std"] + 0.5 * math.log(2 * math.pi * math.e))
    np.testing.assert_allclose(entropies[1:], rows[1:, 7], rtol=1e-3)
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["state"]
    actor, critic = baselines.GaussianActor(11, 3), baselines.ValueCritic(11)
    actor.load_state_dict(state["actor"])
    critic.load_state_dict(state["critic"])
    torch.testing.assert_close(parameters_of(actor, critic), parameters, rtol=0, atol=3e-5)


def test_the_second_agent_sees_what_the_first_has_just_learned(tmp_path, no_figures, monkeypatch):
    """At each update the peers are the others, with the parameters that their own last update left."""
    latest, calls = {}, []

    def watched(agent, peers, batch, compute_gradients, args):
        turn, start = len(calls) % 3, flat(agent.actor.parameters())
        expected = [latest.setdefault(i, start) for i in range(3) if i != turn]  # at first all are the same
        assert len(peers) == 2 and all(map(torch.equal, (flat(peer.parameters()) for peer in peers), expected))
        told = update(agent, peers, batch, compute_gradients, args)
        latest[turn] = flat(agent.actor.parameters())
        assert not torch.equal(latest[turn], start)
        calls.append(agent)
        return told

    monkeypatch.setattr(p2pdrl, "update", watched)
    p2pdrl.train(tiny(tmp_path, agents=3, steps_per_iteration=192, total_steps=384))
    assert calls == calls[:3] * 4 and len(set(calls)) == 3  # 2 epochs of 2 minibatches, agents in turn


class Watch:
    """What train asks of rollout, prepare and update, in order."""

    def __init__(self, monkeypatch):
        self.rollouts, self.batches, self.updates = [], [], []
        original, actors = (p2pdrl.rollout, p2pdrl.prepare, p2pdrl.estimate, p2pdrl.update), {}

        def rollout(env, policy, std, domain, steps, rng):
            data = original[0](env, policy, std, domain, steps, rng)
            self.rollouts.append((domain, env, policy(np.linspace(-1, 1, 11)), data))
            return data

        def prepare(actor, reward_scale, *rest):
            actors[reward_scale] = actor
            return original[1](actor, reward_scale, *rest)

        def estimate(batch, critic, reward_scale, rollouts, *rest):
            first_epoch, actor = batch.targets is None, actors[reward_scale]
            batch = original[2](batch, critic, reward_scale, rollouts, *rest)
            if first_epoch:
                statistics = self.statistics(actor, critic)
                self.batches.append((actor, statistics, len(self.rollouts), rollouts, batch, reward_scale))
            return batch

        def update_(agent, peers, batch, *rest):
            self.updates.append((agent, self.statistics(agent.actor, agent.critic), batch))
            return original[3](agent, peers, batch, *rest)

        monkeypatch.setattr(p2pdrl, "rollout", rollout)
        monkeypatch.setattr(p2pdrl, "prepare", prepare)
        monkeypatch.setattr(p2pdrl, "estimate", estimate)
        monkeypatch.setattr(p2pdrl, "update", update_)

    @staticmethod
    def statistics(actor, critic):
        return [buffer.clone() for network in (actor, critic) for buffer in network.norm.buffers()]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second))


def test_agents_start_equal_and_each_has_its_own_domain(tmp_path, no_figures, monkeypatch):
    """Lines 2, 3, 6: one theta_0 for all; a domain for each agent and iteration, no two the same, all of strength eps."""
    watch = Watch(monkeypatch)
    p2pdrl.train(tiny(tmp_path, total_steps=384))
    domains = [domain for domain, *_ in watch.rollouts]
    assert len(domains) == 6 and len(set(domains)) == 6
    assert all(abs(domain.gravity - 1) <= 0.125 and abs(domain.wind) <= 2.5 for domain in domains)
    actions = [action for _, _, action, _ in watch.rollouts]
    assert np.array_equal(actions[0], actions[1]) and not np.array_equal(actions[4], actions[5])
    assert all(len(data.obs) == 64 for *_, data in watch.rollouts)
    envs = [env for _, env, _, _ in watch.rollouts]
    assert envs[0] is not envs[1]
    assert watch.batches[0][5] is not watch.batches[1][5]  # each agent scales its own rewards


def test_statistics_are_frozen_while_data_is_in_use(tmp_path, no_figures, monkeypatch):
    """Nothing is learned in the first iteration; then the statistics are those of all data before, in both networks."""
    watch = Watch(monkeypatch)
    p2pdrl.train(tiny(tmp_path, total_steps=384))
    assert [number for _, _, number, *_ in watch.batches] == [4, 4, 6, 6]  # the first iteration does not learn
    for k, (actor, statistics, _, _, _, _) in enumerate(watch.batches):
        updates = [each for agent, each, _ in watch.updates if agent.actor is actor]
        assert len(updates) == 2 * 4  # iterations that learn, updates in each
        assert all(same(each, statistics) for each in updates[k // 2 * 4 : k // 2 * 4 + 4])
    for i in range(2):
        for k in (1, 2):  # rollouts of agent i before its k-th learning iteration
            own = np.concatenate([data.obs for *_, data in watch.rollouts[i : 2 * k : 2]])  # one thread: in order
            statistics = watch.batches[2 * (k - 1) + i][1]
            for mean, var, count in (statistics[:3], statistics[3:]):
                np.testing.assert_allclose(mean.numpy(), own.astype(np.float64).mean(0), rtol=1e-6)
                np.testing.assert_allclose(var.numpy(), own.astype(np.float64).var(0), rtol=1e-6)
                assert count == 64 * k


def test_ppo_learns_from_all_domains_at_once(tmp_path, no_figures, monkeypatch):
    """One learner, the union of the K domains' data, minibatches of 128 at default settings."""
    watch = Watch(monkeypatch)
    default = Args()
    changes = {name: getattr(default, name) for name in ("steps_per_iteration", "minibatches", "agents")}
    p2pdrl.train(tiny(tmp_path, method="ppo", total_steps=8192, epochs=1, **changes))
    assert len({domain for domain, *_ in watch.rollouts}) == 4
    ((_, _, _, rollouts, batch, _),) = watch.batches  # the second iteration's; the first does not learn
    assert np.array_equal(batch.obs, np.concatenate([data.obs for data in rollouts])) and len(batch.obs) == 4096
    assert len({id(agent) for agent, *_ in watch.updates}) == 1
    assert [len(minibatch.obs) for *_, minibatch in watch.updates] == [128] * 32


def test_the_defaults_are_the_papers():
    """Appendix A.2, Table 2, section 4.3."""
    args = Args()
    assert (args.agents, args.steps_per_iteration, args.epochs, args.minibatches) == (2, 4096, 10, 32)
    assert (args.clip, args.gamma, args.gae_lambda, args.alpha, args.eps_tr) == (0.2, 0.99, 0.95, 1.0, 0.2)
    assert p2pdrl.LEARNING_RATE == {"p2pdrl": 1e-4, "ppo": 3e-4}
    agent = Agent(GaussianActor(OBS, ACT), ValueCritic(OBS), 1e-4)
    assert (agent.adam.learning_rate, agent.adam.eps) == (1e-4, 1e-5)


# What this file repeats ----------------------------------------------------------------------------------


def meaning(thing):
    """The syntax tree, without docstrings and comments."""
    tree = ast.parse(inspect.getsource(thing))
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


@pytest.mark.parametrize(
    "name",
    ["linear", "GaussianActor", "ValueCritic", "Batch", "gaussian_log_prob", "ppo_loss", "value_loss", "clip_norm", "prepare", "estimate", "shuffle"],
)
def test_what_both_scripts_define_is_the_same(name):
    """So that the tests of one hold for the other."""
    assert getattr(p2pdrl, name) is not getattr(baselines, name)
    assert meaning(getattr(p2pdrl, name)) == meaning(getattr(baselines, name))


# Figures -------------------------------------------------------------------------------------------------


def finished_run(args, training, testing, finished=True):
    """A run's folder as train would leave it: training return and test return of each agent as given."""
    path = Path(args.runs) / f"{args.method}-{args.env}-{args.seed}-{args.eps_tr}-{finished}"
    path.mkdir(parents=True)
    config = {"script": "p2pdrl", "settings": json.loads(json.dumps(dataclasses.asdict(args)))}
    (path / "config.json").write_text(json.dumps(config))
    torch.save({"finished": finished}, path / "checkpoint.pt")
    log = ["step,agent,return"] + [f"{step},{i},{value}" for step in (10, 20) for i, value in enumerate(training)]
    evaluation = ["step,agent,eps_te,domain,return"]
    for step, shift in ((10, -500), (20, 0)):  # only the last evaluation counts
        for i, value in enumerate(testing):
            for eps in (0.0, 0.5):
                for domain in (0, 1):
                    evaluation.append(f"{step},{i},{eps},{domain},{shift + value - 10 * eps + (2 * domain - 1) * 3}")
    (path / "log.csv").write_text("\n".join(log) + "\n")
    (path / "eval.csv").write_text("\n".join(evaluation) + "\n")
    return path


def test_test_returns_is_the_mean_over_peers_and_domains_at_the_end(tmp_path):
    """Peers at 100 and 300, less 10 eps, domains 3 above and below."""
    strengths, values = p2pdrl.test_returns(finished_run(tiny(tmp_path), [0, 0], [100, 300]))
    assert strengths.tolist() == [0, 0.5] and values.tolist() == [200, 195]


@pytest.mark.parametrize(("figure", "p2pdrl_values", "ppo_values", "x"), [
    ("3", [[15, 15], [35, 35]], [[60, 60]], [10, 20]),
    ("4", [[200, 195], [400, 395]], [[70, 65]], [0, 0.5]),
])  # fmt: skip
def test_the_figures_show_the_mean_of_each_method_over_the_right_runs(tmp_path, monkeypatch, capsys, figure, p2pdrl_values, ppo_values, x):
    """Seeds in order, methods apart, environments in panels; unfinished runs and other settings left out."""
    args = tiny(tmp_path, figure=figure)
    change = dataclasses.replace
    finished_run(change(args, seed=1), [30, 40], [300, 500])
    finished_run(args, [10, 20], [100, 300])
    finished_run(change(args, method="ppo", learning_rate=3e-4), [60], [70])
    finished_run(change(args, env="Walker2d-v4"), [5, 7], [8, 10])
    finished_run(change(args, seed=2), [999, 999], [999, 999], finished=False)
    finished_run(change(args, seed=3, eps_tr=0.3), [999, 999], [999, 999])
    drawn = []

    def plot_interval(axis, x, values, label, *rest, **style):
        drawn.append((label, x.tolist(), values.tolist(), axis))
        return baselines.plot_interval(axis, x, values, label, *rest, **style)

    monkeypatch.setattr(p2pdrl, "plot_interval", plot_interval)
    p2pdrl.draw_figure(args)
    (first, second, third) = drawn
    assert first[:3] == ("p2pdrl, 2 seeds", x, p2pdrl_values)
    assert second[:3] == ("ppo, 1 seeds", x, ppo_values)
    assert third[0] == "p2pdrl, 1 seeds" and [panel.get_title() for *_, panel in drawn] == ["Hopper-v4", "Hopper-v4", "Walker2d-v4"]
    np.testing.assert_allclose(first[3].lines[0].get_ydata(), np.mean(p2pdrl_values, axis=0))
    assert (tmp_path / f"p2pdrl-figure-{figure}.png").stat().st_size > 1000
    out = capsys.readouterr().out
    assert "2 runs" in out and "no finished run of ppo on Walker2d-v4" in out and "--method ppo" in out


def test_a_figure_of_nothing_is_refused(tmp_path, capsys):
    """One line on stderr; before it, the commands that would make the runs."""
    with pytest.raises(SystemExit) as exit_:
        p2pdrl.draw_figure(tiny(tmp_path, figure="3"))
    out, err = capsys.readouterr()
    assert exit_.value.code == 2 and err.count("\n") == 1 and out.count("python p2pdrl.py --env Hopper-v4") == 2
    assert not list(tmp_path.glob("*.png"))
