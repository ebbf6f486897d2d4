"""P2PDRL: peer-to-peer distillation for reinforcement learning under domain randomisation.

    Zhao and Hospedales, "Robust Domain Randomised Reinforcement Learning through Peer-to-Peer Distillation"
    (2020), and its workshop version, "Peer-to-Peer Policy Distillation" (NeurIPS 2020 workshop).

The idea
--------
A policy trained in many randomised domains copes with a new one, but the more the domains differ, the noisier
its gradient. P2PDRL gives each of K agents one domain at a time, where learning is easy, and adds one term to
each agent's PPO loss: stay close, on your own states, to what your peers would do there. Knowledge spreads
through this term alone; no data is exchanged, there is no central policy, and every agent ends up robust.

    code                    | paper               | shape
    agents                  | K                   |
    domain                  | xi_i ~ Xi           | five numbers, see randomised_envs.py
    eps_tr, eps_te          | strength of Xi      |
    actor, critic           | theta_i, phi_i      |
    batch                   | tau_i, B_i          | N steps of agent i in domain xi_i
    ratio                   | r(t)                | (N,)
    advantages              | A_{t,xi_i}          | (N,)
    targets                 | V^targ              | (N,)
    alpha, clip             | alpha, epsilon      |

    L_PPO(theta_i)  = E[min(r A, clip(r, 1 - epsilon, 1 + epsilon) A)]          (maximised)           Eq. (2)
    L_dis(theta_i)  = 1/(K-1) sum_{k != i} E[ KL(pi_theta_i(.|s) || pi_theta_k(.|s)) ]                Eq. (3)
    L(theta_i)      = L_PPO + alpha L_dis          (with the sign of Eq. (2) turned: minimised)       Eq. (4)

Where this differs from, or completes, the paper
------------------------------------------------
* Eq. (2) is printed as a loss that is minimised, without its minus sign. It has one here.
* Not stated there, chosen here: observations normalised by running statistics inside each policy (frozen while
  an iteration's data is in use; the first iteration does nothing but gather them), rewards divided by the
  running standard deviation of the discounted return, gradient norm at most .5 (actor and critic apart),
  constant learning rate, orthogonal initialisation (gain sqrt 2; .01 and 1 for the heads), standard deviations
  independent of the state and starting at 1, advantages normalised per minibatch, neither value clipping nor
  entropy bonus, Adam's epsilon 1e-5.
* Line 14 stands in the innermost loop; here targets and advantages are computed anew for each epoch, with the
  critic as it then is. Most PPO code computes them once for each iteration, as baselines.py does.
* Time limits and the end of the batch are not deaths: the future is bootstrapped there.
* PPO is trained on the union of the K domains' data (the workshop version; `--agents 1` is the full version's
  one domain for each iteration).
* The paper does not say which peer it evaluates. All are evaluated here, with mean actions, in held-out domains
  that are the same for every run; figures show the mean over peers.
* The initial position, read literally, cannot change a return; see `--init` and randomised_envs.py.

Commands (two cores of a laptop; see the README for measured numbers)
---------------------------------------------------------------------
    python p2pdrl.py --env Hopper-v4 --total-steps 2e5          # toy: a minute, returns of about 900
    python p2pdrl.py --env Walker2d-v4 --eps-tr 0.2             # six to eight minutes, returns of 4000 to 4500
    python p2pdrl.py --env Walker2d-v4 --eps-tr 0.2 --total-steps 1e7 --seeds 0 1 2 3 4 5 6 7     # the paper's seeds

To use it elsewhere, copy p2pdrl.py, baselines.py and randomised_envs.py.
"""

import copy
import json
import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import mujoco
import numpy as np
import torch
from torch import nn

from baselines import (
    Adam, Progress, Rollout, Run, RunningNorm, check_args, discounted_sums, draw_run, evaluate, fail, find_runs, gae,
    held_out_domains, make_envs, millions, new_figure, numpy_policy, one_vector, parse_args, plot_interval, read_csv,
    report, rollout, run_seeds, save_figure, set_up_torch, test_returns, training_curve,
)
from randomised_envs import sample_domain

LEARNING_RATE = {"p2pdrl": 1e-4, "ppo": 3e-4}  # App. A.2, by method


@dataclass
class Args:
    # environment
    env: str = "Walker2d-v4"  # a Gymnasium MuJoCo environment
    xml_file: str = ""  # an MJCF file of your own in place of the environment's (v5 environments)
    eps_tr: float = 0.2  # strength of the randomisation in training, in [0, 1] (Sec. 4.3)
    init: Literal["root", "joints"] = "root"  # what Table 1's initial position moves

    # cohort
    method: Literal["p2pdrl", "ppo"] = "p2pdrl"  # who learns from whom
    agents: int = 2  # K: agents, and domains at a time
    alpha: float = 1.0  # weight of the distillation loss (App. A.2)

    # PPO (App. A.2, Table 2)
    total_steps: int = 2_000_000  # environment steps, summed over agents
    steps_per_iteration: int = 4096  # environment steps between updates, summed over agents
    learning_rate: float | None = None  # Adam's; the paper's if not given: 1e-4, for ppo 3e-4
    epochs: int = 10  # passes over an iteration's data
    minibatches: int = 32  # for each epoch
    clip: float = 0.2  # epsilon of Eq. (2)
    gamma: float = 0.99  # discount factor
    gae_lambda: float = 0.95  # of the advantage estimate
    entropy_coef: float = 0.0  # weight of an entropy bonus
    max_grad_norm: float = 0.5  # gradients are scaled down to this norm

    # evaluation
    eps_te: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # strengths of the test domains
    eval_domains: int = 10  # held-out domains for each strength, one episode in each
    evaluations: int = 4  # evenly spaced over training, the last one at its end

    # run
    seed: int = 0  # of everything random
    seeds: tuple[int, ...] = ()  # several seeds, each in a process of its own
    jobs: int = 2  # how many of these at a time
    threads: int = 0  # for the environments; 0: one for each core
    device: str = "cpu"  # of the networks: cpu or cuda
    compile: bool = True  # compile the gradient computation where a C++ compiler is found
    checkpoint_every: int = 10  # iterations between checkpoints
    runs: str = "runs"  # folder of all runs
    overwrite: bool = False  # start anew instead of resuming

    # instead of training
    figure: Literal["", "3", "4"] = ""  # draw this figure of the paper from the runs that exist
    watch: str = ""  # a run's folder: show its policies in a window
    gif: str = ""  # a run's folder: write policy.gif into it


# ---------------------------------------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------------------------------------


def linear(inputs: int, outputs: int, gain: float) -> nn.Linear:
    """A layer with orthogonal weights and zero bias."""
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class GaussianActor(nn.Module):
    """pi_theta(a|s) = Normal(mean(s), std), from raw observations: the normaliser is part of the policy."""

    def __init__(self, obs_size: int, action_size: int):
        super().__init__()
        self.norm = RunningNorm((obs_size,))
        self.net = nn.Sequential(
            linear(obs_size, 64, math.sqrt(2)), nn.Tanh(),
            linear(64, 64, math.sqrt(2)), nn.Tanh(),
            linear(64, action_size, 0.01),
        )
        self.log_std = nn.Parameter(torch.zeros(action_size))

    def forward(self, obs):  # (N, obs) -> mean (N, act), log_std (act,)
        return self.net(self.norm(obs)), self.log_std


class ValueCritic(nn.Module):
    """V_phi(s), in units of scaled reward."""

    def __init__(self, obs_size: int):
        super().__init__()
        self.norm = RunningNorm((obs_size,))
        self.net = nn.Sequential(
            linear(obs_size, 64, math.sqrt(2)), nn.Tanh(),
            linear(64, 64, math.sqrt(2)), nn.Tanh(),
            linear(64, 1, 1.0),
        )

    def forward(self, obs):  # (N, obs) -> (N,)
        return self.net(self.norm(obs)).squeeze(-1)


# ---------------------------------------------------------------------------------------------------------
# Losses
# ---------------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """N steps of one agent in its own domain(s)."""

    obs: torch.Tensor  # (N, obs)
    actions: torch.Tensor  # (N, act)
    log_probs: torch.Tensor  # (N,) log pi_theta_old(a|s)
    advantages: torch.Tensor  # (N,)
    targets: torch.Tensor  # (N,) V^targ


def gaussian_log_prob(mean, log_std, actions):
    """log Normal(actions; mean, exp(log_std)), summed over action dimensions: (N, act) -> (N,)."""
    return (-0.5 * ((actions - mean) / log_std.exp()) ** 2 - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


def gaussian_kl(mean, log_std, other_mean, other_log_std):
    """KL(Normal(mean, std) || Normal(other_mean, other_std)), summed over action dimensions: (N, act) -> (N,)."""
    ratio = (2 * (log_std - other_log_std)).exp()
    return (0.5 * (ratio + ((mean - other_mean) / other_log_std.exp()) ** 2 - 1) + other_log_std - log_std).sum(-1)


def ppo_loss(policy, batch, clip):                                                                      # Eq. (2)
    """Clipped surrogate, negated: to be minimised. Scalar."""
    ratio = (gaussian_log_prob(*policy, batch.actions) - batch.log_probs).exp()                         # (N,)
    assert ratio.shape == batch.advantages.shape
    return -torch.min(ratio * batch.advantages, ratio.clamp(1 - clip, 1 + clip) * batch.advantages).mean()


def distillation_loss(policy, peers, obs):                                                              # Eq. (3)
    """Mean over peers of KL(own || peer) on the agent's own states. Peers get no gradient. Scalar."""
    divergences = [gaussian_kl(*policy, *(x.detach() for x in peer(obs))).mean() for peer in peers]
    return sum(divergences, torch.zeros((), device=obs.device)) / max(len(peers), 1)


def value_loss(critic, batch):                                                                          # Alg. 1, line 15
    """Mean square error of the critic. Scalar."""
    values = critic(batch.obs)
    assert values.shape == batch.targets.shape
    return ((values - batch.targets) ** 2).mean()


# ---------------------------------------------------------------------------------------------------------
# One update
# ---------------------------------------------------------------------------------------------------------


class Agent:
    """Actor theta_i, critic phi_i, their Adam, and the running scale of this agent's rewards."""

    def __init__(self, actor: GaussianActor, critic: ValueCritic, learning_rate: float):
        self.actor, self.critic = actor, critic
        self.reward_scale = RunningNorm(())
        self.parameters = one_vector(actor, critic)
        self.adam = Adam(self.parameters, learning_rate, eps=1e-5)


def clip_norm(gradient, max_norm):
    """Scale a gradient so that its norm is at most max_norm."""
    return gradient * (max_norm / (gradient.norm() + 1e-6)).clamp(max=1.0)


def gradients(actor, critic, peers, batch, clip, alpha, entropy_coef, max_grad_norm):
    """Gradient of an agent's two losses on a minibatch, as one vector, and what the log tells."""
    spread = batch.advantages.std() + 1e-8
    batch = batch._replace(advantages=(batch.advantages - batch.advantages.mean()) / spread)
    policy = actor(batch.obs)  # once for both losses
    surrogate = ppo_loss(policy, batch, clip)
    distillation = distillation_loss(policy, peers, batch.obs)
    entropy = (actor.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum()
    actor_loss = surrogate + alpha * distillation - entropy_coef * entropy                              # Eq. (4)
    critic_loss = value_loss(critic, batch)
    actor_gradient, critic_gradient = (
        torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, tuple(network.parameters()))])
        for loss, network in ((actor_loss, actor), (critic_loss, critic))
    )
    told = torch.stack([surrogate, distillation, critic_loss, entropy]).detach()
    return torch.cat([clip_norm(actor_gradient, max_grad_norm), clip_norm(critic_gradient, max_grad_norm)]), told


def adam_step(actor, critic, adam, parameters, peers, batch, clip, alpha, entropy_coef, max_grad_norm):
    """The vector of an agent's parameters after one step of Adam, and what the log tells. Compiled as one graph."""
    gradient, told = gradients(actor, critic, peers, batch, clip, alpha, entropy_coef, max_grad_norm)
    return adam(parameters, gradient), told


def update(agent, peers, batch, adam_step, args):                                                       # lines 13, 15
    """One step of Adam on theta_i and phi_i. `adam_step` may be compiled."""
    networks = agent.actor, agent.critic, agent.adam, agent.parameters
    new, told = adam_step(*networks, peers, batch, args.clip, args.alpha, args.entropy_coef, args.max_grad_norm)
    agent.parameters.data.copy_(new)  # and with it both networks
    return told


# ---------------------------------------------------------------------------------------------------------
# The cohort loop
# ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def prepare(actor, reward_scale, rollouts: list[Rollout], gamma: float) -> Batch:
    """Join rollouts to a batch, with the log-probabilities of their actions; `estimate` adds what is missing.

    The scale of rewards takes these rollouts into account from now on.
    """
    for data in rollouts:
        reward_scale.absorb(discounted_sums(data.rewards, data.ends, gamma))
    device = actor.log_std.device
    obs, actions = (
        torch.as_tensor(np.concatenate(arrays), device=device)
        for arrays in ([data.obs for data in rollouts], [data.actions for data in rollouts])
    )
    return Batch(obs, actions, gaussian_log_prob(*actor(obs), actions), None, None)


@torch.no_grad()
def estimate(batch: Batch, critic, reward_scale, rollouts: list[Rollout], gamma: float, gae_lambda: float) -> Batch:
    """The batch of these rollouts with advantages and value targets by the present critic."""
    device, scale = batch.obs.device, reward_scale.std().item()
    advantages, targets = [], []
    for data in rollouts:
        last = data.ends.nonzero()[0]  # elsewhere the next observation is the following row, and is not valued twice
        values, last_values = (
            critic(torch.as_tensor(x, device=device)).cpu().numpy().astype(np.float64)
            for x in (data.obs, data.next_obs[last])
        )
        next_values = np.roll(values, -1)
        next_values[last] = last_values
        advantages.append(gae(data.rewards / scale, values, next_values, data.terminated, data.ends, gamma, gae_lambda))
        targets.append(advantages[-1] + values)
    advantages, targets = (
        torch.as_tensor(np.concatenate(arrays), dtype=torch.float32, device=device) for arrays in (advantages, targets)
    )
    return batch._replace(advantages=advantages, targets=targets)


def shuffle(batch: Batch, minibatches: int, rng: np.random.Generator) -> list[Batch]:
    """The batch in random order, cut into equal minibatches."""
    order = torch.as_tensor(rng.permutation(len(batch.obs)), device=batch.obs.device)
    size = len(batch.obs) // minibatches
    return [Batch(*columns) for columns in zip(*(column[order].split(size) for column in batch))]


def train(args):
    run = Run(args, "p2pdrl", args.method)
    title = f"{args.method}, {args.env}, eps_tr = {args.eps_tr:g}, seed {args.seed}"
    if run.finished:
        print(f"{run.path} is finished: nothing to do (--overwrite starts anew)")
        return report(run, title)
    envs = make_envs(args, max(args.agents, args.threads))
    set_up_torch(args)
    compiled_step = torch.compile(adam_step, fullgraph=True, dynamic=False) if args.compile else adam_step

    # Alg. 1, lines 2, 3: the same theta_0 and phi_0 for every agent. PPO is one agent that learns from all K domains.
    actor = GaussianActor(envs[0].observation_space.shape[0], envs[0].action_space.shape[0]).to(args.device)
    critic = ValueCritic(envs[0].observation_space.shape[0]).to(args.device)
    learners = {"p2pdrl": args.agents, "ppo": 1}[args.method]
    cohort = [Agent(copy.deepcopy(actor), copy.deepcopy(critic), args.learning_rate) for _ in range(learners)]

    names = ("actor", "critic", "reward_scale", "adam")
    parts = {f"{name}{i}": getattr(agent, name) for i, agent in enumerate(cohort) for name in names}
    steps_per_domain = args.steps_per_iteration // args.agents
    iterations = args.total_steps // args.steps_per_iteration
    evaluate_at = {round(iterations * i / args.evaluations) for i in range(1, args.evaluations + 1)}
    first = run.resume(parts, args.steps_per_iteration)
    progress = Progress(iterations * args.steps_per_iteration, first * args.steps_per_iteration)
    pool = ThreadPoolExecutor(args.threads, initializer=torch.set_num_threads, initargs=(1,))

    for iteration in range(first, iterations):                                                          # Alg. 1, line 4
        rngs = [np.random.default_rng([args.seed, i, iteration]) for i in range(args.agents)]           # line 5
        domains = [sample_domain(args.eps_tr, rng, envs[0].position_draws) for rng in rngs]             # line 6
        acting = [cohort[i % learners].actor for i in range(args.agents)]
        policies = [numpy_policy(actor) for actor in acting]
        stds = [actor.log_std.exp().detach().cpu().numpy() for actor in acting]
        rollouts = list(pool.map(rollout, envs, policies, stds, domains, [steps_per_domain] * args.agents, rngs))  # line 7
        own_rollouts = [rollouts[i::learners] for i in range(learners)]
        batches = [prepare(agent.actor, agent.reward_scale, own, args.gamma) for agent, own in zip(cohort, own_rollouts)]

        told = [torch.zeros(4, device=args.device) for _ in cohort]
        # The first iteration only gathers the normalisers' statistics: no step is taken on raw observations.
        for _ in range(args.epochs if iteration > 0 else 0):                                            # line 9
            batches = list(pool.map(                                                                    # line 14
                lambda batch, agent, own: estimate(batch, agent.critic, agent.reward_scale, own, args.gamma, args.gae_lambda),
                batches, cohort, own_rollouts,
            ))
            shuffled = [shuffle(batch, args.minibatches, rng) for batch, rng in zip(batches, rngs)]
            for minibatches in zip(*shuffled):                                                          # line 10
                for i, (agent, batch) in enumerate(zip(cohort, minibatches)):                           # lines 11, 12
                    peers = [peer.actor for peer in cohort if peer is not agent]
                    told[i] += update(agent, peers, batch, compiled_step, args)                      # lines 13, 15

        step = (iteration + 1) * args.steps_per_iteration
        rows = []
        for i, (agent, own) in enumerate(zip(cohort, own_rollouts)):
            for data in own:  # only now: this data was collected, and used, with the old statistics
                agent.actor.norm.absorb(data.obs)
                agent.critic.norm.absorb(data.obs)
            returns = np.concatenate([data.returns for data in own])
            losses = (told[i] / (args.epochs * args.minibatches)).tolist()
            run.check_finite(step, i, [*losses, *returns], agent.parameters)
            rows.append({  # the losses are means over the iteration's minibatches, 0 in the first, which has none
                "step": step, "agent": i,
                "return": returns.mean(), "episodes": len(returns),  # of this iteration's finished episodes
                "surrogate": losses[0],  # Eq. (2), negated
                "distillation": losses[1],  # Eq. (3): KL to the peers, in nats
                "value_loss": losses[2],  # line 15, in units of scaled reward, squared
                "entropy": losses[3],  # of the policy, in nats
                "seconds": round(run.elapsed(), 3),  # wall clock
            })
        run.write("log.csv", rows)
        if iteration + 1 in evaluate_at:
            policies = [numpy_policy(agent.actor) for agent in cohort]
            run.write("eval.csv", evaluate(envs[: args.threads], policies, args.eps_te, args.eval_domains, step))
            if iteration + 1 < iterations:  # the last one is drawn by report
                draw_run(run.path, title)
        if (iteration + 1) % args.checkpoint_every == 0 or iteration + 1 == iterations:
            run.save(parts, iteration + 1, finished=iteration + 1 == iterations)
        progress.show(step, float(np.mean([row["return"] for row in rows])))
    report(run, title)


# ---------------------------------------------------------------------------------------------------------
# Evaluation and figures
# ---------------------------------------------------------------------------------------------------------


def draw_figure(args):
    """The paper's Figure 3 (training return against steps) or 4 (test return against eps_te), a panel for each
    environment, methods side by side, mean over seeds with a bootstrap interval, from all finished runs whose
    settings are those of this command line."""
    found = find_runs(args, "p2pdrl")
    environments = sorted({env for env, _ in found}) or [args.env]
    for env in environments:
        for method in LEARNING_RATE:
            if (env, method) not in found:
                print(f"no finished run of {method} on {env} with these settings; this makes some:\n"
                      f"    python p2pdrl.py --env {env} --method {method} --eps-tr {args.eps_tr:g} --seeds 0 1 2")
    if not found:
        fail(f"nothing to draw below {args.runs}/")
    figure, axes = new_figure(columns=len(environments))
    for axis, env in zip(axes, environments):
        for index, method in enumerate(LEARNING_RATE):
            paths = found.get((env, method), [])
            if paths and args.figure == "3":
                x = np.unique(read_csv(paths[0] / "log.csv")["step"])
                values = np.stack([training_curve(path, x) for path in paths])
            elif paths:
                x = test_returns(paths[0])[0]
                values = np.stack([test_returns(path)[1] for path in paths])
                print(f"{env} {method}, by seed: " + "; ".join(
                    f"eps_te {eps:g}: {' '.join(f'{value:.0f}' for value in column)}" for eps, column in zip(x, values.T)))
            if paths:
                style = {"marker": "o", "markersize": 4} if args.figure == "4" else {}
                plot_interval(axis, x, values, f"{method}, {len(paths)} seeds", index, **style)
        if args.figure == "3":
            millions(axis)
        else:
            axis.set_xlabel("eps_te, strength of the randomisation")
        axis.set(title=env, ylabel={"3": "training return", "4": "return in held-out domains, mean action"}[args.figure])
        axis.legend(loc="best")
    figure.suptitle(f"eps_tr = {args.eps_tr:g}; mean over seeds, 95 % bootstrap interval", fontsize=10)
    path = Path(args.runs) / f"p2pdrl-figure-{args.figure}.png"
    save_figure(figure, path)
    print(f"figure: {path}")


def show(path: Path, write_gif: bool):
    """Every peer of a run in the first held-out domain of its eps_tr: in a window, one after the other, or as a
    moving picture, side by side."""
    try:
        args = Args(**json.loads((path / "config.json").read_text())["settings"])
        state = torch.load(path / "checkpoint.pt", weights_only=True, map_location="cpu")["state"]
        agents = max(int(name.removeprefix("actor")) for name in state if name.startswith("actor")) + 1
    except Exception as error:  # whatever a missing or damaged file raises
        fail(f"{path} is no run of p2pdrl.py with a checkpoint ({type(error).__name__})")
    if sys.platform == "linux" and write_gif:
        os.environ.setdefault("MUJOCO_GL", "egl")  # needs no screen
    elif sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        fail("no screen for a window here: --gif writes a moving picture instead")  # GLFW would abort the process
    size = {"width": 160, "height": 160} if write_gif else {}
    env = make_envs(args, 1, render_mode="rgb_array" if write_gif else "human", **size)[0]
    renderer = env.unwrapped.mujoco_renderer
    follow = {"type": int(mujoco.mjtCamera.mjCAMERA_TRACKING), "trackbodyid": int(env.model.jnt_bodyid[0])}
    renderer.default_cam_config = (renderer.default_cam_config or {}) | follow  # or the robot leaves the picture
    renderer.camera_id = None  # which would set the camera free again
    domain = held_out_domains(args.eps_tr, 1, env.position_draws)[0]
    print(domain)
    movies = []
    for i in range(agents):
        actor = GaussianActor(env.observation_space.shape[0], env.action_space.shape[0])
        actor.load_state_dict(state[f"actor{i}"])
        try:
            movies.append(play(env, numpy_policy(actor), domain, movie_seconds=5 if write_gif else None))
        except Exception as error:  # each backend of OpenGL fails in a way of its own
            fail(f"cannot draw: no OpenGL to be had here ({' '.join(str(error).split())[:80]})")
    env.close()
    if write_gif:
        save_gif(movies, path / "policy.gif", fps=20)
        print(f"moving picture: {path / 'policy.gif'}")


def play(env, policy, domain, movie_seconds: float | None) -> list[np.ndarray]:
    """One episode with mean actions; with movie_seconds, the frames of its beginning at 20 per second."""
    obs, _ = env.reset(seed=0, options={"domain": domain})
    frames, total, step, over = [], 0.0, 0, False
    every = max(1, round(1 / (20 * env.unwrapped.dt)))
    while not over and not (movie_seconds and step * env.unwrapped.dt >= movie_seconds):
        if movie_seconds and step % every == 0:
            frames.append(env.render())
        obs, reward, died, out_of_time, _ = env.step(np.clip(policy(obs), env.action_space.low, env.action_space.high))
        total, step, over = total + reward, step + 1, died or out_of_time
    print(f"{step} steps, return {total:.0f}")
    return frames


def save_gif(movies: list[list[np.ndarray]], path: Path, fps: int):
    """Write movies side by side; one that ends early keeps its last frame."""
    from matplotlib.animation import FuncAnimation, PillowWriter

    frames = [
        np.concatenate([movie[min(i, len(movie) - 1)] for movie in movies], axis=1) for i in range(max(map(len, movies)))
    ]
    height, width = frames[0].shape[:2]
    figure, (axis,) = new_figure()
    figure.set_layout_engine("none")
    figure.set_size_inches(width / 100, height / 100)
    axis.set_position((0, 0, 1, 1))
    axis.axis("off")
    picture = axis.imshow(frames[0])
    animation = FuncAnimation(figure, lambda i: picture.set_data(frames[i]), frames=len(frames))
    try:
        animation.save(path, writer=PillowWriter(fps=fps), dpi=100)
    except OSError as error:
        fail(f"cannot write {path}: {error.strerror}")


def main():
    args = parse_args(Args, __doc__.splitlines()[0])
    if args.watch or args.gif:
        return show(Path(args.watch or args.gif), write_gif=not args.watch)
    if args.learning_rate is None:
        args.learning_rate = LEARNING_RATE[args.method]
    if args.agents < (2 if args.method == "p2pdrl" else 1):
        fail(f"--agents {args.agents}: {args.method} needs at least {2 if args.method == 'p2pdrl' else 1}")
    if not 0 <= args.alpha < math.inf or not math.isfinite(args.entropy_coef):
        fail("--alpha must not be negative, nor --alpha or --entropy-coef infinite")
    check_args(args, domains=args.agents)
    if args.figure:
        draw_figure(args)
    elif args.seeds:
        make_envs(args, 1)  # what is wrong with it is said once, not by each seed
        run_seeds(args.seeds, args.jobs)
    else:
        train(args)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        fail("stopped; the same command goes on from the last checkpoint", status=130)
