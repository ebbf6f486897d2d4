"""Tests of piekd_cikd.py: its equations against loops and Monte Carlo, its bookkeeping against a slow Algorithm 1."""

import ast
import copy
import inspect
import json
import math
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import baselines  # noqa: E402
import piekd_cikd  # noqa: E402
from baselines import Adam, ReplayBuffer, Stream, read_csv  # noqa: E402
from piekd_cikd import (  # noqa: E402
    CURVES, FIGURES, Args, SACLearner, SACUpdate, Standings, by_agent, counter_after_phase, critic_distillation_loss,
    critic_distillation_step, distil, elect, gaussian_kl, learn_on, minibatches_of_phase, number_of_minibatches,
    policy_distillation_loss, policy_distillation_step, surpassing, teach, variant,
)  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")
torch.set_num_threads(1)

OBS, ACT = 5, 3  # sizes of hand-made observations and actions
STEPS = policy_distillation_step, critic_distillation_step

@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """MuJoCo writes its log to the current directory."""
    monkeypatch.chdir(tmp_path)

# Helpers -------------------------------------------------------------------------------------------------

def settings(**changes):
    return Args(**{"compile": False, "batch_size": 8, "threads": 1} | changes)

def learners(number=3, **changes):
    """Agents that have learned for a while: outputs not near zero, own temperatures, Adams that have seen gradients."""
    torch.manual_seed(0)
    made = [SACLearner(OBS, np.array([1.0, 0.4, 2.0], np.float32), settings(**changes)) for _ in range(number)]
    with torch.no_grad():
        for agent in made:
            for vector in agent.vectors:
                vector.add_(0.02 * torch.randn_like(vector))
            for adam in (agent.actor_adam, agent.critic_adam, agent.temperature_adam):
                adam(torch.zeros_like(adam.mean), torch.randn_like(adam.mean))
    return made

def memory(path, rows=40, size=40, seed=0):
    """A buffer of random rows, the third part of which are deaths."""
    buffer = ReplayBuffer(path, OBS, ACT, size, resuming=False)
    content = np.random.default_rng(seed).normal(size=(rows, sum(buffer.widths))).astype(np.float32)
    content[:, -1] = np.arange(rows) % 3 == 0
    buffer.add(content)
    return buffer

def everything(agent):
    """All tensors of an agent by name."""
    parts = agent.parts().items()
    return {f"{name}.{key}": value.clone() for name, part in parts for key, value in part.state_dict().items()}

def changed(before, after):
    """The parts of an agent in which something differs."""
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}

def distances(student, teacher, buffer):
    """Both losses over the whole buffer."""
    batch = buffer.split(torch.as_tensor(buffer.latest(len(buffer))))
    policy = policy_distillation_loss(student.actor, teacher.actor, batch.obs)
    return policy.item(), critic_distillation_loss(student.critic, teacher.critic, batch.obs, batch.actions).item()

# Eq. (1), (2) --------------------------------------------------------------------------------------------

def two_policies(steps, seed=0):
    torch.manual_seed(seed)
    return [(torch.randn(steps, ACT).double(), 0.5 * torch.randn(steps, ACT).double()) for _ in range(2)]

def test_gaussian_kl():
    """Against torch.distributions, in both directions."""
    p, q = two_policies(20)
    for first, second in ((p, q), (q, p), (p, p)):
        normals = [torch.distributions.Normal(mean, log_std.exp()) for mean, log_std in (first, second)]
        expected = torch.distributions.kl_divergence(*normals).sum(-1)
        torch.testing.assert_close(gaussian_kl(first, second), expected)
    assert (gaussian_kl(p, q) - gaussian_kl(q, p)).abs().min() > 1e-3

def test_the_kl_of_squashed_gaussians_is_that_before_the_squash():
    """Monte Carlo: mean of log p(a) - log q(a) over actions from p, both densities those of the squashed actions."""
    p, q = two_policies(4, seed=1)
    transforms = [torch.distributions.TanhTransform(cache_size=1)]
    dists = [
        torch.distributions.TransformedDistribution(torch.distributions.Normal(mean, log_std.exp()), transforms)
        for mean, log_std in (p, q)
    ]
    torch.manual_seed(2)
    actions = dists[0].sample((100_000,))
    differences = (dists[0].log_prob(actions) - dists[1].log_prob(actions)).sum(-1)
    assert differences.isfinite().all()
    error = differences.std(0) / math.sqrt(len(differences))
    assert ((differences.mean(0) - gaussian_kl(p, q)).abs() < 4 * error).all() and (error < 0.05 * gaussian_kl(p, q)).all()

def test_policy_distillation_loss_state_by_state():
    """Eq. (1): mean over states of KL(teacher || student), no gradient into the teacher."""
    student, teacher = learners(2)
    obs = torch.randn(7, OBS)
    expected = []
    for n in range(7):
        pair = teacher.actor(obs[n]), student.actor(obs[n])
        dists = [torch.distributions.Normal(mean, log_std.exp()) for mean, log_std in pair]
        expected.append(torch.distributions.kl_divergence(*dists).sum().item())
    loss = policy_distillation_loss(student.actor, teacher.actor, obs)
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-4)
    assert policy_distillation_loss(teacher.actor, student.actor, obs).item() != pytest.approx(loss.item(), rel=1e-3)
    loss.backward()
    assert all(parameter.grad is None for parameter in teacher.actor.parameters())
    assert all(parameter.grad.any() for parameter in student.actor.parameters())

def test_critic_distillation_loss_pair_by_pair():
    """Eq. (2): mean square difference, Q_1 to Q_1 and Q_2 to Q_2, at the actions of the buffer."""
    student, teacher = learners(2)
    obs, actions = torch.randn(7, OBS), torch.randn(7, ACT)
    squares = []
    for mine, theirs in zip(student.critic.nets, teacher.critic.nets):
        for n in range(7):
            inputs = torch.cat([obs[n], actions[n]])
            squares.append((mine(inputs) - theirs(inputs)).item() ** 2)
    loss = critic_distillation_loss(student.critic, teacher.critic, obs, actions)
    assert loss.item() == pytest.approx(np.mean(squares), rel=1e-4)
    loss.backward()
    assert all(parameter.grad is None for parameter in teacher.critic.parameters())

# Minibatches of a phase ----------------------------------------------------------------------------------

@pytest.mark.parametrize(("rows", "size", "remembered"), [(40, 8, 40), (43, 8, 40), (33, 8, 33), (8, 8, 8)])
def test_passes_over_the_buffer(tmp_path, rows, size, remembered):
    """Each row once in each pass, but for what does not fill a minibatch; each pass in an order of its own."""
    buffer, args = memory(tmp_path / "buffer", rows, size=40), settings(batch_size=size, distill_epochs=3)
    batches = list(minibatches_of_phase(buffer, args, np.random.default_rng(0)))
    each = remembered // size
    assert len(batches) == number_of_minibatches(buffer, args) == 3 * each
    known, orders = buffer.latest(remembered)[:, 0].tolist(), []
    for i in range(3):
        order = torch.cat([batch.obs[:, 0] for batch in batches[each * i : each * (i + 1)]]).tolist()
        assert len(set(order)) == len(order) == each * size and set(order) <= set(known)
        orders.append(order)
    assert orders[0] != orders[1] != orders[2] and orders[0] != known
    again = list(minibatches_of_phase(buffer, args, np.random.default_rng(0)))
    assert all(torch.equal(a.obs, b.obs) for a, b in zip(batches, again))
    other = list(minibatches_of_phase(buffer, args, np.random.default_rng(1)))
    assert not all(torch.equal(a.obs, b.obs) for a, b in zip(batches, other))

@pytest.mark.parametrize("updates", [1, 4, 5, 13])
def test_a_number_of_minibatches_in_place_of_passes(tmp_path, updates):
    """That many, which begin a new pass whenever one is over."""
    buffer = memory(tmp_path / "buffer")
    batches = list(minibatches_of_phase(buffer, settings(distill_updates=updates), np.random.default_rng(0)))
    assert len(batches) == updates == number_of_minibatches(buffer, settings(distill_updates=updates))
    for i in range(0, updates, 5):
        rows = torch.cat([batch.obs[:, 0] for batch in batches[i : i + 5]]).tolist()
        assert len(set(rows)) == len(rows)

# One phase -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("what", ["both", "policy", "critic"])
def test_distillation_the_ordinary_way(tmp_path, what):
    """A phase against .backward() and fresh optimisers of torch on copies; only what is taught changes."""
    student, teacher = learners(2)
    buffer, args = memory(tmp_path / "buffer"), settings(distil=what, distill_epochs=2)
    slow, before, teachers = copy.deepcopy(student), everything(student), everything(teacher)
    optimisers = [torch.optim.Adam(network.parameters(), lr=1e-3) for network in (slow.actor, slow.critic)]
    told = [[], []]
    for batch in minibatches_of_phase(buffer, args, np.random.default_rng(3)):
        pairs = [network(batch.obs) for network in (teacher.actor, slow.actor)]
        dists = [torch.distributions.Normal(mean, log_std.exp()) for mean, log_std in pairs]
        kl = torch.distributions.kl_divergence(*dists).sum(-1).mean()
        error = nn.functional.mse_loss(slow.critic(batch.obs, batch.actions), teacher.critic(batch.obs, batch.actions))
        for i, (loss, optimiser, skipped) in enumerate(zip((kl, error), optimisers, ("critic", "policy"))):
            if what == skipped:
                continue
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            told[i].append(loss.item())
    losses = distil(student, teacher, buffer, *STEPS, args, np.random.default_rng(3))
    assert losses == pytest.approx([np.mean(each) if each else 0 for each in told], rel=1e-3)
    for fast, expected in zip((student.actor, student.critic), (slow.actor, slow.critic)):
        for a, b in zip(fast.parameters(), expected.parameters()):
            torch.testing.assert_close(a, b, rtol=0, atol=2e-4)
    wanted = {"both": {"actor", "critic"}, "policy": {"actor"}, "critic": {"critic"}}[what]
    assert changed(before, everything(student)) == wanted and changed(teachers, everything(teacher)) == set()

@pytest.mark.parametrize("what", ["both", "policy", "critic"])
def test_students_come_closer_and_the_rest_stays(tmp_path, what):
    """Both losses fall; the teacher, temperatures, own Adams and the buffer stay to the bit; targets take one step."""
    agents, buffer = learners(3), memory(tmp_path / "buffer")
    args = settings(distil=what, distill_epochs=30)
    rows, before = buffer.latest(40).copy(), [everything(agent) for agent in agents]
    apart = [distances(agent, agents[1], buffer) for agent in agents]
    targets, random_state = [agent.vectors[2].detach().clone() for agent in agents], torch.get_rng_state()
    losses = teach(agents, 1, buffer, STEPS, args, phase_number=0)
    assert losses[1] == [0, 0] and changed(before[1], everything(agents[1])) == set()
    assert np.array_equal(buffer.latest(40), rows) and buffer.count == 40 and torch.equal(torch.get_rng_state(), random_state)
    taught = {"both": {"actor", "critic"}, "policy": {"actor"}, "critic": {"critic"}}[what]
    for k in (0, 2):
        assert changed(before[k], everything(agents[k])) == taught | {"target_critic"}
        after = distances(agents[k], agents[1], buffer)
        for i, name in enumerate(("actor", "critic")):
            assert after[i] < 0.2 * apart[k][i] if name in taught else after[i] == apart[k][i]
            assert after[i] < losses[k][i] < apart[k][i] if name in taught else losses[k][i] == 0
        expected = targets[k] + 0.005 * (agents[k].vectors[1].detach() - targets[k])
        torch.testing.assert_close(agents[k].vectors[2].detach(), expected, rtol=0, atol=1e-7)
        assert agents[k].vectors[2].data_ptr() != agents[k].vectors[1].data_ptr()

def test_each_phase_has_adams_and_an_order_of_its_own(tmp_path):
    """Fresh ones for each student and network, at the rate of the distillation; other minibatches for each student."""
    agents, buffer, seen = learners(3), memory(tmp_path / "buffer"), []

    def policy_step(student, teacher, adam, vector, obs):
        seen.append((adam, adam.steps.item(), adam.mean.abs().max().item(), obs.clone()))
        return policy_distillation_step(student, teacher, adam, vector, obs)

    for phase in (0, 1):
        teach(agents, 0, buffer, (policy_step, critic_distillation_step), settings(distill_updates=3, distill_lr=2e-3), phase)
    adams, steps, means, observations = zip(*seen)
    assert steps == (0, 1, 2) * 4 and all((mean == 0) == (step == 0) for mean, step in zip(means, steps))
    assert len({id(adam) for adam in adams}) == 4 and {adam.learning_rate for adam in adams} == {2e-3}
    own = {id(adam) for agent in agents for adam in (agent.actor_adam, agent.critic_adam)}
    assert not own & {id(adam) for adam in adams}
    assert len({obs.numpy().tobytes() for obs in observations}) == 12

def test_a_phase_is_determined_by_seed_agent_and_phase(tmp_path):
    """The same again to the bit; whom else there is to teach changes nothing; another phase or seed is another."""
    buffer, outcomes = memory(tmp_path / "buffer"), []
    for seed, phase, number in ((0, 0, 3), (0, 0, 2), (1, 0, 3), (0, 1, 3)):
        agents = learners(3)[:number]
        teach(agents, 0, buffer, STEPS, settings(distill_updates=3, seed=seed), phase)
        outcomes.append(agents[1].vectors[0].detach().clone())
    assert torch.equal(outcomes[0], outcomes[1])
    assert not torch.equal(outcomes[0], outcomes[2]) and not torch.equal(outcomes[0], outcomes[3])

@pytest.mark.parametrize("reset", [False, True])
def test_students_side_by_side_are_students_one_after_the_other(tmp_path, reset):
    """To the bit, losses too, with as many threads as one likes."""
    buffer, outcomes = memory(tmp_path / "buffer"), []
    args = settings(distill_updates=20, reset_students=reset)
    for threads in (0, 2, 4):
        agents = learners(5)
        with ThreadPoolExecutor(max(threads, 1)) as pool:
            losses = teach(agents, 3, buffer, STEPS, args, 1, pool.map if threads else map)
        outcomes.append((losses, [everything(agent) for agent in agents]))
    for losses, parts in outcomes[1:]:
        assert losses == outcomes[0][0] and losses[3] == [0, 0] and min(min(losses[k]) for k in (0, 1, 2, 4)) > 0
        assert all(changed(before, after) == set() for before, after in zip(outcomes[0][1], parts))

def test_only_what_is_compiled_is_done_side_by_side():
    """Not with a teacher's first phase, nor with one thread, nor on a GPU."""
    teaching = piekd_cikd.Teaching(settings(threads=3))
    assert teaching.map_for(1) is map and teaching.map_for(2) is map
    assert teaching.map_for(1) == teaching.pool.map == teaching.map_for(2)
    for changes in ({"threads": 1}, {"threads": 3, "device": "cuda"}):
        teaching = piekd_cikd.Teaching(settings(**changes))
        assert [teaching.map_for(1) for _ in range(2)] == [map, map]

# Ablations of a phase ------------------------------------------------------------------------------------

def test_hardcopy(tmp_path):
    """Students' policy and critic become the teacher's to the bit, their targets take a step; nothing else changes."""
    agents, buffer = learners(3), memory(tmp_path / "buffer")
    before, targets = [everything(agent) for agent in agents], [agent.vectors[2].detach().clone() for agent in agents]
    losses = teach(agents, 2, buffer, (None, None), settings(share="hardcopy"), phase_number=0)
    assert losses == [[0, 0]] * 3 and changed(before[2], everything(agents[2])) == set()
    for k in (0, 1):
        assert changed(before[k], everything(agents[k])) == {"actor", "critic", "target_critic"}
        for mine, theirs in zip(agents[k].vectors[:2], agents[2].vectors):
            assert torch.equal(mine, theirs) and mine.data_ptr() != theirs.data_ptr()
        expected = targets[k] + 0.005 * (agents[2].vectors[1].detach() - targets[k])
        torch.testing.assert_close(agents[k].vectors[2].detach(), expected, rtol=0, atol=1e-7)

@pytest.mark.parametrize("number", [1, 2])
def test_extra_updates(tmp_path, number):
    """Each agent learns on by itself, as often as a phase has minibatches: against single updates of copies."""
    agents, buffer = learners(number), memory(tmp_path / "buffer")
    args = settings(share="extra", distill_epochs=2, seed=4)
    slow, before = learners(number), [everything(agent) for agent in agents]
    learn_on(agents, buffer, SACUpdate(args), args, phase_number=7)
    for k, (agent, alone) in enumerate(zip(agents, slow)):
        rng = np.random.default_rng([4, k, 7, 3])
        for _ in range(10):
            SACUpdate(args)(alone, *piekd_cikd.sac_batch(buffer, args, rng))
        after = everything(agent)
        assert all(torch.equal(value, after[name]) for name, value in everything(alone).items())
        for name in ("actor_adam", "critic_adam", "temperature_adam"):
            assert after[f"{name}.steps"] - before[k][f"{name}.steps"] == 10
        assert changed(before[k], after) == set(agent.parts())

def check_beginning(learner):
    """Glorot and Bengio (2010), Eq. (16): uniform, with a variance of 2 / (inputs + outputs); no biases."""
    for network in (learner.actor.net, *learner.critic.nets):
        layers = [module for module in network if isinstance(module, nn.Linear)]
        assert [layer.out_features for layer in layers[:2]] == [256, 256] and len(layers) == 3
        for layer in layers:
            bound = math.sqrt(6 / (layer.in_features + layer.out_features))
            assert 0.8 * bound < layer.weight.abs().max() <= bound and not layer.bias.any()
            assert layer.weight.var().item() == pytest.approx(2 / (layer.in_features + layer.out_features), rel=0.3)

def test_networks_at_the_beginning():
    """Drawn anew for each network, but for the target critic, which begins as the critic."""
    learner = piekd_cikd.SACLearner(11, np.ones(3, np.float32), settings())
    check_beginning(learner)
    first, second = learner.critic.nets
    assert not torch.equal(first[2].weight, second[2].weight)
    assert not torch.equal(first[2].weight, learner.actor.net[2].weight)
    assert torch.equal(learner.vectors[1], learner.vectors[2]) and learner.vectors[1] is not learner.vectors[2]

def test_students_are_reset_before_they_are_taught(tmp_path, monkeypatch):
    """Distillation begins from networks as at the beginning, others for each student and phase; their Adams stay."""
    buffer, starts = memory(tmp_path / "buffer"), []
    for phase in (0, 0, 1):
        agents = learners(3)
        before = [everything(agent) for agent in agents]

        def look(student, teacher, *rest):
            starts.append(student.vectors[0].detach().clone())
            check_beginning(student)
            return [0.0, 0.0]

        with monkeypatch.context() as patch:
            patch.setattr(piekd_cikd, "distil", look)
            random_state = torch.get_rng_state()
            teach(agents, 1, buffer, STEPS, settings(reset_students=True), phase)
        assert torch.equal(torch.get_rng_state(), random_state)
        assert changed(before[1], everything(agents[1])) == set()
        for k in (0, 2):
            assert changed(before[k], everything(agents[k])) == {"actor", "critic", "target_critic"}
            first, second = agents[k].critic.nets
            assert not torch.equal(first[0].weight, second[0].weight)
    bits = [start.numpy().tobytes() for start in starts]
    assert bits[0:2] == bits[2:4] and len(set(bits)) == 4

def test_a_reset_student_is_taught_from_there(tmp_path):
    """And comes closer than its new networks were."""
    agents, buffer = learners(2), memory(tmp_path / "buffer")
    args = settings(reset_students=True, distill_epochs=30)
    other = copy.deepcopy(agents[1])
    piekd_cikd.reset_networks(other, int(np.random.default_rng([0, 1, 2, 3]).integers(2**62)))
    apart = distances(other, agents[0], buffer)
    teach(agents, 0, buffer, STEPS, args, phase_number=2)
    assert all(now < 0.3 * then for now, then in zip(distances(agents[1], agents[0], buffer), apart))

# Election ------------------------------------------------------------------------------------------------

def test_standings_are_means_of_the_last_episodes():
    """Against a plain list; of fewer at the beginning, -inf for an agent that has none; of negative returns too."""
    standings, lists, rng = Standings(3, 4), [[], [], []], np.random.default_rng(0)
    for _ in range(40):
        agent, value = int(rng.integers(2)), float(rng.normal(-5, 3))
        standings.record(agent, value)
        lists[agent].append(value)
        expected = [np.mean(own[-4:]) if own else -np.inf for own in lists]
        assert standings.recent().tolist() == pytest.approx(expected)
    assert not lists[2] and min(len(lists[0]), len(lists[1])) > 4

def test_standings_survive_a_checkpoint(tmp_path):
    """All of them, also where an agent has none; plain tensors and numbers."""
    standings, again = Standings(2, 3), Standings(2, 3)
    for value in (1.0, 5.0, -2.0, 7.0):
        standings.record(1, value)
    standings.steps_since, standings.phases = 17, 4
    torch.save(standings.state_dict(), tmp_path / "state")
    again.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert (again.steps_since, again.phases) == (17, 4)
    np.testing.assert_array_equal(again.returns, standings.returns)
    for each in (standings, again):
        each.record(1, 0.0)
        each.record(0, 3.0)
        assert each.recent().tolist() == pytest.approx([3, 5 / 3])

@pytest.mark.parametrize(
    ("recent", "expected"),
    [
        ([1, 3, 2], 1), ([2, 2, 1], 0), ([1, 2, 2], 1), ([-5, -np.inf, -7], 0), ([-np.inf, -np.inf, -7], 2),
        ([-np.inf] * 3, None),
    ],
)  # fmt: skip
def test_the_best_is_elected(recent, expected):
    """Of equals the first; one without an episode never."""
    rng = np.random.default_rng(0)
    assert elect(np.array(recent, float), "best", rng) == expected
    drawn = [elect(np.array(recent, float), "random", rng) for _ in range(600)]
    candidates = [k for k in range(3) if recent[k] > -np.inf]
    if expected is None:
        assert set(drawn) == {None}
    else:
        assert set(drawn) == set(candidates)
        assert all(abs(drawn.count(k) / 600 - 1 / len(candidates)) < 0.08 for k in candidates)

def test_the_counter_after_a_phase():
    """PIEKD, line 21: zero. CIKD, line 20: modulo the interval."""
    for steps, rest in ((50, 0), (57, 7), (163, 13)):
        assert counter_after_phase(steps, settings(interval=50)) == 0
        assert counter_after_phase(steps, settings(interval=50, method="cikd")) == rest

# The loop ------------------------------------------------------------------------------------------------

def play(monkeypatch, path, learning=False, teaching=False, **changes):
    """A run with rows of 50 steps, and what happened in it.

    Steps are counted from 0. Evaluation is made up; nothing is learned or taught, but noted, unless asked for.
    """
    seen = SimpleNamespace(agents=[], acted={}, ended={}, updates=[], taught=[], learned_on=[], policies=[], evaluated=[])
    tiny = {"total_steps": 600, "warm_up": 130, "interval": 45, "recent": 2, "ensemble_size": 2, "evaluate_every": 200}
    args = settings(**tiny | {"runs": str(path / "runs")} | changes)
    names = "SACLearner", "squashed_policy", "SACUpdate", "ReplayBuffer", "teach"
    real = {name: getattr(piekd_cikd, name) for name in names}
    step = Stream.step

    def learner(*arguments):
        seen.agents.append(real["SACLearner"](*arguments))
        return seen.agents[-1]

    def buffer(*arguments):
        seen.buffer = real["ReplayBuffer"](*arguments)
        return seen.buffer

    buffer.bytes = real["ReplayBuffer"].bytes

    def policy(actor):
        act, (index,) = real["squashed_policy"](actor), [k for k, agent in enumerate(seen.agents) if agent.actor is actor]

        def acting(obs, noise=0):
            seen.acted[seen.buffer.count] = index
            return act(obs, noise)

        acting.of, acting.mode = index, act
        return acting

    def one_step(stream, action):
        count, total = stream.buffer.count, step(stream, action)
        if total is not None:
            seen.ended[count] = total
        return total

    def update(agent, batch, noise):
        (index,) = [k for k, each in enumerate(seen.agents) if each is agent]
        seen.updates.append((seen.buffer.count - 1, index, batch, noise))
        return real["SACUpdate"](args)(agent, batch, noise) if learning else torch.zeros(4)

    def taught(agents, teacher, *rest):
        seen.taught.append((seen.buffer.count, teacher))
        assert len(agents) == len(seen.agents) and all(a is b for a, b in zip(agents, seen.agents))
        return real["teach"](agents, teacher, *rest) if teaching else [[0.5 + k, 0.25 * k] for k in range(len(agents))]

    def evaluation(envs, policies, eps_te, number, step):
        assert [policy.of for policy in policies] == list(range(args.ensemble_size))
        seen.evaluated.append((step, eps_te, number))
        seen.policies.append([policy.mode(np.ones(11)) for policy in policies])
        return [
            {"step": step, "agent": policy.of, "eps_te": eps, "domain": i, "return": step + 10 * policy.of + i}
            for policy in policies for eps in eps_te for i in range(number)
        ]

    with monkeypatch.context() as patch:
        patch.setattr(piekd_cikd, "ROW", 50)
        replaced = {"SACLearner": learner, "ReplayBuffer": buffer, "squashed_policy": policy, "SACUpdate": lambda args: update}
        replaced |= {"teach": taught, "evaluate": evaluation, "report": lambda run, title: None}
        replaced |= {"learn_on": lambda *arguments: seen.learned_on.append((seen.buffer.count, arguments[-1]))}
        for name, function in replaced.items():
            patch.setattr(piekd_cikd, name, function)
        patch.setattr(Stream, "step", one_step)
        piekd_cikd.train(args)
    (seen.path,) = (path / "runs").iterdir()
    seen.state = torch.load(seen.path / "checkpoint.pt", weights_only=True)["state"]
    return seen

def algorithm_1(seen, method, total, warm_up, interval, recent, agents=2, needs_teacher=True):
    """Steps and teachers of the phases, and the recent returns at each, from which agent acted and what it got."""
    counter, returns, phases, told, began = 0, [[] for _ in range(agents)], [], [], 0
    for t in range(total):
        counter += t >= warm_up
        if t not in seen.ended:
            continue
        if began >= warm_up:
            returns[seen.acted[t]].append(seen.ended[t])
        began = t + 1
        means = [np.mean(own[-recent:]) if own else -np.inf for own in returns]
        if counter >= interval and (max(means) > -np.inf or not needs_teacher):
            phases.append((t + 1, int(np.argmax(means))))
            told.append(means)
            counter = counter % interval if method == "cikd" else 0
    return phases, told, counter

@pytest.mark.parametrize("interval", [1, 45, 200])
@pytest.mark.parametrize("method", ["piekd", "cikd"])
def test_phases_begin_where_algorithm_1_says(monkeypatch, tmp_path, method, interval):
    """At ends of episodes with the counter at or past the interval; the warm-up and its episodes do not count."""
    seen = play(monkeypatch, tmp_path, method=method, interval=interval, seed=1)
    phases, told, counter = algorithm_1(seen, method, 600, 130, interval, recent=2)
    assert seen.taught == phases and len(phases) > {1: 10, 45: 5, 200: 1}[interval]
    assert seen.state["standings"]["steps_since"] == counter and seen.state["standings"]["phases"] == len(phases)
    assert seen.learned_on == [] and all(step - 1 in seen.ended for step, _ in seen.taught)
    first = min(step for step in seen.ended if step >= 130)
    assert max(step for step in seen.ended if step < 130) < 129 and not any(step == first + 1 for step, _ in phases)
    if interval == 1:
        assert {teacher for _, teacher in phases} == {0, 1}
    table = read_csv(seen.path / "distillation.csv")
    assert table["step"].tolist() == [step for step, _ in phases for _ in range(2)]
    assert table["agent"].tolist() == [0, 1] * len(phases)
    assert table["teacher"].tolist() == [teacher for _, teacher in phases for _ in range(2)]
    assert table["recent"].tolist() == pytest.approx([value for means in told for value in means])
    assert table["policy_loss"].tolist() == [0.5, 1.5] * len(phases)
    assert table["critic_loss"].tolist() == [0, 0.25] * len(phases)
    assert table["return"].tolist() == [step + 10 * k + 9.5 for step, _ in phases for k in (0, 1)]  # mean over 20 domains

def test_no_phase_before_the_buffer_holds_a_minibatch(monkeypatch, tmp_path):
    """Episodes that end earlier are passed over, and so is none after them."""
    seen = play(monkeypatch, tmp_path, total_steps=200, warm_up=0, interval=1, batch_size=64)
    ends = sorted(step + 1 for step in seen.ended)
    assert ends[0] < 64 and [step for step, _ in seen.taught] == [step for step in ends if step >= 64]

def test_the_borders_belong_to_it(monkeypatch, tmp_path):
    """An episode that begins with the last random step behind it counts; a counter equal to the interval is enough."""
    random = play(monkeypatch, tmp_path / "random", total_steps=200, warm_up=200)
    begin = max(end for end in random.ended if end < 150) + 1  # as this episode does, if the warm-up is over just then
    seen = play(monkeypatch, tmp_path / "long", total_steps=200, warm_up=begin, interval=1000)
    end = min(step for step in seen.ended if step >= begin)
    assert begin - 1 in seen.ended and seen.taught == []
    exact = play(monkeypatch, tmp_path / "exact", total_steps=200, warm_up=begin, interval=end + 1 - begin)
    assert exact.taught[0] == (end + 1, exact.acted[end])

def test_the_two_countings_differ(monkeypatch, tmp_path):
    """CIKD's phases keep to the multiples of the interval, PIEKD's fall behind."""
    steps = {}
    for method in ("piekd", "cikd"):
        seen = play(monkeypatch, tmp_path / method, method=method, total_steps=1000)
        steps[method] = [step for step, _ in seen.taught]
        ends = [end + 1 for end in sorted(seen.ended)]
        if method == "cikd":  # the first end of an episode at or after each multiple
            multiples = range(130 + 45, 1000, 45)
            assert steps["cikd"] == sorted({min(end for end in ends if end >= at) for at in multiples if at <= ends[-1]})
    assert len(steps["cikd"]) > len(steps["piekd"]) > 8

def test_who_acts(monkeypatch, tmp_path):
    """One agent for a whole episode, each as often as any other, the same ones for the same seed."""
    chosen = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        total = 4000 if name == "a" else 500
        changes = {"total_steps": total, "warm_up": 0, "seed": seed, "method": "ensemble", "ensemble_size": 3}
        seen = play(monkeypatch, tmp_path / name, **changes)
        assert sorted(seen.acted) == list(range(total))
        starts, drawn = [0, *(end + 1 for end in sorted(seen.ended))], []
        for begin, after in zip(starts, starts[1:]):
            assert len({seen.acted[t] for t in range(begin, after)}) == 1
            drawn.append(seen.acted[begin])
        chosen[name] = drawn
    assert len(chosen["a"]) > 100 and all(abs(chosen["a"].count(k) / len(chosen["a"]) - 1 / 3) < 0.12 for k in range(3))
    assert chosen["b"] == chosen["a"][: len(chosen["b"])] and len(chosen["b"]) > 10
    assert chosen["c"][:10] != chosen["a"][:10]

def test_the_log_tells_each_agents_episodes(monkeypatch, tmp_path):
    """Mean return of its own episodes in the row and their number; without any its last one, or else the last of all."""
    seen = play(monkeypatch, tmp_path, total_steps=500, warm_up=0, method="ensemble", ensemble_size=3)
    log, without = read_csv(seen.path / "log.csv"), 0
    assert log["step"].tolist() == [step for step in range(50, 501, 50) for _ in range(3)]
    for step, agent, value, number in zip(log["step"], log["agent"], log["return"], log["episodes"]):
        own = [seen.ended[t] for t in range(int(step) - 50, int(step)) if t in seen.ended and seen.acted[t] == agent]
        before = [seen.ended[t] for t in sorted(seen.ended) if t < step]
        mine = [seen.ended[t] for t in sorted(seen.ended) if t < step and seen.acted[t] == agent]
        assert number == len(own)
        assert value == pytest.approx(np.mean(own) if own else [math.nan, *before, *mine][-1], nan_ok=True)
        without += not own
    assert 3 < without < 25

def test_random_actions_before_the_warm_up_is_over(monkeypatch, tmp_path):
    """Uniform over the whole range; nobody's policy is asked."""
    seen = play(monkeypatch, tmp_path, total_steps=400, warm_up=333)
    assert sorted(seen.acted) == list(range(333, 400))
    actions = seen.buffer.latest(400)[:333, 11:14]
    assert 0.9 < np.abs(actions).max() <= 1 and abs(actions.mean()) < 0.1
    assert actions.std() == pytest.approx(1 / math.sqrt(3), rel=0.1)

def test_all_learn_at_each_step_from_one_buffer(monkeypatch, tmp_path):
    """One update of each agent for each step after the warm-up, none before; minibatches of their own."""
    seen = play(monkeypatch, tmp_path, total_steps=200, ensemble_size=3, method="ensemble")
    assert [(step, k) for step, k, _, _ in seen.updates] == [(step, k) for step in range(130, 200) for k in range(3)]
    rows = [row.tobytes() for row in seen.buffer.latest(200)]
    used = set()
    for step, _, batch, noise in seen.updates:
        together = torch.cat([batch.obs, batch.actions, batch.rewards[:, None], batch.next_obs, batch.terminated[:, None]], 1)
        indices = [rows.index(row.tobytes()) for row in together.numpy()]
        assert len(indices) == 8 and max(indices) <= step and noise.shape == (2, 8, 3)
        used |= set(indices)
    assert len(used) > 180
    for i in range(0, len(seen.updates), 3):
        three = seen.updates[i : i + 3]
        assert len({batch.obs.numpy().tobytes() for _, _, batch, _ in three}) == 3
        assert len({noise.numpy().tobytes() for *_, noise in three}) == 3

def test_agents_begin_differently(monkeypatch, tmp_path):
    """PIEKD, i: different parameters, of policies and critics; the first one is the agent that would be alone."""
    seen = play(monkeypatch, tmp_path, total_steps=50, ensemble_size=3)
    for i in range(3):
        assert len({agent.vectors[i].detach().numpy().tobytes() for agent in seen.agents}) == 3
    torch.manual_seed(0)
    alone = SACLearner(11, np.ones(3, np.float32), settings())
    assert torch.equal(alone.vectors[0], seen.agents[0].vectors[0])

def test_when_is_evaluated(monkeypatch, tmp_path):
    """Every so many steps and at the end; after a phase at the smallest strength only, with the policies as they are then."""
    seen = play(monkeypatch, tmp_path, total_steps=250, warm_up=80, evaluate_every=100, eps_te=(0.3, 0.0), eval_domains=2)
    assert [step for step, eps, _ in seen.evaluated if eps == (0.3, 0.0)] == [100, 200, 250]
    assert [step for step, eps, _ in seen.evaluated if eps == (0.0,)] == [step for step, _ in seen.taught] != []
    assert {number for *_, number in seen.evaluated} == {2}
    assert len(read_csv(seen.path / "eval.csv")["return"]) == 3 * 2 * 2 * 2

def test_a_phase_in_the_loop(monkeypatch, tmp_path):
    """A hard copy in a real run: just after it all act alike, a while later no longer; the students learn on."""
    changes = {"share": "hardcopy", "learning": True, "teaching": True, "total_steps": 200, "warm_up": 60, "interval": 40}
    seen = play(monkeypatch, tmp_path, evaluate_every=50, **changes)
    phases = {step for step, _ in seen.taught}
    assert 2 <= len(phases) and not phases & {100, 150, 200}
    for (step, *_), (first, second) in zip(seen.evaluated, seen.policies):
        assert np.array_equal(first, second) == (step in phases), step
    state = seen.state
    assert all(state[f"{part}_adam{k}"]["steps"] == 140 for part in ("actor", "critic", "temperature") for k in (0, 1))

@pytest.mark.parametrize("method", ["ensemble", "vanilla"])
def test_extra_in_the_loop(monkeypatch, tmp_path, method):
    """Where phases would be, the agents learn on; there is no teacher and nothing in the table."""
    agents = 1 if method == "vanilla" else 2
    seen = play(monkeypatch, tmp_path, method=method, share="extra", ensemble_size=agents)
    phases, _, _ = algorithm_1(seen, method, 600, 130, 45, recent=2, agents=agents, needs_teacher=False)
    assert seen.learned_on == [(step, i) for i, (step, _) in enumerate(phases)] and len(phases) > 5
    assert seen.taught == [] and (seen.path / "distillation.csv").read_text() == ""

@pytest.mark.parametrize("method", ["ensemble", "vanilla"])
def test_no_phase_at_all(monkeypatch, tmp_path, method):
    seen = play(monkeypatch, tmp_path, method=method, interval=1, ensemble_size=1 if method == "vanilla" else 2)
    assert seen.taught == seen.learned_on == [] and len(seen.ended) > 5
    assert (seen.path / "distillation.csv").read_text() == ""

def test_a_random_teacher_in_the_loop(monkeypatch, tmp_path):
    """Either agent teaches, whoever is better."""
    seen = play(monkeypatch, tmp_path, teacher="random", interval=1, total_steps=1500)
    phases, told, _ = algorithm_1(seen, "piekd", 1500, 130, 1, recent=2)
    assert [step for step, _ in seen.taught] == [step for step, _ in phases]
    both = [i for i, means in enumerate(told) if min(means) > -np.inf]
    agree = np.mean([seen.taught[i][1] == phases[i][1] for i in both])
    assert len(both) > 30 and 0.2 < agree < 0.8
    assert 0.2 < np.mean([teacher for _, teacher in seen.taught]) < 0.8

def test_vanilla_is_sac_for_one_agent_to_the_bit(monkeypatch, tmp_path):
    """Same weights, optimisers and returns as baselines.py makes with the same settings."""
    tiny = {"total_steps": 150, "warm_up": 70, "batch_size": 8, "tau": 0.01, "eps_tr": 0.3, "seed": 5, "buffer_size": 120}
    tiny |= {"eval_domains": 2, "eps_te": (0.0, 0.5), "threads": 1, "compile": False, "runs": str(tmp_path / "runs")}
    for module in (baselines, piekd_cikd):
        monkeypatch.setattr(module, "ROW", 50)
        monkeypatch.setattr(module, "report", lambda run, title: None)
    baselines.sac(baselines.Args(algo="sac", evaluations=1, **tiny))
    piekd_cikd.train(Args(method="vanilla", ensemble_size=1, evaluate_every=1000, **tiny))
    one, other = sorted((tmp_path / "runs").iterdir())
    assert (one.name.split("-")[0], other.name.split("-")[0]) == ("baselines", "piekd_cikd")
    first, second = (torch.load(path / "checkpoint.pt", weights_only=True)["state"] for path in (one, other))
    for name in ("actor", "critic", "target_critic", "temperature", "actor_adam", "critic_adam", "temperature_adam"):
        assert all(torch.equal(value, second[f"{name}0"][key]) for key, value in first[name].items()), name
    assert first["buffer"] == second["buffer"] and first["stream"] == second["stream"] and first["actor_adam"]["steps"] == 80
    logs = [read_csv(path / "log.csv") for path in (one, other)]
    for name in logs[0]:
        if name != "seconds":
            np.testing.assert_array_equal(logs[0][name], logs[1][name], err_msg=name)
    assert (one / "eval.csv").read_text() == (other / "eval.csv").read_text() and logs[0]["episodes"].sum() > 4

# Bad input -----------------------------------------------------------------------------------------------

BAD = [
    ("--ensemble-size 1", "at least 2"), ("--ensemble-size 0", "at least 2"), ("--method cikd --ensemble-size 1", "at least 2"),
    ("--method ensemble --ensemble-size 1", "at least 2"), ("--method vanilla --share hardcopy", "hardcopy"),
    ("--method vanilla --ensemble-size 5", "one agent"), ("--share extra", "--share extra"),
    ("--method ensemble --interval 1000", "--interval changes nothing"), ("--interval 1001", "never over"),
    ("--method vanilla --share extra --interval 1001", "never over"), ("--recent 2001", "--recent 2001"),
    ("--figure piekd-3 --method cikd", "--method"), ("--figure piekd-5 --share hardcopy", "--share"),
    ("--figure cikd-5 --reset-students", "--reset-students"), ("--figure cikd-7 --distil policy", "--distil"),
    ("--method ensemble --share hardcopy", "hardcopy"), ("--method piekd2", "piekd2"), ("--share both", "both"),
    ("--teacher worst", "worst"), ("--distil all", "all"), ("--figure cikd-1", "cikd-1"), ("--figure 3", "piekd-3"),
    ("--evaluate-every 1500", "multiple of 1000"), ("--evaluate-every 0", "--evaluate-every"), ("--interval 0", "--interval"),
    ("--recent 0", "--recent"), ("--distill-epochs 0", "--distill-epochs"), ("--distill-updates -1", "--distill-updates"),
    ("--distill-lr 0", "--distill-lr"), ("--distill-lr nan", "--distill-lr"), ("--learning-rate -1", "--learning-rate"),
    ("--gamma 1.5", "--gamma"), ("--tau 0", "--tau"), ("--batch-size 0", "--batch-size"), ("--jobs 0", "--jobs"),
    ("--method ensemble --interval 5000 --distill-updates 7", "--distill-updates changes nothing"),
    ("--method vanilla --recent 3", "--recent changes nothing"), ("--share hardcopy --distill-lr 0.1", "--distill-lr changes"),
    ("--method ensemble --share extra --distill-lr 0.1", "--distill-lr changes"),
    ("--share hardcopy --distil policy", "--distil changes"),
    ("--distill-updates 7 --distill-epochs 2", "beside --distill-updates"), ("--batch-size 2001", "no phase"),
    ("--batch-size 1500 --buffer-size 1000", "no phase"),
    ("--tau 1.1", "--tau"), ("--buffer-size 999", "--buffer-size"), ("--seed -1", "seeds"), ("--seeds 3 3", "twice"),
    ("--warm-up -1", "--warm-up"), ("--total-steps 999", "less than one iteration"), ("--checkpoint-every 101", "at most 100"),
    ("--checkpoint-every 0", "--checkpoint-every"), ("--eval-domains 0", "--eval-domains"), ("--eps-te", "at least one"),
    ("--eps-te 2", "[0, 1]"), ("--eps-tr 1.5", "[0, 1]"),
    ("--env CartPole-v1", "not a MuJoCo environment"), ("--device warp", "warp"), ("--xml-file missing.xml", "xml"),
]  # fmt: skip

@pytest.mark.parametrize(("options", "word"), BAD, ids=[options for options, _ in BAD])
def test_bad_input(monkeypatch, tmp_path, capsys, options, word):
    """One line that says what is wrong, status 2, and nothing on disk."""
    short = "--no-compile --total-steps 2000 --warm-up 1000 --interval 500 --eval-domains 1".split()  # were it not refused
    monkeypatch.setattr(sys, "argv", ["piekd_cikd.py", *short, *options.split()])
    with pytest.raises(SystemExit) as exit_:
        piekd_cikd.main()
    err = capsys.readouterr().err
    assert exit_.value.code == 2 and len(err.splitlines()) == 1 and word in err, err
    assert not list(tmp_path.iterdir())

@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning")
def test_what_is_not_finite_stops_the_run(monkeypatch, tmp_path, capsys):
    """The step and the agent are named, the status is 1."""
    with pytest.raises(SystemExit) as exit_:
        play(monkeypatch, tmp_path, learning=True, learning_rate=1e29, total_steps=150, method="ensemble")
    err = capsys.readouterr().err
    assert exit_.value.code == 1 and "step 150, agent 0" in err and "not finite" in err and len(err.splitlines()) == 1

# Figures -------------------------------------------------------------------------------------------------

STEP = 4000  # of the made-up evaluations; three of them

def made_up(seed, agents, settings_of_run):
    """Mean returns (3, agents), different for each run, in which no agent is always the best one."""
    key = sum(ord(letter) for letter in json.dumps(settings_of_run, sort_keys=True))
    return np.random.default_rng([seed, key]).normal(100, 30, (3, agents))

def make_run(path, phases=(), finished=True, **changes):
    """A run's folder with a made-up evaluation; (step, teacher, returns of all agents) for each of the phases."""
    args = settings(**{"total_steps": 3 * STEP, "warm_up": 1000, "eps_te": (0.0, 0.5)} | changes)
    if args.method == "vanilla":
        args.ensemble_size = 1
    folder = path / f"{variant(args)}-seed{args.seed}"
    folder.mkdir(parents=True)
    content = baselines.settings_of(args)
    (folder / "config.json").write_text(json.dumps({"script": "piekd_cikd", "settings": content}))
    torch.save({"finished": finished}, folder / "checkpoint.pt")
    means = made_up(args.seed, args.ensemble_size, {name: content[name] for name in piekd_cikd.VARIED})
    lines = ["step,agent,eps_te,domain,return"]
    for i in range(3):
        for k in range(args.ensemble_size):
            for eps in (0.0, 0.5):
                values = means[i, k] + np.array([-5.0, 5.0]) - 50 * eps
                lines += [f"{STEP * (i + 1)},{k},{eps},{j},{value}" for j, value in enumerate(values)]
    (folder / "eval.csv").write_text("\n".join(lines) + "\n")
    rows = ["step,agent,teacher,recent,policy_loss,critic_loss,return"] if phases else []
    rows += [f"{step},{k},{teacher},0,0,0,{value}" for step, teacher, values in phases for k, value in enumerate(values)]
    (folder / "distillation.csv").write_text("\n".join(rows))
    return folder, means

def drawn(monkeypatch, tmp_path, name, **changes):
    """The figure, after it was written."""
    kept, save = [], piekd_cikd.save_figure
    with monkeypatch.context() as patch:
        patch.setattr(piekd_cikd, "save_figure", lambda figure, path: kept.append(figure) or save(figure, path))
        shown = {"total_steps": 3 * STEP, "warm_up": 1000, "eps_te": (0.0, 0.5), "runs": str(tmp_path)}
        piekd_cikd.draw_figure(settings(figure=name, **shown | changes))
    assert (tmp_path / f"figure-{name}.png").stat().st_size > 10_000
    return kept[0]

def lines_of(axis):
    return {line.get_label(): line.get_ydata().tolist() for line in axis.lines}

def test_returns_by_agent(tmp_path):
    """Mean over domains at one strength, for each evaluation and agent."""
    folder, means = make_run(tmp_path)
    for eps in (0.0, 0.5):
        steps, returns = by_agent(folder, eps)
        assert steps.tolist() == [STEP, 2 * STEP, 3 * STEP]
        np.testing.assert_allclose(returns, means - 50 * eps)

@pytest.mark.parametrize("name", ["piekd-3", "cikd-2", "cikd-8"])
def test_learning_curves_of_best_and_worst_agent(monkeypatch, tmp_path, capsys, name):
    """Mean over seeds of the best, and of the worst, agent's return; an agent alone has no worst."""
    method = name.split("-")[0]
    expected = {}
    for label, changes, seeds in ((method.upper(), {"method": method}, 2), ("ensemble", {"method": "ensemble"}, 1)):
        runs = [make_run(tmp_path, seed=seed, **changes)[1] for seed in range(seeds)]
        plural = f"{seeds} seed{'s' * (seeds > 1)}"
        expected[f"{label}, best, {plural}"] = np.mean([means.max(1) for means in runs], axis=0)
        expected[f"{label}, worst"] = np.mean([means.min(1) for means in runs], axis=0)
    expected["vanilla, 1 seed"] = make_run(tmp_path, method="vanilla")[1][:, 0]
    make_run(tmp_path, method=method, seed=7, finished=False)
    make_run(tmp_path / "other", method=method, seed=8, gamma=0.5)
    figure = drawn(monkeypatch, tmp_path, name)
    lines = lines_of(figure.axes[0])
    assert lines.keys() == expected.keys()
    for label, values in expected.items():
        assert lines[label] == pytest.approx(list(values)), label
    assert len(figure.axes[0].collections) == 1  # only one line has an interval
    assert "python" not in capsys.readouterr().out

def commands(out):
    return [line.strip() for line in out.splitlines() if line.strip().startswith("python ")]

@pytest.mark.parametrize("name", FIGURES)
def test_the_commands_for_missing_runs_make_what_the_figure_wants(monkeypatch, tmp_path, capsys, name):
    """Nothing there: one line each; their runs, from the command line as it is parsed, make the figure complete."""
    import matplotlib.pyplot as plt

    shown = {"total_steps": 120_000, "runs": f"{tmp_path}/a b", "figure": name}
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(sys, "argv", ["piekd_cikd.py"])
        piekd_cikd.draw_figure(Args(**shown))
    plt.close("all")  # the one that nothing was drawn in
    wanted = commands(capsys.readouterr().out)
    assert len(set(wanted)) == len(wanted) >= 2
    for command in wanted:
        asked = []
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", shlex.split(command)[1:])
            patch.setattr(piekd_cikd, "make_envs", lambda args, number: asked.append(args))
            patch.setattr(piekd_cikd, "run_seeds", lambda seeds, jobs: asked.append((seeds, jobs)))
            piekd_cikd.main()
        args, (seeds, _) = asked
        assert args.runs == shown["runs"]
        settings_of_run = {**vars(args), "seeds": (), "threads": 1, "runs": "elsewhere"}
        for seed in seeds:
            phases = [(1000, 0, [3.0, 4.0, 2.0]), (5000, 1, [3.0, 4.0, 2.0]), (12_000, 2, [3.0, 4.0, 2.0])]
            make_run(tmp_path / "a b", phases[: 3 * (args.method == "cikd")], **settings_of_run | {"seed": seed})
    kept, save = [], piekd_cikd.save_figure
    with monkeypatch.context() as patch:
        patch.setattr(piekd_cikd, "save_figure", lambda figure, path: kept.append(figure) or save(figure, path))
        piekd_cikd.draw_figure(Args(**shown))
    out = capsys.readouterr().out
    assert commands(out) == [] and "no finished runs" not in out and len(kept) == 1
    curves = CURVES.get(piekd_cikd.SAME.get(name, name))
    if curves:
        labels = [line.get_label() for line in kept[0].axes[0].lines if not line.get_label().endswith("worst")]
        assert len(labels) == len(curves) == len(wanted) and all("3 seeds" in label for label in labels)

def test_the_lines_of_each_figure_are_the_papers():
    """Who is compared, by the settings in which they differ."""
    def kinds(name):
        return [tuple(sorted(changes.items())) for _, changes in CURVES[name]]

    ensemble = (("method", "ensemble"),)
    vanilla = ("ensemble_size", 1), ("method", "vanilla")
    extra = ("share", "extra")
    assert kinds("piekd-3") == [(), ensemble, vanilla]
    assert kinds("piekd-4") == [(), (*ensemble, extra), (*vanilla, extra)]
    assert kinds("piekd-5") == [(), (("share", "hardcopy"),), ensemble, vanilla]
    assert kinds("piekd-6") == [(), (("teacher", "random"),), ensemble]
    assert kinds("cikd-4") == [*kinds("piekd-6"), vanilla]
    assert kinds("piekd-7") == [*((("ensemble_size", size),) for size in (2, 3, 5)), ensemble]
    assert kinds("piekd-8") == [*((("interval", steps),) for steps in (1000, 5000, 10_000, 100_000)), ensemble]
    assert kinds("cikd-7") == [(), (("distil", "policy"),), (("distil", "critic"),), vanilla]

def test_figures_do_not_ask_for_what_changes_nothing(monkeypatch, tmp_path, capsys):
    """With --distill-updates 9 --recent 3: an ensemble and vanilla need neither, PIEKD both; so do the commands."""
    told = {"distill_updates": 9, "recent": 3, "interval": 2000}
    for method in ("ensemble", "vanilla"):
        make_run(tmp_path, method=method)
    make_run(tmp_path, method="piekd")  # another one
    figure = drawn(monkeypatch, tmp_path, "piekd-5", **told)
    assert list(lines_of(figure.axes[0])) == ["ensemble, 1 seed", "vanilla, 1 seed"]
    piekd, hardcopy = commands(capsys.readouterr().out)
    assert all(f"--{name.replace('_', '-')} {value}" in piekd for name, value in told.items())
    assert "--interval 2000" in hardcopy and "--recent 3" in hardcopy and "distill" not in hardcopy
    make_run(tmp_path / "told", method="piekd", **told)
    make_run(tmp_path / "told", share="hardcopy", **told | {"distill_updates": 0})
    figure = drawn(monkeypatch, tmp_path, "piekd-5", **told)
    assert len(lines_of(figure.axes[0])) == 4 and commands(capsys.readouterr().out) == []

def test_a_figure_says_which_interval_is_too_long(monkeypatch, tmp_path, capsys):
    """No command for it: it would be refused."""
    make_run(tmp_path, method="ensemble", total_steps=50_000)
    drawn(monkeypatch, tmp_path, "piekd-8", total_steps=50_000)
    out = capsys.readouterr().out
    assert "PIEKD, I = 100000 needs more --total-steps" in out and "100000" not in " ".join(commands(out)) and len(commands(out)) == 3

def test_runs_of_different_lines_have_folders_of_their_own():
    """All lines of all figures into one runs folder: none may be taken for another's."""
    lines = {}
    for method in ("piekd", "cikd"):
        for _, changes in [*sum(CURVES.values(), []), *piekd_cikd.RESET]:
            args = settings(**{"method": method} | changes)
            lines.setdefault(variant(args), set()).add(tuple(getattr(args, name) for name in piekd_cikd.VARIED))
    assert all(len(different) == 1 for different in lines.values()) and len(lines) > 20

def phase(step, teacher, *returns):
    return step, teacher, returns

def test_students_that_surpass_their_teacher(tmp_path):
    """By hand: of all students in the phases of an interval, open below; equal is not better; no phase, no number."""
    phases = phase(100, 0, 5, 6, 7), phase(200, 1, 5, 6, 6), phase(300, 2, 5, 6, 5.5)
    folder, _ = make_run(tmp_path, phases)
    table = read_csv(folder / "distillation.csv")
    assert surpassing(table, 0, 100) == 1 and surpassing(table, 100, 200) == 0 and surpassing(table, 200, 300) == 0.5
    assert surpassing(table, 0, 300) == 0.5 and surpassing(table, 0, 200) == 0.5
    assert math.isnan(surpassing(table, 300, 400)) and math.isnan(surpassing(table, 100, 199))


def test_figure_of_the_teachers(monkeypatch, tmp_path, capsys):
    """Who taught when in the first seed; how often in each; students better than teachers by thirds, mean over seeds."""
    first = [phase(2000, 2, 1, 2, 3), phase(3000, 0, 3, 4, 5), phase(6000, 2, 9, 1, 2), phase(11_000, 2, 1, 1, 5)]
    second = [phase(4000, 1, 0, 1, 0), phase(5000, 1, 3, 2, 0), phase(12_000, 2, 1, 2, 0)]
    make_run(tmp_path, first, method="cikd", seed=0)
    make_run(tmp_path, second, method="cikd", seed=1)
    _, ensemble = make_run(tmp_path, method="ensemble", seed=0)
    figure = drawn(monkeypatch, tmp_path, "cikd-5")
    index, share, thirds, reset = figure.axes
    assert list(zip(*index.lines[0].get_data())) == [(2000, 2), (3000, 0), (6000, 2), (11_000, 2)]
    assert [bar.get_height() for bar in share.patches] == pytest.approx([1 / 4, 0, 3 / 4, 0, 2 / 3, 1 / 3])
    centres = [bar.get_x() + bar.get_width() / 2 for bar in share.patches]
    assert np.round(centres).tolist() == [0, 1, 2, 0, 1, 2] and len(set(np.round(centres, 6))) == 6
    # first seed: 2 of 4, 1 of 2, 0 of 2; second: 0 of 2 (at 4000, a third's end), 1 of 2, 2 of 2
    assert [bar.get_height() for bar in thirds.patches] == pytest.approx([0.25, 0.5, 0.5])
    assert lines_of(reset)["ensemble, 1 seed"] == pytest.approx(list(ensemble.max(1)))
    (command,) = commands(capsys.readouterr().out)
    assert command.startswith("python piekd_cikd.py --env Hopper-v4 --total-steps 12000 ")
    assert " --method cikd --reset-students " in command and command.endswith(f" --runs {tmp_path} --seeds 0 1 2")


def test_teachers_of_those_runs_that_have_any(monkeypatch, tmp_path, capsys):
    """A run without a phase is passed over; if all are, or if there is none of CIKD, one line says which it is."""
    make_run(tmp_path, method="ensemble")
    for what, seed in (("needs a run of --method cikd", 4), ("something was distilled", 6)):
        with pytest.raises(SystemExit):
            drawn(monkeypatch, tmp_path, "cikd-5")
        assert what in capsys.readouterr().err
        make_run(tmp_path, method="cikd", seed=seed)
    make_run(tmp_path, [phase(5000, 1, 3, 4, 2)], method="cikd", seed=5)
    index, share = drawn(monkeypatch, tmp_path, "cikd-5").axes[:2]
    assert list(zip(*index.lines[0].get_data())) == [(5000, 1)] and [bar.get_height() for bar in share.patches] == [0, 1, 0]


def test_a_third_without_a_phase(monkeypatch, tmp_path):
    """Nobody was better there, but nobody was compared either: the figure says so."""
    make_run(tmp_path, [phase(5000, 0, 3, 4, 2)], method="cikd")
    thirds = drawn(monkeypatch, tmp_path, "cikd-5").axes[2]
    assert [bar.get_height() for bar in thirds.patches] == [0, 0.5, 0]
    assert [(text.get_position()[0], text.get_text()) for text in thirds.texts] == [(0, "no phase"), (2, "no phase")]


@pytest.mark.parametrize("changes", [{"interval": 1000}, {"ensemble_size": 2}])
def test_a_figure_of_other_settings(monkeypatch, tmp_path, capsys, changes):
    """The interval and the number of agents are those of the command line, where a line has any."""
    _, means = make_run(tmp_path, **changes)
    make_run(tmp_path)
    size = changes.get("ensemble_size", 3)
    _, rivals = make_run(tmp_path, method="ensemble", ensemble_size=size)
    lines = lines_of(drawn(monkeypatch, tmp_path, "piekd-3", **changes).axes[0])
    assert lines["PIEKD, best, 1 seed"] == pytest.approx(list(means.max(1)))
    assert lines["ensemble, best, 1 seed"] == pytest.approx(list(rivals.max(1)))
    assert len(commands(capsys.readouterr().out)) == 1  # of vanilla

def test_figure_of_the_best_agents(monkeypatch, tmp_path, capsys):
    """Which agent of an ensemble, and which of independent ones, is best at each evaluation."""
    _, together = make_run(tmp_path, method="ensemble", seed=0)
    make_run(tmp_path, method="ensemble", seed=1)
    alone = np.stack([make_run(tmp_path, method="vanilla", seed=seed)[1][:, 0] for seed in range(2)], axis=1)
    with pytest.raises(SystemExit):  # three against two
        drawn(monkeypatch, tmp_path, "cikd-9")
    assert "3 seeds of --method vanilla" in capsys.readouterr().err
    alone = np.column_stack([alone, *(make_run(tmp_path, method="vanilla", seed=seed)[1] for seed in (2, 3))])
    figure = drawn(monkeypatch, tmp_path, "cikd-9")
    for (left, right), returns in ((figure.axes[:2], together), (figure.axes[2:], alone[:, :3])):
        best = [int(np.argmax(row)) for row in returns]
        assert list(zip(*left.lines[0].get_data())) == list(zip((STEP, 2 * STEP, 3 * STEP), best))
        shares = [best.count(k) / 3 for k in range(returns.shape[1])]
        assert [bar.get_height() for bar in right.patches] == pytest.approx(shares)

@pytest.mark.parametrize(("name", "word"), [("cikd-5", "distilled"), ("cikd-9", "both methods")])
def test_figures_that_lack_something(monkeypatch, tmp_path, capsys, name, word):
    """One line; nothing is drawn."""
    make_run(tmp_path, method="cikd")
    make_run(tmp_path, method="ensemble")
    with pytest.raises(SystemExit) as exit_:
        drawn(monkeypatch, tmp_path, name)
    err = capsys.readouterr().err
    assert exit_.value.code == 2 and len(err.splitlines()) == 1 and word in err
    assert not list(tmp_path.glob("*.png"))

# What this file repeats ----------------------------------------------------------------------------------

def meaning(thing):
    """The syntax tree, without docstrings and comments."""
    tree = ast.parse(inspect.getsource(thing))
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)

REPEATED = """glorot two_layers SquashedActor TwinCritic squashed_policy squash sac_targets sac_critic_loss sac_actor_loss
temperature_loss gradient_of SACLearner sac_critic_step sac_actor_step SACUpdate sac_batch"""

@pytest.mark.parametrize("name", REPEATED.split())
def test_what_both_scripts_define_is_the_same(name):
    """So that the tests of one hold for the other."""
    assert getattr(piekd_cikd, name) is not getattr(baselines, name)
    assert meaning(getattr(piekd_cikd, name)) == meaning(getattr(baselines, name))

def test_nothing_else_is_defined_twice():
    """But for what is each script's own."""
    def defined(module):
        return {name for name, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__}

    assert defined(piekd_cikd) & defined(baselines) == {*REPEATED.split(), "Args", "main"}

def test_the_defaults_are_the_papers():
    """K, I, M; five passes with a fresh Adam at 1e-3; SAC's own; evaluation every 10 000 steps in 20 episodes."""
    args = Args()
    assert (args.ensemble_size, args.interval, args.recent) == (3, 5000, 5)
    assert (args.distill_epochs, args.distill_lr, args.distill_updates, args.distil) == (5, 1e-3, 0, "both")
    assert (args.learning_rate, args.gamma, args.tau, args.batch_size) == (3e-4, 0.99, 0.005, 256)
    assert (args.buffer_size, args.warm_up, args.total_steps) == (1_000_000, 10_000, 1_000_000)
    assert (args.evaluate_every, args.eval_domains, args.eps_te, args.eps_tr) == (10_000, 20, (0.0,), 0.0)
    usual = baselines.USUAL["sac"]
    assert all(getattr(args, name) == value for name, value in usual.items())
    assert isinstance(learners(1)[0].actor_adam, Adam)
