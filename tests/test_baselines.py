"""Tests of baselines.py.

Each piece is compared with a computation that is slow and obvious: a sum written as in the paper, a plain loop,
torch.distributions, finite differences, numbers worked out by hand.
"""

import copy
import csv
import dataclasses
import errno
import json
import math
import re
import shlex
import signal
import subprocess
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import baselines  # noqa: E402
from baselines import (  # noqa: E402
    Adam, Args, Batch, DDPGLearner, GaussianActor, ReplayBuffer, Rollout, Run, RunningNorm, SACLearner, SACUpdate, Stream, Transitions,
    ValueCritic, bootstrap, clip_norm, ddpg_actor_loss, ddpg_critic_loss, ddpg_step, ddpg_targets, ddpg_update,
    discounted_sums, episode_return, episode_returns, estimate, evaluate, exploration, find_runs, gae,
    gaussian_log_prob, held_out_domains, numpy_policy, one_vector, parse_args, ppo_gradients, ppo_loss, prepare,
    read_csv, rollout, shuffle, smooth, training_curve, value_loss,
)  # fmt: skip
from randomised_envs import Domain, make_env, sample_domain  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")
torch.set_num_threads(1)

OBS, ACT = 5, 3  # sizes of hand-made observations and actions
WINDY = Domain(wind=4.0, gravity=1.2, mass=0.8)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """MuJoCo writes its log to the current directory."""
    monkeypatch.chdir(tmp_path)


# Helpers -------------------------------------------------------------------------------------------------


def networks(seed=0):
    """An actor and a critic that have seen data and do not have the tiny head of a beginner."""
    torch.manual_seed(seed)
    actor, critic = GaussianActor(OBS, ACT), ValueCritic(OBS)
    with torch.no_grad():
        actor.net[-1].weight.mul_(50)
        for network in (actor, critic):
            for layer in network.net[::2]:
                layer.bias.normal_(0, 0.2)
        actor.log_std.copy_(torch.tensor([-0.5, 0.0, 0.3]))
    seen = np.random.default_rng(seed).normal(2.0, 3.0, (40, OBS))
    actor.norm.absorb(seen)
    critic.norm.absorb(seen)
    return actor, critic


def random_batch(actor, steps=24, shift=0.3, seed=1):
    """Steps whose old log-probabilities differ from those of `actor`, some by more than the clip range."""
    torch.manual_seed(seed)
    obs, actions = torch.randn(steps, OBS) * 3 + 2, torch.randn(steps, ACT)
    with torch.no_grad():
        log_probs = gaussian_log_prob(*actor(obs), actions) + shift * torch.randn(steps)
    return Batch(obs, actions, log_probs, torch.randn(steps), torch.randn(steps))


def doubled(actor, batch):
    """Both in float64, for finite differences."""
    return copy.deepcopy(actor).double(), Batch(*(column.double() for column in batch))


def finite_difference(function, parameter, index, step=1e-6):
    """Central difference of function() with respect to one entry of a parameter."""
    flat = parameter.data.view(-1)
    before, values = flat[index].item(), []
    for sign in (1, -1):
        flat[index] = before + sign * step
        values.append(function().item())
    flat[index] = before
    return (values[0] - values[1]) / (2 * step)


def hopper(limit=8):  # steps: with the policy below, some episodes end by a fall, some by the limit
    return make_env("Hopper-v4", max_episode_steps=limit)


def nod(obs):
    """A policy: some function of the observation, with values outside the action space too."""
    return (1.5 * np.sin(3 * obs[:3] + obs[5:8])).astype(np.float32)


def stand(obs):
    return np.zeros(3, np.float32)


def same(first: Rollout, second: Rollout):
    return all(np.array_equal(a, b) for a, b in zip(first, second))


def random_rollout(steps, ends, terminated, seed=0):
    rng = np.random.default_rng(seed)
    obs, next_obs = rng.normal(2, 3, (2, steps, OBS)).astype(np.float32)
    actions = rng.normal(size=(steps, ACT)).astype(np.float32)
    flags = np.zeros((2, steps), bool)
    flags[0, terminated], flags[1, ends] = True, True
    next_obs[:-1][~flags[1, :-1]] = obs[1:][~flags[1, :-1]]  # a step leads to the next row, unless it is an episode's last
    return Rollout(obs, actions, rng.normal(3, 10, steps), next_obs, flags[0], flags[1], np.zeros(1))


# Advantages ----------------------------------------------------------------------------------------------


def slow_gae(rewards, values, next_values, terminated, ends, gamma, gae_lambda):
    """The sum of the definition, written out."""
    advantages = []
    for t in range(len(rewards)):
        total = 0.0
        for l in range(len(rewards) - t):
            future = 0.0 if terminated[t + l] else next_values[t + l]
            total += (gamma * gae_lambda) ** l * (rewards[t + l] + gamma * future - values[t + l])
            if ends[t + l]:
                break
        advantages.append(total)
    return np.array(advantages)


def episodes(seed=0, steps=30):
    """Rewards, values, next_values, terminated, ends: a death, a time limit, a death at once, the end of the batch."""
    rng = np.random.default_rng(seed)
    terminated, ends = np.zeros((2, steps), bool)
    terminated[[7, 19]] = True
    ends[[7, 18, 19, steps - 1]] = True
    return *rng.normal(size=(3, steps)), terminated, ends


@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 0.95, 1.0])
def test_gae_is_the_sum_of_its_definition(gae_lambda):
    """Eq. (11): sum over l of (gamma lambda)^l delta_{t+l}, until the episode ends."""
    data = episodes()
    np.testing.assert_allclose(gae(*data, 0.9, gae_lambda), slow_gae(*data, 0.9, gae_lambda), rtol=1e-12)


def test_gae_with_lambda_zero_is_the_td_error():
    """A_t = r_t + gamma V(s_{t+1}) - V(s_t)."""
    rewards, values, next_values, terminated, ends = data = episodes()
    expected = rewards + 0.9 * np.where(terminated, 0, next_values) - values
    np.testing.assert_allclose(gae(*data, 0.9, 0.0), expected, rtol=1e-12)


def test_gae_with_lambda_one_is_the_discounted_return_minus_the_value():
    """With consistent values (the next state's value is the next value) all in between cancels."""
    rewards, values, next_values, terminated, ends = episodes()
    inner = np.flatnonzero(~ends)
    next_values[inner] = values[inner + 1]
    expected = []
    for t in range(len(rewards)):
        last = t + np.argmax(ends[t:])
        tail = 0 if terminated[last] else 0.9 ** (last - t + 1) * next_values[last]
        expected.append(sum(0.9 ** (s - t) * rewards[s] for s in range(t, last + 1)) + tail - values[t])
    np.testing.assert_allclose(gae(rewards, values, next_values, terminated, ends, 0.9, 1.0), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("terminated", "ends", "expected"),
    [
        # delta_1 = 4 - 3 = 1 where it died, 4 + .5 * 8 - 3 = 5 where it was cut; delta_0 = 2 + .5 * 3 - 1 = 2.5
        ([False, True], [False, True], [2.5 + 0.25 * 1, 1]),
        ([False, False], [False, True], [2.5 + 0.25 * 5, 5]),
        ([False, False], [True, True], [2.5, 5]),
        ([True, True], [True, True], [2 - 1, 1]),
    ],
)
def test_a_time_limit_is_worth_the_future_and_a_death_nothing(terminated, ends, expected):
    """Two steps by hand: rewards 2, 4; values 1, 3; next values 3, 8; gamma = lambda = 1/2."""
    data = np.array([2.0, 4.0]), np.array([1.0, 3.0]), np.array([3.0, 8.0]), np.array(terminated), np.array(ends)
    assert gae(*data, 0.5, 0.5).tolist() == expected


def test_discounted_sums():
    """By hand with gamma = 1/2; by the definition, sum over the episode's past, with random numbers."""
    ends = np.array([False, False, True, False])
    assert discounted_sums(np.array([1.0, 2.0, 3.0, 4.0]), ends, 0.5).tolist() == [1, 2.5, 4.25, 4]
    rewards, ends = np.random.default_rng(0).normal(size=50), np.arange(50) % 13 == 12
    expected = [sum(0.9 ** (t - s) * rewards[s] for s in range(t // 13 * 13, t + 1)) for t in range(50)]
    np.testing.assert_allclose(discounted_sums(rewards, ends, 0.9), expected, rtol=1e-12)


# The normaliser ------------------------------------------------------------------------------------------


def test_running_norm_knows_mean_and_variance_of_all_it_absorbed():
    """Chunks of any size, on a large offset, against numpy on the whole."""
    data = np.random.default_rng(0).normal([1000, -3, 0], [1, 0.01, 50], (500, 3))
    norm = RunningNorm((3,))
    for chunk in np.split(data, [1, 2, 10, 300]):
        norm.absorb(chunk)
    np.testing.assert_allclose(norm.mean.numpy(), data.mean(0), rtol=1e-12)
    np.testing.assert_allclose(norm.var.numpy(), data.var(0), rtol=1e-9)
    assert norm.count == 500
    np.testing.assert_allclose(norm.std().numpy(), data.std(0), rtol=1e-3)


def test_running_norm_of_scalars():
    """As the scale of rewards uses it."""
    norm = RunningNorm(())
    norm.absorb(np.array([1.0, 2.0]))
    norm.absorb(np.array([3.0]))
    assert norm.mean == 2 and norm.var.item() == pytest.approx(2 / 3)


def test_running_norm_maps_to_zero_mean_and_unit_variance_clipped():
    """(x - mean) / std, at most 10 standard deviations; looking changes nothing."""
    data = np.random.default_rng(0).normal([5, -3], [2, 0.1], (400, 2))
    norm = RunningNorm((2,))
    x = torch.tensor([[5.0, -3.0], [9.0, -3.2], [1000.0, -1000.0]])
    assert torch.equal(norm(x[:1]), x[:1])  # before any data: as it is
    norm.absorb(data)
    before = copy.deepcopy(norm.state_dict())
    expected = np.clip((x.numpy() - data.mean(0)) / data.std(0), -10, 10)
    np.testing.assert_allclose(norm(x).numpy(), expected, rtol=1e-4, atol=1e-4)
    assert norm(x)[2].tolist() == [10, -10] and norm(x).dtype == torch.float32
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())


def test_running_norm_is_saved_with_its_statistics():
    """A state_dict carries mean, variance and count; the copy goes on as the original does."""
    first, second = RunningNorm((2,)), RunningNorm((2,))
    first.absorb(np.array([[1.0, 2.0], [3.0, 5.0]]))
    second.load_state_dict(first.state_dict())
    for norm in (first, second):
        norm.absorb(np.array([[7.0, 7.0]]))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))
    assert len(first.state_dict()) == 3 and not list(first.parameters())


def test_running_norm_of_constant_data_stays_finite():
    """An observation that never changed becomes 0, and a change of it at most 10."""
    norm = RunningNorm((1,))
    norm.absorb(np.full((100, 1), 1.25))
    assert norm(torch.tensor([[1.25], [2.0], [-2.0]])).flatten().tolist() == [0, 10, -10]


# Parameters as one vector, policies in numpy --------------------------------------------------------------


def test_parameters_are_views_of_one_vector():
    """What changes one changes the other, also after load_state_dict; nothing is lost on the way."""
    actor, critic = networks()
    before = [parameter.detach().clone() for network in (actor, critic) for parameter in network.parameters()]
    vector = one_vector(actor, critic)
    after = [parameter for network in (actor, critic) for parameter in network.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after))
    assert torch.equal(vector.detach(), torch.cat([parameter.flatten() for parameter in before]))

    vector.data.fill_(0.25)
    assert all((parameter == 0.25).all() for parameter in after)
    after[-1].data.fill_(7.0)
    assert vector[-1] == 7 and (vector[:-1] == 0.25).all()

    other, _ = networks(seed=5)
    actor.load_state_dict(other.state_dict())
    expected = torch.cat([parameter.detach().flatten() for parameter in other.parameters()])
    assert torch.equal(vector.detach()[: len(expected)], expected)
    vector.data.zero_()
    assert actor.log_std.abs().sum() == 0


def test_adam_on_the_vector_is_adam_on_the_parameters():
    """Five steps with the same gradients, against torch's optimiser; its arguments stay as they are."""
    actor, _ = networks()
    slow = copy.deepcopy(actor)
    vector = one_vector(actor)
    fast_adam = Adam(vector, 1e-2, eps=1e-5)
    slow_adam = torch.optim.Adam(slow.parameters(), lr=1e-2, eps=1e-5)
    for step in range(5):
        gradients = [torch.randn(p.shape, generator=torch.Generator().manual_seed(step)) for p in slow.parameters()]
        gradient, before = torch.cat([gradient.flatten() for gradient in gradients]), vector.detach().clone()
        new = fast_adam(vector, gradient)
        assert torch.equal(vector.detach(), before) and torch.equal(gradient, torch.cat([g.flatten() for g in gradients]))
        vector.data.copy_(new)
        for parameter, gradient in zip(slow.parameters(), gradients):
            parameter.grad = gradient
        slow_adam.step()
    for fast, expected in zip(actor.parameters(), slow.parameters()):
        torch.testing.assert_close(fast, expected, rtol=0, atol=1e-6)
    assert not new.requires_grad


def test_the_policy_in_numpy_is_the_actor():
    """Same means for random observations, also far outside what the normaliser knows."""
    actor, _ = networks()
    policy = numpy_policy(actor)
    for scale in (1, 3, 100):
        obs = np.random.default_rng(scale).normal(2, scale, (20, OBS))
        expected = actor(torch.tensor(obs, dtype=torch.float32))[0].detach().numpy()
        np.testing.assert_allclose([policy(row) for row in obs], expected, rtol=1e-4, atol=1e-5)
        assert expected.std() > 0.05


def test_the_policy_in_numpy_is_a_snapshot():
    """Neither training nor new statistics of the actor reach it."""
    actor, _ = networks()
    policy, obs = numpy_policy(actor), np.ones(OBS)
    before = policy(obs)
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.add_(1.0)
    actor.norm.absorb(np.full((1000, OBS), 50.0))
    assert np.array_equal(policy(obs), before)
    assert not np.allclose(numpy_policy(actor)(obs), before)


# Rollouts ------------------------------------------------------------------------------------------------


def watched(env):
    """The environment, and lists of what it is given and says: actions, domains."""
    actions, domains, step = [], [], env.step

    def watched_step(action):
        result = step(action)
        actions.append(np.array(action))
        domains.append(result[4]["domain"])
        return result

    env.step = watched_step
    return env, actions, domains


def test_rollout_is_a_plain_loop():
    """Step by step against a loop of the test's own, over deaths, time limits and the end of the batch."""
    steps, std = 80, np.array([0.5, 1.0, 2.0], np.float32)
    env, played, domains = watched(hopper())
    data = rollout(env, nod, std, WINDY, steps, np.random.default_rng(3))

    rng = np.random.default_rng(3)
    noise = rng.standard_normal((steps, 3), dtype=np.float32)
    env = hopper()
    obs, _ = env.reset(seed=int(rng.integers(2**31)), options={"domain": WINDY})
    returns, total, kinds = [], 0.0, set()
    for t in range(steps):
        action = nod(obs) + std * noise[t]
        after, reward, died, out_of_time, _ = env.step(np.clip(action, -1, 1))
        np.testing.assert_allclose(data.actions[t], action, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(played[t], np.clip(action, -1, 1), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(data.obs[t], obs, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(data.next_obs[t], after, rtol=1e-5, atol=1e-5)
        assert data.rewards[t] == pytest.approx(reward, rel=1e-6)
        assert data.terminated[t] == died
        assert data.ends[t] == (died or out_of_time or t == steps - 1)
        total += reward
        obs = after
        if died or out_of_time:
            kinds.add("death" if died else "limit")
            returns.append(total)
            total = 0.0
            obs, _ = env.reset(options={"domain": WINDY})
    np.testing.assert_allclose(data.returns, returns, rtol=1e-6)
    assert kinds == {"death", "limit"} and not (died or out_of_time)  # all three kinds of end were there
    assert np.abs(data.actions).max() > 1
    assert domains == [WINDY] * steps
    assert data.obs.dtype == data.next_obs.dtype == data.actions.dtype == np.float32


def test_the_last_observation_of_an_episode_is_not_the_first_of_the_next():
    """Within an episode next_obs is the next obs; at its end it is not."""
    data = rollout(hopper(), nod, np.ones(3, np.float32), WINDY, 80, np.random.default_rng(0))
    continued = (data.next_obs[:-1] == data.obs[1:]).all(1)
    assert np.array_equal(continued, ~data.ends[:-1]) and data.ends[:-1].sum() >= 3


def test_a_time_limit_is_an_end_but_no_death():
    """Episodes of ten steps, too short to fall: every tenth step ends, none terminates."""
    data = rollout(hopper(10), stand, np.zeros(3, np.float32), Domain(), 45, np.random.default_rng(0))
    assert np.flatnonzero(data.ends).tolist() == [9, 19, 29, 39, 44]
    assert not data.terminated.any()
    expected = [data.rewards[start : start + 10].sum() for start in (0, 10, 20, 30)]
    np.testing.assert_allclose(data.returns, expected)


def test_a_rollout_without_a_finished_episode_has_the_return_so_far():
    """There is always a return to be logged."""
    data = rollout(hopper(1000), nod, np.zeros(3, np.float32), Domain(), 5, np.random.default_rng(0))
    assert data.returns.tolist() == pytest.approx([data.rewards.sum()])
    assert data.ends.tolist() == [False] * 4 + [True]


def test_a_rollout_depends_on_its_generator_alone():
    """Not on threads, and not on what its environment did before."""

    def act(job):
        env, seed = job
        return rollout(env, nod, np.ones(3, np.float32), WINDY, 60, np.random.default_rng(seed))

    envs = [hopper() for _ in range(4)]
    alone = [act((hopper(), seed)) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert all(map(same, alone, pool.map(act, zip(envs, range(4)))))
        assert all(map(same, alone[::-1], pool.map(act, zip(envs, (3, 2, 1, 0)))))
    assert not same(alone[0], alone[1])


# Evaluation ----------------------------------------------------------------------------------------------


def test_held_out_domains_are_always_the_same():
    """A longer list only continues; another eps means other domains; all within Table 1; none repeats."""
    assert held_out_domains(0.5, 3) == held_out_domains(0.5, 5)[:3]
    assert held_out_domains(0.0, 2) == [Domain(), Domain()]
    values = []
    for eps in (0.2, 0.4, 1.0):
        for domain in held_out_domains(eps, 200):
            width = np.array([5 * eps, 0.25 * eps, 0.3 * eps, 0.5 * eps, eps])
            offset = np.array(dataclasses.astuple(domain)) - [0, 1, 1, 1, 0]
            assert (np.abs(offset) <= width + 1e-12).all()
            values.append(offset / width)
    assert len(np.unique(np.round(values, 9), axis=0)) == 600  # not one draw scaled
    assert np.abs(np.mean(values, axis=0)).max() < 0.1 and np.abs(values).max() > 0.95
    assert len(held_out_domains(0.5, 1, hinges=4)[0].position) == 4


def test_held_out_domains_meet_no_training_run():
    """Training draws from (seed, agent, iteration); no seed that is allowed has the key of the test domains."""
    first = held_out_domains(0.2, 1)[0]
    for seed in (0, 1, 2**32 - 2):
        assert baselines.sample_domain(0.2, np.random.default_rng([seed, 2000, 0])) != first


def test_episode_return_is_a_plain_loop():
    """Mean actions, clipped, until death or time limit, rewards summed."""
    for limit in (5, 1000):
        env = hopper(limit)
        obs, _ = env.reset(seed=4, options={"domain": WINDY})
        total, over = 0.0, False
        while not over:
            obs, reward, died, out_of_time, _ = env.step(np.clip(nod(obs), -1, 1))
            total, over = total + reward, died or out_of_time
        assert episode_return(hopper(limit), nod, WINDY, seed=4) == pytest.approx(total, rel=1e-9)


def test_evaluate_is_episode_return_in_every_held_out_domain():
    """Rows complete and in order, domain by domain; the same with one environment and with three."""
    policies = [nod, lambda obs: -nod(obs)]
    rows = evaluate([hopper()], policies, (0.0, 0.8), 3, step=77)
    expected = [
        {"step": 77, "agent": agent, "eps_te": eps, "domain": i,
         "return": episode_return(hopper(), policies[agent], held_out_domains(eps, 3)[i], seed=i)}
        for agent in (0, 1) for eps in (0.0, 0.8) for i in (0, 1, 2)
    ]  # fmt: skip
    assert rows == expected
    assert rows == evaluate([hopper() for _ in range(3)], policies, (0.0, 0.8), 3, step=77)
    assert len({row["return"] for row in rows}) == len(rows)


def test_episode_returns_keep_the_order_of_their_jobs():
    """Mixed policies, domains and seeds, some episodes long and some short, against one after the other."""
    policies, domains = [nod, stand, lambda obs: -nod(obs)], [Domain(), WINDY, Domain(mass=1.4)]
    jobs = [(policies[i % 3], domains[i // 2 % 3], i % 4) for i in range(14)]
    expected = [episode_return(hopper(40), *job) for job in jobs]
    assert len(set(expected)) > 10
    for number in (1, 2, 5):
        assert episode_returns([hopper(40) for _ in range(number)], jobs) == expected
    assert episode_returns([hopper(40)], []) == []


def test_evaluate_passes_on_what_goes_wrong():
    """An error in a policy is an error, and no endless wait for a free environment."""

    def broken(obs):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        evaluate([hopper()], [broken], (0.0,), 3, step=0)


# PPO: losses ---------------------------------------------------------------------------------------------


def test_networks_are_what_the_docstring_says():
    """64-64 tanh, orthogonal with gains sqrt 2, sqrt 2 and .01 or 1, zero biases, standard deviation 1."""
    torch.manual_seed(0)
    for network, outputs, gain in ((GaussianActor(OBS, ACT), ACT, 0.01), (ValueCritic(OBS), 1, 1.0)):
        assert [type(module) for module in network.net] == [nn.Linear, nn.Tanh, nn.Linear, nn.Tanh, nn.Linear]
        shapes, gains = [(64, OBS), (64, 64), (outputs, 64)], [math.sqrt(2), math.sqrt(2), gain]
        for layer, shape, expected in zip(network.net[::2], shapes, gains):
            assert layer.weight.shape == shape and layer.bias.abs().max() == 0
            torch.testing.assert_close(torch.linalg.svdvals(layer.weight), torch.full((min(shape),), expected))
    assert GaussianActor(OBS, ACT).log_std.tolist() == [0] * ACT
    assert ValueCritic(OBS)(torch.zeros(7, OBS)).shape == (7,)


def test_gaussian_log_prob():
    """Against torch.distributions."""
    torch.manual_seed(0)
    mean, log_std, actions = torch.randn(50, ACT), torch.tensor([-1.0, 0.0, 0.7]), 2 * torch.randn(50, ACT)
    expected = torch.distributions.Normal(mean, log_std.exp()).log_prob(actions).sum(1)
    torch.testing.assert_close(gaussian_log_prob(mean, log_std, actions), expected)


def slow_ppo_loss(actor, batch, clip):
    """Eq. (7), negated, sample by sample."""
    total = 0.0
    for obs, action, log_prob, advantage, _ in zip(*batch):
        mean, log_std = actor(obs[None])
        new = sum(
            -((a - m) ** 2) / (2 * math.exp(2 * s)) - s - math.log(math.sqrt(2 * math.pi))
            for a, m, s in zip(action.tolist(), mean[0].tolist(), log_std.tolist())
        )
        ratio, advantage = math.exp(new - log_prob.item()), advantage.item()
        total += min(ratio * advantage, min(max(ratio, 1 - clip), 1 + clip) * advantage)
    return -total / len(batch.obs)


@pytest.mark.parametrize("clip", [0.05, 0.2, 0.6])
def test_ppo_loss_is_the_clipped_surrogate(clip):
    """Eq. (7), against a loop over samples, with ratios on both sides of both bounds."""
    actor, _ = networks()
    batch = random_batch(actor)
    assert ppo_loss(actor(batch.obs), batch, clip).item() == pytest.approx(slow_ppo_loss(actor, batch, clip), rel=1e-4)


def test_ppo_loss_starts_with_the_policy_gradient():
    """At ratio 1 its gradient is that of -E[A log pi], here by finite differences in float64."""
    actor, batch = doubled(networks()[0], random_batch(networks()[0], shift=0.0))
    batch = batch._replace(log_probs=gaussian_log_prob(*actor(batch.obs), batch.actions).detach())
    ppo_loss(actor(batch.obs), batch, 0.2).backward()

    def objective():
        normal = torch.distributions.Normal(actor(batch.obs)[0], actor.log_std.exp())
        return -(batch.advantages * normal.log_prob(batch.actions).sum(1)).mean()

    for parameter, index in ((actor.log_std, 1), (actor.net[0].weight, 33), (actor.net[2].bias, 5), (actor.net[4].weight, 70)):
        slope = finite_difference(objective, parameter, index)
        assert parameter.grad.view(-1)[index].item() == pytest.approx(slope, rel=1e-5)
        assert abs(slope) > 1e-5


@pytest.mark.parametrize(("shift", "sign", "moves"), [(-0.5, 1, False), (0.5, -1, False), (-0.5, -1, True), (0.5, 1, True)])
def test_a_clipped_step_pushes_no_further(shift, sign, moves):
    """No gradient where the ratio has left the clip range in the advantage's direction; else there is one."""
    actor, _ = networks()
    batch = random_batch(actor, shift=0.0)
    batch = batch._replace(log_probs=batch.log_probs + shift, advantages=sign * torch.ones(len(batch.obs)))
    ppo_loss(actor(batch.obs), batch, 0.2).backward()
    assert all((parameter.grad.abs().max() > 0) == moves for parameter in actor.parameters())


def test_value_loss_is_the_mean_square_error():
    """Eq. (9), sample by sample."""
    actor, critic = networks()
    batch = random_batch(actor)
    expected = np.mean([(critic(obs[None]).item() - target.item()) ** 2 for obs, target in zip(batch.obs, batch.targets)])
    assert value_loss(critic, batch).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["log_probs", "advantages", "targets"])
def test_columns_of_shape_n_by_1_are_refused(name):
    """(N, 1) against (N,) would broadcast to (N, N), and train on nonsense without a word."""
    actor, critic = networks()
    batch = random_batch(actor)
    batch = batch._replace(**{name: getattr(batch, name)[:, None]})
    with pytest.raises(AssertionError):
        ppo_loss(actor(batch.obs), batch, 0.2)
        value_loss(critic, batch)


# PPO: update ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e-3, 0.4, 0.6, 100.0])
def test_clip_norm(size):
    """Against torch.nn.utils.clip_grad_norm_: a short gradient stays, a long one gets length .5."""
    parameter = nn.Parameter(torch.zeros(10))
    gradient = torch.randn(10, generator=torch.Generator().manual_seed(0))
    gradient *= size / gradient.norm()
    parameter.grad = gradient.clone()
    nn.utils.clip_grad_norm_([parameter], 0.5)
    torch.testing.assert_close(clip_norm(gradient, 0.5), parameter.grad)


@pytest.mark.parametrize("max_grad_norm", [1e-3, 0.5, 1e3])
def test_ppo_gradients_are_those_of_both_losses(max_grad_norm):
    """Against .backward() on losses with normalised advantages, each network clipped by itself."""
    actor, critic = networks()
    batch = random_batch(actor)
    gradient, told = ppo_gradients(actor, critic, batch, 0.2, max_grad_norm)

    advantages = batch.advantages.numpy()
    normalised = (advantages - advantages.mean()) / advantages.std(ddof=1)
    surrogate = ppo_loss(actor(batch.obs), batch._replace(advantages=torch.tensor(normalised)), 0.2)
    error = value_loss(critic, batch)
    (surrogate + error).backward()
    expected = []
    for network in (actor, critic):
        nn.utils.clip_grad_norm_(network.parameters(), max_grad_norm)
        expected += [parameter.grad.flatten() for parameter in network.parameters()]
    torch.testing.assert_close(gradient, torch.cat(expected), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(told, torch.stack([surrogate, error, actor.log_std.mean()]))
    assert not told.requires_grad


def prepared(actor, critic, reward_scale, rollouts, gamma, gae_lambda):
    return estimate(prepare(actor, reward_scale, rollouts, gamma), critic, reward_scale, rollouts, gamma, gae_lambda)


def test_prepare_joins_rollouts_with_what_the_current_networks_say():
    """Order, ratio 1, advantages and targets (advantage + value) by slow sums, rewards divided by their scale."""
    actor, critic = networks()
    rollouts = [random_rollout(20, [6, 13, 19], [6]), random_rollout(30, [29], [], seed=1)]
    reward_scale, sums = RunningNorm(()), []
    for _ in range(2):  # the scale remembers the first time
        batch = prepared(actor, critic, reward_scale, rollouts, 0.9, 0.8)
        sums += [discounted_sums(data.rewards, data.ends, 0.9) for data in rollouts]
    scale = np.concatenate(sums).std()
    assert reward_scale.std().item() == pytest.approx(scale, rel=1e-9) and reward_scale.count == 100
    assert scale > 5

    assert np.array_equal(batch.obs, np.concatenate([data.obs for data in rollouts]))
    assert np.array_equal(batch.actions, np.concatenate([data.actions for data in rollouts]))
    with torch.no_grad():
        values, next_values = (
            [critic(torch.tensor(getattr(data, name))).double().numpy() for data in rollouts] for name in ("obs", "next_obs")
        )
        ratio = (torch.distributions.Normal(actor(batch.obs)[0], actor.log_std.exp()).log_prob(batch.actions).sum(1) - batch.log_probs).exp()
    torch.testing.assert_close(ratio, torch.ones(50), rtol=0, atol=1e-5)
    advantages = np.concatenate([
        slow_gae(data.rewards / scale, value, next_value, data.terminated, data.ends, 0.9, 0.8)
        for data, value, next_value in zip(rollouts, values, next_values)
    ])  # fmt: skip
    np.testing.assert_allclose(batch.advantages, advantages, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(batch.targets, advantages + np.concatenate(values), rtol=1e-4, atol=1e-5)
    assert all(column.dtype == torch.float32 and not column.requires_grad for column in batch)
    assert all(column.shape == (50,) for column in batch[2:])


def test_rewards_are_divided_by_a_scale_but_never_shifted():
    """A constant added to all rewards is not taken away again: it moves the advantages."""
    actor, critic = networks()
    data = random_rollout(20, [19], [19])
    zero = prepared(actor, critic, RunningNorm(()), [data._replace(rewards=np.zeros(20))], 0.0, 0.0)
    one = prepared(actor, critic, RunningNorm(()), [data._replace(rewards=np.arange(20.0))], 0.0, 0.0)
    expected = torch.arange(20) / np.arange(20).std()
    torch.testing.assert_close(one.advantages - zero.advantages, expected.float(), rtol=1e-4, atol=1e-4)


def test_shuffle_is_a_permutation_cut_into_equal_pieces():
    """Every step once, its columns together, in an order of the generator's."""
    steps = torch.arange(24.0)
    batch = Batch(steps[:, None].repeat(1, OBS), steps[:, None] * torch.ones(ACT), steps, steps, steps)
    pieces = shuffle(batch, 4, np.random.default_rng(0))
    assert [len(piece.obs) for piece in pieces] == [6] * 4
    for piece in pieces:
        for column in piece:
            assert torch.equal(column.reshape(6, -1)[:, 0], piece.log_probs)
    order = torch.cat([piece.log_probs for piece in pieces])
    assert sorted(order.tolist()) == steps.tolist() and order.tolist() != steps.tolist()
    again = torch.cat([piece.log_probs for piece in shuffle(batch, 4, np.random.default_rng(0))])
    other = torch.cat([piece.log_probs for piece in shuffle(batch, 4, np.random.default_rng(1))])
    assert torch.equal(order, again) and not torch.equal(order, other)


# Replay buffer and stream --------------------------------------------------------------------------------


def numbered(first, last, width=2 * OBS + ACT + 2):
    """Rows that know their number."""
    return np.arange(first, last, dtype=np.float32)[:, None] * np.ones(width, np.float32)


def test_the_buffer_remembers_the_latest(tmp_path, monkeypatch):
    """Against a plain list, through several rounds of its file: length, latest rows in order, what can be drawn."""
    monkeypatch.setattr(baselines, "SPARE", 7)
    buffer, everything = ReplayBuffer(tmp_path / "buffer", OBS, ACT, size=20, resuming=False), []
    rng = np.random.default_rng(0)
    for number in (5, 7, 1, 7, 6, 7, 3, 7, 7):
        rows = numbered(len(everything), len(everything) + number)
        buffer.add(rows)
        everything += rows.tolist()
        kept = everything[-20:]
        assert len(buffer) == len(kept)
        assert buffer.latest(min(6, len(kept))).tolist() == kept[-6:]
        drawn = buffer.draw((500, 2), rng)
        assert drawn.shape == (500, 2, 2 * OBS + ACT + 2)
        assert {row[0] for row in drawn.reshape(-1, drawn.shape[-1]).tolist()} == {row[0] for row in kept}
        recent = buffer.draw((300,), rng, among=4)
        assert {row[0] for row in recent.tolist()} == {row[0] for row in kept[-4:]}


def test_rows_written_after_a_checkpoint_do_not_touch_what_it_holds(tmp_path, monkeypatch):
    """SPARE rows later the process dies; the file, opened again with the checkpoint's count, holds the same rows."""
    monkeypatch.setattr(baselines, "SPARE", 7)
    buffer = ReplayBuffer(tmp_path / "buffer", OBS, ACT, size=20, resuming=False)
    buffer.add(numbered(0, 33))
    state, before = buffer.state_dict(), buffer.latest(20).copy()
    buffer.add(numbered(100, 107))
    again = ReplayBuffer(tmp_path / "buffer", OBS, ACT, size=20, resuming=True)
    again.load_state_dict(state)
    assert np.array_equal(again.latest(20), before) and len(again) == 20
    rngs = np.random.default_rng(3), np.random.default_rng(3)
    first = again.draw((50,), rngs[0])
    buffer.load_state_dict(state)
    assert np.array_equal(first, buffer.draw((50,), rngs[1]))


def test_rows_are_split_into_their_columns(tmp_path):
    buffer = ReplayBuffer(tmp_path / "buffer", OBS, ACT, size=4, resuming=False)
    row = torch.arange(2.0 * OBS + ACT + 2).repeat(3, 1)
    batch = buffer.split(row)
    assert batch.obs[0].tolist() == list(range(OBS)) and batch.actions[0].tolist() == list(range(OBS, OBS + ACT))
    assert batch.rewards.tolist() == [OBS + ACT] * 3 and batch.terminated.tolist() == [2 * OBS + ACT + 1] * 3
    assert batch.next_obs[0].tolist() == list(range(OBS + ACT + 1, 2 * OBS + ACT + 1))


def stream_of(path, eps=0.3, seed=4):
    env = make_env("Hopper-v4", eps)
    return Stream(env, seed, 0, ReplayBuffer(path, 11, 3, size=500, resuming=False))


def random_steps(stream, number, seed):
    noise = np.random.default_rng(seed).uniform(-1, 1, (number, 3)).astype(np.float32)
    return stream.collect(lambda obs: 0, noise)


def test_a_stream_goes_on_to_the_bit_after_its_state_is_restored(tmp_path, capsys):
    """In the middle of an episode in a randomised domain; rows and returns as if nothing had happened."""
    whole = stream_of(tmp_path / "whole")
    random_steps(whole, 70, seed=0)
    state, rows = {"stream": whole.state_dict(), "buffer": whole.buffer.state_dict()}, whole.buffer.latest(70).copy()
    assert whole.episode > 0 and whole.steps > 3
    torch.save(state, tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)  # plain numbers only, as a checkpoint needs them
    after = random_steps(whole, 60, seed=1)

    again = stream_of(tmp_path / "again")
    again.buffer.add(rows)
    again.buffer.load_state_dict(state["buffer"])
    again.load_state_dict(state["stream"])
    assert again.state_dict() == state["stream"] and again.total == pytest.approx(rows[-again.steps :, 14].sum())
    assert capsys.readouterr().out == ""
    resumed = random_steps(again, 60, seed=1)
    assert np.array_equal(after[0], resumed[0]) and after[1] == resumed[1] and len(after[1]) > 0


def test_an_episode_that_goes_another_way_when_played_again_is_mentioned(tmp_path, capsys):
    """As on another machine: here one number of one row is not what it was."""
    whole = stream_of(tmp_path / "whole")
    random_steps(whole, 70, seed=0)
    state, rows = whole.state_dict(), whole.buffer.latest(70).copy()
    rows[-2, 14] += 1e-3  # a reward
    again = stream_of(tmp_path / "again")
    again.buffer.add(rows)
    again.load_state_dict(state)
    assert capsys.readouterr().out.count("went another way") == 1


class PlainEpisodes:
    """Episodes of one environment, one after the other, in a loop of the test's own: a row of each step, each return."""

    def __init__(self, env, seed, eps):
        self.env, self.seed, self.eps = env, seed, eps
        self.rows, self.returns = [], []
        self.begin()

    def begin(self):
        rng = np.random.default_rng([self.seed, 0, len(self.returns), 2])
        domain = sample_domain(self.eps, rng, self.env.position_draws)
        self.obs, _ = self.env.reset(seed=int(rng.integers(2**31)), options={"domain": domain})
        self.total = 0.0

    def step(self, action):
        after, reward, died, over, _ = self.env.step(action)
        self.rows.append(np.concatenate([self.obs, action, [reward], after, [died]]).astype(np.float32))
        self.obs, self.total = after, self.total + reward
        if died or over:
            self.returns.append(self.total)
            self.begin()


def test_a_streams_rows_are_what_happened(tmp_path):
    """Against a loop over the environment: observations, clipped actions, rewards, deaths, finished returns."""
    stream = stream_of(tmp_path / "buffer", eps=0.0)
    noise = 3 * np.random.default_rng(5).standard_normal((80, 3)).astype(np.float32)
    rows, returns = stream.collect(lambda obs: np.float32(0.1), noise)
    plain = PlainEpisodes(make_env("Hopper-v4"), 4, 0.0)
    for row, each in zip(rows, noise):
        plain.step(np.clip(each + np.float32(0.1), -1, 1))
        np.testing.assert_array_equal(row, plain.rows[-1])
    assert returns == pytest.approx(plain.returns) and len(returns) > 2
    assert np.array_equal(rows, stream.buffer.latest(80))


def test_a_time_limit_is_not_a_death_in_a_stream(tmp_path):
    """The episode ends, and its last row says that the robot lives."""
    env = make_env("HalfCheetah-v4", max_episode_steps=20)
    stream = Stream(env, 0, 0, ReplayBuffer(tmp_path / "buffer", 17, 6, size=100, resuming=False))
    rows, returns = stream.collect(lambda obs: 0, np.zeros((50, 6), np.float32))
    assert len(returns) == 2 and stream.steps == 10 and not rows[:, -1].any()
    obs, next_obs = rows[:, :17], rows[:, 24:41]
    follows = (obs[1:] == next_obs[:-1]).all(1)
    assert np.flatnonzero(~follows).tolist() == [19, 39]


# DDPG ----------------------------------------------------------------------------------------------------


def ddpg_learner(seed=0):
    """Outputs that are not near zero, statistics of some data, targets that differ from the networks."""
    torch.manual_seed(seed)
    args = Args(compile=False, **baselines.USUAL["ddpg"])
    learner = DDPGLearner(OBS, np.array([1.0, 0.4, 2.0], np.float32), args)
    with torch.no_grad():
        for vector in learner.vectors:
            vector.add_(0.1 * torch.randn_like(vector))
    learner.actor.norm.absorb(np.random.default_rng(seed).normal(1, 2, (30, OBS)))
    return learner, args


def transitions(steps=12, seed=1):
    torch.manual_seed(seed)
    terminated = (torch.arange(steps) % 3 == 0).float()
    obs, actions, rewards, next_obs = (torch.randn(steps, *shape) for shape in ((OBS,), (ACT,), (), (OBS,)))
    return Transitions(obs, actions, rewards, next_obs, terminated)


def test_ddpg_targets_state_by_state():
    """r + gamma Q'(s', mu'(s')), and r alone after a death; by the target networks, not the others; no gradient."""
    learner, _ = ddpg_learner()
    batch = transitions()
    targets = ddpg_targets(learner.target_actor, learner.target_critic, batch, 0.9)
    for n in range(len(targets)):
        after = batch.next_obs[n : n + 1]
        future = learner.target_critic(after, learner.target_actor(after)).item()
        expected = batch.rewards[n].item() + (0 if n % 3 == 0 else 0.9 * future)
        assert targets[n].item() == pytest.approx(expected, abs=1e-5)
        assert abs(future - learner.critic(after, learner.actor(after)).item()) > 1e-4
    assert not targets.requires_grad


def test_ddpg_losses():
    """Mean square error and half the squared weights of the hidden layers, not of the last; minus the critic's opinion."""
    learner, _ = ddpg_learner()
    batch, targets = transitions(), torch.randn(12)
    said = [learner.critic(batch.obs[n : n + 1], batch.actions[n : n + 1]).item() for n in range(12)]
    error = sum((value - target) ** 2 for value, target in zip(said, targets.tolist())) / 12
    hidden = [learner.critic.net[i].weight for i in (0, 3, 6)]
    decay = 0.01 / 2 * sum(value**2 for weight in hidden for value in weight.flatten().tolist())
    assert ddpg_critic_loss(learner.critic, batch, targets, 0.01).item() == pytest.approx(error + decay, rel=1e-4)
    values = [learner.critic(batch.obs[n : n + 1], learner.actor(batch.obs[n : n + 1])).item() for n in range(12)]
    assert ddpg_actor_loss(learner.actor, learner.critic, batch).item() == pytest.approx(-np.mean(values), rel=1e-4)


def test_a_ddpg_update_the_ordinary_way():
    """Three updates against .backward() and torch's Adam on copies; targets move by tau towards the new networks."""
    learner, args = ddpg_learner()
    slow_actor, slow_critic, slow_target_actor, slow_target_critic = copy.deepcopy(learner.networks[:4])
    actor_adam = torch.optim.Adam(slow_actor.parameters(), lr=1e-4)
    critic_adam = torch.optim.Adam(slow_critic.parameters(), lr=1e-3)
    start = [vector.detach().clone() for vector in learner.vectors]
    for seed in range(3):
        batch = transitions(seed=seed)
        with torch.no_grad():
            futures = slow_target_critic(batch.next_obs, slow_target_actor(batch.next_obs))
            targets = batch.rewards + 0.99 * (1 - batch.terminated) * futures
        error = ((slow_critic(batch.obs, batch.actions) - targets) ** 2).mean()
        weights = sum((slow_critic.net[i].weight ** 2).sum() for i in (0, 3, 6))
        actor_loss = -slow_critic(batch.obs, slow_actor(batch.obs)).mean()
        for loss, network in ((error + 1e-2 * weights / 2, slow_critic), (actor_loss, slow_actor)):
            parameters = list(network.parameters())
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters, retain_graph=True)):
                parameter.grad = gradient
        critic_adam.step()
        actor_adam.step()
        with torch.no_grad():
            for target, network in ((slow_target_actor, slow_actor), (slow_target_critic, slow_critic)):
                for old, new in zip(target.parameters(), network.parameters()):
                    old.mul_(0.99).add_(0.01 * new)
        ddpg_update(learner, batch, ddpg_step, args)
    slow = slow_actor, slow_critic, slow_target_actor, slow_target_critic
    for vector, network, before in zip(learner.vectors, slow, start):
        expected = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
        torch.testing.assert_close(vector.detach(), expected, rtol=0, atol=2e-6)
        assert (vector - before).abs().max() > 1e-5


def test_ddpg_networks_share_one_normaliser():
    learner, _ = ddpg_learner()
    assert len({id(network.norm) for network in learner.networks[:4]}) == 1 and learner.actor.norm.clip == 5


def test_the_deterministic_policy_in_numpy_is_the_actor():
    """ReLU, tanh and the reach of the actions."""
    learner, _ = ddpg_learner()
    policy = numpy_policy(learner.actor)
    obs = np.random.default_rng(0).normal(1, 4, (20, OBS))
    expected = learner.actor(torch.tensor(obs, dtype=torch.float32)).detach().numpy()
    np.testing.assert_allclose([policy(row) for row in obs], expected, rtol=1e-4, atol=1e-5)
    assert (np.abs(expected).max(0) <= [1, 0.4, 2]).all() and np.abs(expected[:, 2]).max() > 0.5


def test_exploration_is_in_parts_of_the_reach():
    noise = exploration((20_000,), 0.2, np.array([1.0, 0.4], np.float32), np.random.default_rng(0))
    np.testing.assert_allclose(noise.std(0), [0.2, 0.08], rtol=0.05)
    assert np.abs(noise.mean(0)).max() < 0.01 and noise.dtype == np.float32


def test_noise_on_weights_is_the_episodes_own_and_spares_normalised_layers():
    """Each linear parameter is the actor's present one plus sigma times what the episode's generator draws, in order."""
    learner, _ = ddpg_learner()
    obs = np.random.default_rng(0).normal(1, 2, (30, OBS)).astype(np.float32)
    noise = baselines.ParameterNoise(learner.actor, 0.2, (7, 1))
    noise.sigma = 0.3
    policy = noise.policy(5, obs)
    rng = np.random.default_rng([7, 1, 5, 3])
    for name, weight in learner.actor.net.named_parameters():
        draw = rng.standard_normal(weight.shape, dtype=np.float32)
        scale = 0 if int(name.split(".")[0]) in (1, 4, 7) else 0.3
        noisy = dict(noise.perturbed.net.named_parameters())[name]
        np.testing.assert_allclose(noisy.detach().numpy(), weight.detach().numpy() + scale * draw, rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.tensor(policy(obs[0])), noise.perturbed(torch.tensor(obs[:1]))[0].detach())
    noise.sigma = 0.3
    assert (noise.policy(5, obs)(obs[0]) == policy(obs[0])).all()
    noise.sigma = 0.3
    assert np.abs(noise.policy(6, obs)(obs[0]) - policy(obs[0])).max() > 0.01
    noise.sigma = 0.0
    np.testing.assert_allclose(noise.policy(6, obs)(obs[0]), numpy_policy(learner.actor)(obs[0]), atol=1e-6)


@pytest.mark.parametrize("sigma", [0.001, 1.0])
def test_noise_on_weights_adapts_to_the_change_of_actions(sigma):
    """From too little and from too much, one per cent for each call, to the root mean square change that is asked for."""
    learner, _ = ddpg_learner()
    obs = np.random.default_rng(0).normal(1, 2, (30, OBS)).astype(np.float32)
    noise = baselines.ParameterNoise(learner.actor, 0.2, (0, 0))
    noise.sigma = sigma
    noise.policy(0, obs)
    assert noise.sigma == pytest.approx(sigma * 1.01 if sigma < 0.1 else sigma / 1.01)
    for episode in range(1, 900):
        noise.policy(episode, obs)
    changes = []
    for episode in range(100):
        policy = noise.policy(episode, obs)
        mean = learner.actor(torch.tensor(obs)).detach().numpy()
        changes.append((np.array([policy(row) for row in obs]) - mean) / [1, 0.4, 2])
    assert np.median([np.sqrt((change**2).mean()) for change in changes]) == pytest.approx(0.2, rel=0.15)
    again = baselines.ParameterNoise(learner.actor, 0.2, (0, 0))
    again.load_state_dict(noise.state_dict())
    assert again.sigma == noise.sigma


@pytest.mark.parametrize("exploration", ["parameter", "action"])
def test_ddpg_is_a_plain_loop(tmp_path, monkeypatch, exploration):
    """To the bit against a loop of the test's own over the environment with a list as buffer.

    Cycles of 20 steps, two to a row of the log: random actions in the first three cycles, then those of the actor with
    the episode's noise on its weights, or with noise on each action, and after each such cycle five updates. The
    normaliser absorbs the observations of every cycle.
    """
    monkeypatch.setattr(baselines, "CYCLE", 20)
    monkeypatch.setattr(baselines, "CYCLES", 2)
    monkeypatch.setattr(baselines, "report", lambda run, title: None)
    asked, real = [], baselines.ParameterNoise.policy

    def watched_policy(noise, episode, obs):
        asked.append((episode, obs))
        return real(noise, episode, obs)

    monkeypatch.setattr(baselines.ParameterNoise, "policy", watched_policy)
    tiny = {"total_steps": 160, "warm_up": 60, "batch_size": 8, "buffer_size": 90, "updates": 5, "tau": 0.01, "noise": 0.3}
    tiny |= {"eval_domains": 1, "eps_te": (0.0,), "evaluations": 1, "threads": 1, "compile": False}
    args = Args(
        algo="ddpg", env="Humanoid-v4", seed=2, eps_tr=0.2, exploration=exploration, runs=str(tmp_path / "runs"), **tiny
    )
    baselines.ddpg(args)
    (path,) = (tmp_path / "runs").iterdir()
    saved = torch.load(path / "checkpoint.pt", weights_only=True)
    log = read_csv(path / "log.csv")

    torch.manual_seed(2)
    plain, reach, sigma = PlainEpisodes(make_env("Humanoid-v4", 0.2), 2, 0.2), np.full(17, 0.4, np.float32), 0.3
    learner = DDPGLearner(376, reach, args)
    first = [vector.detach().clone() for vector in learner.vectors]
    rows, ours = plain.rows, []

    def on_weights():
        noisy, rng = copy.deepcopy(learner.actor), np.random.default_rng([2, 0, len(plain.returns), 3])
        with torch.no_grad():
            for layer in noisy.net:
                for weight in layer.parameters():
                    draw = torch.as_tensor(rng.standard_normal(weight.shape, dtype=np.float32))
                    if isinstance(layer, nn.Linear):
                        weight += sigma * draw
        obs = torch.as_tensor(np.stack(rows[-8:])[:, :376])
        change = ((noisy(obs) - learner.actor(obs)) / 0.4).square().mean().sqrt().item()
        return numpy_policy(noisy), sigma * 1.01 if change < 0.3 else sigma / 1.01

    def update(rng):
        ages = rng.integers(min(len(rows), 90), size=8)
        batch = torch.as_tensor(np.stack([rows[-1 - age] for age in ages]))
        batch = Transitions(batch[:, :376], batch[:, 376:393], batch[:, 393], batch[:, 394:770], batch[:, 770])
        return ddpg_update(learner, batch, ddpg_step, args).numpy()

    for iteration in range(4):
        told, before = [], len(plain.returns)
        for cycle in (2 * iteration, 2 * iteration + 1):
            rng, policy = np.random.default_rng([2, 0, cycle]), numpy_policy(learner.actor)
            if cycle >= 3 and exploration == "parameter":
                ours.append((len(plain.returns), np.stack(rows[-8:])[:, :376]))
                policy, sigma = on_weights()
            for t in range(20):
                if cycle < 3:
                    action = rng.uniform(-reach, reach).astype(np.float32)
                elif exploration == "parameter":
                    action = policy(plain.obs)
                else:
                    noise = 0.3 * reach * rng.standard_normal(17, dtype=np.float32)
                    action = np.clip(policy(plain.obs) + noise, -reach, reach)
                plain.step(action)
            learner.actor.norm.absorb(np.stack(rows[-20:])[:, :376])
            told += [update(rng) for _ in range(5 if cycle >= 3 else 0)]
        returns = plain.returns[before:]
        assert log["return"][iteration] == pytest.approx(np.mean(returns or plain.returns[-1:]))
        assert log["episodes"][iteration] == len(returns)
        means = np.mean(told, axis=0) if told else np.zeros(2)
        for name, value in zip(("critic_loss", "value"), means):
            assert log[name][iteration] == pytest.approx(value, rel=1e-4)
    assert log["step"].tolist() == [40, 80, 120, 160] and saved["finished"] and len(plain.returns) > 3
    for name, part in learner.parts().items():
        assert all(torch.equal(saved["state"][name][key], value) for key, value in part.state_dict().items()), name
    assert saved["state"]["actor_adam"]["steps"] == saved["state"]["critic_adam"]["steps"] == 25
    norm = saved["state"]["actor"]
    np.testing.assert_allclose(norm["norm.mean"], np.mean(rows, axis=0, dtype=np.float64)[:376], rtol=1e-9, atol=1e-9)
    assert norm["norm.count"] == 160 and saved["state"]["weight_noise"]["sigma"] == sigma
    assert len(asked) == len(ours) == (5 if exploration == "parameter" else 0)
    for cycle, (one, other) in enumerate(zip(asked, ours), start=3):
        assert one[0] == other[0] != cycle and np.array_equal(one[1], other[1])
    (final,) = evaluate([make_env("Humanoid-v4")], [numpy_policy(learner.actor)], (0.0,), 1, 160)
    evaluation = read_csv(path / "eval.csv")
    assert {name: column.tolist() for name, column in evaluation.items()} == {name: [value] for name, value in final.items()}
    assert all((vector - before).abs().max() > 1e-5 for vector, before in zip(learner.vectors, first))


# Command line --------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Settings:
    # amounts
    steps: int = 4096  # how many of them
    learning_rate: float = 0.5  # 95 % of it
    limit: float | None = None  # none if not given

    # kinds
    kind: Literal["", "3", "4"] = ""  # which of them
    name: str = "Hopper"  # what it is called
    dry: bool = True  # without water
    strengths: tuple[float, ...] = (0.0, 0.5)  # one after the other
    seeds: tuple[int, ...] = ()  # of which kind
    hidden = 3  # no field of the dataclass


def parsed(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["program.py", *arguments])
    return parse_args(Settings, "What it does.")


def test_parse_args_without_arguments_is_the_dataclass(monkeypatch):
    """All defaults."""
    assert parsed(monkeypatch) == Settings()


def test_parse_args_by_type(monkeypatch):
    """Whole numbers as people write them, float | None, Literal, booleans both ways, tuples, also empty."""
    given = parsed(monkeypatch, "--steps", "2e6", "--learning-rate", "3e-4", "--limit", "1", "--kind", "4", "--name", "A b",
                   "--no-dry", "--strengths", "0", ".25", "1", "--seeds", "1", "2e1", "1_000")  # fmt: skip
    expected = Settings(2_000_000, 3e-4, 1.0, "4", "A b", False, (0.0, 0.25, 1.0), (1, 20, 1000))
    assert given == expected
    assert [type(value) for value in vars(given).values()] == [type(value) for value in vars(expected).values()]
    assert type(given.seeds[1]) is int and type(given.strengths[0]) is float
    assert parsed(monkeypatch, "--strengths", "--seeds") == Settings(strengths=())
    assert parsed(monkeypatch, "--dry").dry is True


def test_the_help_has_groups_comments_and_defaults(monkeypatch, capsys):
    """From the comments in the dataclass; a % in them does no harm."""
    with pytest.raises(SystemExit) as exit_:
        parsed(monkeypatch, "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert exit_.value.code == 0
    assert "What it does." in text and "amounts: --steps" in text and "kinds: --kind {,3,4}" in text
    assert "--steps STEPS how many of them (default: 4096)" in text
    assert "95 % of it (default: 0.5)" in text and "--dry, --no-dry" in text
    assert "hidden" not in text


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--steps", "2.5"], "--steps"),
        (["--steps", "inf"], "--steps"),
        (["--steps", "nan"], "--steps"),
        (["--steps", "many"], "--steps"),
        (["--learning-rate", "fast"], "--learning-rate"),
        (["--limit", "none"], "--limit"),
        (["--kind", "5"], "--kind"),
        (["--seeds", "0.5"], "--seeds"),
        (["--step", "1"], "--step"),  # no abbreviations
        (["--unknown"], "--unknown"),
        (["3"], "3"),
    ],
)
def test_parse_args_says_in_one_line_what_is_wrong(monkeypatch, capsys, arguments, word):
    """One line on stderr, exit status 2."""
    with pytest.raises(SystemExit) as exit_:
        parsed(monkeypatch, *arguments)
    out, err = capsys.readouterr()
    assert (exit_.value.code, out) == (2, "")
    assert err.startswith("program.py: ") and word in err and err.count("\n") == 1


def test_every_setting_of_the_script_has_an_option(monkeypatch):
    """No field is lost for want of a comment."""
    shown = []
    monkeypatch.setattr(baselines.Parser, "parse_args", lambda parser: shown.extend(parser._actions) or baselines.Args())
    parse_args(baselines.Args, "")
    fields = {field.name: field.default for field in dataclasses.fields(baselines.Args)}
    assert {action.dest: action.default for action in shown if action.dest != "help"} == fields
    assert all(action.help for action in shown)


def test_settings_as_a_command(monkeypatch):
    """What a shell reads in the printed line gives the same settings, flags that are off and odd folders included."""
    @dataclasses.dataclass
    class Some:
        compile: bool = True  # whether
        overwrite: bool = False  # whether
        total_steps: int = 5  # steps
        eps_te: tuple[float, ...] = (0.0,)  # strengths
        runs: str = "runs"  # folder

    settings = {"compile": False, "overwrite": True, "total_steps": 7, "eps_te": (0.0, 0.5), "runs": "my runs/$x"}
    words = shlex.split(baselines.as_command("some.py", settings))
    assert words[:2] == ["python", "some.py"]
    monkeypatch.setattr(sys, "argv", words[1:])
    assert vars(baselines.parse_args(Some, "")) == settings


# Run folder ----------------------------------------------------------------------------------------------


def arguments(tmp_path, **changes):
    return baselines.Args(**{"runs": str(tmp_path / "runs"), "seed": 3} | changes)


def part():
    """Something with a state_dict."""
    return RunningNorm(())


def row(step, value=0.5):
    return [{"step": step, "agent": 0, "return": value}]


alive = []


def opened(tmp_path, **changes):
    """A run, in what stands for a new process: those that opened one before are dead."""
    while alive:
        run = alive.pop()
        if run.unlock:
            run.unlock()
    alive.append(Run(arguments(tmp_path, **changes), "baselines", "ppo"))
    return alive[-1]


def begin(tmp_path, **changes):
    """A run with its folder made, and its one part."""
    run, norm = opened(tmp_path, **changes), part()
    run.resume({"norm": norm}, 10)
    return run, norm


def finished_run(tmp_path, finished=True, value=0.5, **changes):
    run, norm = begin(tmp_path, **changes)
    run.write("log.csv", row(10, value))
    run.write("eval.csv", row(10, value))
    norm.absorb(np.array([1.0, 2.0]))
    run.save({"norm": norm}, 1, finished=finished)
    return run


def refused(capsys, function, status=2):
    """The line with which a call ends the program."""
    with pytest.raises(SystemExit) as exit_:
        function()
    out, err = capsys.readouterr()
    assert exit_.value.code == status and err.count("\n") == 1 and err.endswith("\n")
    return err


def test_nothing_is_on_disk_before_resume(tmp_path):
    """Whatever is refused while a run is being set up leaves no trace."""
    run = Run(arguments(tmp_path), "baselines", "ppo")
    assert list(tmp_path.iterdir()) == []
    assert run.resume({"norm": part()}, 10) == 0
    assert sorted(path.name for path in run.path.iterdir()) == ["config.json", "eval.csv", "log.csv"]
    assert run.path.name == "baselines-ppo-Hopper-v4-eps0-seed3"
    config = json.loads((run.path / "config.json").read_text())
    assert config["settings"]["seed"] == 3 and config["script"] == "baselines" and "torch" in config["versions"]


def test_overwriting_destroys_nothing_before_resume(tmp_path):
    """A finished run is not lost to a command that is refused later, for its device or its environment."""
    old = finished_run(tmp_path)
    run = opened(tmp_path, overwrite=True)
    assert (old.path / "checkpoint.pt").exists()
    run.resume({"norm": part()}, 10)
    assert not (old.path / "checkpoint.pt").exists()


def test_overwrite_starts_anew(tmp_path):
    """Even with other settings: no state, no rows."""
    finished_run(tmp_path)
    run, norm = begin(tmp_path, overwrite=True, gamma=0.5)
    assert (run.iteration, run.finished, run.state, norm.count.item()) == (0, False, None, 0)
    assert (run.path / "log.csv").read_text() == ""
    assert json.loads((run.path / "config.json").read_text())["settings"]["gamma"] == 0.5


def test_a_checkpoint_brings_everything_back(tmp_path):
    """State, iteration, seconds; it holds only what weights_only=True loads; nothing is left beside it."""
    run = finished_run(tmp_path, finished=False)
    saved = torch.load(run.path / "checkpoint.pt", weights_only=True)
    assert saved["iteration"] == 1 and not saved["finished"]
    again, norm = begin(tmp_path)
    assert again.iteration == 1 and not again.finished
    assert norm.mean == 1.5 and norm.count == 2
    assert again.elapsed() >= saved["seconds"] > 0
    assert not list(run.path.glob(".*"))


def test_optimisers_are_restored_to_the_bit(tmp_path):
    """Two steps of Adam in one go, or with a checkpoint in between."""
    vector = torch.linspace(-1, 1, 7)
    adam = Adam(vector, 0.1)
    middle = adam(vector, vector**2)
    run = opened(tmp_path)
    run.resume({"adam": adam}, 10)
    run.save({"adam": adam}, 1, finished=False)
    second = Adam(vector, 0.1)
    opened(tmp_path).resume({"adam": second}, 10)
    end = adam(middle, middle**2)
    assert torch.equal(end, second(middle, middle**2)) and not torch.equal(end, Adam(vector, 0.1)(middle, middle**2))


def test_rows_past_the_checkpoint_are_cut_off_and_written_again(tmp_path):
    """What a killed process wrote after its checkpoint is gone, and the files end up as if it had not been killed."""
    run = finished_run(tmp_path, finished=False)
    kept = (run.path / "log.csv").read_text()
    for step in (20, 30):
        run.write("log.csv", row(step, -1.0))
        run.write("eval.csv", row(step, -1.0))
    again, norm = begin(tmp_path)
    assert (run.path / "log.csv").read_text() == (run.path / "eval.csv").read_text() == kept
    again.write("log.csv", row(20, 7.0))
    again.save({"norm": norm}, 2, finished=False)
    assert (run.path / "log.csv").read_text() == kept + "20,0,7.0\n"
    assert (run.path / "eval.csv").read_text() == kept
    third, _ = begin(tmp_path)  # its checkpoint knows the right lengths
    assert third.iteration == 2 and (run.path / "log.csv").read_text() == kept + "20,0,7.0\n"


def test_a_run_killed_before_its_first_checkpoint_starts_from_nothing(tmp_path):
    """Both files empty, and the header written again."""
    run, _ = begin(tmp_path)
    run.write("log.csv", row(10, -1.0))
    again, _ = begin(tmp_path)
    assert again.iteration == 0 and (run.path / "log.csv").read_text() == ""
    again.write("log.csv", row(10, 2.0))
    assert (run.path / "log.csv").read_text() == "step,agent,return\n10,0,2.0\n"


def test_two_processes_do_not_train_in_one_folder(tmp_path, capsys):
    """The second one is refused, whatever it was going to do, and leaves no trace; when the first one ends, it may."""
    first, norm = begin(tmp_path)
    first.write("log.csv", row(10))
    before = {path.name: path.read_bytes() for path in first.path.iterdir()}
    for overwrite in (False, True):
        second = Run(arguments(tmp_path, overwrite=overwrite), "baselines", "ppo")
        assert "another process" in refused(capsys, lambda second=second: second.resume({"norm": part()}, 10))
    assert {path.name: path.read_bytes() for path in first.path.iterdir()} == before
    first.save({"norm": norm}, 1, finished=False)
    del first, second
    alive.clear()  # the lock goes with the last reference
    again = Run(arguments(tmp_path), "baselines", "ppo")
    assert again.resume({"norm": part()}, 10) == 1
    again.unlock()


def test_a_folder_is_made_only_where_there_is_room(tmp_path, monkeypatch, capsys):
    """One line, and neither a new folder nor the loss of an old run; what that would leave free counts as room."""
    monkeypatch.setattr(baselines.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1000))
    assert "no room" in refused(capsys, lambda: opened(tmp_path).make_folder(room=1001))
    assert list(tmp_path.iterdir()) == []
    old = finished_run(tmp_path)
    sizes = {path.name: path.stat().st_size for path in old.path.iterdir()}
    run = opened(tmp_path, overwrite=True)
    assert "--buffer-size" in refused(capsys, lambda: run.make_folder(room=1001 + sum(sizes.values())))
    assert {path.name: path.stat().st_size for path in old.path.iterdir()} == sizes
    run.make_folder(room=1000 + sum(sizes.values()))
    assert list(old.path.iterdir()) == []


@pytest.mark.parametrize("resuming", [False, True])
def test_a_full_disk_costs_no_buffer_that_was_there(tmp_path, monkeypatch, capsys, resuming):
    """One line; a new file goes, an old one stays as it was."""
    path = tmp_path / "buffer"
    if resuming:
        ReplayBuffer(path, OBS, ACT, size=20, resuming=False).add(numbered(0, 5))
    before = path.read_bytes() if resuming else None

    def full(*rest):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(baselines.os, "posix_fallocate", full)
    assert "no room" in refused(capsys, lambda: ReplayBuffer(path, OBS, ACT, size=20, resuming=resuming))
    assert path.exists() == resuming and (not resuming or path.read_bytes() == before)


def test_another_robot_under_the_same_name_is_refused(tmp_path, capsys):
    """The content of the MJCF file counts; its name may stay."""
    robot = tmp_path / "robot.xml"
    robot.write_text("<mujoco/>")
    finished_run(tmp_path, finished=False, xml_file=str(robot))
    begin(tmp_path, xml_file=str(robot))
    robot.write_text("<mujoco> </mujoco>")
    assert "robot.xml is not what it was" in refused(capsys, lambda: begin(tmp_path, xml_file=str(robot)))
    begin(tmp_path, xml_file=str(robot), overwrite=True)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_compiler_that_comes_or_goes_is_mentioned(tmp_path, capsys, compiled):
    """args.compile tells whether anything is compiled; config.json only what was asked for."""
    run, norm = begin(tmp_path)
    run.args.compile = compiled
    run.save({"norm": norm}, 1, finished=False)
    for now in (compiled, not compiled):
        again = opened(tmp_path)
        again.args.compile = now
        again.resume({"norm": part()}, 10)
        said = f"was {'' if compiled else 'not '}compiled so far" in capsys.readouterr().out
        assert said == (now != compiled)


def test_a_finished_run_says_so(tmp_path):
    """There is nothing left to be done."""
    finished_run(tmp_path)
    assert Run(arguments(tmp_path), "baselines", "ppo").finished


def test_other_settings_are_refused_by_name(tmp_path, capsys):
    """Not those that cannot change a result."""
    run = finished_run(tmp_path, finished=False)
    before = {path.name: path.read_bytes() for path in run.path.iterdir()}
    err = refused(capsys, lambda: begin(tmp_path, gamma=0.5, clip=0.3))
    assert "gamma was 0.99, is now 0.5" in err and "clip was 0.2, is now 0.3" in err and "--overwrite" in err
    assert {path.name: path.read_bytes() for path in run.path.iterdir()} == before
    begin(tmp_path, threads=1, jobs=5, checkpoint_every=1)


def test_other_versions_are_only_mentioned(tmp_path, capsys):
    """A note, and the run goes on."""
    run = finished_run(tmp_path, finished=False)
    config = json.loads((run.path / "config.json").read_text())
    config["versions"]["mujoco"] = "0.1"
    (run.path / "config.json").write_text(json.dumps(config))
    again, _ = begin(tmp_path)
    assert again.iteration == 1 and "other versions" in capsys.readouterr().out


def cut(path):
    path.write_bytes(path.read_bytes()[:-50])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("checkpoint.pt", cut),
        ("checkpoint.pt", lambda path: path.write_bytes(b"")),
        ("checkpoint.pt", lambda path: torch.save({"state": {}}, path)),
        ("config.json", lambda path: path.write_text("{")),
        ("config.json", lambda path: path.write_text("{}")),
        ("config.json", lambda path: path.write_text("[]")),
        ("log.csv", lambda path: path.write_text("step")),
        ("eval.csv", lambda path: path.unlink()),
    ],
)
def test_a_damaged_run_is_refused(tmp_path, capsys, name, damage):
    """One line that names the file, and how to go on."""
    run = finished_run(tmp_path, finished=False)
    damage(run.path / name)
    err = refused(capsys, lambda: begin(tmp_path))
    assert name in err and "--overwrite" in err
    begin(tmp_path, overwrite=True)


def test_a_checkpoint_of_another_network_is_refused(tmp_path, capsys):
    """Shapes that do not fit, or a part that it does not have."""
    finished_run(tmp_path, finished=False)
    for parts in ({"norm": RunningNorm((3,))}, {"actor": part()}):
        err = refused(capsys, lambda parts=parts: opened(tmp_path).resume(parts, 10))
        assert "does not fit" in err


def test_what_is_not_a_number_ends_the_run(tmp_path, capsys):
    """A loss or a weight; status 1, for it is not the caller's mistake."""
    run, _ = begin(tmp_path)
    fine, bad = torch.zeros(3), torch.tensor([0.0, math.nan, 0.0])
    run.check_finite(10, 0, [1.0, 2.0], fine)
    for values, parameters in (([1.0, math.nan], fine), ([math.inf], fine), ([1.0], bad)):
        assert "step 10, agent 1" in refused(capsys, lambda v=values, p=parameters: run.check_finite(10, 1, v, p), status=1)


def test_find_runs_finds_finished_runs_with_the_same_settings(tmp_path, capsys):
    """Any environment and seed, in order; others are counted, not used."""
    for seed in (10, 9, 2):
        finished_run(tmp_path, seed=seed)
    finished_run(tmp_path, env="Walker2d-v4")
    finished_run(tmp_path, runs=str(tmp_path / "runs" / "deeper"), seed=1, checkpoint_every=7)
    for changes in ({"seed": 11, "gamma": 0.5}, {"seed": 12, "total_steps": 5}, {"seed": 13, "finished": False}, {"eps_tr": 0.2}):
        finished_run(tmp_path, **changes)
    found = find_runs(arguments(tmp_path), "baselines", ("env", "algo"))
    assert list(found) == [("Hopper-v4", "ppo"), ("Walker2d-v4", "ppo")]
    assert [path.name.rpartition("seed")[2] for path in found["Hopper-v4", "ppo"]] == ["1", "2", "9", "10"]
    assert "4 runs" in capsys.readouterr().out
    assert find_runs(arguments(tmp_path), "p2pdrl", ("env",)) == {}


def test_find_runs_groups_by_what_it_is_asked_for(tmp_path, capsys):
    """By any settings, in the order of their values; what is neither named nor free nor compared is as in args."""
    made = {}
    for clip, gamma, seed in ((0.2, 0.99, 2), (0.2, 0.99, 1), (0.1, 0.99, 1), (0.2, 0.5, 1), (0.1, 0.5, 4), (0.3, 0.99, 9)):
        runs = str(tmp_path / "runs" / f"{clip}-{gamma}")
        changes = {"clip": clip, "gamma": gamma, "seed": seed}
        made[clip, gamma, seed] = finished_run(tmp_path, runs=runs, jobs=7, evaluations=3, **changes).path
    finished_run(tmp_path, env="Walker2d-v4")

    found = find_runs(arguments(tmp_path), "baselines", ("clip",))
    expected = {(0.1,): [(0.1, 0.99, 1)], (0.2,): [(0.2, 0.99, 1), (0.2, 0.99, 2)], (0.3,): [(0.3, 0.99, 9)]}
    assert found == {key: [made[each] for each in runs] for key, runs in expected.items()} and list(found) == list(expected)
    assert "3 runs" in capsys.readouterr().out

    found = find_runs(arguments(tmp_path, clip=0.7), "baselines", ("gamma", "clip"))
    keys = [(0.5, 0.1), (0.5, 0.2), (0.99, 0.1), (0.99, 0.2), (0.99, 0.3)]
    assert list(found) == keys and found[0.99, 0.2] == [made[0.2, 0.99, 1], made[0.2, 0.99, 2]]
    assert "1 runs" in capsys.readouterr().out


def test_find_runs_refuses_a_group_of_several_learning_rates(tmp_path, capsys):
    """One line says of which group, whether seeds repeat or not. Apart they are fine."""
    for seed, deeper in ((1, "same"), (2, "other")):
        runs = tmp_path / deeper
        finished_run(tmp_path, seed=1, runs=str(runs / "a"))
        finished_run(tmp_path, seed=seed, runs=str(runs / "b"), learning_rate=1.0)
        err = refused(capsys, lambda: find_runs(arguments(tmp_path, runs=str(runs)), "baselines", ("env", "clip")))
        assert "env Hopper-v4, clip 0.2" in err and "--runs" in err
        assert len(find_runs(arguments(tmp_path, runs=str(runs)), "baselines", ("learning_rate",))) == 2
        assert len(find_runs(arguments(tmp_path, runs=str(runs / "b")), "baselines", ("env",))) == 1


def test_find_runs_takes_the_run_of_a_seed_that_was_evaluated_most_often(tmp_path):
    """Wherever it lies; unfinished ones do not count; seeds stay in order, each once."""
    made = {}
    for folder, seed, evaluations in (("a", 2, 4), ("b", 2, 20), ("c", 2, 5), ("a", 1, 9), ("b", 1, 4), ("c", 3, 1)):
        runs = str(tmp_path / "runs" / folder)
        made[folder, seed] = finished_run(tmp_path, runs=runs, seed=seed, evaluations=evaluations).path
    finished_run(tmp_path, runs=str(tmp_path / "runs" / "d"), seed=3, evaluations=30, finished=False)
    found = find_runs(arguments(tmp_path), "baselines", ("env",))
    assert found == {("Hopper-v4",): [made["a", 1], made["b", 2], made["c", 3]]}


def test_a_snapshot_is_beside_the_checkpoint(tmp_path):
    """Plain states by step; what the actors learn later does not reach it; it may be written twice."""
    run, _ = begin(tmp_path)
    actors = [networks(seed)[0] for seed in (0, 1)]
    expected = copy.deepcopy([actor.state_dict() for actor in actors])
    run.snapshot(30, actors)
    with torch.no_grad():
        actors[0].log_std.add_(1.0)
    run.snapshot(40, actors[:1])
    saved = torch.load(run.path / "policies-30.pt", weights_only=True)
    assert len(saved) == 2 and all(state.keys() == each.keys() for state, each in zip(saved, expected))
    assert all(torch.equal(state[name], value) for state, each in zip(saved, expected) for name, value in each.items())
    (later,) = torch.load(run.path / "policies-40.pt", weights_only=True)
    assert torch.equal(later["log_std"], expected[0]["log_std"] + 1)
    run.snapshot(30, actors[1:])
    assert len(torch.load(run.path / "policies-30.pt", weights_only=True)) == 1 and not list(run.path.glob(".*"))


def test_runs_made_on_a_gpu_are_found_without_one(tmp_path, monkeypatch):
    """A figure of them may be drawn anywhere."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        finished_run(tmp_path)
    assert len(find_runs(arguments(tmp_path), "baselines", ("env",))) == 1


# Curves --------------------------------------------------------------------------------------------------


def write_csv(path, names, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([names, *rows])


def test_read_csv(tmp_path):
    """Columns as floats; a header alone or an empty file has no columns."""
    write_csv(tmp_path / "a.csv", ["step", "return"], [[10, -0.5], [20, 1e3]])
    columns = read_csv(tmp_path / "a.csv")
    assert {name: column.tolist() for name, column in columns.items()} == {"step": [10, 20], "return": [-0.5, 1000]}
    write_csv(tmp_path / "b.csv", ["step"], [])
    assert read_csv(tmp_path / "b.csv") == {}


def test_smooth():
    """Mean of the last values, of fewer at the beginning: by hand, and by a loop."""
    assert smooth(np.array([1.0, 3.0, 5.0, 10.0]), 2).tolist() == [1, 2, 4, 7.5]
    values = np.random.default_rng(0).normal(size=50)
    expected = [np.mean(values[max(0, i - 19) : i + 1]) for i in range(50)]
    np.testing.assert_allclose(smooth(values, 20), expected, rtol=1e-9)


def test_bootstrap_interval():
    """Contains the mean, shrinks as 1 / sqrt(n), is a point where all values agree, is the same every time."""
    rng = np.random.default_rng(0)
    widths = []
    for number in (10, 1000):
        values = rng.normal(3.0, 2.0, (number, 4))
        low, high = bootstrap(values)
        assert low.shape == (4,) and (low < values.mean(0)).all() and (values.mean(0) < high).all()
        assert np.array_equal(low, bootstrap(values)[0])
        widths.append((high - low).mean())
    assert widths[1] == pytest.approx(2 * 1.96 * 2.0 / math.sqrt(1000), rel=0.1)
    assert 5 < widths[0] / widths[1] < 14
    low, high = bootstrap(np.full((5, 2), 7.0))
    assert low.tolist() == high.tolist() == [7, 7]


def test_bootstrap_covers_the_true_mean_nineteen_times_in_twenty():
    """400 samples of 30 numbers each; the percentile interval is known to be slightly too short."""
    low, high = bootstrap(np.random.default_rng(1).exponential(1.0, (30, 400)))
    assert 0.88 < np.mean((low < 1) & (1 < high)) < 0.98


def test_training_curve(tmp_path):
    """Each agent smoothed over 20 iterations by itself, then their mean; nothing beyond the end."""
    rng, steps = np.random.default_rng(0), np.arange(10, 310, 10)
    returns = rng.normal(size=(30, 2))
    rows = [[step, agent, returns[i, agent]] for i, step in enumerate(steps) for agent in (0, 1)]
    write_csv(tmp_path / "log.csv", ["step", "agent", "return"], rows)
    means = np.array([returns[max(0, i - 19) : i + 1].mean(0) for i in range(30)])
    np.testing.assert_allclose(training_curve(tmp_path, steps, agent=1), means[:, 1])
    np.testing.assert_allclose(training_curve(tmp_path, steps), means.mean(1))
    last, before = training_curve(tmp_path, steps[-2:], agent=1, rows=1)[::-1]
    np.testing.assert_allclose(training_curve(tmp_path, steps[-1:], agent=1, rows=2), [(last + before) / 2])
    between = training_curve(tmp_path, np.array([15, 300, 301]), agent=0)
    np.testing.assert_allclose(between, [means[:2, 0].mean(), means[29, 0], np.nan])


def test_training_curve_of_another_column(tmp_path):
    """Not of the return, and smoothed like it."""
    rng, steps = np.random.default_rng(0), np.arange(10, 310, 10)
    values = rng.normal(size=(30, 2))
    rows = [[step, agent, 5.0, values[i, agent]] for i, step in enumerate(steps) for agent in (0, 1)]
    write_csv(tmp_path / "log.csv", ["step", "agent", "return", "entropy"], rows)
    means = np.array([values[max(0, i - 19) : i + 1].mean(0) for i in range(30)])
    np.testing.assert_allclose(training_curve(tmp_path, steps, column="entropy"), means.mean(1))
    np.testing.assert_allclose(training_curve(tmp_path, steps, agent=1, column="entropy"), means[:, 1])
    assert training_curve(tmp_path, steps).tolist() == [5] * 30


def test_test_curve_is_the_mean_over_peers_and_domains_at_each_evaluation(tmp_path):
    """Against a loop; only rows of the strength that is asked for."""
    rng, table = np.random.default_rng(0), {}
    for step in (200, 1000, 30):
        for agent in (0, 1, 2):
            for eps in (0.0, 0.2):
                for domain in (0, 1):
                    table[step, agent, eps, domain] = rng.normal()
    names = ["step", "agent", "eps_te", "domain", "return"]
    write_csv(tmp_path / "eval.csv", names, [[*key, value] for key, value in table.items()])
    for eps in (0.0, 0.2):
        steps, values = baselines.test_curve(tmp_path, eps)
        assert steps.tolist() == [30, 200, 1000]
        for step, value in zip(steps, values):
            expected = sum(table[step, agent, eps, domain] for agent in (0, 1, 2) for domain in (0, 1)) / 6
            assert value == pytest.approx(expected, rel=1e-9)


def kept_figures(monkeypatch) -> list:
    """Where each figure that is saved from now on can be looked at."""
    kept, save = [], baselines.save_figure
    monkeypatch.setattr(baselines, "save_figure", lambda figure, path: kept.append(figure) or save(figure, path))
    return kept


def test_the_centre_is_called_so(monkeypatch, tmp_path, capsys):
    """Table and figure know a policy that is no agent: agents have learning curves, the centre has test returns."""
    assert (baselines.name_of(-1.0), baselines.name_of(0.0), baselines.name_of(11)) == ("centre ", "agent 0", "agent 11")
    write_csv(tmp_path / "log.csv", ["step", "agent", "return"], [[step, i, i + step] for step in (10, 20) for i in (0, 1)])
    names = ["step", "agent", "eps_te", "domain", "return"]
    write_csv(tmp_path / "eval.csv", names, [[20, -1, eps, i, 100 * eps + i] for eps in (0, 0.5) for i in (0, 2)])
    baselines.print_table(read_csv(tmp_path / "eval.csv"))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("centre")]
    assert line.split() == ["centre", "1", "+-", "1", "51", "+-", "1"]
    kept = kept_figures(monkeypatch)
    baselines.draw_run(tmp_path, "title")
    left, right = kept[0].axes
    assert [line.get_label() for line in left.lines] == ["agent 0", "agent 1"]
    assert [(line.get_label(), line.get_ydata().tolist()) for line in right.lines] == [("centre ", [1, 51])]
    assert len({line.get_color() for line in [*left.lines, *right.lines]}) == 3


def test_figure_of_a_run_with_one_strength(monkeypatch, tmp_path):
    """There is nothing to plot against: the right panel has each evaluation, mean over domains, and says which strength."""
    write_csv(tmp_path / "log.csv", ["step", "agent", "return"], [[step, i, i + step] for step in (10, 20) for i in (0, 1)])
    names = ["step", "agent", "eps_te", "domain", "return"]
    rows = [[step, i, 0.2, domain, 10 * step + i + domain] for step in (10, 20) for i in (0, 1) for domain in (0, 4)]
    write_csv(tmp_path / "eval.csv", names, rows)
    kept = kept_figures(monkeypatch)
    baselines.draw_run(tmp_path, "title")
    left, right = kept[0].axes
    drawn = [(line.get_label(), line.get_xdata().tolist(), line.get_ydata().tolist()) for line in right.lines]
    assert drawn == [("agent 0", [10, 20], [102, 202]), ("agent 1", [10, 20], [103, 203])]
    assert "eps_te = 0.2" in right.get_title() and right.get_xlabel() == left.get_xlabel()


def curves_run(folder, returns, **changes):
    """The folder of a run with these settings and training returns; (step, return) with mean actions at its end."""
    args = baselines.with_usual(baselines.Args(**changes), changes["algo"])
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"script": "baselines", "settings": baselines.settings_of(args)}))
    torch.save({"finished": True}, folder / "checkpoint.pt")
    write_csv(folder / "log.csv", ["step", "agent", "return"], [[100 * (i + 1), 0, value] for i, value in enumerate(returns)])
    names = ["step", "agent", "eps_te", "domain", "return"]
    write_csv(folder / "eval.csv", names, [[300, 0, 0.0, domain, returns[-1] + domain] for domain in (0, 2)])


def curves(monkeypatch, tmp_path, *arguments):
    """The axes that `baselines.py --curves` draws."""
    kept = kept_figures(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["baselines.py", "--curves", "--runs", str(tmp_path), *arguments])
    baselines.main()
    return kept[0].axes


def test_curves_of_all_algorithms(monkeypatch, tmp_path, capsys):
    """A panel for each environment, in it each algorithm with its own usual settings; runs with others are left out."""
    for seed in (0, 1):
        for i, algo in enumerate(("ppo", "ddpg", "sac")):
            curves_run(tmp_path / f"{algo}{seed}", [10 * i, 20 * i, 30 * i + 2 * seed], algo=algo, seed=seed)
    curves_run(tmp_path / "walker", [1, 2, 3], algo="sac", env="Walker2d-v4")
    curves_run(tmp_path / "small", [7, 7, 7], algo="sac", batch_size=128)
    curves_run(tmp_path / "long", [7, 7, 7], algo="ppo", total_steps=2_000_000)
    hopper, walker = curves(monkeypatch, tmp_path)
    assert (hopper.get_title(), walker.get_title()) == ("Hopper-v4", "Walker2d-v4")
    drawn = {line.get_label(): pytest.approx(line.get_ydata().tolist()) for line in hopper.lines}
    assert drawn == {"ddpg, 2 seeds": [10, 15, 61 / 3], "ppo, 2 seeds": [0, 0, 1 / 3], "sac, 2 seeds": [20, 30, 121 / 3]}
    assert [line.get_label() for line in walker.lines] == ["sac, 1 seed"]
    told = capsys.readouterr().out
    assert "Hopper-v4 sac: return with mean actions at eps_te = 0, by seed: 61 63; mean 62" in told
    assert len(curves(monkeypatch, tmp_path, "--algo", "sac")[0].lines) == 3
    (only,) = curves(monkeypatch, tmp_path, "--batch-size", "128")
    assert [(line.get_label(), line.get_ydata().tolist()) for line in only.lines] == [("sac, 1 seed", [7, 7, 7])]


def test_curves_of_no_run_say_what_makes_some(monkeypatch, tmp_path, capsys):
    """And that command, given to a shell, has the settings that were asked for."""
    with pytest.raises(SystemExit) as stopped:
        curves(monkeypatch, tmp_path, "--algo", "sac", "--total-steps", "2e5", "--eps-te", "0")
    command = re.search("python (baselines.py .*) makes some", capsys.readouterr().err)[1]
    assert stopped.value.code == 2
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    args = parse_args(baselines.Args, "")
    assert (args.algo, args.total_steps, args.eps_te, args.seeds) == ("sac", 200_000, (0.0,), (0, 1, 2))
    assert args.runs == str(tmp_path) and not args.curves


def test_a_figure_is_closed_once_it_is_saved(tmp_path):
    """A long run draws many; matplotlib keeps, and complains about, those that stay open."""
    import matplotlib.pyplot as plt

    figure, axes = baselines.new_figure(columns=2, rows=2)
    baselines.save_figure(figure, tmp_path / "new" / "figure.png")
    assert len(axes) == 4 and (tmp_path / "new" / "figure.png").stat().st_size > 1000
    assert plt.get_fignums() == []


# SAC -----------------------------------------------------------------------------------------------------

SCALE = np.array([1.0, 0.4, 2.0], np.float32)


def sac_learner(seed=0):
    """Outputs that are not near zero, a target that differs from the critic, a temperature that is not one."""
    torch.manual_seed(seed)
    args = Args(compile=False, **baselines.USUAL["sac"])
    learner = SACLearner(OBS, SCALE, args)
    with torch.no_grad():
        for vector in learner.vectors[:3]:
            vector.add_(0.03 * torch.randn_like(vector))
        learner.temperature["log_alpha"].fill_(-0.5)
    return learner, args


def tanh_normal(mean, log_std):
    """The squashed policy as torch has it; in float64 exact for what is not too near the edges."""
    base = torch.distributions.Normal(mean.double(), log_std.double().exp())
    return torch.distributions.TransformedDistribution(base, torch.distributions.TanhTransform(cache_size=1))


def slow_sample(actor, obs, noise):
    """Action in (-1, 1) and its log-probability for one observation (obs,) and noise (act,), in float64."""
    with torch.no_grad():
        out = actor.net(obs[None])[0].double()
    mean, log_std = out[:ACT], out[ACT:]
    assert -20 < log_std.min() and log_std.max() < 2
    distribution = tanh_normal(mean, log_std)
    action = distribution.transforms[0](mean + log_std.exp() * noise.double())
    return action, distribution.log_prob(action).sum().item()


def slow_minimum(critic, obs, action):
    """The smaller one of both values of one observation and of an action in (-1, 1), and which it is."""
    inputs = torch.cat([obs, action.float() * torch.tensor(SCALE)])[None]
    values = [net(inputs).item() for net in critic.nets]
    return min(values), int(np.argmin(values))


def test_sac_networks_are_the_papers():
    """Two hidden layers of 256, no normaliser, twin critics that differ, a target that begins as the critic, alpha 1."""
    learner = SACLearner(OBS, SCALE, Args(**baselines.USUAL["sac"]))
    nets = learner.actor.net, *learner.critic.nets
    sizes = [[layer.out_features for layer in net if isinstance(layer, nn.Linear)] for net in nets]
    assert sizes == [[256, 256, 2 * ACT], [256, 256, 1], [256, 256, 1]]
    assert not any(isinstance(module, RunningNorm) for module in learner.actor.modules())
    first, second = learner.critic.nets
    assert not torch.equal(first[0].weight, second[0].weight)
    _, critic, target, _ = learner.vectors
    assert torch.equal(critic, target) and critic.data_ptr() != target.data_ptr()
    assert learner.temperature["log_alpha"].item() == 0 and learner.target_entropy == -ACT
    assert (Args.learning_rate, Args.gamma, Args.buffer_size) == (3e-4, 0.99, 1_000_000)
    usual = Args(**baselines.USUAL["sac"])
    assert (usual.tau, usual.batch_size, usual.warm_up) == (0.005, 256, 10_000)
    adams = learner.actor_adam, learner.critic_adam, learner.temperature_adam
    assert all(adam.learning_rate == 3e-4 and adam.eps == 1e-8 for adam in adams)


def test_log_std_is_clamped():
    """To [-20, 2], whatever the network says."""
    learner, _ = sac_learner()
    with torch.no_grad():
        learner.actor.net[-1].bias[ACT:] = torch.tensor([-1e3, 1e3, 0.5])
    mean, log_std = learner.actor(torch.randn(4, OBS))
    assert mean.shape == log_std.shape == (4, ACT) and mean.abs().max() < 10
    assert (log_std[:, 0] == -20).all() and (log_std[:, 1] == 2).all() and (log_std[:, 2].abs() < 2).all()


def test_squashed_actions_and_their_log_probabilities():
    """Against torch's TransformedDistribution in float64, in float64 and in single precision."""
    torch.manual_seed(0)
    mean, log_std, noise = torch.randn(3, 200, ACT, dtype=torch.float64)
    actions, log_probs = baselines.squash((mean, log_std.clamp(max=0.5)), noise)
    distribution = tanh_normal(mean, log_std.clamp(max=0.5))
    expected = distribution.transforms[0](mean + distribution.base_dist.scale * noise)
    torch.testing.assert_close(actions, expected)
    torch.testing.assert_close(log_probs, distribution.log_prob(expected).sum(-1), rtol=1e-9, atol=1e-9)
    single = baselines.squash((mean.float(), log_std.clamp(max=0.5).float()), noise.float())
    torch.testing.assert_close(single[1].double(), log_probs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mean", [-50.0, -8.0, 0.0, 8.0, 50.0])
@pytest.mark.parametrize("log_std", [-20.0, 2.0])
def test_log_probabilities_at_the_edges(mean, log_std):
    """Finite with finite gradients; far out, where 1 - tanh(u)^2 is 4 exp(-2 |u|), they are what that says."""
    policy = [torch.full((5, 1), value, requires_grad=True) for value in (mean, log_std)]
    noise = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0])[:, None]
    actions, log_probs = baselines.squash(policy, noise)
    gradients = torch.autograd.grad(log_probs.sum(), policy)
    assert all(tensor.isfinite().all() for tensor in (actions, log_probs, *gradients)) and actions.abs().max() <= 1
    u = mean + math.exp(log_std) * noise[:, 0].double()
    expected = -noise[:, 0].double() ** 2 / 2 - log_std - math.log(2 * math.pi) / 2 + 2 * u.abs() - math.log(4)
    far = u.abs() > 5
    torch.testing.assert_close(log_probs.double()[far], expected[far], rtol=1e-4, atol=1e-4)
    assert far.any() or (mean, log_std) == (0.0, -20.0)


@pytest.mark.parametrize(("mean", "log_std"), [(0.7, -0.3), (-1.5, 0.4), (0.0, -3.0)])
def test_the_squashed_density_integrates_to_one(mean, log_std):
    """Over (-1, 1), and its mean is that of samples."""
    a = torch.linspace(-1, 1, 400_003, dtype=torch.float64)[1:-1, None]
    policy = torch.tensor([[mean]], dtype=torch.float64), torch.tensor([[log_std]], dtype=torch.float64)
    actions, log_probs = baselines.squash(policy, (a.atanh() - mean) / math.exp(log_std))
    torch.testing.assert_close(actions, a)
    density = log_probs.exp()
    assert torch.trapezoid(density, a[:, 0]).item() == pytest.approx(1, abs=1e-3)
    noise = torch.as_tensor(np.random.default_rng(0).standard_normal((40_000, 1)))
    sampled, _ = baselines.squash(policy, noise)
    assert sampled.mean().item() == pytest.approx(torch.trapezoid(density * a[:, 0], a[:, 0]).item(), abs=0.01)


def test_the_squashed_policy_in_numpy_is_the_actor():
    """With noise and without, from raw observations, times the scale of the actions; log_std clamped; no snapshot."""
    learner, _ = sac_learner()
    with torch.no_grad():
        learner.actor.net[-1].bias[ACT:] = torch.tensor([-30.0, 5.0, 0.3])
    policy, rng = baselines.squashed_policy(learner.actor), np.random.default_rng(0)
    obs, noise = rng.normal(1, 2, (40, OBS)), rng.standard_normal((40, ACT)).astype(np.float32)
    noise[:5, :2] = 0
    for each in (noise, np.zeros_like(noise)):
        with torch.no_grad():
            actions, _ = baselines.squash(learner.actor(torch.tensor(obs, dtype=torch.float32)), torch.tensor(each))
        expected = (actions * torch.tensor(SCALE)).numpy()
        said = [policy(row, noise) for row, noise in zip(obs, each)]
        np.testing.assert_allclose(said, expected, rtol=1e-4, atol=1e-5)
        assert said[0].dtype == np.float32 and expected[:, 2].std() > 0.2
    np.testing.assert_array_equal(policy(obs[0]), said[0])
    with torch.no_grad():
        learner.vectors[0].add_(0.1)
    np.testing.assert_array_equal(policy(obs[0]), baselines.squashed_policy(learner.actor)(obs[0]))
    assert not np.allclose(policy(obs[0]), said[0])


def test_sac_targets_sample_by_sample():
    """Eq. (6): r + gamma (smaller target value - alpha log pi), and r alone after a death; no gradient.

    By the target critic and the present actor; where the episode was cut but nobody died, the future counts.
    """
    learner, _ = sac_learner(1)
    batch, alpha, noise = transitions(), torch.tensor([0.3]), torch.randn(12, ACT)
    targets = baselines.sac_targets(learner.actor, learner.target_critic, alpha, batch, noise, 0.9)
    smaller = set()
    for n in range(len(targets)):
        action, log_prob = slow_sample(learner.actor, batch.next_obs[n], noise[n])
        value, which = slow_minimum(learner.target_critic, batch.next_obs[n], action)
        future = value - 0.3 * log_prob
        expected = batch.rewards[n].item() + (0 if n % 3 == 0 else 0.9 * future)
        assert targets[n].item() == pytest.approx(expected, abs=1e-4)
        assert abs(value - slow_minimum(learner.critic, batch.next_obs[n], action)[0]) > 1e-3
        smaller.add(which)
    assert smaller == {0, 1} and not targets.requires_grad


def test_sac_critic_loss():
    """Eq. (5): for each critic half the mean square error, both added."""
    learner, _ = sac_learner()
    batch, targets = transitions(), torch.randn(12)
    expected = 0.0
    for net in learner.critic.nets:
        errors = [net(torch.cat([batch.obs[n], batch.actions[n]])[None]).item() - targets[n].item() for n in range(12)]
        expected += 0.5 * np.mean(np.square(errors))
    assert baselines.sac_critic_loss(learner.critic, batch, targets).item() == pytest.approx(expected, rel=1e-4)


def test_sac_actor_loss():
    """Eq. (9): mean of alpha log pi - the smaller value, for each sample of its own; gradients by finite differences."""
    learner, _ = sac_learner()
    obs, noise, alpha = torch.randn(12, OBS), torch.randn(12, ACT), torch.tensor([0.3])
    loss, log_probs = baselines.sac_actor_loss(learner.actor, learner.critic, alpha, obs, noise)
    terms, smaller = [], set()
    for n in range(12):
        action, log_prob = slow_sample(learner.actor, obs[n], noise[n])
        value, which = slow_minimum(learner.critic, obs[n], action)
        terms.append(0.3 * log_prob - value)
        assert log_probs[n].item() == pytest.approx(log_prob, abs=1e-3)
        smaller.add(which)
    assert loss.item() == pytest.approx(np.mean(terms), abs=1e-4) and smaller == {0, 1}

    actor, critic = copy.deepcopy(learner.actor).double(), copy.deepcopy(learner.critic).double()
    obs, noise, alpha = obs.double(), noise.double(), alpha.double()
    baselines.sac_actor_loss(actor, critic, alpha, obs, noise)[0].backward()
    last, first = actor.net[-1].bias, actor.net[0].weight
    for parameter, index in ((last, 1), (last, 4), (first, 17), (actor.net[2].weight, 300)):
        slope = finite_difference(lambda: baselines.sac_actor_loss(actor, critic, alpha, obs, noise)[0], parameter, index)
        assert parameter.grad.view(-1)[index].item() == pytest.approx(slope, rel=1e-4, abs=1e-8) and slope != 0


def test_temperature_loss():
    """Eq. (18): its gradient by finite differences; alpha falls while the entropy is above the target, else it rises."""
    log_alpha = torch.tensor([-0.7], dtype=torch.float64, requires_grad=True)
    log_probs = torch.tensor([1.0, 2.5, -0.5], dtype=torch.float64, requires_grad=True)
    for target, entropy_is in ((-3.0, "above"), (1.0, "below")):
        loss = baselines.temperature_loss(log_alpha, log_probs, target)
        assert loss.item() == pytest.approx(np.mean([math.exp(-0.7) * (-value - target) for value in (1.0, 2.5, -0.5)]))
        (slope,) = torch.autograd.grad(loss, log_alpha)
        expected = finite_difference(lambda: baselines.temperature_loss(log_alpha, log_probs, target), log_alpha, 0)
        assert slope.item() == pytest.approx(expected, rel=1e-6)
        assert slope.item() > 0 if entropy_is == "above" else slope.item() < 0
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(baselines.temperature_loss(log_alpha, log_probs, 1.0), log_probs)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_sac_update_the_ordinary_way(threads):
    """Four updates against torch's Adam on separate modules in float64: actor, critic, target, temperature, the log.

    All gradients are those at the old parameters; the target moves by tau towards the new critic.
    """
    learner, args = sac_learner()
    args.threads = threads
    update, networks = SACUpdate(args), (learner.actor, learner.critic, learner.target_critic)
    actor, critic, target = (copy.deepcopy(network).double() for network in networks)
    log_alpha = torch.full((1,), -0.5, dtype=torch.float64, requires_grad=True)
    adams = [torch.optim.Adam(group, lr=3e-4) for group in (actor.parameters(), critic.parameters(), [log_alpha])]
    start = [vector.detach().clone() for vector in learner.vectors]
    scale = torch.tensor(SCALE).double()

    def sample(obs, noise):
        mean, log_std = actor.net(obs).chunk(2, -1)
        distribution = tanh_normal(mean, log_std)
        action = distribution.transforms[0](mean + log_std.exp() * noise)
        return action * scale, distribution.log_prob(action).sum(-1)

    def both(network, obs, actions):
        return [net(torch.cat([obs, actions], -1)).squeeze(-1) for net in network.nets]

    for seed in range(4):
        single, noise = transitions(steps=16, seed=seed), torch.randn(2, 16, ACT, generator=torch.Generator().manual_seed(seed))
        batch = Transitions(*(column.double() for column in single))
        alpha = log_alpha.detach().exp()
        with torch.no_grad():
            actions, log_probs = sample(batch.next_obs, noise[0].double())
            futures = torch.minimum(*both(target, batch.next_obs, actions)) - alpha * log_probs
            targets = batch.rewards + 0.99 * (1 - batch.terminated) * futures
        critic_loss = sum(nn.functional.mse_loss(values, targets) / 2 for values in both(critic, batch.obs, batch.actions))
        actions, log_probs = sample(batch.obs, noise[1].double())
        actor_loss = (alpha * log_probs - torch.minimum(*both(critic, batch.obs, actions))).mean()
        alpha_loss = (-log_alpha.exp() * (log_probs.detach() - ACT)).mean()
        for loss, adam in zip((actor_loss, critic_loss, alpha_loss), adams):
            parameters = adam.param_groups[0]["params"]
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters, retain_graph=True)):
                parameter.grad = gradient
        for adam in adams:
            adam.step()
        with torch.no_grad():
            for old, new in zip(target.parameters(), critic.parameters()):
                old.mul_(0.995).add_(0.005 * new)
        told = update(learner, single, noise)
        expected = [critic_loss.item(), actor_loss.item(), -log_probs.mean().item(), alpha.item()]
        assert told.tolist() == pytest.approx(expected, rel=1e-3)
    slow = [torch.cat([p.detach().flatten() for p in network.parameters()]) for network in (actor, critic, target)]
    # Adam's step of 3e-4 is unsure where a gradient is hardly more than float32's rounding.
    near, far = (1e-5, 1e-5, 1e-7, 2e-6), (1e-3, 1e-3, 1e-5, 1e-3)
    for vector, expected, before, atol, moved in zip(learner.vectors, [*slow, log_alpha.detach()], start, near, far):
        torch.testing.assert_close(vector.detach().double(), expected, rtol=0, atol=atol)
        assert (vector - before).abs().max() > moved
    for network in networks:
        assert all(parameter.grad is None for parameter in network.parameters())


def test_a_sac_update_goes_along_its_own_gradients_only():
    """With plain gradient steps in Adam's place: the critic feels nothing of the actor's loss, nor the other way round."""
    learner, args = sac_learner()
    batch, noise, alpha = transitions(), torch.randn(2, 12, ACT), torch.tensor(-0.5).exp()

    def plain(vector, gradient):
        return vector.detach() - gradient

    targets = baselines.sac_targets(learner.actor, learner.target_critic, alpha, batch, noise[0], 0.99)
    loss, log_probs = baselines.sac_actor_loss(learner.actor, learner.critic, alpha, batch.obs, noise[1])
    losses = loss, baselines.sac_critic_loss(learner.critic, batch, targets)
    actor, critic, vectors = learner.actor, learner.critic, learner.vectors
    critic_half = actor, critic, learner.target_critic, plain, vectors, batch, noise[0], 0.99, 0.005
    new_critic, new_target, _ = baselines.sac_critic_step(*critic_half)
    actor_half = actor, critic, plain, plain, vectors, batch.obs, noise[1], -3.0
    new_actor, new_log_alpha, _ = baselines.sac_actor_step(*actor_half)
    new = new_actor, new_critic, new_target, new_log_alpha
    for vector, moved, network, loss in zip(learner.vectors, new, (actor, critic), losses):
        network.zero_grad()
        loss.backward(retain_graph=True, inputs=list(network.parameters()))
        gradient = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
        torch.testing.assert_close(vector.detach() - moved, gradient, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(new[2], 0.995 * learner.vectors[2].detach() + 0.005 * new[1], rtol=0, atol=1e-6)
    slope = (-alpha * (log_probs.detach() - 3.0)).mean()
    torch.testing.assert_close(learner.vectors[3].detach() - new[3], slope[None], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_halves_of_a_sac_update_at_the_same_time(monkeypatch, threads, device):
    """The same bits; from each learner's second update on the actor's half is another thread's, if there are two.

    Each half waits until the other has begun. On a GPU, for which "meta" stands, it is always one after the other.
    """
    real, seen, begun = baselines.sac_critic_step, [], [threading.Event(), threading.Event()]
    at_once = threads > 1 and device == "cpu"

    def critic_step(*arguments):
        begun[0].set()
        assert not at_once or len(seen) < 2 or begun[1].wait(10)
        return real(*arguments)

    def actor_step(*arguments):
        begun[1].set()
        seen.append(threading.current_thread() is threading.main_thread())
        assert seen[-1] or begun[0].wait(10)
        return actor_half(*arguments)

    actor_half = baselines.sac_actor_step
    (first, args), (second, _), (slow, _) = sac_learner(0), sac_learner(1), sac_learner(0)
    monkeypatch.setattr(baselines, "sac_critic_step", critic_step)
    monkeypatch.setattr(baselines, "sac_actor_step", actor_step)
    args.threads, args.device = threads, device
    update = SACUpdate(args)
    for seed in range(3):
        batch, noise = transitions(seed=seed), torch.randn(2, 12, ACT, generator=torch.Generator().manual_seed(seed))
        for learner in (first, second):
            for event in begun:
                event.clear()
            told = update(learner, batch, noise)
            if learner is first:
                assert torch.equal(told, plain_update(real, actor_half, slow, batch, noise))
    assert seen == [True, True, *[not at_once] * 4]
    assert all(torch.equal(a, b) for a, b in zip(first.vectors, slow.vectors))


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_the_precision_of_products(precision):
    """It is set, and a product of the size of a hidden layer has the error that float32 or, at "medium", bfloat16 has."""
    before = torch.get_float32_matmul_precision()
    try:
        SACUpdate(Args(algo="sac", compile=False, threads=1, matmul_precision=precision, **baselines.USUAL["sac"]))
        assert torch.get_float32_matmul_precision() == precision
        a, b = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(0))
        exact = a.double() @ b.double()
        error = ((a @ b).double() - exact).abs().max() / exact.abs().max()
        assert 0 < error < (5e-6 if precision == "highest" else 1e-2)
    finally:
        torch.set_float32_matmul_precision(before)


def plain_update(critic_step, actor_step, learner, batch, noise):
    """One half after the other, and both before anything changes."""
    networks = learner.actor, learner.critic, learner.target_critic, learner.critic_adam
    critic = critic_step(*networks, learner.vectors, batch, noise[0], 0.99, 0.005)
    networks = learner.actor, learner.critic, learner.actor_adam, learner.temperature_adam
    actor = actor_step(*networks, learner.vectors, batch.obs, noise[1], learner.target_entropy)
    for vector, value in zip(learner.vectors, (actor[0], critic[0], critic[1], actor[1])):
        vector.data.copy_(value)
    return torch.cat([critic[2][None], actor[2]])


def test_rows_by_age(tmp_path, monkeypatch):
    """Age 0 is the newest, through several rounds of the buffer's file; a minibatch of SAC has its own noise."""
    monkeypatch.setattr(baselines, "SPARE", 7)
    buffer = ReplayBuffer(tmp_path / "buffer", OBS, ACT, size=20, resuming=False)
    for number in (5, 7, 7, 7, 7):
        buffer.add(numbered(buffer.count, buffer.count + number))
        ages = np.arange(len(buffer))
        assert buffer.at(ages)[:, 0].tolist() == list(range(buffer.count - 1, buffer.count - 1 - len(buffer), -1))
    assert buffer.at(np.array([[0, 1], [19, 3]]))[..., 2].tolist() == [[32, 31], [13, 29]]
    batch, noise = baselines.sac_batch(buffer, Args(batch_size=400), np.random.default_rng(0))
    assert noise.shape == (2, 400, ACT) and noise.dtype == torch.float32 and abs(noise.std().item() - 1) < 0.05
    assert not torch.equal(noise[0], noise[1])
    assert set(batch.rewards.tolist()) == set(range(13, 33)) and torch.equal(batch.rewards, batch.terminated)


def test_single_steps_of_a_stream_are_collected_ones(tmp_path):
    """The same rows and returns; an episode's return comes with its last step."""
    together, alone = stream_of(tmp_path / "a"), stream_of(tmp_path / "b")
    rows, returns = random_steps(together, 80, seed=0)
    actions, ended = np.random.default_rng(0).uniform(-1, 1, (80, 3)).astype(np.float32), []
    for t, action in enumerate(actions):
        episode, total = alone.episode, alone.step(action)
        assert (total is not None) == (alone.episode > episode) == bool(rows[t, -1])
        if total is not None:
            ended.append(total)
            assert alone.steps == 0 and alone.last_return == total
    assert np.array_equal(alone.buffer.latest(80), rows) and ended == returns and len(returns) > 2
    assert alone.state_dict() == together.state_dict()


def sac_settings(tmp_path, **changes):
    """A run of minutes in a second: rows of 40 steps, a learner that learns from step 50 on."""
    tiny = {"total_steps": 120, "warm_up": 50, "batch_size": 8, "eval_domains": 1, "eps_te": (0.0,), "evaluations": 1}
    return Args(algo="sac", compile=False, threads=1, runs=str(tmp_path / "runs"), **{"tau": 0.005} | tiny | changes)


def test_sac_is_a_plain_loop(tmp_path, monkeypatch):
    """To the bit against a loop of the test's own over the environment with a list as buffer.

    Random actions before the warm-up is over, then samples of the policy; from then on one update for each step.
    """
    monkeypatch.setattr(baselines, "ROW", 40)
    monkeypatch.setattr(baselines, "report", lambda run, title: None)
    args = sac_settings(tmp_path, seed=2, eps_tr=0.2, buffer_size=90)
    baselines.sac(args)
    (path,) = (tmp_path / "runs").iterdir()
    saved = torch.load(path / "checkpoint.pt", weights_only=True)
    log = read_csv(path / "log.csv")

    torch.manual_seed(2)
    learner, plain = SACLearner(11, np.ones(3, np.float32), args), PlainEpisodes(make_env("Hopper-v4", 0.2), 2, 0.2)
    rows = plain.rows
    first = copy.deepcopy(learner.vectors)

    def updates(rng):
        ages = rng.integers(min(len(rows), 90), size=8)
        batch = torch.as_tensor(np.stack([rows[-1 - age] for age in ages]))
        batch = Transitions(batch[:, :11], batch[:, 11:14], batch[:, 14], batch[:, 15:26], batch[:, 26])
        noise = torch.as_tensor(rng.standard_normal((2, 8, 3), dtype=np.float32))
        return SACUpdate(args)(learner, batch, noise).numpy()

    for iteration in range(3):
        acting, rng = np.random.default_rng([2, 0, iteration, 1]), np.random.default_rng([2, 0, iteration, 0])
        told, before = [], len(plain.returns)
        for t in range(40 * iteration, 40 * iteration + 40):
            if t < 50:
                action = acting.uniform(-1, 1, 3).astype(np.float32)
            else:
                action = baselines.squashed_policy(learner.actor)(plain.obs, acting.standard_normal(3, dtype=np.float32))
            plain.step(action)
            if t >= 50:
                told.append(updates(rng))
        returns = plain.returns[before:]
        expected = np.mean(returns) if returns else math.nan
        assert log["return"][iteration] == pytest.approx(expected, nan_ok=True)
        assert log["episodes"][iteration] == len(returns)
        means = np.mean(told, axis=0) if told else np.zeros(4)
        for name, value in zip(("critic_loss", "actor_loss", "entropy", "alpha"), means):
            assert log[name][iteration] == pytest.approx(value, rel=1e-4)
    assert log["step"].tolist() == [40, 80, 120] and saved["finished"] and len(plain.returns) > 2
    for name, part in learner.parts().items():
        assert all(torch.equal(saved["state"][name][key], value) for key, value in part.state_dict().items()), name
    assert saved["state"]["actor_adam"]["steps"] == 70
    (final,) = evaluate([make_env("Hopper-v4")], [baselines.squashed_policy(learner.actor)], (0.0,), 1, 120)
    evaluation = read_csv(path / "eval.csv")
    assert {name: column.tolist() for name, column in evaluation.items()} == {name: [value] for name, value in final.items()}
    assert all((vector - before).abs().max() > 1e-4 for vector, before in zip(learner.vectors, first))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning")
def test_sac_that_is_not_finite_stops(tmp_path, monkeypatch, capsys):
    """The step is named, the status is 1."""
    monkeypatch.setattr(baselines, "ROW", 40)
    err = refused(capsys, lambda: baselines.sac(sac_settings(tmp_path, learning_rate=1e29, warm_up=20)), status=1)
    assert "step 40, agent 0" in err and "not finite" in err


@pytest.mark.parametrize("warm_up", [0, 500])
def test_sac_with_no_warm_up_or_nothing_else(tmp_path, monkeypatch, warm_up):
    """It learns from its first transition on, or not at all."""
    monkeypatch.setattr(baselines, "ROW", 40)
    monkeypatch.setattr(baselines, "report", lambda run, title: None)
    baselines.sac(sac_settings(tmp_path, warm_up=warm_up, total_steps=40))
    (path,) = (tmp_path / "runs").iterdir()
    state = torch.load(path / "checkpoint.pt", weights_only=True)["state"]
    log = read_csv(path / "log.csv")
    assert state["critic_adam"]["steps"] == (40 if warm_up == 0 else 0)
    assert all((log[name] != 0).all() == (warm_up == 0) for name in ("critic_loss", "actor_loss", "entropy", "alpha"))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"buffer_size": 999}, "--buffer-size"), ({"checkpoint_every": 101}, "--checkpoint-every"),
        ({"tau": 0.0}, "--tau"), ({"tau": 1.01}, "--tau"), ({"tau": math.nan}, "--tau"), ({"warm_up": 120}, "--warm-up"),
    ],
)  # fmt: skip
def test_buffer_settings_that_cannot_be_meant(tmp_path, capsys, changes, word):
    """One line each; the outermost values that can are fine."""
    assert word in refused(capsys, lambda: baselines.check_buffer_args(sac_settings(tmp_path, **{"tau": 0.5} | changes), 1000))
    baselines.check_buffer_args(sac_settings(tmp_path, buffer_size=1000, checkpoint_every=100, warm_up=119), 1000)
    baselines.check_buffer_args(dataclasses.replace(sac_settings(tmp_path), tau=1.0), 1000)
    assert "60 for each" in refused(capsys, lambda: baselines.check_buffer_args(sac_settings(tmp_path, warm_up=60), 1000, 2))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ("--tau 0", "--tau"), ("--tau 1.1", "--tau"), ("--batch-size 0", "--batch-size"), ("--warm-up -1", "--warm-up"),
        ("--buffer-size 999", "--buffer-size"), ("--total-steps 999", "iteration of 1000"), ("--device warp", "warp"),
        ("--checkpoint-every 101", "at most 100"), ("--learning-rate 0", "--learning-rate"), ("--env CartPole-v1", "MuJoCo"),
    ],
    ids=lambda value: value if value.startswith("--") and " " in value else "",
)  # fmt: skip
def test_bad_input_of_sac(monkeypatch, tmp_path, capsys, options, word):
    """One line, status 2, nothing on disk."""
    short = "--algo sac --no-compile --total-steps 1000 --warm-up 900 --eval-domains 1".split()  # were it not refused
    monkeypatch.setattr(sys, "argv", ["baselines.py", *short, *options.split()])
    assert word in refused(capsys, baselines.main) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [name for names in baselines.OWN.values() for name in names])
def test_settings_of_another_algorithm_are_refused(monkeypatch, capsys, name):
    """In one line that says whose they are; the figure of all algorithms takes any, and so do those that have them."""
    whose = next(algorithms for algorithms, names in baselines.OWN.items() if name in names)
    flag, reached = "--" + name.replace("_", "-"), []
    words = {"matmul_precision": "high", "exploration": "action", "buffer_size": "8192", "steps_per_iteration": "8192"}
    value = words.get(name, "1")
    for algo in ("ppo", "ddpg", "sac"):
        monkeypatch.setattr(baselines, algo, reached.append)
        monkeypatch.setattr(sys, "argv", ["baselines.py", "--algo", algo, flag, value])
        if algo in whose:
            baselines.main()
        else:
            assert f"{flag} is for --algo {' or '.join(whose)}" in refused(capsys, baselines.main)
        monkeypatch.setattr(baselines, "draw_curves", reached.append)
        monkeypatch.setattr(sys, "argv", ["baselines.py", "--algo", algo, flag, value, "--curves"])
        baselines.main()
    assert len(reached) == len(whose) + 3


def test_what_is_usual_depends_on_the_algorithm(monkeypatch, tmp_path):
    """And yields to the command line."""
    asked = []
    for algo in ("ddpg", "sac"):
        monkeypatch.setattr(baselines, algo, asked.append)
        for options in ([], ["--tau", "0.5", "--warm-up", "0"]):
            monkeypatch.setattr(sys, "argv", ["baselines.py", "--algo", algo, *options])
            baselines.main()
    said = [(args.algo, args.tau, args.batch_size) for args in asked]
    assert said == [("ddpg", 0.01, 64), ("ddpg", 0.5, 64), ("sac", 0.005, 256), ("sac", 0.5, 256)]
    assert [args.warm_up for args in asked[1::2]] == [0, 0] and asked[2].warm_up == 10_000


def test_the_defaults_of_ppo_and_ddpg():
    """PPO's are its paper's for MuJoCo, DDPG's and the bound on gradients OpenAI's baselines'; the warm-up is neither's."""
    args = Args()
    assert (args.algo, args.env, args.total_steps, args.gamma) == ("ppo", "Hopper-v4", 1_000_000, 0.99)
    assert (args.steps_per_iteration, args.epochs, args.minibatches, args.learning_rate) == (2048, 10, 32, 3e-4)
    assert (args.clip, args.gae_lambda, args.max_grad_norm) == (0.2, 0.95, 0.5)
    assert (args.actor_learning_rate, args.critic_learning_rate, args.critic_decay) == (1e-4, 1e-3, 1e-2)
    assert (args.updates, baselines.CYCLE, args.buffer_size, args.warm_up) == (50, 100, 1_000_000, 10_000)
    assert (args.exploration, args.noise, args.tau, args.batch_size) == ("parameter", 0.2, None, None)
    assert baselines.USUAL["ddpg"] == {"tau": 0.01, "batch_size": 64} and baselines.USUAL["ppo"] == {}
    learner = DDPGLearner(OBS, np.ones(ACT, np.float32), baselines.with_usual(args, "ddpg"))
    assert (learner.actor_adam.learning_rate, learner.critic_adam.learning_rate) == (1e-4, 1e-3)
    assert learner.actor.norm.clip == 5 and GaussianActor(OBS, ACT).norm.clip == 10


# Several seeds, and the line that says how far a run is -------------------------------------------------------


def children(monkeypatch, status):
    """Commands of the processes that are begun, which end at once with status(seed)."""
    commands = []

    class Child:
        stdout = ()

        def __init__(self, command, **_):
            commands.append(command)
            self.returncode = status(command[-1])

        __enter__ = lambda self: self
        __exit__ = lambda *_: None

    monkeypatch.setattr(subprocess, "Popen", Child)
    return commands


@pytest.mark.parametrize("status", [130, -signal.SIGINT])
def test_no_seed_begins_after_one_was_interrupted(monkeypatch, status):
    """Ctrl-C reaches the children first; whatever waited for its turn is not begun."""
    begun = children(monkeypatch, lambda seed: status)
    with pytest.raises(SystemExit) as exit_:
        baselines.run_seeds((5, 6, 7), 1)
    assert len(begun) == 1 and exit_.value.code == status


def test_one_seed_that_fails_is_the_status_of_all(monkeypatch):
    """The others are run to their end."""
    begun = children(monkeypatch, lambda seed: 1 if seed == "6" else 0)
    with pytest.raises(SystemExit) as exit_:
        baselines.run_seeds((5, 6, 7), 1)
    assert exit_.value.code == 1 and sorted(command[-1] for command in begun) == ["5", "6", "7"]
    baselines.run_seeds((5, 7), 1)


def test_where_nothing_compiles(monkeypatch, capsys):
    """A note, and everything runs as it is written."""

    def broken(function, **options):
        def call(*rest):
            raise RuntimeError("no compiler")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    args = baselines.Args(compile=True)
    baselines.set_up_torch(args)
    assert args.compile is False and "without torch.compile" in capsys.readouterr().out
    assert baselines.compiled(test_where_nothing_compiles, args) is test_where_nothing_compiles


def test_threads_of_the_command_line_are_those_of_each_seed(monkeypatch):
    """Else the cores are shared out among as many processes as run at a time."""
    commands = children(monkeypatch, lambda seed: 0)
    monkeypatch.setattr(baselines.os, "cpu_count", lambda: 12)
    for given, seeds, jobs, expected in (
        ([], (0, 1, 2), 2, 6), ([], (3,), 2, 12), ([], (0, 1), 24, 6), (["--threads", "3"], (0, 1), 2, 3), (["--threads=5"], (0,), 1, 5),
    ):  # fmt: skip
        commands.clear()
        monkeypatch.setattr(sys, "argv", ["baselines.py", "--algo", "ppo", *given, "--seeds", *map(str, seeds)])
        baselines.run_seeds(seeds, jobs)
        assert len(commands) == len(seeds)
        for command in commands:
            monkeypatch.setattr(sys, "argv", command[1:])
            args = baselines.parse_args(baselines.Args, "")
            assert args.threads == expected and args.seeds == () and args.seed in seeds


def test_time_left_may_be_days(monkeypatch, capsys):
    """Ten steps in a second, of a million: 27 hours, 46 minutes and 39 seconds left."""
    clock = iter((0.0, 1.0))
    monkeypatch.setattr(baselines.time, "perf_counter", lambda: next(clock))
    baselines.Progress(1_000_000, 0).show(10, 1.0)
    assert "27:46:39 left" in capsys.readouterr().out
