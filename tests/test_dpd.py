"""Tests of dpd.py: its equations against loops and hand-made examples, Proposition 1 against exact solutions."""

import ast
import copy
import inspect
import math
import shlex
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import baselines  # noqa: E402
import dpd  # noqa: E402
from dpd import (  # noqa: E402
    RECENT, Args, DDPGLearner, PPOLearner, distil, distillation_loss, distillation_step, distillation_weights, state_value,
)  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")
torch.set_num_threads(1)

OBS, ACT = 5, 3  # sizes of hand-made observations and actions

@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """MuJoCo writes its log to the current directory; figures are left open for nobody."""
    monkeypatch.chdir(tmp_path)
    yield
    plt.close("all")

# Helpers -------------------------------------------------------------------------------------------------

def settings(**changes):
    return Args(**{"alpha": 0.75, "compile": False} | changes)

def learner(base, seed):
    """A learner that has seen data, whose outputs are not near zero, and which differs from seed to seed."""
    torch.manual_seed(seed)
    args, reach = settings(), np.full(ACT, 0.4, np.float32)
    made = DDPGLearner(OBS, reach, args) if base == "ddpg" else PPOLearner(OBS, ACT, args)
    with torch.no_grad():
        for network in (made.actor, made.critic):
            [layer for layer in network.net if isinstance(layer, nn.Linear)][-1].weight.normal_(0, 0.5)
    rng = np.random.default_rng(seed)
    seen = rng.normal(seed, 1 + seed, (50, OBS))
    made.actor.norm.absorb(seen)
    if base == "ppo":
        made.critic.norm.absorb(seen)
        made.reward_scale.absorb(rng.normal(0, 2 + 3 * seed, 50))
    return made

def means(each, obs):
    return each.actor(obs) if isinstance(each, DDPGLearner) else each.actor(obs)[0]

def values(each, obs):
    """In units of reward."""
    if isinstance(each, DDPGLearner):
        return each.critic(obs, each.actor(obs))
    return each.critic(obs) * each.reward_scale.std().float()

def everything(each):
    """All tensors of a learner by name."""
    parts = each.parts().items()
    return {f"{name}.{key}": value.clone() for name, part in parts for key, value in part.state_dict().items()}

# Proposition 1 -------------------------------------------------------------------------------------------

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

# Eq. (9), (11), (12) -------------------------------------------------------------------------------------

def test_weights_by_hand():
    """exp(alpha (V_peer - V_self)), the paper's sign: a state in which the peer is better counts more."""
    better = torch.tensor([0.0, math.log(2), -math.log(2), math.log(4)])
    expected = torch.tensor([1.0, 2.0, 0.5, 4.0]) / 7.5
    torch.testing.assert_close(distillation_weights(better, 1.0, "exp"), expected)
    torch.testing.assert_close(distillation_weights(better / 3, 3.0, "exp"), expected)
    torch.testing.assert_close(distillation_weights(better, 1.0, "hard"), torch.tensor([0.0, 0.5, 0.0, 0.5]))
    torch.testing.assert_close(distillation_weights(better, 1.0, "none"), torch.full((4,), 0.25))

def test_weights_are_clipped_before_they_are_normalised():
    """To [.01, 100]; and where no state counts, hard weights are zero rather than not numbers."""
    weights = distillation_weights(torch.tensor([-1e3, 0.0, 1e3]), 1.0, "exp")
    torch.testing.assert_close(weights, torch.tensor([0.01, 1.0, 100.0]) / 101.01)
    assert distillation_weights(torch.tensor([-1.0, -2.0]), 1.0, "hard").tolist() == [0, 0]

def test_effective_share_by_hand():
    """All alike: 1. One alone: its share. 1, 1, 2 of four states: 16 / (4 * 6). Nothing counts: 0."""
    for weights, expected in (([3.0] * 5, 1), ([0, 7.0, 0, 0], 1 / 4), ([1.0, 1, 2, 0], 2 / 3), ([0.0] * 3, 0)):
        assert dpd.effective_share(torch.tensor(weights)).item() == pytest.approx(expected)

def test_loss_by_loops():
    """Sum over states of weight times the mean over action dimensions of the squared difference."""
    torch.manual_seed(0)
    own, theirs, weights = torch.randn(6, ACT), torch.randn(6, ACT), torch.rand(6)
    expected = sum(
        weights[n].item() * sum((own[n, d] - theirs[n, d]).item() ** 2 for d in range(ACT)) / ACT for n in range(6)
    )
    assert distillation_loss(own, theirs, weights).item() == pytest.approx(expected, rel=1e-5)

def test_weights_of_the_wrong_shape_are_refused():
    """(N, 1) would broadcast to (N, N), in which the weights cancel."""
    with pytest.raises(ValueError, match="weights"):
        distillation_loss(torch.randn(4, ACT), torch.randn(4, ACT), torch.rand(4, 1))

def test_alpha_zero_is_plain_mean_square_error():
    """Whichever is better: against the mean over states and dimensions of the squared difference."""
    torch.manual_seed(0)
    own, theirs = torch.randn(2, 8, ACT)
    weights = distillation_weights(torch.randn(8), 0.0, "exp")
    torch.testing.assert_close(distillation_loss(own, theirs, weights), ((own - theirs) ** 2).mean())

@pytest.mark.parametrize("base", ["ddpg", "ppo"])
def test_value_of_a_state(base):
    """Q(s, mu(s)) for DDPG, V(s) for PPO."""
    each, obs = learner(base, 1), torch.randn(7, OBS)
    expected = values(each, obs) / each.value_unit()
    torch.testing.assert_close(state_value(each.actor, each.critic, obs), expected)

# One step of distillation --------------------------------------------------------------------------------

@pytest.mark.parametrize("weighting", ["exp", "hard", "none"])
@pytest.mark.parametrize("base", ["ddpg", "ppo"])
def test_a_step_of_distillation_the_ordinary_way(base, weighting):
    """Three steps against .backward() and torch's Adam on a copy; nothing but the policy's network changes."""
    args = settings(weighting=weighting, alpha=0.6)
    own, peer = learner(base, 0), learner(base, 1)
    slow, before, peers = copy.deepcopy(own), everything(own), everything(peer)
    rate = dpd.DISTILLATION[base][0]
    slow_adam = torch.optim.Adam(slow.actor.net.parameters(), lr=rate)
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
        told = distil(own, peer, obs, distillation_step, args)
        assert told[0].item() == pytest.approx(loss.item(), rel=1e-4)
        assert told[1].item() == pytest.approx((better > 0).float().mean().item())
        assert told[2].item() == pytest.approx(1 / (16 * sum((weight / weights.sum()) ** 2 for weight in weights)).item())
    after = everything(own)
    for fast, expected in zip(own.actor.net.parameters(), slow.actor.net.parameters()):
        torch.testing.assert_close(fast, expected, rtol=0, atol=2e-6)
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith(("actor.net.", "distillation_adam.")) for name in changed)
    assert all(torch.equal(peers[name], value) for name, value in everything(peer).items())

def test_no_gradient_through_weights_or_into_the_peer():
    """The gradient is that of the weighted distance with weights and targets as plain numbers."""
    own, peer = learner("ddpg", 0), learner("ddpg", 1)
    obs = torch.randn(16, OBS)
    better = state_value(peer.actor, peer.critic, obs) - state_value(own.actor, own.critic, obs)
    assert better.requires_grad
    weights = distillation_weights(better, 0.75, "exp")
    assert not weights.requires_grad
    distillation_loss(own.actor(obs), peer.actor(obs), weights).backward()
    for network in (peer.actor, peer.critic, own.critic):
        assert all(parameter.grad is None for parameter in network.parameters())
    assert all(parameter.grad is not None for parameter in own.actor.parameters())

def test_students_come_closer():
    """Many steps, all states counted alike, bring the learner's actions to its peer's."""
    own, peer = learner("ddpg", 0), learner("ddpg", 1)
    own.distillation_adam.learning_rate = 1e-2
    obs = torch.randn(64, OBS)
    distance = (own.actor(obs) - peer.actor(obs)).square().mean().item()
    for _ in range(300):
        distil(own, peer, obs, distillation_step, settings(weighting="none"))
    assert (own.actor(obs) - peer.actor(obs)).square().mean().item() < 0.2 * distance

# The loops -----------------------------------------------------------------------------------------------

TINY = {
    "env": "Hopper-v4", "seed": 5, "eps_tr": 0.3, "threads": 1, "compile": False,
    "eval_domains": 2, "eps_te": (0.0, 0.5), "evaluations": 1,
    "warm_up": 40, "updates": 5, "batch_size": 8, "tau": 0.01, "buffer_size": 90,  # DDPG
    "steps_per_iteration": 80, "epochs": 2, "minibatches": 4,  # PPO
}

def small(monkeypatch, *modules):
    """Cycles of 20 steps, two for each row of the log; no figure at the end."""
    for module in modules:
        monkeypatch.setattr(module, "CYCLE", 20)
        monkeypatch.setattr(module, "CYCLES", 2)
        monkeypatch.setattr(module, "report", lambda run, title: None)

@pytest.mark.parametrize("base", ["ddpg", "ppo"])
def test_states_are_the_latest_of_the_peer(monkeypatch, tmp_path, base):
    """In each round of updates each learner is taught by the other in all of its latest RECENT states, and in no others."""
    small(monkeypatch, dpd)
    monkeypatch.setattr(dpd, "RECENT", 30)
    learners, visited, lessons = [], ([], []), {}
    real_begin, real_collect, real_prepare = dpd.begin, dpd.Stream.collect, dpd.prepare

    def begin(args):
        begun = real_begin(args)
        learners.extend(begun[-1])
        return begun

    def collect(stream, policy, noise):
        rows, returns = real_collect(stream, policy, noise)
        visited[stream.key[1]].extend(map(tuple, rows[:, :11]))
        return rows, returns

    def prepare(actor, reward_scale, rollouts, gamma):
        (index,) = [i for i, each in enumerate(learners) if each.actor is actor]
        visited[index].extend(map(tuple, rollouts[0].obs))
        return real_prepare(actor, reward_scale, rollouts, gamma)

    def distil(own, peer, obs, compiled_step, args):
        (index,) = [i for i, each in enumerate(learners) if each is own]
        assert peer is learners[1 - index] and obs.shape == (dpd.DISTILLATION[base][1], 11)
        lessons.setdefault((index, len(visited[index])), []).append(list(map(tuple, obs.numpy())))
        return torch.zeros(3)

    monkeypatch.setattr(dpd, "begin", begin)
    monkeypatch.setattr(dpd.Stream, "collect", collect)
    monkeypatch.setattr(dpd, "prepare", prepare)
    monkeypatch.setattr(dpd, "distil", distil)
    args = settings(**TINY | {"base": base, "total_steps": 480, "runs": str(tmp_path / "runs")})
    {"ddpg": dpd.train_ddpg, "ppo": dpd.train_ppo}[base](args)
    counts = range(60, 260, 20) if base == "ddpg" else (160, 240)
    assert set(lessons) == {(index, count) for index in range(2) for count in counts}
    for (index, count), states in lessons.items():
        assert len(states) == len(set(map(tuple, states))) == (5 if base == "ddpg" else 8)
        assert set().union(*states) == set(visited[1 - index][count - 30 : count])
        assert not set().union(*states) & set(visited[index])

@pytest.mark.parametrize(("base", "exploration"), [("ddpg", "parameter"), ("ddpg", "action"), ("ppo", "parameter")])
def test_vanilla_is_baselines_to_the_bit(monkeypatch, tmp_path, base, exploration):
    """Same weights, statistics, optimisers, log and evaluation as baselines.py makes with the same settings.

    But for the layer more in PPO's critic, which both have here.
    """
    small(monkeypatch, baselines, dpd)
    monkeypatch.setattr(baselines, "ValueCritic", dpd.ValueCritic)
    tiny = TINY | {"total_steps": 240, "exploration": exploration, "runs": str(tmp_path / "runs")}
    getattr(baselines, base)(baselines.Args(algo=base, **tiny))
    {"ddpg": dpd.train_ddpg, "ppo": dpd.train_ppo}[base](settings(base=base, method="vanilla", **tiny))
    one, other = sorted((tmp_path / "runs").iterdir())
    assert (one.name.split("-")[0], other.name.split("-")[0]) == ("baselines", "dpd")
    first, second = (torch.load(path / "checkpoint.pt", weights_only=True)["state"] for path in (one, other))
    assert {f"{name}0" for name in first} | {"distillation_adam0"} == set(second)
    for name, part in first.items():
        for key, value in part.items():
            assert np.array_equal(value, second[f"{name}0"][key]), (name, key)
    assert first["actor_adam" if base == "ddpg" else "adam"]["steps"] == (50 if base == "ddpg" else 16)
    assert second["distillation_adam0"]["steps"] == 0
    logs = [baselines.read_csv(path / "log.csv") for path in (one, other)]
    common = set(logs[0]) & set(logs[1]) - {"seconds"}
    losses = {"critic_loss", "value"} if base == "ddpg" else {"surrogate", "value_loss", "log_std"}
    assert common == {"step", "agent", "return"} | losses and all(logs[0][name][-1] != 0 for name in losses)
    for name in common:
        np.testing.assert_array_equal(logs[0][name], logs[1][name], err_msg=name)
    assert (one / "eval.csv").read_text() == (other / "eval.csv").read_text()

# What this file repeats ----------------------------------------------------------------------------------

def meaning(thing):
    """The syntax tree, without docstrings and comments."""
    tree = ast.parse(inspect.getsource(thing))
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)

REPEATED = """relu_network DeterministicActor ActionCritic linear GaussianActor ddpg_targets ddpg_critic_loss ddpg_actor_loss
gradient_of ddpg_step ddpg_update exploration Batch gaussian_log_prob ppo_loss value_loss clip_norm ppo_gradients
ppo_adam_step prepare estimate shuffle"""

@pytest.mark.parametrize("name", REPEATED.split())
def test_what_both_scripts_define_is_the_same(name):
    """So that the tests of one hold for the other."""
    assert getattr(dpd, name) is not getattr(baselines, name)
    assert meaning(getattr(dpd, name)) == meaning(getattr(baselines, name))

def test_the_defaults_are_the_papers():
    """Section 4.2, the released code's alpha, and for the rest what baselines.py has."""
    assert dpd.ALPHA == {"ddpg": 0.75, "ppo": 0.5} and RECENT == 1000
    assert dpd.DISTILLATION == {"ddpg": (1e-4, 64), "ppo": (1e-5, 256)}
    ddpg, ppo = learner("ddpg", 0), learner("ppo", 0)
    assert [layer.out_features for layer in ddpg.actor.net if isinstance(layer, nn.Linear)] == [64, 64, 64, ACT]
    assert [layer.out_features for layer in ddpg.critic.net if isinstance(layer, nn.Linear)] == [64, 64, 64, 1]
    assert [layer.out_features for layer in ppo.actor.net if isinstance(layer, nn.Linear)] == [64, 64, ACT]
    assert [layer.out_features for layer in ppo.critic.net if isinstance(layer, nn.Linear)] == [64, 64, 64, 1]
    assert ddpg.distillation_adam.learning_rate == 1e-4 and ppo.distillation_adam.learning_rate == 1e-5
    args = Args()
    assert (args.base, args.method, args.alpha, args.weighting, args.gamma) == ("ddpg", "dpd", None, "exp", 0.99)
    assert (args.actor_learning_rate, args.critic_learning_rate, args.critic_decay, args.tau) == (1e-4, 1e-3, 1e-2, 0.01)
    assert (args.batch_size, args.buffer_size, args.updates, args.warm_up) == (64, 1_000_000, 50, 10_000)
    assert (args.exploration, args.noise, dpd.CYCLE, ddpg.actor.norm.clip) == ("parameter", 0.2, 100, 5)
    assert (args.steps_per_iteration, args.epochs, args.minibatches, args.learning_rate) == (2048, 10, 32, 3e-4)
    assert (args.clip, args.gae_lambda, args.max_grad_norm) == (0.2, 0.95, 0.5)
    assert (ddpg.actor_adam.learning_rate, ddpg.critic_adam.learning_rate, ppo.adam.learning_rate) == (1e-4, 1e-3, 3e-4)

# What is missing for a figure ----------------------------------------------------------------------------

def test_figure_2_by_hand(monkeypatch, tmp_path):
    """One learner's curve, the mean and the better of both of a pair: each point from as many steps of all learners."""
    rng, paths = np.random.default_rng(0), {"vanilla": [], "dpd": []}
    returns = {"vanilla": rng.normal(size=(2, 60, 1)), "dpd": rng.normal(size=(2, 30, 2))}  # seeds, rows, learners
    for method, table in returns.items():
        for seed, rows in enumerate(table):
            paths[method].append(tmp_path / f"{method}{seed}")
            paths[method][-1].mkdir()
            lines = [f"{(t + 1) * 120 // len(rows)},{i},{rows[t, i]}" for t in range(len(rows)) for i in range(rows.shape[1])]
            (paths[method][-1] / "log.csv").write_text("\n".join(["step,agent,return", *lines]))
    monkeypatch.setattr(dpd, "look_up", lambda args, by: {("Hopper-v4", method): each for method, each in paths.items()})
    (axis,) = dpd.figure_2(settings(figure="2")).axes
    ends = [line.get_ydata()[-1] for line in axis.lines]
    alone, pairs = returns["vanilla"][:, -20:, 0].mean(1), returns["dpd"][:, -10:].mean(1)
    np.testing.assert_allclose(ends, [alone.mean(), pairs.mean(), pairs.max(1).mean()])
    assert [line.get_xdata()[-1] for line in axis.lines] == [120, 120, 120] and len(axis.lines[1].get_xdata()) == 30

def test_table_1_by_hand(monkeypatch, tmp_path, capsys):
    """Means of the last tenth's rows, the best episode, and means of the last evaluation at the smallest strength asked for."""
    rng, paths, expected = np.random.default_rng(0), {}, {}
    for method, learners in (("vanilla", 1), ("dpd", 2)):
        statistics, paths["Hopper-v4", method] = [], []
        for seed in range(2):
            path = tmp_path / f"{method}{seed}"
            path.mkdir()
            returns, best = rng.normal(1000, 900, (2, 40, learners))
            tests = rng.normal(1000, 900, (2, learners, 2, 2))  # evaluations, learners, strengths, domains
            lines = [f"{100 * t + 100},{i},{returns[t, i]},{best[t, i]}" for t in range(40) for i in range(learners)]
            (path / "log.csv").write_text("\n".join(["step,agent,return,best_return", *lines]))
            lines = [f"{2000 * t + 2000},{i},{(0.2, 0.6)[j]},{k},{value}" for (t, i, j, k), value in np.ndenumerate(tests)]
            (path / "eval.csv").write_text("\n".join(["step,agent,eps_te,domain,return", *lines]))
            late = [returns[t, i] for t in (36, 37, 38, 39) for i in range(learners)]
            final = [(tests[1, i, 0, 0] + tests[1, i, 0, 1]) / 2 for i in range(learners)]
            statistics.append((sum(late) / len(late), max(best.flatten()), sum(final) / learners, max(final)))
            paths["Hopper-v4", method].append(path)
        expected[method] = [f"{(a + b) / 2:.0f} +- {abs(a - b) / 2:.0f}" for a, b in zip(*statistics)]
    assert expected["vanilla"][2] == expected["vanilla"][3] and len(set(expected["dpd"])) == 4
    monkeypatch.setattr(dpd, "look_up", lambda args, by: paths)
    dpd.table_1(settings(table="1", eps_te=(0.6, 0.2)))
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("Hopper-v4")]
    assert rows == [["Hopper-v4", method, "2", *" ".join(cells).split()] for method, cells in expected.items()]

@pytest.mark.parametrize(
    ("together", "alone", "other", "expected"),
    [
        ((100, 200, 300, 400, 500, 600), (100, 200, 300, 400), (100, 200, 300, 400), ((200, 100), (400, 200), (600, 300))),
        ((100, 200, 300), (10, 60, 150, 300), (60, 150, 300), ((100, 60), (200, 60), (300, 150))),  # as near as can be
    ],
)
def test_figure_3_compares_learners_of_one_age(monkeypatch, together, alone, other, expected):
    """Half of DPD's steps are each learner's; the title says so, and how old the others are if that is not the same."""
    paths = [Path(name) for name in ("together", "alone", "other")]
    kept, asked = dict(zip(paths, (together, alone, other))), []

    def networks_of(path, step):
        asked.append((path, step))
        torch.manual_seed(step)
        reach = np.ones(6, np.float32)
        return [(dpd.DeterministicActor(17, reach), dpd.ActionCritic(17, 6)) for _ in range(2)]

    monkeypatch.setattr(dpd, "look_up", lambda args, by: {("dpd",): paths[:1], ("vanilla",): paths[1:]})
    monkeypatch.setattr(dpd, "steps_of", lambda path: list(kept[path]))
    monkeypatch.setattr(dpd, "networks_of", networks_of)
    figure = dpd.figure_3(settings(figure="3"))
    assert asked[1:] == [pair for step, age in expected for pair in zip(paths, (step, age, age))]
    for axis, (step, age) in zip(figure.axes, expected):
        says = f"{step // 2} steps of each learner" if age == step / 2 else f"DPD {step // 2}, DDPG {age} steps"
        assert says in axis.get_title()

def test_figure_3_by_hand(monkeypatch):
    """Above Q(s, mu(s)) of ten states, below the distances between actions in a hundred, of a pair and of two alone."""
    paths, made, visits = [Path(name) for name in ("together", "alone", "other")], {}, []
    steps = dict(zip(paths, ([200, 400, 600], [100, 200, 300], [100, 200, 300])))

    def networks_of(path, step):
        torch.manual_seed(1000 * paths.index(path) + step)
        reach = np.full(6, 0.5, np.float32)
        made[path, step] = [(dpd.DeterministicActor(17, reach), dpd.ActionCritic(17, 6)) for _ in range(2)]
        for network in sum(made[path, step], ()):
            [layer for layer in network.net if isinstance(layer, nn.Linear)][-1].weight.normal_(0, 0.3)
        return made[path, step]

    def rollout(env, policy, std, domain, number, rng):
        data = baselines.rollout(env, policy, std, domain, number, rng)
        visits.append((policy, std, data.obs, copy.deepcopy(rng)))
        return data

    monkeypatch.setattr(dpd, "look_up", lambda args, by: {("dpd",): paths[:1], ("vanilla",): paths[1:]})
    monkeypatch.setattr(dpd, "steps_of", steps.get)
    monkeypatch.setattr(dpd, "networks_of", networks_of)
    monkeypatch.setattr(dpd, "rollout", rollout)
    axes = dpd.figure_3(settings(figure="3", seed=1)).axes
    ((policy, std, visited, rng),) = visits
    states = torch.as_tensor(rng.permutation(visited)[:100])
    assert visited.shape == (2000, 17) and not std.any()
    last = baselines.numpy_policy(made[paths[1], 300][0][0])
    assert all(np.array_equal(policy(obs), last(obs)) for obs in visited[:20])
    for top, bottom, age in zip(axes[:3], axes[3:], (100, 200, 300)):
        pairs = made[paths[0], 2 * age], [made[path, age][0] for path in paths[1:]]
        assert [line.get_label() for line in top.lines] == ["DPD-1", "DPD-2", "DDPG-1", "DDPG-2"]
        for line, (actor, critic) in zip(top.lines, [*pairs[0], *pairs[1]]):
            values = [critic(obs[None], actor(obs[None])).item() for obs in states[:10]]
            np.testing.assert_allclose(line.get_ydata(), values, rtol=1e-4, atol=1e-5)
        for (one, _), (other, _), line, mean in zip(*zip(*pairs), bottom.lines[::2], bottom.lines[1::2]):
            distances = [math.dist(one(obs[None])[0].tolist(), other(obs[None])[0].tolist()) for obs in states]
            assert min(distances) > 0.01
            np.testing.assert_allclose(line.get_ydata(), distances, rtol=1e-4, atol=1e-5)
            assert mean.get_ydata() == pytest.approx([sum(distances) / 100] * 2, rel=1e-4)

def test_missing_runs_are_named_by_the_commands_that_make_them(monkeypatch, tmp_path, capsys):
    """With every setting that was given, in a form that a shell and the script read back; nothing that is as usual."""
    given = ["--table", "1", "--base", "ppo", "--weighting", "hard", "--total-steps", "40960", "--runs", str(tmp_path / "a b")]
    monkeypatch.setattr(sys, "argv", ["dpd.py", *given])
    with pytest.raises(SystemExit):
        dpd.main()
    commands = [line.strip() for line in capsys.readouterr().out.splitlines() if "python dpd.py" in line]
    assert len(commands) == 2 and not any("--alpha" in command or "--env" not in command for command in commands)
    for method, command in zip(("dpd", "vanilla"), commands):
        monkeypatch.setattr(sys, "argv", shlex.split(command)[1:])
        args = dpd.parse_args(dpd.Args, "")
        expected = (method, "ppo", "hard", 40_960, str(tmp_path / "a b"), (0, 1, 2), "")
        assert (args.method, args.base, args.weighting, args.total_steps, args.runs, args.seeds, args.table) == expected
