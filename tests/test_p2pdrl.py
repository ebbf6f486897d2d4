"""Tests of p2pdrl.py.

The equations are compared with torch.distributions, loops and .backward(); the whole program with Algorithm 1
written out once more, slowly, with none of the program's own losses, normalisers or optimisers.
"""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import flat, write_run
from torch import nn

import baselines
import p2pdrl
import plain_p2pdrl
from baselines import Batch, SavedRun, numpy_policy
from p2pdrl import (
    METHODS, Agent, Args, Central, GaussianActor, ValueCritic, agent_losses, central_loss, gaussian_kl,
    gaussian_log_prob, log_gradient_variance, teachers_of,
)  # fmt: skip
from randomised_envs import Domain, episode_return, held_out_domains, make_env, sample_domain

OBS, ACT = 5, 3  # sizes of hand-made observations and actions
Normal, kl_divergence = torch.distributions.Normal, torch.distributions.kl_divergence


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
    actor.norm.update(seen)
    critic.norm.update(seen)
    return actor, critic


def actors(number):
    return [actor_and_critic(seed)[0] for seed in range(number)]


def random_batch(actor, steps=16, seed=1):
    """Steps whose old log-probabilities differ from those of `actor`, some by more than the clip range."""
    torch.manual_seed(seed)
    obs, actions = torch.randn(steps, OBS) * 2 + 1, torch.randn(steps, ACT)
    with torch.no_grad():
        log_probs = gaussian_log_prob(*actor(obs), actions) + 0.3 * torch.randn(steps)
    return Batch(obs, actions, log_probs, torch.randn(steps), torch.randn(steps))


def policy_of(actor, obs):
    mean, log_std = actor(obs)
    return Normal(mean, log_std.exp())


def divergence(first, second, obs):
    """Mean over states of KL(first || second)."""
    return kl_divergence(policy_of(first, obs), policy_of(second, obs)).sum(1).mean()


def parameters(agent):
    """Those of actor and critic as one vector."""
    return flat([*agent.actor.parameters(), *agent.critic.parameters()])


def settings(**changes):
    """Arguments without compilation."""
    return Args(**{"compile": False, "learning_rate": 1e-2} | changes)


def agent_of(seed, args):
    return Agent(*actor_and_critic(seed), args)


def in_rows(batch, workers=1):
    """A minibatch as it is learnt from, with a row of advantages for each worker."""
    return batch._replace(advantages=batch.advantages.reshape(workers, -1))


def tiny(**changes):
    """Arguments of a run of a second."""
    return settings(**{
        "env": "Hopper-v4", "eps_tr": 0.5, "total_steps": 384, "steps_per_iteration": 128, "epochs": 2,
        "minibatches": 2, "learning_rate": 1e-3, "eval_domains": 1, "eps_te": (0.2,), "evaluations": 1, "threads": 1,
    } | changes)  # fmt: skip


def trained(**changes):
    """A finished run, and the state of its parts at the end."""
    args = tiny(**changes)
    p2pdrl.train(args)
    run = SavedRun(Path(args.runs) / baselines.run_name(args, "p2pdrl", args.seed))
    return run, torch.load(run.path / "checkpoint.pt", weights_only=True)["parts"]


def mean_action_return(actor, domain, seed=0):
    """Of an episode in Hopper."""
    return episode_return(make_env("Hopper-v4"), numpy_policy(actor), domain, seed)


def test_gaussian_kl():
    """Against torch.distributions."""
    torch.manual_seed(0)
    mean, other = torch.randn(2, 20, ACT)
    log_std, other_log_std = torch.tensor([-0.5, 0.0, 0.3]), torch.tensor([0.4, -0.1, -0.3])
    p, q = Normal(mean, log_std.exp()), Normal(other, other_log_std.exp())
    kl = gaussian_kl((mean, log_std), (other, other_log_std))
    torch.testing.assert_close(kl, kl_divergence(p, q).sum(1))


def slow_losses(actor, critic, peers, batch, args, peers_obs=()):
    """Eq. (4) from torch.distributions, the critic's error, metrics. peers_obs: DnC's penalty in place of Eq. (3)."""
    advantages, policy = batch.advantages.double(), policy_of(actor, batch.obs)
    advantages = (advantages - advantages.mean()) / advantages.std()
    log_ratio = policy.log_prob(batch.actions).sum(1) - batch.log_probs
    ratio = log_ratio.exp()
    limited = torch.clamp(ratio, 1 - args.clip, 1 + args.clip)
    surrogate = -torch.minimum(ratio * advantages, limited * advantages).mean()
    divergences = [divergence(actor, peer, batch.obs) for peer in peers]
    if peers_obs:
        pairs = list(zip(peers, peers_obs))
        divergences = [(divergence(actor, peer, obs) + divergence(peer, actor, obs)) / 2 for peer, obs in pairs]
    distillation = torch.stack(divergences).mean() if peers else torch.zeros(())
    entropy = policy.entropy().sum(1).mean()
    loss = surrogate + args.alpha * distillation - args.entropy_coef * entropy
    error = ((critic(batch.obs) - batch.targets) ** 2).mean()
    approx_kl = (ratio - 1 - log_ratio).mean()
    clip_fraction = ((ratio < 1 - args.clip) | (ratio > 1 + args.clip)).float().mean()
    return loss, error, torch.stack([surrogate, distillation, error, entropy, approx_kl, clip_fraction]).detach()


@pytest.mark.parametrize(("peers", "on_their_states", "changes"), [
    (1, False, {}), (3, False, {"alpha": 0.3}), (2, False, {"alpha": 5.0}), (1, False, {"entropy_coef": 2.0}),
    (0, False, {"clip": 0.05}), (1, True, {"alpha": 5.0}), (3, True, {"alpha": 0.3}),
])  # fmt: skip
def test_gradients_are_those_of_eq_4_and_of_the_critics_error(peers, on_their_states, changes):
    """Against .backward() on losses computed separately; and the metrics. Peers get no gradient."""
    args = settings(method="dnc" if on_their_states else "p2pdrl", **changes)
    actor, critic = actor_and_critic(0)
    others, batch = actors(1 + peers)[1:], random_batch(actor)
    peers_obs = [random_batch(actor, seed=50 + k).obs for k in range(peers)] if on_their_states else []
    teachers = list(zip(others, peers_obs or [batch.obs] * peers))
    losses, metrics = agent_losses(actor, critic, teachers, in_rows(batch), args)
    *slow, expected = slow_losses(actor, critic, others, batch, args, peers_obs)
    sum(losses).backward()
    for loss, network in zip(slow, (actor, critic)):
        own = list(network.parameters())
        expected_gradient = flat(torch.autograd.grad(loss, own))
        torch.testing.assert_close(flat(each.grad for each in own), expected_gradient, rtol=1e-3, atol=1e-6)
    assert all(parameter.grad is None for other in others for parameter in other.parameters())
    torch.testing.assert_close(metrics, expected.float(), rtol=1e-4, atol=1e-5)


def test_the_loss_of_the_central_policy():
    """Mean over agents and states of KL(agent || central), one state at a time; the gradient is its own alone."""
    central, *agents = actors(4)
    states = [random_batch(agent, seed=30 + i).obs for i, agent in enumerate(agents)]
    loss = central_loss(central, agents, states)
    kls = [divergence(agent, central, each[None]).item() for agent, obs in zip(agents, states) for each in obs]
    assert loss.shape == () and loss.item() == pytest.approx(np.mean(kls), rel=1e-4)
    loss.backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in central.parameters())
    assert all(parameter.grad is None for agent in agents for parameter in agent.parameters())


@pytest.mark.parametrize(("method", "in_own_states", "elsewhere"), [
    ("p2pdrl", 2, 0), ("dnc", 0, 2), ("distral", 1, 0), ("self-kl", 1, 0), ("ppo", 0, 0),
])  # fmt: skip
def test_the_policy_is_evaluated_once_in_its_own_states(method, in_own_states, elsewhere):
    """However many teachers there are in these very tensors; in a copy it is not, with the same loss and gradient."""
    args, calls, (old, other) = settings(method=method, agents=3), [], actors(2)
    agents = [agent_of(seed, args) for seed in range(1 if method in ("self-kl", "ppo") else 3)]
    batches, actor = [in_rows(random_batch(agent.actor)) for agent in agents], agents[0].actor
    teachers = teachers_of(0, agents, batches, old, Central(other, args), args)
    actor.register_forward_hook(lambda *_: calls.append(1))
    results, numbers = [], (1 + elsewhere, 1 + elsewhere + in_own_states)
    for pairs, number in zip((teachers, [(teacher, obs.clone()) for teacher, obs in teachers]), numbers):
        calls.clear()
        (loss, _), metrics = agent_losses(actor, agents[0].critic, pairs, batches[0], args)
        assert len(calls) == number and len(pairs) == in_own_states + elsewhere
        results.append([metrics, *torch.autograd.grad(loss, list(actor.parameters()))])
    torch.testing.assert_close(*map(flat, results))


@pytest.mark.parametrize("case", ["p2pdrl", "dnc", "ppo"])
def test_log_gradient_variance_is_that_of_64_small_minibatches(case):
    """Gradients of Eq. (4) by .backward() on 64 times 64 steps; numpy's variance, mean, log."""
    args = settings(alpha=2.0, entropy_coef=0.1, method=case)
    agents = [agent_of(seed, args) for seed in range(1 if case == "ppo" else 3)]
    batches = [random_batch(agent.actor, 90, seed=4 + i) for i, agent in enumerate(agents)]
    got = log_gradient_variance(len(agents) - 1, agents, batches, None, None, np.random.default_rng(7), args)
    (*others, agent), (*their_batches, batch) = agents, batches
    peers, peers_obs = [other.actor for other in others], [each.obs for each in their_batches if case == "dnc"]
    rng, samples = np.random.default_rng(7), []
    for _ in range(64):
        rows = rng.permutation(90)[:64]
        minibatch, theirs = Batch(*(column[rows] for column in batch)), [obs[rows] for obs in peers_obs]
        loss, _, _ = slow_losses(agent.actor, agent.critic, peers, minibatch, args, theirs)
        samples.append(flat(torch.autograd.grad(loss, list(agent.actor.parameters()))).numpy())
    assert got == pytest.approx(math.log(np.var(samples, axis=0, ddof=1).mean()), abs=2e-3)


def adam(args, *networks):
    """Torch's Adam, with a group for each list of parameters."""
    return torch.optim.Adam([{"params": list(each)} for each in networks], lr=args.learning_rate, eps=1e-5)


def slow_step(optimiser, loss, args):
    """The ordinary way: .backward(), the norm of each group's gradient limited, one step of Adam."""
    optimiser.zero_grad()
    loss.backward()
    for group in optimiser.param_groups:
        nn.utils.clip_grad_norm_(group["params"], args.max_grad_norm)
    optimiser.step()


def slow_update(optimiser, actor, critic, peers, minibatches, args, peers_obs=()):
    """Lines 13 and 15 of Algorithm 1, along the mean gradient of all workers' minibatches; the metrics."""
    losses, errors, metrics = zip(*(slow_losses(actor, critic, peers, each, args, peers_obs) for each in minibatches))
    slow_step(optimiser, (sum(losses) + sum(errors)) / len(minibatches), args)
    return (sum(metrics) / len(minibatches)).float()


def slow_central_update(optimiser, central, agents, minibatches, args):
    """One step on the mean over agents of KL(agent || central) on the agent's own states."""
    divergences = [divergence(agent.actor, central, batch.obs) for agent, batch in zip(agents, minibatches)]
    slow_step(optimiser, sum(divergences) / len(agents), args)


class SlowAgent:
    """Networks without the program's normaliser: it remembers all observations and asks numpy."""

    def __init__(self, actor, critic, args):
        self.actor_net, self.critic_net = copy.deepcopy((actor.net, critic.net))
        self.log_std = nn.Parameter(actor.log_std.detach().clone())
        self.groups = [self.log_std, *self.actor_net.parameters()], [*self.critic_net.parameters()]
        self.optimiser = adam(args, *self.groups)
        self.actor_seen, self.critic_seen, self.sums = [], [], []

    def normal(self, obs, seen):
        seen = np.concatenate(seen).astype(np.float64) if seen else np.array([[-1.0], [1.0]])
        mean, std = seen.mean(0), np.sqrt(seen.var(0) + 1e-8)
        return torch.tensor(np.clip((np.asarray(obs, np.float64) - mean) / std, -10, 10), dtype=torch.float32)

    def actor(self, obs):
        return self.actor_net(self.normal(obs, self.actor_seen)), self.log_std

    def critic(self, obs):
        return self.critic_net(self.normal(obs, self.critic_seen))[:, 0]

    value = critic  # as the plain program calls it

    @torch.no_grad()
    def rollout(self, env, domain, steps, rng):
        std = self.log_std.exp().numpy().copy()
        return baselines.rollout(env, lambda obs: self.actor(obs[None])[0][0].numpy(), std, domain, steps, rng)


@torch.no_grad()
def slow_log_probs(agent, rollouts, args):
    """Of the actions by the policy that took them; the discounted sums of rewards are noted on the way."""
    for data in rollouts:
        start = 0
        for t in range(len(data.rewards)):
            agent.sums.append(sum(args.gamma ** (t - s) * data.rewards[s] for s in range(start, t + 1)))
            start = t + 1 if data.ends[t] else start
    return [policy_of(agent.actor, data.obs).log_prob(torch.tensor(data.actions)).sum(1).numpy() for data in rollouts]


@torch.no_grad()
def slow_batch(agent, rollouts, log_probs):
    """Line 14: advantages and targets by the critic as it is now, as the plain program estimates them."""
    columns = []
    for data, old in zip(rollouts, log_probs):
        estimates = plain_p2pdrl.estimate(agent, data.obs, data.rewards, data.next_obs, data.terminated, data.ends)
        columns.append((data.obs, data.actions, old, *estimates))
    return Batch(*(torch.tensor(np.concatenate(column), dtype=torch.float32) for column in zip(*columns)))


def slow_minibatches(batches, rngs, args):
    """Minibatches one after the other, each a list with that of every batch."""
    orders = [np.array_split(rng.permutation(len(batch.obs)), args.minibatches) for rng, batch in zip(rngs, batches)]
    for rows in zip(*orders):
        yield [Batch(*(column[own] for column in batch)) for own, batch in zip(rows, batches)]


def slow_algorithm_1(args):
    """Algorithm 1 for all methods: rows of the log, parameters of the agents and of the central policy."""
    envs = [make_env(args.env) for _ in range(args.agents)]
    torch.manual_seed(args.seed)
    networks = GaussianActor(11, 3), ValueCritic(11)
    networks[0].log_std.data.fill_(math.log(args.initial_std))
    cohort = args.method in ("p2pdrl", "distral", "dnc")
    agents = [SlowAgent(*networks, args) for _ in range(args.agents if cohort else 1)]
    acting = agents if cohort else agents * args.agents
    central, rows = SlowAgent(*networks, args), []
    for iteration in range(args.total_steps // args.steps_per_iteration):
        rngs = [np.random.default_rng([args.seed, i, iteration]) for i in range(args.agents)]
        domains = [sample_domain(args.eps_tr, rng) for rng in rngs]
        if args.method in ("ppo", "self-kl"):
            domains = domains[:1] * args.agents
        steps = args.steps_per_iteration // args.agents
        rollouts = [agent.rollout(*each, steps, rng) for agent, *each, rng in zip(acting, envs, domains, rngs)]
        # Distributed PPO shuffles and normalises each worker's data by itself, but they are one agent's.
        apart = cohort or args.method == "distributed-ppo"
        owners, shares = (acting, [[each] for each in rollouts]) if apart else (agents, [rollouts])
        log_probs = [slow_log_probs(agent, share, args) for agent, share in zip(owners, shares)]
        itself = copy.deepcopy(agents[0])
        metrics = [torch.zeros(6) for _ in agents]
        for epoch in range(args.epochs if iteration > 0 else 0):  # the first iteration only gathers statistics
            if epoch == 0 or cohort:  # line 14: for each epoch, but once for each iteration of a single learner
                batches = [slow_batch(*each) for each in zip(owners, shares, log_probs)]
            for minibatches in slow_minibatches(batches, rngs, args):
                for i, agent in enumerate(agents):
                    others = [k for k in range(len(agents)) if k != i]
                    peers = {"distral": [central.actor], "self-kl": [itself.actor]}.get(args.method, [])
                    if args.method in ("p2pdrl", "dnc"):
                        peers = [agents[k].actor for k in others]
                    peers_obs = [minibatches[k].obs for k in others] if args.method == "dnc" else []
                    own = [minibatch for minibatch, owner in zip(minibatches, owners) if owner is agent]
                    means = slow_update(agent.optimiser, agent.actor, agent.critic, peers, own, args, peers_obs)
                    metrics[i] += means / args.epochs / args.minibatches
                if args.method == "distral":
                    slow_central_update(central.optimiser, central.actor, agents, minibatches, args)
        if args.method == "dnc" and iteration > 0:
            again = (iteration + 1) % args.reset_every == 0
            for _ in range(30 if again else 1):
                for minibatches in slow_minibatches(batches, rngs, args):
                    slow_central_update(central.optimiser, central.actor, agents, minibatches, args)
            for agent in agents if again else ():
                agent.actor_net.load_state_dict(central.actor_net.state_dict())
                agent.actor_seen = list(central.actor_seen)
        for agent, data in zip(acting, rollouts):
            for seen in (agent.actor_seen, agent.critic_seen, central.actor_seen):
                seen.append(data.obs)
        for i, agent in enumerate(agents):
            returns = np.concatenate([data.returns for data, owner in zip(rollouts, acting) if owner is agent])
            step = (iteration + 1) * args.steps_per_iteration
            rows.append([step, i, returns.mean(), len(returns), *metrics[i].tolist()])
    return np.array(rows), [flat([*agent.groups[0], *agent.groups[1]]) for agent in agents], flat(central.groups[0])


THREE = {"agents": 3, "steps_per_iteration": 192, "total_steps": 576, "alpha": 3.0}


@pytest.mark.parametrize(("method", "changes"), [
    ("p2pdrl", THREE | {"entropy_coef": 0.1, "seed": 5, "max_grad_norm": 0.005}), ("ppo", {"agents": 1}),
    ("ppo", {"initial_std": 0.4, "max_grad_norm": 1e3}), ("ppo", {"threads": 2}), ("ppo-union", {"threads": 2}),
    ("distributed-ppo", THREE | {"entropy_coef": 0.1, "max_grad_norm": 0.05}), ("self-kl", {"alpha": 3.0}),
    ("distral", THREE), ("dnc", {"reset_every": 2, "seed": 2}), ("dnc", THREE),
])  # fmt: skip
def test_train_is_algorithm_1(quiet, method, changes):
    """Three iterations: log and final parameters against Algorithm 1 written out, agents in turn, peers current."""
    run, parts = trained(method=method, **changes)
    rows, ends, central = slow_algorithm_1(tiny(method=method, **changes))
    log = run.table("log.csv")
    names = ("step", "agent", "return", "episodes", *Agent.METRICS)
    np.testing.assert_allclose(np.stack([log[name] for name in names], 1), rows, rtol=2e-3, atol=5e-5)
    learners = [f"agent{i}" for i in range(len(ends))]
    assert [*parts] == learners + ["central"] * (method in ("distral", "dnc"))
    for i, expected in enumerate(ends):
        agent = Agent(GaussianActor(11, 3), ValueCritic(11), tiny())
        agent.load_state_dict(parts[f"agent{i}"])
        torch.testing.assert_close(parameters(agent), expected, rtol=0, atol=5e-5)
    if method in ("distral", "dnc"):  # the central policy is what is kept
        (actor,) = p2pdrl.load_actors(run)
        torch.testing.assert_close(flat(actor), central, rtol=0, atol=5e-5)


@pytest.mark.parametrize("number", [2, 3])
def test_plain_p2pdrl_computes_the_same(quiet, number):
    """Four iterations of both programs from the same numbers: the same parameters of every agent."""
    steps, rates = 64, {"epochs": 2, "minibatches": 2, "learning_rate": 1e-3, "alpha": 3.0, "seed": number}
    plain = plain_p2pdrl.train("Hopper-v4", 0.5, iterations=4, steps=steps, number=number, **rates)
    sizes = {"agents": number, "steps_per_iteration": number * steps, "total_steps": 4 * number * steps}
    _, parts = trained(**sizes, **rates)
    for i, agent in enumerate(plain):
        for name, value in agent.named_parameters():
            name = "actor.log_std" if name == "log_std" else name.replace(".", ".net.", 1)
            torch.testing.assert_close(parts[f"agent{i}"][name], value.detach(), rtol=0, atol=5e-5)


def test_gradient_variance_is_logged_and_changes_nothing(quiet):
    """A column for each agent and iteration, there only if asked for; all else bit-identical."""
    plain, more = (trained(gradient_variance=asked)[0].table("log.csv") for asked in (False, True))
    names = set(plain.dtype.names)
    assert {*more.dtype.names} - names == {"gradient_variance"} and np.isfinite(more["gradient_variance"]).all()
    assert all(np.array_equal(plain[name], more[name]) for name in names - {"seconds"})


@pytest.mark.parametrize(("method", "tested"), [("p2pdrl", [0, 1]), ("ppo", [0]), ("dnc", [-1])])
def test_who_is_evaluated_and_kept(quiet, method, tested):
    """Every peer, or the central policy as agent -1, by slow episodes in held-out domains; the same are on disk."""
    levels = (0.0, 0.5)
    run, parts = trained(method=method, evaluations=2, eps_te=levels, eval_domains=2)
    evaluation = run.table("eval.csv")
    assert sorted(set(evaluation["agent"])) == tested and sorted(set(evaluation["step"])) == [256, 384]
    assert run.steps() == [128, 256, 384]
    for number, actor in zip(tested, p2pdrl.load_actors(run), strict=True):
        state = parts["central" if number < 0 else f"agent{number}"]
        assert all(torch.equal(value, state[f"actor.{name}"]) for name, value in actor.state_dict().items())
        domains = [each[::-1] for eps in levels for each in enumerate(held_out_domains(make_env("Hopper-v4"), eps, 2))]
        expected = [mean_action_return(actor, *each) for each in domains]
        assert evaluation["return"][(evaluation["step"] == 384) & (evaluation["agent"] == number)].tolist() == expected


def test_the_defaults_are_the_papers():
    """Appendix A.2, Table 2, section 4.3."""
    args = Args()
    assert (args.agents, args.steps_per_iteration, args.epochs, args.minibatches) == (2, 4096, 10, 32)
    assert (args.clip, args.gamma, args.gae_lambda, args.alpha, args.eps_tr) == (0.2, 0.99, 0.95, 1.0, 0.2)
    rates = {name: method.learning_rate for name, method in METHODS.items()}
    slow, fast = ("p2pdrl", "distral", "dnc", "self-kl"), ("ppo", "ppo-union", "distributed-ppo")
    assert rates == dict.fromkeys(slow, 1e-4) | dict.fromkeys(fast, 3e-4) and args.reset_every == 50


@pytest.mark.parametrize(("method", "rate"), [("p2pdrl", 1e-4), ("ppo", 3e-4)])
def test_each_method_has_its_learning_rate(quiet, method, rate):
    """A run that is given none ends with the bits of one that is given the paper's, in the same folder."""
    short = {"method": method, "total_steps": 256}
    (first, start), (second, end) = (trained(learning_rate=each, overwrite=True, **short) for each in (None, rate))
    assert all(torch.equal(value, end["agent0"][name]) for name, value in start["agent0"].items())
    assert first.path == second.path and first.settings["learning_rate"] == second.settings["learning_rate"] == rate
    assert first.path.name == baselines.run_name(tiny(learning_rate=None, **short), "p2pdrl", 0)


def figure_args(**changes):
    return tiny(**{"eps_te": (0.0, 0.4), "eps_tr": 0.2, "total_steps": 400} | changes)


def run_by_hand(training, testing, policies=None, columns=None, **changes):
    """Two rows for each agent. Both returns grow by the agent's number, that of the test falls with the level."""
    args, columns = figure_args(**changes), columns or {}
    steps, agents = (args.total_steps // 2, args.total_steps), range(args.agents if args.method == "p2pdrl" else 1)
    log, test = [["step", "agent", "return", *columns]], [["step", "agent", "eps_te", "domain", "return"]]
    for step in steps:
        for i in agents:
            log.append([step, i, training + i, *columns.values()])
            test += [[step, i, eps, 0, testing + i - 100 * eps] for eps in args.eps_te]
    write_run(args, "p2pdrl", policies, log=log, eval=test)


def drawn(name, **changes):
    """The axes of a figure from the runs that there are, and its title."""
    figure, title = p2pdrl.FIGURES[name](figure_args(figure=name, threads=0, **changes))
    return figure.axes, title


def lines_of(axis):
    """{label: (x, y)} of an axis; the label without the number of seeds."""
    return {line.get_label().rsplit(",", 1)[0]: np.array(line.get_data()).tolist() for line in axis.lines}


def hopper_actor(seed):
    torch.manual_seed(seed)
    actor = GaussianActor(11, 3)
    actor.norm.update(np.random.default_rng(seed).normal(0.5, 2, (50, 11)))
    return actor


def test_figures_3_4_and_7_show_the_means_of_the_right_runs(capsys):
    """Two seeds of two methods; runs with other settings are left out; what is missing is named."""
    for method, base in (("p2pdrl", 1000), ("ppo", 500), ("self-kl", 200)):
        for seed in (0, 1):
            run_by_hand(base + 10 * seed, 2 * base + 10 * seed, method=method, seed=seed)
    run_by_hand(9999, 9999, method="p2pdrl", alpha=3.0)
    for name in ("3", "4"):
        (left, right), _ = drawn(name)
        assert lines_of(left) == {"p2pdrl": [[200, 400], [1005.5, 1005.5]], "ppo": [[200, 400], [505, 505]]}
        assert lines_of(right) == {"p2pdrl": [[0, 0.4], [2005.5, 1965.5]], "ppo": [[0, 0.4], [1005, 965]]}
        missing = "no finished runs of ppo-union; distributed-ppo; distral; dnc on Hopper-v4 below runs/\n"
        assert capsys.readouterr().out == missing
    (left, right), _ = drawn("7")
    assert lines_of(left).keys() == lines_of(right).keys() == {"p2pdrl", "ppo", "self-kl"}
    assert left.lines[0].get_color() == right.lines[0].get_color()


def test_controls_are_other_lines_of_the_same_methods(capsys):
    """The same method with other settings is another line, beside P2PDRL at the paper's settings."""
    for seed in (0, 1):
        run_by_hand(1000 + 10 * seed, 50, seed=seed)
        run_by_hand(700, 70, seed=seed, alpha=0.0)
        run_by_hand(800, 80, seed=seed, method="ppo", learning_rate=1e-4)
    (left, right), _ = drawn("controls")
    returns = {"p2pdrl": 1005.5, "p2pdrl, alpha 0": 700.5, "ppo, learning rate 1e-4": 800}
    assert {label: y for label, (_, (y, _)) in lines_of(left).items()} == returns
    assert lines_of(right)["p2pdrl, alpha 0"] == [[0, 0.4], [70.5, 30.5]]
    assert capsys.readouterr().out == "no finished runs of p2pdrl, learning rate 3e-4; ppo on Hopper-v4 below runs/\n"


def test_training_return_is_the_mean_of_twenty_iterations_and_of_all_agents():
    options = {"total_steps": 4000, "steps_per_iteration": 100, "eps_te": (0.2,)}
    args = figure_args(**options)
    log = [["step", "agent", "return"], *([100 * t, i, 10 * t + i] for t in range(1, 41) for i in range(2))]
    write_run(args, "p2pdrl", log=log, eval=[["step", "agent", "eps_te", "return"], [4000, 0, 0.2, 7]])
    (left, right), _ = drawn("3", **options)
    steps, returns = lines_of(left)["p2pdrl"]
    assert steps == [100 * t for t in range(1, 41)] and lines_of(right) == {"p2pdrl": [[0.2], [7]]}
    assert returns == pytest.approx([np.mean(np.arange(max(1, t - 19), t + 1)) * 10 + 0.5 for t in range(1, 41)])


def test_figures_2_and_6_show_returns_against_the_level_of_training():
    """Training return of the end, and the test return at EPS_TEST of the policies on disk, for each level with runs."""
    for eps, seed in ((0.0, 0), (0.4, 0), (0.4, 1)):
        policies = {400: [hopper_actor(int(10 * eps) + seed)]}
        run_by_hand(100 + 10 * eps + seed, 0, policies, method="ppo", eps_tr=eps, seed=seed)
    (left, right), _ = drawn("2")
    assert lines_of(left) == {"ppo": [[0, 0.4], [100, 104.5]]}
    assert [line.get_label() for line in left.lines] == ["ppo, 2 seeds"]
    (domain,) = held_out_domains(make_env("Hopper-v4"), p2pdrl.EPS_TEST, 1)
    first, second, third = (mean_action_return(hopper_actor(seed), domain) for seed in (0, 4, 5))
    assert lines_of(right)["ppo"][1] == pytest.approx([first, (second + third) / 2])


def test_folded_policies_act_as_they_did_and_halfway_is_halfway():
    """The normaliser inside the first layer changes no action; the mean of two linear policies acts as their mean."""
    first, second = hopper_actor(0), hopper_actor(1)
    obs = np.random.default_rng(0).normal(0.5, 1, (20, 11))
    for actor in (first, second):
        folded, policy = p2pdrl.unfolded(p2pdrl.folded(actor), hopper_actor(7)), numpy_policy(actor)
        np.testing.assert_allclose([folded(each) for each in obs], [policy(each) for each in obs], atol=1e-5)
        actor.net = nn.Sequential(nn.Linear(11, 3))
    half = p2pdrl.unfolded((p2pdrl.folded(first) + p2pdrl.folded(second)) / 2, first)
    expected = [(numpy_policy(first)(each) + numpy_policy(second)(each)) / 2 for each in obs]
    np.testing.assert_allclose([half(each) for each in obs], expected, atol=1e-5)


def test_the_plane_goes_through_its_three_points():
    """The corners are where the points are; the axes are orthonormal."""
    points = torch.randn(3, 40, dtype=torch.float64, generator=torch.manual_seed(0))
    along, across, corners = p2pdrl.plane_through(*points)
    for point, (x, y) in zip(points, corners):
        torch.testing.assert_close(points[0] + x * along + y * across, point)
    assert abs(along @ across) < 1e-9 and along.norm() == pytest.approx(1) and corners[0].tolist() == [0, 0]


def test_figure_5_takes_the_policy_at_40_per_cent(monkeypatch):
    """Of the steps kept, the nearest; 13 x 13 policies at two levels, in ten held-out domains of each; one scale."""
    policies = {step: [hopper_actor(step)] for step in (4, 100, 180, 300, 400)}
    for method, eps in (("ppo", 0.2), ("p2pdrl", 0.2), ("p2pdrl", 0.5)):
        run_by_hand(0, 0, policies, method=method, eps_tr=eps, eval_domains=100)
    asked = []

    def evaluate(envs, policies, levels, number):
        asked.append((len(policies), levels, number))
        return [{"return": len(asked) + i} for i in range(len(policies) * len(levels) * number)]

    monkeypatch.setattr(p2pdrl, "evaluate", evaluate)
    axes, title = drawn("5", eval_domains=100)
    assert "after 180 steps" in title and asked == [(169, [0.2, 0.5], 10)] * 2
    assert [axis.get_title() for axis in axes[:2]] == ["ppo, eps_te = 0.2", "ppo, eps_te = 0.5"]
    assert len({tuple(axis.collections[0].levels) for axis in axes[:4]}) == 1
    assert len(drawn("5", eval_domains=100, eps_tr=0.5)[0]) == 2  # one level, and the scale


def test_figure_8_is_entropy_against_test_return_and_variance_over_steps():
    """The point by an episode of the policy on disk; the line by the log."""
    run_by_hand(0, 0, {400: [hopper_actor(0)]}, {"entropy": 3.5}, method="ppo", entropy_coef=0.01)
    (point,) = drawn("8a")[0][0].collections[0].get_offsets().tolist()
    domains = held_out_domains(make_env("Hopper-v4"), 0.5, 1)
    assert point == pytest.approx([3.5, mean_action_return(hopper_actor(0), *domains)])
    run_by_hand(0, 0, columns={"gradient_variance": -7.0}, gradient_variance=True)
    assert lines_of(drawn("8bc")[0][0]) == {"p2pdrl": [[200, 400], [-7, -7]]}


def test_figure_9_is_test_return_over_steps_of_each_agent_or_of_all():
    """Cohorts of four and of two with as many steps for each agent; of two and of one with as many in all."""
    run_by_hand(0, 50, agents=4, steps_per_iteration=8192, total_steps=800)
    run_by_hand(0, 70, agents=2, steps_per_iteration=4096)
    run_by_hand(0, 20, agents=1, steps_per_iteration=4096, method="ppo")
    axes, _ = drawn("9", steps_per_iteration=4096)
    left, right = map(lines_of, axes)
    assert left == {"K = 2": [[100, 200], [70.5, 70.5]], "K = 4": [[100, 200], [51.5, 51.5]]}
    assert right == {"K = 1": [[200, 400], [20, 20]], "K = 2": [[200, 400], [70.5, 70.5]]}


def test_the_map_is_return_by_wind_and_mass(monkeypatch):
    """11 x 11 domains, and where the return is the wind minus 9, it is that; returns may all be negative."""
    jobs = []

    def episode_returns(envs, each):
        jobs.extend(each)
        return [domain.wind - 9 for _, domain, _ in each]

    monkeypatch.setattr(p2pdrl, "episode_returns", episode_returns)
    run_by_hand(0, 0, {400: [hopper_actor(0)]}, method="ppo")
    picture = drawn("map")[0][0].collections[0]
    assert len(jobs) == 121 and jobs[0][1] == Domain(wind=-5, mass=0.5) and jobs[1][1] == Domain(wind=-4, mass=0.5)
    assert picture.get_clim() == (-14, -4)
    np.testing.assert_allclose(picture.get_array().reshape(11, 11)[3], np.linspace(-14, -4, 11))
