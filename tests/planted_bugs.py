"""Find the bug: twelve mistakes of the kind that real repositories have had, one at a time.

    python tests/planted_bugs.py              # lists the symptoms
    python tests/planted_bugs.py 4            # writes the scripts with bug number 4 into a new folder, bugs/4
    python tests/planted_bugs.py --reveal 4   # shows the place, and what there is to learn from it

A symptom is what you can observe in two minutes on two cores. Its numbers are of one machine; another's differ, often
by as much as another seed's.
"""

import argparse
import difflib
import shutil
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Bug(NamedTuple):
    """A mistake in one script: one or two lines. tests/test_planted_bugs.py sees `test` fail with it."""

    symptom: str
    commands: str  # that show it
    file: str
    old: str  # stands there once
    new: str
    test: str
    lesson: str


BUGS = [
    Bug(
        """An inverted pendulum that stands upright has the same future at every moment, so that the critic's error can
        fall to nearly nothing: to a value_loss of 0.00001 without the bug. Here it stays at about 0.08, and log_std
        stays at about 0 where it should fall below -1.""",
        "python baselines.py --algo ppo --env InvertedPendulum-v4 --total-steps 1e5",
        "baselines.py",
        "    deltas = rewards + gamma * next_values * ~terminated - values\n",
        "    deltas = rewards + gamma * next_values * ~ends - values\n",
        "test_baselines.py::test_a_time_limit_is_worth_the_future_and_a_death_nothing",
        """A time limit ends the recording, not the world. Counted as a death, it makes the value of one and the same
        state depend on the time that is left, which no observation shows.""",
    ),
    Bug(
        """The peers do not learn: after 200 000 steps both returns are still 14 to 19 (without the bug 710 and 810).
        The surrogate is 0 in every row of log.csv, and hardly any ratio is clipped. The critics do learn:
        explained_variance rises to 0.5.""",
        "python p2pdrl.py --env Hopper-v4 --total-steps 2e5",
        "p2pdrl.py",
        "    assert log_ratio.shape == advantages.shape\n    ratio = log_ratio.exp()\n",
        "    ratio = log_ratio.exp().unsqueeze(-1)\n",
        "test_p2pdrl.py::test_gradients_are_those_of_eq_4_and_of_the_critics_error",
        """(N, 1) times (N,) is (N, N) without an error: every action is paired with the advantage of every other one,
        and their mean is zero. Assert shapes where two vectors meet.""",
    ),
    Bug(
        """The returns look well. Yet the entropy grows from 4.3 to 6.3 (without the bug it falls to 3.9), and in the
        last rows of log.csv one agent's `distillation` is below 0, which no KL can be.""",
        "python p2pdrl.py --env Hopper-v4 --total-steps 1e5",
        "p2pdrl.py",
        "    terms = (2 * (log_std_p - log_std_q)).exp()",
        "    terms = (log_std_p - log_std_q).exp()",
        "test_p2pdrl.py::test_gaussian_kl",
        """A ratio of standard deviations where that of variances belongs. The formula is still 0 where the policies are
        equal, but this is no longer its minimum: both become wider, and it falls below 0.""",
    ),
    Bug(
        """An alpha of 10 should hold the peers close to each other: without the bug their KL, `distillation` in
        log.csv, is 0.0002. Here it grows to about 0.5, and returns and KL are those of alpha 0, digit by digit.""",
        "for a in 0 10; do python p2pdrl.py --env Hopper-v4 --total-steps 1e5 --alpha $a; done",
        "p2pdrl.py",
        "        teacher = tuple(each.detach() for each in teacher)\n",
        "        own = tuple(each.detach() for each in own)\n",
        "test_p2pdrl.py::test_gradients_are_those_of_eq_4_and_of_the_critics_error",
        """The wrong side is detached. The loss is computed, logged and plausible, and has no gradient by the parameters
        that it is meant for. A test of a loss looks at its gradient, too.""",
    ),
    Bug(
        """The run's table says about 1150 at eps_te = 0.2. The policies that are loaded from its folder fall after a
        second, with returns of 145 and 189 in such a domain (without the bug 1192 and 1166).""",
        """
        python p2pdrl.py --env Hopper-v4 --total-steps 2e5
        python p2pdrl.py --env Hopper-v4 --total-steps 2e5 --gif runs/p2pdrl-Hopper-v4-total_steps=200000-seed0""",
        "baselines.py",
        "            network.load_state_dict(state)\n",
        "            own = {name: state[name] for name, _ in network.named_parameters()}\n"
        "            network.load_state_dict(own, strict=False)\n",
        "test_p2pdrl.py::test_who_is_evaluated_and_kept",
        """Observation statistics are part of the policy, and no parameters. Whoever saves or loads parameters alone has
        another policy afterwards, and strict=False says nothing.""",
    ),
    Bug(
        """A link's radius of gyration, the root of inertia over mass, is a matter of its shape: it does not change when
        all masses grow by one factor. Here the two lines differ.""",
        """
        python - <<'END'
        from randomised_envs import *
        env = make_env("Walker2d-v4")
        for mass in (1.0, 1.5):
            env.reset(options={"domain": Domain(mass=mass)})
            print((env.model.body_inertia[1:, 1] / env.model.body_mass[1:]) ** 0.5)
        END""",
        "randomised_envs.py",
        "            model.body_inertia[:] = nominal.body_inertia * domain.mass\n",
        "",
        "test_randomised_envs.py::test_a_changed_mass_is_what_mujoco_compiles_with_that_mass",
        """Mass resists acceleration, inertia resists turning. Mass that is scaled alone makes a robot that no matter
        could build.""",
    ),
    Bug(
        """The robot's mass, divided by the factor of its domain, is always 23.68 kg. Here it is so at the first reset
        only.""",
        """
        python - <<'END'
        from randomised_envs import *
        env = make_env("Walker2d-v4", eps=0.5)
        for seed in range(10):
            domain = env.reset(seed=seed)[1]["domain"]
            print(domain.mass, env.model.body_mass.sum() / domain.mass)
        END""",
        "randomised_envs.py",
        "            model.body_mass[:] = nominal.body_mass * domain.mass\n"
        "            model.body_inertia[:] = nominal.body_inertia * domain.mass\n",
        "            model.body_mass[:] *= domain.mass\n            model.body_inertia[:] *= domain.mass\n",
        "test_randomised_envs.py::test_a_changed_mass_is_what_mujoco_compiles_with_that_mass",
        "A change that builds on the last one compounds from reset to reset. Start from a copy of the nominal model.",
    ),
    Bug(
        """The learner whose `value` is higher should not find its peer better in nearly all states. Compare `value`
        and `peer_better` of both agents in log.csv: here it does so from step 40000 to 56000, and the other one, whose
        value is lower, finds its peer better in none (without the bug the shares are 0.7 to 0.8, and 0.3 to 0.6).""",
        "python dpd.py --env HalfCheetah-v4 --total-steps 6e4 --evaluations 1",
        "dpd.py",
        "        return peer.critic(obs, peer.actor(obs)) - self.critic(obs, self.actor(obs))\n",
        "        return self.critic(obs, self.actor(obs)) - peer.critic(obs, peer.actor(obs))\n",
        "test_dpd.py::test_a_step_of_distillation_the_ordinary_way",
        """With the sign turned, each learner imitates its peer where the peer is worse. Nothing diverges, and the
        differences between seeds are large enough to hide it.""",
    ),
    Bug(
        """With --alpha 10 only some states count, as `effective` says, and with 0.1 all of them. So `distillation`, a
        mean with these weights, should differ: without the bug agent 1 has 0.0026 and 0.017 in its first row of
        log.csv. Here alpha changes `effective`, and hardly anything else in the first rows.""",
        """
        for alpha in 0.1 10; do
            python dpd.py --env HalfCheetah-v4 --total-steps 8e3 --warm-up 1000 --evaluations 1 --alpha $alpha
        done""",
        "dpd.py",
        "    return (weights * distances).sum()\n",
        "    return (weights[:, None] * distances).mean() * len(distances)\n",
        "test_dpd.py::test_a_step_of_distillation_the_ordinary_way",
        "(N, 1) times (N,): the mean over (N, N) is the mean weight times the mean distance, and the weights cancel.",
    ),
    Bug(
        """No density on (-1, 1)^3 has an entropy above that of the uniform one, 3 log 2 = 2.08 nats. Here log.csv has
        10 from the second row on (without the bug 1.9, and falling).""",
        "python baselines.py --algo sac --env Hopper-v4 --warm-up 1000 --total-steps 4000",
        "baselines.py",
        "    return u.tanh(), (log_normal - log_slope).sum(-1)\n",
        "    return u.tanh(), log_normal.sum(-1)\n",
        "test_baselines.py::test_squashed_actions_and_their_log_probabilities",
        """When a variable is changed, so is its density: the squash divides it by its slope. Without this the actor is
        paid for noise that the tanh swallows.""",
    ),
    Bug(
        """The critics promise more and more while the robot does worse: in the last row of log.csv actor_loss, which is
        minus the values but for the entropy, is -283, critic_loss 375, and the return 49. Without the bug they are
        -143, 51 and 252.""",
        "python baselines.py --algo sac --env Hopper-v4 --tau 0.05 --warm-up 1000 --total-steps 5000",
        "baselines.py",
        "    futures = target_critic(batch.next_obs, actor.action_scale * actions).min(0).values - alpha * log_probs\n",
        "    futures = target_critic(batch.next_obs, actor.action_scale * actions).max(0).values - alpha * log_probs\n",
        "test_baselines.py::test_a_sac_update_the_ordinary_way",
        """The actor seeks out the actions that a critic overrates. The smaller of two estimates keeps this in check;
        the larger one feeds it back into the targets.""",
    ),
    Bug(
        """All three agents make as many updates of their own. But the critics' Adam has counted 2200 steps for two of
        them, and 2000 for the one that taught. In log.csv the critic_loss of these two is a fifth above the
        teacher's in the last row; without the bug all are within a tenth.""",
        """
        python piekd_cikd.py --env Hopper-v4 --warm-up 1000 --interval 1000 --total-steps 3000 --distil-updates 200
        python - <<'END'
        import pathlib, torch
        checkpoint = torch.load(next(pathlib.Path("runs").glob("piekd*/checkpoint.pt")))
        for agent in ("agent0", "agent1", "agent2"):
            print(agent, checkpoint["parts"][agent]["critic_optimiser.steps"])
        END""",
        "piekd_cikd.py",
        "    critic_optimiser = Optimiser([student.critic], args.distil_lr, args)\n",
        "    critic_optimiser = student.critic_optimiser\n",
        "test_piekd_cikd.py::test_distillation_the_ordinary_way",
        """Adam's running means are state. After a phase they are those of another loss, when the agent goes on with its
        own; and this optimiser moves the target critic, too. What a phase needs is made for it, and forgotten.""",
    ),
]


def planted(bug: Bug) -> str:
    """The text of the bug's script with the bug in it. ValueError if the place is not there."""
    text = (ROOT / bug.file).read_text()
    if text.count(bug.old) != 1:
        raise ValueError(f"{bug.file} has been changed: take the changes back first (git checkout .)")
    return text.replace(bug.old, bug.new)


def plant(bug: Bug, folder: Path):
    """Write a copy of all scripts, with the bug, into a new folder."""
    text = planted(bug)
    folder.mkdir(parents=True)
    for script in ROOT.glob("*.py"):
        shutil.copy(script, folder)
    (folder / bug.file).write_text(text)


def wrapped(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 100)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}\n")
    numbers = {"type": int, "choices": range(1, len(BUGS) + 1), "metavar": "N"}
    parser.add_argument("number", nargs="?", help="write the scripts with this bug into bugs/N", **numbers)
    parser.add_argument("--reveal", help="show where this bug is", **numbers)
    args = parser.parse_args()
    number = args.reveal or args.number
    if number is None:
        for number, bug in enumerate(BUGS, 1):
            print(f"{number}. {wrapped(bug.symptom)}\n")
        return
    bug, folder = BUGS[number - 1], Path("bugs") / str(number)
    try:
        if args.reveal:
            texts = (ROOT / bug.file).read_text().splitlines(), planted(bug).splitlines()
            names = f"{bug.file}, right", f"{bug.file}, with bug {number}"
            print(*difflib.unified_diff(*texts, *names, lineterm=""), f"\n{wrapped(bug.lesson)}\n", sep="\n")
            print(f"To see a test find it:\n\ncp -r tests {folder} && python -m pytest {folder}/tests/{bug.test}")
        else:
            plant(bug, folder)
            print(f"{wrapped(bug.symptom)}\n\nTo see it:\n\ncd {folder}\n{textwrap.dedent(bug.commands).strip()}")
            print("\n(When it is mended, add --overwrite: a finished run is not repeated.)")
    except FileExistsError:
        parser.error(f"{folder} is there already: go on in it, or remove it")
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
