"""Tests of dpd.py: equations by hand and by loops, Proposition 1 against exact solutions, training, figures."""

import copy
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import baselines
import dpd
from dpd import (
    Args, DDPGLearner, PPOLearner, distil_step, distillation_weights, effective_share, regression_loss, share_out,
)  # fmt: skip
from helpers import write_run

OBS, ACT = 5, 3  # sizes of hand-made observations and actions

pytestmark = pytest.mark.usefixtures("quiet")


def settings(**changes):
    """Arguments as a run has them: what is left open is filled in."""
    args = Args(compile=False, **changes)
    return dataclasses.replace(args, **{k: v for k, v in args.left_open().items() if getattr(args, k) is None})


def learner(base, seed):
    """A learner that has seen data, whose outputs are not near zero, and which differs from seed to seed."""
    torch.manual_seed(seed)
    args, scale = settings(base=base), np.full(ACT, 0.4, np.float32)
    made = DDPGLearner(OBS, scale, args) if base == "ddpg" else PPOLearner(OBS, ACT, args)
    with torch.no_grad():
        for network in (made.actor, made.critic):
            [layer for layer in network.net if isinstance(layer, nn.Linear)][-1].weight.normal_(0, 0.5)
    rng = np.random.default_rng(seed)
    seen = rng.normal(seed, 1 + seed, (50, OBS))
    made.actor.norm.update(seen)
    if base == "ppo":
        made.critic.norm.update(seen)
        made.reward_scale.update(rng.normal(0, 2 + 3 * seed, 50))
    return made


def means(each, obs):
    return each.actor(obs) if isinstance(each, DDPGLearner) else each.actor(obs)[0]


def values(each, obs):
    """In units of reward."""
    if isinstance(each, DDPGLearner):
        return each.critic(obs, each.actor(obs))
    return each.critic(obs) * each.reward_scale.std().float()


def exact_values(transitions, rewards, policy, gamma):
    """V of a stochastic policy (S, A): the solution of V = R_pi + gamma P_pi V."""
    p = np.einsum("sa,sat->st", policy, transitions)
    r = np.einsum("sa,sat,sat->s", policy, transitions, rewards)
    return np.linalg.solve(np.eye(len(p)) - gamma * p, r)


def test_the_hybrid_policy_is_at_least_as_good_as_both_everywhere():
    """Proposition 1 and Eq. (2), on random finite Markov decision processes; strictly better somewhere in most."""
    better_somewhere = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        states, actions = rng.integers(4, 20), rng.integers(2, 5)
        transitions = rng.dirichlet(np.full(states, 0.1), (states, actions))
        rewards, gamma = rng.normal(size=(states, actions, states)), rng.uniform(0.5, 0.95)
        policy, peer = rng.dirichlet(np.full(actions, 0.5), (2, states))
        own, theirs = (exact_values(transitions, rewards, each, gamma) for each in (policy, peer))
        hybrid = exact_values(transitions, rewards, np.where((theirs - own > 0)[:, None], peer, policy), gamma)
        assert np.all(hybrid >= np.maximum(own, theirs) - 1e-9)
        better_somewhere += np.any(hybrid > np.maximum(own, theirs) + 1e-6)
    assert better_somewhere > 100


def test_weights_by_hand():
    """exp(alpha (V_peer - V_self)), the paper's sign: a state in which the peer is better counts more."""
    better = torch.tensor([0.0, math.log(2), -math.log(2), math.log(4)])
    expected = torch.tensor([1.0, 2.0, 0.5, 4.0]) / 7.5
    torch.testing.assert_close(distillation_weights(better, 1.0, "exp"), expected)
    torch.testing.assert_close(distillation_weights(better / 3, 3.0, "exp"), expected)
    torch.testing.assert_close(distillation_weights(better, 1.0, "hard"), torch.tensor([0.0, 0.5, 0.0, 0.5]))
    torch.testing.assert_close(distillation_weights(better, 1.0, "none"), torch.full((4,), 0.25))
    # Clipped to [.01, 100] before they are normalised; where no state counts, zero rather than not numbers.
    weights = distillation_weights(torch.tensor([-1e3, 0.0, 1e3]), 1.0, "exp")
    torch.testing.assert_close(weights, torch.tensor([0.01, 1.0, 100.0]) / 101.01)
    assert distillation_weights(torch.tensor([-1.0, -2.0]), 1.0, "hard").tolist() == [0, 0]


def test_effective_share_by_hand():
    """All alike: 1. One alone: its share. 1, 1, 2 of four states: 16 / (4 * 6). Nothing counts: 0."""
    for weights, expected in (([3.0] * 5, 1), ([0, 7.0, 0, 0], 1 / 4), ([1.0, 1, 2, 0], 2 / 3), ([0.0] * 3, 0)):
        assert effective_share(torch.tensor(weights)).item() == pytest.approx(expected)


def test_weights_of_the_wrong_shape_are_refused():
    """(N, 1) would broadcast to (N, N), in which the weights cancel."""
    with pytest.raises(ValueError, match="weights"):
        regression_loss(torch.randn(4, ACT), torch.randn(4, ACT), torch.rand(4, 1))


@pytest.mark.parametrize("weighting", ["exp", "hard", "none"])
@pytest.mark.parametrize("base", ["ddpg", "ppo"])
def test_a_step_of_distillation_the_ordinary_way(base, weighting):
    """Three steps against .backward() and torch's Adam on a copy; nothing but the policy's network changes."""
    args = settings(base=base, weighting=weighting, alpha=0.6)
    own, peer = learner(base, 0), learner(base, 1)
    slow, before, peers = (copy.deepcopy(each) for each in (own, own.state_dict(), peer.state_dict()))
    slow_adam = torch.optim.Adam(slow.actor.net.parameters(), lr={"ddpg": 1e-4, "ppo": 1e-5}[base])
    unit = 1.0 if base == "ddpg" else slow.reward_scale.std().float()
    for step in range(3):
        obs = torch.randn(16, OBS, generator=torch.Generator().manual_seed(step)) * 2
        with torch.no_grad():
            better = (values(peer, obs) - values(slow, obs)) / unit
            exp, hard = (0.6 * better).exp().clamp(0.01, 100), (better > 0).float()
            weights = {"exp": exp, "hard": hard, "none": torch.ones_like(better)}[weighting]
            targets = means(peer, obs)
        assert 0 < (better > 0).float().mean() < 1
        rows = zip(weights / weights.sum(), means(slow, obs), targets)
        loss = sum(weight * ((mine - theirs) ** 2).mean() for weight, mine, theirs in rows)
        slow_adam.zero_grad()
        loss.backward()
        slow_adam.step()
        metrics = dict(zip(dpd.METRICS, distil_step(own, peer, obs, args).tolist()))
        assert metrics["distillation"] == pytest.approx(loss.item(), rel=1e-4)
        assert metrics["peer_better"] == pytest.approx((better > 0).float().mean().item())
        share = 1 / (16 * sum((weight / weights.sum()) ** 2 for weight in weights)).item()
        assert metrics["effective"] == pytest.approx(share)
    after = own.state_dict()
    for fast, expected in zip(own.actor.net.parameters(), slow.actor.net.parameters()):
        torch.testing.assert_close(fast, expected, rtol=0, atol=2e-6)
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith(("actor.net.", "distillation.")) for name in changed)
    assert all(torch.equal(peers[name], value) for name, value in peer.state_dict().items())


def test_minibatches_of_states_are_spread_evenly_up_to_the_last_update():
    """By hand: what each update gets of one, two or three minibatches."""
    assert share_out([0], 5) == [[], [], [], [], [0]] and share_out([0, 1], 4) == [[], [0], [], [1]]
    assert share_out([0, 1, 2], 3) == [[0], [1], [2]] and share_out([0, 1, 2], 2) == [[0], [1, 2]]


TINY = {
    "env": "Hopper-v4", "seed": 5, "eps_tr": 0.3, "threads": 1, "compile": False,
    "eval_domains": 2, "eps_te": (0.0, 0.5), "evaluations": 1,
    "warm_up": 40, "updates": 5, "batch_size": 8, "buffer_size": 90,  # DDPG
    "steps_per_iteration": 80, "epochs": 2, "minibatches": 4,  # PPO
}  # fmt: skip


def train(monkeypatch, train=dpd.train, Args=Args, cycles=2, **changes):
    """A run with cycles of 20 steps, so many for each row of the log; its folder."""
    for module in (baselines, dpd):
        monkeypatch.setattr(module, "CYCLE", 20)
        monkeypatch.setattr(module, "CYCLES", cycles)
    known = {field.name for field in dataclasses.fields(Args)}
    args = Args(**{name: value for name, value in (TINY | changes).items() if name in known})
    train(args)
    return Path(args.runs) / baselines.run_name(args, "dpd" if Args is dpd.Args else "baselines", args.seed)


@pytest.mark.parametrize(("base", "distil_steps"), [("ddpg", 1), ("ppo", 1), ("ppo", 2), ("ppo", 8), ("ppo", 16)])
def test_who_is_taught_when_and_in_which_states(monkeypatch, base, distil_steps):
    """First one learner learns, then the other. Each is taught by the other as it then is, after the gradient steps
    that --distil-steps says, in the other's latest --distil-window states and no others, drawn for each minibatch."""
    learners, visited, lessons = [], ([], []), []
    real_collect, real_make_batch = dpd.Stream.collect, dpd.make_batch
    for name in ("DDPGLearner", "PPOLearner"):
        make = getattr(dpd, name)
        monkeypatch.setattr(dpd, name, lambda *args, make=make: learners.append(make(*args)) or learners[-1])

    def collect(stream, policy, steps):
        own = visited[stream.key[1]]
        return real_collect(stream, lambda obs: own.append(tuple(np.float32(obs))) or policy(obs), steps)

    def make_batch(own, rollouts, args):
        visited[learners.index(own)].extend(map(tuple, rollouts[0].obs))
        return real_make_batch(own, rollouts, args)

    def distil_step(own, peer, obs, args):
        assert peer is learners[1 - learners.index(own)] and obs.shape == (256, 11)
        steps = [int(each.optimiser.steps) for each in (own, peer)]
        lessons.append((learners.index(own), *steps, len(visited[0]), list(map(tuple, obs.numpy()))))
        return torch.zeros(3)

    monkeypatch.setattr(dpd.Stream, "collect", collect)
    monkeypatch.setattr(dpd, "make_batch", make_batch)
    monkeypatch.setattr(dpd, "distil_step", distil_step)
    changes = {"distil_window": 30, "distil_batch": 256, "distil_steps": distil_steps}
    train(monkeypatch, base=base, total_steps=480, **changes)
    updates, counts = (5, range(60, 260, 20)) if base == "ddpg" else (8, (160, 240))  # states seen by each at the time
    after = {1: [8], 2: [4, 8], 8: range(1, 9), 16: [step for step in range(1, 9) for _ in range(2)]}[distil_steps]
    after = range(1, 6) if base == "ddpg" else after  # which updates
    turns = [(turn, count, index, step) for turn, count in enumerate(counts) for index in range(2) for step in after]
    expected = [(index, turn * updates + step, (turn + index) * updates, count) for turn, count, index, step in turns]
    assert [lesson[:4] for lesson in lessons] == expected
    drawn = {}
    for index, _, _, count, states in lessons:
        drawn.setdefault((index, count), set()).update(states)
    for (index, count), states in drawn.items():
        assert states == set(visited[1 - index][count - 30 : count]) and not states & set(visited[index])
    assert len({tuple(states) for *_, states in lessons}) == len(lessons)


@pytest.mark.parametrize("base", ["ddpg", "ppo"])
def test_vanilla_is_bit_identical_with_baselines(monkeypatch, base):
    """Weights, statistics, optimisers, log and evaluation. (PPO's critic has a layer more in both here.)"""
    monkeypatch.setattr(baselines, "ValueCritic", dpd.ValueCritic)
    theirs = {"ddpg": baselines.DDPGArgs, "ppo": baselines.PPOArgs}[base]
    changes = {"total_steps": 240, "initial_std": 0.4}
    one = train(monkeypatch, getattr(baselines, base), theirs, algo=base, **changes)
    other = train(monkeypatch, base=base, method="vanilla", **changes)
    first, second = (torch.load(path / "checkpoint.pt", weights_only=True)["parts"]["agent0"] for path in (one, other))
    assert set(first) == {name for name in second if not name.startswith("distillation.")}
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert second["optimiser.steps"] == (50 if base == "ddpg" else 16)
    assert second["distillation.steps"] == 0
    logs = [baselines.SavedRun(path).table("log.csv") for path in (one, other)]
    common = set(logs[0].dtype.names) & set(logs[1].dtype.names) - {"seconds"}
    assert common >= {"return", *{"ddpg": baselines.DDPGAgent, "ppo": baselines.PPOAgent}[base].METRICS}
    for name in common:
        np.testing.assert_array_equal(logs[0][name], logs[1][name], err_msg=name)
    assert (one / "eval.csv").read_text() == (other / "eval.csv").read_text()


def test_a_row_in_which_no_episode_ended(monkeypatch):
    """Rows of 600 steps where episodes have 1000: the first row has no return, and the run goes on to the next."""
    changes = {"eps_te": (0.0,), "eval_domains": 1, "updates": 1, "distil_batch": 8}
    path = train(monkeypatch, cycles=30, env="HalfCheetah-v4", total_steps=2400, **changes)
    log = baselines.SavedRun(path).table("log.csv")
    assert log["step"].tolist() == [1200, 1200, 2400, 2400] and log["distillation"].all()
    for column in ("return", "best_return"):
        assert np.isnan(log[column]).tolist() == [True, True, False, False]


def test_a_value_that_is_the_papers_own_makes_no_other_folder(monkeypatch, capsys):
    """Given or not, it is one run, whose settings are numbers; the other base's value is another run."""
    path = train(monkeypatch, total_steps=160, alpha=0.75)
    config = json.loads((path / "config.json").read_text())["settings"]
    assert (config["alpha"], config["distil_lr"], config["distil_batch"]) == (0.75, 1e-4, 64)
    assert train(monkeypatch, total_steps=160, distil_lr=1e-4, distil_batch=64) == path
    assert "nothing to do" in capsys.readouterr().out and [*Path("runs").iterdir()] == [path]
    names = [baselines.run_name(Args(base="ppo", alpha=alpha), "dpd", 0) for alpha in (None, 0.5, 0.75)]
    assert names[0] == names[1] != names[2]


def test_the_defaults_are_the_papers():
    """Section 4.2, and the released code's alpha."""
    for base, expected in (("ddpg", (0.75, 1e-4, 64)), ("ppo", (0.5, 1e-5, 256))):
        args = settings(base=base)
        assert (args.alpha, args.distil_lr, args.distil_batch, args.distil_window) == (*expected, 1000)
    assert args.distil_steps == 1 and settings(distil_lr=1e-3).distil_lr == 1e-3
    assert learner("ppo", 0).distillation.rates == [1e-5]
    networks = [network for base in ("ddpg", "ppo") for network in (learner(base, 0).actor, learner(base, 0).critic)]
    sizes = [[layer.out_features for layer in each.net if isinstance(layer, nn.Linear)] for each in networks]
    assert sizes == [[64, 64, 64, ACT], [64, 64, 64, 1], [64, 64, ACT], [64, 64, 64, 1]]


# Figures -------------------------------------------------------------------------------------------------


def fake_run(log=(), evaluation=(), policies=None, **changes):
    """A finished run with these rows of its log and its evaluation, and networks by step."""
    log = [("step", "agent", "return", "best_return"), *log]
    evaluation = [("step", "agent", "eps_te", "domain", "return"), *evaluation]
    return write_run(Args(env="HalfCheetah-v4", **changes), "dpd", policies, log=log, eval=evaluation)


def test_figure_2_by_hand():
    """One learner's curve, the mean and the better of both of a pair: each point from as many steps of all learners."""
    rng = np.random.default_rng(0)
    returns = {"vanilla": rng.normal(size=(2, 60, 1)), "dpd": rng.normal(size=(2, 30, 2))}  # seeds, rows, learners
    for method, table in returns.items():
        for seed, rows in enumerate(table):
            log = [((t + 1) * 120 // len(rows), i, value, 0) for (t, i), value in np.ndenumerate(rows)]
            fake_run(log, method=method, seed=seed)
    lines = dpd.figure_2(Args(figure="2"))[0].axes[0].lines
    alone, pairs = returns["vanilla"][:, -20:, 0].mean(1), returns["dpd"][:, -10:].mean(1)
    expected = [alone.mean(), pairs.mean(), pairs.max(1).mean()]
    np.testing.assert_allclose([line.get_ydata()[-1] for line in lines], expected)
    assert [line.get_xdata()[-1] for line in lines] == [120, 120, 120] and len(lines[1].get_xdata()) == 30


def test_table_1_by_hand(capsys):
    """Means of the last tenth's rows, the best episode, and of the last evaluation at the smallest level."""
    rng, tables = np.random.default_rng(0), {}
    names = "training, mean of the last tenth", "training, best episode"
    names += "deterministic, mean of the learners", "deterministic, better learner"
    for method, learners, weighting in (("dpd", 2, "exp"), ("vanilla", 1, "exp"), ("dpd", 2, "none")):
        label = f"{method}, all states alike" if weighting == "none" else method
        tables[label] = []
        for seed in range(2):
            returns, best = rng.normal(1000, 900, (2, 40, learners))
            tests = rng.normal(1000, 900, (2, learners, 2, 2))  # evaluations, learners, levels, domains
            log = [(100 * t + 100, i, value, best[t, i]) for (t, i), value in np.ndenumerate(returns)]
            rows = [(2000 * t + 2000, i, (0.2, 0.6)[j], k, x) for (t, i, j, k), x in np.ndenumerate(tests)]
            fake_run(log, rows, method=method, seed=seed, eps_te=(0.6, 0.2), weighting=weighting)
            late = [returns[t, i] for t in (36, 37, 38, 39) for i in range(learners)]
            final = [(tests[1, i, 0, 0] + tests[1, i, 0, 1]) / 2 for i in range(learners)]
            tables[label].append((sum(late) / len(late), max(best.flatten()), sum(final) / learners, max(final)))
    expected = []
    for label, rows in tables.items():
        for name, (a, b) in zip(names, zip(*rows)):
            expected.append(f"{label}, {name}: {(a + b) / 2:.0f} [{min(a, b):.0f}, {max(a, b):.0f}], 2")
    assert dpd.FIGURES["table-1"](Args(figure="table-1", eps_te=(0.6, 0.2))) is None  # nothing to draw
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.startswith("HalfCheetah-v4, ddpg: mean over seeds") and lines == expected


@pytest.mark.parametrize(("together", "alone", "stages"), [
    ((100, 200, 300, 400, 500, 600), (100, 200, 300, 400), ((200, 100), (400, 200), (600, 300))),
    ((100, 200, 300), (60, 150, 300), ((100, 60), (200, 60), (300, 150))),  # as near as can be
])  # fmt: skip
def test_figure_3_by_hand(monkeypatch, together, alone, stages):
    """Above Q(s, mu(s)) of ten states, below the distances between actions in a hundred, of a pair and of two alone.

    All are of one age, which the title says: half of DPD's steps are each learner's. States are a third learner's.
    """
    torch.manual_seed(0)
    made, visits, scale = {}, [], np.full(6, 0.5, np.float32)
    runs = [("pair", "dpd", 0, together)]
    runs += [(name, "vanilla", seed, alone) for seed, name in enumerate(("one", "other", "third"))]
    for name, method, seed, steps in runs:
        made[name] = {step: [dpd.DeterministicActor(17, scale), dpd.ActionCritic(17, 6)] for step in steps}
        for step in steps if method == "dpd" else ():
            made[name][step] += [dpd.DeterministicActor(17, scale), dpd.ActionCritic(17, 6)]
        for network in sum(made[name].values(), []):
            [layer for layer in network.net if isinstance(layer, nn.Linear)][-1].weight.data.normal_(0, 0.3)
        fake_run(policies=made[name], method=method, seed=seed)

    def rollout(env, policy, std, domain, number, rng):
        data = baselines.rollout(env, policy, std, domain, number, rng)
        visits.append((policy, std, data.obs, copy.deepcopy(rng)))
        return data

    monkeypatch.setattr(dpd, "rollout", rollout)
    axes = dpd.figure_3(Args(figure="3", base="ppo"))[0].axes  # the base is DDPG's whatever is said
    ((policy, std, visited, rng),) = visits
    states = torch.as_tensor(rng.permutation(visited)[:100])
    last = baselines.numpy_policy(made["third"][max(alone)][0])
    assert visited.shape == (2000, 17) and not std.any() and np.array_equal(policy(visited[0]), last(visited[0]))
    for top, bottom, (step, age) in zip(axes[:3], axes[3:], stages):
        says = f"{step // 2} steps of each learner" if age == step / 2 else f"DPD {step // 2}, DDPG {age} steps"
        assert says in top.get_title()
        first, critic, second, other_critic = made["pair"][step]
        pairs = {"DPD": (first, critic, second, other_critic), "DDPG": (*made["one"][age], *made["other"][age])}
        expected = {}
        for name, (actor, critic, other_actor, other_critic) in pairs.items():
            expected[f"{name}-1"] = [critic(obs[None], actor(obs[None])).item() for obs in states[:10]]
            expected[f"{name}-2"] = [other_critic(obs[None], other_actor(obs[None])).item() for obs in states[:10]]
        assert {line.get_label() for line in top.lines} == set(expected)
        for line in top.lines:
            np.testing.assert_allclose(line.get_ydata(), expected[line.get_label()], rtol=1e-4, atol=1e-5)
        for line, (name, (actor, _, other_actor, _)) in zip(bottom.lines, pairs.items()):
            distances = [math.dist(actor(obs[None])[0].tolist(), other_actor(obs[None])[0].tolist()) for obs in states]
            assert line.get_label() == f"{name}, mean {np.mean(distances):.2f}" and min(distances) > 0.01
            np.testing.assert_allclose(line.get_ydata(), distances, rtol=1e-4, atol=1e-5)
