"""Tests of piekd_cikd.py: its equations against loops and Monte Carlo, its loop against a slow Algorithm 1."""

import copy
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import baselines
import piekd_cikd
from baselines import ReplayBuffer, SACAgent, SavedRun, Stream, sac_batch, squashed_policy
from helpers import flat, stop_and_go_on, write_run
from piekd_cikd import (
    CURVES, Args, SquashedActor, Standings, TwinCritic, critic_distillation_loss, distil, elect, gaussian_kl, learn_on,
    minibatches_of_phase, number_of_minibatches, policy_distillation_loss, surpassing, teach,
)  # fmt: skip
from randomised_envs import Domain, episode_return

OBS, ACT = 5, 3  # sizes of hand-made observations and actions


def settings(**changes):
    return Args(**{"compile": False, "batch_size": 8, "threads": 1} | changes)


def learners(number=3, **changes):
    """Agents that have learned for a while: outputs not near zero, own temperatures, Adams that have seen gradients."""
    torch.manual_seed(0)
    scale, args = np.array([1.0, 0.4, 2.0], np.float32), settings(**changes)
    made = [SACAgent(SquashedActor(OBS, scale), TwinCritic(OBS, ACT), args) for _ in range(number)]
    with torch.no_grad():
        for optimiser in (each for agent in made for each in (agent.actor_optimiser, agent.critic_optimiser)):
            for parameter in (each for net in optimiser.networks + optimiser.targets for each in net.parameters()):
                parameter.add_(0.02 * torch.randn_like(parameter))
            for mean, square in zip(optimiser.means, optimiser.squares):  # as they are after a first gradient
                gradient = torch.randn_like(mean)
                mean.copy_(0.1 * gradient)
                square.copy_(0.001 * gradient**2)
            optimiser.steps += 1
    return made


def memory(rows=40, size=40):
    """A buffer of random rows, the third part of which are deaths."""
    buffer, rng = ReplayBuffer(OBS, ACT, size, "cpu"), np.random.default_rng(0)
    for i in range(rows):
        obs, next_obs = rng.normal(size=(2, OBS))
        buffer.add(obs, rng.normal(size=ACT), rng.normal(), next_obs, i % 3 == 0)
    return buffer


def everything(agent):
    """All tensors of an agent by name."""
    return {name: value.clone() for name, value in agent.state_dict().items()}


def changed(before, after):
    """The parts of an agent in which something differs."""
    assert before.keys() == after.keys()
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


def normals(*policies):
    return [torch.distributions.Normal(mean, log_std.exp()) for mean, log_std in policies]


def two_policies(steps):
    torch.manual_seed(1)
    return [(torch.randn(steps, ACT).double(), 0.5 * torch.randn(steps, ACT).double()) for _ in range(2)]


def test_the_kl_of_squashed_gaussians_is_that_before_the_squash():
    """Monte Carlo: mean of log p(a) - log q(a) over actions from p, both densities those of the squashed actions."""
    p, q = two_policies(4)
    tanh = torch.distributions.TanhTransform(cache_size=1)
    squashed = [torch.distributions.TransformedDistribution(normal, [tanh]) for normal in normals(p, q)]
    torch.manual_seed(2)
    actions = squashed[0].sample((100_000,))
    differences = (squashed[0].log_prob(actions) - squashed[1].log_prob(actions)).sum(-1)
    assert differences.isfinite().all()
    error, expected = differences.std(0) / math.sqrt(len(differences)), gaussian_kl(p, q)
    assert ((differences.mean(0) - expected).abs() < 4 * error).all() and (error < 0.05 * expected).all()


@pytest.mark.parametrize(("rows", "number", "changes"), [
    (40, 15, {}), (43, 15, {}), (33, 12, {}), (8, 3, {}),
    (40, 1, {"distil_updates": 1}), (40, 4, {"distil_updates": 4}), (43, 13, {"distil_updates": 13}),
])  # fmt: skip
def test_passes_over_the_buffer(rows, number, changes):
    """Each of 40 rows once in each pass, but for what does not fill a minibatch; each pass in an order of its own."""
    buffer, args = memory(rows), settings(distil_epochs=3, **changes)
    batches = list(minibatches_of_phase(buffer, args, np.random.default_rng(0)))
    assert [len(batch.obs) for batch in batches] == [8] * number and number_of_minibatches(buffer, args) == number
    known, of_pass = buffer.latest(len(buffer)).obs[:, 0].tolist(), len(buffer) // 8
    orders = [torch.cat([each.obs[:, 0] for each in batches[i : i + of_pass]]) for i in range(0, number, of_pass)]
    for order in map(torch.Tensor.tolist, orders):
        assert len(set(order)) == len(order) and set(order) <= set(known) and order != known[: len(order)]
    assert len({tuple(order[:8].tolist()) for order in orders}) == len(orders)


@pytest.mark.parametrize("what", ["both", "policy", "critic"])
def test_distillation_the_ordinary_way(what):
    """Eqs. (1) and (2): KL(teacher || student), and the square difference of Q_1 and Q_1, Q_2 and Q_2 in the buffer.

    Two phases against .backward() and fresh optimisers of torch on copies; only what is taught changes.
    """
    student, teacher = learners(2)
    buffer, args = memory(), settings(distil=what, distil_epochs=1, distil_lr=2e-3)
    slow, before, teachers = copy.deepcopy(student), everything(student), everything(teacher)
    for phase in (0, 1):
        optimisers = [torch.optim.Adam(network.parameters(), lr=2e-3) for network in (slow.actor, slow.critic)]
        metrics = [[], []]
        for batch in minibatches_of_phase(buffer, args, np.random.default_rng(phase)):
            pair, inputs = normals(teacher.actor(batch.obs), slow.actor(batch.obs)), (batch.obs, batch.actions)
            kl = torch.distributions.kl_divergence(*pair).sum(-1).mean()
            error = nn.functional.mse_loss(slow.critic(*inputs), teacher.critic(*inputs))
            for i, (loss, optimiser, skipped) in enumerate(zip((kl, error), optimisers, ("critic", "policy"))):
                if what == skipped:
                    continue
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                metrics[i].append(loss.item())
        losses = distil(student, teacher, buffer, args, np.random.default_rng(phase))
        assert losses == pytest.approx([np.mean(each) if each else 0 for each in metrics], rel=1e-3)
        for name in ("actor", "critic"):
            fast, expected = (flat(getattr(learner, name)) for learner in (student, slow))
            torch.testing.assert_close(fast, expected, rtol=0, atol=2e-4)
    taught = {"both": {"actor", "critic"}, "policy": {"actor"}, "critic": {"critic"}}[what]
    assert changed(before, everything(student)) == taught and changed(teachers, everything(teacher)) == set()
    teacher.zero_grad()
    policy_distillation_loss(student.actor, teacher.actor, batch.obs).backward()
    critic_distillation_loss(student.critic, teacher.critic, *inputs).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("share", ["distil", "hardcopy"])
def test_all_but_the_teacher_are_taught(share, threads):
    """Against one lesson after the other on copies, to the bit. The rest of a student stays; targets take one step."""
    agents, slow, buffer = learners(4), learners(4), memory()
    args = settings(share=share, distil_updates=3, seed=2)
    losses, expected = teach(agents, 1, buffer, args, 7, ThreadPoolExecutor(threads)), [[0, 0] for _ in agents]
    for k in (0, 2, 3):
        if share == "distil":
            expected[k] = distil(slow[k], slow[1], buffer, args, np.random.default_rng([2, k, 7, 3]))
        else:
            slow[k].actor, slow[k].critic = copy.deepcopy(slow[1].actor), copy.deepcopy(slow[1].critic)
        target = flat(slow[k].target_critic)
        target += 0.005 * (flat(slow[k].critic) - target)
        torch.testing.assert_close(flat(agents[k].target_critic), target, rtol=0, atol=1e-7)
        assert changed(everything(slow[k]), everything(agents[k])) == {"target_critic"}
    assert losses == expected and not changed(everything(slow[1]), everything(agents[1]))
    own = [parameter.data_ptr() for agent in agents for parameter in agent.parameters()]
    assert len(set(own)) == len(own)  # nothing is shared


def test_extra_updates():
    """Each agent learns on by itself, as often as a phase has minibatches: against single updates of copies."""
    agents, slow, buffer = learners(2), learners(2), memory()
    args, pool = settings(share="extra", distil_epochs=2, seed=4), ThreadPoolExecutor(1)
    learn_on(agents, buffer, args, 7, pool)
    for k, (agent, alone) in enumerate(zip(agents, slow)):
        rng = np.random.default_rng([4, k, 7, 3])
        for _ in range(10):
            alone.update(*sac_batch(buffer, args, rng), args, pool)
        assert not changed(everything(agent), everything(alone))


def check_beginning(student):
    """Glorot and Bengio (2010), Eq. (16): uniform, with a variance of 2 / (inputs + outputs); no biases."""
    for network in (student.actor.net, *student.critic.nets):
        layers = [module for module in network if isinstance(module, nn.Linear)]
        assert [layer.out_features for layer in layers[:2]] == [256, 256] and len(layers) == 3
        for layer in layers:
            bound = math.sqrt(6 / (layer.in_features + layer.out_features))
            assert 0.8 * bound < layer.weight.abs().max() <= bound and not layer.bias.any()
            assert layer.weight.var().item() == pytest.approx(2 / (layer.in_features + layer.out_features), rel=0.3)


def test_students_are_reset_before_they_are_taught(monkeypatch):
    """Distillation begins from networks as at the beginning, others for each student and phase; their Adams stay."""
    starts, networks = [], {"actor", "critic", "target_critic"}

    def look(student, *rest):
        starts.append(tuple(flat(student.actor).tolist()))
        check_beginning(student)
        return [0.0, 0.0]

    monkeypatch.setattr(piekd_cikd, "distil", look)
    for phase in (0, 0, 1):
        agents = learners(3)
        before, random_state = [everything(agent) for agent in agents], torch.get_rng_state()
        teach(agents, 1, memory(), settings(reset_students=True), phase, ThreadPoolExecutor(1))
        assert torch.equal(torch.get_rng_state(), random_state)
        assert [changed(*pair) for pair in zip(before, map(everything, agents))] == [networks, set(), networks]
    assert starts[0:2] == starts[2:4] and len(set(starts)) == 4


def test_standings_are_means_of_the_last_episodes(tmp_path):
    """Against a plain list, of fewer at the beginning, -inf without one; also after a checkpoint on the way."""
    standings, lists, rng = Standings(3, 4), [[], [], []], np.random.default_rng(0)
    for i in range(40):
        agent, value = int(rng.integers(2)), float(rng.normal(-5, 3))
        standings.acting = agent
        standings.record(value)
        lists[agent].append(value)
        expected = [np.mean(own[-4:]) if own else -np.inf for own in lists]
        assert standings.recent().tolist() == pytest.approx(expected)
        if i in (2, 20):
            standings.acting, standings.counts, standings.steps_since, standings.phases = 2, True, 17, i
            torch.save(standings.state_dict(), tmp_path / "state")
            standings = Standings(3, 4)
            standings.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
            state = standings.acting, standings.counts, standings.steps_since, standings.phases
            assert state == (2, True, 17, i)
    assert min(len(lists[0]), len(lists[1])) > 8


@pytest.mark.parametrize(("recent", "expected"), [
    ([1, 3, 2], 1), ([2, 2, 1], 0), ([1, 2, 2], 1), ([-5, -np.inf, -7], 0), ([-np.inf, -np.inf, -7], 2),
    ([-np.inf] * 3, None),
])  # fmt: skip
def test_the_best_is_elected(recent, expected):
    """Of equals the first; one without an episode never. At random: all others equally often."""
    rng, recent = np.random.default_rng(0), np.array(recent, float)
    assert elect(recent, "best", rng) == expected
    drawn = [elect(recent, "random", rng) for _ in range(600)]
    candidates = np.flatnonzero(recent > -np.inf).tolist() or [None]
    assert set(drawn) == set(candidates)
    assert all(abs(drawn.count(k) / 600 - 1 / len(candidates)) < 0.08 for k in candidates)


def small_layers(inputs, outputs):
    """In place of layers of 256, to save time."""
    return nn.Sequential(nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, outputs)).apply(piekd_cikd.glorot)


def plain_loop(args, number):
    """Algorithm 1, a step at a time: the agents, episodes, what phases write, and returns in evaluations."""
    torch.manual_seed(args.seed)
    scale, (env, test_env) = np.ones(3, np.float32), baselines.make_envs(args, 2)
    agents = [SACAgent(SquashedActor(11, scale), TwinCritic(11, 3), args) for _ in range(number)]
    stream, pool = Stream(env, args, 0), ThreadPoolExecutor(1)
    buffer, returns, since, phases = stream.buffer, [[] for _ in agents], 0, 0
    episodes, taught, tested, total = [], [], [], 0.0

    def test():
        domain, policies = Domain(), [squashed_policy(agent.actor) for agent in agents]
        return [episode_return(test_env, policy, domain, 0) for policy in policies]

    for t in range(300):
        if t % 50 == 0:  # a row of the log
            acting = np.random.default_rng([args.seed, 0, t // 50, 1])
            rngs = [np.random.default_rng([args.seed, k, t // 50]) for k in range(number)]
        if total is not None:  # of the step before, which ended an episode
            began = t
            chosen = int(np.random.default_rng([args.seed, 0, len(episodes), 5]).integers(number))
        if t < 80:
            action = acting.uniform(-scale, scale).astype(np.float32)
        else:
            noise = acting.standard_normal(3, dtype=np.float32)
            action = squashed_policy(agents[chosen].actor)(stream.obs, noise)
        (total,) = stream.step(action) or [None]
        if t >= 80:
            since += 1
            for agent, rng in zip(agents, rngs):
                agent.update(*sac_batch(buffer, args, rng), args, pool)
        if total is not None:
            episodes.append((t + 1, chosen, total, began >= 80))
            returns[chosen] += [total] if began >= 80 else []
        able = [k for k in range(number) if returns[k]]
        over = total is not None and since >= args.interval
        if over and args.share == "extra":
            learn_on(agents, buffer, args, phases, pool)
            phases, since = phases + 1, 0
        elif over and able and args.method in ("piekd", "cikd"):
            recent = [np.mean(own[-2:]) if own else -np.inf for own in returns]
            teacher = int(np.argmax(recent))
            if args.teacher == "random":
                teacher = int(np.random.default_rng([args.seed, 0, phases, 6]).choice(able))
            losses = teach(agents, teacher, buffer, args, phases, pool)
            taught += [(t + 1, k, teacher, recent[k], *losses[k], value) for k, value in enumerate(test())]
            phases, since = phases + 1, since % args.interval if args.method == "cikd" else 0
        if t + 1 in (150, 250, 300):
            tested.append(test())
    return agents, episodes, taught, tested


@pytest.mark.parametrize("changes", [
    {}, {"method": "cikd"}, {"teacher": "random", "ensemble_size": 2, "interval": 1}, {"method": "vanilla"},
    {"method": "ensemble", "share": "extra", "ensemble_size": 2},
])  # fmt: skip
def test_the_loop_is_algorithm_1(monkeypatch, quiet, changes):
    """Against the plain loop, to the bit, although the run goes on from a checkpoint in the middle of an episode."""
    monkeypatch.setattr(piekd_cikd, "ROW", 50)
    monkeypatch.setattr(piekd_cikd, "two_layers", small_layers)
    tiny = {"total_steps": 300, "warm_up": 80, "buffer_size": 200, "batch_size": 4, "eps_tr": 0.2, "seed": 2}
    tiny |= {"interval": 30, "recent": 2, "distil_updates": 3, "evaluate_every": 110, "eval_domains": 1,
             "checkpoint_every": 1}  # fmt: skip
    args = settings(**tiny | changes)
    number = 1 if args.method == "vanilla" else args.ensemble_size
    agents, episodes, taught, tested = plain_loop(args, number)
    stop_and_go_on(piekd_cikd.train, args, at=250)
    _, acting, _, counts = next(episode for episode in episodes if episode[0] > 200)  # at the last checkpoint
    assert 200 not in [end for end, *_ in episodes] and counts and (acting > 0 or number < 3)
    run = SavedRun(Path(args.runs) / baselines.run_name(args, "piekd_cikd", args.seed))
    ends = torch.load(run.path / "checkpoint.pt", weights_only=True)["parts"]
    assert not any(changed(everything(agent), ends[f"agent{k}"]) for k, agent in enumerate(agents))
    assert f"agent{number}" not in ends and (run.path / "distillation.csv").exists() == bool(taught)
    if args.method in ("piekd", "cikd"):
        # step, agent, teacher, recent, losses, return
        np.testing.assert_array_equal(run.table("distillation.csv").tolist(), taught)
        assert len({row[0] for row in taught}) > 3 and len({row[2] for row in taught}) > 1
    log, evaluation = run.table("log.csv"), run.table("eval.csv")
    for step, agent, finished, value in zip(log["step"], log["agent"], log["episodes"], log["return"]):
        past = [episode for episode in episodes if episode[0] <= step]
        own = [total for t, k, total, _ in past if t > step - 50 and k == agent]
        counted = [total for _, k, total, counts in past if k == agent and counts]
        assert finished == len(own) and value == pytest.approx(np.mean(own or counted[-1:] or past[-1][2]))
    assert evaluation["step"].tolist() == [step for step in (150, 250, 300) for _ in agents]
    assert evaluation["agent"].tolist() == [*range(number)] * 3 and evaluation["return"].tolist() == sum(tested, [])
    env, domain = baselines.make_envs(args, 1)[0], Domain()
    assert [episode_return(env, each, domain, 0) for each in piekd_cikd.load_policies(run)] == tested[-1]


def test_a_minibatch_that_the_buffer_never_holds_is_refused(capsys):
    """One line and status 2, before anything is written: phases would never begin."""
    with pytest.raises(SystemExit) as stopped:
        piekd_cikd.train(settings(total_steps=1000, warm_up=990, interval=10, batch_size=201, buffer_size=200))
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and "--batch-size 201" in line and not Path("runs").exists()


def make_run(returns, phases=(), **changes):
    """A finished run: returns[i][k] of agent k at evaluation i, every 100 steps; phases [(step, teacher, returns)]."""
    rows = [(100 * i + 100, k, value) for i, each in enumerate(returns) for k, value in enumerate(each)]
    rows = [(step, k, 0.0, domain, value + domain) for step, k, value in rows for domain in (-1, 1)]
    tables = {"eval": [("step", "agent", "eps_te", "domain", "return"), *rows]}
    rows = [(step, k, teacher, value) for step, teacher, each in phases for k, value in enumerate(each)]
    if rows:
        tables["distillation"] = [("step", "agent", "teacher", "return"), *rows]
    return write_run(settings(total_steps=300, **changes), "piekd_cikd", **tables)


def test_learning_curves_of_best_and_worst_agent():
    """At each evaluation whichever agent is best, mean over seeds; one agent has no worst."""
    make_run([[1, 5], [8, 2]], seed=0)
    make_run([[3, 1], [2, 4]], seed=1)
    make_run([[7], [9]], method="vanilla")
    both = {"PIEKD, best": [4, 6], "PIEKD, worst": [1, 2], "vanilla": [7, 9]}
    for name, expected in (("piekd-3", both), ("piekd-6", {"PIEKD": [4, 6]})):
        figure, _ = piekd_cikd.figure_curves(settings(total_steps=300, figure=name))
        lines = figure.axes[0].lines
        assert all(line.get_xdata().tolist() == [100, 200] for line in lines)
        assert {line.get_label().rsplit(", ", 1)[0]: line.get_ydata().tolist() for line in lines} == expected


@pytest.mark.parametrize(("name", "labels"), [
    ("piekd-3", "PIEKD ensemble vanilla"), ("cikd-8", "CIKD ensemble vanilla"),
    ("piekd-4", "PIEKD ensemble_(extra) vanilla_(extra)"), ("cikd-3b", "CIKD CIKD_(hardcopy) ensemble vanilla"),
    ("piekd-7", "PIEKD,_K_=_2 PIEKD,_K_=_3 PIEKD,_K_=_5 ensemble"), ("cikd-7", "CIKD policy_only critic_only vanilla"),
    ("piekd-8", "PIEKD,_I_=_1000 PIEKD,_I_=_5000 PIEKD,_I_=_10000 PIEKD,_I_=_100000 ensemble"),
])  # fmt: skip
def test_the_lines_of_each_figure_are_the_papers(monkeypatch, name, labels):
    """Labels by hand; {method} is that of the figure's paper."""
    asked = []
    monkeypatch.setattr(piekd_cikd, "find_runs", lambda args, script, wanted: asked.append(wanted) or {})
    piekd_cikd.look_up(settings(figure=name), CURVES[name])
    assert list(asked[0]) == [label.replace("_", " ") for label in labels.split()]
    assert asked[0][list(asked[0])[0]]["method"] == name.split("-")[0]


def test_students_that_surpass_their_teacher(capsys):
    """Shares by third, overall and in the last third, by hand; who teaches, how often."""
    phases = [(50, 0, (5, 6, 5)), (150, 1, (1, 5, 2)), (250, 1, (6, 5, 7)), (300, 2, (1, 2, 3))]
    table = make_run([[1, 2, 3]], phases, method="cikd").table("distillation.csv")
    assert [surpassing(table, low, low + 100) for low in (0, 100, 200)] == [0.5, 0, 0.5]
    figure, _ = piekd_cikd.figure_cikd_5(settings(total_steps=300, figure="cikd-5"))
    assert "38% overall, 50% in the last third" in capsys.readouterr().out
    assert [line.get_ydata().tolist() for line in figure.axes[0].lines] == [[0, 1, 1, 2]]
    bars = [[bar.get_height() for bar in axis.patches] for axis in figure.axes[1:3]]
    assert bars == [[0.25, 0.5, 0.25], [0.5, 0, 0.5, 0.375]]


def test_figure_of_the_best_agents(capsys):
    """Which agent is best at each evaluation, in one ensemble and among as many independent agents."""
    make_run([[1, 5], [8, 2], [3, 4]], method="ensemble", ensemble_size=2)
    args = settings(total_steps=300, figure="cikd-9", ensemble_size=2)
    with pytest.raises(SystemExit):
        piekd_cikd.figure_cikd_9(args)
    assert "2 seeds of --method vanilla" in capsys.readouterr().err
    for seed, returns in ((0, [[7], [9], [1]]), (1, [[8], [1], [0]])):
        make_run(returns, method="vanilla", seed=seed, ensemble_size=2)
    figure, _ = piekd_cikd.figure_cikd_9(args)
    assert [figure.axes[i].lines[0].get_ydata().tolist() for i in (0, 2)] == [[1, 0, 1], [1, 0, 0]]
    assert [bar.get_height() for bar in figure.axes[1].patches] == pytest.approx([1 / 3, 2 / 3])


def test_the_defaults_are_the_papers():
    """PIEKD's appendix, CIKD's Sec. 5.1; the learning rate and the passes of a phase are the released code's."""
    args = Args()
    assert set(piekd_cikd.FIGURES) == {*CURVES, "cikd-5", "cikd-9"}
    assert (args.ensemble_size, args.interval, args.recent, args.total_steps) == (3, 5000, 5, 1_000_000)
    assert (args.learning_rate, args.gamma, args.tau, args.batch_size, args.warm_up) == (3e-4, 0.99, 0.005, 256, 10_000)
    assert (args.distil_epochs, args.distil_lr, args.evaluate_every, args.eval_domains) == (5, 1e-3, 10_000, 20)
