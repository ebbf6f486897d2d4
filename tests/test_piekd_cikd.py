"""Tests of piekd_cikd.py: its equations against loops and Monte Carlo, its bookkeeping against a slow Algorithm 1."""

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
import piekd_cikd  # noqa: E402
from baselines import ReplayBuffer, SACAgent, SavedRun, Stream, workers  # noqa: E402
from piekd_cikd import (  # noqa: E402
    CURVES, Args, SquashedActor, Standings, TwinCritic, counter_after_phase, critic_distillation_loss, distil, elect,
    gaussian_kl, learn_on, minibatches_of_phase, number_of_minibatches, policy_distillation_loss, surpassing, teach,
)  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")
torch.set_num_threads(1)

OBS, ACT = 5, 3  # sizes of hand-made observations and actions
NETWORKS = ("actor", "critic", "target_critic", "temperature")


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
    scale, args = np.array([1.0, 0.4, 2.0], np.float32), settings(**changes)
    made = [SACAgent(SquashedActor(OBS, scale), TwinCritic(OBS, ACT), args) for _ in range(number)]
    with torch.no_grad():
        for agent in made:
            for optimiser in (agent.actor_optimiser, agent.critic_optimiser):
                for vector in optimiser.vectors + optimiser.target_vectors:
                    vector.add_(0.02 * torch.randn_like(vector))
                for adam in optimiser.adams:
                    adam(torch.zeros_like(adam.mean), torch.randn_like(adam.mean))
    return made


def memory(rows=40, size=40, seed=0):
    """A buffer of random rows, the third part of which are deaths."""
    buffer = ReplayBuffer(OBS, ACT, size)
    content = np.random.default_rng(seed).normal(size=(rows, sum(buffer.widths))).astype(np.float32)
    content[:, -1] = np.arange(rows) % 3 == 0
    for row in content:
        buffer.add(row)
    return buffer


def everything(agent):
    """All tensors of an agent by name."""
    return {name: value.clone() for name, value in agent.state_dict().items()}


def changed(before, after):
    """The parts of an agent in which something differs."""
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


def vector_of(network):
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


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


# One phase -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "size", "remembered"), [(40, 8, 40), (43, 8, 40), (33, 8, 33), (8, 8, 8)])
def test_passes_over_the_buffer(rows, size, remembered):
    """Each row once in each pass, but for what does not fill a minibatch; each pass in an order of its own."""
    buffer, args = memory(rows, size=40), settings(batch_size=size, distill_epochs=3)
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
def test_a_number_of_minibatches_in_place_of_passes(updates):
    """That many, which begin a new pass whenever one is over."""
    buffer = memory()
    batches = list(minibatches_of_phase(buffer, settings(distill_updates=updates), np.random.default_rng(0)))
    assert len(batches) == updates == number_of_minibatches(buffer, settings(distill_updates=updates))
    for i in range(0, updates, 5):
        rows = torch.cat([batch.obs[:, 0] for batch in batches[i : i + 5]]).tolist()
        assert len(set(rows)) == len(rows)


@pytest.mark.parametrize("what", ["both", "policy", "critic"])
def test_distillation_the_ordinary_way(what):
    """A phase against .backward() and fresh optimisers of torch on copies; only what is taught changes."""
    student, teacher = learners(2)
    buffer, args = memory(), settings(distil=what, distill_epochs=2)
    slow, before, teachers = copy.deepcopy(student), everything(student), everything(teacher)
    optimisers = [torch.optim.Adam(network.parameters(), lr=1e-3) for network in (slow.actor, slow.critic)]
    metrics = [[], []]
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
            metrics[i].append(loss.item())
    losses = distil(student, teacher, buffer, args, np.random.default_rng(3))
    assert losses == pytest.approx([np.mean(each) if each else 0 for each in metrics], rel=1e-3)
    for fast, expected in zip((student.actor, student.critic), (slow.actor, slow.critic)):
        for a, b in zip(fast.parameters(), expected.parameters()):
            torch.testing.assert_close(a, b, rtol=0, atol=2e-4)
    wanted = {"both": {"actor", "critic"}, "policy": {"actor"}, "critic": {"critic"}}[what]
    assert changed(before, everything(student)) == wanted and changed(teachers, everything(teacher)) == set()


@pytest.mark.parametrize("what", ["both", "policy", "critic"])
def test_students_come_closer_and_the_rest_stays(what):
    """Both losses fall; the teacher, temperatures, own Adams and the buffer stay to the bit; targets take one step."""
    agents, buffer = learners(3), memory()
    args = settings(distil=what, distill_epochs=30)
    rows, before = buffer.latest(40).copy(), [everything(agent) for agent in agents]
    apart = [distances(agent, agents[1], buffer) for agent in agents]
    targets, random_state = [vector_of(agent.target_critic) for agent in agents], torch.get_rng_state()
    losses = teach(agents, 1, buffer, args, 0, workers(1))
    assert losses[1] == [0, 0] and changed(before[1], everything(agents[1])) == set()
    assert np.array_equal(buffer.latest(40), rows) and buffer.count == 40 and torch.equal(torch.get_rng_state(), random_state)
    taught = {"both": {"actor", "critic"}, "policy": {"actor"}, "critic": {"critic"}}[what]
    for k in (0, 2):
        assert changed(before[k], everything(agents[k])) == taught | {"target_critic"}
        after = distances(agents[k], agents[1], buffer)
        for i, name in enumerate(("actor", "critic")):
            assert after[i] < 0.2 * apart[k][i] if name in taught else after[i] == apart[k][i]
            assert after[i] < losses[k][i] < apart[k][i] if name in taught else losses[k][i] == 0
        expected = targets[k] + 0.005 * (vector_of(agents[k].critic) - targets[k])
        torch.testing.assert_close(vector_of(agents[k].target_critic), expected, rtol=0, atol=1e-7)


def test_a_phase_is_determined_by_seed_agent_and_phase():
    """The same again to the bit; whom else there is to teach changes nothing; another phase or seed is another."""
    buffer, outcomes = memory(), []
    for seed, phase, number in ((0, 0, 3), (0, 0, 2), (1, 0, 3), (0, 1, 3)):
        agents = learners(3)[:number]
        teach(agents, 0, buffer, settings(distill_updates=3, seed=seed), phase, workers(2))
        outcomes.append(vector_of(agents[1].actor))
    assert torch.equal(outcomes[0], outcomes[1])
    assert not torch.equal(outcomes[0], outcomes[2]) and not torch.equal(outcomes[0], outcomes[3])


def test_threads_change_no_bit():
    """Of students that are taught side by side; nor of their losses."""
    ends = []
    for threads in (1, 3):
        agents, args = learners(4), settings(distill_updates=20, reset_students=True)
        losses = teach(agents, 3, memory(), args, 1, workers(threads))
        ends.append((losses, [everything(agent) for agent in agents]))
    assert ends[0][0] == ends[1][0] and min(min(each) for each in ends[0][0][:3]) > 0
    assert all(not changed(*pair) for pair in zip(ends[0][1], ends[1][1]))


def test_each_phase_begins_with_fresh_optimisers():
    """Two phases of one step each move every weight by the rate, as Adam's first step does; the rate is --distill-lr."""
    agents, buffer = learners(2), memory()
    for phase in (0, 1):
        before = vector_of(agents[1].actor)
        teach(agents, 0, buffer, settings(distill_updates=1, distill_lr=2e-3), phase, workers(1))
        moved = (vector_of(agents[1].actor) - before).abs()
        assert moved.max() < 2.01e-3 and moved.median() == pytest.approx(2e-3, rel=0.02)


def test_hardcopy():
    """Students' policy and critic become the teacher's, their targets take a step; nothing else changes."""
    agents = learners(3)
    before, targets = [everything(agent) for agent in agents], [vector_of(agent.target_critic) for agent in agents]
    losses = teach(agents, 2, memory(), settings(share="hardcopy"), 0, workers(1))
    assert losses == [[0, 0]] * 3 and not changed(before[2], everything(agents[2]))
    for k in (0, 1):
        assert changed(before[k], everything(agents[k])) == {"actor", "critic", "target_critic"}
        for name in ("actor", "critic"):
            assert torch.equal(vector_of(getattr(agents[k], name)), vector_of(getattr(agents[2], name)))
        expected = targets[k] + 0.005 * (vector_of(agents[2].critic) - targets[k])
        torch.testing.assert_close(vector_of(agents[k].target_critic), expected, rtol=0, atol=1e-7)
    with torch.no_grad():
        agents[2].actor.net[0].weight.zero_()  # nothing is shared
    assert vector_of(agents[0].actor)[:100].abs().min() > 0


def test_extra_updates():
    """Each agent learns on by itself, as often as a phase has minibatches: against single updates of copies."""
    agents, slow, buffer = learners(2), learners(2), memory()
    args, pool, before = settings(share="extra", distill_epochs=2, seed=4), workers(1), everything(agents[0])
    learn_on(agents, buffer, args, 7, pool)
    for k, (agent, alone) in enumerate(zip(agents, slow)):
        rng = np.random.default_rng([4, k, 7, 3])
        for _ in range(10):
            alone.update(*baselines.sac_batch(buffer, args, rng), args, pool)
        assert not changed(everything(agent), everything(alone))
    assert changed(before, everything(agents[0])) >= set(NETWORKS)


def check_beginning(learner):
    """Glorot and Bengio (2010), Eq. (16): uniform, with a variance of 2 / (inputs + outputs); no biases."""
    for network in (learner.actor.net, *learner.critic.nets):
        layers = [module for module in network if isinstance(module, nn.Linear)]
        assert [layer.out_features for layer in layers[:2]] == [256, 256] and len(layers) == 3
        for layer in layers:
            bound = math.sqrt(6 / (layer.in_features + layer.out_features))
            assert 0.8 * bound < layer.weight.abs().max() <= bound and not layer.bias.any()
            assert layer.weight.var().item() == pytest.approx(2 / (layer.in_features + layer.out_features), rel=0.3)


def test_students_are_reset_before_they_are_taught(monkeypatch):
    """Distillation begins from networks as at the beginning, others for each student and phase; their Adams stay."""
    starts = []

    def look(student, *rest):
        starts.append(vector_of(student.actor).numpy().tobytes())
        check_beginning(student)
        return [0.0, 0.0]

    monkeypatch.setattr(piekd_cikd, "distil", look)
    for phase in (0, 0, 1):
        agents = learners(3)
        before, random_state = [everything(agent) for agent in agents], torch.get_rng_state()
        teach(agents, 1, memory(), settings(reset_students=True), phase, workers(1))
        assert torch.equal(torch.get_rng_state(), random_state) and not changed(before[1], everything(agents[1]))
        for k in (0, 2):
            assert changed(before[k], everything(agents[k])) == {"actor", "critic", "target_critic"}
    assert starts[0:2] == starts[2:4] and len(set(starts)) == 4


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


def play(monkeypatch, tmp_path, **changes):
    """A run with rows of 50 steps: what each step did [(episode's return or None, steps of the episode)], and the phases."""
    steps, phases, original = [], [], Stream.step

    def step(stream, action):
        length = stream.steps + 1
        steps.append((original(stream, action), length))
        return steps[-1][0]

    def taught(agents, teacher, buffer, args, number, pool):
        phases.append((len(steps), teacher, number))
        return [[0.0, 0.0] for _ in agents]

    monkeypatch.setattr(piekd_cikd, "ROW", 50)
    monkeypatch.setattr(Stream, "step", step)
    monkeypatch.setattr(piekd_cikd, "teach", taught)
    monkeypatch.setattr(SavedRun, "draw", lambda _: None)
    monkeypatch.setattr(SavedRun, "print_table", lambda _: None)
    tiny = {"total_steps": 600, "warm_up": 130, "interval": 45, "recent": 2, "eval_domains": 1, "evaluate_every": 300}
    args = settings(**{"runs": str(tmp_path / "runs"), "batch_size": 4} | tiny | changes)
    baselines.set_up_torch(args)
    piekd_cikd.train(args)
    (path,) = (tmp_path / "runs").iterdir()
    return args, steps, phases, SavedRun(path)


@pytest.mark.parametrize("changes", [{}, {"method": "cikd", "seed": 1}, {"teacher": "random", "ensemble_size": 2}])
def test_phases_begin_where_algorithm_1_says(tmp_path, monkeypatch, changes):
    """After an episode, when the counter has reached the interval; by the best of late; against a plain count."""
    args, steps, phases, run = play(monkeypatch, tmp_path, **changes)
    returns, since, expected, acted = [[] for _ in range(args.ensemble_size)], 0, [], []
    episode = 0
    for t, (total, length) in enumerate(steps, start=1):
        since += t > args.warm_up
        if total is None:
            continue
        agent = int(np.random.default_rng([args.seed, 0, episode, 5]).integers(args.ensemble_size))
        acted.append((t, agent, total))
        episode += 1
        if t - length >= args.warm_up:
            returns[agent].append(total)
        if since >= args.interval and any(returns):
            means = [np.mean(own[-2:]) if own else -np.inf for own in returns]
            teacher = int(np.argmax(means))
            if args.teacher == "random":
                rng = np.random.default_rng([args.seed, 0, len(expected), 6])
                teacher = int(rng.choice([k for k, own in enumerate(returns) if own]))
            expected.append((t, teacher, len(expected)))
            since = since % args.interval if args.method == "cikd" else 0
    assert phases == expected and len(phases) > 4 and len({teacher for _, teacher, _ in phases}) > 1
    table, log = run.table("distillation.csv"), run.table("log.csv")
    assert table["step"].tolist() == [t for t, _, _ in phases for _ in range(args.ensemble_size)]
    for step, agent, episodes, value in zip(log["step"], log["agent"], log["episodes"], log["return"]):
        own = [total for t, k, total in acted if step - 50 < t <= step and k == agent]
        assert episodes == len(own) and (not own or value == pytest.approx(np.mean(own)))


def test_when_it_is_evaluated_and_what_is_kept(tmp_path, monkeypatch):
    """Whenever a multiple of --evaluate-every is reached, and at the end; the last policies are kept."""
    args, _, _, run = play(monkeypatch, tmp_path, total_steps=500, evaluate_every=200)
    evaluation = run.table("eval.csv")
    assert sorted(set(evaluation["step"])) == [200, 400, 500] and set(evaluation["agent"]) == {0, 1, 2}
    policies = piekd_cikd.load_policies(run)
    env, domain = baselines.make_envs(args, 1)[0], baselines.held_out_domains(0.0, 1)[0]
    last = evaluation["return"][evaluation["step"] == 500].tolist()
    assert [baselines.episode_return(env, policy, domain, 0) for policy in policies] == last


@pytest.mark.parametrize(("changes", "phases"), [
    ({"method": "ensemble"}, False), ({"method": "vanilla"}, False), ({"method": "ensemble", "share": "extra"}, True),
])  # fmt: skip
def test_methods_without_a_teacher(tmp_path, monkeypatch, changes, phases):
    """No phase, or one of more updates; one agent for vanilla; options of distillation are ignored."""
    learned = []
    monkeypatch.setattr(piekd_cikd, "learn_on", lambda agents, *rest: learned.append(len(agents)))
    _, _, taught, run = play(monkeypatch, tmp_path, **changes)
    assert not taught and bool(learned) == phases and not (run.path / "distillation.csv").exists()
    assert len(set(run.table("log.csv")["agent"])) == (1 if changes["method"] == "vanilla" else 3)


def test_vanilla_is_sac_for_one_agent(tmp_path, monkeypatch):
    """Bit-identical networks with baselines.py's SAC."""
    monkeypatch.setattr(baselines, "ROW", 50)
    _, _, _, run = play(monkeypatch, tmp_path, method="vanilla", total_steps=300)
    shared = {"env": "Hopper-v4", "total_steps": 300, "warm_up": 130, "batch_size": 4, "compile": False, "threads": 1}
    args = baselines.SACArgs(**shared, eval_domains=1, eps_te=(0.0,), runs=str(tmp_path / "sac"))
    baselines.set_up_torch(args)
    baselines.sac(args)
    (path,) = (tmp_path / "sac").iterdir()
    ends = [torch.load(each / "checkpoint.pt", weights_only=True)["parts"]["agent0"] for each in (run.path, path)]
    assert not changed(*ends) and ends[0].keys() == ends[1].keys()


def test_a_phase_in_the_loop(tmp_path, monkeypatch):
    """With real lessons: losses of students above zero and of teachers zero, and the run goes on."""
    real = piekd_cikd.teach
    with monkeypatch.context() as patch:
        patch.setattr(Stream, "step", Stream.step)
        args = settings(runs=str(tmp_path / "r"), total_steps=400, warm_up=130, interval=45, distill_updates=3, eval_domains=1)
        patch.setattr(piekd_cikd, "ROW", 50)
        baselines.set_up_torch(args)
        piekd_cikd.train(args)
    assert piekd_cikd.teach is real
    (path,) = (tmp_path / "r").iterdir()
    table = SavedRun(path).table("distillation.csv")
    teacher = table["agent"] == table["teacher"]
    for name in ("policy_loss", "critic_loss"):
        assert not table[name][teacher].any() and (table[name][~teacher] > 1e-7).all()


@pytest.mark.parametrize(("changes", "word"), [
    ({"ensemble_size": 1}, "at least 2"), ({"interval": 500}, "never over"), ({"total_steps": 100}, "warm-up"),
])  # fmt: skip
def test_bad_settings(tmp_path, monkeypatch, capsys, changes, word):
    """One line, status 2, no folder."""
    with pytest.raises(SystemExit) as exit_:
        play(monkeypatch, tmp_path, **({"interval": 10} | changes if "total_steps" not in changes else changes | {"method": "ensemble"}))
    err = capsys.readouterr().err
    assert exit_.value.code == 2 and word in err and err.count("\n") == 1 and not (tmp_path / "runs").exists()


# Figures -------------------------------------------------------------------------------------------------


def make_run(tmp_path, returns, phases=(), **changes):
    """A finished run by hand: returns[i][k] of agent k at evaluation i, every 100 steps; phases [(step, teacher, returns)]."""
    args = settings(**{"total_steps": 300, "runs": str(tmp_path)} | changes)
    path = tmp_path / baselines.run_name(args, "piekd_cikd")
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"settings": vars(args)}))

    def write(name, header, rows):
        (path / name).write_text("\n".join(",".join(map(str, row)) for row in [header, *rows]) + "\n")

    rows = [(100 * (i + 1), k, 0.0, d, value + d) for i, each in enumerate(returns) for k, value in enumerate(each) for d in (-1, 1)]
    write("eval.csv", ["step", "agent", "eps_te", "domain", "return"], rows)
    rows = [(step, k, teacher, value) for step, teacher, each in phases for k, value in enumerate(each)]
    if rows:
        write("distillation.csv", ["step", "agent", "teacher", "return"], rows)
    (path / "figure.png").touch()
    return args


def lines_of(axis):
    return {line.get_label().rsplit(", ", 1)[0]: np.array(line.get_data()).tolist() for line in axis.lines}


def test_learning_curves_of_best_and_worst_agent(tmp_path):
    """At each evaluation whichever agent is best, mean over seeds; one agent has no worst."""
    make_run(tmp_path, [[1, 5], [8, 2]], seed=0)
    make_run(tmp_path, [[3, 1], [2, 4]], seed=1)
    make_run(tmp_path, [[7], [9]], method="vanilla")
    figure, _ = piekd_cikd.figure_curves(settings(total_steps=300, runs=str(tmp_path), figure="piekd-3"))
    x = [100, 200]
    assert lines_of(figure.axes[0]) == {"PIEKD, best": [x, [4, 6]], "PIEKD, worst": [x, [1, 2]], "vanilla": [x, [7, 9]]}
    figure, _ = piekd_cikd.figure_curves(settings(total_steps=300, runs=str(tmp_path), figure="piekd-6"))
    assert lines_of(figure.axes[0]) == {"PIEKD": [x, [4, 6]]}


@pytest.mark.parametrize(("name", "labels"), [
    ("piekd-3", "PIEKD ensemble vanilla"), ("cikd-8", "CIKD ensemble vanilla"),
    ("piekd-4", "PIEKD ensemble_(extra) vanilla_(extra)"), ("cikd-3b", "CIKD CIKD_(hardcopy) ensemble vanilla"),
    ("piekd-7", "PIEKD,_K_=_2 PIEKD,_K_=_3 PIEKD,_K_=_5 ensemble"), ("cikd-7", "CIKD policy_only critic_only vanilla"),
    ("piekd-8", "PIEKD,_I_=_1000 PIEKD,_I_=_5000 PIEKD,_I_=_10000 PIEKD,_I_=_100000 ensemble"),
])  # fmt: skip
def test_the_lines_of_each_figure_are_the_papers(monkeypatch, name, labels):
    asked = []
    monkeypatch.setattr(piekd_cikd, "select_runs", lambda args, script, wanted: asked.append(wanted) or {})
    piekd_cikd.look_up(settings(figure=name), CURVES[name])
    assert list(asked[0]) == [label.replace("_", " ") for label in labels.split()]
    assert asked[0][list(asked[0])[0]]["method"] == name.split("-")[0]


def test_students_that_surpass_their_teacher(tmp_path, capsys):
    """Shares by third, overall and in the last third, by hand; who teaches, how often."""
    phases = [(50, 0, (5, 6, 1)), (150, 1, (1, 5, 2)), (250, 1, (6, 5, 7)), (300, 2, (1, 2, 3))]
    make_run(tmp_path, [[1, 2, 3]], phases, method="cikd")
    args = settings(total_steps=300, runs=str(tmp_path), figure="cikd-5")
    run = baselines.find_runs(args, "piekd_cikd", method="cikd")[0]
    assert [surpassing(run.table("distillation.csv"), low, low + 100) for low in (0, 100, 200)] == [0.5, 0, 0.5]
    figure, _ = piekd_cikd.figure_cikd_5(args)
    assert "38% overall, 50% in the last third" in capsys.readouterr().out
    assert [line.get_ydata().tolist() for line in figure.axes[0].lines] == [[0, 1, 1, 2]]
    assert [bar.get_height() for bar in figure.axes[1].patches] == [0.25, 0.5, 0.25]
    assert [bar.get_height() for bar in figure.axes[2].patches] == [0.5, 0, 0.5, 0.375]


def test_figure_of_the_best_agents(tmp_path, capsys):
    """Which agent is best at each evaluation, in one ensemble and among as many independent agents."""
    make_run(tmp_path, [[1, 5], [8, 2], [3, 4]], method="ensemble", ensemble_size=2)
    args = settings(total_steps=300, runs=str(tmp_path), figure="cikd-9", ensemble_size=2)
    with pytest.raises(SystemExit):
        piekd_cikd.figure_cikd_9(args)
    assert "2 seeds of --method vanilla" in capsys.readouterr().err
    for seed, returns in ((0, [[7], [9], [1]]), (1, [[8], [1], [0]])):
        make_run(tmp_path, returns, method="vanilla", seed=seed, ensemble_size=2)
    figure, _ = piekd_cikd.figure_cikd_9(args)
    assert [figure.axes[i].lines[0].get_ydata().tolist() for i in (0, 2)] == [[1, 0, 1], [1, 0, 0]]
    assert [bar.get_height() for bar in figure.axes[1].patches] == pytest.approx([1 / 3, 2 / 3])


def test_the_defaults_are_the_papers():
    """PIEKD's appendix, CIKD's Sec. 5.1; the learning rate and the passes of a phase are the released code's."""
    args = Args()
    assert (args.ensemble_size, args.interval, args.recent, args.total_steps) == (3, 5000, 5, 1_000_000)
    assert (args.learning_rate, args.gamma, args.tau, args.batch_size, args.warm_up) == (3e-4, 0.99, 0.005, 256, 10_000)
    assert (args.distill_epochs, args.distill_lr, args.evaluate_every, args.eval_domains) == (5, 1e-3, 10_000, 20)
