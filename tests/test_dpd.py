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
    """Section 4.2, and the released code's alpha."""
    assert dpd.ALPHA == {"ddpg": 0.75, "ppo": 0.5} and RECENT == 1000
    assert dpd.DISTILLATION == {"ddpg": (1e-4, 64), "ppo": (1e-5, 256)}
    ddpg, ppo = learner("ddpg", 0), learner("ppo", 0)
    assert [layer.out_features for layer in ddpg.actor.net if isinstance(layer, nn.Linear)] == [64, 64, 64, ACT]
    assert [layer.out_features for layer in ddpg.critic.net if isinstance(layer, nn.Linear)] == [64, 64, 64, 1]
    assert [layer.out_features for layer in ppo.actor.net if isinstance(layer, nn.Linear)] == [64, 64, ACT]
    assert [layer.out_features for layer in ppo.critic.net if isinstance(layer, nn.Linear)] == [64, 64, 64, 1]
    assert ddpg.distillation_adam.learning_rate == 1e-4 and ppo.distillation_adam.learning_rate == 1e-5

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
