"""Tests through the real command line: learning, the same run twice, kill and resume, bad input, figures."""

import csv
import json
import os
import random
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import baselines  # noqa: E402
import dpd  # noqa: E402
import p2pdrl  # noqa: E402
import piekd_cikd  # noqa: E402

# Half a minute of work is enough to see a run through all that it does.
TINY = (
    "--env Hopper-v4 --steps-per-iteration 256 --minibatches 4 --epochs 4 --total-steps 2560 --eval-domains 2 "
    "--eps-te 0 0.5 --evaluations 2 --checkpoint-every 2 --no-compile"
).split()
# DDPG writes a row of its log for every 2000 steps of a learner.
TINY_DDPG = (  # its exploration begins after 1000 steps
    "--env Hopper-v4 --updates 2 --total-steps 8000 --warm-up 1000 --eval-domains 1 --eps-te 0 --evaluations 2 --no-compile"
).split()
# SAC writes a row for every 1000 steps; here it learns from step 900 on.
TINY_SAC = (
    "--env Hopper-v4 --total-steps 2000 --warm-up 900 --batch-size 8 --buffer-size 1500 --eval-domains 1 --eps-te 0 0.5 "
    "--checkpoint-every 1 --threads 1 --no-compile"
).split()
TINY_ENSEMBLE = [*TINY_SAC, *"--ensemble-size 2 --interval 60 --distill-updates 3 --evaluate-every 1000".split()]
SAC_COMMANDS = {"sac": ["baselines.py", "--algo", "sac", *TINY_SAC], "piekd": ["piekd_cikd.py", *TINY_ENSEMBLE]}


def start(script, *arguments, folder):
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(script, *arguments, folder, status=0):
    """Run a command in `folder`; its stdout and stderr. Fails unless the exit status is `status`."""
    process = start(script, *arguments, folder=folder)
    out, err = process.communicate(timeout=300)
    assert process.returncode == status, (arguments, out, err)
    return out, err


def only_run(folder, root="runs"):
    (path,) = [config.parent for config in (Path(folder) / root).glob("*/config.json")]
    return path


def to_bytes(value):
    if isinstance(value, torch.Tensor):
        return value.numpy().tobytes()
    if isinstance(value, dict):
        return {name: to_bytes(part) for name, part in value.items()}
    return [to_bytes(part) for part in value] if isinstance(value, list) else value


def results(path):
    """Everything that must be equal in two equal runs: log.csv without its clock, other tables, and the weights as bytes."""
    with open(path / "log.csv", newline="") as file:
        log = [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]
    state = torch.load(path / "checkpoint.pt", weights_only=True)["state"]
    tables = [(path / name).read_text() for name in ("eval.csv", "distillation.csv") if (path / name).exists()]
    return log, "".join(tables), to_bytes(state)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A finished run of P2PDRL, which several tests look at."""
    folder = tmp_path_factory.mktemp("reference")
    out, _ = run("p2pdrl.py", *TINY, folder=folder)
    return only_run(folder), out


# A run, from start to finish ---------------------------------------------------------------------------------


def check_finished_run(path, out, agents, evaluations):
    log, evaluation = baselines.read_csv(path / "log.csv"), baselines.read_csv(path / "eval.csv")
    assert list(np.unique(log["step"])) == list(range(256, 2561, 256))
    assert len(log["step"]) == 10 * agents
    assert len(evaluation["return"]) == evaluations * agents * 2 * 2  # strengths, domains
    log.pop("gradient_variance", None)  # not asked for
    assert all(np.isfinite(column).all() for table in (log, evaluation) for column in table.values())
    assert (path / "figure.png").stat().st_size > 20_000
    settings = json.loads((path / "config.json").read_text())
    assert settings["settings"]["steps_per_iteration"] == 256 and settings["versions"]["torch"] == torch.__version__
    for agent in range(agents):
        assert f"agent {agent} " in out
    assert "2,560 of 2,560 steps" in out


def weights_moved(path, first, initial):
    """Largest change of each parameter of the first layer to the head since initialisation."""
    state = torch.load(path / "checkpoint.pt", weights_only=True)["state"][first]
    return {name: (state[name] - value).abs().max().item() for name, value in initial.named_parameters()}


def test_p2pdrl_learns_and_reports(reference):
    path, out = reference
    check_finished_run(path, out, agents=2, evaluations=2)
    torch.manual_seed(0)
    initial = p2pdrl.GaussianActor(11, 3)
    for actor in ("actor0", "actor1"):
        moved = weights_moved(path, actor, initial)
        assert all(1e-4 < change < 1 for change in moved.values()), moved
    log = baselines.read_csv(path / "log.csv")
    assert log["distillation"][-1] > 1e-6  # the peers differ, and are told so


@pytest.mark.parametrize("script, method", [("p2pdrl.py", "ppo"), ("baselines.py", "ppo")])
def test_ppo_learns_and_reports(tmp_path, script, method):
    choice = ["--method", method] if script == "p2pdrl.py" else ["--algo", method]
    out, _ = run(script, *TINY, *choice, folder=tmp_path)
    check_finished_run(only_run(tmp_path), out, agents=1, evaluations=2)
    torch.manual_seed(0)
    actor = "actor0" if script == "p2pdrl.py" else "actor"
    moved = weights_moved(only_run(tmp_path), actor, p2pdrl.GaussianActor(11, 3))
    assert all(1e-4 < change < 1 for change in moved.values()), moved


@pytest.mark.parametrize("method", ["distributed-ppo", "self-kl", "distral", "dnc"])
def test_the_other_methods_learn_and_report(tmp_path, method):
    """Every weight of every learner and of the centre moves; nothing in the log but the variance is not a number."""
    reset = ["--reset-every", 3] if method == "dnc" else []
    out, _ = run("p2pdrl.py", *TINY, "--method", method, "--total-steps", 1024, *reset, folder=tmp_path)
    path, centre = only_run(tmp_path), method in ("distral", "dnc")
    log, evaluation = baselines.read_csv(path / "log.csv"), baselines.read_csv(path / "eval.csv")
    assert set(log["agent"]) == ({0, 1} if centre else {0}) and len(log["step"]) == (8 if centre else 4)
    assert set(evaluation["agent"]) == ({baselines.CENTRE} if centre else {0}) and len(evaluation["return"]) == 2 * 2 * 2
    assert ("\ncentre " in out) == centre and ("\nagent 0" in out) == (not centre)
    assert np.isnan(log.pop("gradient_variance")).all()
    assert all(np.isfinite(column).all() for table in (log, evaluation) for column in table.values())
    assert (log["distillation"][-1] > 1e-7) == (method != "distributed-ppo")
    assert (path / "figure.png").stat().st_size > 20_000
    torch.manual_seed(0)
    initial = p2pdrl.GaussianActor(11, 3)
    for actor in ("actor0", "actor1", "centre") if centre else ("actor0",):
        moved = weights_moved(path, actor, initial)
        assert all(1e-5 < change < 1 for change in moved.values()), (actor, moved)
    assert p2pdrl.steps_of(path) == [256, 512, 1024]


def check_off_policy_run(path, out, total, interval, learners, initial):
    """Rows of both tables, how many steps there were, whose weights moved, and that the buffers' files are gone."""
    log, evaluation = baselines.read_csv(path / "log.csv"), baselines.read_csv(path / "eval.csv")
    assert list(np.unique(log["step"])) == list(range(interval * learners, total + 1, interval * learners))
    assert len(log["step"]) * interval == total and set(log["agent"]) == set(evaluation["agent"]) == set(range(learners))
    assert set(evaluation["step"]) == {total // 2 // (interval * learners) * interval * learners, total}
    assert all(np.isfinite(column).all() for table in (log, evaluation) for column in table.values())
    assert f"{total:,} of {total:,} steps" in out and (path / "figure.png").stat().st_size > 20_000
    state = torch.load(path / "checkpoint.pt", weights_only=True)["state"]
    assert sum(part["norm.count"].item() for name, part in state.items() if re.fullmatch(r"actor\d?", name)) == total
    for name, network in initial.items():
        moved = weights_moved(path, name, network)
        assert all(1e-5 < change < 1 for change in moved.values()), (name, moved)
    assert not list(path.glob("buffer*"))
    return log, state


def test_ddpg_learns_and_reports(tmp_path):
    """Every weight of both networks and of their targets moves; all steps are taken and counted."""
    out, _ = run("baselines.py", "--algo", "ddpg", *TINY_DDPG, folder=tmp_path)
    torch.manual_seed(0)
    initial = baselines.DDPGLearner(11, np.ones(3, np.float32), baselines.Args()).parts()
    networks = {name: part for name, part in initial.items() if not name.endswith("adam")}
    _, state = check_off_policy_run(only_run(tmp_path), out, 8000, 2000, 1, networks)
    assert state["actor_adam"]["steps"] == state["critic_adam"]["steps"] == 2 * (80 - 10)  # cycles, without those of the warm-up


@pytest.mark.parametrize("base", ["ddpg", "ppo"])
@pytest.mark.parametrize("method", ["dpd", "vanilla"])
def test_dual_policy_distillation_learns_and_reports(tmp_path, base, method):
    """As many steps in all, whether two learners take them or one; only two teach each other, once for each update."""
    tiny, total, interval = (TINY_DDPG, 8000, 2000) if base == "ddpg" else (TINY, 2048, 256)
    out, _ = run("dpd.py", *tiny, "--total-steps", total, "--base", base, "--method", method, folder=tmp_path)
    path, learners = only_run(tmp_path), 2 if method == "dpd" else 1
    torch.manual_seed(0)
    initial = {}
    for i in range(learners):
        args = dpd.Args()
        made = dpd.DDPGLearner(11, np.ones(3, np.float32), args) if base == "ddpg" else dpd.PPOLearner(11, 3, args)
        parts = made.parts().items()
        initial |= {f"{name}{i}": part for name, part in parts if not name.endswith(("adam", "reward_scale"))}
    log, state = check_off_policy_run(path, out, total, interval, learners, initial)
    iterations = total // learners // interval
    # DDPG's cycles of the warm-up have none, nor has PPO's first iteration.
    updates = 2 * (20 * iterations - 10) if base == "ddpg" else 4 * 4 * (iterations - 1)
    for i in range(learners):
        assert state[f"actor_adam{i}" if base == "ddpg" else f"adam{i}"]["steps"] == updates
        assert state[f"distillation_adam{i}"]["steps"] == (updates if method == "dpd" else 0)
    learning = log["step"] > (interval * learners if base == "ppo" else 0)
    if method == "dpd":
        assert (log["distillation"][learning] > 1e-9).all() and 0 < log["peer_better"][learning].mean() < 1
        assert (0.02 < log["effective"][learning]).all() and (log["effective"][learning] <= 1 + 1e-6).all()
        first, second = (state[f"actor{i}"]["net.0.weight"] for i in (0, 1))
        assert (first - second).abs().max() > 1e-2  # different from the beginning
    else:
        assert not log["distillation"].any() and not log["peer_better"].any()
    assert dpd.steps_of(path) == [total // 2, total]


@pytest.fixture(scope="module")
def sac_runs(tmp_path_factory):
    """A finished run of SAC, and one of PIEKD; what each printed."""
    folder, outs = tmp_path_factory.mktemp("sac"), {}
    for name, command in SAC_COMMANDS.items():
        outs[name], _ = run(*command, "--runs", name, folder=folder)
    return folder, outs


def check_sac_run(path, out, agents, total=2000):
    """Rows of both tables, updates of each agent for each step after the warm-up, and that all weights moved."""
    log, evaluation = baselines.read_csv(path / "log.csv"), baselines.read_csv(path / "eval.csv")
    assert log["step"].tolist() == [step for step in range(1000, total + 1, 1000) for _ in range(agents)]
    assert log["agent"].tolist() == list(range(agents)) * (total // 1000)
    assert set(evaluation["agent"]) == set(range(agents)) and evaluation["step"].max() == total
    assert len(evaluation["return"]) == len(set(evaluation["step"])) * agents * 2
    assert all(np.isfinite(column).all() for table in (log, evaluation) for column in table.values())
    assert f"{total:,} of {total:,} steps" in out and (path / "figure.png").stat().st_size > 20_000
    state = torch.load(path / "checkpoint.pt", weights_only=True)["state"]
    torch.manual_seed(0)
    for k in range(agents):
        made = piekd_cikd.SACLearner(11, np.ones(3, np.float32), piekd_cikd.Args())
        for name, part in made.parts().items():
            name += "" if name in state else str(k)
            if "adam" in name:
                assert state[name]["steps"] == total - 900
            else:
                moved = weights_moved(path, name, part)
                assert moved and all(1e-6 < change < 1 for change in moved.values()), (name, moved)
    assert state["buffer"]["count"] == total and not list(path.glob("buffer*"))
    return log, state


def test_sac_learns_and_reports(sac_runs):
    folder, outs = sac_runs
    log, _ = check_sac_run(only_run(folder, "sac"), outs["sac"], 1)
    assert log["alpha"][-1] < log["alpha"][0] < 1 and (log["critic_loss"] > 0).all()


def test_piekd_learns_and_reports(sac_runs):
    """With phases whose students came closer: a loss of its own for each, none for the teacher."""
    folder, outs = sac_runs
    path = only_run(folder, "piekd")
    _, state = check_sac_run(path, outs["piekd"], 2)
    table = baselines.read_csv(path / "distillation.csv")
    assert state["standings"]["phases"] == len(table["step"]) / 2 > 4 and set(table["teacher"]) <= {0, 1}
    teacher = table["agent"] == table["teacher"]
    for name in ("policy_loss", "critic_loss"):
        assert not table[name][teacher].any() and (table[name][~teacher] > 1e-6).all()
    assert not np.array_equal(state["actor0"]["net.0.weight"], state["actor1"]["net.0.weight"])


@pytest.mark.parametrize("method", ["cikd", "ensemble"])
def test_other_ensembles_learn_and_report(tmp_path, method):
    """Only where somebody teaches there is a table of it."""
    phases = {"cikd": ["--interval", 20], "ensemble": ["--interval", 5000, "--distill-updates", 0]}[method]
    command = [*TINY_ENSEMBLE, "--total-steps", 1000, "--method", method, *phases]
    out, _ = run("piekd_cikd.py", *command, folder=tmp_path)
    path = only_run(tmp_path)
    assert (len(baselines.read_csv(path / "distillation.csv").get("step", [])) > 2) == (method == "cikd")
    check_sac_run(path, out, 2, total=1000)


def test_vanilla_is_sac(sac_runs, tmp_path):
    """Its first row is to the last digit that of the longer run of the other script, losses and evaluation too."""
    command = [*TINY_SAC, "--total-steps", 1000, "--method", "vanilla", "--evaluate-every", 1000]
    out, _ = run("piekd_cikd.py", *command, folder=tmp_path)
    path, other = only_run(tmp_path), only_run(sac_runs[0], "sac")
    check_sac_run(path, out, 1, total=1000)
    (mine, my_evaluation, _), (theirs, their_evaluation, _) = results(path), results(other)
    assert mine == theirs[:1] and float(mine[0]["critic_loss"]) > 0
    assert len(my_evaluation) > 60 and their_evaluation.startswith(my_evaluation)


def test_compiled_distillation_equals_eager_one(tmp_path):
    """A compiled run takes the same steps as the eager one, phases included, up to rounding, while that stays small."""
    short = [*TINY_ENSEMBLE, "--total-steps", 1000, "--warm-up", 950, "--interval", 1]
    run("piekd_cikd.py", *short, folder=tmp_path)
    out, _ = run("piekd_cikd.py", *short, "--compile", "--runs", "compiled", folder=tmp_path)
    if "without torch.compile" in out:
        pytest.skip("nothing compiles here")
    paths = [only_run(tmp_path, root) for root in ("runs", "compiled")]
    eager, compiled = (torch.load(path / "checkpoint.pt", weights_only=True)["state"] for path in paths)
    assert eager["standings"]["phases"] == compiled["standings"]["phases"] > 0
    for name in eager:
        if name.startswith(("actor", "critic", "target")) and "adam" not in name:
            for key, value in eager[name].items():
                torch.testing.assert_close(compiled[name][key], value, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("script, options, steps", [
    ("p2pdrl.py", "--total-steps 512 --epochs 1", {"adam0": 4, "adam1": 4}),
    ("p2pdrl.py", "--total-steps 512 --epochs 1 --method dnc", {"adam1": 4, "centre_adam": 4}),
    ("dpd.py", "--total-steps 1024 --epochs 1 --base ppo", {"adam0": 4, "distillation_adam1": 4}),
    ("dpd.py", "--total-steps 4000 --warm-up 1900", {"actor_adam0": 2, "critic_adam1": 2, "distillation_adam0": 2}),
])  # fmt: skip
def test_compiled_gradients_equal_eager_ones(tmp_path, script, options, steps):
    """The compiled run takes the same steps as the eager one, up to rounding, for as long as that stays small."""
    tiny = TINY_DDPG if "--warm-up" in options else TINY
    short = [*tiny, *options.split()]
    run(script, *short, folder=tmp_path)
    out, _ = run(script, *short, "--compile", "--runs", "compiled", folder=tmp_path)
    if "without torch.compile" in out:
        pytest.skip("nothing compiles here")
    eager, compiled = (torch.load(only_run(tmp_path, root) / "checkpoint.pt", weights_only=True)["state"] for root in ("runs", "compiled"))
    assert {name: eager[name]["steps"] for name in steps} == {name: compiled[name]["steps"] for name in steps} == steps
    networks = [part for part in eager if re.fullmatch(r"(actor|critic|target_\w+)\d?|centre", part)]
    assert len(networks) >= 2
    for part in networks:
        for name, value in eager[part].items():
            torch.testing.assert_close(compiled[part][name], value, rtol=1e-4, atol=1e-5)


def test_k_agents(tmp_path):
    run("p2pdrl.py", *TINY, "--agents", 4, "--total-steps", 512, folder=tmp_path)
    assert set(baselines.read_csv(only_run(tmp_path) / "log.csv")["agent"]) == {0, 1, 2, 3}


def test_joints_reading_and_own_model(tmp_path):
    """--init joints and --xml-file go all the way through a run: each changes what it logs."""
    import gymnasium.envs.mujoco

    model = (Path(gymnasium.envs.mujoco.__file__).parent / "assets" / "hopper.xml").read_text()
    assert model.count('timestep="0.002"/>') == 1
    (tmp_path / "same.xml").write_text(model)
    (tmp_path / "mine.xml").write_text(model.replace('timestep="0.002"/>', 'timestep="0.002" gravity="0 0 -12"/>'))
    logs = {}
    for name, options in {
        "plain": "", "same": "--xml-file same.xml", "mine": "--xml-file mine.xml", "joints": "--init joints",
    }.items():  # fmt: skip
        own = ["--env", "Hopper-v5", "--total-steps", 512, "--eps-te", 0, "--runs", name, *options.split()]
        run("p2pdrl.py", *TINY, *own, folder=tmp_path)
        logs[name] = results(only_run(tmp_path, name))[0]
    assert logs["plain"] == logs["same"] and logs["mine"] != logs["plain"] != logs["joints"]


# The same again ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
def test_same_command_same_bits(reference, tmp_path, threads):
    """Twice the same result, whatever the number of threads; and another seed gives another."""
    run("p2pdrl.py", *TINY, "--threads", threads, folder=tmp_path)
    assert results(only_run(tmp_path)) == results(reference[0])


def test_another_seed_another_run(reference, tmp_path):
    run("p2pdrl.py", *TINY, "--seed", 1, folder=tmp_path)
    assert results(only_run(tmp_path))[0] != results(reference[0])[0]


# Fewer transitions than a learner's steps, or than those between checkpoints: the file is written over several times.
SHORT_BUFFER = "--buffer-size 1500 --checkpoint-every 1 --updates 2 --total-steps 16000"


@pytest.mark.parametrize("script, options, kills", [
    ("p2pdrl.py", "", 2), ("baselines.py", "", 2),
    ("p2pdrl.py", "--method distral --total-steps 1536", 1),
    ("p2pdrl.py", "--method dnc --reset-every 2 --total-steps 1536", 1),
    ("dpd.py", "--base ppo", 1), ("dpd.py", SHORT_BUFFER, 1), ("baselines.py", "--algo ddpg " + SHORT_BUFFER, 1),
])  # fmt: skip
def test_killed_and_resumed_to_the_bit(tmp_path, script, options, kills):
    """SIGKILL at random moments, the same command again, until it ends: the same bits as without interruption, on one
    thread instead of three."""
    tiny = [*(TINY_DDPG if SHORT_BUFFER in options else TINY), *options.split(), "--threads", 3]
    run(script, *tiny, "--threads", 1, "--runs", "whole", folder=tmp_path)
    learned = baselines.read_csv(only_run(tmp_path, "whole") / "log.csv")
    assert np.mean(learned["critic_loss" if "critic_loss" in learned else "value_loss"] > 0) > 0.7  # not just random steps
    kills, moments = int(os.environ.get("KILLS", kills)), random.Random(os.environ.get("KILL_SEED", time.time()))
    process = start(script, *tiny, folder=tmp_path)  # once where it is sure that there is something to resume
    while process.poll() is None and not list(tmp_path.glob("runs/*/checkpoint.pt")):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not torch.load(only_run(tmp_path) / "checkpoint.pt", weights_only=True)["finished"]
    waited = []
    for _ in range(kills):
        process = start(script, *tiny, folder=tmp_path)
        time.sleep(moments.uniform(0.0, 0.5))
        assert "resuming" in process.stdout.readline() or waited  # or it was finished before
        waited.append(moments.uniform(0.0, 1.2))
        time.sleep(waited[-1])
        process.send_signal(signal.SIGKILL)
        process.communicate()
    run(script, *tiny, folder=tmp_path)
    assert results(only_run(tmp_path)) == results(only_run(tmp_path, "whole")), waited
    kept, whole = (
        {path.name: torch.load(path, weights_only=True) for path in only_run(tmp_path, root).glob("policies-*.pt")}
        for root in ("runs", "whole")
    )
    assert to_bytes(kept) == to_bytes(whole) and bool(kept) == (script != "baselines.py")


@pytest.mark.parametrize("name", ["sac", "piekd"])
def test_sac_killed_and_resumed_to_the_bit(sac_runs, tmp_path, name):
    """SIGKILL at a random moment of the second row, when both have learned and an episode is under way; with threads."""
    script, *command = SAC_COMMANDS[name]
    command += ["--threads", 3]
    kills, moments = int(os.environ.get("KILLS", 1)), random.Random(os.environ.get("KILL_SEED", time.time()))
    waited = []
    for _ in range(kills):
        process = start(script, *command, folder=tmp_path)
        process.stdout.readline()  # its first row and checkpoint are written, or it says that it resumes
        waited.append(moments.uniform(0.0, 2.0))
        time.sleep(waited[-1])
        process.send_signal(signal.SIGKILL)
        process.communicate()
    out, _ = run(script, *command, folder=tmp_path)
    assert re.search("resuming .* after [1-9]", out) or "is finished" in out
    assert results(only_run(tmp_path)) == results(only_run(sac_runs[0], name)), waited


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run of DDPG killed after its second checkpoint, when its buffer has been written over; and its whole twin."""
    folder = tmp_path_factory.mktemp("interrupted")
    command = ["--algo", "ddpg", *TINY_DDPG, "--buffer-size", 1500]
    run("baselines.py", *command, "--runs", "whole", folder=folder)
    process = start("baselines.py", *command, "--checkpoint-every", 1, folder=folder)
    until = time.time() + 120
    while time.time() < until:
        time.sleep(0.02)
        checkpoints = list(folder.glob("runs/*/checkpoint.pt"))
        if checkpoints and torch.load(checkpoints[0], weights_only=True)["iteration"] >= 2:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not torch.load(checkpoints[0], weights_only=True)["finished"]
    return folder, command


def test_resumed_with_checkpoints_at_other_times(interrupted, tmp_path):
    """When checkpoints are made cannot change a result; not that of a buffer that was written over either."""
    folder, command = interrupted
    shutil.copytree(folder / "runs", tmp_path / "runs")
    run("baselines.py", *command, "--checkpoint-every", 3, folder=tmp_path)
    assert results(only_run(tmp_path))[:2] == results(only_run(folder, "whole"))[:2]


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_damaged_buffer_is_refused(interrupted, tmp_path, damage):
    """Rather than learning from rows of zeros: one line, status 2, and what is there stays as it is."""
    folder, command = interrupted
    shutil.copytree(folder / "runs", tmp_path / "runs")
    buffer = only_run(tmp_path) / "buffer.dat"
    content = buffer.read_bytes()
    buffer.unlink()
    if damage == "short":
        buffer.write_bytes(content[: len(content) // 2])
    _, err = run("baselines.py", *command, "--checkpoint-every", 1, folder=tmp_path, status=2)
    assert len(err.splitlines()) == 1 and "buffer.dat" in err and "--overwrite" in err
    assert not buffer.exists() if damage == "missing" else buffer.read_bytes() == content[: len(content) // 2]


def test_finished_says_so(reference):
    path, _ = reference
    before = results(path)
    out, _ = run("p2pdrl.py", *TINY, folder=path.parents[1])
    assert "is finished" in out and "eps_te" in out
    assert results(path) == before


def test_overwrite_starts_anew(tmp_path):
    short = [*TINY, "--total-steps", 512]
    run("p2pdrl.py", *short, folder=tmp_path)
    first = results(only_run(tmp_path))
    out, _ = run("p2pdrl.py", *short, "--overwrite", folder=tmp_path)
    assert "256 of 512" in out and results(only_run(tmp_path)) == first


def test_several_seeds_in_processes(tmp_path):
    """Each seed's run is the one that it is alone, and every line says whose it is."""
    short = [*TINY, "--total-steps", 512]
    out, _ = run("p2pdrl.py", *short, "--seeds", 3, 4, "--jobs", 2, folder=tmp_path)
    assert all(re.match(r"seed [34] \| ", line) for line in out.splitlines() if line)
    run("p2pdrl.py", *short, "--seed", 4, "--runs", "alone", folder=tmp_path)
    (four,) = (tmp_path / "runs").glob("*seed4")
    assert results(four) == results(only_run(tmp_path, "alone"))


# Figures -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_methods(tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods")
    for method in ("p2pdrl", "ppo"):
        run("p2pdrl.py", *TINY, "--method", method, "--seeds", 0, 1, folder=folder)
    return folder


@pytest.mark.parametrize("figure", ["3", "4", "6"])
def test_figures(two_methods, figure):
    out, _ = run("p2pdrl.py", *TINY, "--figure", figure, folder=two_methods)
    path = two_methods / "runs" / f"p2pdrl-figure-{figure}.png"
    assert str(path.relative_to(two_methods)) in out and path.stat().st_size > 20_000


def test_figure_without_runs_names_the_command(tmp_path):
    out, err = run("p2pdrl.py", *TINY, "--figure", "3", folder=tmp_path, status=2)
    assert re.search("python p2pdrl.py --env Hopper-v4 .*--method p2pdrl", out) and len(err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_curves_of_the_baselines(tmp_path):
    run("baselines.py", *TINY, "--total-steps", 512, "--seeds", 0, 1, folder=tmp_path)
    out, _ = run("baselines.py", *TINY, "--total-steps", 512, "--curves", folder=tmp_path)
    assert "Hopper-v4 ppo" in out and (tmp_path / "runs" / "curves.png").stat().st_size > 20_000


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A pair that teach each other, and two seeds of one alone, which is evaluated after other numbers of steps."""
    folder = tmp_path_factory.mktemp("pairs")
    short = [*TINY_DDPG, "--total-steps", 12_000, "--updates", 1, "--jobs", 1]
    run("dpd.py", *short, folder=folder)
    run("dpd.py", *short, "--method", "vanilla", "--seeds", 0, 1, folder=folder)
    return folder, short


@pytest.mark.parametrize("figure", ["2", "3"])
def test_figures_of_dual_policy_distillation(pairs, figure):
    folder, short = pairs
    out, _ = run("dpd.py", *short, "--figure", figure, folder=folder)
    path = folder / "runs" / f"dpd-figure-{figure}.png"
    assert str(path.relative_to(folder)) in out and path.stat().st_size > 20_000


def test_table_of_dual_policy_distillation(pairs):
    """Its cells against the runs' files: the last tenth of the log, the best episode, the last evaluation."""
    folder, short = pairs
    out, _ = run("dpd.py", *short, "--table", "1", folder=folder)
    rows = {line.split()[1]: line.split()[2:] for line in out.splitlines() if line.startswith("Hopper-v4")}
    assert set(rows) == {"dpd", "vanilla"}
    for method, (seeds, *cells) in rows.items():
        paths = sorted((folder / "runs").glob(f"dpd-{method}-*"))
        expected = []
        for path in paths:
            log, evaluation = baselines.read_csv(path / "log.csv"), baselines.read_csv(path / "eval.csv")
            final = evaluation["return"][evaluation["step"] == 12_000]  # one domain: one number for each learner
            late = log["return"][log["step"] == 12_000]
            expected.append((late.mean(), log["best_return"].max(), final.mean(), final.max()))
        assert int(seeds) == len(paths) == (1 if method == "dpd" else 2)
        for i, column in enumerate(zip(*expected)):
            mean, sign, deviation = cells[3 * i : 3 * i + 3]
            assert (int(mean), sign, int(deviation)) == (round(np.mean(column)), "+-", round(np.std(column)))


@pytest.mark.parametrize("what", ["--figure 2", "--figure 3", "--table 1"])
def test_figures_of_dual_policy_distillation_without_runs(tmp_path, what):
    """The commands that make them, one line that says that there are none, and nothing on disk."""
    out, err = run("dpd.py", *TINY_DDPG, *what.split(), folder=tmp_path, status=2)
    for method in ("dpd", "vanilla"):
        assert f"python dpd.py --env Hopper-v4 --base ddpg --method {method} --total-steps 8000" in out
    assert len(err.splitlines()) == 1 and not (tmp_path / "runs").exists()


def test_figures_of_ensembles_without_runs(tmp_path):
    """The commands that make them, one line that says that there are none, and nothing on disk."""
    out, err = run("piekd_cikd.py", "--total-steps", "1e5", "--figure", "cikd-3b", folder=tmp_path, status=2)
    for method in ("cikd", "cikd --share hardcopy", "ensemble", "vanilla"):
        assert f"python piekd_cikd.py --env Hopper-v4 --total-steps 100000 --method {method} --seeds 0 1 2\n" in out
    assert len(err.splitlines()) == 1 and not (tmp_path / "runs").exists()


def test_figure_3_needs_two_seeds_alone(pairs, tmp_path):
    folder, short = pairs
    shutil.copytree(folder / "runs", tmp_path / "runs", ignore=shutil.ignore_patterns("*vanilla*seed1"))
    _, err = run("dpd.py", *short, "--figure", "3", folder=tmp_path, status=2)
    assert len(err.splitlines()) == 1 and "two seeds of vanilla" in err


def test_gif_or_a_clear_line(reference):
    """A moving picture where OpenGL is to be had, otherwise one line and status 2."""
    path, _ = reference
    process = start("p2pdrl.py", "--gif", path, folder=path.parent)
    _, err = process.communicate(timeout=120)
    if process.returncode == 0:
        assert (path / "policy.gif").read_bytes()[:4] == b"GIF8"
    else:
        assert process.returncode == 2 and "OpenGL" in err.splitlines()[-1]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is always a screen to ask for")
def test_watch_without_a_screen(reference, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    _, err = run("p2pdrl.py", "--watch", reference[0], folder=reference[0].parent, status=2)
    assert len(err.splitlines()) == 1 and "no screen" in err and "--gif" in err


# Bad input ---------------------------------------------------------------------------------------------------

BAD = [
    ("--env NoSuchRobot-v4", "NoSuchRobot"),
    ("--env CartPole-v1", "not a MuJoCo environment"),
    ("--env Hopper-v4 --xml-file missing.xml", "xml"),
    ("--env Hopper-v5 --xml-file missing.xml", "missing.xml"),
    ("--eps-tr 1.5", "[0, 1]"),
    ("--eps-tr -0.1", "[0, 1]"),
    ("--eps-tr nan", "[0, 1]"),
    ("--eps-te 0 2", "[0, 1]"),
    ("--eps-te", "at least one"),
    ("--steps-per-iteration 1000", "does not divide"),
    ("--steps-per-iteration 64 --minibatches 64", "does not divide"),
    ("--total-steps 100", "less than one iteration"),
    ("--total-steps 2.5", "2.5"),
    ("--total-steps inf", "inf"),
    ("--total-steps many", "many"),
    ("--learning-rate 0", "positive"),
    ("--learning-rate nan", "positive"),
    ("--learning-rate 1e38", "1e30"),
    ("--gamma 1.1", "[0, 1]"),
    ("--minibatches 0", "at least 1"),
    ("--epochs -1", "at least 1"),
    ("--seed -1", "seeds"),
    ("--seeds 1 1", "twice"),
    ("--threads -2", "threads"),
    ("--jobs 0", "at least 1"),
    ("--device warp", "warp"),
    ("--init feet", "feet"),
    ("--no-such-option", "no-such-option"),
    ("--runs a-file", "a-file"),
]
BAD_COHORT = [
    ("--agents 1", "at least 2"),
    ("--method distral --agents 1", "at least 2"),
    ("--method dnc --agents 1", "at least 2"),
    ("--reset-every 0", "--reset-every"),
    ("--reset-every 7", "changes nothing"),
    ("--method ppo --alpha 0.5", "changes nothing"),
    ("--method ppo --agents 0", "at least 1"),
    ("--agents 3", "does not divide"),
    ("--alpha -1", "--alpha"),
    ("--alpha nan", "--alpha"),
    ("--method nonsense", "nonsense"),
    ("--figure 99", "99"),
    ("--watch nowhere", "nowhere"),
    ("--gif nowhere", "nowhere"),
]


BAD_DDPG = [
    ("--updates 0", "--updates"),
    ("--batch-size 0", "--batch-size"),
    ("--buffer-size 0", "--buffer-size"),
    ("--noise -1", "--noise"),
    ("--noise nan", "--noise"),
    ("--warm-up -1", "--warm-up"),
    ("--tau 0", "--tau"),
    ("--tau 2", "--tau"),
    ("--actor-learning-rate 0", "--actor-learning-rate"),
    ("--critic-learning-rate inf", "--critic-learning-rate"),
    ("--critic-decay -1", "--critic-decay"),
]
BAD_DPD = [
    ("--alpha -1", "--alpha"),
    ("--alpha nan", "--alpha"),
    ("--weighting foo", "foo"),
    ("--base sac", "sac"),
    ("--method alone", "alone"),
    ("--figure 9", "9"),
    ("--table 2", "2"),
    ("--figure 3 --base ppo", "DDPG"),
    ("--total-steps 3999", "less than one iteration"),
    ("--total-steps 20000", "--warm-up"),
    ("--base ppo --total-steps 4000", "less than one iteration"),
    ("--env CartPole-v1 --seeds 0 1", "not a MuJoCo environment"),
]
BAD_BASELINES = [
    *BAD[:2],
    ("--algo td3", "td3"),
    ("--algo ddpg --total-steps 1999", "less than one iteration"),
    *((f"--algo ddpg {line}", word) for line, word in (BAD_DDPG[0], BAD_DDPG[6])),
]
BAD_SAC = [
    ("--algo sac --tau 0", "--tau"),
    ("--algo sac --warm-up -1", "--warm-up"),
    ("--algo sac --total-steps 10000", "--warm-up"),
    ("--algo ppo --batch-size 128", "ddpg or sac"),
]
BAD_ENSEMBLE = [
    ("--ensemble-size 1", "at least 2"),
    ("--figure piekd-9", "piekd-9"),
    ("--runs a-file", "a-file"),
    ("--env CartPole-v1 --seeds 0 1", "not a MuJoCo environment"),
]
BAD_OF_EACH = {
    "baselines.py": BAD_BASELINES + BAD_SAC, "p2pdrl.py": BAD + BAD_COHORT, "dpd.py": BAD_DDPG + BAD_DPD,
    "piekd_cikd.py": BAD_ENSEMBLE,
}  # fmt: skip
CASES = [(script, *bad) for script, cases in BAD_OF_EACH.items() for bad in cases]


def forked(script, arguments, folder):
    """Exit status and stderr of a command in a copy of this process, which need not import everything again."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.chdir(folder)
                sys.argv, sys.stdout, sys.stderr = [str(ROOT / script), *arguments], out, err
                runpy.run_path(sys.argv[0], run_name="__main__")
                status = 0
            except SystemExit as exit_:
                status = exit_.code
            except BaseException:
                traceback.print_exc()
            finally:
                err.flush()
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        err.seek(0)
        return status, err.read()


@pytest.mark.parametrize("index", range(len(CASES)), ids=[f"{script} {line}" for script, line, _ in CASES])
def test_bad_input(tmp_path, index):
    """One line that says what is wrong, exit status 2, and nothing on disk that was not there before."""
    script, line, word = CASES[index]
    (tmp_path / "a-file").write_text("not a folder")
    command = ["--no-compile", *line.split()]
    if index == 0 or CASES[index - 1][0] != script:
        status, (_, err) = 2, run(script, *command, folder=tmp_path, status=2)
    else:
        status, err = forked(script, command, tmp_path)
    assert status == 2 and len(err.splitlines()) == 1 and word in err, err
    assert [path.name for path in tmp_path.iterdir()] == ["a-file"]


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("short")
    run("p2pdrl.py", *TINY, "--total-steps", 512, folder=folder)
    return folder


@pytest.fixture
def short_run(finished_once, tmp_path):
    """A finished run of one's own, to be damaged."""
    shutil.copytree(finished_once, tmp_path, dirs_exist_ok=True)
    return tmp_path, [*TINY, "--total-steps", 512]


def test_other_settings_are_named_and_nothing_is_lost(short_run):
    folder, short = short_run
    before = results(only_run(folder))
    _, err = run("p2pdrl.py", *short, "--alpha", 0.5, "--epochs", 2, folder=folder, status=2)
    assert len(err.splitlines()) == 1 and "alpha was 1.0, is now 0.5" in err and "epochs" in err
    assert results(only_run(folder)) == before


@pytest.mark.parametrize("damage", ["empty", "half", "text", "log", "config"])
def test_damaged_files(short_run, damage):
    folder, short = short_run
    path = only_run(folder)
    name = {"log": "log.csv", "config": "config.json"}.get(damage, "checkpoint.pt")
    content = (path / name).read_bytes()
    (path / name).write_bytes({"empty": b"", "text": b"hello"}.get(damage, content[: len(content) // 2]))
    left = (path / name).read_bytes()
    _, err = run("p2pdrl.py", *short, folder=folder, status=2)
    assert len(err.splitlines()) == 1 and name in err and "--overwrite" in err
    assert (path / name).read_bytes() == left


def test_ctrl_c_ends_all_seeds_and_begins_no_others(tmp_path):
    """In a terminal it reaches every process. Those that ran say how to go on; the others leave nothing; status 130."""
    command = [sys.executable, ROOT / "p2pdrl.py", *TINY, "--total-steps", "10_000_000", "--seeds", "0", "1", "2", "3"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # what runs in the background ignores it
    process = subprocess.Popen([*map(str, command), "--jobs", "2"], cwd=tmp_path, **options)
    try:
        begun = set()
        for line in process.stdout:
            begun |= {line.split(" |")[0]} if " steps/s " in line else set()
            if len(begun) == 2:
                break
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130 and begun == {"seed 0", "seed 1"}
    assert all("stopped; the same command, without --overwrite, goes on" in text for text in (out, err))
    assert sorted(path.name[-5:] for path in (tmp_path / "runs").iterdir()) == ["seed0", "seed1"]


def test_a_run_that_is_under_way_is_not_begun_twice(tmp_path):
    """One line, status 2, and the first one goes on as if nothing had been."""
    first = start("p2pdrl.py", *TINY, folder=tmp_path)
    while not list(tmp_path.glob("runs/*/log.csv")):
        assert first.poll() is None
        time.sleep(0.02)
    _, err = run("p2pdrl.py", *TINY, "--overwrite", folder=tmp_path, status=2)
    first.communicate(timeout=120)
    assert len(err.splitlines()) == 1 and "another process" in err and first.returncode == 0


@pytest.mark.parametrize("base", ["ppo", "ddpg"])
def test_what_is_not_finite_stops_the_run(tmp_path, base):
    """The step and the agent are named, the status is 1, and the last good checkpoint stays."""
    script, options = {"ppo": ("p2pdrl.py", [*TINY, "--learning-rate", 1e29])}.get(
        base, ("dpd.py", [*TINY_DDPG, "--critic-learning-rate", 1e20])
    )
    _, err = run(script, *options, folder=tmp_path, status=1)
    assert len(err.splitlines()) == 1 and re.search(r"step \d+, agent [01]: .*not finite", err)


# What the pages promise --------------------------------------------------------------------------------------


def promised_commands():
    pattern = r"(?:^ +|/|`)(?:for (\w) in ([^;]+); do )?python (p2pdrl|baselines|dpd|piekd_cikd)\.py (--[^#`\"{;]*)"
    for page in ("README.md", "p2pdrl.py", "baselines.py", "dpd.py", "piekd_cikd.py"):
        for line in (ROOT / page).read_text().splitlines():
            for found in re.finditer(pattern, line):
                variable, values, script, options = found[1] or "N", found[2], found[3], found[4].strip()
                values = values.split() if values else ["2" if script == "dpd" else "9"]
                for value in values:  # of the loop, or for "--figure N"
                    each = re.sub(rf"\${variable}\b|(?<=--figure )N\b", value, options)
                    yield pytest.param(script, each, id=f"{page} {script} {each}")


@pytest.mark.parametrize("script, options", list(promised_commands()))
def test_every_printed_command_parses(monkeypatch, script, options):
    """Each command in the README and the docstrings has options that exist, with values that they take."""
    module = {"p2pdrl": p2pdrl, "baselines": baselines, "dpd": dpd, "piekd_cikd": piekd_cikd}[script]
    monkeypatch.setattr(sys, "argv", [script + ".py", *shlex.split(options)])
    assert isinstance(baselines.parse_args(module.Args, ""), module.Args)
