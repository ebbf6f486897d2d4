# SPDX-FileCopyrightText: 2026 the authors of this repository
# SPDX-License-Identifier: MIT
"""Randomised domains for Gymnasium's MuJoCo environments.

A *domain* is one version of the physics: how hard the wind blows, how strong gravity is, how much the
ground grips, how heavy the robot is, where it starts. Domain randomisation trains a policy in many of
them, so that it also works in one that it never saw. The distribution is Table 1 of

    Zhao and Hospedales, "Robust Domain Randomised Reinforcement Learning through Peer-to-Peer
    Distillation" (ACML 2021), appendix A.1

with one scalar eps in [0, 1] for its width: eps = 0 is the plain environment, bit for bit.

    wind      w ~ U(-5 eps, 5 eps)                          N, a constant force on the root along x
    gravity   g ~ U(g0 (1 - .25 eps), g0 (1 + .25 eps))
    friction  f ~ U(f0 (1 - .3 eps),  f0 (1 + .3 eps))
    mass      m ~ U(m0 (1 - .5 eps),  m0 (1 + .5 eps))      every link by the same factor
    position  x ~ U(x0 - eps, x0 + eps)                     m, the root's x

Try it (a few seconds; draws what each parameter does at the ends of its range):

    python randomised_envs.py --env Walker2d-v4 --eps 0.5

Use it elsewhere: copy this one file, it needs gymnasium, mujoco and numpy (matplotlib for the picture).

    env = make_env("Walker2d-v4", eps=0.5)                            # a new domain at every reset
    obs, info = env.reset(seed=0)                                     # info["domain"] says which
    obs, info = env.reset(options={"domain": Domain(gravity=1.2)})    # this domain, for one episode
    env = make_env("Walker2d-v4", domain=Domain(gravity=1.2))         # this domain, for ever

You should know
---------------
* The wind is a generalised force on the root's x coordinate, at the origin of the root's frame. MuJoCo's own
  `opt.wind` acts through the medium and does nothing here: density and viscosity are 0, except in Swimmer.
  A force in `xfrc_applied` would push as hard, at the root's centre of mass. But MuJoCo adds it to `cfrc_ext`,
  which Ant-v5, Humanoid and HumanoidStandup observe: the robot would sense the wind. (Reacher and Pusher,
  whose root has no joint along x, do take it through `xfrc_applied`.)
* Mass and inertia belong together. Scaling `body_mass` alone makes a robot that no matter could build,
  and what MuJoCo derives from them (subtree masses, inverse weights) must be recomputed.
* The friction of a contact is the larger of the two geoms' coefficients. Where the feet grip better than
  the floor (Hopper, Walker2d), changing the floor alone changes nothing. All geoms change.
* Humanoid and HumanoidStandup observe `cinert`, the inertia of their own links, and with it their mass. They
  are shown that of the nominal masses; otherwise the first thing that an agent sees would name its domain.
* Read literally, Table 1's initial position cannot change a return: a robot that walks or swims does not
  observe its x, nor do its dynamics depend on it. `init="joints"` is our alternative: every hinge joint starts
  with an offset of its own, U(-eps, eps) rad, clipped to its range. From eps = .2 on, some Hoppers start
  outside the range of angles in which they count as healthy.
"""

import argparse
import copy
import dataclasses
import math
import numbers
import os
import warnings
from concurrent.futures import ThreadPoolExecutor

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv

# Table 1: half the width of each uniform distribution at eps = 1, in the order and units of Domain.
RANGES = (5.0, 0.25, 0.3, 0.5, 1.0)


@dataclasses.dataclass(frozen=True)
class Domain:
    """One setting of the physics. `Domain()` is the nominal one.

    Raises ValueError for a value that no world could have.
    """

    wind: float = 0.0  # N, along the world's x axis
    gravity: float = 1.0  # factor of nominal
    friction: float = 1.0  # factor of nominal, sliding friction
    mass: float = 1.0  # factor of nominal, every link's mass and inertia
    position: float | tuple[float, ...] = 0.0  # m, offset of the root's x; a tuple: rad, one for each hinge joint

    def __post_init__(self):
        if not isinstance(self.position, (numbers.Real, tuple)):
            raise ValueError(f"position must be a number or a tuple of numbers: {self}")
        if not np.all(np.isfinite(np.hstack(dataclasses.astuple(self)))) or self.mass <= 0 or self.friction < 0:
            raise ValueError(f"values must be finite, mass positive and friction not negative: {self}")


def sample_domain(eps: float, rng: np.random.Generator, hinges: int | None = None, ranges=RANGES) -> Domain:
    """Draw a domain at level `eps`; ValueError unless 0 <= eps <= 1.

    hinges: None for an offset of the root's x; a number n for n independent offsets of hinge joints. The
    first four values are the same in both readings. ranges: half widths at eps = 1; Table 1's by default.
    """
    check_eps(eps)
    wind, gravity, friction, mass = rng.uniform(-eps, eps, 4) * ranges[:4]
    offsets = rng.uniform(-eps, eps, hinges) * ranges[4]
    position = float(offsets) if hinges is None else tuple(float(offset) for offset in offsets)
    return Domain(float(wind), float(1 + gravity), float(1 + friction), float(1 + mass), position)


def check_eps(eps):
    if not 0 <= eps <= 1:
        raise ValueError(f"eps must lie in [0, 1], but is {eps}")


class RandomisedEnv(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """Run a Gymnasium MuJoCo environment in a domain that each reset chooses.

    `reset(options={"domain": Domain(...)})`, or a dict of its fields, sets the domain until the next reset. Without the
    option it is the argument `domain`, if given, or else sampled at level `eps` (nominal at eps = 0) by a generator of
    the wrapper's own, which `reset(seed=...)` seeds. `info["domain"]`, in reset and step, is the domain in force.

    init: "root" or "joints", the reading of Table 1's initial position (see the top of this file).
    ranges: half the width of each distribution at eps = 1, in the order of Domain's fields; Table 1's by default.
    Raises ValueError for an environment that is not MuJoCo's, eps outside [0, 1], an unknown init or impossible
    ranges; `step` raises FloatingPointError where the environment gives a reward or observation that is not finite.
    If the root has no joint along x (Reacher, Pusher), the wind pushes the first moving link, and a number as
    `position` has no effect. Put wrappers that change observations around this one, not inside.
    """

    def __init__(self, env: gym.Env, eps: float = 0.0, init: str = "root", domain: Domain | None = None, ranges=RANGES):
        gym.utils.RecordConstructorArgs.__init__(self, eps=eps, init=init, domain=domain, ranges=ranges)
        gym.Wrapper.__init__(self, env)
        check_eps(eps)
        if init not in ("root", "joints"):
            raise ValueError(f"init must be 'root' or 'joints', but is {init!r}")
        if not isinstance(env.unwrapped, MujocoEnv):
            raise ValueError("not a MuJoCo environment: its physics cannot be randomised")
        Domain(*(1 - np.abs(ranges) * (0, 1, 1, 1, 0)))  # raises ValueError where a range reaches too far
        self.eps, self.init, self.ranges, self.fixed_domain, self.domain = eps, init, ranges, domain, Domain()
        self._rng, self._inner, self._tick = np.random.default_rng(), env.unwrapped, 0.0

        # Every change starts from these, so that nothing compounds from reset to reset.
        self._nominal, self._nominal_qpos = copy.copy(self.model), self._inner.init_qpos.copy()
        self._scratch = mujoco.MjData(self.model)
        self.hinges = np.flatnonzero(self.model.jnt_type == mujoco.mjtJoint.mjJNT_HINGE)
        self.root, self._root_x, self._root_sign = self._find_root()
        self._hide_mass()

    def __setstate__(self, state):
        """Restore a copy or a pickle, in the nominal domain: Gymnasium makes the inner environment anew."""
        self.__dict__.update(state)
        self._enter(Domain())
        self._blow()
        self._hide_mass()

    @property
    def model(self) -> mujoco.MjModel:
        return self._inner.model

    @property
    def data(self) -> mujoco.MjData:
        return self._inner.data

    def sample_domain(self, eps: float, rng: np.random.Generator) -> Domain:
        """A domain of level `eps`, with this environment's ranges and reading of the initial position."""
        return sample_domain(eps, rng, len(self.hinges) if self.init == "joints" else None, self.ranges)

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            # Not default_rng(seed): the environment draws its initial state from that very stream, and the
            # wind would be a function of the starting pose.
            self._rng = np.random.default_rng([seed, 1])
        options = dict(options or {})
        domain = options.pop("domain", self.fixed_domain)
        if domain is None:
            domain = self.sample_domain(self.eps, self._rng) if self.eps > 0 else Domain()
        self._enter(Domain(**domain) if isinstance(domain, dict) else domain)
        obs, info = self.env.reset(seed=seed, options=options or None)
        self._blow()  # after the reset, which clears all applied forces
        self._tick = 0.99 * self._inner.dt  # cached: `dt` is a slow property
        return obs, info | {"domain": self.domain}

    def step(self, action):
        due = self._inner.data.time + self._tick
        obs, reward, terminated, truncated, info = self.env.step(action)
        if self._inner.data.time < due:  # MuJoCo has reset it, and with it all forces
            warnings.warn("the simulation became unstable and began anew: try a shorter time step", stacklevel=2)
            self._blow()
        if not math.isfinite(reward + obs.dot(obs)):
            raise FloatingPointError(f"environment's reward {reward} or observation not finite: {self}, {self.domain}")
        info["domain"] = self.domain
        return obs, reward, bool(terminated), bool(truncated), info  # masks are made of them

    def _blow(self):
        """Apply the wind, a force that stays until a reset."""
        if self._root_x is not None:
            self.data.qfrc_applied[self.model.jnt_dofadr[self._root_x]] = self.domain.wind * self._root_sign
        else:
            self.data.xfrc_applied[self.root, 0] = self.domain.wind

    def _hide_mass(self):
        """The environment observes through our _get_obs from now on."""
        self._cinert = self.data.cinert, self.data.cinert.copy()
        if hasattr(self._inner, "_get_obs"):
            self._inner._get_obs = self._get_obs

    def _get_obs(self):
        """The environment's own observation, with `cinert` rescaled to the nominal masses."""
        env, (cinert, saved) = self._inner, self._cinert
        if self.domain.mass == 1.0:
            return type(env)._get_obs(env)
        saved[:] = cinert
        np.divide(cinert, self.domain.mass, out=cinert)
        obs = type(env)._get_obs(env)
        cinert[:] = saved
        return obs

    def _enter(self, domain):
        """Set gravity, friction, masses and the initial position, each as nominal value times or plus the domain's."""
        model, nominal = self.model, self._nominal
        if isinstance(domain.position, tuple) and len(domain.position) != len(self.hinges):
            raise ValueError(f"{len(self.hinges)} hinge joints need as many offsets, not {len(domain.position)}")
        model.opt.gravity[:] = nominal.opt.gravity * domain.gravity
        model.geom_friction[:, 0] = nominal.geom_friction[:, 0] * domain.friction
        model.pair_friction[:, :2] = nominal.pair_friction[:, :2] * domain.friction  # both sliding directions
        if not np.array_equal(model.body_mass, nominal.body_mass * domain.mass):
            model.body_mass[:] = nominal.body_mass * domain.mass
            model.body_inertia[:] = nominal.body_inertia * domain.mass
            # Subtree masses, inverse weights and the like follow. With data of its own: it overwrites qpos.
            mujoco.mj_setConst(model, self._scratch)
        self._inner.init_qpos[:] = self._initial_qpos(domain.position)
        self.domain = domain

    def _initial_qpos(self, position):
        """The pose around which the environment's own reset adds its noise."""
        model, qpos = self.model, self._nominal_qpos.copy()
        if isinstance(position, tuple):
            joints, offsets = self.hinges, np.array(position)
        elif self._root_x is not None:
            joints, offsets = np.array([self._root_x]), np.array([position * self._root_sign])
        else:
            return qpos
        address = model.jnt_qposadr[joints]
        low, high = np.where(model.jnt_limited[joints, None], model.jnt_range[joints], (-np.inf, np.inf)).T
        # A pose that starts outside its range (some models do) is not pulled in by an offset of zero.
        low, high = np.minimum(low, qpos[address]), np.maximum(high, qpos[address])
        qpos[address] = np.clip(qpos[address] + offsets, low, high)
        return qpos

    def _find_root(self):
        """The first moving body; its joint along the world's x (None if it has none) and that axis's sign."""
        model, data = self.model, self._scratch
        mujoco.mj_forward(model, data)
        root = int(model.jnt_bodyid[0])
        for joint in np.flatnonzero(model.jnt_bodyid == root):
            if model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_FREE:  # its first coordinate is the world's x
                return root, int(joint), 1.0
            if model.jnt_type[joint] != mujoco.mjtJoint.mjJNT_SLIDE:
                break  # it turns the axes of the joints that follow
            if abs(data.xaxis[joint, 0]) > 0.999:
                return root, int(joint), float(np.sign(data.xaxis[joint, 0]))
        return root, None, 1.0


def make_env(env_id: str, eps: float = 0.0, init: str = "root", domain=None, ranges=RANGES, **kwargs) -> RandomisedEnv:
    """`gymnasium.make`, time limit included, inside a RandomisedEnv. kwargs go to the environment.

    An environment without a time limit gets one of 1000 steps: its episodes, and so its test, might never end.
    Raises ValueError in one line for an unknown environment, one that is not MuJoCo's, kwargs that it does not
    take, a bad MJCF file, an actuator without limits, or arguments that RandomisedEnv does not take.
    """
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(_warn)
    try:
        with warnings.catch_warnings():
            # The papers' tasks are v2 to v4 and stay the default.
            warnings.filterwarnings("ignore", message=".*is out of date", category=DeprecationWarning)
            inner = gym.make(env_id, **kwargs)
        if inner.spec.max_episode_steps is None:
            warnings.warn(f"{env_id} has no time limit: its episodes end after 1000 steps here", stacklevel=2)
            inner = gym.wrappers.TimeLimit(inner, 1000)
        env = RandomisedEnv(inner, eps, init, domain, ranges)
        if renderer := env.unwrapped.mujoco_renderer:  # follows the robot, which would leave the picture otherwise
            follow = {"type": int(mujoco.mjtCamera.mjCAMERA_TRACKING), "trackbodyid": env.root}
            renderer.default_cam_config = (renderer.default_cam_config or {}) | follow
            renderer.camera_id = None  # which would set the camera free again
        for space in (env.action_space, env.observation_space):
            if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
                raise ValueError(f"actions and observations must be vectors, but one is of {space}")
        for i in np.flatnonzero(env.action_space.low == env.action_space.high):
            raise ValueError(f"actuator {env.model.actuator(i).name or i} cannot move: give it a ctrlrange in its file")
        if env.reset(options={"domain": Domain()})[0].shape != env.observation_space.shape:  # or fails itself
            raise ValueError("it observes more or less than its observation space says: a v5 may go with this file")
        return env
    except Exception as error:  # of whatever type: Gymnasium, MuJoCo and the environment each raise their own
        raise ValueError(f"cannot make {env_id}: {' '.join(str(error).split())}") from error
    finally:
        mujoco.set_mju_user_warning(before)


def _warn(text):
    if "settotalmass" not in text:  # of HalfCheetah's own file, for every environment made
        warnings.warn(text, stacklevel=2)


# ---------------------------------------------------------------------------------------------------------
# Testing a policy in held-out domains
# ---------------------------------------------------------------------------------------------------------

HELD_OUT = 2**32 - 1  # no training run is keyed by it: seeds are smaller
FRAMES_PER_SECOND, SECONDS = 15, 4  # of a film


def held_out_domains(env: RandomisedEnv, eps: float, number: int) -> list[Domain]:
    """The test domains of randomisation level eps, with the environment's ranges: always the same, whoever asks."""
    return [env.sample_domain(eps, np.random.default_rng([HELD_OUT, round(eps * 10_000), i])) for i in range(number)]


def episode_return(env: RandomisedEnv, policy, domain: Domain, seed: int, frames: list | None = None) -> float:
    """Undiscounted return of one episode of policy(obs) -> action, which is clipped to the action space.

    frames: gets pictures of the first seconds.
    """
    low, high = env.action_space.low, env.action_space.high
    obs, _ = env.reset(seed=seed, options={"domain": domain})
    total, over = 0.0, False
    while not over:
        if frames is not None and len(frames) < min(SECONDS, env.data.time + 1e-6) * FRAMES_PER_SECOND:
            frames.append(env.render())
        obs, reward, terminated, truncated, _ = env.step(np.minimum(np.maximum(policy(obs), low), high))
        total, over = total + float(reward), terminated or truncated
    return total


def episode_returns(envs: list[RandomisedEnv], jobs: list[tuple]) -> list[float]:
    """Return of one episode for each job (policy, domain, seed). Environments run in parallel and change no result."""
    number = len(envs)
    with ThreadPoolExecutor(number) as pool:
        parts = list(pool.map(lambda k: [episode_return(envs[k], *job) for job in jobs[k::number]], range(number)))
    return [parts[i % number][i // number] for i in range(len(jobs))]


def evaluate(envs: list[RandomisedEnv], policies: dict, eps_te: tuple[float, ...], number: int) -> list[dict]:
    """Run each policy of {agent: policy} for one episode in each of `number` held-out domains of each level.

    Returns a list of rows, each with the keys agent, eps_te, domain (its index) and return.
    """
    domains = {eps: held_out_domains(envs[0], eps, number) for eps in eps_te}
    cells = [(agent, eps, i) for agent in policies for eps in domains for i in range(number)]
    returns = episode_returns(envs, [(policies[agent], domains[eps][i], i) for agent, eps, i in cells])
    return [{"agent": k, "eps_te": eps, "domain": i, "return": value} for (k, eps, i), value in zip(cells, returns)]


def bootstrap(values, draws: int = 2000) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of values (n,)."""
    picks = np.random.default_rng(0).integers(len(values), size=(draws, len(values)))
    return tuple(np.percentile(np.asarray(values)[picks].mean(1), (2.5, 97.5)).tolist())


def print_table(rows):
    """Return by agent and level: mean over the held-out domains +- standard deviation. rows: those of `evaluate`."""
    returns = {}
    for row in rows:
        returns.setdefault(row["agent"], {}).setdefault(row["eps_te"], []).append(row["return"])
    print("return of the deterministic policy in held-out domains, mean +- standard deviation, by their level eps_te:")
    print("eps_te " + "".join(f"{eps:>16g}" for eps in returns[row["agent"]]))
    for agent, own in returns.items():
        cells = (f"{np.mean(each):>8.0f} +-{np.std(each):>5.0f}" for each in own.values())
        print(f"{agent_name(agent):7}" + "".join(cells))


def agent_name(agent: float) -> str:
    """In tables and figures; -1 is a central policy."""
    return "central" if agent == -1 else f"agent {agent:.0f}"


def save_gif(films: list[list[np.ndarray]], rows: list[str], path: str):
    """A row of films with each label; a film that ends early keeps its last frame."""
    from matplotlib.animation import ArtistAnimation, PillowWriter
    from matplotlib.figure import Figure

    length, columns = max(map(len, films)), len(films) // len(rows)
    figure = Figure(figsize=(1.15 * columns + 0.3, 1.15 * len(rows) + 0.2), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, label in zip(axes, rows):
        row[0].set_ylabel(label, fontsize=8)
    for i, axis in enumerate(axes.flat):
        axis.set(xticks=[], yticks=[], xlabel=f"domain {i % columns}" if i >= len(films) - columns else "")
    frames = [[axis.imshow(film[min(i, len(film) - 1)]) for axis, film in zip(axes.flat, films)] for i in range(length)]
    ArtistAnimation(figure, frames).save(path, PillowWriter(fps=FRAMES_PER_SECOND), dpi=100)
    print(f"moving picture: {path}")


# ---------------------------------------------------------------------------------------------------------
# The demonstration: what does randomisation do?
# ---------------------------------------------------------------------------------------------------------


def play(env: RandomisedEnv, actions: np.ndarray, domain: Domain, seed: int = 0) -> np.ndarray:
    """The root's x in m, shape (T + 1,), when `actions` (T, act) are played in `domain`."""
    env.reset(seed=seed, options={"domain": domain})
    path = [env.data.xpos[env.root, 0]]
    for action in actions:
        env.step(action)  # past a fall too: it is the physics that is to be seen
        path.append(env.data.xpos[env.root, 0])
    return np.array(path)


def draw(env: RandomisedEnv, eps: float, seed: int, path: str):
    """One panel for each parameter at the ends of its range, and one for domains sampled at random."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.8), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True)
    rng, steps, space = np.random.default_rng(seed), 100, env.action_space
    swing = np.sin(2 * np.pi * np.arange(steps)[:, None] / 25 + rng.uniform(0, 2 * np.pi, space.shape))
    low, high = np.maximum(space.low, -1e3), np.minimum(space.high, 1e3)  # some have no limits
    actions = (0.3 * swing * (high - low) / 2 + (high + low) / 2).astype(np.float32)
    time, nominal = np.arange(steps + 1) * env.unwrapped.dt, play(env, actions, Domain(), seed)
    units = "N", "x nominal", "x nominal", "x nominal", "m" if env.init == "root" else "rad"
    for axis, field, width, unit in zip(axes.flat, dataclasses.fields(Domain), env.ranges, units):
        for end, colour, style in ((-eps * width, "tab:blue", "--"), (eps * width, "tab:red", "-.")):
            value, joints = field.default + end, field.name == "position" and env.init == "joints"
            domain = Domain(**{field.name: (value,) * len(env.hinges) if joints else value})
            axis.plot(time, play(env, actions, domain, seed), style, color=colour, label=f"{value:.4g} {unit}")
        axis.set_title(field.name, pad=20)
    for i in range(20):
        sampled = play(env, actions, env.sample_domain(eps, rng), seed)
        axes[1, 2].plot(time, sampled, color="tab:grey", linewidth=0.8, label="" if i else "sampled")
    axes[1, 2].set_title("all five, 20 sampled domains", pad=20)
    for axis in axes.flat:
        axis.plot(time, nominal, color="black", label="nominal")
        # The legend stands between title and panel, where it covers no curve.
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 0.98), ncols=3, columnspacing=1, fontsize=8, frameon=False)
        axis.set(xlabel="time (s)", ylabel="root's x (m)")
    figure.suptitle(f"{env.spec.id}, eps = {eps:g}: the same actions in different domains")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    figure.savefig(path, dpi=130)


class Parser(argparse.ArgumentParser):
    """argparse, but an error is one line and exit status 2."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter, **kwargs)

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}\n")


def main():
    parser = Parser(description="Show what domain randomisation does to an environment.")
    parser.add_argument("--env", default="Walker2d-v4", help="a Gymnasium MuJoCo environment")
    parser.add_argument("--xml-file", help="your own MJCF file instead of the environment's (v5 environments)")
    parser.add_argument("--eps", type=float, default=0.5, help="randomisation level, in [0, 1]")
    parser.add_argument("--init", choices=("root", "joints"), default="root", help="reading of the initial position")
    parser.add_argument("--ranges", type=float, nargs=5, default=RANGES, help="half widths at eps 1, wind to position")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything drawn")
    args = parser.parse_args()
    try:
        extra = {"xml_file": os.path.abspath(args.xml_file)} if args.xml_file else {}
        path = f"runs/domains-{args.env.replace('/', '_').replace(':', '_')}-eps{args.eps:g}.png"
        draw(make_env(args.env, args.eps, args.init, ranges=args.ranges, **extra), args.eps, args.seed, path)
    except (FloatingPointError, OSError, ValueError) as error:
        parser.error(str(error))
    print(f"figure: {path}")


if __name__ == "__main__":
    main()
