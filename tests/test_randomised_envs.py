"""Tests of randomised_envs.py.

What a domain does is measured: accelerations from trajectories, friction at contacts. It is compared with a
computation of the test's own: Newton's second law, a model that MuJoCo compiled with other masses, a plain
environment from Gymnasium.
"""

import copy
import dataclasses
import itertools
import pickle
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from gymnasium.envs.mujoco.humanoid_v5 import HumanoidEnv
from gymnasium.utils.env_checker import check_env
from helpers import hopper, nod

from randomised_envs import (
    Domain, RandomisedEnv, bootstrap, episode_returns, evaluate, held_out_domains, main, make_env, print_table,
    sample_domain, save_gif,
)  # fmt: skip

ROBOTS = ("Walker2d", "Ant", "Humanoid", "Hopper", "HalfCheetah", "Swimmer")
ENVS = [f"{robot}-{version}" for robot in ROBOTS for version in ("v4", "v5")]
ENVS_IN_AIR = [env_id for env_id in ENVS if "Swimmer" not in env_id]
HUMANOIDS = ["Humanoid-v4", "Humanoid-v5", "HumanoidStandup-v4", "HumanoidStandup-v5"]
G = 9.81  # m/s2, in all of them

# Helpers -------------------------------------------------------------------------------------------------


def compiled(env, mass=1.0):
    """The environment's MJCF file, compiled anew with the mass and density of every geom times `mass`."""
    spec = mujoco.MjSpec.from_file(env.unwrapped.fullpath)
    if spec.compiler.settotalmass > 0:  # HalfCheetah: the compiler would scale everything back
        spec.compiler.settotalmass *= mass
    for geom in spec.geoms:
        geom.density *= mass
        geom.mass *= mass  # nan where the file gives none
    return spec.compile()


def model_bytes(env):
    buffer = np.zeros(mujoco.mj_sizeModel(env.unwrapped.model), np.uint8)
    mujoco.mj_saveModel(env.unwrapped.model, None, buffer)
    return buffer.tobytes()


def idle(env):
    return np.zeros(env.action_space.shape, np.float32)


def flying(env):
    """The present pose, at rest and 50 m higher."""
    model, qpos = env.unwrapped.model, env.unwrapped.data.qpos.copy()
    free = model.jnt_type[0] == mujoco.mjtJoint.mjJNT_FREE
    qpos[2 if free else np.flatnonzero(model.jnt_axis[:, 2])[0]] += 50
    env.unwrapped.set_state(qpos, np.zeros(model.nv))


def acceleration(env, steps=4):
    """Whole-body acceleration in m/s2, (steps, 3): second differences of the centre of mass in free flight."""
    flying(env)
    env.unwrapped.model.opt.timestep = 1e-4  # joints at their limits make a coarse integration inexact
    model = compiled(env)
    data = mujoco.MjData(model)
    path = []
    for _ in range(steps + 2):
        data.qpos[:] = env.unwrapped.data.qpos
        mujoco.mj_kinematics(model, data)
        path.append(np.average(data.xipos, axis=0, weights=model.body_mass))
        env.step(idle(env))
        assert not any(0 in geoms for geoms, _ in contacts(env))  # the floor
    return np.diff(path, n=2, axis=0) / env.unwrapped.dt**2


def contacts(env):
    """The pair of geoms and the friction coefficients (5,) of each present contact."""
    data = env.unwrapped.data
    return [(tuple(contact.geom), contact.friction.copy()) for contact in data.contact[: data.ncon]]


def rollout(env, steps, seed):
    """Everything that an agent sees in `steps` random actions, new episodes included."""
    rng = np.random.default_rng(seed)
    low, high = env.action_space.low, env.action_space.high
    seen = [env.reset(seed=seed)[0]]
    for _ in range(steps):
        obs, reward, terminated, truncated, _ = env.step(rng.uniform(low, high).astype(np.float32))
        seen.append(np.hstack((obs, reward, terminated, truncated)))
        if terminated or truncated:
            seen.append(env.reset()[0])
    return np.hstack(seen)


def own_hopper(tmp_path, *replacements):
    """Hopper-v5 with some text of its MJCF file replaced."""
    text = (Path(gym.__file__).parent / "envs/mujoco/assets/hopper.xml").read_text()
    for old, new in replacements:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (tmp_path / "own.xml").write_text(text)
    return make_env("Hopper-v5", xml_file=str(tmp_path / "own.xml"))


# The physics ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", ENVS_IN_AIR)
def test_a_robot_falls_with_g_times_the_factor_and_wind_pushes_by_force_over_mass(env_id):
    """In free flight the centre of mass accelerates by wind / mass along x and by gravity downwards."""
    env = make_env(env_id)
    mass = compiled(env).body_mass.sum()
    # The same wind again in mid-episode, where MuJoCo clears what was applied, and gone in the nominal domain.
    domains = Domain(gravity=0.75), Domain(gravity=1.25, mass=0.6), Domain(4.0), Domain(4.0), Domain(-3.0, mass=0.6)
    for domain in (*domains, Domain()):
        env.reset(seed=0, options={"domain": domain})
        expected = [domain.wind / (mass * domain.mass), 0, -G * domain.gravity]
        np.testing.assert_allclose(acceleration(env), [expected] * 4, atol=1e-3)


@pytest.mark.parametrize(
    "env_id", ["Swimmer-v4", "Swimmer-v5", "Humanoid-v5", "InvertedPendulum-v5", "Reacher-v5", "Pusher-v5"]
)
def test_wind_accelerates_the_joints_as_the_mass_matrix_says(env_id):
    """Where a fluid, a rail or an arm's bearing pushes back, Newton's law holds out of rest: M qacc = J' force."""
    env = make_env(env_id)
    model = compiled(env, 1.4)
    qpos = model.qpos0 + 0.2  # crooked, so that the joints are coupled
    measured = []
    for wind in (5.0, 0.0):
        env.reset(options={"domain": Domain(wind=wind, mass=1.4)})
        env.model.opt.timestep = 1e-6
        env.model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_CONSTRAINT  # no contacts, no limits
        env.unwrapped.set_state(qpos, np.zeros(model.nv))
        env.step(idle(env))
        measured.append(env.data.qvel / env.unwrapped.dt)
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_forward(model, data)
    to_point, expected = np.zeros((3, model.nv)), np.zeros((1, model.nv))
    # At the origin of the root's frame; where there is no joint along x, at the first link's centre.
    jacobian = mujoco.mj_jacBodyCom if env_id in ("Reacher-v5", "Pusher-v5") else mujoco.mj_jacBody
    jacobian(model, data, to_point, None, 1)
    mujoco.mj_solveM(model, data, expected, 5.0 * to_point[:1])
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(measured[0] - measured[1], expected[0], rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("robot", ROBOTS)
def test_a_changed_mass_is_what_mujoco_compiles_with_that_mass(robot):
    """Every array of the model, derived ones too, is the one of the same file compiled with other masses."""
    env = make_env(f"{robot}-v5")
    for factor in (0.5, 1.37):  # the second does not build on the first
        env.reset(options={"domain": Domain(mass=factor)})
    ours, theirs, nominal = env.model, compiled(env, 1.37), compiled(env)
    arrays = [name for name in dir(theirs) if isinstance(getattr(theirs, name), np.ndarray)]
    for name in arrays:  # not model.stat: MuJoCo leaves it, and it does not enter the simulation
        if getattr(theirs, name).dtype.kind == "f":
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), 1e-10, 1e-12, err_msg=name)
    changed = {name for name in arrays if not np.array_equal(getattr(theirs, name), getattr(nominal, name))}
    derived = {"body_subtreemass", "body_invweight0", "dof_invweight0", "dof_M0", "actuator_acc0"}
    assert changed >= derived | {"body_mass", "body_inertia"}


@pytest.mark.parametrize("env_id", ENVS_IN_AIR)
def test_every_contact_has_its_friction_times_the_factor(env_id):
    """Twenty states on the way to the floor and on it, the same contacts in a plain environment."""
    plain, env = gym.make(env_id), make_env(env_id)
    friction = plain.unwrapped.model.geom_friction[:, 0]
    gripping, compared = False, 0
    plain.reset(seed=0)
    for step in range(20):
        for _ in range(5):
            plain.step(np.full_like(idle(plain), 0.1))
        factor = (0.7, 1.3)[step % 2]
        env.reset(options={"domain": Domain(friction=factor)})
        env.unwrapped.set_state(plain.unwrapped.data.qpos, plain.unwrapped.data.qvel)
        mujoco.mj_forward(plain.unwrapped.model, plain.unwrapped.data)  # contacts at the present state
        assert len(contacts(plain)) == len(contacts(env))
        for (geoms, nominal), (same_geoms, ours) in zip(contacts(plain), contacts(env)):
            assert geoms == same_geoms
            np.testing.assert_allclose(ours, nominal * [factor, factor, 1, 1, 1], rtol=1e-12)
            gripping |= friction[geoms[0]] != friction[geoms[1]]
            compared += 1
    assert compared
    # Feet that grip better than the floor: there it is not the floor that counts.
    assert gripping or "Walker2d" not in env_id and "Hopper" not in env_id


def test_the_friction_of_an_explicit_contact_pair_is_scaled_too(tmp_path):
    """Both sliding coefficients that the pair names, and not the other three."""
    pair = '<contact><pair geom1="floor" geom2="foot_geom" condim="6" friction="1.5 1.2 .1 .05 .02"/></contact>'
    env = own_hopper(tmp_path, ("<actuator>", pair + "<actuator>"))
    for factor in (0.5, 1.3):
        env.reset(options={"domain": Domain(friction=factor)})
        qpos = env.unwrapped.init_qpos.copy()
        qpos[1] -= 0.05  # the foot into the floor
        env.unwrapped.set_state(qpos, env.unwrapped.init_qvel)
        assert contacts(env)
        for _, ours in contacts(env):
            np.testing.assert_allclose(ours, [1.5 * factor, 1.2 * factor, 0.1, 0.05, 0.02])


BACKPACK = '<body name="pack" pos="-.15 0 .1"><geom name="pack" type="sphere" size=".08" mass="2"/></body>'
ROOT = '<joint armature="0" axis="{}" damping="0" limited="false" name="{}" pos="0 0 {}" stiffness="0" type="{}"/>'
ROOT_X, ROOT_Y = ROOT.format("1 0 0", "rootx", "-1.25", "slide"), ROOT.format("0 1 0", "rooty", "0", "hinge")


ONES_OWN = {
    "extra body": [('<body name="thigh"', BACKPACK + '<body name="thigh"')],
    "mirrored root": [(ROOT_X, ROOT_X.replace("1 0 0", "-1 0 0"))],  # x counted backwards
    "turning root": [(ROOT_Y, ""), (ROOT_X, ROOT_Y + ROOT_X)],  # a root x that turns with the body
}


@pytest.mark.parametrize("kind", ONES_OWN)
def test_a_model_of_ones_own(tmp_path, kind):
    """Newton's law, and an offset along the world's x, hold for files that the environment was not made for."""
    env = own_hopper(tmp_path, *ONES_OWN[kind])
    mass = compiled(env).body_mass.sum()
    assert mass == pytest.approx(15.82 + 2 * (kind == "extra body"), abs=0.01)
    env.reset(seed=0, options={"domain": Domain(wind=3, mass=0.7)})
    expected = [[3 / (0.7 * mass), 0, -G]] * 4
    for lean in (0.0, 0.8):  # not upright either
        qpos = env.unwrapped.init_qpos.copy()
        qpos[env.model.joint("rooty").qposadr] = lean
        env.unwrapped.set_state(qpos, env.unwrapped.init_qvel)
        np.testing.assert_allclose(acceleration(env), expected, atol=1e-3)
    places = []
    for position in (0.4, 0.0):
        env.reset(seed=0, options={"domain": Domain(position=position)})
        places.append(env.data.xpos[1:].copy())
    moved = 0.0 if kind == "turning root" else 0.4  # where x turns, nothing is a place along the world's x
    np.testing.assert_allclose(places[0] - places[1], np.tile([moved, 0, 0], (len(places[0]), 1)), atol=1e-12)


@pytest.mark.parametrize("env_id", ENVS)
def test_init_joints_moves_every_hinge_by_its_own_offset_within_its_range(env_id):
    """One joint after the other: the start plus the offset, clipped to a range that has the start in it."""
    env = make_env(env_id, eps=1.0, init="joints")
    model, rng = compiled(env), np.random.default_rng(0)
    hinges = [joint for joint in range(model.njnt) if model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_HINGE]
    env.reset(seed=3, options={"domain": Domain()})
    nominal = env.data.qpos.copy()
    moved = clipped = 0
    for _ in range(5):
        offsets = rng.uniform(-2, 2, len(hinges))
        env.reset(seed=3, options={"domain": Domain(position=tuple(offsets))})
        expected = nominal.copy()
        for joint, offset in zip(hinges, offsets):
            start = model.qpos0[model.jnt_qposadr[joint]]
            low, high = model.jnt_range[joint] if model.jnt_limited[joint] else (-np.inf, np.inf)
            angle = max(min(start + offset, max(high, start)), min(low, start))  # some start out of range
            expected[model.jnt_qposadr[joint]] += angle - start
            moved, clipped = moved + (angle != start), clipped + (angle != start + offset)
        np.testing.assert_allclose(env.data.qpos, expected, atol=1e-12)
    assert moved and clipped

    offsets = np.array(env.reset()[1]["domain"].position)  # the ones it draws itself
    assert len(offsets) == len(hinges) and np.abs(offsets).max() > 0.3
    for number in {0, len(hinges) - 1, len(hinges) + 1}:
        with pytest.raises(ValueError, match=f"{len(hinges)} hinge"):
            env.reset(options={"domain": Domain(position=(0.1,) * number)})


# What the agent sees -------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", ENVS + HUMANOIDS[2:])
def test_the_first_observation_does_not_betray_the_domain(env_id):
    """It is the plain environment's, and every link is where it is there, but for the root's offset along x."""
    env, plain = make_env(env_id), gym.make(env_id)
    expected, _ = plain.reset(seed=4)
    one_by_one = Domain(wind=5), Domain(gravity=0.75), Domain(friction=0.7), Domain(mass=1.5), Domain(position=0.9)
    for domain in (*one_by_one, Domain(-5, 1.25, 1.3, 0.5, -0.9), Domain()):
        obs, _ = env.reset(seed=4, options={"domain": domain})
        np.testing.assert_allclose(obs, expected, rtol=1e-9, atol=1e-11)
        moved = env.data.xpos[1:] - plain.unwrapped.data.xpos[1:]
        np.testing.assert_allclose(moved, np.tile([domain.position, 0, 0], (len(moved), 1)), atol=1e-12)
        for _ in range(5):
            env.step(env.action_space.high)  # the next reset comes in mid-episode


def observing(base, kind):
    """A subclass whose _get_obs does more than look at the simulation."""

    class Observing(base):
        past, count = [], 0

        def _get_obs(self):
            obs = super()._get_obs()
            if kind == "noise":
                return obs + 0.001 * self.np_random.standard_normal(obs.shape)
            if kind == "counter":
                self.count += 1
                return np.append(obs, self.count)
            self.past = [*self.past, obs][-3:]
            return np.concatenate([self.past[0], self.past[-1]])

    env, size = Observing(), len(base()._get_obs())
    env.observation_space = gym.spaces.Box(-np.inf, np.inf, (size * (1 + (kind == "frames")) + (kind == "counter"),))
    return gym.wrappers.TimeLimit(env, 1000)


@pytest.mark.parametrize("base", [HopperEnv, HumanoidEnv])
@pytest.mark.parametrize("kind", ["noise", "counter", "frames"])
def test_whatever_else_an_observation_has_stays_as_it_is(base, kind):
    """Noise, a counter and a stack of frames are in a heavy robot's observation what they are in a plain one's, and its
    masses are hidden."""
    plain, env = observing(base, kind), RandomisedEnv(observing(base, kind))
    for mass in (2.0, 1.0, 0.6):
        expected, obs = plain.reset(seed=5)[0], env.reset(seed=5, options={"domain": Domain(mass=mass)})[0]
        assert obs.shape == env.observation_space.shape
        np.testing.assert_allclose(obs, expected, rtol=1e-9, atol=1e-11)
        inertia = env.data.cinert.copy()  # is put back
        env.unwrapped._get_obs(), plain.unwrapped._get_obs()
        np.testing.assert_array_equal(env.data.cinert, inertia)
    assert env.step(idle(env))[0].shape == obs.shape


@pytest.mark.parametrize("env_id", HUMANOIDS)
def test_humanoids_see_nominal_inertias_and_no_wind_in_flight(env_id):
    """`cinert` is computed from the nominal masses and inertias, link by link; `cfrc_ext` is zero."""
    env = make_env(env_id)
    env.reset(seed=0, options={"domain": Domain(wind=5, mass=1.5)})
    flying(env)
    env.model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_CONTACT  # nor do its links touch each other
    model = compiled(env)
    first = 0 if env_id.endswith("v4") else 1  # v4 shows the world too
    for _ in range(5):
        obs = env.step(np.full_like(idle(env), 0.2))[0]
        data, inertias = env.data, np.zeros((model.nbody, 10))
        for body in range(1, model.nbody):  # about the robot's centre of mass, by the parallel axis theorem
            axes, arm = data.ximat[body].reshape(3, 3), data.xipos[body] - data.subtree_com[1]
            inertia = axes @ np.diag(model.body_inertia[body]) @ axes.T
            inertia += model.body_mass[body] * (arm @ arm * np.eye(3) - np.outer(arm, arm))
            inertias[body] = [*inertia[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]], *model.body_mass[body] * arm,
                              model.body_mass[body]]  # fmt: skip
        inertias = inertias[first:].ravel()
        start = model.nq - 2 + model.nv
        np.testing.assert_allclose(obs[start : start + inertias.size], inertias, rtol=1e-9, atol=1e-10)
        assert not obs[-6 * (model.nbody - first) :].any()  # forces


@pytest.mark.parametrize("env_id", ENVS)
def test_eps_0_is_the_plain_environment_bit_for_bit(env_id):
    """The same seed and actions in both, past the time limit. So it is, and the model too, after a thousand domains."""
    plain, init = gym.make(env_id), "joints" if "v5" in env_id else "root"
    expected = rollout(plain, 1010, 1)
    assert np.array_equal(rollout(make_env(env_id), 1010, 1), expected)
    env = make_env(env_id, 1.0, init)
    env.reset(seed=0)
    for _ in range(1000):
        env.reset()
    assert model_bytes(env) != model_bytes(plain)
    env.eps = 0.0
    env.reset()
    assert model_bytes(env) == model_bytes(plain)
    again = rollout(env, 200, 1)
    assert np.array_equal(again, expected[: len(again)])


@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version", "ignore:.*A Box observation space")
@pytest.mark.parametrize(("env_id", "eps", "init"), [
    ("Walker2d-v4", 0.0, "root"), ("Humanoid-v5", 0.5, "root"), ("Ant-v5", 0.1, "joints"), ("Reacher-v5", 0.5, "root"),
])  # fmt: skip
def test_gymnasium_finds_nothing_wrong(env_id, eps, init):
    """Its own checks: spaces, seeds, what reset and step return, and that the wrapper's arguments are recorded."""
    check_env(make_env(env_id, eps, init), skip_render_check=True)


# Copies --------------------------------------------------------------------------------------------------


class PlainHopper(HopperEnv):
    """Copied as it stands, with the changed model inside: Gymnasium's own are made anew from their arguments."""

    __getstate__, __setstate__ = object.__getstate__, lambda self, state: self.__dict__.update(state)


def pickled(env):
    return pickle.loads(pickle.dumps(env))


@pytest.mark.parametrize("env_id", ["PlainHopper", *(
    each for each in gym.registry if "mujoco" in str(gym.spec(each).entry_point)
    and each.endswith(("v4", "v5")) and each != "Pusher-v4")])  # fmt: skip
@pytest.mark.parametrize("twin", [copy.deepcopy, pickled])
def test_a_copy_is_as_good_as_new(env_id, twin):
    """Taken in mid-episode it is in the nominal domain, and says so; after a reset it is in the one that is asked for,
    and the original goes on in its own."""
    env, new = (RandomisedEnv(PlainHopper()) if env_id == "PlainHopper" else make_env(env_id) for _ in range(2))
    env.reset(seed=1, options={"domain": Domain(2.0, 1.2, 0.8, 1.5, 0.3)})
    env.step(idle(env))
    there = model_bytes(env)
    other = twin(env)
    assert other.domain == Domain() and model_bytes(other) == model_bytes(new)
    assert not other.data.qfrc_applied.any() and not other.data.xfrc_applied.any()
    for domain in (Domain(2.0, 1.2, 0.8, 1.5, 0.3), Domain(mass=1.5), Domain()):
        obs = [each.reset(seed=2, options={"domain": domain})[0] for each in (other, new)]
        for _ in range(3):
            np.testing.assert_array_equal(*obs)
            obs = [each.step(0.5 * each.action_space.high)[0] for each in (other, new)]
        assert model_bytes(other) == model_bytes(new) and other.data.time == new.data.time
        np.testing.assert_array_equal(other.data.qfrc_applied, new.data.qfrc_applied)
    assert model_bytes(env) == there and env.domain.mass == 1.5
    env.step(idle(env))


@pytest.mark.filterwarnings("ignore:.*reset.options")
def test_in_a_vector_of_processes():
    """Each environment of an AsyncVectorEnv, made from copies, stays in its own domain over episodes."""
    domains = Domain(mass=1.5), Domain(gravity=0.8)
    envs = [make_env("Hopper-v5", domain=domain, max_episode_steps=4) for domain in domains]
    vector = gym.vector.AsyncVectorEnv([lambda env=env: copy.deepcopy(env) for env in envs])
    vector.reset(seed=[3, 4])
    for env, seed in zip(envs, (3, 4)):
        env.reset(seed=seed)
    for step in range(8):
        obs, *_ = vector.step(np.full((2, 3), 0.3, np.float32))
        expected = [env.step(np.full(3, 0.3, np.float32))[0] if step != 4 else env.reset()[0] for env in envs]
        np.testing.assert_allclose(obs, expected, atol=1e-12)
        assert vector.get_attr("domain") == domains
    vector.close()


# The distribution and its seeds --------------------------------------------------------------------------


def uniform(values, low, high):
    """Assert that values (n,) are as U(low, high) has them: bounds, mean, deciles, to five standard errors."""
    n = len(values)
    assert values.min() >= low and values.max() <= high
    unit = (values - low) / (high - low)
    assert abs(unit.mean() - 0.5) < 5 * np.sqrt(1 / 12 / n)
    levels = np.arange(1, 10) / 10
    assert np.all(np.abs(np.quantile(unit, levels) - levels) < 5 * np.sqrt(levels * (1 - levels) / n))


def independent(columns):
    """Assert that no two columns of (n, k) are correlated, to five standard errors."""
    correlation = np.corrcoef(columns, rowvar=False)
    assert np.abs(correlation - np.eye(len(correlation))).max() < 5 / np.sqrt(len(columns))


@pytest.mark.parametrize(("eps", "hinges"), [(0.1, None), (0.5, None), (1.0, None), (0.4, 6)])
def test_sampled_domains_have_the_ranges_of_table_1(eps, hinges):
    """Each value is uniform, and independent of the others; so is each joint's offset, where there are some."""
    rng = np.random.default_rng(0)
    values = np.array([np.hstack(dataclasses.astuple(sample_domain(eps, rng, hinges))) for _ in range(20_000)])
    assert values.shape == (20_000, 4 + (hinges or 1))
    uniform(values[:, 0], -5 * eps, 5 * eps)
    uniform(values[:, 1], 1 - 0.25 * eps, 1 + 0.25 * eps)
    uniform(values[:, 2], 1 - 0.3 * eps, 1 + 0.3 * eps)
    uniform(values[:, 3], 1 - 0.5 * eps, 1 + 0.5 * eps)
    for position in values[:, 4:].T:
        uniform(position, -eps, eps)
    independent(values)
    root = dataclasses.astuple(sample_domain(eps, np.random.default_rng(0)))
    assert tuple(values[0, :4]) == root[:4]  # whether joints have offsets changes nothing else


def test_an_environment_draws_domains_in_its_reading():
    """Of the level that is asked for, whatever its own is; Hopper has four hinge joints."""
    for init, hinges in (("root", None), ("joints", 4)):
        env = make_env("Hopper-v5", 0.9, init)
        for eps in (0.0, 0.4):
            drawn = env.sample_domain(eps, np.random.default_rng(3))
            assert drawn == sample_domain(eps, np.random.default_rng(3), hinges)


def test_eps_outside_0_to_1_raises():
    """Where a domain is drawn and where an environment is made."""
    for eps in (-0.01, 1.01, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="eps"):
            sample_domain(eps, np.random.default_rng(0))
        with pytest.raises(ValueError, match="eps"):
            RandomisedEnv(gym.make("Hopper-v5"), eps)


@pytest.mark.parametrize("values", [
    {"wind": float("nan")}, {"gravity": float("inf")}, {"friction": -0.1}, {"mass": 0.0}, {"mass": -1.0},
    {"position": float("nan")}, {"position": (0.1, float("nan"))}, {"position": [0.1, 0.2]}, {"position": np.zeros(3)},
])  # fmt: skip
def test_a_domain_that_cannot_be_raises(values):
    """Not finite, no mass, friction below zero, or an offset of another type."""
    with pytest.raises(ValueError):
        Domain(**values)


@pytest.mark.parametrize("init", ["root", "joints"])
def test_domains_are_a_function_of_the_seed(init):
    """Of nothing else, such as what came before."""
    one, other = (make_env("Hopper-v5", 0.5, init) for _ in range(2))
    other.reset(seed=9)
    other.step(idle(other))
    runs = []
    for env, seed in ((one, 3), (other, 3), (one, 3), (one, 4)):
        runs.append([env.reset(seed=seed)[1]["domain"] for seed in (seed, None, None, None, None)])
    assert runs[0] == runs[1] == runs[2]
    assert len(set(runs[0] + runs[3])) == 10  # a new one at every reset, and others for another seed


def test_domains_and_starting_poses_do_not_depend_on_each_other():
    """Over a thousand seeds no value of the domain correlates with any entry of a plain environment's state."""
    env, plain = make_env("Hopper-v5", 1.0), gym.make("Hopper-v5", exclude_current_positions_from_observation=False)
    values = []
    for seed in range(1000):
        domain = env.reset(seed=seed)[1]["domain"]
        values.append(np.hstack((dataclasses.astuple(domain), plain.reset(seed=seed)[0])))
        # Nor does drawing domains use up the environment's own random numbers.
        for _ in range(2 if seed < 5 else 0):
            np.testing.assert_allclose(env.reset()[0], plain.reset()[0][1:], rtol=1e-9, atol=1e-12)
    independent(np.array(values))


def test_info_names_the_domain_in_force():
    """After a reset and at each step, next to the environment's own information."""
    env = make_env("Walker2d-v5", 0.5)
    for options in (None, {"domain": Domain(wind=2, position=0.3)}, None, {}, {"domain": Domain()}):
        _, info = env.reset(options=options)
        assert info["domain"] == options["domain"] if options else info["domain"] != Domain()
        for _ in range(3):
            step_info = env.step(idle(env))[4]
            assert step_info["domain"] == info["domain"] == env.domain
    assert "x_position" in info and "x_position" in step_info


@pytest.mark.parametrize(("wind", "gear"), [(0.0, "2e5"), (3.0, "2e5"), (3.0, "2e6")])  # at once with the last
def test_an_unstable_simulation_keeps_its_wind_and_is_noticed(tmp_path, wind, gear):
    """MuJoCo resets it in mid-episode and clears all forces; from the next step on they are there again."""
    strong = [(f'gear="200.0" joint="{link}', f'gear="{gear}" joint="{link}') for link in ("thigh", "leg", "foot")]
    env = own_hopper(tmp_path, ('timestep="0.002"', 'timestep="0.01"'), *strong)
    env.reset(seed=0, options={"domain": Domain(wind=wind)})
    with pytest.warns(UserWarning, match="simulation became unstable"):
        for step in range(30):
            env.step(env.action_space.high * (-1) ** step)
            if env.data.warning.number.any():
                break
    assert step < 29 and env.data.qfrc_applied[0] == wind


class Odd(HopperEnv):
    """Hopper with a reward or observation of the test's own from step 3 of an episode on."""

    odd = {}

    def reset_model(self):
        self.count = 0
        return super().reset_model()

    def step(self, action):
        obs, reward, *rest = super().step(action)
        self.count += 1
        if self.count == 3:
            reward, obs = self.odd.get("reward", reward), obs + self.odd.get("obs", 0)
        return obs, reward, *rest


@pytest.mark.parametrize("odd", [{"reward": np.nan}, {"reward": -np.inf}, {"obs": np.nan}, {"obs": np.inf}])
def test_a_step_that_is_not_finite_raises(odd):
    """With the environment and the domain."""
    env = RandomisedEnv(gym.wrappers.TimeLimit(Odd(), 50))
    env.unwrapped.odd = odd
    env.reset(options={"domain": Domain(wind=2)})
    env.step(idle(env))
    env.step(idle(env))
    with pytest.raises(FloatingPointError, match=r"environment's reward.* not finite: .*Domain\(wind=2"):
        env.step(idle(env))


def test_an_environment_may_stay_in_one_domain():
    """Until another one is asked for, and in copies."""
    env = make_env("Hopper-v5", 0.5, domain=Domain(gravity=1.2))
    assert [each.reset()[1]["domain"] for each in (env, env, copy.deepcopy(env))] == [Domain(gravity=1.2)] * 3
    assert env.reset(options={"domain": Domain(mass=0.7)})[1]["domain"] == Domain(mass=0.7)
    assert env.reset(options={"domain": {"friction": 1.1}})[1]["domain"] == Domain(friction=1.1)
    assert env.reset()[1]["domain"] == Domain(gravity=1.2) and env.model.opt.gravity[2] == pytest.approx(-1.2 * G)


def test_ranges_of_ones_own():
    """In training and in held-out domains; the defaults are Table 1's; one that reaches too far is refused."""
    wide = make_env("Ant-v5", 1.0, ranges=(300.0, 0.1, 0.2, 0.9, 2.0))
    plain = make_env("Ant-v5", 1.0)
    for env, widths in ((wide, (300.0, 0.1, 0.2, 0.9, 2.0)), (plain, (5.0, 0.25, 0.3, 0.5, 1.0))):
        env.reset(seed=0)
        own = np.array([dataclasses.astuple(env.reset()[1]["domain"]) for _ in range(300)])
        tested = np.array([dataclasses.astuple(domain) for domain in held_out_domains(env, 1.0, 300)])
        for values in (own, tested):
            for column, start, width in zip(values.T, (0, 1, 1, 1, 0), widths):
                assert 0.97 * width < np.abs(column - start).max() <= width
    for ranges in ((5.0, 0.25, 0.3, 1.0, 1.0), (5.0, 0.25, 1.1, 0.5, 1.0)):
        with pytest.raises(ValueError, match="cannot make Hopper-v5: values must be finite, mass positive"):
            make_env("Hopper-v5", ranges=ranges)


def test_numbers_of_numpy_are_numbers():
    """In every field of a domain."""
    for field in dataclasses.fields(Domain):
        for kind in (np.float32, np.float64, np.int64, int):
            assert getattr(Domain(**{field.name: kind(1)}), field.name) == 1


# make_env ------------------------------------------------------------------------------------------------


def test_make_env_keeps_the_time_limit_and_passes_arguments_on(monkeypatch):
    """Of Gymnasium's own `make`; an environment without a limit gets one of 1000 steps, and it is said."""
    spec = gym.envs.registration.EnvSpec("Endless-v0", "gymnasium.envs.mujoco.half_cheetah_v5:HalfCheetahEnv")
    monkeypatch.setitem(gym.registry, "Endless-v0", spec)
    with pytest.warns(UserWarning, match="Endless-v0 has no time limit: its episodes end after 1000 steps here"):
        envs = {1000: make_env("Endless-v0")}
    envs |= {3: make_env("Endless-v0", max_episode_steps=3), 7: make_env("Reacher-v5", max_episode_steps=7)}
    for limit, env in (envs | {50: make_env("Reacher-v5", 0.5)}).items():
        env.reset(seed=0)
        assert [env.step(idle(env))[3] for _ in range(limit)] == [False] * (limit - 1) + [True]
    with_x = make_env("Walker2d-v4", exclude_current_positions_from_observation=False)
    assert with_x.observation_space.shape == (18,) == with_x.reset()[0].shape


@pytest.mark.parametrize(("env_id", "arguments", "message"), [
    ("Walker3d-v1", {}, "Walker3d"), ("Walker2d-v9", {}, "v9"), ("Walker2d-v3", {}, "gymnasium-robotics"),
    ("nowhere:Env-v0", {}, "nowhere"), ("CartPole-v1", {}, "CartPole-v1.* not a MuJoCo environment"),
    ("Walker2d-v5", {"xml_file": "/nowhere.xml"}, "nowhere.xml"), ("Walker2d-v5", {"xml_file": "./broken.xml"}, "XML"),
    ("Reacher-v5", {"xml_file": "hopper.xml"}, "fingertip"), ("Hopper-v5", {"init": "hands"}, "init"),
    ("Walker2d-v4", {"xml_file": "hopper.xml"}, "Walker2d-v4: .*unexpected keyword argument 'xml_file'"),
    ("Walker2d-v5", {"eps": 1.5}, "eps"), ("Ant-v4", {"xml_file": "half_cheetah.xml"}, "observes more"),
])  # fmt: skip
def test_make_env_says_in_one_line_what_is_wrong(tmp_path, env_id, arguments, message):
    """Whoever raised it: Gymnasium, MuJoCo or the environment."""
    (tmp_path / "broken.xml").write_text("<mujoco>\n<worldbody>\n<body")
    with pytest.raises(ValueError, match=message) as raised:
        make_env(env_id, **arguments)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 250


def test_an_actuator_that_cannot_move_is_named(tmp_path):
    """A file that gives it no control range makes a limp robot."""
    default = ('<motor ctrllimited="true" ctrlrange="-.4 .4"/>', "")
    limits = 'ctrllimited="true" ctrlrange="-1.0 1.0" gear="200.0" joint="leg_joint"'
    for name, said in ((' name="leg"', "leg"), ("", "1")):
        with pytest.raises(ValueError, match=f"actuator {said} cannot move: give it a ctrlrange"):
            own_hopper(tmp_path, default, (limits, f'gear="200.0" joint="leg_joint"{name}'))


class Unseen(HopperEnv):
    """Without _get_obs, and whether it has ended is a number."""

    _get_obs = property(lambda self: self._absent)  # an AttributeError

    def reset_model(self):
        self.set_state(self.init_qpos, self.init_qvel)
        return np.zeros(11)

    def step(self, action):
        self.do_simulation(action, self.frame_skip)
        return np.ones(11), 1.0, 0, 0, {}


def test_an_environment_that_observes_in_another_way_works():
    """It need not have _get_obs; ends become bool, so that masks can be made of them."""
    env = RandomisedEnv(Unseen())
    assert env.reset(options={"domain": Domain(mass=2)})[0].sum() == 0 and env.step(idle(env))[0].sum() == 11
    assert env.step(idle(env))[2] is env.step(idle(env))[3] is False


@pytest.mark.parametrize("space", [
    gym.spaces.Box(-1, 1, (2, 3)), gym.spaces.Discrete(4), gym.spaces.Dict({"joints": gym.spaces.Box(-1, 1, (2,))}),
])  # fmt: skip
@pytest.mark.parametrize("which", ["observation_space", "action_space"])
def test_spaces_must_be_vectors(monkeypatch, space, which):
    """Of observations and of actions; make_env refuses others in one line."""

    def make():
        env = gym.make("Hopper-v5").unwrapped
        setattr(env, which, space)
        return env

    monkeypatch.setitem(gym.registry, "Odd-v0", gym.envs.registration.EnvSpec("Odd-v0", make))
    with pytest.raises(ValueError, match="cannot make Odd-v0: actions and observations must be vectors") as raised:
        make_env("Odd-v0")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("env_id", ["Reacher-v5", "Pusher-v5", "InvertedPendulum-v5", "InvertedDoublePendulum-v5"])
@pytest.mark.parametrize("init", ["root", "joints"])
def test_other_environments_work(env_id, init):
    """A cart is offset up to the end of its rail; an arm has no root x, and starts as in a plain environment."""
    env, plain = make_env(env_id, 1.0, init), gym.make(env_id)
    assert np.isfinite(rollout(env, 120, 0)).all()
    plain.reset(seed=1)
    for position in (1.5, -1.5):
        env.reset(seed=1, options={"domain": Domain(position=position)})
        if "Pendulum" in env_id:
            rail = compiled(env).jnt_range[0, 1]
            expected = np.clip(position, -rail, rail) + plain.unwrapped.init_qpos[0]
            assert env.data.qpos[0] == pytest.approx(expected, abs=0.11)
        else:
            np.testing.assert_array_equal(env.data.qpos, plain.unwrapped.data.qpos)


def test_make_env_is_quiet(capfd):
    """Neither Gymnasium about its v4 nor MuJoCo about HalfCheetah's file says anything; other warnings are heard."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        make_env("HalfCheetah-v4")
        assert not heard and capfd.readouterr() == ("", "")
        gym.make("HalfCheetah-v4")
    assert len(heard) == 1 and "settotalmass" in capfd.readouterr().err  # there is something to quiet, and not for good


# Testing a policy in held-out domains --------------------------------------------------------------------


def test_held_out_domains_are_always_the_same():
    """A longer list only continues; no draw comes twice, not even scaled to another level, nor in training."""
    env, joints, other = make_env("Hopper-v5"), make_env("Hopper-v5", init="joints"), make_env("Ant-v5", 0.3)
    assert held_out_domains(env, 0.5, 3) == held_out_domains(other, 0.5, 5)[:3]
    assert held_out_domains(env, 0.0, 2) == [Domain(), Domain()]
    assert len(held_out_domains(joints, 0.5, 1)[0].position) == 4
    winds = [domain.wind / eps for eps in (0.2, 0.4, 1.0) for domain in held_out_domains(env, eps, 200)]
    assert len(np.unique(np.round(winds, 9))) == 600
    for seed in (0, 1, 2**32 - 2):
        assert sample_domain(0.2, np.random.default_rng([seed, 2000, 0])) != held_out_domains(env, 0.2, 1)[0]


def test_evaluate_is_a_plain_loop():
    """In every held-out domain clipped actions until death or time limit; one environment says the same as three."""
    policies, expected, kinds = {0: nod, -1: lambda obs: np.zeros(3)}, [], set()
    for agent, eps, i in itertools.product(policies, (0.0, 0.5), range(3)):
        env = hopper(20)
        obs, _ = env.reset(seed=i, options={"domain": held_out_domains(env, eps, 3)[i]})
        total, died, out_of_time = 0.0, False, False
        while not (died or out_of_time):
            obs, reward, died, out_of_time, _ = env.step(np.clip(policies[agent](obs), -1, 1))
            total += reward
        kinds.add("death" if died else "limit")
        expected.append({"agent": agent, "eps_te": eps, "domain": i, "return": pytest.approx(total, rel=1e-9)})
    assert kinds == {"death", "limit"}
    for number in (1, 3):
        assert evaluate([hopper(20) for _ in range(number)], policies, (0.0, 0.5), 3) == expected
    with pytest.raises(ZeroDivisionError):  # of a thread
        episode_returns([hopper(8), hopper(8)], [(lambda obs: 1 / 0, Domain(), 0)] * 2)


def test_bootstrap_covers_the_true_mean_nineteen_times_in_twenty():
    """Of 300 samples of 30 numbers with mean 1."""
    rng = np.random.default_rng(0)
    inside = [low <= 1 <= high for low, high in (bootstrap(rng.normal(1, 1, 30)) for _ in range(300))]
    assert 0.89 < np.mean(inside) < 0.985


def test_the_table_of_returns_by_hand(capsys):
    """Mean and standard deviation over domains, by agent and level, from dictionaries or a structured array."""
    returns = {(-1, 0): (10, 30), (-1, 0.4): (-7, -7), (2, 0): (1000, 1002), (2, 0.4): (0, 12)}
    rows = [(*place, value) for place, values in returns.items() for value in values]
    columns = "agent", "eps_te", "return"
    for table in ([dict(zip(columns, row)) for row in rows], np.array(rows, [(name, float) for name in columns])):
        print_table(table)
        *_, levels, central, agent = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert levels == ["eps_te", "0", "0.4"] and central == ["central", "20", "+-", "10", "-7", "+-", "0"]
        assert agent == ["agent", "2", "1001", "+-", "1", "6", "+-", "6"]


def test_a_moving_picture_has_a_row_for_each_label(tmp_path, capsys):
    """Two rows of two films, each of a colour of its own; one that ends early keeps its last frame."""
    from matplotlib.animation import Image  # Pillow's

    colours = np.array([[[250, 0, 0], [0, 250, 0]], [[0, 0, 250], [250, 250, 0]]])
    lengths = [[3, 1], [3, 2]]
    films = []
    for colour, length in zip(colours.reshape(4, 3), np.ravel(lengths)):
        films.append([np.full((20, 20, 3), colour * (i + 1) // 3, np.uint8) for i in range(length)])
    save_gif(films, ["upper", "lower"], str(tmp_path / "a.gif"))
    assert capsys.readouterr().out == f"moving picture: {tmp_path / 'a.gif'}\n"
    with Image.open(tmp_path / "a.gif") as picture:
        frames = [picture.seek(i) or np.array(picture.convert("RGB"), int) for i in range(picture.n_frames)]
    assert len(frames) == 3
    height, width = frames[0].shape[:2]
    for i, frame in enumerate(frames):
        for row, column in np.ndindex(2, 2):
            shown = frame[(2 * row + 1) * height // 4, (2 * column + 1) * width // 4]
            expected = colours[row, column] * min(i + 1, lengths[row][column]) // 3
            assert np.abs(shown - expected).max() <= 8, (i, row, column)


# The command line ----------------------------------------------------------------------------------------


class Free(HopperEnv):
    """Actions without limits."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.action_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)


@pytest.mark.parametrize(("options", "name"), [
    ("--env Walker2d-v4 --eps 0.5", "Walker2d-v4"), ("--env my/Free-v0 --ranges 9 .2 .2 .2 .1", "my_Free-v0"),
])  # fmt: skip
def test_the_program_draws_what_randomisation_does(tmp_path, monkeypatch, capfd, options, name):
    """The figure has curves of both ends of a range, also for another package's environment with unlimited actions."""
    from matplotlib.image import imread

    spec = gym.envs.registration.EnvSpec("my/Free-v0", Free, max_episode_steps=100)
    monkeypatch.setitem(gym.registry, "my/Free-v0", spec)
    monkeypatch.setattr(sys, "argv", ["randomised_envs.py", *options.split()])
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        main()
    assert capfd.readouterr() == (f"figure: runs/domains-{name}-eps0.5.png\n", "")
    image = imread(tmp_path / f"runs/domains-{name}-eps0.5.png")[..., :3]
    for colour in ((0.122, 0.467, 0.706), (0.839, 0.153, 0.157)):
        assert np.all(np.abs(image - colour) < 0.02, axis=2).sum() > 1000


def test_a_step_before_the_first_reset_is_refused_by_gymnasium():
    with pytest.raises(gym.error.ResetNeeded):
        RandomisedEnv(gym.make("Hopper-v5")).step(np.zeros(3, np.float32))
