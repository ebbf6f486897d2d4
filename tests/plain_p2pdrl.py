"""P2PDRL as a student would write it first: Algorithm 1 in a hundred plain lines, with none of p2pdrl.py's speed.

    python tests/plain_p2pdrl.py        # two peers on Hopper-v4, a minute

It computes what p2pdrl.py computes: tests/test_p2pdrl.py trains both for four iterations and finds the same parameters.
(In the long run rounding tells them apart.) Numbers of lines in the margin are those of Algorithm 1, of equations those
of p2pdrl.py's docstring.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from randomised_envs import make_env, sample_domain  # noqa: E402

GAMMA, LAMBDA, CLIP = 0.99, 0.95, 0.2


def network(inputs, outputs, gain):
    """Two hidden layers of 64 tanh, orthogonal weights, biases of 0."""
    layers = []
    for n, m, scale in ((inputs, 64, 2**0.5), (64, 64, 2**0.5), (64, outputs, gain)):
        layers += [nn.Linear(n, m), nn.Tanh()]
        nn.init.orthogonal_(layers[-2].weight, scale)
        nn.init.zeros_(layers[-2].bias)
    return nn.Sequential(*layers[:-1])


class Agent(nn.Module):
    """Actor theta_i, critic phi_i, their optimiser, and what the agent has seen so far."""

    def __init__(self, obs_size, action_size, learning_rate):
        super().__init__()
        self.actor, self.log_std = network(obs_size, action_size, 0.01), nn.Parameter(torch.zeros(action_size))
        self.critic = network(obs_size, 1, 1.0)
        self.optimiser = torch.optim.Adam(self.parameters(), learning_rate, eps=1e-5)
        self.seen, self.mean, self.std = [], 0.0, 1.0  # observations, and their statistics
        self.sums = []  # discounted sums of rewards: their standard deviation is the scale of rewards

    def normalised(self, obs):
        return torch.tensor(((obs - self.mean) / self.std).clip(-10, 10), dtype=torch.float32)

    def policy(self, obs):
        return Normal(self.actor(self.normalised(obs)), self.log_std.exp())

    def value(self, obs):
        return self.critic(self.normalised(obs)).squeeze(-1)


@torch.no_grad()
def rollout(agent, env, domain, steps, rng):
    """Observations, actions, rewards, next observations, terminated, end of an episode: an array of each."""
    noise, rows = rng.standard_normal((steps, *env.action_space.shape), dtype=np.float32), []
    obs, _ = env.reset(seed=int(rng.integers(2**31)), options={"domain": domain})
    for t in range(steps):
        policy = agent.policy(obs)
        action = policy.mean.numpy() + policy.stddev.numpy() * noise[t]
        after, reward, terminated, truncated, _ = env.step(action.clip(env.action_space.low, env.action_space.high))
        end = terminated or truncated
        rows.append((np.float32(obs), action, reward, np.float32(after), terminated, end or t == steps - 1))
        obs = env.reset(options={"domain": domain})[0] if end else after
    return [np.array(column) for column in zip(*rows)]


@torch.no_grad()
def estimate(agent, obs, rewards, after, terminated, ends):
    """Advantages and targets V^targ by the present critic. A time limit is not a death: the future counts there."""
    values, futures = agent.value(obs).numpy(), agent.value(after).numpy() * ~terminated
    deltas, advantages = rewards / np.std(agent.sums) + GAMMA * futures - values, np.zeros(len(obs))
    for t in reversed(range(len(obs))):
        advantages[t] = deltas[t] + (0 if ends[t] else GAMMA * LAMBDA * advantages[t + 1])
    return advantages, advantages + values


def update(agent, peers, obs, actions, old, advantages, targets, alpha):
    """Lines 13 and 15: one step of Adam on Eq. (4) and on the critic's error."""
    policy, advantages = agent.policy(obs), torch.tensor(advantages, dtype=torch.float32)
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    ratio = (policy.log_prob(actions).sum(1) - old).exp()
    surrogate = torch.min(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages).mean()       # Eq. (2)
    with torch.no_grad():
        theirs = [peer.policy(obs) for peer in peers]
    distillation = sum(kl_divergence(policy, each).sum(1).mean() for each in theirs) / len(peers)        # Eq. (3)
    error = ((agent.value(obs) - torch.tensor(targets, dtype=torch.float32)) ** 2).mean()
    agent.optimiser.zero_grad()
    (-surrogate + alpha * distillation + error).backward()                                               # Eq. (4)
    nn.utils.clip_grad_norm_([*agent.actor.parameters(), agent.log_std], 0.5)
    nn.utils.clip_grad_norm_(agent.critic.parameters(), 0.5)
    agent.optimiser.step()


def train(env_id, eps_tr, iterations, steps, epochs, minibatches, learning_rate, alpha=1.0, number=2, seed=0):
    """Algorithm 1: `number` agents, `steps` of each in an iteration. The agents."""
    envs = [make_env(env_id) for _ in range(number)]
    torch.manual_seed(seed)
    agents = [Agent(envs[0].observation_space.shape[0], envs[0].action_space.shape[0], learning_rate) for _ in envs]
    for agent in agents:                                                                              # lines 2, 3
        agent.load_state_dict(agents[0].state_dict())
    for iteration in range(iterations):                                                               # line 4
        rngs, data, old = [np.random.default_rng([seed, i, iteration]) for i in range(number)], [], []
        for agent, env, rng in zip(agents, envs, rngs):                                               # line 5
            domain = sample_domain(eps_tr, rng)                                                       # line 6
            obs, actions, rewards, after, terminated, ends = rollout(agent, env, domain, steps, rng)  # line 7
            for t, reward in enumerate(rewards):
                agent.sums.append(reward + (GAMMA * agent.sums[-1] if t and not ends[t - 1] else 0))
            data.append((obs, torch.tensor(actions), rewards, after, terminated, ends))
            old.append(agent.policy(obs).log_prob(data[-1][1]).sum(1).detach())
            print(f"{rewards.sum() / ends.sum():8.1f}", end="\n" if agent is agents[-1] else "")
        for _ in range(epochs if iteration else 0):  # the first iteration only fills the statistics    line 9
            estimates = [estimate(agent, each[0], *each[2:]) for agent, each in zip(agents, data)]    # line 14
            orders = [np.split(rng.permutation(steps), minibatches) for rng in rngs]
            for m in range(minibatches):                                                              # line 10
                for i, agent in enumerate(agents):                                                    # lines 11, 12
                    rows, peers = orders[i][m], agents[:i] + agents[i + 1 :]
                    batch = [column[rows] for column in (*data[i][:2], old[i], *estimates[i])]
                    update(agent, peers, *batch, alpha)                                               # lines 13, 15
        for agent, each in zip(agents, data):  # only now: this data was collected, and used, with the old statistics
            agent.seen.append(each[0].astype(np.float64))
            seen = np.concatenate(agent.seen)
            agent.mean, agent.std = seen.mean(0), np.sqrt(seen.var(0) + 1e-8)
    return agents


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("mean reward of an episode, each peer's own, an iteration of 2 x 2048 steps in each line")
    train("Hopper-v4", 0.2, iterations=12, steps=2048, epochs=10, minibatches=32, learning_rate=1e-4)
