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
import re
import shlex
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
    Agent, Args, Batch, Centre, GaussianActor, ValueCritic, adam_step, centre_loss, centre_step, distillation_loss,
    dnc_loss, gaussian_kl, gaussian_log_prob, gradients, log_gradient_variance, ppo_loss, update, update_centre,
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


# DnC, and the centre -------------------------------------------------------------------------------------


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
def test_centre_loss_is_the_mean_divergence_of_the_agents_from_the_centre(agents):
    """KL(agent || centre), not reversed, mean over each agent's own states, mean over agents; state by state."""
    centre, *cohort = actors(agents + 1)
    all_obs = states_of(cohort)
    total, reverse = 0.0, 0.0
    for actor, obs in zip(cohort, all_obs):
        for state in obs:
            p, q = policy_of(actor, state[None]), policy_of(centre, state[None])
            total += kl_divergence(p, q).sum().item() / len(obs) / agents
            reverse += kl_divergence(q, p).sum().item() / len(obs) / agents
    loss = centre_loss(centre, cohort, all_obs)
    assert loss.shape == () and loss.item() == pytest.approx(total, rel=1e-4)
    assert abs(total - reverse) > 0.01 * total
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in centre.parameters())
    assert all(parameter.grad is None for actor in cohort for parameter in actor.parameters())


@pytest.mark.parametrize("max_grad_norm", [0.05, 1e3])
def test_update_centre_is_one_step_of_adam_for_the_centre(max_grad_norm):
    """Three updates against Adam on separate parameters with the gradient clipped; the agents stay as they are."""
    args = Args(learning_rate=1e-2, max_grad_norm=max_grad_norm)
    centre = Centre(actors(1)[0], args.learning_rate)
    cohort = [Agent(*actor_and_critic(seed), args.learning_rate) for seed in (1, 2, 3)]
    slow = copy.deepcopy(centre.actor)
    optimiser = torch.optim.Adam(slow.parameters(), lr=args.learning_rate, eps=1e-5)
    agents_before = [(agent.parameters.detach().clone(), copy.deepcopy(agent.adam.state_dict())) for agent in cohort]
    statistics, start = copy.deepcopy(centre.actor.norm.state_dict()), centre.parameters.detach().clone()
    for step in range(3):
        minibatches = [random_batch(agent.actor, seed=10 * step + i) for i, agent in enumerate(cohort)]
        update_centre(centre, [agent.actor for agent in cohort], minibatches, centre_step, args)
        loss = 0.0
        for agent, batch in zip(cohort, minibatches):
            with torch.no_grad():
                theirs = policy_of(agent.actor, batch.obs)
            loss = loss + kl_divergence(theirs, policy_of(slow, batch.obs)).sum(1).mean() / 3
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(slow.parameters(), max_grad_norm)
        optimiser.step()
    torch.testing.assert_close(flat(centre.actor.parameters()), flat(slow.parameters()), rtol=0, atol=2e-5)
    assert torch.equal(flat(centre.actor.parameters()), centre.parameters.detach())
    assert (centre.parameters - start).abs().max() > 0.02
    assert all(torch.equal(statistics[name], value) for name, value in centre.actor.norm.state_dict().items())
    for agent, (vector, adam) in zip(cohort, agents_before):
        assert torch.equal(agent.parameters, vector) and torch.equal(vector, parameters_of(agent.actor, agent.critic))
        assert all(torch.equal(adam[name], value) for name, value in agent.adam.state_dict().items())


def test_the_centre_comes_to_where_all_agents_are():
    """Three agents of the same policy: after 300 steps the centre is closer to it a hundred times, in KL on new states."""
    own, policy = actors(2)
    centre, cohort = Centre(own, 1e-2), [copy.deepcopy(policy) for _ in range(3)]
    new = random_batch(policy, steps=200, seed=99).obs

    def distance():
        return kl_divergence(policy_of(policy, new), policy_of(centre.actor, new)).sum(1).mean().item()

    first = distance()
    for step in range(300):
        update_centre(centre, cohort, [random_batch(policy, 64, seed=3 * step + i) for i in range(3)], centre_step, Args())
    assert first > 0.5 and distance() < first / 100


def test_an_agent_that_restarts_acts_like_the_centre():
    """Same means on raw observations; its spread, its critic and its Adam as before; its vector knows; nothing is shared."""
    args = Args(learning_rate=1e-2)
    agent, centre = Agent(*actor_and_critic(0), args.learning_rate), actors(2)[1]
    update(agent, [], [random_batch(agent.actor)], [], adam_step, args)
    adam, critic = copy.deepcopy(agent.adam.state_dict()), copy.deepcopy(agent.critic.state_dict())
    log_std, scale = agent.actor.log_std.detach().clone(), copy.deepcopy(agent.reward_scale.state_dict())
    theirs = copy.deepcopy(centre.state_dict())
    obs = torch.randn(50, OBS) * 4 + 1
    assert not torch.allclose(agent.actor(obs)[0], centre(obs)[0], atol=0.1)

    agent.restart(centre)
    assert torch.equal(agent.actor(obs)[0], centre(obs)[0])
    assert torch.equal(agent.actor.log_std, log_std) and not torch.allclose(log_std, centre.log_std, atol=0.1)
    for now, old in ((agent.adam, adam), (agent.critic, critic), (agent.reward_scale, scale)):
        assert all(torch.equal(old[name], value) for name, value in now.state_dict().items())
    assert torch.equal(agent.parameters, parameters_of(agent.actor, agent.critic)) and adam["steps"] == 1

    vector = agent.parameters.detach().clone()
    update(agent, [], [random_batch(agent.actor)], [], adam_step, args)
    agent.actor.norm.absorb(np.ones((9, OBS)))
    assert torch.equal(agent.parameters, parameters_of(agent.actor, agent.critic))
    assert not torch.equal(agent.parameters, vector)
    assert all(torch.equal(theirs[name], value) for name, value in centre.state_dict().items())


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
    return loss, error, torch.stack([surrogate, distillation, error, entropy]).detach()


@pytest.mark.parametrize(
    ("peers", "on_their_states", "changes"),
    [
        (1, False, {}),
        (3, False, {"alpha": 0.3}),
        (2, False, {"alpha": 0.0, "max_grad_norm": 1e3}),
        (2, False, {"alpha": 5.0, "max_grad_norm": 1e3}),
        (1, False, {"entropy_coef": 2.0, "max_grad_norm": 1e3}),
        (0, False, {"clip": 0.05}),
        (2, False, {"max_grad_norm": 1e-3}),
        (1, True, {"alpha": 5.0, "max_grad_norm": 1e3}),
        (3, True, {"alpha": 0.3}),
    ],
)
def test_gradients_are_those_of_eq_4_and_of_the_critics_error(peers, on_their_states, changes):
    """Against .backward() on losses computed separately; a step is made of each network's gradient clipped by itself."""
    args = Args(**changes)
    actor, critic = actor_and_critic(0)
    others = actors(1 + peers)[1:]
    batch = random_batch(actor)
    peers_obs = [random_batch(actor, seed=50 + k).obs for k in range(peers)] if on_their_states else []
    settings = args.clip, args.alpha, args.entropy_coef
    actor_gradient, critic_gradient, told = gradients(actor, critic, others, batch, peers_obs, *settings)
    step, also_told = adam_step(
        actor, critic, lambda _, gradient: gradient, None, others, [batch], peers_obs, *settings, args.max_grad_norm
    )
    loss, error, expected_told = slow_losses(actor, critic, others, batch, args, peers_obs)
    loss.backward()
    error.backward()
    clipped = []
    for network, gradient in ((actor, actor_gradient), (critic, critic_gradient)):
        expected = flat(parameter.grad for parameter in network.parameters())
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)
        nn.utils.clip_grad_norm_(network.parameters(), args.max_grad_norm)
        clipped += [parameter.grad for parameter in network.parameters()]
    torch.testing.assert_close(step, flat(clipped), rtol=1e-3, atol=1e-6)
    for each in (told, also_told):
        torch.testing.assert_close(each, expected_told, rtol=1e-4, atol=1e-5)
        assert not each.requires_grad


def test_gradients_by_finite_differences():
    """A few coordinates of actor and critic, in float64."""
    args = Args(alpha=0.7, entropy_coef=0.1)
    actor, critic = (network.double() for network in actor_and_critic(0))
    peers = [actor.double() for actor in actors(3)[1:]]
    batch = Batch(*(column.double() for column in random_batch(actor.float())))
    actor.double()
    gradient = torch.cat(gradients(actor, critic, peers, batch, [], args.clip, args.alpha, args.entropy_coef)[:2])
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

    def both(peers, batch):  # after each is clipped
        step, _ = adam_step(actor, critic, lambda _, gradient: gradient, None, peers, [batch], [], 0.2, 1.0, 0.0, 0.5)
        return step[:size], step[size:]

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
        told = update(agent, [peer.actor], [batch], [], adam_step, args)
        torch.testing.assert_close(told, slow_update(*slow, [peer.actor], batch, args), rtol=1e-4, atol=1e-5)
    after = parameters_of(agent.actor, agent.critic)
    torch.testing.assert_close(after, parameters_of(*slow[:2]), rtol=0, atol=2e-5)
    assert torch.equal(after, agent.parameters.detach())
    assert (parameters_of(*actor_and_critic(0)) - after).abs().max() > 0.02
    assert torch.equal(before, parameters_of(peer.actor, peer.critic))
    assert peer.adam.steps == 0 and not peer.adam.mean.any() and peer.parameters.grad is None
    for old, network in zip(statistics, (agent.actor, agent.critic, peer.actor)):
        assert all(torch.equal(old[name], buffer) for name, buffer in network.named_buffers())


@pytest.mark.parametrize("workers", [2, 3, 4])
@pytest.mark.parametrize("max_grad_norm", [0.05, 1e3])
def test_a_step_of_many_workers_is_adam_on_their_mean_gradient(workers, max_grad_norm):
    """Two updates; .backward() on each worker's batch by itself, mean, then each network's part clipped, then Adam."""
    args = Args(learning_rate=1e-2, entropy_coef=0.1, max_grad_norm=max_grad_norm)
    agent = Agent(*actor_and_critic(0), args.learning_rate)
    actor, critic, optimiser = slow_adam(agent, args)
    parameters = [*actor.parameters(), *critic.parameters()]
    for step in range(2):
        batches = [random_batch(agent.actor, seed=10 * step + worker) for worker in range(workers)]
        told = update(agent, [], batches, [], adam_step, args)
        sums, tells = [torch.zeros_like(parameter) for parameter in parameters], []
        for batch in batches:
            optimiser.zero_grad()
            loss, error, tell = slow_losses(actor, critic, [], batch, args)
            loss.backward()
            error.backward()
            sums = [total + parameter.grad for total, parameter in zip(sums, parameters)]
            tells.append(tell)
        for parameter, total in zip(parameters, sums):
            parameter.grad = total / workers
        for network in (actor, critic):
            nn.utils.clip_grad_norm_(network.parameters(), max_grad_norm)
        optimiser.step()
        torch.testing.assert_close(told, torch.stack(tells).mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(agent.parameters.detach(), flat(parameters), rtol=0, atol=5e-5)


@pytest.mark.parametrize("case", ["p2pdrl", "dnc", "ppo", "distributed-ppo"])
def test_log_gradient_variance_is_that_of_64_small_minibatches(case):
    """Gradients of Eq. (4) by .backward() on 64 times 64 steps drawn from all batches; numpy's variance, mean, log."""
    args = Args(alpha=2.0, entropy_coef=0.1)
    agent = Agent(*actor_and_critic(0), 1e-3)
    vector = agent.parameters.detach().clone()
    peers = actors(3)[1:] if case in ("p2pdrl", "dnc") else []
    batches = [random_batch(agent.actor, 90, seed=s) for s in ((1, 2, 3) if case == "distributed-ppo" else (1,))]
    peers_obs = [random_batch(peer, 90, seed=4).obs for peer in peers] if case == "dnc" else []
    got = log_gradient_variance(agent, peers, batches, peers_obs, np.random.default_rng(7), gradients, args)
    expected = slow_log_variance(agent, peers, batches, peers_obs, np.random.default_rng(7), args)
    assert got == pytest.approx(expected, abs=2e-3)
    assert torch.equal(agent.parameters, vector)


def slow_log_variance(agent, peers, batches, peers_obs, rng, args):
    columns = [torch.cat(column) for column in zip(*batches)]
    samples = []
    for _ in range(64):
        rows = rng.permutation(len(columns[0]))[:64]
        minibatch, theirs = Batch(*(column[rows] for column in columns)), [obs[rows] for obs in peers_obs]
        loss, _, _ = slow_losses(agent.actor, agent.critic, peers, minibatch, args, theirs)
        samples.append(flat(torch.autograd.grad(loss, list(agent.actor.parameters()))).numpy())
    return math.log(np.var(samples, axis=0, ddof=1).mean())


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


def slow_centre_update(centre, agents, states, args):
    """One step of Adam on the mean over agents of KL(agent || centre) on the agent's own states."""
    loss = 0.0
    for agent, obs in zip(agents, states):
        with torch.no_grad():
            theirs = policy_of(agent.actor, obs)
        loss = loss + kl_divergence(theirs, policy_of(centre.actor, obs)).sum(1).mean() / len(agents)
    centre.optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(centre.groups[0], args.max_grad_norm)
    centre.optimiser.step()


def slow_algorithm_1(args):
    """Algorithm 1, line by line, for all methods; rows of the log, parameters of the agents, of the centre or None."""
    envs = [make_env(args.env) for _ in range(args.agents)]
    torch.manual_seed(args.seed)
    actor, critic = GaussianActor(11, 3), ValueCritic(11)
    learners = args.agents if args.method in ("p2pdrl", "distral", "dnc") else 1
    agents = [SlowAgent(actor, critic, args) for _ in range(learners)]
    centre = SlowAgent(actor, critic, args)
    centre.optimiser = torch.optim.Adam(centre.groups[0], lr=args.learning_rate, eps=1e-5)
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
        if args.method == "distributed-ppo":  # each worker's data by itself, but one agent for all
            shares, owners = [[each] for each in data[0]], agents * args.agents
        else:
            shares, owners = data, agents
        with torch.no_grad():
            log_probs = [slow_log_probs(agent, share, args) for agent, share in zip(owners, shares)]
        itself = copy.deepcopy(agents[0])

        def shuffled():
            return [np.array_split(rng.permutation(len(batch[0])), args.minibatches) for rng, batch in zip(rngs, batches)]

        told = [torch.zeros(4) for _ in agents]
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
                    if args.method in ("p2pdrl", "dnc"):
                        peers = [peer.actor for peer in agents if peer is not agent]
                        if args.method == "dnc":
                            peers_obs = [minibatches[k].obs for k in range(len(agents)) if k != i]
                    else:
                        peers = {"distral": [centre.actor], "self-kl": [itself.actor]}.get(args.method, [])
                    own = [minibatch for minibatch, owner in zip(minibatches, owners) if owner is agent]
                    agent.optimiser.zero_grad()
                    for minibatch in own:
                        loss, error, tells = slow_losses(agent.actor, agent.critic, peers, minibatch, args, peers_obs)
                        (loss / len(own)).backward()
                        (error / len(own)).backward()
                        told[i] += tells / len(own) / args.epochs / args.minibatches
                    for group in agent.groups:
                        nn.utils.clip_grad_norm_(group, args.max_grad_norm)
                    agent.optimiser.step()
                if args.method == "distral":
                    slow_centre_update(centre, agents, [minibatch.obs for minibatch in minibatches], args)
        if args.method == "dnc" and iteration > 0:
            again = (iteration + 1) % args.reset_every == 0
            for _ in range(30 if again else 1):
                for pieces in zip(*shuffled()):
                    slow_centre_update(centre, agents, [batch[0][piece] for batch, piece in zip(batches, pieces)], args)
            for agent in agents if again else ():
                agent.actor_net.load_state_dict(centre.actor_net.state_dict())
                agent.actor_seen = list(centre.actor_seen)
        for i, agent in enumerate(agents):
            agent.actor_seen += [each.obs for each in data[i]]
            agent.critic_seen += [each.obs for each in data[i]]
            centre.actor_seen += [each.obs for each in data[i]]
            returns = np.concatenate([each.returns for each in data[i]])
            rows.append([(iteration + 1) * args.steps_per_iteration, i, returns.mean(), len(returns), *told[i].tolist()])
    ends = [flat([*agent.groups[0], *agent.groups[1]]) for agent in agents]
    return np.array(rows), ends, flat(centre.groups[0]) if args.method in ("distral", "dnc") else None


@pytest.mark.parametrize(
    ("method", "agents", "changes"),
    [
        ("p2pdrl", 2, {}),
        ("p2pdrl", 3, {"steps_per_iteration": 192, "total_steps": 576, "alpha": 3.0, "entropy_coef": 0.1, "seed": 5}),
        ("ppo", 1, {}),
        ("ppo", 2, {"threads": 2}),
        ("distributed-ppo", 2, {}),
        ("distributed-ppo", 3, {"steps_per_iteration": 192, "total_steps": 576, "entropy_coef": 0.1}),
        ("self-kl", 2, {"alpha": 3.0}),
        ("distral", 2, {}),
        ("distral", 3, {"steps_per_iteration": 192, "total_steps": 576, "alpha": 3.0}),
        ("dnc", 2, {}),
        ("dnc", 2, {"reset_every": 2, "seed": 2}),
        ("dnc", 3, {"steps_per_iteration": 192, "total_steps": 576, "alpha": 3.0, "reset_every": 2}),
    ],
)
def test_train_is_algorithm_1(tmp_path, no_figures, method, agents, changes):
    """Three iterations: log and final parameters against Algorithm 1 written out, agents in turn, peers current."""
    args = tiny(tmp_path, method=method, agents=agents, **{"total_steps": 384, **changes})
    p2pdrl.train(args)
    rows, parameters, centre = slow_algorithm_1(args)
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
    assert ("centre" in saved["state"]) == (centre is not None)
    if centre is not None:
        actor.load_state_dict(saved["state"]["centre"])
        torch.testing.assert_close(flat(actor.parameters()), centre, rtol=0, atol=3e-5)


def test_ppo_of_baselines_is_algorithm_1_for_one_agent(tmp_path, monkeypatch):
    """Without peers, and with targets computed once for each iteration."""
    monkeypatch.setattr(baselines, "report", lambda *_: None)
    args = tiny(tmp_path, method="ppo", agents=1, total_steps=384)
    shared = {field.name for field in dataclasses.fields(baselines.Args)} & set(vars(args))
    baselines.ppo(baselines.Args(**{name: getattr(args, name) for name in shared}))
    rows, (parameters,), _ = slow_algorithm_1(args)
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

    def watched(agent, peers, *rest):
        turn, start = len(calls) % 3, flat(agent.actor.parameters())
        expected = [latest.setdefault(i, start) for i in range(3) if i != turn]  # at first all are the same
        assert len(peers) == 2 and all(map(torch.equal, (flat(peer.parameters()) for peer in peers), expected))
        told = update(agent, peers, *rest)
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

        def update_(agent, peers, batches, *rest):
            self.updates.append((agent, self.statistics(agent.actor, agent.critic), *batches))
            return original[3](agent, peers, batches, *rest)

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
    assert [number for _, _, number, *_ in watch.batches] == [2, 2, 4, 4, 6, 6]
    for k, (actor, statistics, _, _, _, _) in enumerate(watch.batches[2:]):  # the first iteration does not learn
        updates = [each for agent, each, _ in watch.updates if agent.actor is actor]
        assert len(updates) == 2 * 4  # iterations that learn, updates in each
        assert all(same(each, statistics) for each in updates[k // 2 * 4 : k // 2 * 4 + 4])
    for i in range(2):
        for k in (1, 2):  # rollouts of agent i before its k-th learning iteration
            own = np.concatenate([data.obs for *_, data in watch.rollouts[i : 2 * k : 2]])  # one thread: in order
            statistics = watch.batches[2 * k + i][1]
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
    _, (_, _, _, rollouts, batch, _) = watch.batches  # the first iteration does not learn
    assert np.array_equal(batch.obs, np.concatenate([data.obs for data in rollouts])) and len(batch.obs) == 4096
    assert len({id(agent) for agent, *_ in watch.updates}) == 1
    assert [len(minibatch.obs) for *_, minibatch in watch.updates] == [128] * 32


@pytest.mark.parametrize(("line", "word"), [
    ("--method distral --agents 1", "at least 2"), ("--method dnc --agents 1", "at least 2"),
    ("--method distributed-ppo --agents 0", "at least 1"), ("--method self-kl --agents 0", "at least 1"),
    ("--reset-every 0", "--reset-every"), ("--entropy-coef inf", "--entropy-coef"), ("--figure 8", "8"),
    ("--method distrall", "distrall"), ("--method dnc --agents 2 --steps-per-iteration 128 --minibatches 64", "two steps"),
])  # fmt: skip
def test_bad_settings_of_the_methods(tmp_path, monkeypatch, capsys, line, word):
    """One line that says what is wrong, exit status 2, nothing on disk."""
    monkeypatch.setattr(sys, "argv", ["p2pdrl.py", "--total-steps", "1", *line.split()])  # refused too, but later
    with pytest.raises(SystemExit) as exit_:
        p2pdrl.main()
    out, err = capsys.readouterr()
    assert exit_.value.code == 2 and err.count("\n") == 1 and word in err and not list(tmp_path.iterdir())


def checkpoint_of(args):
    """The state that this very run ended with."""
    (path,) = Path(args.runs).glob("*/checkpoint.pt")
    return torch.load(path, weights_only=True)["state"]


def tensors_of(state):
    """All tensors of a checkpoint by name."""
    return {f"{part}.{name}": tensor for part, content in state.items() for name, tensor in content.items()}


def end_of_loners(args):
    """The parameters of agents that train in turn with the program's functions, each by itself, knowing nobody."""
    torch.manual_seed(args.seed)
    actor, critic = GaussianActor(11, 3), ValueCritic(11)
    ends = []
    for i in range(args.agents):
        agent, env = Agent(copy.deepcopy(actor), copy.deepcopy(critic), args.learning_rate), make_env(args.env)
        for iteration in range(args.total_steps // args.steps_per_iteration):
            rng = np.random.default_rng([args.seed, i, iteration])
            domain, std = sample_domain(args.eps_tr, rng), agent.actor.log_std.exp().detach().numpy().copy()
            policy, steps = baselines.numpy_policy(agent.actor), args.steps_per_iteration // args.agents
            data = baselines.rollout(env, policy, std, domain, steps, rng)
            batch = p2pdrl.prepare(agent.actor, agent.reward_scale, [data], args.gamma)
            rest = agent.reward_scale, [data], args.gamma, args.gae_lambda
            for _ in range(args.epochs if iteration > 0 else 0):
                batch = p2pdrl.estimate(batch, agent.critic, *rest)
                for minibatch in p2pdrl.shuffle(batch, args.minibatches, rng):
                    update(agent, [], [minibatch], [], adam_step, args)
            agent.actor.norm.absorb(data.obs)
            agent.critic.norm.absorb(data.obs)
        ends.append(agent.parameters.detach().clone())
    return ends


@pytest.mark.parametrize("agents", [2, 3])
def test_without_distillation_the_agents_are_alone(tmp_path, no_figures, agents):
    """alpha = 0: the same bits as agents that know nobody; with alpha = 1 others."""
    for alpha in (0.0, 1.0):
        args = tiny(tmp_path / str(alpha), agents=agents, alpha=alpha, steps_per_iteration=192, total_steps=576)
        p2pdrl.train(args)
        state, actor, critic = checkpoint_of(args), GaussianActor(11, 3), ValueCritic(11)
        for i, expected in enumerate(end_of_loners(args)):
            actor.load_state_dict(state[f"actor{i}"])
            critic.load_state_dict(state[f"critic{i}"])
            assert torch.equal(parameters_of(actor, critic), expected) == (alpha == 0)


def test_self_kl_without_its_weight_is_ppo(tmp_path, no_figures):
    """alpha = 0: the same bits in checkpoint and log, the divergence apart; with alpha = 1 others."""
    ends, logs = [], []
    for method, alpha in (("ppo", 1.0), ("self-kl", 0.0), ("self-kl", 1.0)):
        args = tiny(tmp_path / f"{method}{alpha}", method=method, alpha=alpha, total_steps=384)
        p2pdrl.train(args)
        ends.append(tensors_of(checkpoint_of(args)))
        (path,) = Path(args.runs).glob("*/log.csv")
        logs.append(baselines.read_csv(path))
    ppo, without, with_ = ends
    assert ppo.keys() == without.keys() and all(torch.equal(ppo[name], value) for name, value in without.items())
    assert not all(torch.equal(ppo[name], value) for name, value in with_.items())
    for name in ("return", "episodes", "surrogate", "value_loss", "entropy"):
        assert np.array_equal(logs[0][name], logs[1][name])
    assert not logs[0]["distillation"].any() and (logs[1]["distillation"][1:] > 0).all()


def test_self_kl_holds_to_the_policy_at_the_start_of_the_iteration(tmp_path, no_figures, monkeypatch):
    """The term has no gradient at an iteration's first step, and one later; theta_old is renewed in each iteration."""
    slopes, starts, olds, statistics = [], [], [], []

    def watched(agent, peers, batches, *rest):
        ((old,), (batch,)) = peers, batches
        loss = distillation_loss(agent.actor(batch.obs), peers, batch.obs)
        slopes.append(max(slope.abs().max().item() for slope in torch.autograd.grad(loss, list(agent.actor.parameters()))))
        starts.append(flat(agent.actor.parameters()).clone())
        olds.append(flat(old.parameters()).clone())
        statistics.append(same(agent.actor.norm.buffers(), old.norm.buffers()))
        return update(agent, peers, batches, *rest)

    monkeypatch.setattr(p2pdrl, "update", watched)
    p2pdrl.train(tiny(tmp_path, method="self-kl", total_steps=512))
    assert len(slopes) == 3 * 4 and all(statistics)  # iterations that learn, updates in each
    for k, slope in enumerate(slopes):
        assert slope < 1e-6 if k % 4 == 0 else slope > 1e-5
        assert torch.equal(olds[k], starts[k // 4 * 4])
    assert not torch.equal(olds[0], olds[4]) and not torch.equal(olds[4], olds[8])


@pytest.mark.parametrize("workers", [2, 3])
def test_distributed_ppo_learns_from_a_batch_of_each_workers_domain(tmp_path, no_figures, monkeypatch, workers):
    """One policy in K domains; at each update a minibatch of each domain's data, all equally long, every step once."""
    watch = Watch(monkeypatch)
    args = tiny(tmp_path, method="distributed-ppo", agents=workers, steps_per_iteration=192, total_steps=384)
    p2pdrl.train(args)
    now = watch.rollouts[workers:]  # the first iteration does not learn
    assert len(now) == workers and len({domain for domain, *_ in watch.rollouts}) == 2 * workers
    assert all(np.array_equal(action, now[0][2]) for _, _, action, _ in now)
    assert len({id(env) for _, env, *_ in now}) == workers
    assert len(watch.updates) == 4 and len({id(agent) for agent, *_ in watch.updates}) == 1
    for epoch in (watch.updates[:2], watch.updates[2:]):
        for worker, (*_, data) in enumerate(now):
            pieces = [batches[worker].obs for _, _, *batches in epoch]
            assert [len(piece) for piece in pieces] == [192 // workers // 2] * 2
            assert sorted(torch.cat(pieces).tolist()) == sorted(data.obs.tolist())
    assert all(len(batches) == workers for _, _, *batches in watch.updates)


@pytest.mark.parametrize("method", ["p2pdrl", "dnc", "distributed-ppo"])
def test_gradient_variance_is_logged_and_changes_nothing(tmp_path, no_figures, monkeypatch, method):
    """The column against slow gradients of what was collected, before any step; all else to the bit as without it."""
    expected, turn = [], []

    def watched(agent, peers, batches, peers_obs, rng, *rest):
        i, iteration = len(turn) % learners, len(turn) // learners
        turn.append(agent)
        assert len(batches) == (3 if method == "distributed-ppo" else 1) and sum(len(batch.obs) for batch in batches) > 64
        assert len(peers_obs) == (2 if method == "dnc" else 0) and len(peers) == learners - 1
        ratio = (policy_of(agent.actor, batches[0].obs).log_prob(batches[0].actions).sum(1) - batches[0].log_probs).exp()
        torch.testing.assert_close(ratio, torch.ones(len(ratio)), rtol=0, atol=1e-4)
        own_rng = np.random.default_rng([0, i, iteration, 1])
        expected.append(slow_log_variance(agent, peers, batches, peers_obs, own_rng, args))
        return log_gradient_variance(agent, peers, batches, peers_obs, rng, *rest)

    monkeypatch.setattr(p2pdrl, "log_gradient_variance", watched)
    learners = 1 if method == "distributed-ppo" else 3
    logs, states = [], []
    for asked in (False, True):
        settings = {"agents": 3, "steps_per_iteration": 384, "total_steps": 768, "gradient_variance": asked}
        args = tiny(tmp_path / str(asked), method=method, **settings)
        p2pdrl.train(args)
        (path,) = Path(args.runs).glob("*/log.csv")
        logs.append(baselines.read_csv(path))
        states.append(tensors_of(checkpoint_of(args)))
    assert len(turn) == 2 * learners
    np.testing.assert_allclose(logs[1]["gradient_variance"], expected, atol=2e-3)
    assert np.isnan(logs[0]["gradient_variance"]).all()
    assert logs[0].keys() == logs[1].keys()
    for name in logs[0].keys() - {"seconds", "gradient_variance"}:
        assert np.array_equal(logs[0][name], logs[1][name])
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


@pytest.mark.parametrize(("method", "evaluated"), [
    ("p2pdrl", ["actor0", "actor1"]), ("ppo", ["actor0"]), ("distral", ["centre"]), ("dnc", ["centre"]),
])  # fmt: skip
def test_who_is_evaluated_and_kept(tmp_path, no_figures, method, evaluated):
    """Every peer, or the centre as agent -1, by slow episodes in held-out domains; the same policies are on disk."""
    args = tiny(tmp_path, method=method, total_steps=384, evaluations=2, eps_te=(0.0, 0.5), eval_domains=2)
    p2pdrl.train(args)
    (path,) = (folder for folder in tmp_path.iterdir() if folder.is_dir())
    state, evaluation = checkpoint_of(args), baselines.read_csv(path / "eval.csv")
    numbers = [-1] if evaluated == ["centre"] else list(range(len(evaluated)))
    assert sorted(set(evaluation["agent"])) == numbers and sorted(set(evaluation["step"])) == [256, 384]
    assert p2pdrl.steps_of(path) == [128, 256, 384]
    last = evaluation["step"] == 384
    for number, name, kept in zip(numbers, evaluated, p2pdrl.policies_of(path), strict=True):
        actor = GaussianActor(11, 3)
        actor.load_state_dict(state[name])
        assert all(torch.equal(value, state[name][key]) for key, value in kept.state_dict().items())
        expected = [
            baselines.episode_return(make_env(args.env), baselines.numpy_policy(actor), domain, seed)
            for eps in args.eps_te for seed, domain in enumerate(baselines.held_out_domains(eps, 2))
        ]  # fmt: skip
        assert evaluation["return"][last & (evaluation["agent"] == number)].tolist() == expected
    torch.manual_seed(args.seed)
    initial, first = GaussianActor(11, 3), p2pdrl.policies_of(path, 128)
    assert len(first) == len(evaluated)
    for actor in first:  # nothing is learned in the first iteration, but what its observations are like
        assert torch.equal(flat(actor.parameters()), flat(initial.parameters())) and actor.norm.count >= 64


def test_the_defaults_are_the_papers():
    """Appendix A.2, Table 2, section 4.3."""
    args = Args()
    assert (args.agents, args.steps_per_iteration, args.epochs, args.minibatches) == (2, 4096, 10, 32)
    assert (args.clip, args.gamma, args.gae_lambda, args.alpha, args.eps_tr) == (0.2, 0.99, 0.95, 1.0, 0.2)
    slow, fast = ("p2pdrl", "distral", "dnc"), ("ppo", "distributed-ppo", "self-kl")
    assert p2pdrl.LEARNING_RATE == dict.fromkeys(slow, 1e-4) | dict.fromkeys(fast, 3e-4) and args.reset_every == 50
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


def finished_run(args, training, testing, finished=True, policies=None, **columns):
    """A run's folder as train would leave it: training return and test return of each agent as given.

    At step 20 the training return is 10 higher. policies: by step. columns: of log.csv, a row for each of two steps.
    """
    path = Path(args.runs) / f"{args.method}-{len(list(Path(args.runs).glob('*')))}"
    path.mkdir(parents=True)
    config = {"script": "p2pdrl", "settings": json.loads(json.dumps(dataclasses.asdict(args)))}
    (path / "config.json").write_text(json.dumps(config))
    torch.save({"finished": finished}, path / "checkpoint.pt")
    log, evaluation = [",".join(["step,agent,return", *columns])], ["step,agent,eps_te,domain,return"]
    for k, step in enumerate((10, 20)):
        for i, value in enumerate(training):
            log.append(",".join(map(str, [step, i, value + 10 * k, *(rows[k][i] for rows in columns.values())])))
    for step, shift in ((10, -500), (20, 0)):  # only the last evaluation counts
        for i, value in enumerate(testing):
            for eps in (0.0, 0.5):
                for domain in (0, 1):
                    evaluation.append(f"{step},{i},{eps},{domain},{shift + value - 10 * eps + (2 * domain - 1) * 3}")
    (path / "log.csv").write_text("\n".join(log) + "\n")
    (path / "eval.csv").write_text("\n".join(evaluation) + "\n")
    for step, kept in (policies or {}).items():
        torch.save([actor.state_dict() for actor in kept], path / f"policies-{step}.pt")
    return path


def hopper_actor(seed):
    """A policy for Hopper that differs from seed to seed."""
    torch.manual_seed(seed)
    actor = GaussianActor(11, 3)
    with torch.no_grad():
        actor.net[-1].weight.mul_(60)
    actor.norm.absorb(np.random.default_rng(seed).normal(0, 1 + 0.1 * seed, (40, 11)))
    return actor


def slow_test_return(actors, eps, number):
    """Mean over policies and held-out domains, an episode in each."""
    env = make_env("Hopper-v4")
    domains = baselines.held_out_domains(eps, number)
    returns = [
        baselines.episode_return(env, baselines.numpy_policy(actor), domain, seed)
        for actor in actors for seed, domain in enumerate(domains)
    ]  # fmt: skip
    return np.mean(returns)


def commands(monkeypatch, out):
    """The settings of each printed command, read by the program's own command line."""
    found = []
    for line in out.splitlines():
        if line.startswith("    python p2pdrl.py "):
            monkeypatch.setattr(sys, "argv", shlex.split(line)[1:])
            found.append(baselines.parse_args(Args, ""))
    return found


class Drawn:
    """What figures draw by plot_interval, (label, x, values, axis) of each line, and the figures that are saved."""

    def __init__(self, monkeypatch):
        self.lines, self.figures = [], []
        monkeypatch.setattr(p2pdrl, "plot_interval", self.plot_interval)
        monkeypatch.setattr(p2pdrl, "save_figure", self.save_figure)

    def save_figure(self, figure, path):
        self.figures.append(figure)
        baselines.save_figure(figure, path)

    def plot_interval(self, axis, x, values, label, *rest, **style):
        assert isinstance(values, np.ndarray)
        self.lines.append((label, list(map(float, x)), values.tolist(), axis))
        return baselines.plot_interval(axis, x, values, label, *rest, **style)


def test_test_returns_is_the_mean_over_peers_and_domains_at_the_end(tmp_path):
    """Peers at 100 and 300, less 10 eps, domains 3 above and below."""
    strengths, values = p2pdrl.test_returns(finished_run(tiny(tmp_path), [0, 0], [100, 300]))
    assert strengths.tolist() == [0, 0.5] and values.tolist() == [200, 195]


@pytest.mark.parametrize(("figure", "p2pdrl_values", "ppo_values", "x"), [
    ("3", [[15, 20], [35, 40]], [[60, 65]], [10, 20]),
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
    drawn = Drawn(monkeypatch)
    p2pdrl.draw_figure(args)
    (first, second, third) = drawn.lines
    assert first[:3] == ("p2pdrl, 2 seeds", x, p2pdrl_values)
    assert second[:3] == ("ppo, 1 seed", x, ppo_values)
    assert third[0] == "p2pdrl, 1 seed"
    assert [panel.get_title() for *_, panel in drawn.lines] == ["Hopper-v4", "Hopper-v4", "Walker2d-v4"]
    np.testing.assert_allclose(first[3].lines[0].get_ydata(), np.mean(p2pdrl_values, axis=0))
    assert (tmp_path / f"p2pdrl-figure-{figure}.png").stat().st_size > 1000
    out = capsys.readouterr().out
    missing = [(named.env, named.method) for named in commands(monkeypatch, out)]
    assert "2 runs" in out
    assert missing == [("Hopper-v4", method) for method in ("distributed-ppo", "distral", "dnc")]


def test_figures_do_not_ask_for_what_changes_nothing(tmp_path, monkeypatch, capsys):
    """With --alpha 0.5 --reset-every 7: PPO's run needs neither, P2PDRL's needs that alpha, DnC's both; so do the commands."""
    args = tiny(tmp_path, figure="3", alpha=0.5, reset_every=7)
    change = dataclasses.replace
    finished_run(change(args, method="ppo", alpha=1.0, reset_every=50), [60], [70])
    finished_run(change(args, method="p2pdrl", alpha=1.0, reset_every=50), [999, 999], [999, 999])
    finished_run(change(args, method="distral", reset_every=50), [10, 20], [70, 70])
    finished_run(change(args, method="dnc", reset_every=50), [999, 999], [999, 999])
    drawn = Drawn(monkeypatch)
    p2pdrl.draw_figure(args)
    assert [line[0] for line in drawn.lines] == ["ppo, 1 seed", "distral, 1 seed"]
    missing = {named.method: (named.alpha, named.reset_every) for named in commands(monkeypatch, capsys.readouterr().out)}
    assert missing == {"p2pdrl": (0.5, 50), "distributed-ppo": (1.0, 50), "dnc": (0.5, 7)}


@pytest.mark.parametrize("figure", ["2", "6"])
def test_figures_2_and_6_show_both_returns_against_the_strength_of_training(tmp_path, monkeypatch, figure):
    """Training return of the last iterations, test return of the last policies at 0.5; the same seeds at each strength."""
    args = tiny(tmp_path, figure=figure, eps_tr=0.9, eval_domains=2)
    ends, made = {}, 0
    for method, eps, seeds in (("ppo", 0.0, 2), ("ppo", 0.2, 3), ("p2pdrl", 0.4, 1), ("p2pdrl", 1.0, 2)):
        for seed in range(seeds):
            made += 1
            policies = [hopper_actor(10 * made + i) for i in range(1 if method == "ppo" else 2)]
            training = [100.0 * made + 20 * i for i in range(len(policies))]
            settings = dataclasses.replace(args, method=method, eps_tr=eps, seed=seed)
            first = [hopper_actor(999) for _ in policies]
            finished_run(settings, training, [0] * len(policies), policies={5: first, 20: policies, 10: first})
            ends[method, eps, seed] = np.mean(training) + 5, slow_test_return(policies, 0.5, 2)
    drawn = Drawn(monkeypatch)
    p2pdrl.draw_figure(args)
    expected = [("ppo, 2 seeds", "ppo", [0.0, 0.2], 2)] + [("p2pdrl, 1 seed", "p2pdrl", [0.4, 1.0], 1)] * (figure == "6")
    assert len(drawn.lines) == 2 * len(expected)
    for k, (label, method, strengths, seeds) in enumerate(expected):
        for side, line in enumerate(drawn.lines[2 * k : 2 * k + 2]):
            assert line[:2] == (label, strengths)
            values = [[ends[method, eps, seed][side] for eps in strengths] for seed in range(seeds)]
            np.testing.assert_allclose(line[2], values, rtol=1e-6)
            assert ("held-out" in line[3].get_title()) == (side == 1)
    assert (tmp_path / f"p2pdrl-figure-{figure}.png").exists()


def test_folded_policies_act_as_they_did():
    """The normaliser in the first layer: same actions where observations are not clipped, others where they are."""
    actor, like = hopper_actor(1), hopper_actor(2)
    state = copy.deepcopy(actor.state_dict())
    policy, again = baselines.numpy_policy(actor), p2pdrl.unfolded(p2pdrl.folded(actor), like)
    for obs in np.random.default_rng(0).normal(0, 1.5, (50, 11)):
        np.testing.assert_allclose(again(obs), policy(obs), rtol=1e-4, atol=1e-4)
    assert not np.allclose(again(np.full(11, 50.0)), policy(np.full(11, 50.0)), atol=1e-2)
    assert all(torch.equal(state[name], value) for name, value in actor.state_dict().items())
    assert torch.equal(like.norm.count, hopper_actor(2).norm.count) and like.norm.clip == 10


def test_halfway_between_two_folded_policies():
    """Against numpy: the mean of both networks' weights once each first layer takes raw observations."""
    both = [hopper_actor(1), hopper_actor(5)]
    layers = []
    for actor in both:
        weights = [parameter.detach().double().numpy() for parameter in actor.net.parameters()]
        std, mean = np.sqrt(actor.norm.var.numpy()), actor.norm.mean.numpy()
        layers.append([weights[0] / std, weights[1] - weights[0] @ (mean / std), *weights[2:]])
    w1, b1, w2, b2, w3, b3 = (np.mean(pair, axis=0) for pair in zip(*layers))
    middle = p2pdrl.unfolded((p2pdrl.folded(both[0]) + p2pdrl.folded(both[1])) / 2, both[0])
    for obs in np.random.default_rng(0).normal(0, 2, (20, 11)):
        expected = w3 @ np.tanh(w2 @ np.tanh(w1 @ obs + b1) + b2) + b3
        np.testing.assert_allclose(middle(obs), expected, rtol=1e-3, atol=1e-4)


def test_figure_5_is_the_return_over_the_plane_of_three_policies(tmp_path, monkeypatch):
    """The first seed's first, middle and last policy of the first agent; distances kept; values by slow episodes."""
    from matplotlib.axes import Axes

    args, filled = tiny(tmp_path, figure="5", eps_tr=0.2), []
    other = [hopper_actor(9), hopper_actor(8)]
    corners = [hopper_actor(seed) for seed in (1, 2, 3)]
    kept = {10: [corners[0], *other], 20: other, 40: [corners[1], *other], 70: other, 90: [corners[2], *other]}
    finished_run(dataclasses.replace(args, seed=1), [0], [0], policies={10: other, 40: other, 90: other})
    finished_run(args, [0], [0], policies=kept)
    original = Axes.contourf

    def contourf(axis, *rest, **more):
        filled.append((axis, *rest))
        return original(axis, *rest, **more)

    monkeypatch.setattr(Axes, "contourf", contourf)
    p2pdrl.draw_figure(args)
    assert len(filled) == 2 and (tmp_path / "p2pdrl-figure-5.png").exists()

    vectors = np.array([p2pdrl.folded(actor).numpy() for actor in corners])
    first = (vectors[1] - vectors[0]) / np.linalg.norm(vectors[1] - vectors[0])
    second = (vectors[2] - vectors[0]) - first * (first @ (vectors[2] - vectors[0]))
    second /= np.linalg.norm(second)
    for (axis, x, y, values), eps in zip(filled, (0.2, 0.5)):
        points = axis.lines[0].get_xydata()
        for a in range(3):
            for b in range(3):
                distance = np.linalg.norm(vectors[a] - vectors[b])
                assert np.linalg.norm(points[a] - points[b]) == pytest.approx(distance, rel=1e-6)
        assert (points[0] == 0).all() and points[1, 1] == pytest.approx(0, abs=1e-9) and points[2, 1] > 0
        assert x[0] < points[:, 0].min() and x[-1] > points[:, 0].max() and y[0] < 0 and y[-1] > points[2, 1]
        assert f"eps = {eps:g}" in axis.get_title()
        (domain,) = baselines.held_out_domains(eps, 1)
        for i, j in ((0, 0), (3, 8), (12, 5), (7, 1)):
            policy = p2pdrl.unfolded(torch.tensor(vectors[0] + x[i] * first + y[j] * second), corners[0])
            expected = baselines.episode_return(make_env(args.env), policy, domain, seed=0)
            assert values[j, i] == pytest.approx(expected, rel=1e-3)
        assert np.ptp(values) > 0


def test_figure_7_compares_with_the_agent_held_to_itself(tmp_path, monkeypatch):
    """Three methods in both panels, all their seeds; no other method."""
    args = tiny(tmp_path, figure="7", eps_te=(0.0, 0.5))
    for method, seed, training, testing in (
        ("p2pdrl", 1, [30, 40], [300, 500]), ("p2pdrl", 0, [10, 20], [100, 300]), ("self-kl", 0, [50], [80]),
        ("ppo", 0, [60], [70]), ("distral", 0, [999, 999], [999]), ("dnc", 0, [999, 999], [999]),
    ):  # fmt: skip
        finished_run(dataclasses.replace(args, method=method, seed=seed), training, testing)
    drawn = Drawn(monkeypatch)
    p2pdrl.draw_figure(args)
    assert [line[:3] for line in drawn.lines] == [
        ("ppo, 1 seed", [10, 20], [[60, 65]]), ("p2pdrl, 2 seeds", [10, 20], [[15, 20], [35, 40]]),
        ("self-kl, 1 seed", [10, 20], [[50, 55]]),
        ("ppo, 1 seed", [0, 0.5], [[70, 65]]), ("p2pdrl, 2 seeds", [0, 0.5], [[200, 195], [400, 395]]),
        ("self-kl, 1 seed", [0, 0.5], [[80, 75]]),
    ]  # fmt: skip
    titles = [axis.get_title() for *_, axis in drawn.lines]
    assert titles == ["training domains"] * 3 + ["held-out domains"] * 3


def test_figure_8a_is_test_return_against_entropy(tmp_path, monkeypatch, capsys):
    """A point for each run: its entropy, mean of the last iterations and of peers; slow episodes at 0.5, last policies."""
    args = tiny(tmp_path, figure="8a", eval_domains=2)
    expected = {"ppo": [], "p2pdrl": []}
    for made, (method, coefficient, seed) in enumerate((
        ("ppo", 0.0, 0), ("ppo", 0.0, 1), ("ppo", 0.01, 0), ("p2pdrl", 0.0, 0), ("p2pdrl", 0.5, 1), ("self-kl", 0.0, 0),
    )):  # fmt: skip
        policies = [hopper_actor(10 * made + i) for i in range(1 if method == "ppo" else 2)]
        settings = dataclasses.replace(args, method=method, entropy_coef=coefficient, seed=seed)
        entropy = [[0.0] * len(policies), [made + 0.5 + i for i in range(len(policies))]]
        kept = {10: other_actors(policies), 20: policies}
        finished_run(settings, [0] * len(policies), [0], policies=kept, entropy=entropy)
        if made < 4:
            expected[method].append((np.mean(entropy), slow_test_return(policies, 0.5, 2)))
    drawn = Drawn(monkeypatch)
    p2pdrl.draw_figure(args)
    (axis,) = drawn.figures[0].axes
    for scatter, (method, points) in zip(axis.collections, expected.items(), strict=True):
        assert scatter.get_label().startswith(method)
        np.testing.assert_allclose(sorted(scatter.get_offsets().tolist()), points, rtol=1e-6)
    assert sorted(text.get_text() for text in axis.texts) == ["0", "0", "0.01"]
    assert "entropy_coef0.1" in capsys.readouterr().out


def other_actors(policies):
    return [hopper_actor(900 + i) for i in range(len(policies))]


def test_figure_8bc_is_the_variance_of_the_gradient_over_training(tmp_path, monkeypatch):
    """Mean over agents of log.csv's column, for runs that were asked for it."""
    args = tiny(tmp_path, figure="8bc")
    for method, seed, asked, values in (
        ("ppo", 0, True, [[-8], [-10]]),
        ("p2pdrl", 1, True, [[-4, -6], [-8, -10]]), ("p2pdrl", 0, True, [[-1, -3], [-3, -5]]),
        ("ppo", 1, False, [[math.nan], [math.nan]]), ("dnc", 0, True, [[9, 9], [9, 9]]),
    ):  # fmt: skip
        settings = dataclasses.replace(args, method=method, seed=seed, gradient_variance=asked)
        finished_run(settings, [0] * len(values[0]), [0], gradient_variance=values)
    drawn = Drawn(monkeypatch)
    p2pdrl.draw_figure(args)
    assert [line[:3] for line in drawn.lines] == [
        ("ppo, 1 seed", [10, 20], [[-8, -9]]), ("p2pdrl, 2 seeds", [10, 20], [[-2, -3], [-5, -7]]),
    ]  # fmt: skip


COHORTS = [  # of Figure 9: method, agents, steps for each iteration, all steps, what is tested of seed 0 at the end
    ("ppo", 1, 2048, 4096, 100), ("p2pdrl", 2, 4096, 8192, 200), ("p2pdrl", 4, 8192, 16384, 300),
    ("ppo", 1, 4096, 8192, 400), ("p2pdrl", 4, 4096, 8192, 500),
]  # fmt: skip


@pytest.mark.parametrize("other_lengths", [False, True])
def test_figure_9_compares_cohorts_of_equal_steps(tmp_path, monkeypatch, other_lengths):
    """Left 2048 steps for each agent, x in steps of each; right 4096 for all; other methods and lengths left out."""
    args = tiny(tmp_path, figure="9", total_steps=8192, steps_per_iteration=4096, eps_te=(0.0, 0.5), eps_tr=0.4)
    made = [(*cohort, seed) for cohort in COHORTS for seed in (0, 1)]
    made += [("ppo", 2, 4096, 8192, 999, 0), ("distral", 2, 4096, 8192, 999, 0), ("p2pdrl", 8, 8192, 8192, 999, 0)]
    made += [("ppo", 1, 2048, 8192, 999, 0), ("p2pdrl", 4, 4096, 16384, 999, 0)] * other_lengths
    for method, agents, steps, total, value, seed in made:
        changes = {"method": method, "agents": agents, "steps_per_iteration": steps, "total_steps": total, "seed": seed}
        finished_run(dataclasses.replace(args, **changes), [0], [value + seed, value + seed + 20])
    drawn = Drawn(monkeypatch)
    p2pdrl.draw_figure(args)
    expected = {"each agent": [(1, 100), (2, 200), (4, 300)], "all agents": [(1, 400), (2, 200), (4, 500)]}
    lines = []
    for side, cohorts in expected.items():
        for agents, value in cohorts:
            x = [10 / agents, 20 / agents] if side == "each agent" else [10.0, 20.0]
            end = [value + 10 + seed - 5 for seed in (0, 1)]  # mean over peers, less 10 eps
            lines.append((f"K = {agents}, 2 seeds", x, [[each - 500, each] for each in end], side))
    assert sorted(((*line[:3], line[3].get_title().partition("for ")[2].replace(" together", "")) for line in drawn.lines),
                  key=str) == sorted(lines, key=str)  # fmt: skip


def test_the_map_is_the_return_over_wind_and_mass(tmp_path, monkeypatch):
    """Mean over seeds and peers of slow episodes, wind to the right, mass upwards; runs of other settings left out."""
    args = tiny(tmp_path, figure="map", eps_tr=0.2)
    runs = {"ppo": [[hopper_actor(1)]], "p2pdrl": [[hopper_actor(2), hopper_actor(3)], [hopper_actor(4), hopper_actor(5)]]}
    for method, seeds in runs.items():
        for seed, policies in enumerate(seeds):
            settings = dataclasses.replace(args, method=method, seed=seed)
            finished_run(settings, [0], [0], policies={10: other_actors(policies), 20: policies})
    finished_run(dataclasses.replace(args, method="ppo", seed=7, gamma=0.5), [0], [0], policies={20: [hopper_actor(6)]})
    drawn = Drawn(monkeypatch)
    p2pdrl.draw_figure(args)
    pictures = {axis.get_title().partition(",")[0]: axis for axis in drawn.figures[0].axes if axis.get_title()}
    assert pictures.keys() == runs.keys()
    env = make_env(args.env)
    for method, axis in pictures.items():
        values = axis.collections[0].get_array().reshape(11, 11)
        for i, j in ((0, 0), (10, 0), (3, 7), (5, 5)):
            domain = Domain(wind=-5.0 + j, mass=0.5 + i / 10)
            policies = [baselines.numpy_policy(actor) for seed in runs[method] for actor in seed]
            expected = np.mean([baselines.episode_return(env, policy, domain, 0) for policy in policies])
            assert values[i, j] == pytest.approx(expected, rel=1e-6)
        (box,) = axis.patches
        assert (box.get_x(), box.get_width()) == pytest.approx((-1, 2))
        assert (box.get_y(), box.get_height()) == pytest.approx((0.9, 0.2))


MISSING = {  # how many settings each figure wants
    "2": 6, "3": 5, "4": 5, "5": 2, "6": 12, "7": 3, "8a": 13, "8bc": 2, "9": 5, "map": 2,
}  # fmt: skip


@pytest.mark.parametrize("changes", [{}, {"eps_te": (0.0, 0.5), "alpha": 0.5}, {"runs": "elsewhere", "init": "joints"}])
@pytest.mark.parametrize("figure", MISSING)
def test_a_figure_of_nothing_names_the_commands_that_make_its_runs(monkeypatch, capsys, figure, changes):
    """One line on stderr; the program takes each command, and what all of them make is all that the figure wants."""
    settings = {"figure": figure, "eps_tr": 0.2, "steps_per_iteration": 4096, "total_steps": 8192, **changes}
    args = tiny("runs", **settings)
    with pytest.raises(SystemExit) as exit_:
        p2pdrl.draw_figure(dataclasses.replace(args))
    out, err = capsys.readouterr()
    assert exit_.value.code == 2 and err.count("\n") == 1 and not list(Path().glob("**/*.png"))
    assert out.count("python p2pdrl.py --env Hopper-v4") == MISSING[figure]
    named = commands(monkeypatch, out)
    places = set()
    for each in named:
        assert each.seeds == (0, 1, 2)
        each.learning_rate = p2pdrl.LEARNING_RATE[each.method]
        baselines.check_args(each, domains=each.agents)
        finished_run(each, [0], [0])
        places.add((each.runs, each.method, each.env, each.eps_tr))  # all that a folder's name tells
    assert len(places) == MISSING[figure]

    def looked_up(*rest):
        raise KeyboardInterrupt

    original = p2pdrl.look_up
    monkeypatch.setattr(p2pdrl, "look_up", lambda *rest: original(*rest) and looked_up())
    with pytest.raises(KeyboardInterrupt):
        p2pdrl.draw_figure(args)
    assert "python" not in capsys.readouterr().out


def test_policies_are_kept_by_step(tmp_path):
    """What Run.snapshot writes, policies_of reads, statistics too; the last ones if no step is named, by number."""
    args = tiny(tmp_path)
    run = baselines.Run(args, "p2pdrl", args.method)
    run.resume({}, args.steps_per_iteration)
    kept = {step: [hopper_actor(step), hopper_actor(step + 1)] for step in (900, 80, 1000)}
    for step, policies in kept.items():
        run.snapshot(step, policies)
    assert p2pdrl.steps_of(run.path) == [80, 900, 1000]
    for step, policies in [*kept.items(), (None, kept[1000])]:
        for actor, expected in zip(p2pdrl.policies_of(run.path, step), policies, strict=True):
            state = actor.state_dict()
            assert isinstance(actor, GaussianActor) and state.keys() == expected.state_dict().keys()
            assert all(torch.equal(state[name], value) for name, value in expected.state_dict().items())
    run.snapshot(80, kept[900])  # written again after a resumption
    assert p2pdrl.steps_of(run.path) == [80, 900, 1000] and not list(run.path.glob(".*"))
    assert torch.equal(p2pdrl.policies_of(run.path, 80)[1].norm.var, kept[900][1].norm.var)


# The command line's own work ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method, rate", [
    ("p2pdrl", 1e-4), ("distral", 1e-4), ("dnc", 1e-4), ("ppo", 3e-4), ("distributed-ppo", 3e-4), ("self-kl", 3e-4),
])  # fmt: skip
def test_each_method_has_the_papers_learning_rate(monkeypatch, method, rate):
    """Appendix A.2; what the command line says goes before it."""
    trained = []
    monkeypatch.setattr(p2pdrl, "train", trained.append)
    for options in ([], ["--learning-rate", "0.5"]):
        monkeypatch.setattr(sys, "argv", ["p2pdrl.py", "--method", method, *options])
        p2pdrl.main()
    assert [args.learning_rate for args in trained] == [rate, 0.5]


class Filmed:
    """An environment whose picture is the number of steps since the reset."""

    def __init__(self, env):
        self.env, self.steps = env, 0

    def __getattr__(self, name):
        return getattr(self.env, name)

    def reset(self, **options):
        self.steps = 0
        return self.env.reset(**options)

    def step(self, action):
        self.steps += 1
        return self.env.step(action)

    def render(self):
        return np.full((4, 6, 3), self.steps, np.uint8)


def test_what_is_played_and_filmed(capsys):
    """Twenty pictures for each second of the robot's, at regular times; the return is that of an episode with mean actions."""
    env, domain = make_env("Hopper-v4"), Domain(gravity=0.9)
    actor, every = hopper_actor(3), round(1 / (20 * env.unwrapped.dt))
    policy = baselines.numpy_policy(actor)
    frames = p2pdrl.play(Filmed(env), policy, domain, movie_seconds=0.3)
    steps = [frame[0, 0, 0] for frame in frames]
    assert steps == list(range(0, len(steps) * every, every)) and len(steps) > 2 and every > 1
    capsys.readouterr()
    assert p2pdrl.play(Filmed(env), policy, domain, movie_seconds=None) == []
    steps, total = re.fullmatch(r"(\d+) steps, return (-?\d+)\n", capsys.readouterr().out).groups()
    assert int(total) == round(baselines.episode_return(env, policy, domain, seed=0)) and int(steps) > 3


def test_a_gif_has_movies_side_by_side(tmp_path):
    """As wide as all together, as long as the longest: one that has ended keeps its last picture."""
    from matplotlib.animation import Image  # what matplotlib writes it with

    movies = [[np.full((40, 60, 3), 80 * (i + 1), np.uint8) for i in range(length)] for length in (3, 1)]
    p2pdrl.save_gif(movies, tmp_path / "policy.gif", fps=20)
    gif = Image.open(tmp_path / "policy.gif")
    assert gif.size == (120, 40) and gif.n_frames == 3
    for i in range(3):
        gif.seek(i)
        picture = np.asarray(gif.convert("L"), float)
        np.testing.assert_allclose([picture[20, 30], picture[20, 90]], [80 * (i + 1), 80], atol=6)
