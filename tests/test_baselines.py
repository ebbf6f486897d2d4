"""Tests of baselines.py: PPO, DDPG, SAC, and the plumbing under them.

Equations are compared with sums and loops written out, torch.distributions, .backward() and finite differences; the
loops with plain ones of the test's own.
"""

import copy
import dataclasses
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
from baselines import (  # noqa: E402
    Adam, Batch, DDPGAgent, DDPGArgs, GaussianActor, Optimiser, PPOAgent, PPOArgs, ReplayBuffer, Rollout, RunningNorm, SACAgent,
    SACArgs, SavedRun, Stream, Transitions, ValueCritic, bootstrap, ddpg_actor_loss, ddpg_critic_loss, ddpg_targets,
    discounted_sums, episode_return, episode_returns, evaluate, gae, gaussian_log_prob, held_out_domains, make_batch,
    numpy_policy, one_vector, ppo_loss, ppo_losses, rollout, shuffle, value_loss, workers,
)  # fmt: skip
from randomised_envs import Domain, make_env, sample_domain  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")
torch.set_num_threads(1)

OBS, ACT = 5, 3  # sizes of hand-made observations and actions
SCALE = np.array([1.0, 0.4, 2.0], np.float32)
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
    actor.norm.update(seen)
    critic.norm.update(seen)
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


def flat(network):
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def quiet(monkeypatch):
    monkeypatch.setattr(SavedRun, "draw", lambda _: None)
    monkeypatch.setattr(SavedRun, "print_table", lambda _: None)


def result(tmp_path):
    """Log, evaluation and checkpoint of the only run."""
    (path,) = (tmp_path / "runs").iterdir()
    run = SavedRun(path)
    return run.table("log.csv"), run.table("eval.csv"), torch.load(path / "checkpoint.pt", weights_only=True)


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


def test_running_norm_knows_mean_and_variance_of_all_data():
    """Chunks of any size, on a large offset, against numpy on the whole."""
    data = np.random.default_rng(0).normal([1000, -3, 0], [1, 0.01, 50], (500, 3))
    norm = RunningNorm((3,))
    for chunk in np.split(data, [1, 2, 10, 300]):
        norm.update(chunk)
    np.testing.assert_allclose(norm.mean.numpy(), data.mean(0), rtol=1e-12)
    np.testing.assert_allclose(norm.var.numpy(), data.var(0), rtol=1e-9)
    assert norm.count == 500
    np.testing.assert_allclose(norm.std().numpy(), data.std(0), rtol=1e-3)


def test_running_norm_maps_to_zero_mean_and_unit_variance_clipped():
    """(x - mean) / std, at most 10 standard deviations; looking changes nothing."""
    data = np.random.default_rng(0).normal([5, -3], [2, 0.1], (400, 2))
    norm = RunningNorm((2,))
    x = torch.tensor([[5.0, -3.0], [9.0, -3.2], [1000.0, -1000.0]])
    assert torch.equal(norm(x[:1]), x[:1])  # before any data: as it is
    norm.update(data)
    before = copy.deepcopy(norm.state_dict())
    expected = np.clip((x.numpy() - data.mean(0)) / data.std(0), -10, 10)
    np.testing.assert_allclose(norm(x).numpy(), expected, rtol=1e-4, atol=1e-4)
    assert norm(x)[2].tolist() == [10, -10] and norm(x).dtype == torch.float32
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())


# Parameters as one vector, gradient steps, policies in numpy ----------------------------------------------


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


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("rates", [1e-2, [1e-2, 3e-3]])
def test_minimise_is_adam_on_each_networks_own_loss(rates, compiled):
    """Three steps against torch: gradients of each loss by its own network, norms clipped apart, Adam; targets follow.

    The first loss depends on the second network too, which must not feel it.
    """
    args = PPOArgs(compile=compiled)
    baselines.set_up_torch(args)
    torch.manual_seed(0)
    first, second = nn.Linear(4, 2), nn.Linear(4, 2)
    target = copy.deepcopy(first)
    slow = copy.deepcopy((first, second, target))
    both = rates if isinstance(rates, list) else [rates, rates]
    adams = [torch.optim.Adam(network.parameters(), lr=rate) for network, rate in zip(slow, both)]
    follows = {"targets": [target], "tau": 0.2} if isinstance(rates, list) else {}  # a vector for each network
    optimiser = Optimiser([first, second], rates, args, max_grad_norm=0.1, **follows)
    assert len(optimiser.vectors) == (2 if isinstance(rates, list) else 1)

    def losses(one, other, x):
        return ((one(x) * other(x)).mean(), (other(x) ** 2).mean()), (one(x).sum(),)

    for step in range(3):
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
        values, (metric,) = losses(*slow[:2], x)
        gradients = [torch.autograd.grad(v, list(n.parameters()), retain_graph=True) for v, n in zip(values, slow)]
        for network, adam, own in zip(slow, adams, gradients):
            for parameter, gradient in zip(network.parameters(), own):
                parameter.grad = gradient
            nn.utils.clip_grad_norm_(network.parameters(), 0.1)
            adam.step()
        with torch.no_grad():
            for old, new in zip(slow[2].parameters(), slow[0].parameters() if follows else ()):
                old.lerp_(new, 0.2)
        metrics = optimiser.minimise(losses, first, second, x)
        torch.testing.assert_close(metrics, metric.detach()[None], rtol=1e-4, atol=1e-5)
        assert not metrics.requires_grad
    for network, expected in zip((first, second, target), slow):
        torch.testing.assert_close(flat(network), flat(expected), rtol=0, atol=2e-5)
    state = optimiser.state_dict()
    assert sum(name.endswith("steps") for name in state) == len(optimiser.vectors) and state["adams.0.steps"] == 3


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
    """Neither training nor new statistics of the actor action_scale it."""
    actor, _ = networks()
    policy, obs = numpy_policy(actor), np.ones(OBS)
    before = policy(obs)
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.add_(1.0)
    actor.norm.update(np.full((1000, OBS), 50.0))
    assert np.array_equal(policy(obs), before)
    assert not np.allclose(numpy_policy(actor)(obs), before)


# Rollouts and evaluation ---------------------------------------------------------------------------------


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
    """For one environment and for three, in the order of policies, levels, domains."""
    policies = {0: nod, -1: stand}
    for number in (1, 3):
        envs = [hopper(limit=20) for _ in range(number)]
        rows = evaluate(envs, policies, (0.0, 0.5), 3)
        expected = [
            {"agent": agent, "eps_te": eps, "domain": i, "return": episode_return(hopper(limit=20), policy, domain, i)}
            for agent, policy in policies.items() for eps in (0.0, 0.5) for i, domain in enumerate(held_out_domains(eps, 3))
        ]  # fmt: skip
        assert rows == expected
    with pytest.raises(ZeroDivisionError):  # of a thread
        episode_returns([hopper(), hopper()], [(lambda obs: 1 / 0, Domain(), 0)] * 2)


# PPO ------------------------------------------------------------------------------------------------------


def test_gaussian_log_prob():
    """Against torch.distributions."""
    torch.manual_seed(0)
    mean, log_std, actions = torch.randn(50, ACT), torch.tensor([-1.0, 0.0, 0.7]), 2 * torch.randn(50, ACT)
    expected = torch.distributions.Normal(mean, log_std.exp()).log_prob(actions).sum(1)
    torch.testing.assert_close(gaussian_log_prob(mean, log_std, actions), expected)


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


def test_value_loss_is_the_mean_square_error():
    """Eq. (9), sample by sample."""
    values, targets = torch.randn(2, 30, generator=torch.Generator().manual_seed(0))
    expected = np.mean([(value - target) ** 2 for value, target in zip(values.tolist(), targets.tolist())])
    assert value_loss(values, targets).item() == pytest.approx(expected, rel=1e-5)


def test_columns_of_shape_n_by_1_are_refused():
    """(N, 1) against (N,) would broadcast to (N, N), and train on nonsense without a word."""
    for loss in (lambda a, b: ppo_loss(a, b, 0.2), value_loss):
        with pytest.raises(AssertionError):
            loss(torch.zeros(4), torch.zeros(4, 1))


def test_ppo_losses_and_metrics():
    """Against torch.distributions with normalised advantages; the actor's gradient by finite differences."""
    actor, critic = networks()
    args, batch = PPOArgs(), random_batch(actor)
    (actor_loss, critic_loss), metrics = ppo_losses(actor, critic, batch, args)
    advantages = (batch.advantages - batch.advantages.mean()) / batch.advantages.std()
    mean, log_std = actor(batch.obs)
    log_probs = torch.distributions.Normal(mean, log_std.exp()).log_prob(batch.actions).sum(1)
    log_ratio = (log_probs - batch.log_probs).detach()
    assert actor_loss.item() == pytest.approx(slow_ppo_loss(log_ratio, advantages, args.clip), rel=1e-4)
    errors = [(critic(obs[None]).item() - target.item()) ** 2 for obs, target in zip(batch.obs, batch.targets)]
    assert critic_loss.item() == pytest.approx(np.mean(errors), rel=1e-4)
    clipped = np.mean([not 0.8 <= math.exp(each) <= 1.2 for each in log_ratio.tolist()])
    approx_kl = np.mean([math.exp(each) - 1 - each for each in log_ratio.tolist()])
    expected = [actor_loss.item(), critic_loss.item(), log_std.mean().item(), approx_kl, clipped]
    assert [metric.item() for metric in metrics] == pytest.approx(expected, rel=1e-3) and 0 < clipped < 1

    actor, batch = doubled(actor, batch)
    critic = critic.double()
    parameters = list(actor.parameters())
    gradients = torch.autograd.grad(ppo_losses(actor, critic, batch, args)[0][0], parameters)
    for parameter, gradient in zip(parameters, gradients):
        index = int(gradient.abs().argmax())
        slope = finite_difference(lambda: ppo_losses(actor, critic, batch, args)[0][0], parameter, index)
        assert gradient.view(-1)[index].item() == pytest.approx(slope, rel=1e-4)


def agent_of(actor, critic, **changes):
    return PPOAgent(actor, critic, PPOArgs(**{"compile": False} | changes))


def test_a_batch_joins_rollouts_with_what_the_current_networks_say():
    """Order, ratio 1, advantages and targets (advantage + value) by slow sums, rewards divided by their scale."""
    actor, critic = networks()
    rollouts = [random_rollout(20, [6, 13, 19], [6]), random_rollout(30, [29], [], seed=1)]
    agent, sums = agent_of(actor, critic), []
    args, reward_scale = PPOArgs(gamma=0.9, gae_lambda=0.8), agent.reward_scale
    for _ in range(2):  # the scale remembers the first time
        batch = make_batch(agent, rollouts, args)
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
    data, args = random_rollout(20, [19], [19]), PPOArgs(gamma=0.0, gae_lambda=0.0)
    rewards = np.zeros(20), np.arange(20.0)
    zero, one = (make_batch(agent_of(*networks()), [data._replace(rewards=each)], args) for each in rewards)
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


def test_ppo_is_a_plain_loop(tmp_path, monkeypatch):
    """Three iterations against torch's Adam on separate parameters: log, parameters, statistics, evaluation."""
    quiet(monkeypatch)
    args = PPOArgs(
        env="Hopper-v4", eps_tr=0.5, seed=3, total_steps=384, steps_per_iteration=128, epochs=2, minibatches=4, eps_te=(0.2,),
        eval_domains=1, evaluations=1, learning_rate=1e-3, threads=1, compile=False, runs=str(tmp_path / "runs"),
    )  # fmt: skip
    baselines.set_up_torch(args)
    baselines.ppo(args)
    log, evaluation, saved = result(tmp_path)
    torch.manual_seed(3)
    actor, critic = GaussianActor(11, 3), ValueCritic(11)
    adam = torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=1e-3, eps=1e-5)
    agent, env = agent_of(copy.deepcopy(actor), copy.deepcopy(critic)), make_env("Hopper-v4")
    for iteration in range(3):
        agent.actor.load_state_dict(actor.state_dict())
        agent.critic.load_state_dict(critic.state_dict())
        rng = np.random.default_rng([3, 0, iteration])
        domain, std = sample_domain(0.5, rng), actor.log_std.detach().exp().numpy().copy()
        data = rollout(env, numpy_policy(actor), std, domain, 128, rng)
        batch = make_batch(agent, [data], args)
        metrics = []
        for _ in range(2 if iteration else 0):
            for minibatch in shuffle(batch, 4, rng):
                losses, each = ppo_losses(actor, critic, minibatch, args)
                adam.zero_grad()
                sum(losses).backward()
                for network in (actor, critic):
                    nn.utils.clip_grad_norm_(network.parameters(), 0.5)
                adam.step()
                metrics.append([metric.item() for metric in each])
        for network in (actor, critic):
            network.norm.update(data.obs)
        assert log["return"][iteration] == pytest.approx(data.returns.mean()) and log["episodes"][iteration] == len(data.returns)
        for name, value in zip(baselines.PPO_METRICS, np.mean(metrics, axis=0) if metrics else [0.0] * 5):
            assert log[name][iteration] == pytest.approx(value, rel=1e-3, abs=1e-5)
        explained = 1 - np.var(batch.advantages.numpy()) / np.var(batch.targets.numpy())
        assert log["explained_variance"][iteration] == pytest.approx(explained, rel=1e-3, abs=1e-5)
    state = saved["parts"]["agent0"]
    for name, network in (("actor", actor), ("critic", critic)):
        for key, value in network.state_dict().items():
            torch.testing.assert_close(state[f"{name}.{key}"], value, rtol=0, atol=2e-5)
    (final,) = evaluate([env], {0: numpy_policy(actor)}, (0.2,), 1)
    assert evaluation["return"] == pytest.approx([final["return"]], rel=1e-3) and evaluation["step"] == [384]


# Replay buffer and stream --------------------------------------------------------------------------------


def numbered(first, last, width=2 * OBS + ACT + 2):
    """Rows that know their number."""
    return np.arange(first, last, dtype=np.float32)[:, None] * np.ones(width, np.float32)


def test_the_buffer_remembers_the_latest():
    """Against a plain list, several times around: length, latest rows in order, what can be sampled; and restored."""
    buffer, everything, rng = ReplayBuffer(OBS, ACT, 20), [], np.random.default_rng(0)
    for number in (5, 7, 1, 7, 6, 7, 3, 7, 7):
        for row in numbered(len(everything), len(everything) + number):
            buffer.add(row)
            everything.append(row.tolist())
        kept = everything[-20:]
        assert len(buffer) == len(kept) and buffer.latest(min(6, len(kept))).tolist() == kept[-6:]
        again = ReplayBuffer(OBS, ACT, 20)
        again.load_state_dict(buffer.state_dict())
        for each in (buffer, again):
            ages = np.arange(len(kept))
            assert each.at(ages)[:, 0].tolist() == [row[0] for row in kept[::-1]]
            assert {row[0] for row in each.sample((500,), rng).tolist()} == {row[0] for row in kept}
            assert {row[0] for row in each.sample((300,), rng, among=4).tolist()} == {row[0] for row in kept[-4:]}
    assert buffer.sample((50, 2), rng).shape == (50, 2, 2 * OBS + ACT + 2)


def test_rows_are_split_into_their_columns():
    buffer = ReplayBuffer(OBS, ACT, 4)
    row = torch.arange(2.0 * OBS + ACT + 2).repeat(3, 1)
    batch = buffer.split(row)
    assert batch.obs[0].tolist() == list(range(OBS)) and batch.actions[0].tolist() == list(range(OBS, OBS + ACT))
    assert batch.rewards.tolist() == [OBS + ACT] * 3 and batch.terminated.tolist() == [2 * OBS + ACT + 1] * 3
    assert batch.next_obs[0].tolist() == list(range(OBS + ACT + 1, 2 * OBS + ACT + 1))


def stream_of(eps=0.3, seed=4):
    return Stream(make_env("Hopper-v4", eps), seed, 0, ReplayBuffer(11, 3, 500))


def random_steps(stream, number, seed):
    noise = np.random.default_rng(seed).uniform(-1, 1, (number, 3)).astype(np.float32)
    return stream.collect(lambda obs: 0, noise)


def test_a_stream_goes_on_bit_by_bit_after_its_state_is_restored(tmp_path):
    """In the middle of an episode in a randomised domain; rows and returns as if nothing had happened."""
    whole = stream_of()
    random_steps(whole, 70, seed=0)
    assert whole.episode > 0 and whole.steps > 3
    torch.save({"stream": whole.state_dict(), "buffer": whole.buffer.state_dict()}, tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)  # plain numbers and tensors only
    after = random_steps(whole, 60, seed=1)
    again = stream_of()
    again.buffer.load_state_dict(state["buffer"])
    again.load_state_dict(state["stream"])
    assert again.state_dict() == state["stream"]
    resumed = random_steps(again, 60, seed=1)
    assert np.array_equal(after[0], resumed[0]) and after[1] == resumed[1] and len(after[1]) > 0


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


def test_a_streams_rows_are_what_happened():
    """Against a loop over the environment: observations, clipped actions, rewards, deaths, finished returns."""
    stream = stream_of(eps=0.0)
    noise = 3 * np.random.default_rng(5).standard_normal((80, 3)).astype(np.float32)
    rows, returns = stream.collect(lambda obs: np.float32(0.1), noise)
    plain = PlainEpisodes(make_env("Hopper-v4"), 4, 0.0)
    for row, each in zip(rows, noise):
        plain.step(np.clip(each + np.float32(0.1), -1, 1))
        np.testing.assert_array_equal(row, plain.rows[-1])
    assert returns == pytest.approx(plain.returns) and len(returns) > 2
    assert np.array_equal(rows, stream.buffer.latest(80))


def test_a_time_limit_is_not_a_death_in_a_stream():
    """The episode ends, and its last row says that the robot lives."""
    env = make_env("HalfCheetah-v4", max_episode_steps=20)
    stream = Stream(env, 0, 0, ReplayBuffer(17, 6, 100))
    rows, returns = stream.collect(lambda obs: 0, np.zeros((50, 6), np.float32))
    assert len(returns) == 2 and stream.steps == 10 and not rows[:, -1].any()
    obs, next_obs = rows[:, :17], rows[:, 24:41]
    follows = (obs[1:] == next_obs[:-1]).all(1)
    assert np.flatnonzero(~follows).tolist() == [19, 39]


# DDPG ----------------------------------------------------------------------------------------------------


def ddpg_agent(seed=0):
    """Outputs that are not near zero, statistics of some data, targets that differ from the networks."""
    torch.manual_seed(seed)
    args = DDPGArgs(compile=False)
    agent = DDPGAgent(baselines.DeterministicActor(OBS, SCALE), baselines.ActionCritic(OBS, ACT), args)
    with torch.no_grad():
        for vector in agent.optimiser.vectors + agent.optimiser.target_vectors:
            vector.add_(0.1 * torch.randn_like(vector))
    agent.actor.norm.update(np.random.default_rng(seed).normal(1, 2, (30, OBS)))
    return agent, args


def transitions(steps=12, seed=1):
    torch.manual_seed(seed)
    terminated = (torch.arange(steps) % 3 == 0).float()
    obs, actions, rewards, next_obs = (torch.randn(steps, *shape) for shape in ((OBS,), (ACT,), (), (OBS,)))
    return Transitions(obs, actions, rewards, next_obs, terminated)


def test_ddpg_targets_state_by_state():
    """r + gamma Q'(s', mu'(s')), and r alone after a death; by the target networks, not the others; no gradient."""
    agent, _ = ddpg_agent()
    batch = transitions()
    targets = ddpg_targets(agent.target_actor, agent.target_critic, batch, 0.9)
    for n in range(len(targets)):
        after = batch.next_obs[n : n + 1]
        future = agent.target_critic(after, agent.target_actor(after)).item()
        expected = batch.rewards[n].item() + (0 if n % 3 == 0 else 0.9 * future)
        assert targets[n].item() == pytest.approx(expected, abs=1e-5)
        assert abs(future - agent.critic(after, agent.actor(after)).item()) > 1e-4
    assert not targets.requires_grad


def test_ddpg_losses():
    """Mean square error and half the squared weights of the hidden layers, not of the last; minus the critic's opinion."""
    agent, _ = ddpg_agent()
    batch, targets = transitions(), torch.randn(12)
    said = [agent.critic(batch.obs[n : n + 1], batch.actions[n : n + 1]).item() for n in range(12)]
    error = sum((value - target) ** 2 for value, target in zip(said, targets.tolist())) / 12
    hidden = [agent.critic.net[i].weight for i in (0, 3, 6)]
    decay = 0.01 / 2 * sum(value**2 for weight in hidden for value in weight.flatten().tolist())
    assert ddpg_critic_loss(agent.critic, batch, targets, 0.01).item() == pytest.approx(error + decay, rel=1e-4)
    values = [agent.critic(batch.obs[n : n + 1], agent.actor(batch.obs[n : n + 1])).item() for n in range(12)]
    assert ddpg_actor_loss(agent.actor, agent.critic, batch).item() == pytest.approx(-np.mean(values), rel=1e-4)


def test_a_ddpg_update_the_ordinary_way():
    """Three updates against .backward() and torch's Adam on copies; targets move by tau towards the new networks."""
    agent, args = ddpg_agent()
    networks_of = agent.actor, agent.critic, agent.target_actor, agent.target_critic
    vectors = agent.optimiser.vectors + agent.optimiser.target_vectors
    slow_actor, slow_critic, slow_target_actor, slow_target_critic = copy.deepcopy(networks_of)
    actor_adam = torch.optim.Adam(slow_actor.parameters(), lr=1e-4)
    critic_adam = torch.optim.Adam(slow_critic.parameters(), lr=1e-3)
    start = [vector.detach().clone() for vector in vectors]
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
        agent.update(batch, args)
    slow = slow_actor, slow_critic, slow_target_actor, slow_target_critic
    for vector, network, before in zip(vectors, slow, start):
        expected = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
        torch.testing.assert_close(vector.detach(), expected, rtol=0, atol=2e-6)
        assert (vector - before).abs().max() > 1e-5


def test_the_deterministic_policy_in_numpy_is_the_actor():
    """ReLU, tanh and the action_scale of the actions."""
    agent, _ = ddpg_agent()
    policy = numpy_policy(agent.actor)
    obs = np.random.default_rng(0).normal(1, 4, (20, OBS))
    expected = agent.actor(torch.tensor(obs, dtype=torch.float32)).detach().numpy()
    np.testing.assert_allclose([policy(row) for row in obs], expected, rtol=1e-4, atol=1e-5)
    assert (np.abs(expected).max(0) <= [1, 0.4, 2]).all() and np.abs(expected[:, 2]).max() > 0.5


def exploration_of(agent, args, number=0, **changes):
    for name, value in changes.items():
        setattr(args, name, value)
    return baselines.Exploration(agent.actor, args, number)


def test_random_steps_and_noise_on_actions_are_in_parts_of_the_action_scale():
    """Uniform in the whole range before the warm-up is over; then Gaussian around the policy's actions."""
    agent, args = ddpg_agent()
    exploration, rng = exploration_of(agent, args, exploration="action", warm_up=100), np.random.default_rng(0)
    draws = np.concatenate([exploration.policy_and_noise(0, None, rng)[1] for _ in range(100)])
    np.testing.assert_allclose(draws.std(0), SCALE / math.sqrt(3), rtol=0.03)
    assert (np.abs(draws) <= SCALE).all() and exploration.policy_and_noise(0, None, rng)[0](None) == 0
    policy, _ = exploration.policy_and_noise(100, None, rng)
    draws = np.concatenate([exploration.policy_and_noise(100, None, rng)[1] for _ in range(100)])
    np.testing.assert_allclose(draws.std(0), 0.2 * SCALE, rtol=0.03)
    np.testing.assert_array_equal(policy(np.ones(OBS)), numpy_policy(agent.actor)(np.ones(OBS)))


def test_noise_on_weights_is_the_episodes_own_and_spares_normalised_layers():
    """Each linear parameter is the actor's present one plus sigma times what the episode's generator draws, in order."""
    agent, args = ddpg_agent()
    obs = np.random.default_rng(0).normal(1, 2, (30, OBS)).astype(np.float32)
    noise = exploration_of(agent, args, number=1, seed=7)
    noise.sigma = 0.3
    policy = noise.perturbed_policy(5, obs)
    rng, noisy = np.random.default_rng([7, 1, 5, 3]), dict(noise.perturbed.net.named_parameters())
    for name, weight in agent.actor.net.named_parameters():
        draw = rng.standard_normal(weight.shape, dtype=np.float32)
        scale = 0 if int(name.split(".")[0]) in (1, 4, 7) else 0.3
        np.testing.assert_allclose(noisy[name].detach().numpy(), weight.detach().numpy() + scale * draw, rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.tensor(policy(obs[0])), noise.perturbed(torch.tensor(obs[:1]))[0].detach())
    noise.sigma = 0.3
    assert np.abs(noise.perturbed_policy(6, obs)(obs[0]) - policy(obs[0])).max() > 0.01
    noise.sigma = 0.0
    np.testing.assert_allclose(noise.perturbed_policy(6, obs)(obs[0]), numpy_policy(agent.actor)(obs[0]), atol=1e-6)


@pytest.mark.parametrize("sigma", [0.001, 1.0])
def test_noise_on_weights_adapts_to_the_change_of_actions(sigma):
    """From too little and from too much, one per cent for each call, to the root mean square change that is asked for."""
    agent, args = ddpg_agent()
    obs = np.random.default_rng(0).normal(1, 2, (30, OBS)).astype(np.float32)
    noise = exploration_of(agent, args)
    noise.sigma = sigma
    noise.perturbed_policy(0, obs)
    assert noise.sigma == pytest.approx(sigma * 1.01 if sigma < 0.1 else sigma / 1.01)
    for episode in range(1, 900):
        noise.perturbed_policy(episode, obs)
    changes = []
    for episode in range(100):
        policy = noise.perturbed_policy(episode, obs)
        mean = agent.actor(torch.tensor(obs)).detach().numpy()
        changes.append((np.array([policy(row) for row in obs]) - mean) / SCALE)
    assert np.median([np.sqrt((change**2).mean()) for change in changes]) == pytest.approx(0.2, rel=0.15)


@pytest.mark.parametrize("exploration", ["parameter", "action"])
def test_ddpg_is_a_plain_loop(tmp_path, monkeypatch, exploration):
    """Bit-identical with a loop of the test's own over the environment with a list as buffer.

    Cycles of 20 steps, two to a row of the log: random actions in the first three cycles, then those of the actor with
    the episode's noise on its weights, or with noise on each action, and after each such cycle five updates.
    """
    monkeypatch.setattr(baselines, "CYCLE", 20)
    monkeypatch.setattr(baselines, "CYCLES", 2)
    quiet(monkeypatch)
    args = DDPGArgs(
        algo="ddpg", env="Humanoid-v4", seed=2, eps_tr=0.2, exploration=exploration, runs=str(tmp_path / "runs"), noise=0.3,
        total_steps=160, warm_up=60, batch_size=8, buffer_size=90, updates=5, eval_domains=1, eps_te=(0.0,), evaluations=1,
        threads=1, compile=False,
    )  # fmt: skip
    baselines.set_up_torch(args)
    baselines.ddpg(args)
    log, evaluation, saved = result(tmp_path)

    torch.manual_seed(2)
    plain, action_scale, sigma = PlainEpisodes(make_env("Humanoid-v4", 0.2), 2, 0.2), np.full(17, 0.4, np.float32), 0.3
    agent = DDPGAgent(baselines.DeterministicActor(376, action_scale), baselines.ActionCritic(376, 17), args)
    rows = plain.rows

    def on_weights():
        noisy, rng = copy.deepcopy(agent.actor), np.random.default_rng([2, 0, len(plain.returns), 3])
        with torch.no_grad():
            for layer in noisy.net:
                for weight in layer.parameters():
                    draw = torch.as_tensor(rng.standard_normal(weight.shape, dtype=np.float32))
                    if isinstance(layer, nn.Linear):
                        weight += sigma * draw
        obs = torch.as_tensor(np.stack(rows[-8:])[:, :376])
        change = ((noisy(obs) - agent.actor(obs)) / 0.4).square().mean().sqrt().item()
        return numpy_policy(noisy), sigma * 1.01 if change < 0.3 else sigma / 1.01

    for iteration in range(4):
        metrics, before = [], len(plain.returns)
        for cycle in (2 * iteration, 2 * iteration + 1):
            rng, policy = np.random.default_rng([2, 0, cycle]), numpy_policy(agent.actor)
            if cycle >= 3 and exploration == "parameter":
                policy, sigma = on_weights()
            for t in range(20):
                if cycle < 3:
                    action = rng.uniform(-action_scale, action_scale).astype(np.float32)
                elif exploration == "parameter":
                    action = policy(plain.obs)
                else:
                    noise = 0.3 * action_scale * rng.standard_normal(17, dtype=np.float32)
                    action = np.clip(policy(plain.obs) + noise, -action_scale, action_scale)
                plain.step(action)
            agent.actor.norm.update(np.stack(rows[-20:])[:, :376])
            for _ in range(5 if cycle >= 3 else 0):
                ages = rng.integers(min(len(rows), 90), size=8)
                batch = torch.as_tensor(np.stack([rows[-1 - age] for age in ages]))
                batch = Transitions(batch[:, :376], batch[:, 376:393], batch[:, 393], batch[:, 394:770], batch[:, 770])
                metrics.append(agent.update(batch, args).numpy())
        returns = plain.returns[before:]
        assert log["return"][iteration] == pytest.approx(np.mean(returns or plain.returns[-1:]))
        assert log["episodes"][iteration] == len(returns)
        for name, value in zip(baselines.DDPG_METRICS, np.mean(metrics, axis=0) if metrics else np.zeros(2)):
            assert log[name][iteration] == pytest.approx(value, rel=1e-4)
    assert log["step"].tolist() == [40, 80, 120, 160] and len(plain.returns) > 3
    for name, value in agent.state_dict().items():
        assert torch.equal(saved["parts"]["agent0"][name], value), name
    assert saved["parts"]["agent0"]["optimiser.adams.0.steps"] == 25
    assert saved["parts"]["exploration"]["sigma"] == sigma and "buffer" not in saved["parts"]
    norm = saved["parts"]["agent0"]["actor.norm.mean"]
    np.testing.assert_allclose(norm, np.mean(rows, axis=0, dtype=np.float64)[:376], rtol=1e-9, atol=1e-9)
    (final,) = evaluate([make_env("Humanoid-v4")], {0: numpy_policy(agent.actor)}, (0.0,), 1)
    assert evaluation["return"] == [final["return"]]


# SAC -----------------------------------------------------------------------------------------------------


def sac_agent(seed=0, **changes):
    """Outputs that are not near zero, a target that differs from the critic, a temperature that is not one."""
    torch.manual_seed(seed)
    args = SACArgs(**{"compile": False, "threads": 1} | changes)
    agent = SACAgent(baselines.SquashedActor(OBS, SCALE), baselines.TwinCritic(OBS, ACT), args)
    with torch.no_grad():
        for vector in (agent.actor_optimiser.vectors[0], *agent.critic_optimiser.vectors, *agent.critic_optimiser.target_vectors):
            vector.add_(0.03 * torch.randn_like(vector))
        agent.temperature["log_alpha"].fill_(-0.5)
    return agent, args


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


def test_log_std_is_clamped():
    """To [-20, 2], whatever the network says."""
    agent, _ = sac_agent()
    with torch.no_grad():
        agent.actor.net[-1].bias[ACT:] = torch.tensor([-1e3, 1e3, 0.5])
    mean, log_std = agent.actor(torch.randn(4, OBS))
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
    agent, _ = sac_agent()
    with torch.no_grad():
        agent.actor.net[-1].bias[ACT:] = torch.tensor([-30.0, 5.0, 0.3])
    policy, rng = baselines.squashed_policy(agent.actor), np.random.default_rng(0)
    obs, noise = rng.normal(1, 2, (40, OBS)), rng.standard_normal((40, ACT)).astype(np.float32)
    noise[:5, :2] = 0
    for each in (noise, np.zeros_like(noise)):
        with torch.no_grad():
            actions, _ = baselines.squash(agent.actor(torch.tensor(obs, dtype=torch.float32)), torch.tensor(each))
        expected = (actions * torch.tensor(SCALE)).numpy()
        said = [policy(row, noise) for row, noise in zip(obs, each)]
        np.testing.assert_allclose(said, expected, rtol=1e-4, atol=1e-5)
        assert said[0].dtype == np.float32 and expected[:, 2].std() > 0.2
    np.testing.assert_array_equal(policy(obs[0]), said[0])
    with torch.no_grad():
        agent.actor_optimiser.vectors[0].add_(0.1)
    np.testing.assert_array_equal(policy(obs[0]), baselines.squashed_policy(agent.actor)(obs[0]))
    assert not np.allclose(policy(obs[0]), said[0])


def test_sac_targets_sample_by_sample():
    """Eq. (6): r + gamma (smaller target value - alpha log pi), and r alone after a death; no gradient.

    By the target critic and the present actor; where the episode was cut but nobody died, the future counts.
    """
    agent, _ = sac_agent(1)
    batch, alpha, noise = transitions(), torch.tensor([0.3]), torch.randn(12, ACT)
    targets = baselines.sac_targets(agent.actor, agent.target_critic, alpha, batch, noise, 0.9)
    smaller = set()
    for n in range(len(targets)):
        action, log_prob = slow_sample(agent.actor, batch.next_obs[n], noise[n])
        value, which = slow_minimum(agent.target_critic, batch.next_obs[n], action)
        future = value - 0.3 * log_prob
        expected = batch.rewards[n].item() + (0 if n % 3 == 0 else 0.9 * future)
        assert targets[n].item() == pytest.approx(expected, abs=1e-4)
        assert abs(value - slow_minimum(agent.critic, batch.next_obs[n], action)[0]) > 1e-3
        smaller.add(which)
    assert smaller == {0, 1} and not targets.requires_grad


def test_sac_critic_loss():
    """Eq. (5): for each critic half the mean square error, both added."""
    agent, _ = sac_agent()
    batch, targets = transitions(), torch.randn(12)
    expected = 0.0
    for net in agent.critic.nets:
        errors = [net(torch.cat([batch.obs[n], batch.actions[n]])[None]).item() - targets[n].item() for n in range(12)]
        expected += 0.5 * np.mean(np.square(errors))
    assert baselines.sac_critic_loss(agent.critic, batch, targets).item() == pytest.approx(expected, rel=1e-4)


def test_sac_actor_loss():
    """Eq. (9): mean of alpha log pi - the smaller value, for each sample of its own; gradients by finite differences."""
    agent, _ = sac_agent()
    obs, noise, alpha = torch.randn(12, OBS), torch.randn(12, ACT), torch.tensor([0.3])
    loss, log_probs = baselines.sac_actor_loss(agent.actor, agent.critic, alpha, obs, noise)
    terms, smaller = [], set()
    for n in range(12):
        action, log_prob = slow_sample(agent.actor, obs[n], noise[n])
        value, which = slow_minimum(agent.critic, obs[n], action)
        terms.append(0.3 * log_prob - value)
        assert log_probs[n].item() == pytest.approx(log_prob, abs=1e-3)
        smaller.add(which)
    assert loss.item() == pytest.approx(np.mean(terms), abs=1e-4) and smaller == {0, 1}

    actor, critic = copy.deepcopy(agent.actor).double(), copy.deepcopy(agent.critic).double()
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
    agent, args = sac_agent(threads=threads)
    pool, networks = workers(1), (agent.actor, agent.critic, agent.target_critic)
    actor, critic, target = (copy.deepcopy(network).double() for network in networks)
    log_alpha = torch.full((1,), -0.5, dtype=torch.float64, requires_grad=True)
    adams = [torch.optim.Adam(group, lr=3e-4) for group in (actor.parameters(), critic.parameters(), [log_alpha])]
    optimisers = agent.actor_optimiser, agent.critic_optimiser
    vectors = optimisers[0].vectors[:1] + optimisers[1].vectors + optimisers[1].target_vectors + optimisers[0].vectors[1:]
    start = [vector.detach().clone() for vector in vectors]
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
        metrics = agent.update(single, noise, args, pool)
        expected = [critic_loss.item(), actor_loss.item(), -log_probs.mean().item(), alpha.item()]
        assert metrics.tolist() == pytest.approx(expected, rel=1e-3)
    slow = [torch.cat([p.detach().flatten() for p in network.parameters()]) for network in (actor, critic, target)]
    # Adam's step of 3e-4 is unsure where a gradient is hardly more than float32's rounding.
    near, far = (1e-5, 1e-5, 1e-7, 2e-6), (1e-3, 1e-3, 1e-5, 1e-3)
    for vector, expected, before, atol, moved in zip(vectors, [*slow, log_alpha.detach()], start, near, far):
        torch.testing.assert_close(vector.detach().double(), expected, rtol=0, atol=atol)
        assert (vector - before).abs().max() > moved
    for network in networks:
        assert all(parameter.grad is None for parameter in network.parameters())


def test_the_number_of_threads_changes_no_bit():
    """Three updates of one thread and of two."""
    ends = []
    for threads in (1, 2):
        agent, args = sac_agent(threads=threads)
        for seed in range(3):
            noise = torch.randn(2, 12, ACT, generator=torch.Generator().manual_seed(seed))
            agent.update(transitions(seed=seed), noise, args, workers(1))
        ends.append(agent.state_dict())
    assert all(torch.equal(ends[0][name], value) for name, value in ends[1].items())


def test_sac_is_a_plain_loop(tmp_path, monkeypatch):
    """Bit-identical with a loop of the test's own over the environment with a list as buffer.

    Random actions before the warm-up is over, then samples of the policy; from then on one update for each step.
    """
    monkeypatch.setattr(baselines, "ROW", 40)
    quiet(monkeypatch)
    args = SACArgs(
        algo="sac", seed=2, eps_tr=0.2, buffer_size=90, total_steps=120, warm_up=50, batch_size=8, eval_domains=1,
        eps_te=(0.0,), evaluations=1, compile=False, threads=1, runs=str(tmp_path / "runs"),
    )  # fmt: skip
    baselines.set_up_torch(args)
    baselines.sac(args)
    log, evaluation, saved = result(tmp_path)

    torch.manual_seed(2)
    agent = SACAgent(baselines.SquashedActor(11, np.ones(3, np.float32)), baselines.TwinCritic(11, 3), args)
    plain, pool = PlainEpisodes(make_env("Hopper-v4", 0.2), 2, 0.2), workers(1)
    rows = plain.rows
    for iteration in range(3):
        acting, rng = np.random.default_rng([2, 0, iteration, 1]), np.random.default_rng([2, 0, iteration, 0])
        metrics, before = [], len(plain.returns)
        for t in range(40 * iteration, 40 * iteration + 40):
            if t < 50:
                action = acting.uniform(-1, 1, 3).astype(np.float32)
            else:
                action = baselines.squashed_policy(agent.actor)(plain.obs, acting.standard_normal(3, dtype=np.float32))
            plain.step(action)
            if t >= 50:
                ages = rng.integers(min(len(rows), 90), size=8)
                batch = torch.as_tensor(np.stack([rows[-1 - age] for age in ages]))
                batch = Transitions(batch[:, :11], batch[:, 11:14], batch[:, 14], batch[:, 15:26], batch[:, 26])
                noise = torch.as_tensor(rng.standard_normal((2, 8, 3), dtype=np.float32))
                metrics.append(agent.update(batch, noise, args, pool).numpy())
        returns = plain.returns[before:]
        expected = np.mean(returns or plain.returns[-1:] or [math.nan])
        assert log["return"][iteration] == pytest.approx(expected, nan_ok=True)
        assert log["episodes"][iteration] == len(returns)
        for name, value in zip(baselines.SAC_METRICS, np.mean(metrics, axis=0) if metrics else np.zeros(4)):
            assert log[name][iteration] == pytest.approx(value, rel=1e-4)
    assert log["step"].tolist() == [40, 80, 120] and len(plain.returns) > 2
    for name, value in agent.state_dict().items():
        assert torch.equal(saved["parts"]["agent0"][name], value), name
    assert saved["parts"]["agent0"]["actor_optimiser.adams.0.steps"] == 70
    (final,) = evaluate([make_env("Hopper-v4")], {0: baselines.squashed_policy(agent.actor)}, (0.0,), 1)
    assert evaluation["return"] == [final["return"]]


# Runs that are read --------------------------------------------------------------------------------------


def write_run(path, log, evaluation=(), **settings):
    """A finished run's folder by hand: rows (step, agent, return) and (step, agent, eps_te, domain, return)."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"settings": settings}))
    for name, header, rows in (
        ("log.csv", ["step", "agent", "return"], log), ("eval.csv", ["step", "agent", "eps_te", "domain", "return"], evaluation),
    ):  # fmt: skip
        (path / name).write_text("\n".join(",".join(map(str, row)) for row in [header, *rows]) + "\n")
    (path / "figure.png").touch()
    return SavedRun(path)


def test_curves_of_a_run(tmp_path):
    """Means over the last rows, over agents, over domains; by hand."""
    log = [(step, agent, 10 * step + agent) for step in (1, 2, 3) for agent in (0, 1)]
    evaluation = [(s, a, eps, d, 100 * s + 10 * a + d + 1000 * eps) for s in (1, 3) for a in (0, 1) for eps in (0, 0.5) for d in (0, 2)]
    run = write_run(tmp_path / "run", log, evaluation)
    steps, values = run.training_curve(rows=2)
    assert steps.tolist() == [1, 2, 3] and values.tolist() == [10.5, 15.5, 25.5]
    assert run.training_curve(agent=1, rows=1)[1].tolist() == [11, 21, 31]
    steps, values = run.test_curve(0.5)
    assert steps.tolist() == [1, 3] and values.tolist() == [606, 806] and run.test_curve(0, agent=1)[1].tolist() == [111, 311]
    levels, values = run.test_returns()
    assert levels.tolist() == [0, 0.5] and values.tolist() == [306, 806]


def test_finished_runs_are_found_by_their_options(tmp_path):
    """By every option that can change a result; unfinished ones are left out; seeds in order."""
    args = PPOArgs(runs=str(tmp_path), figure="curves", threads=7)
    for name, changes in (("a", {"seed": 10}), ("b", {"seed": 9, "threads": 1}), ("c", {"gamma": 0.9}), ("d", {"seed": 3})):
        write_run(tmp_path / f"baselines-{name}", [], **json.loads(json.dumps(vars(PPOArgs(**changes)))))
    (tmp_path / "baselines-d/figure.png").unlink()
    assert [run.path.name for run in baselines.find_runs(args, "baselines")] == ["baselines-b", "baselines-a"]
    assert [run.path.name for run in baselines.find_runs(args, "baselines", gamma=0.9)] == ["baselines-c"]
    assert baselines.environments(args, "baselines") == ["Hopper-v4"]


def test_bootstrap_covers_the_true_mean_nineteen_times_in_twenty():
    rng = np.random.default_rng(0)
    inside = [low <= 1 <= high for low, high in (bootstrap(rng.normal(1, 1, 30)) for _ in range(300))]
    assert 0.89 < np.mean(inside) < 0.985


def test_lines_are_means_with_intervals():
    """Where curves share an x the line is their mean, and the band their interval; a label without curves keeps its colour."""
    figure, (axis,) = baselines.new_figure()
    curves = [(np.array([1, 2]), np.array([10.0, 20.0])), (np.array([2, 3]), np.array([40.0, 50.0]))]
    baselines.plot_lines(axis, {"none": [], "some": curves}, "x", "y")
    (line,) = axis.lines
    assert line.get_xydata().tolist() == [[1, 10], [2, 30], [3, 50]] and line.get_color() == baselines.COLOURS[1]
    assert line.get_label() == "some, 2 seeds"
    band = axis.collections[0].get_paths()[0].vertices
    assert band[band[:, 0] == 2, 1].min() == 20 and band[band[:, 0] == 2, 1].max() == 40


@pytest.mark.parametrize(("agents", "batch", "steps"), [(2, 4096, 2048), (3, 4096, 1344), (1, 100, 96)])
def test_steps_of_each_agent_are_whole_minibatches(capsys, agents, batch, steps):
    assert baselines.steps_per_agent(PPOArgs(steps_per_iteration=batch), agents) == steps
    assert ("note" in capsys.readouterr().out) == (steps * agents != batch)
