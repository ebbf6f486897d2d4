"""PIEKD and CIKD: an ensemble of SAC agents with one replay buffer, whose best member periodically teaches the others.

    Hong, Nagarajan and Maeda, "Periodic Intra-Ensemble Knowledge Distillation for Reinforcement Learning" (2020).
    Hong, Nagarajan and Maeda, "Collaborative Inter-agent Knowledge Distillation for Reinforcement Learning" (2019).

The idea
--------
K agents with different initialisations learn one task from one replay buffer. For each episode one of them, drawn at
random, acts; at each step all of them learn. So they share experience, but each has a policy of its own, and at any
time one of them is ahead. Periodically the agent with the best recent returns becomes the teacher: the others are
trained by supervised learning to act as it does, and to value actions as it does, on the states of the buffer. They
keep what else they have learned, go on from a better place, and may be ahead the next time.

    code                | paper                 | shape
    agents              | pi_phi_k, Q_theta_k   | K of them
    teacher             | k_t                   |
    recent              | R_k                   | (K,) mean return of the last M = `--recent` episodes of each
    steps_since         | t_acc                 |
    interval            | I                     |

    policy:  minimise E_{s ~ D} KL(pi_teacher(.|s) || pi_student(.|s))                 PIEKD Eq. (1), CIKD Eq. (1)
    critic:  minimise E_{(s, a) ~ D} (Q_teacher(s, a) - Q_student(s, a))^2             PIEKD Eq. (2)

The two write-ups describe one method. What differs, and is `--method piekd` or `--method cikd`: when a phase of
distillation is over, PIEKD sets the counter of steps to 0 (its line 21), CIKD takes it modulo the interval (its
line 20), so that the phases keep to the multiples of the interval. CIKD's line 22 leaves out the teacher; PIEKD's
lines 19 and 20 do not, but a teacher that is distilled into itself does not change.

Where this differs from, or completes, the papers
-------------------------------------------------
* A phase begins at the first end of an episode at which the counter has reached the interval. (CIKD's line 20 asks
  for a multiple of the interval, which ends of episodes seldom hit, and only after every E episodes, E not given.
  The released code distils in the middle of an episode.)
* The counter begins when the random steps at the beginning are over, and episodes that began before that do not count
  in the election. An agent without an episode is never elected; of equals the first one is.
* The KL of squashed Gaussians is that of the Gaussians before the squash: tanh is one-to-one, and the KL does not
  change when both variables go through the same one-to-one map.
* A phase is `--distill-epochs` passes over the buffer in minibatches, each pass in a new random order (the released
  code takes consecutive transitions), with an Adam of its own for each network, which is forgotten afterwards
  (`--distill-updates` for a fixed number of minibatches). The students' own optimisers are not touched. (In the
  released code they go on with the learning rate and the running means of the distillation.)
* Q_1 is distilled into Q_1 and Q_2 into Q_2. Target critics are not distilled, but take one step of their usual kind
  towards the critic after the phase; the temperature is left alone.
* A student whose networks are copied or reset keeps its target critics (but for that one step), its temperature and
  its optimisers all the same, so that every ablation changes one thing. (Where the released code copies networks, it
  copies the state of their optimisers too, and the targets take no step.)
* `--share extra` gives each agent as many updates of its own as a student would have minibatches: of policy and
  critics, as the papers say (the released code leaves the critics out). It always counts as PIEKD does.
* Each agent learns at each step from a minibatch of its own. (Both algorithms update after an episode.)
* Students are compared with their teacher after a phase; CIKD compares them before it, too.
* SAC is that of baselines.py, where its own decisions stand. Its networks begin as in the released code; the papers
  say "uniform", and not how wide.
* `--eps-tr` trains under domain randomisation, which the papers did not try; a new domain for each episode.

You should know
---------------
* The best of K agents is chosen and reported from the same episodes, as in the papers. That is more than the mean even
  if all are equally good: compare it with the ensemble's, or look at the worst as well; not only with one agent.
* Where all episodes have the same length, as in HalfCheetah, phases and evaluations fall on the same steps: what is
  evaluated then are students that were taught just before.

Commands, on a laptop
---------------------
    python piekd_cikd.py --env Hopper-v4 --total-steps 6000 --warm-up 2000 --interval 1000    # toy: a minute or two
    python piekd_cikd.py --env Hopper-v4 --total-steps 1e5                                    # an hour, returns of 700 to 3000
    python piekd_cikd.py --env Hopper-v4 --seeds 0 1 2 3 4                                    # the papers' size

At the papers' size each seed takes half a day, half of that in distillation (`--distill-updates` bounds it).

To use it elsewhere, copy piekd_cikd.py, baselines.py and randomised_envs.py.
"""

import copy
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from baselines import (
    COLOURS, ROW, STYLES, Adam, Progress, ReplayBuffer, Run, Stream, Transitions, as_command, bootstrap, check_args,
    check_buffer_args, compiled, evaluate, fail, find_runs, given, make_envs, millions, new_figure, numpy_network,
    one_vector, parse_args, reach_of, read_csv, report, run_seeds, save_figure, set_up_torch, with_seeds, workers,
)


@dataclass
class Args:
    # environment
    env: str = "Hopper-v4"  # a Gymnasium MuJoCo environment
    xml_file: str = ""  # an MJCF file of your own in place of the environment's (v5 environments)
    eps_tr: float = 0.0  # strength of the randomisation in training, in [0, 1]; a new domain for each episode
    init: Literal["root", "joints"] = "root"  # what randomisation moves as initial position

    # ensemble
    method: Literal["piekd", "cikd", "ensemble", "vanilla"] = "piekd"  # ensemble: no distillation; vanilla: K = 1
    ensemble_size: int = 3  # K
    total_steps: int = 1_000_000  # environment steps
    recent: int = 5  # M, episodes over which an agent's return is averaged for the election

    # distillation
    interval: int = 5000  # I, environment steps between phases of distillation
    share: Literal["distil", "hardcopy", "extra"] = "distil"  # a phase: distil; copy networks; or more updates of SAC
    teacher: Literal["best", "random"] = "best"  # who teaches
    distil: Literal["both", "policy", "critic"] = "both"  # what is taught
    reset_students: bool = False  # begin each phase with new networks for the students
    distill_epochs: int = 5  # passes over the buffer in a phase
    distill_updates: int = 0  # minibatches in a phase, in place of that many passes
    distill_lr: float = 1e-3  # Adam's, in a phase

    # SAC
    learning_rate: float = 3e-4  # Adam's
    gamma: float = 0.99  # discount factor
    tau: float = 0.005  # part of the way to the critics that targets go at each update
    batch_size: int = 256  # transitions for an update, and for one of distillation
    buffer_size: int = 1_000_000  # transitions that are remembered, of all agents together
    warm_up: int = 10_000  # steps with random actions at the beginning
    matmul_precision: Literal["highest", "high", "medium"] = "highest"  # of float32 products; less may mean bfloat16

    # evaluation
    eps_te: tuple[float, ...] = (0.0,)  # strengths of the test domains
    eval_domains: int = 20  # held-out domains for each strength, one episode in each
    evaluate_every: int = 10_000  # environment steps between evaluations

    # run
    seed: int = 0  # of everything random
    seeds: tuple[int, ...] = ()  # several seeds, each in a process of its own
    jobs: int = 2  # how many of these at a time
    threads: int = 0  # threads that work at the same time; 0: one for each core
    device: str = "cpu"  # of the networks: cpu or cuda
    compile: bool = True  # compile the gradient computations where a C++ compiler is found
    checkpoint_every: int = 5  # rows of the log, of 1000 steps each, between checkpoints
    runs: str = "runs"  # folder of all runs
    overwrite: bool = False  # start anew instead of resuming

    # instead of training
    figure: str = ""  # draw this figure from the runs that exist: piekd-3 to piekd-8, cikd-2 to cikd-9


# ---------------------------------------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------------------------------------


def glorot(module: nn.Module):
    """Begin with weights uniform within +- sqrt(6 / (inputs + outputs)) and biases of 0."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def two_layers(inputs: int, outputs: int) -> nn.Sequential:
    """Two hidden layers of 256 ReLU."""
    layers = nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, outputs)
    return nn.Sequential(*layers).apply(glorot)


class SquashedActor(nn.Module):
    """pi(a|s): a = tanh(u) with u ~ Normal(mean(s), std(s)); the robot gets action_scale * a."""

    def __init__(self, obs_size: int, action_scale: np.ndarray):
        super().__init__()
        self.net = two_layers(obs_size, 2 * len(action_scale))
        self.register_buffer("action_scale", torch.as_tensor(action_scale))

    def forward(self, obs):  # (N, obs) -> mean (N, act), log_std (N, act), before the squash
        mean, log_std = self.net(obs).chunk(2, dim=-1)
        return mean, log_std.clamp(-20, 2)


class TwinCritic(nn.Module):
    """Q_1(s, a) and Q_2(s, a), which share nothing."""

    def __init__(self, obs_size: int, action_size: int):
        super().__init__()
        self.nets = nn.ModuleList([two_layers(obs_size + action_size, 1) for _ in range(2)])

    def forward(self, obs, actions):  # (N, obs), (N, act) -> (2, N)
        inputs = torch.cat([obs, actions], dim=-1)
        return torch.stack([net(inputs).squeeze(-1) for net in self.nets])


def squashed_policy(actor: SquashedActor):
    """The actor as a function obs (obs,), noise (act,) or 0 -> action (act,), in numpy; noise 0: tanh(mean).

    For use before the actor changes: copying its weights for each step would take longer than the step.
    """
    network, scale = numpy_network(actor.net, copy=False), actor.action_scale.cpu().numpy()

    def policy(obs, noise=0):
        mean, log_std = np.split(network(obs.astype(np.float32)), 2)
        if np.any(noise):
            mean = mean + np.exp(np.clip(log_std, -20, 2)) * noise
        return scale * np.tanh(mean)

    return policy


# ---------------------------------------------------------------------------------------------------------
# Distillation
# ---------------------------------------------------------------------------------------------------------


def gaussian_kl(p, q):
    """KL(p || q) of diagonal Gaussians, each a pair (mean, log_std) of shape (N, act): (N,)."""
    (mean_p, log_std_p), (mean_q, log_std_q) = p, q
    ratio = (2 * (log_std_p - log_std_q)).exp() + ((mean_p - mean_q) / log_std_q.exp()) ** 2
    return (0.5 * (ratio - 1) + log_std_q - log_std_p).sum(-1)


def policy_distillation_loss(student, teacher, obs):                                  # PIEKD Eq. (1), CIKD Eq. (1)
    """Mean of KL(teacher || student) over the states obs (N, obs). Scalar."""
    with torch.no_grad():
        wanted = teacher(obs)
    return gaussian_kl(wanted, student(obs)).mean()


def critic_distillation_loss(student, teacher, obs, actions):                                       # PIEKD Eq. (2)
    """Mean square difference of values, Q_1 to Q_1 and Q_2 to Q_2. (N, obs), (N, act) -> scalar"""
    with torch.no_grad():
        wanted = teacher(obs, actions)
    values = student(obs, actions)
    assert values.shape == wanted.shape == (2, len(obs))
    return ((values - wanted) ** 2).mean()


def policy_distillation_step(student, teacher, adam, vector, obs):
    """The student's parameters after one step, and the loss. Compiled as one graph."""
    loss = policy_distillation_loss(student, teacher, obs)
    return adam(vector, gradient_of(loss, student)), loss.detach()


def critic_distillation_step(student, teacher, adam, vector, obs, actions):
    """The student's parameters after one step, and the loss. Compiled as one graph."""
    loss = critic_distillation_loss(student, teacher, obs, actions)
    return adam(vector, gradient_of(loss, student)), loss.detach()


# ---------------------------------------------------------------------------------------------------------
# SAC: losses and one update, as in baselines.py
# ---------------------------------------------------------------------------------------------------------


def squash(policy, noise):
    """Actions tanh(mean + std * noise) (N, act) in (-1, 1), and their log-probabilities (N,).

    log(1 - tanh(u)^2) is written as 2 (log 2 - u - softplus(-2u)), which is finite wherever tanh(u) rounds to 1.
    """
    mean, log_std = policy
    u = mean + log_std.exp() * noise
    log_normal = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
    log_slope = 2 * (math.log(2) - u - nn.functional.softplus(-2 * u))
    return u.tanh(), (log_normal - log_slope).sum(-1)


def sac_targets(actor, target_critic, alpha, batch, noise, gamma):
    """y = r + gamma (min_i Q'_i(s', a') - alpha log pi(a'|s')), and just r where the robot died. (N,)"""
    actions, log_probs = squash(actor(batch.next_obs), noise)
    futures = target_critic(batch.next_obs, actor.action_scale * actions).min(0).values - alpha * log_probs
    assert futures.shape == batch.rewards.shape == batch.terminated.shape
    return (batch.rewards + gamma * (1 - batch.terminated) * futures).detach()


def sac_critic_loss(critic, batch, targets):
    """Half the mean square error, summed over the two critics."""
    values = critic(batch.obs, batch.actions)
    assert values.shape == (2, *targets.shape)
    return 0.5 * ((values - targets) ** 2).mean(1).sum()


def sac_actor_loss(actor, critic, alpha, obs, noise):
    """Mean of alpha log pi(a|s) - min_i Q_i(s, a) over the actor's own actions, and the log-probabilities (N,)."""
    actions, log_probs = squash(actor(obs), noise)
    values = critic(obs, actor.action_scale * actions).min(0).values
    assert values.shape == log_probs.shape
    return (alpha * log_probs - values).mean(), log_probs


def temperature_loss(log_alpha, log_probs, target_entropy):
    """alpha grows while the entropy -log pi is below its target. Scalar."""
    return -(log_alpha.exp() * (log_probs.detach() + target_entropy)).mean()


def gradient_of(loss, network):
    """Gradient of a loss by a network's parameters, as one vector."""
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, tuple(network.parameters()))])


class SACLearner:
    """Actor, twin critic, its slowly following target, the temperature, and an Adam for each that learns."""

    def __init__(self, obs_size: int, action_scale: np.ndarray, args):
        actor, critic = SquashedActor(obs_size, action_scale), TwinCritic(obs_size, len(action_scale))
        self.actor, self.critic, self.target_critic = actor, critic, copy.deepcopy(critic)
        self.temperature = nn.ParameterDict({"log_alpha": torch.zeros(1)})
        networks = self.actor, self.critic, self.target_critic, self.temperature
        self.vectors = [one_vector(network.to(args.device)) for network in networks]
        adams = [Adam(self.vectors[i], args.learning_rate) for i in (0, 1, 3)]
        self.actor_adam, self.critic_adam, self.temperature_adam = adams
        self.target_entropy = -float(len(action_scale))

    def parts(self) -> dict:
        """What a checkpoint holds, by name."""
        names = "actor", "critic", "target_critic", "temperature", "actor_adam", "critic_adam", "temperature_adam"
        return {name: getattr(self, name) for name in names}


def sac_critic_step(actor, critic, target_critic, critic_adam, vectors, batch, noise, gamma, tau):
    """The vectors of critic and target critic after one update, and the critic's loss. Compiled as one graph."""
    _, critic_vector, target_vector, log_alpha = vectors
    targets = sac_targets(actor, target_critic, log_alpha.detach().exp(), batch, noise, gamma)
    loss = sac_critic_loss(critic, batch, targets)
    new = critic_adam(critic_vector, gradient_of(loss, critic))
    return new, target_vector.detach().lerp(new, tau), loss.detach()


def sac_actor_step(actor, critic, actor_adam, temperature_adam, vectors, obs, noise, target_entropy):
    """The vectors of actor and temperature after one update, and what the log tells. Compiled as one graph."""
    actor_vector, _, _, log_alpha = vectors
    alpha = log_alpha.detach().exp()
    loss, log_probs = sac_actor_loss(actor, critic, alpha, obs, noise)
    alpha_loss = temperature_loss(log_alpha, log_probs, target_entropy)
    new = actor_adam(actor_vector, gradient_of(loss, actor))
    new_log_alpha = temperature_adam(log_alpha, torch.autograd.grad(alpha_loss, log_alpha)[0])
    return new, new_log_alpha, torch.stack([loss, -log_probs.mean(), alpha[0]]).detach()


class SACUpdate:
    """One step of everything that a SACLearner learns, and of the target critic after it.

    All gradients are taken where the parameters are before the update. So its two halves can be worked out at the same
    time, the actor's by a thread of its own: faster than two threads that share each matrix product, and to the same
    bits as one after the other.
    """

    def __init__(self, args):
        torch.set_float32_matmul_precision(args.matmul_precision)
        self.critic_step, self.actor_step = compiled(sac_critic_step, args), compiled(sac_actor_step, args)
        self.gamma, self.tau = args.gamma, args.tau
        alone = args.threads == 1 or args.device != "cpu"
        self.pool = None if alone else workers(1)
        self.known = set()  # learners for which everything is compiled: no thread can help with that

    def __call__(self, learner, batch, noise):
        """Change the learner; critic's loss, actor's loss, entropy, temperature. noise: (2, N, act) standard normal."""
        actor, critic, vectors = learner.actor, learner.critic, learner.vectors
        networks = actor, critic, learner.target_critic, learner.critic_adam
        critic_half = partial(self.critic_step, *networks, vectors, batch, noise[0], self.gamma, self.tau)
        networks = actor, critic, learner.actor_adam, learner.temperature_adam
        actor_half = partial(self.actor_step, *networks, vectors, batch.obs, noise[1], learner.target_entropy)
        if self.pool and learner in self.known:
            future = self.pool.submit(actor_half)  # the shorter one, as it begins later
            new_critic, new_target, critic_loss = critic_half()
            new_actor, new_log_alpha, told = future.result()
        else:
            new_critic, new_target, critic_loss = critic_half()
            new_actor, new_log_alpha, told = actor_half()
            self.known.add(learner)
        for vector, value in zip(vectors, (new_actor, new_critic, new_target, new_log_alpha)):
            vector.data.copy_(value)
        return torch.cat([critic_loss[None], told])


def sac_batch(buffer, args, rng: np.random.Generator) -> tuple[Transitions, torch.Tensor]:
    """A minibatch and the noise that an update needs."""
    rows = torch.as_tensor(buffer.draw((args.batch_size,), rng), device=args.device)
    noise = rng.standard_normal((2, args.batch_size, buffer.widths[1]), dtype=np.float32)
    return buffer.split(rows), torch.as_tensor(noise, device=args.device)


# ---------------------------------------------------------------------------------------------------------
# A phase of distillation
# ---------------------------------------------------------------------------------------------------------


class Standings:
    """Who may teach, and when: how well each agent did of late (R_k), and the steps since the last phase (t_acc)."""

    def __init__(self, agents: int, episodes: int):
        self.returns = np.full((agents, episodes), np.nan)  # of each agent's last episodes, the newest at the end
        self.steps_since, self.phases = 0, 0

    def record(self, agent: int, episode_return: float):
        self.returns[agent] = np.append(self.returns[agent, 1:], episode_return)

    def recent(self) -> np.ndarray:
        """Mean return of each agent's last episodes (K,), of fewer at the beginning; -inf for an agent without one."""
        return np.array([own[~np.isnan(own)].mean() if not np.isnan(own[-1]) else -np.inf for own in self.returns])

    def state_dict(self):
        return {"returns": torch.as_tensor(self.returns), "steps_since": self.steps_since, "phases": self.phases}

    def load_state_dict(self, state):
        self.returns[:] = state["returns"].numpy()
        self.steps_since, self.phases = state["steps_since"], state["phases"]


def elect(recent: np.ndarray, how: str, rng: np.random.Generator) -> int | None:
    """The teacher: the best of late (of equals the first), or anybody; nobody, if none has finished an episode."""
    candidates = np.flatnonzero(recent > -np.inf)
    if len(candidates) == 0:
        return None
    return int(rng.choice(candidates)) if how == "random" else int(np.argmax(recent))


def counter_after_phase(steps_since: int, args) -> int:
    """Where counting goes on: PIEKD, line 21, begins anew; CIKD, line 20, keeps to multiples of the interval."""
    return steps_since % args.interval if args.method == "cikd" else 0


def number_of_minibatches(buffer, args) -> int:
    """In a phase, for each student."""
    return args.distill_updates or args.distill_epochs * (len(buffer) // args.batch_size)


def minibatches_of_phase(buffer, args, rng: np.random.Generator):
    """Passes over the whole buffer, each in a new order; what does not fill a minibatch is left out."""
    each_pass = len(buffer) // args.batch_size
    for i in range(number_of_minibatches(buffer, args)):
        if i % each_pass == 0:
            order = rng.permutation(len(buffer))
        ages = order[args.batch_size * (i % each_pass) : args.batch_size * (i % each_pass + 1)]
        yield buffer.split(torch.as_tensor(buffer.at(ages), device=args.device))


def distil(student, teacher, buffer, compiled_policy_step, compiled_critic_step, args, rng):
    """Train the student's policy and critic to be the teacher's; mean losses of both. Nothing else changes."""
    told = torch.zeros(2, device=args.device)
    adams = [Adam(vector, args.distill_lr) for vector in student.vectors[:2]]  # forgotten after the phase
    for batch in minibatches_of_phase(buffer, args, rng):
        if args.distil != "critic":                                                        # PIEKD Alg. 1, line 19
            new, loss = compiled_policy_step(student.actor, teacher.actor, adams[0], student.vectors[0], batch.obs)
            student.vectors[0].data.copy_(new)
            told[0] += loss
        if args.distil != "policy":                                                        # PIEKD Alg. 1, line 20
            networks = student.critic, teacher.critic, adams[1]
            new, loss = compiled_critic_step(*networks, student.vectors[1], batch.obs, batch.actions)
            student.vectors[1].data.copy_(new)
            told[1] += loss
    return (told / number_of_minibatches(buffer, args)).tolist()


def copy_networks(student, teacher):
    """Make the student's policy and critic those of the teacher."""
    for vector, wanted in zip(student.vectors[:2], teacher.vectors):
        vector.data.copy_(wanted.data)


def reset_networks(student, seed: int):
    """Give the student a new policy and a new critic, as at the beginning."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        student.actor.apply(glorot)
        student.critic.apply(glorot)


class Teaching:
    """The compiled steps of distillation, and threads in which students can learn side by side."""

    def __init__(self, args):
        self.steps = compiled(policy_distillation_step, args), compiled(critic_distillation_step, args)
        alone = args.threads == 1 or args.device != "cpu"
        self.pool = None if alone else workers(args.threads)
        self.known = set()  # teachers with whom everything was compiled before: no thread can help with that

    def map_for(self, teacher: int):
        """map, or that of the threads."""
        side_by_side = self.pool.map if self.pool and teacher in self.known else map
        self.known.add(teacher)
        return side_by_side


def teach(agents, teacher: int, buffer, compiled_steps, args, phase_number: int, side_by_side=map) -> list[list[float]]:
    """Bring all the other agents nearer to the teacher; for each agent the mean losses of policy and critic.

    side_by_side: map, or that of a pool of threads. Students share nothing that changes, so that the bits are the same.
    """
    losses, rngs = [[0.0, 0.0] for _ in agents], {}
    for k in (k for k in range(len(agents)) if k != teacher):
        rngs[k] = np.random.default_rng([args.seed, k, phase_number, 3])
        if args.reset_students:
            reset_networks(agents[k], int(rngs[k].integers(2**62)))

    def lesson(k):
        if args.share == "hardcopy":
            copy_networks(agents[k], agents[teacher])
        else:
            losses[k] = distil(agents[k], agents[teacher], buffer, *compiled_steps, args, rngs[k])
        critic, target = agents[k].vectors[1:3]
        target.data.lerp_(critic.data, args.tau)  # one step of the target, as after any update

    list(side_by_side(lesson, rngs))
    return losses


def learn_on(agents, buffer, update, args, phase_number: int):
    """As many updates of each agent's own as a phase of distillation would have minibatches, and nothing shared."""
    for k, agent in enumerate(agents):
        rng = np.random.default_rng([args.seed, k, phase_number, 3])
        for _ in range(number_of_minibatches(buffer, args)):
            update(agent, *sac_batch(buffer, args, rng))


def phase(agents, standings, buffer, envs, update, teaching, args, step: int) -> list[dict]:
    """Share what there is to share, and begin to count anew; rows for distillation.csv, none if nobody taught."""
    rows = []
    if args.share == "extra":
        learn_on(agents, buffer, update, args, standings.phases)
    else:
        recent, rng = standings.recent(), np.random.default_rng([args.seed, 0, standings.phases, 6])
        teacher = elect(recent, args.teacher, rng)                                         # PIEKD Alg. 1, line 18
        if teacher is None:
            return []  # wait until somebody has finished an episode
        side_by_side = teaching.map_for(teacher)
        losses = teach(agents, teacher, buffer, teaching.steps, args, standings.phases, side_by_side)  # lines 19, 20
        policies = [squashed_policy(agent.actor) for agent in agents]
        tests = evaluate(envs, policies, (min(args.eps_te),), args.eval_domains, step)
        for k, (policy_loss, critic_loss) in enumerate(losses):
            rows.append({
                "step": step, "agent": k, "teacher": teacher,
                "recent": recent[k],  # mean training return of the last episodes; -inf: had none
                "policy_loss": policy_loss, "critic_loss": critic_loss,  # Eq. (1), (2), mean over the phase
                "return": np.mean([row["return"] for row in tests if row["agent"] == k]),  # just after the phase
            })
    standings.phases += 1
    standings.steps_since = counter_after_phase(standings.steps_since, args)               # line 21
    return rows


# ---------------------------------------------------------------------------------------------------------
# The loop
# ---------------------------------------------------------------------------------------------------------


def has_phases(args) -> bool:
    """Whether anything happens when the interval is over."""
    return args.method in ("piekd", "cikd") or args.share == "extra"


def variant(args) -> str:
    """A name for the run's folder: the method, and whatever is not as usual."""
    words = {
        args.share: args.share != "distil",
        "random-teacher": args.teacher == "random",
        f"{args.distil}-only": args.distil != "both",
        "reset": args.reset_students,
        f"K{args.ensemble_size}": args.ensemble_size not in (1, 3),
        f"I{args.interval}": args.interval != 5000,
    }
    return "-".join([args.method, *(word for word, unusual in words.items() if unusual)])


def train(args):
    run = Run(args, "piekd_cikd", variant(args), ("log.csv", "eval.csv", "distillation.csv"))
    title = f"{variant(args)}, {args.env}, eps_tr = {args.eps_tr:g}, seed {args.seed}"
    if run.finished:
        print(f"{run.path} is finished: nothing to do (--overwrite starts anew)")
        return report(run, title)
    envs = make_envs(args, args.threads + 1)
    set_up_torch(args)
    update = SACUpdate(args)
    teaching = Teaching(args)

    obs_size, scale = envs[0].observation_space.shape[0], reach_of(envs[0])
    numbers = range(args.ensemble_size)
    agents = [SACLearner(obs_size, scale, args) for _ in numbers]  # PIEKD Alg. 1, i: with different initialisations
    standings = Standings(args.ensemble_size, args.recent)
    iterations = args.total_steps // ROW
    size = min(args.buffer_size, args.total_steps)
    run.make_folder(room=ReplayBuffer.bytes(obs_size, len(scale), size))
    buffer = ReplayBuffer(run.path / "buffer.dat", obs_size, len(scale), size, run.state is not None)
    stream = Stream(envs[-1], args.seed, 0, buffer)
    parts = {f"{name}{k}": part for k in numbers for name, part in agents[k].parts().items()}
    parts |= {"standings": standings, "buffer": buffer, "stream": stream}
    first = run.resume(parts, ROW)
    progress = Progress(iterations * ROW, first * ROW)

    for iteration in range(first, iterations):
        acting = np.random.default_rng([args.seed, 0, iteration, 1])
        rngs = [np.random.default_rng([args.seed, k, iteration]) for k in numbers]
        told, updates, returns = torch.zeros(len(numbers), 4, device=args.device), 0, [[] for _ in numbers]
        for step in range(ROW * iteration, ROW * (iteration + 1)):
            # Line 9. The key holds the episode, so that this is one agent from its beginning to its end.
            chosen = int(np.random.default_rng([args.seed, 0, stream.episode, 5]).integers(len(numbers)))
            if step < args.warm_up:
                action = acting.uniform(-scale, scale).astype(np.float32)
            else:
                noise = acting.standard_normal(len(scale), dtype=np.float32)
                action = squashed_policy(agents[chosen].actor)(stream.obs, noise)
            length = stream.steps + 1
            finished = stream.step(action)                                                       # lines 10, 11
            if step >= args.warm_up:
                for k, (agent, rng) in enumerate(zip(agents, rngs)):
                    told[k] += update(agent, *sac_batch(buffer, args, rng))           # lines 12, 13
                updates += 1
                standings.steps_since += 1                                                         # line 15
            if finished is None:
                continue
            returns[chosen].append(finished)
            if step + 1 - length >= args.warm_up:  # the agent acted in it from its beginning
                standings.record(chosen, finished)                                                 # line 14
            enough = len(buffer) >= args.batch_size
            if has_phases(args) and enough and standings.steps_since >= args.interval:                   # line 17
                rows = phase(agents, standings, buffer, envs[:-1], update, teaching, args, step + 1)
                if rows:
                    run.write("distillation.csv", rows)
        step = (iteration + 1) * ROW
        last = np.where(np.isnan(standings.returns[:, -1]), stream.last_return, standings.returns[:, -1])
        rows = []
        for k, agent in enumerate(agents):
            means = (told[k] / max(updates, 1)).tolist()
            run.check_finite(step, k, means, torch.cat([vector.detach() for vector in agent.vectors]))
            rows.append({
                "step": step, "agent": k,
                # Of the episodes that ended and were its own, random ones too; if there are none, of its last one that
                # counts; if there is none either, of the last one of all.
                "return": float(np.mean(returns[k] or [last[k]])),
                "episodes": len(returns[k]),
                # The next four are means over the row's updates, 0 if there were none.
                "critic_loss": means[0], "actor_loss": means[1],
                "entropy": means[2],  # of the squashed policy, in nats
                "alpha": means[3],  # the temperature
                "seconds": round(run.elapsed(), 3),  # wall clock
            })
        run.write("log.csv", rows)
        if step % args.evaluate_every == 0 or iteration + 1 == iterations:
            policies = [squashed_policy(agent.actor) for agent in agents]
            run.write("eval.csv", evaluate(envs[:-1], policies, args.eps_te, args.eval_domains, step))
        if (iteration + 1) % args.checkpoint_every == 0 or iteration + 1 == iterations:
            run.save(parts, iteration + 1, finished=iteration + 1 == iterations)
        progress.show(step, float(np.mean([row["return"] for row in rows])))
    report(run, title)


# ---------------------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------------------

# What a line of a figure is: its label, and the settings in which its runs differ from the method's own.
METHOD = ("{method}", {})
ENSEMBLE = ("ensemble", {"method": "ensemble"})
VANILLA = ("vanilla", {"method": "vanilla", "ensemble_size": 1})
ENSEMBLE_EXTRA = ("ensemble (extra)", {"method": "ensemble", "share": "extra"})
VANILLA_EXTRA = ("vanilla (extra)", {"method": "vanilla", "ensemble_size": 1, "share": "extra"})
RANDOM = ("{method} (random teacher)", {"teacher": "random"})
SIZES = [(f"{{method}}, K = {size}", {"ensemble_size": size}) for size in (2, 3, 5)]
INTERVALS = [(f"{{method}}, I = {interval}", {"interval": interval}) for interval in (1000, 5000, 10_000, 100_000)]
CURVES = {
    "piekd-3": [METHOD, ENSEMBLE, VANILLA],
    "piekd-4": [METHOD, ENSEMBLE_EXTRA, VANILLA_EXTRA],
    "piekd-5": [METHOD, ("{method} (hardcopy)", {"share": "hardcopy"}), ENSEMBLE, VANILLA],
    "piekd-6": [METHOD, RANDOM, ENSEMBLE],
    "cikd-4": [METHOD, RANDOM, ENSEMBLE, VANILLA],
    "piekd-7": [*SIZES, ENSEMBLE],
    "piekd-8": [*INTERVALS, ENSEMBLE],
    "cikd-7": [METHOD, ("policy only", {"distil": "policy"}), ("critic only", {"distil": "critic"}), VANILLA],
}
RESET = [METHOD, ("{method} (reset)", {"reset_students": True}), ENSEMBLE]
SAME = {  # figures of CIKD that show what one of PIEKD shows
    "cikd-2": "piekd-3", "cikd-3a": "piekd-4", "cikd-3b": "piekd-5", "cikd-6": "piekd-7", "cikd-8": "piekd-3",
}
FIGURES = sorted([*CURVES, *SAME, "cikd-5", "cikd-9"])
VARIED = (
    "method", "ensemble_size", "share", "teacher", "distil", "reset_students", "interval", "recent", "distill_epochs",
    "distill_updates", "distill_lr",
)  # fmt: skip


def without_effect(method: str, share: str) -> tuple[str, ...]:
    """Settings that change nothing with these two."""
    if share == "hardcopy":
        return "distil", "reset_students", "distill_epochs", "distill_updates", "distill_lr"
    if method in ("piekd", "cikd"):
        return ()
    nobody_teaches = "teacher", "distil", "reset_students", "recent", "distill_lr"
    return nobody_teaches if share == "extra" else (*nobody_teaches, "interval", "distill_epochs", "distill_updates")


def command(args, changes: dict) -> str:
    """The command that makes runs of these settings where the figure of this command line looks for them."""
    useless = set(without_effect(changes["method"], changes.get("share", args.share)))
    shown = {"env": args.env, "total_steps": args.total_steps} | given(args, {"seed"} | useless) | changes
    if shown["method"] == "vanilla":
        del shown["ensemble_size"]
    usual = [name for name in changes if name != "method" and shown.get(name) == getattr(Args, name)]
    shown = {name: value for name, value in shown.items() if name not in usual}
    return as_command("piekd_cikd.py", shown | {"seeds": (0, 1, 2)})


def look_up(args, lines) -> dict[str, list[Path]]:
    """Finished runs of each line that has any, by label; prints the commands that make the others."""
    method = args.figure.split("-")[0]
    usual = {name: getattr(args, name) for name in VARIED} | {"method": method}
    found = find_runs(args, "piekd_cikd", VARIED)
    chosen, missing = {}, []
    for label, changes in lines:
        wanted, label = usual | changes, label.format(method=method.upper())
        useless = without_effect(wanted["method"], wanted["share"])
        paths = found.get(tuple(getattr(Args, name) if name in useless else wanted[name] for name in VARIED))
        if paths:
            chosen[label] = paths
        elif "interval" not in useless and wanted["interval"] > args.total_steps - args.warm_up:
            print(f"{label} needs more --total-steps: its interval is longer than what follows the --warm-up")
        else:
            missing.append(command(args, {"method": method} | changes))
    if missing:
        print("no finished runs yet of what these commands make:\n    " + "\n    ".join(missing))
    if not chosen:
        fail(f"nothing to draw below {args.runs}/")
    return chosen


def by_agent(path: Path, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Steps of the evaluations (T,), and each agent's mean return at them (T, K)."""
    table = read_csv(path / "eval.csv")
    steps, agents = np.unique(table["step"]), np.unique(table["agent"])
    here = table["eps_te"] == eps
    means = [
        [table["return"][here & (table["step"] == step) & (table["agent"] == agent)].mean() for agent in agents]
        for step in steps
    ]
    return steps, np.array(means)


def draw_lines(axis, args, chosen: dict[str, list[Path]], worst: bool):
    """Mean over seeds of the best agent's return at each evaluation, with its interval; if asked, the worst's as well."""
    eps = min(args.eps_te)
    for index, (label, paths) in enumerate(chosen.items()):
        runs = [by_agent(path, eps) for path in paths]
        steps = runs[0][0]
        colour, style = COLOURS[index % len(COLOURS)], STYLES[index % len(STYLES)]
        best = np.stack([means.max(1) for _, means in runs])
        several = runs[0][1].shape[1] > 1
        which = f"{label}, best" if worst and several else label
        axis.plot(steps, best.mean(0), color=colour, linestyle=style, label=with_seeds(which, len(paths)))
        if len(paths) > 1:
            axis.fill_between(steps, *bootstrap(best), color=colour, alpha=0.15, linewidth=0)
        if worst and several:
            lowest = np.stack([means.min(1) for _, means in runs]).mean(0)
            axis.plot(steps, lowest, color=colour, linestyle=style, linewidth=0.9, alpha=0.6, label=f"{label}, worst")
    millions(axis)
    axis.set(xlabel="environment steps", ylabel=f"return with mean actions, eps_te = {eps:g}")
    axis.legend(loc="best", fontsize=8)


def draw_indices(axis, steps, indices, agents: int, who: str):
    """Which agent it is, over time."""
    axis.plot(steps, indices, "o", color=COLOURS[0], markersize=4)
    millions(axis)
    axis.set(xlabel="environment steps", ylabel=f"index of the {who}", yticks=range(agents))


def draw_shares(axis, runs: list[np.ndarray], agents: int, who: str):
    """How often it is which agent: a bar for each run, side by side, as an index means another agent in each run."""
    width = 0.8 / len(runs)
    for i, indices in enumerate(runs):
        shares = [np.mean(indices == k) for k in range(agents)]
        places = np.arange(agents) + (i - (len(runs) - 1) / 2) * width
        axis.bar(places, shares, 0.9 * width, color=COLOURS[i % len(COLOURS)])
    axis.set(xlabel="agent", ylabel=f"share of times as {who}", xticks=range(agents), ylim=(0, 1))


def surpassing(table: dict[str, np.ndarray], low: float, high: float) -> float:
    """Of all students in phases at low < step <= high, the share that was better than its teacher just after."""
    better = []
    for step in np.unique(table["step"][(low < table["step"]) & (table["step"] <= high)]):
        now = table["step"] == step
        teacher = table["agent"][now] == table["teacher"][now]
        returns = table["return"][now]
        better += list(returns[~teacher] > returns[teacher])
    return float(np.mean(better)) if better else math.nan


def figure_cikd_5(args):
    """Who teaches, how often each, how often a student is better than its teacher after a phase, and the reset."""
    chosen = look_up(args, RESET)
    if "CIKD" not in chosen:
        fail("--figure cikd-5 needs a run of --method cikd")
    tables = [table for path in chosen["CIKD"] if (table := read_csv(path / "distillation.csv"))]
    if not tables:
        fail("--figure cikd-5 needs a run in which something was distilled: more --total-steps or a smaller --interval")
    figure, axes = new_figure(columns=2, rows=2)
    agents = int(tables[0]["agent"].max()) + 1
    teachers = [table["teacher"][table["agent"] == 0] for table in tables]  # a row for each phase
    draw_indices(axes[0], tables[0]["step"][tables[0]["agent"] == 0], teachers[0], agents, "teacher")
    draw_shares(axes[1], teachers, agents, "teacher")
    thirds = np.linspace(0, args.total_steps, 4)
    shares = np.array([[surpassing(table, low, high) for low, high in zip(thirds, thirds[1:])] for table in tables])
    for i, name in enumerate(("first", "second", "last")):
        known = shares[:, i][~np.isnan(shares[:, i])]
        axes[2].bar(name, known.mean() if len(known) else 0, color=COLOURS[0])
        if len(known) == 0:
            axes[2].text(i, 0.02, "no phase", ha="center")
    axes[2].set(xlabel="third of training", ylabel="share of students better than their teacher", ylim=(0, 1))
    draw_lines(axes[3], args, chosen, worst=False)
    titles = "(a) first seed", "(b) a bar for each seed", "(c) just after a phase", "(d) students reset before phases"
    for axis, title in zip(axes, titles):
        axis.set_title(title)
    return figure


def figure_cikd_9(args):
    """Who is best at each evaluation when nothing is distilled: in one ensemble, among as many independent agents."""
    found = look_up(args, [ENSEMBLE, VANILLA])
    if len(found) < 2:
        fail("--figure cikd-9 needs runs of both methods")
    steps, together = by_agent(found["ensemble"][0], min(args.eps_te))
    agents = together.shape[1]
    if len(found["vanilla"]) < agents:
        fail(f"--figure cikd-9 needs {agents} seeds of --method vanilla: as many agents as the ensemble has")
    alone = [by_agent(path, min(args.eps_te))[1][:, 0] for path in found["vanilla"][:agents]]
    figure, axes = new_figure(columns=2, rows=2)
    pairs = ("ensemble, first seed", together, axes[:2]), ("independent agents", np.stack(alone, axis=1), axes[2:])
    for name, returns, (left, right) in pairs:
        best = returns.argmax(1)
        draw_indices(left, steps, best, agents, "best agent")
        draw_shares(right, [best], agents, "best agent")
        left.set_title(name)
        right.set_title(name)
    return figure


def draw_figure(args):
    """A figure of the papers from all finished runs whose settings are those of this command line."""
    name = SAME.get(args.figure, args.figure)
    if name in CURVES:
        figure, (axis,) = new_figure()
        draw_lines(axis, args, look_up(args, CURVES[name]), worst=name == "piekd-3")
        axis.set_title(f"{args.env}: best agent\nmean over seeds, 95 % bootstrap interval", fontsize=10)
    else:
        figure = {"cikd-5": figure_cikd_5, "cikd-9": figure_cikd_9}[name](args)
        figure.suptitle(args.env, fontsize=10)
    path = Path(args.runs) / f"figure-{args.figure}.png"
    save_figure(figure, path)
    print(f"figure: {path}")


# ---------------------------------------------------------------------------------------------------------
# Main
# ---------------------------------------------------------------------------------------------------------


def check_ablation(args):
    """Refuse flags that would change nothing, or leave a student with a network that was never taught anything."""
    alone = args.method in ("ensemble", "vanilla")
    if args.share == "hardcopy" and alone:
        fail(f"--method {args.method} has no teacher to copy: --share hardcopy is for piekd and cikd")
    if args.share == "extra" and not alone:
        fail(f"--share extra takes the place of distillation: it is for ensemble and vanilla, not for {args.method}")
    for name in without_effect(args.method, args.share):
        if getattr(args, name) != getattr(Args, name):
            fail(f"--{name.replace('_', '-')} changes nothing with --method {args.method} --share {args.share}")
    if args.distill_updates and args.distill_epochs != Args.distill_epochs:
        fail("--distill-epochs changes nothing beside --distill-updates")
    if args.reset_students and args.distil != "both":
        fail(f"--reset-students with --distil {args.distil} leaves the students with a new network that nobody taught")
    if has_phases(args) and args.interval > args.total_steps - args.warm_up:
        fail(f"--interval {args.interval} is never over: only {args.total_steps - args.warm_up} steps follow the --warm-up")
    if has_phases(args) and args.batch_size > min(args.buffer_size, args.total_steps):
        fail(f"--batch-size {args.batch_size} is more than is ever remembered: there would be no phase")
    if args.recent > args.total_steps:
        fail(f"--recent {args.recent} is more episodes than --total-steps {args.total_steps} can hold")


def check_figure(args):
    """Refuse a figure that does not exist, or settings that it chooses itself."""
    if args.figure not in FIGURES:
        fail(f"--figure {args.figure} is none of {', '.join(FIGURES)}")
    for name in ("method", "share", "teacher", "distil", "reset_students"):
        if getattr(args, name) != getattr(Args, name) and getattr(args, name) != args.figure.split("-")[0]:
            fail(f"--figure {args.figure} chooses --{name.replace('_', '-')} itself")


def main():
    args = parse_args(Args, __doc__.splitlines()[0])
    if args.method == "vanilla":
        if args.ensemble_size not in (1, Args.ensemble_size):
            fail(f"--method vanilla is one agent: --ensemble-size {args.ensemble_size} is for the other methods")
        args.ensemble_size = 1
    elif args.ensemble_size < 2:
        fail(f"--method {args.method} needs an --ensemble-size of at least 2: --method vanilla is one agent")
    if args.figure:
        check_figure(args)
    check_args(args, steps=ROW)
    check_buffer_args(args, ROW)
    if args.evaluate_every % ROW:
        fail(f"--evaluate-every must be a multiple of {ROW}, but is {args.evaluate_every}")
    check_ablation(args)
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
        fail("stopped; the same command, without --overwrite, goes on from the last checkpoint", status=130)
