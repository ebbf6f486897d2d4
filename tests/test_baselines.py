"""Tests of baselines.py: PPO, DDPG, SAC, and the plumbing under them.

Equations are compared with sums and loops written out, torch.distributions, .backward() and finite differences; the
loops with plain ones of the test's own.
"""

import copy
import dataclasses
import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

import baselines
from baselines import (
    Batch, DDPGAgent, DDPGArgs, GaussianActor, Optimiser, PPOAgent, PPOArgs, ReplayBuffer, RunningNorm, SACAgent,
    SACArgs, SavedRun, Stream, Transitions, ValueCritic, ddpg_targets, discounted_sums, find_runs, gae, make_batch,
    numpy_policy, ppo_loss, ppo_losses, rollout, shuffle, value_loss,
)  # fmt: skip
from helpers import finite_difference, flat, hopper, nod, stop_and_go_on, write_run
from randomised_envs import Domain, evaluate, make_env, sample_domain

OBS, ACT = 11, 3  # sizes of observations and actions, Hopper's
SCALE = np.array([1.0, 0.4, 2.0], np.float32)
WINDY = Domain(wind=4.0, gravity=1.2, mass=0.8)


def perturb(module, size):
    """Outputs that are not near zero, targets that differ from the networks they were copied from."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn_like(parameter))


def networks():
    """An actor and a critic that have seen data."""
    torch.manual_seed(0)
    both = GaussianActor(OBS, ACT), ValueCritic(OBS)
    for network in both:
        perturb(network, 0.1)
        network.norm.update(np.random.default_rng(0).normal(2.0, 3.0, (40, OBS)))
    return both


def slow_steps(losses, adams, max_norm=math.inf):
    """The ordinary way: gradients of each loss by its own optimiser's parameters, all of them before any step."""
    for loss, adam in zip(losses, adams):
        parameters = adam.param_groups[0]["params"]
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters, retain_graph=True)):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(parameters, max_norm)
    for adam in adams:
        adam.step()


@torch.no_grad()
def slow_follow(target, network, tau):
    """Each parameter of the target goes a part tau of its way."""
    for old, new in zip(target.parameters(), network.parameters()):
        old.mul_(1 - tau).add_(tau * new)


def train(loop, args):
    """Log, evaluation and the checkpoint's parts of a run that is stopped in its last iteration and started again."""
    args.checkpoint_every = 1
    stop_and_go_on(loop, args, at=args.total_steps)
    (path,) = Path("runs").iterdir()
    run = SavedRun(path)
    return run.table("log.csv"), run.table("eval.csv"), torch.load(path / "checkpoint.pt", weights_only=True)["parts"]


# Advantages, statistics, gradient steps, policies in numpy -----------------------------------------------


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


@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 0.95, 1.0])
def test_a_time_limit_is_worth_the_future_and_a_death_nothing(gae_lambda):
    """Eq. (11): sum over l of (gamma lambda)^l delta_{t+l}, over deaths (one at once), a time limit, a batch's end."""
    terminated, ends = np.zeros((2, 30), bool)
    terminated[[7, 19]] = True
    ends[[7, 18, 19, 29]] = True
    data = *np.random.default_rng(0).normal(size=(3, 30)), terminated, ends
    np.testing.assert_allclose(gae(*data, 0.9, gae_lambda), slow_gae(*data, 0.9, gae_lambda), rtol=1e-12)


def test_gae_by_hand():
    """Two steps by hand: rewards 2, 4; values 1, 3; next values 3, 8; gamma = lambda = 1/2.
    delta_1 = 4 - 3 = 1 where it died, 4 + .5 * 8 - 3 = 5 where it was cut; delta_0 = 2 + .5 * 3 - 1 = 2.5.
    """
    data = np.array([2.0, 4.0]), np.array([1.0, 3.0]), np.array([3.0, 8.0])
    for terminated, ends, expected in (
        ([False, True], [False, True], [2.5 + 0.25 * 1, 1]),
        ([False, False], [False, True], [2.5 + 0.25 * 5, 5]),
        ([False, False], [True, True], [2.5, 5]),
        ([True, True], [True, True], [2 - 1, 1]),
    ):
        assert gae(*data, np.array(terminated), np.array(ends), 0.5, 0.5).tolist() == expected


def test_discounted_sums():
    """By the definition: a sum over the past of the episode."""
    rewards, ends = np.random.default_rng(0).normal(size=50), np.arange(50) % 13 == 12
    expected = [sum(0.9 ** (t - s) * rewards[s] for s in range(t // 13 * 13, t + 1)) for t in range(50)]
    np.testing.assert_allclose(discounted_sums(rewards, ends, 0.9), expected, rtol=1e-12)


def test_running_norm():
    """Statistics of chunks of any size, on a large offset, are numpy's of the whole; x becomes (x - mean) / std.

    At most 10 standard deviations are left, before any data x stays as it is, and to look changes nothing.
    """
    data = np.random.default_rng(0).normal([1000, -3, 0], [1, 0.01, 50], (500, 3))
    norm = RunningNorm((3,))
    x = torch.tensor([[5.0, -3.0, 9.0]])
    assert torch.equal(norm(x), x)
    for chunk in np.split(data, [1, 2, 10, 300]):
        norm.update(chunk)
    x = torch.tensor([[1000.5, -3.01, 9.0], [999.0, -2.995, 70.0], [2000.0, -9.0, 1e4]])
    expected = np.clip((x.numpy() - data.mean(0)) / data.std(0), -10, 10)
    np.testing.assert_allclose(norm(x).numpy(), expected, rtol=1e-3, atol=1e-3)
    assert norm(x)[2].tolist() == [10, -10, 10] and norm(x).dtype == torch.float32
    np.testing.assert_allclose(norm.mean.numpy(), data.mean(0), rtol=1e-12)
    np.testing.assert_allclose(norm.var.numpy(), data.var(0), rtol=1e-9)
    assert norm.count == 500


@pytest.mark.parametrize("compiled", [False, True])
def test_a_gradient_step_is_adam_on_each_networks_own_loss(compiled):
    """Three steps against torch: gradients of each loss by its own network, norms clipped apart, Adam; targets follow.

    The first loss depends on the second network too, which must not feel it. Gradients are so small that eps counts.
    In one call or in two, of which the first changes nothing.
    """
    args, counters = PPOArgs(compile=compiled), torch._dynamo.utils.counters["stats"]
    torch.compiler.set_stance("default")
    baselines.set_up_torch(args)
    torch.manual_seed(0)
    whole = nn.ModuleList(nn.Linear(4, 2) for _ in range(3))
    halves, slow, rates, graphs = copy.deepcopy(whole), copy.deepcopy(whole), [1e-2, 3e-3], counters["unique_graphs"]
    adams = [torch.optim.Adam(network.parameters(), lr=rate, eps=1e-5) for network, rate in zip(slow, rates)]
    optimisers = []
    for first, second, target in (whole, halves):
        optimisers.append(Optimiser([first, second], rates, args, 1e-5, 1e-3, [target], 0.2))

    def losses(one, other, x):
        return ((one(x) * other(x)).mean(), (other(x) ** 2).mean()), one(x).sum()[None]

    for step in range(3):
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
        values, metric = losses(*slow[:2], x)
        metrics = optimisers[0].minimise(losses, *whole[:2], x)
        before = copy.deepcopy(halves.state_dict())
        new, same_metrics = optimisers[1].compute(losses, *halves[:2], x)
        assert all(torch.equal(value, before[name]) for name, value in halves.state_dict().items())
        optimisers[1].assign(new)
        slow_steps(values, adams, max_norm=1e-3)
        slow_follow(slow[2], slow[0], 0.2)
        for each in (metrics, same_metrics):
            torch.testing.assert_close(each, metric.detach(), rtol=1e-4, atol=1e-5)
            assert not each.requires_grad
    for fast in (whole, halves):
        for network, expected in zip(fast, slow):
            torch.testing.assert_close(flat(network), flat(expected), rtol=0, atol=1e-6)
    assert compiled or torch.equal(flat(whole), flat(halves))
    assert (counters["unique_graphs"] > graphs) == args.compile and args.compile <= compiled


def test_targets_move_by_tau():
    """One step of a part tau of the way from where they are, each to the network in its place."""
    networks, targets = ([nn.Linear(4, 2) for _ in range(2)] for _ in range(2))
    expected = [torch.lerp(flat(target), flat(network), 0.3) for target, network in zip(targets, networks)]
    before = [flat(network) for network in networks]
    Optimiser(networks, 1e-3, PPOArgs(), targets=targets, tau=0.3).move_targets()
    assert all(torch.equal(flat(target), value) for target, value in zip(targets, expected))
    assert all(torch.equal(flat(network), value) for network, value in zip(networks, before))


@pytest.mark.parametrize("algo", ["ppo", "ddpg"])
def test_the_policy_in_numpy_is_a_snapshot_of_the_actor(algo):
    """Same actions as torch's, also far outside what the normaliser knows; what the actor learns later is not seen."""
    actor = networks()[0] if algo == "ppo" else ddpg_agent()[0].actor
    policy = numpy_policy(actor)
    for scale in (1, 3, 100):
        obs = np.random.default_rng(scale).normal(2, scale, (20, OBS))
        said = actor(torch.tensor(obs, dtype=torch.float32))
        expected = (said[0] if algo == "ppo" else said).detach().numpy()
        np.testing.assert_allclose([policy(row) for row in obs], expected, rtol=1e-4, atol=1e-5)
        assert expected.std() > 0.05
        assert algo == "ppo" or ((np.abs(expected) <= SCALE).all() and np.abs(expected[:, 2]).max() > 0.5)
    before = policy(obs[0])
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.add_(1.0)
    actor.norm.update(np.full((1000, OBS), 50.0))
    assert np.array_equal(policy(obs[0]), before)
    assert not np.allclose(numpy_policy(actor)(obs[0]), before)


# Rollouts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "limit", "ended_by"), [(80, 8, {"death", "limit"}), (5, 1000, set())])
def test_rollout_is_a_plain_loop(steps, limit, ended_by):
    """Step by step against a loop of the test's own, over deaths, time limits and the end of the batch."""
    std = np.array([0.5, 1.0, 2.0], np.float32)
    data = rollout(hopper(limit), nod, std, WINDY, steps, np.random.default_rng(3))
    rng, env = np.random.default_rng(3), hopper(limit)
    noise = rng.standard_normal((steps, 3), dtype=np.float32)
    obs, _ = env.reset(seed=int(rng.integers(2**31)), options={"domain": WINDY})
    returns, total, kinds = [], 0.0, set()
    for t in range(steps):
        action = nod(obs) + std * noise[t]
        after, reward, died, out_of_time, _ = env.step(np.clip(action, -1, 1))
        np.testing.assert_allclose(data.actions[t], action, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(data.obs[t], obs, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(data.next_obs[t], after, rtol=1e-5, atol=1e-5)
        assert data.rewards[t] == pytest.approx(reward, rel=1e-6)
        assert data.terminated[t] == died
        assert data.ends[t] == (died or out_of_time or t == steps - 1)
        obs, total = after, total + reward
        if died or out_of_time:
            kinds.add("death" if died else "limit")
            returns.append(total)
            total = 0.0
            obs, _ = env.reset(options={"domain": WINDY})
    np.testing.assert_allclose(data.returns, returns or [total], rtol=1e-6)  # or of the unfinished episode
    assert kinds == ended_by and not (died or out_of_time)
    assert np.abs(data.actions).max() > 1
    assert data.obs.dtype == data.next_obs.dtype == data.actions.dtype == np.float32


# PPO -----------------------------------------------------------------------------------------------------


def slow_ppo_loss(log_ratio, advantages, clip):
    """Eq. (7), sample by sample."""
    total = 0.0
    for each, advantage in zip(log_ratio.tolist(), advantages.tolist()):
        ratio = math.exp(each)
        total += min(ratio * advantage, max(min(ratio, 1 + clip), 1 - clip) * advantage)
    return -total / len(log_ratio)


def test_ppo_loss_is_the_clipped_surrogate():
    """Eq. (7); and where a step has gone too far the gradient is zero, elsewhere -ratio * advantage / N."""
    torch.manual_seed(0)
    log_ratio, advantages = (0.4 * torch.randn(200)).requires_grad_(), torch.randn(200)
    loss = ppo_loss(log_ratio, advantages, 0.2)
    assert loss.item() == pytest.approx(slow_ppo_loss(log_ratio, advantages, 0.2), rel=1e-5)
    loss.backward()
    ratio = log_ratio.detach().exp()
    stopped = ((ratio > 1.2) & (advantages > 0)) | ((ratio < 0.8) & (advantages < 0))
    assert stopped.any() and not log_ratio.grad[stopped].any()
    torch.testing.assert_close(log_ratio.grad[~stopped], (-ratio * advantages / 200)[~stopped])


def test_columns_of_shape_n_by_1_are_refused():
    """(N, 1) against (N,) would broadcast to (N, N), and train on nonsense without a word."""
    for loss in (lambda a, b: ppo_loss(a, b, 0.2), value_loss):
        with pytest.raises(AssertionError):
            loss(torch.zeros(4), torch.zeros(4, 1))


def test_ppo_losses_and_metrics():
    """Eq. (7) with normalised advantages, the critic's error, and what is logged; gradients by finite differences."""
    (actor, critic), args = networks(), PPOArgs()
    torch.manual_seed(1)
    obs, actions = torch.randn(24, OBS) * 3 + 2, torch.randn(24, ACT)
    mean, log_std = actor(obs)
    log_probs = torch.distributions.Normal(mean, log_std.exp()).log_prob(actions).sum(1).detach()
    batch = Batch(obs, actions, log_probs + 0.3 * torch.randn(24), torch.randn(24), torch.randn(24))
    (actor_loss, critic_loss), metrics = ppo_losses(actor, critic, batch, args)
    log_ratio = log_probs - batch.log_probs
    advantages = (batch.advantages - batch.advantages.mean()) / batch.advantages.std()
    assert actor_loss.item() == pytest.approx(slow_ppo_loss(log_ratio, advantages, args.clip), rel=1e-4)
    far = log_ratio.abs() > 0.3
    assert len({*zip((log_ratio > 0)[far].tolist(), (advantages > 0)[far].tolist())}) == 4  # both signs of both
    errors = [(critic(row[None]).item() - target.item()) ** 2 for row, target in zip(obs, batch.targets)]
    assert critic_loss.item() == pytest.approx(np.mean(errors), rel=1e-4)
    clipped = np.mean([not 0.8 <= math.exp(each) <= 1.2 for each in log_ratio.tolist()])
    approx_kl = np.mean([math.exp(each) - 1 - each for each in log_ratio.tolist()])
    expected = [actor_loss.item(), critic_loss.item(), log_std.mean().item(), approx_kl, clipped]
    assert metrics.tolist() == pytest.approx(expected, rel=1e-3) and 0 < clipped < 1

    actor, critic, batch = actor.double(), critic.double(), Batch(*(column.double() for column in batch))
    parameters = list(actor.parameters())
    gradients = torch.autograd.grad(ppo_losses(actor, critic, batch, args)[0][0], parameters)
    for parameter, gradient in zip(parameters, gradients):
        index = int(gradient.abs().argmax())
        slope = finite_difference(lambda: ppo_losses(actor, critic, batch, args)[0][0], parameter, index)
        assert gradient.view(-1)[index].item() == pytest.approx(slope, rel=1e-4)


def test_a_batch_joins_rollouts_with_what_the_current_networks_say():
    """Order, ratio 1, advantages and targets (advantage + value) by slow sums.

    Rewards are divided by their scale, which remembers earlier batches, and never shifted.
    """
    rng, std = np.random.default_rng(0), np.ones(3, np.float32)
    rollouts = [rollout(hopper(8), nod, std, WINDY, steps, rng) for steps in (20, 30)]
    rollouts = [data._replace(rewards=10 * data.rewards) for data in rollouts]
    assert all(data.terminated.any() and (data.ends & ~data.terminated).sum() > 1 for data in rollouts)
    (actor, critic), args = networks(), PPOArgs(gamma=0.9, gae_lambda=0.8, compile=False)
    agent, sums = PPOAgent(actor, critic, args), []
    for _ in range(2):
        batch = make_batch(agent, rollouts, args)
        sums += [discounted_sums(data.rewards, data.ends, 0.9) for data in rollouts]
    scale = np.concatenate(sums).std()
    assert agent.reward_scale.std().item() == pytest.approx(scale, rel=1e-9) and agent.reward_scale.count == 100
    assert scale > 5

    assert np.array_equal(batch.obs, np.concatenate([data.obs for data in rollouts]))
    assert np.array_equal(batch.actions, np.concatenate([data.actions for data in rollouts]))
    log_probs = torch.distributions.Normal(actor(batch.obs)[0], actor.log_std.exp()).log_prob(batch.actions).sum(1)
    torch.testing.assert_close((log_probs - batch.log_probs).detach().exp(), torch.ones(50), rtol=0, atol=1e-5)
    advantages, targets = [], []
    for data in rollouts:
        value, next_value = (critic(torch.tensor(obs)).detach().double().numpy() for obs in (data.obs, data.next_obs))
        advantages.append(slow_gae(data.rewards / scale, value, next_value, data.terminated, data.ends, 0.9, 0.8))
        targets.append(advantages[-1] + value)
    np.testing.assert_allclose(batch.advantages, np.concatenate(advantages), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(batch.targets, np.concatenate(targets), rtol=1e-4, atol=1e-5)
    assert all(column.dtype == torch.float32 and not column.requires_grad for column in batch)
    assert all(column.shape == (50,) for column in batch[2:])


def test_ppo_is_a_plain_loop(quiet):
    """Three iterations against torch's Adam: log, parameters, statistics, evaluation."""
    args = PPOArgs(
        eps_tr=0.5, seed=3, total_steps=384, steps_per_iteration=128, epochs=2, minibatches=4, eps_te=(0.2,),
        eval_domains=1, evaluations=1, learning_rate=1e-3, initial_std=0.4, threads=1, compile=False,
    )  # fmt: skip
    log, evaluation, saved = train(baselines.ppo, args)
    torch.manual_seed(3)
    actor, critic = GaussianActor(11, 3), ValueCritic(11)
    actor.log_std.data.fill_(math.log(0.4))
    agent, env = PPOAgent(actor, critic, args), make_env("Hopper-v4")
    adam = torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=1e-3, eps=1e-5)
    for iteration in range(3):
        rng = np.random.default_rng([3, 0, iteration])
        domain, std = sample_domain(0.5, rng), actor.log_std.detach().exp().numpy().copy()
        data = rollout(env, numpy_policy(actor), std, domain, 128, rng)
        batch, metrics = make_batch(agent, [data], args), []
        for _ in range(2 if iteration else 0):
            for minibatch in shuffle(batch, 4, rng):
                losses, each = ppo_losses(actor, critic, minibatch, args)
                adam.zero_grad()
                sum(losses).backward()
                for network in (actor, critic):
                    nn.utils.clip_grad_norm_(network.parameters(), 0.5)
                adam.step()
                metrics.append(each.tolist())
        for network in (actor, critic):
            network.norm.update(data.obs)
        assert log["return"][iteration] == pytest.approx(data.returns.mean())
        assert log["episodes"][iteration] == len(data.returns)
        explained = 1 - np.var(batch.advantages.numpy()) / np.var(batch.targets.numpy())
        expected = [*(np.mean(metrics, axis=0) if metrics else np.zeros(5)), explained]
        for name, value in zip([*PPOAgent.METRICS, "explained_variance"], expected):
            assert log[name][iteration] == pytest.approx(value, rel=1e-3, abs=1e-5)
    for name, network in (("actor", actor), ("critic", critic)):
        for key, value in network.state_dict().items():
            torch.testing.assert_close(saved["agent0"][f"{name}.{key}"], value, rtol=0, atol=2e-5)
    (final,) = evaluate([env], {0: numpy_policy(actor)}, (0.2,), 1)
    assert evaluation["return"] == pytest.approx([final["return"]], rel=1e-3) and evaluation["step"] == [384]


# Replay buffer and stream --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [3, 7, 20, 53])
def test_the_buffer_remembers_the_latest(number):
    """Of 20 rows: length, latest rows in order, what can be sampled; and all of it restored from a state."""
    buffer, restored, rng = ReplayBuffer(1, 1, 20, "cpu"), ReplayBuffer(1, 1, 20, "cpu"), np.random.default_rng(0)
    for row in range(number):
        buffer.add([row], [row + 0.1], row + 0.2, [row + 0.3], row % 2)
    restored.load_state_dict(buffer.state_dict())
    kept = list(range(number))[-20:]
    for each in (buffer, restored):
        latest, minibatches = each.latest(6), each.sample(50, 2, rng)
        assert len(each) == len(kept) and len(minibatches) == 50
        assert all(column.dtype == torch.float32 and len(column) == 2 for batch in minibatches for column in batch)
        rows = np.float32(kept[-6:])[:, None]  # fewer if there are no more
        shapes = [(len(rows), 1), (len(rows), 1), (len(rows),), (len(rows), 1), (len(rows),)]
        assert [column.shape for column in latest] == shapes
        expected = rows + np.float32([0, 0.1, 0.2, 0.3, 0])
        expected[:, 4] = rows[:, 0] % 2
        np.testing.assert_allclose(np.column_stack(latest), expected, rtol=1e-6)
        assert each.at(np.arange(len(kept))).obs.tolist() == [[row] for row in kept[::-1]]
        for among, candidates in ((None, kept), (4, kept[-4:])):
            minibatches = each.sample(50, 10, rng, among=among)
            assert set(torch.cat([batch.obs for batch in minibatches]).flatten().tolist()) == set(candidates)
        for batch in minibatches:  # columns are of the same step
            np.testing.assert_allclose(batch.obs[:, 0] + 0.2, batch.rewards, rtol=1e-6)


class PlainEpisodes:
    """Episodes of one environment, one after the other, in a loop of the test's own: each step, each return."""

    def __init__(self, env, seed, eps):
        self.env, self.seed, self.eps = env, seed, eps
        self.rows, self.returns = [], []  # rows: columns of Transitions
        self.begin()

    def begin(self):
        rng = np.random.default_rng([self.seed, 0, len(self.returns), 2])
        domain = self.env.sample_domain(self.eps, rng)
        self.obs, _ = self.env.reset(seed=int(rng.integers(2**31)), options={"domain": domain})
        self.total = 0.0

    def step(self, action):
        after, reward, died, over, _ = self.env.step(action)
        self.rows.append([np.float32(each) for each in (self.obs, action, reward, after, died)])
        self.obs, self.total = after, self.total + reward
        if died or over:
            self.returns.append(self.total)
            self.begin()

    def sample(self, rng):
        """A minibatch of 8 from the latest 90 steps."""
        picked = [self.rows[-1 - age] for age in rng.integers(min(len(self.rows), 90), size=8)]
        return Transitions(*(torch.as_tensor(np.stack(column)) for column in zip(*picked)))

    def check_row(self, log, row, before, names, metrics):
        """A row of the log: means over its updates, and over the episodes that ended in it; if none, the last one's."""
        returns = self.returns[before:]
        expected = np.mean(returns or self.returns[-1:] or [math.nan])
        assert log["return"][row] == pytest.approx(expected, nan_ok=True) and log["episodes"][row] == len(returns)
        for name, value in zip(names, np.mean(metrics, axis=0) if metrics else np.zeros(len(names))):
            assert log[name][row] == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("size", [500, 3])
def test_a_stream_is_a_plain_loop(tmp_path, size):
    """In randomised domains, over deaths and time limits: observations, clipped actions, rewards, deaths, returns.

    Restored in the middle of an episode, it goes on bit by bit, even if the buffer is smaller than the episode.
    """
    noise = 3 * np.random.default_rng(5).standard_normal((140, 3)).astype(np.float32)
    plain = PlainEpisodes(hopper(12, eps=0.3), 4, 0.3)
    for each in noise:
        plain.step(np.clip(each + np.float32(0.1), -1, 1))
    expected = np.array([np.hstack(row) for row in plain.rows])
    assert 0 < expected[:, -1].sum() < len(plain.returns)

    args = DDPGArgs(seed=4, buffer_size=size)
    stream, again = (Stream(hopper(12, eps=0.3), args, 0) for _ in range(2))

    def collect(stream, noise):
        """The steps, as the buffer has them after each; they begin with what the policy sees. And the returns."""
        rows, returns, actions = [], [], iter(noise + np.float32(0.1))
        for _ in noise:
            seen = []
            returns += stream.collect(lambda obs: seen.append(obs) or next(actions), 1)
            rows.append(np.hstack([column[0] for column in stream.buffer.latest(1)]))
            np.testing.assert_array_equal(np.float32(seen), rows[-1][None, :11])
        return rows, returns

    rows, returns = collect(stream, noise[:74])
    torch.save(stream.state_dict(), tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)  # plain numbers and tensors only
    again.load_state_dict(state)
    assert stream.episode > 0 and len(stream.actions) > 3 and len(stream.buffer) == min(size, 74)
    for name, value in again.state_dict().items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(state[name])), name
    for each in (stream, again):
        more_rows, more_returns = collect(each, noise[74:])
        np.testing.assert_array_equal(np.concatenate([rows, more_rows]), expected)
        assert returns + more_returns == plain.returns and each.last_return == plain.returns[-1]
        np.testing.assert_array_equal(np.column_stack(each.buffer.latest(140)), expected[-size:])


@pytest.mark.parametrize("high", [2.0, math.inf])
def test_a_stream_needs_symmetric_limits_of_actions(capsys, high):
    """Asymmetric ones, or none, end the program in one line, with status 2."""
    env = hopper(12)
    env.action_space = gym.spaces.Box(-1.0 if high == 2 else -high, high, (3,), np.float32)
    with pytest.raises(SystemExit) as raised:
        Stream(env, DDPGArgs(), 0)
    assert raised.value.code == 2
    err = capsys.readouterr().err
    assert "symmetric about 0" in err and err.count("\n") == 1


# DDPG ----------------------------------------------------------------------------------------------------


def ddpg_agent():
    torch.manual_seed(0)
    args = DDPGArgs(compile=False, gamma=0.9, critic_decay=0.02)
    agent = DDPGAgent(baselines.DeterministicActor(OBS, SCALE), baselines.ActionCritic(OBS, ACT), args)
    perturb(nn.ModuleList([agent.actor, agent.critic, agent.target_actor, agent.target_critic]), 0.1)
    agent.actor.norm.update(np.random.default_rng(0).normal(1, 2, (30, OBS)))
    return agent, args


def transitions(steps=12, seed=1):
    torch.manual_seed(seed)
    terminated = (torch.arange(steps) % 3 == 0).float()
    obs, actions, rewards, next_obs = (torch.randn(steps, *shape) for shape in ((OBS,), (ACT,), (), (OBS,)))
    return Transitions(obs, actions, rewards, next_obs, terminated)


def test_a_ddpg_update_the_ordinary_way():
    """Eqs. (4) to (6) and three steps of torch's Adam on copies; targets move by tau towards the new networks.

    r + gamma Q'(s', mu'(s')), and r alone after a death, without a gradient; of weights only the hidden layers' count.
    """
    agent, args = ddpg_agent()
    fast = agent.actor, agent.critic, agent.target_actor, agent.target_critic
    slow = copy.deepcopy(fast)
    start = [flat(network) for network in fast]
    actor, critic, target_actor, target_critic = slow
    adams = [torch.optim.Adam(critic.parameters(), lr=1e-3), torch.optim.Adam(actor.parameters(), lr=1e-4)]
    for seed in range(3):
        batch = transitions(seed=seed)
        with torch.no_grad():
            futures = target_critic(batch.next_obs, target_actor(batch.next_obs))
            targets = batch.rewards + 0.9 * (1 - batch.terminated) * futures
            assert (futures - critic(batch.next_obs, actor(batch.next_obs))).abs().min() > 1e-4
        assert not ddpg_targets(agent.target_actor, agent.target_critic, batch, 0.9).requires_grad
        error = ((critic(batch.obs, batch.actions) - targets) ** 2).mean()
        weights = sum((critic.net[i].weight ** 2).sum() for i in (0, 3, 6))
        losses = error + 0.02 * weights / 2, -critic(batch.obs, actor(batch.obs)).mean()
        slow_steps(losses, adams)
        slow_follow(target_actor, actor, 0.01)
        slow_follow(target_critic, critic, 0.01)
        assert agent.update(batch, args).tolist() == pytest.approx([losses[0].item(), -losses[1].item()], rel=1e-4)
    for network, expected, before in zip(fast, slow, start):
        torch.testing.assert_close(flat(network), flat(expected), rtol=0, atol=2e-6)
        assert (flat(network) - before).abs().max() > 1e-5


def test_noise_on_weights_comes_nearer_to_its_size():
    """One per cent more for each call if actions change by less than was asked for, root mean square, else less.

    Each agent has noise of its own, and in each episode.
    """
    agent, args = ddpg_agent()
    obs, buffer = np.random.default_rng(0).normal(1, 2, (30, OBS)).astype(np.float32), ReplayBuffer(OBS, ACT, 99, "cpu")
    for row in obs:
        buffer.add(row, np.zeros(ACT), 0.0, row, False)

    def explore(number=0, episode=7):
        agent.sigma.fill_(0.2)
        return agent.exploring_policy(args.warm_up, SimpleNamespace(key=(0, number), episode=episode, buffer=buffer),
                                      None, args)

    policy = explore()
    for other in (explore(number=1), explore(episode=8)):
        assert np.abs(policy(obs[0]) - other(obs[0])).max() > 1e-3
    changes = np.array([policy(row) for row in obs]) - agent.actor(torch.tensor(obs)).detach().numpy()
    size = np.sqrt(np.mean((changes / SCALE) ** 2))
    for noise, factor in ((1.001 * size, 1.01), (0.999 * size, 1 / 1.01)):
        args.noise = noise
        explore()
        assert agent.sigma.item() == pytest.approx(0.2 * factor)


def test_ddpg_is_a_plain_loop(monkeypatch, quiet):
    """Bit-identical with a loop of the test's own over the environment with a list as buffer, in cycles of 20 steps."""
    monkeypatch.setattr(baselines, "CYCLE", 20)
    monkeypatch.setattr(baselines, "CYCLES", 2)
    args = DDPGArgs(
        algo="ddpg", env="Humanoid-v4", seed=2, eps_tr=0.2, noise=0.3, total_steps=160, warm_up=60, batch_size=8,
        buffer_size=90, updates=5, eval_domains=1, eps_te=(0.0,), evaluations=1, threads=1, compile=False,
    )  # fmt: skip
    log, evaluation, saved = train(baselines.ddpg, args)

    torch.manual_seed(2)
    plain, scale, sigma = PlainEpisodes(make_env("Humanoid-v4", 0.2), 2, 0.2), np.full(17, 0.4, np.float32), 0.3
    agent = DDPGAgent(baselines.DeterministicActor(376, scale), baselines.ActionCritic(376, 17), args)

    def noise_on_weights():
        noisy, rng = copy.deepcopy(agent.actor), np.random.default_rng([2, 0, len(plain.returns), 3])
        with torch.no_grad():
            for layer in noisy.net:
                for weight in layer.parameters():
                    draw = torch.as_tensor(rng.standard_normal(weight.shape, dtype=np.float32))
                    if isinstance(layer, nn.Linear):
                        weight += sigma * draw
        obs = torch.as_tensor(np.stack([row[0] for row in plain.rows[-8:]]))
        change = ((noisy(obs) - agent.actor(obs)) / 0.4).square().mean().sqrt().item()
        return noisy, sigma * 1.01 if change < 0.3 else sigma / 1.01

    for iteration in range(4):
        metrics, before = [], len(plain.returns)
        for cycle in (2 * iteration, 2 * iteration + 1):
            rng = np.random.default_rng([2, 0, cycle])
            if cycle >= 3:
                noisy, sigma = noise_on_weights()
                policy = numpy_policy(noisy)
            for _ in range(20):
                plain.step(rng.uniform(-scale, scale).astype(np.float32) if cycle < 3 else policy(plain.obs))
            agent.actor.norm.update(np.stack([row[0] for row in plain.rows[-20:]]))
            for _ in range(5 if cycle >= 3 else 0):
                metrics.append(agent.update(plain.sample(rng), args).numpy())
        plain.check_row(log, iteration, before, DDPGAgent.METRICS, metrics)
    assert log["step"].tolist() == [40, 80, 120, 160] and len(plain.returns) > 3
    agent.noisy_actor.net.load_state_dict(noisy.net.state_dict())
    agent.sigma.fill_(sigma)
    for name, value in agent.state_dict().items():
        assert torch.equal(saved["agent0"][name], value), name
    assert "stream" not in saved
    (final,) = evaluate([make_env("Humanoid-v4")], {0: numpy_policy(agent.actor)}, (0.0,), 1)
    assert evaluation["return"] == [final["return"]]


# SAC -----------------------------------------------------------------------------------------------------


def sac_agent(threads=1):
    torch.manual_seed(1)
    args = SACArgs(compile=False, threads=threads, gamma=0.9)
    agent = SACAgent(baselines.SquashedActor(OBS, SCALE), baselines.TwinCritic(OBS, ACT), args)
    perturb(nn.ModuleList([agent.actor, agent.critic, agent.target_critic, agent.temperature]), 0.03)
    agent.temperature["log_alpha"].data.fill_(-0.5)
    return agent, args


def slow_squash(mean, log_std, noise):
    """Actions in (-1, 1) and their log-probabilities as torch has them, in float64; exact if not too near the edges."""
    base = torch.distributions.Normal(mean.double(), log_std.double().exp())
    squashed = torch.distributions.TransformedDistribution(base, torch.distributions.TanhTransform(cache_size=1))
    actions = squashed.transforms[0](base.loc + base.scale * noise)
    return actions, squashed.log_prob(actions).sum(-1)


def slow_sample(actor, obs, noise):
    mean, log_std = actor.net(obs).chunk(2, -1)
    assert -20 < log_std.min() and log_std.max() < 2
    return slow_squash(mean, log_std, noise)


def slow_values(critic, obs, actions):
    """What both critics say of the robot's actions."""
    inputs = torch.cat([obs, actions.to(obs.dtype)], -1)
    return torch.stack([net(inputs).squeeze(-1) for net in critic.nets])


def test_squashed_actions_and_their_log_probabilities():
    """Against torch's TransformedDistribution in float64, in float64 and in single precision."""
    torch.manual_seed(0)
    mean, log_std, noise = torch.randn(3, 200, ACT, dtype=torch.float64)
    log_std = log_std.clamp(max=0.5)
    expected, log_probs = slow_squash(mean, log_std, noise)
    actions, said = baselines.squash((mean, log_std), noise)
    torch.testing.assert_close(actions, expected)
    torch.testing.assert_close(said, log_probs, rtol=1e-9, atol=1e-9)
    _, single = baselines.squash((mean.float(), log_std.float()), noise.float())
    torch.testing.assert_close(single.double(), log_probs, rtol=1e-4, atol=1e-4)


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


def test_the_squashed_policy_in_numpy_is_the_actor():
    """With noise and without, times the scale of the actions; log_std clamped to [-20, 2]."""
    agent, _ = sac_agent()
    actor = agent.actor
    with torch.no_grad():
        actor.net[-1].bias[ACT:] = torch.tensor([-30.0, 5.0, 0.3])
    policy, rng = baselines.squashed_policy(actor), np.random.default_rng(0)
    obs, noise = rng.normal(1, 2, (40, OBS)), rng.standard_normal((40, ACT)).astype(np.float32)
    noise[:5, :2] = 0
    mean, log_std = actor(torch.tensor(obs, dtype=torch.float32))
    assert (log_std[:, 0] == -20).all() and (log_std[:, 1] == 2).all() and (log_std[:, 2].abs() < 2).all()
    for each in (noise, np.zeros_like(noise)):
        actions, _ = baselines.squash((mean, log_std), torch.tensor(each))
        expected = (actions * torch.tensor(SCALE)).detach().numpy()
        said = [policy(row, noise) for row, noise in zip(obs, each)]
        np.testing.assert_allclose(said, expected, rtol=1e-4, atol=1e-5)
        assert said[0].dtype == np.float32 and expected[:, 2].std() > 0.2
    np.testing.assert_array_equal(policy(obs[0]), said[0])


def test_temperature_loss():
    """Eq. (18) by hand, its gradient by finite differences; none of it goes to the policy."""
    log_alpha = torch.tensor([-0.7], dtype=torch.float64, requires_grad=True)
    log_probs = torch.tensor([1.0, 2.5, -0.5], dtype=torch.float64, requires_grad=True)
    loss = baselines.temperature_loss(log_alpha, log_probs, -3.0)
    assert loss.item() == pytest.approx(-math.exp(-0.7) * ((1.0 - 3) + (2.5 - 3) + (-0.5 - 3)) / 3)
    loss.backward()
    slope = finite_difference(lambda: baselines.temperature_loss(log_alpha, log_probs, -3.0), log_alpha, 0)
    assert log_alpha.grad.item() == pytest.approx(slope, rel=1e-6) and log_probs.grad is None


def test_a_sac_update_the_ordinary_way():
    """Eqs. (5), (6), (9), (18) and four steps of torch's Adam on separate modules in float64, and the log.

    r + gamma (smaller target value - alpha log pi), and r alone after a death, without a gradient. All gradients are
    those at the old parameters; the target moves by tau towards the new critic. A second thread changes no bit.
    """
    (agent, args), (threaded, more_threads) = sac_agent(threads=1), sac_agent(threads=2)
    fast = agent.actor, agent.critic, agent.target_critic, agent.temperature
    start = [flat(network) for network in fast]
    slow = [copy.deepcopy(network).double() for network in fast]
    actor, critic, target, temperature = slow
    adams = [torch.optim.Adam(network.parameters(), lr=3e-4) for network in (actor, critic, temperature)]
    pool, scale = ThreadPoolExecutor(1, initializer=baselines.set_up_thread), torch.tensor(SCALE).double()
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        single, noise = transitions(steps=16, seed=seed), torch.randn(2, 16, ACT, generator=generator)
        batch = Transitions(*(column.double() for column in single))
        alpha = temperature["log_alpha"].detach().exp()
        with torch.no_grad():
            actions, log_probs = slow_sample(actor, batch.next_obs, noise[0])
            opinions = slow_values(target, batch.next_obs, actions * scale)
            targets = batch.rewards + 0.9 * (1 - batch.terminated) * (opinions.amin(0) - alpha * log_probs)
            assert (opinions - slow_values(critic, batch.next_obs, actions * scale)).abs().min() > 1e-3
        assert not baselines.sac_targets(actor, target, alpha, batch, noise[0], 0.9).requires_grad
        values = slow_values(critic, batch.obs, batch.actions)
        critic_loss = sum(nn.functional.mse_loss(each, targets) / 2 for each in values)
        actions, log_probs = slow_sample(actor, batch.obs, noise[1])
        values = slow_values(critic, batch.obs, actions * scale)
        actor_loss = (alpha * log_probs - values.amin(0)).mean()
        assert opinions.argmin(0).unique().tolist() == values.argmin(0).unique().tolist() == [0, 1]  # either is smaller
        alpha_loss = (-temperature["log_alpha"].exp() * (log_probs.detach() - ACT)).mean()
        slow_steps([actor_loss, critic_loss, alpha_loss], adams)
        slow_follow(target, critic, 0.005)
        metrics = agent.update(single, noise, args, pool)
        expected = [critic_loss.item(), actor_loss.item(), -log_probs.mean().item(), alpha.item()]
        assert metrics.tolist() == pytest.approx(expected, rel=1e-3)
        assert torch.equal(threaded.update(single, noise, more_threads, pool), metrics)
    # Adam's step of 3e-4 is unsure where a gradient is hardly more than float32's rounding.
    near, far = (1e-5, 1e-5, 1e-7, 2e-6), (1e-3, 1e-3, 1e-5, 1e-3)
    for network, expected, before, atol, moved in zip(fast, slow, start, near, far):
        torch.testing.assert_close(flat(network).double(), flat(expected), rtol=0, atol=atol)
        assert (flat(network) - before).abs().max() > moved
    assert all(torch.equal(value, threaded.state_dict()[name]) for name, value in agent.state_dict().items())


def test_sac_is_a_plain_loop(monkeypatch, quiet):
    """Bit-identical with a loop of the test's own over the environment with a list as buffer."""
    monkeypatch.setattr(baselines, "ROW", 40)
    args = SACArgs(
        algo="sac", seed=2, eps_tr=0.2, buffer_size=90, total_steps=120, warm_up=50, batch_size=8, eval_domains=1,
        eps_te=(0.0,), evaluations=1, compile=False, threads=1,
    )  # fmt: skip
    log, evaluation, saved = train(baselines.sac, args)

    torch.manual_seed(2)
    agent = SACAgent(baselines.SquashedActor(11, np.ones(3, np.float32)), baselines.TwinCritic(11, 3), args)
    plain, pool = PlainEpisodes(make_env("Hopper-v4", 0.2), 2, 0.2), ThreadPoolExecutor(1)
    for iteration in range(3):
        acting, rng = np.random.default_rng([2, 0, iteration, 1]), np.random.default_rng([2, 0, iteration, 0])
        metrics, before = [], len(plain.returns)
        for t in range(40 * iteration, 40 * iteration + 40):
            if t < 50:
                plain.step(acting.uniform(-1, 1, 3).astype(np.float32))
                continue
            noise = acting.standard_normal(3, dtype=np.float32)
            plain.step(baselines.squashed_policy(agent.actor)(plain.obs, noise))
            batch, noise = plain.sample(rng), torch.as_tensor(rng.standard_normal((2, 8, 3), dtype=np.float32))
            metrics.append(agent.update(batch, noise, args, pool).numpy())
        plain.check_row(log, iteration, before, SACAgent.METRICS, metrics)
    assert log["step"].tolist() == [40, 80, 120] and len(plain.returns) > 2
    for name, value in agent.state_dict().items():
        assert torch.equal(saved["agent0"][name], value), name
    (final,) = evaluate([make_env("Hopper-v4")], {0: baselines.squashed_policy(agent.actor)}, (0.0,), 1)
    assert evaluation["return"] == [final["return"]]


def test_curves_of_a_run():
    """Means over the last rows, over agents, over domains; by hand."""
    log, tests = [("step", "agent", "return")], [("step", "agent", "eps_te", "domain", "return")]
    log += [(step, agent, 10 * step + agent) for step in (1, 2, 3) for agent in (0, 1)]
    for step, agent, eps, domain in itertools.product((1, 3), (0, 1), (0, 0.5), (0, 2)):
        tests.append((step, agent, eps, domain, 100 * step + 10 * agent + domain + 1000 * eps))
    run = write_run(PPOArgs(), "baselines", log=log, eval=tests)
    steps, values = run.training_curve(rows=2)
    assert steps.tolist() == [1, 2, 3] and values.tolist() == [10.5, 15.5, 25.5]
    assert run.training_curve(agent=1, rows=1)[1].tolist() == [11, 21, 31]
    steps, values = run.test_curve(0.5)
    assert steps.tolist() == [1, 3] and values.tolist() == [606, 806]
    assert run.test_curve(0, agent=1)[1].tolist() == [111, 311]


def test_finished_runs_are_found_by_their_options(capsys):
    """By every option that can change a result; unfinished ones are left out; seeds in order; what is missing is said,
    and without any run that ends the program. One run is of a version that did not have all of the options yet."""
    args = PPOArgs(figure="curves", threads=7)
    for changes in ({"seed": 10}, {"seed": 9, "threads": 1}, {"seed": 2, "gamma": 0.9}, {"seed": 3}):
        run = write_run(PPOArgs(**changes), "baselines")
    (run.path / "figure.png").unlink()
    older = write_run(PPOArgs(seed=11), "baselines")
    (older.path / "config.json").write_text('{"settings": {"env": "Hopper-v4", "seed": 11}}')
    found = find_runs(args, "baselines", {"ppo": {}, "less": {"gamma": 0.9}})
    assert capsys.readouterr().out == ""
    seeds = {label: [run.settings["seed"] for run in runs] for label, runs in found.items()}
    assert seeds == {"ppo": [9, 10, 11], "less": [2]}
    found = find_runs(args, "baselines", {"ppo": {}, "other": {"gamma": 0.5}})
    assert {label: len(runs) for label, runs in found.items()} == {"ppo": 3, "other": 0}
    assert capsys.readouterr().out == "no finished runs of other on Hopper-v4 below runs/\n"
    with pytest.raises(SystemExit, match="^2$"):
        find_runs(args, "baselines", {"a": {"gamma": 0.5}, "b": {"gamma": 0.4}})
    err = capsys.readouterr().err
    assert err.endswith(": no finished runs of a; b on Hopper-v4 below runs/\n") and err.count("\n") == 1

    names = {field.name for field in dataclasses.fields(PPOArgs)} - {"xml_file"}  # which is named by its content
    lines = {name: {name: "another"} for name in names}
    same = {name for name, runs in find_runs(args, "baselines", lines).items() if runs}
    assert same == {"seed", "seeds", "jobs", "threads", "device", "compile", "checkpoint_every", "runs", "overwrite",
                    "figure", "watch", "gif"}  # fmt: skip


def test_lines_are_means_with_intervals():
    """Where curves share an x the line is their mean, the band their interval; without curves a colour is kept."""
    figure, (axis,) = baselines.new_figure()
    curves = [(np.array([1, 2]), np.array([10.0, 20.0])), (np.array([2, 3]), np.array([40.0, 50.0]))]
    baselines.plot_lines(axis, {"none": [], "some": curves}, "x", "y")
    (line,) = axis.lines
    assert line.get_xydata().tolist() == [[1, 10], [2, 30], [3, 50]] and line.get_color() == baselines.COLOURS[1]
    assert line.get_label() == "some, 2 seeds"
    band = axis.collections[0].get_paths()[0].vertices
    assert band[band[:, 0] == 2, 1].min() == 20 and band[band[:, 0] == 2, 1].max() == 40
