"""Tests through the real command line: learning, folders, kill and resume, bad input, figures."""

import ast
import contextlib
import copy
import csv
import dataclasses
import fcntl
import gc
import inspect
import io
import json
import math
import os
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv

import baselines
import dpd
import p2pdrl
import piekd_cikd
from helpers import stop_and_go_on

ROOT = Path(__file__).resolve().parents[1]
TINY_PPO = (  # ten iterations of 128 steps
    "--env Hopper-v4 --steps-per-iteration 128 --minibatches 4 --epochs 4 --total-steps 1280 --eval-domains 2 "
    "--eps-te 0 0.5 --evaluations 2 --checkpoint-every 2 --no-compile"
)
TINY_DDPG = (  # a row of the log for each 2000 steps of a learner
    "--env Hopper-v4 --updates 2 --warm-up 1000 --eval-domains 1 --eps-te 0 --evaluations 2 --checkpoint-every 1 "
    "--no-compile"
)
TINY_SAC = (  # a row for each 1000 steps
    "--env Hopper-v4 --total-steps 2000 --warm-up 1900 --batch-size 8 --buffer-size 1500 --eval-domains 1 --eps-te 0 "
    "--checkpoint-every 1 --threads 1 --no-compile"
)
COMMANDS = {
    "p2pdrl": f"p2pdrl.py {TINY_PPO}",
    "dnc": f"p2pdrl.py --method dnc --reset-every 7 {TINY_PPO}",
    "ppo": f"baselines.py --algo ppo {TINY_PPO}",
    "ddpg": f"baselines.py --algo ddpg {TINY_DDPG} --total-steps 4000",
    "sac": f"baselines.py --algo sac {TINY_SAC}",
    "dpd-ddpg": f"dpd.py {TINY_DDPG} --total-steps 8000",
    "dpd-ppo": f"dpd.py --base ppo --distil-steps 4 {TINY_PPO}",
    "piekd": f"piekd_cikd.py {TINY_SAC} --warm-up 1850 --ensemble-size 2 --interval 20 --distil-updates 3",
}


def start(command, folder):
    """A process of its own, as from a terminal."""
    script, *arguments = command.split()
    line = [sys.executable, str(ROOT / script), *arguments]
    return subprocess.Popen(line, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(command, folder, status=0):
    """The script in this process, which saves the seconds of a start: its stdout and stderr."""
    script, *arguments = command.split()
    out, err, code = io.StringIO(), io.StringIO(), 0
    os.chdir(folder)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        with mock.patch.object(sys, "argv", [str(ROOT / script), *arguments]):
            try:
                runpy.run_path(str(ROOT / script), run_name="__main__")
            except SystemExit as end:
                code = end.code or 0
    gc.collect()  # a run's lock goes with it
    assert code == status, (command, out.getvalue(), err.getvalue())
    return out.getvalue(), err.getvalue()


def only_run(folder):
    (path,) = [config.parent for config in Path(folder).glob("runs/*/config.json")]
    return path


def to_bytes(value):
    if isinstance(value, torch.Tensor):
        return value.numpy().tobytes()
    return {name: to_bytes(part) for name, part in value.items()} if isinstance(value, dict) else value


def results(path):
    """What is equal in two equal runs: log.csv without its clock, the other tables, the checkpoint as bytes."""
    with open(path / "log.csv", newline="") as file:
        log = [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]
    tables = [(path / name).read_text() for name in ("eval.csv", "distillation.csv") if (path / name).exists()]
    return log, tables, to_bytes(torch.load(path / "checkpoint.pt", weights_only=True)["parts"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of each command: its folder, what was printed, its first checkpoint."""
    made, torch_save = {}, torch.save

    def get(name):
        if name not in made:
            folder, saved = tmp_path_factory.mktemp(name), []

            def save(content, *rest):
                saved.append(copy.deepcopy(content))
                torch_save(content, *rest)

            with mock.patch.object(torch, "save", save):
                out, err = run(COMMANDS[name], folder)
            assert not err
            first = next(content for content in saved if "parts" in content)
            made[name] = only_run(folder), out, first["parts"]
        return made[name]

    return get


@pytest.mark.parametrize("name", COMMANDS)
def test_a_run_learns_and_reports(finished, name):
    """Every weight moves, all is finite, and there are tables, a figure, progress and returns on the terminal."""
    path, out, first = finished(name)
    saved = baselines.SavedRun(path)
    log, evaluation = saved.table("log.csv"), saved.table("eval.csv")
    assert all(np.isfinite(table[column]).all() for table in (log, evaluation) for column in table.dtype.names)
    total = saved.settings["total_steps"]
    assert log["step"].max() == total and set(evaluation["step"]) >= {total}
    if saved.settings.get("evaluations") == 2 and "dpd" not in name:
        assert sorted(set(evaluation["step"])) == [total // 2, total]
    progress = [line for line in out.splitlines() if f" of {total:,} steps   return " in line]
    assert "min left" not in progress[0] and progress[-1].strip().startswith(f"{total:,} of ")
    assert "min left" in progress[-1] and "compiling" not in out and (path / "figure.png").stat().st_size > 20_000
    assert ("central " in out) == (name == "dnc") and ("agent 0 " in out) == (name != "dnc")
    parts = torch.load(path / "checkpoint.pt", weights_only=True)["parts"]
    learners = {agent for agent in parts if agent.startswith("agent")} | ({"central"} if name == "dnc" else set())
    ends = "weight", "bias", "log_std"
    weights = [(agent, key) for agent in learners for key in parts[agent] if key.endswith(ends)]
    weights = [(agent, key) for agent, key in weights if "noisy" not in key]  # a copy of others, and noise
    assert len(learners) == {"ppo": 1, "ddpg": 1, "sac": 1, "dnc": 3}.get(name, 2) and len(weights) > 12
    for agent, key in weights:
        assert 1e-6 < (parts[agent][key] - first[agent][key]).abs().max() < 1, (agent, key)
    learning = log["step"] > total / 2
    if name in ("p2pdrl", "dpd-ppo", "dpd-ddpg"):
        assert (log["distillation"][learning] > 0).all()
    if name == "piekd":
        assert len(saved.table("distillation.csv")["step"]) > 4
    assert saved.settings == json.loads((path / "config.json").read_text())["settings"]


METHODS = ["ppo --alpha .5", "ppo-union", "distributed-ppo", "self-kl", "distral"]


@pytest.mark.parametrize("command", [
    *(f"p2pdrl.py {TINY_PPO} --method {method} --reset-every 3 --total-steps 384" for method in METHODS),
    f"dpd.py --method vanilla --base ppo --alpha 2 {TINY_PPO} --total-steps 256",
    f"piekd_cikd.py --method ensemble --interval 200000 --distil policy {TINY_SAC} --warm-up 950 --total-steps 1000",
])  # fmt: skip
def test_the_other_methods_run(tmp_path, command):
    """They learn, and those of P2PDRL that distil do. An option of another method is no mistake."""
    run(command, tmp_path)
    log = baselines.SavedRun(only_run(tmp_path)).table("log.csv")
    if command.startswith("p2pdrl.py"):
        distils = "self-kl" in command or "distral" in command
        assert (log["distillation"][-1] > 0) == distils and log["approx_kl"][-1] > 0


def test_compiled_steps_are_the_eager_ones(tmp_path, monkeypatch):
    """Up to rounding, for as long as that stays small. That they are compiled, which takes a while, is said once."""
    monkeypatch.setattr(baselines.Optimiser, "announced", False)
    short = f"{COMMANDS['p2pdrl']} --total-steps 256 --epochs 1"
    out, _ = run(f"{short} --compile", tmp_path)
    if "without torch.compile" in out:
        pytest.skip("nothing compiles here")
    assert out.count("compiling the gradient steps") == 1
    state = torch.load(only_run(tmp_path) / "checkpoint.pt", weights_only=True)["parts"]["agent0"]
    run(f"{short} --overwrite", tmp_path)
    eager = torch.load(only_run(tmp_path) / "checkpoint.pt", weights_only=True)["parts"]["agent0"]
    for key, value in eager.items():
        torch.testing.assert_close(state[key], value, rtol=1e-3, atol=1e-4)


def test_cohorts_that_do_not_divide_the_batch(tmp_path):
    """--agents 3: whole minibatches for each, and a note."""
    out, _ = run(f"p2pdrl.py {TINY_PPO} --agents 3 --total-steps 250", tmp_path)
    assert "note: 40 steps for each agent in an iteration, 120 in all" in out
    assert baselines.SavedRun(only_run(tmp_path)).table("log.csv")["step"].tolist() == [120] * 3 + [240] * 3


def test_a_folder_has_every_option_that_changes_the_result():
    """And no other; as the same command, it is the same folder."""
    args = p2pdrl.Args(seed=5, threads=7, runs="x", jobs=5, compile=False, checkpoint_every=3, figure="4", gif=("a",))
    assert baselines.run_name(args, "p2pdrl", 3) == "p2pdrl-Walker2d-v4-seed3"
    args = p2pdrl.Args(method="ppo", alpha=2.0, eps_te=(0.0, 0.5), gradient_variance=True)
    assert baselines.run_name(args, "p2pdrl", 0) == (
        "p2pdrl-Walker2d-v4-eps_te=0+0.5-method=ppo-alpha=2-gradient_variance=True-seed0"
    )
    assert baselines.run_name(baselines.DDPGArgs(algo="ddpg"), "baselines", 0) == "baselines-Hopper-v4-algo=ddpg-seed0"
    for method, rate, words in (("p2pdrl", 1e-4, ""), ("ppo", 3e-4, "method=ppo-"), ("p2pdrl", None, ""),
                                ("ppo", 1e-4, "method=ppo-learning_rate=0.0001-")):  # fmt: skip
        args = p2pdrl.Args(method=method, learning_rate=rate)  # what it would be if not given is not named
        assert baselines.run_name(args, "p2pdrl", 0) == f"p2pdrl-Walker2d-v4-{words}seed0"


@pytest.fixture(scope="module", autouse=True)
def killed(request, tmp_path_factory):
    """Runs that got SIGKILL at a moment after their first checkpoint, made while other tests use the other core."""

    def kill(name, folder):
        process, rng = start(COMMANDS[name], folder), random.Random(name)
        while process.poll() is None and not list(folder.glob("runs/*/checkpoint.pt")):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.4))
        process.kill()
        assert not process.communicate()[1]
        return folder

    chosen = {item.callspec.id for item in request.session.items if item.name.startswith("test_killed")}
    with ThreadPoolExecutor(1) as pool:
        yield {name: pool.submit(kill, name, tmp_path_factory.mktemp(name)) for name in COMMANDS if name in chosen}


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_and_resumed_bit_by_bit(killed, finished, name):
    """The same command again: as if it had never been stopped."""
    folder = killed[name].result()
    path = only_run(folder)
    assert not (path / "figure.png").exists()  # it was not finished
    out, _ = run(COMMANDS[name], folder)
    assert "is resumed after" in out and results(path) == results(finished(name)[0])


def test_rows_past_the_checkpoint_are_written_again(tmp_path, finished):
    """Also those of a run that was killed before its first checkpoint."""
    run(COMMANDS["ppo"].replace("--checkpoint-every 2", "--checkpoint-every 4 --threads 1"), tmp_path)
    path, reference = only_run(tmp_path), results(finished("ppo")[0])
    assert results(path) == reference  # another number of threads, and checkpoints at other times, change nothing
    (path / "checkpoint.pt").unlink()
    run(COMMANDS["ppo"], tmp_path)
    assert results(path) == reference


def test_finished_says_so_and_overwrite_starts_anew(tmp_path, finished):
    """All else stays as it is, but for a row that was written in part: it goes. An empty table is no mistake."""
    path, *_ = finished("ppo")
    before = results(path)
    with open(path / "log.csv", "a") as log:
        log.write("12")
    (path / "empty.csv").touch()
    versions = (path / "config.json").read_text().replace('"torch": "', '"torch": "older than ')
    (path / "config.json").write_text(versions)
    out, _ = run(COMMANDS["ppo"], path.parents[1])
    assert "is finished: nothing to do" in out and "agent 0 " in out and results(path) == before
    assert (path / "config.json").read_text() == versions
    (path / "extra.txt").write_text("")
    out, _ = run(COMMANDS["ppo"] + " --overwrite", path.parents[1])
    assert "finished" not in out and results(path) == before and "older" not in (path / "config.json").read_text()
    assert (path / ".lock").exists() and not (path / "extra.txt").exists()


@pytest.mark.parametrize("size", [900, 0])
def test_a_damaged_checkpoint_is_refused(tmp_path, finished, size):
    """One line, status 2, and nothing else is touched."""
    path, *_ = finished("ppo")
    twin = tmp_path / "runs" / path.name
    shutil.copytree(path, twin)
    (twin / "checkpoint.pt").write_bytes((path / "checkpoint.pt").read_bytes()[:size])
    _, err = run(COMMANDS["ppo"], tmp_path, status=2)
    assert "checkpoint.pt is damaged" in err and err.count("\n") == 1
    assert (twin / "log.csv").read_text() == (path / "log.csv").read_text()


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    """The second says so in a line; the first goes on until Ctrl-C, which is no error to explain."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a process inherits it where it is ignored
    first = start(f"p2pdrl.py {TINY_PPO} --total-steps 25600", tmp_path)
    while not list(tmp_path.glob("runs/*/log.csv")):
        time.sleep(0.02)
    _, err = run(f"p2pdrl.py {TINY_PPO} --total-steps 25600", tmp_path, status=2)
    first.send_signal(signal.SIGINT)
    out, last = first.communicate()
    assert "another process is training" in err and err.count("\n") == 1
    assert first.returncode in (130, -signal.SIGINT) and last.count("\n") <= 1


def test_several_seeds(tmp_path):
    """Each is the run of its --seed; the worst status is that of all."""
    out, _ = run(f"baselines.py {TINY_PPO} --total-steps 256 --seeds 0 4", tmp_path)
    assert "seed 0 | " in out and "seed 4 | " in out
    paths = sorted(tmp_path.glob("runs/*"))
    assert [path.name[-5:] for path in paths] == ["seed0", "seed4"] and results(paths[0]) != results(paths[1])
    run(f"baselines.py {TINY_PPO} --total-steps 256 --seed 4 --runs alone", tmp_path)
    assert results(next((tmp_path / "alone").iterdir())) == results(paths[1])
    (paths[1] / "checkpoint.pt").write_text("damaged")
    run(f"baselines.py {TINY_PPO} --total-steps 256 --seeds 0 4", tmp_path, status=2)


@pytest.mark.parametrize("bad", ["--learning-rate 1e29", "--learning-rate 1e25 --clip 1e29"])
def test_what_is_not_finite_stops_the_run(tmp_path, bad):
    """With the step and the agent, status 1."""
    _, err = run(f"p2pdrl.py {TINY_PPO} {bad}", tmp_path, status=1)
    assert re.search(r"step \d+, agent 0: a metric or weight is not finite", err.splitlines()[-1])


def test_a_robots_file_counts_by_its_content(tmp_path):
    """Its stem and what MuJoCo makes of it, included files too; not the folder that it lies in."""
    text = (Path(gym.__file__).parent / "envs/mujoco/assets/hopper.xml").read_text()
    (tmp_path / "other").mkdir()
    for name in ("a.xml", "other/a.xml", "other_a.xml"):
        (tmp_path / name).write_text(text)

    def name_of(file, env="Hopper-v5"):
        return baselines.run_name(p2pdrl.Args(env=env, xml_file=file), "p2pdrl", 0)

    first = name_of("a.xml")
    assert re.fullmatch(r"p2pdrl-Hopper-v5-xml_file=a-[0-9a-f]{8}-seed0", first)
    assert first == name_of("./a.xml") == name_of("other/a.xml") != name_of("other_a.xml")
    (tmp_path / "a.xml").write_text(text.replace('gear="200.0" joint="foot', 'gear="201.0" joint="foot'))
    assert first != name_of("a.xml")
    head, end = text.split("<actuator>")
    (tmp_path / "a.xml").write_text(head + '<include file="motors.xml"/></mujoco>')
    (tmp_path / "motors.xml").write_text("<mujoco><actuator>" + end)
    whole = name_of("a.xml")
    (tmp_path / "motors.xml").write_text("<mujoco><actuator>" + end.replace("200.0", "150.0"))
    assert whole != name_of("a.xml")


def test_folders_that_a_file_system_might_not_take(tmp_path, monkeypatch, quiet):
    """Names of other packages' environments and very long ones are one short folder each, which figures find."""
    monkeypatch.setitem(gym.registry, "lab/Hopper-v4", dataclasses.replace(gym.spec("Hopper-v4"), id="lab/Hopper-v4"))
    levels = tuple(i / 100 for i in range(60))
    several = [p2pdrl.Args(env="lab/Hopper-v4"), p2pdrl.Args(env="lab_Hopper-v4"), p2pdrl.Args(env="a:lab/Hopper-v4")]
    several += [p2pdrl.Args(eps_te=levels), p2pdrl.Args(eps_te=levels[1:])]
    names = [baselines.run_name(args, "p2pdrl", 2**32 - 2) for args in several]
    assert len(set(names)) == 5 and all(re.fullmatch(r"[\w.+=-]{1,240}", name) for name in names), names
    assert names[1] == "p2pdrl-lab_Hopper-v4-seed4294967294" and len(names[3]) > 200
    run(f"baselines.py {TINY_PPO} --env lab/Hopper-v4 --total-steps 256", tmp_path)
    path = only_run(tmp_path)
    assert re.fullmatch(r"baselines-lab_Hopper-v4-.*-[0-9a-f]{8}-seed0", path.name)
    out, _ = run(f"baselines.py {TINY_PPO} --env lab/Hopper-v4 --total-steps 256 --figure curves", tmp_path)
    assert "no finished runs" not in out


class NotFinite(HopperEnv):
    """A reward or an observation that is not finite, once."""

    steps, step_number, kind = 0, 150, "reward"

    def step(self, action):
        obs, reward, *rest = super().step(action)
        NotFinite.steps += 1
        if NotFinite.steps == self.step_number:
            reward, obs = (math.nan, obs) if self.kind == "reward" else (reward, obs * math.inf)
        return obs, reward, *rest


@pytest.mark.parametrize(("name", "kind"), [("ppo", "obs"), ("ddpg", "reward"), ("sac", "obs"), ("sac", "reward")])
def test_an_environment_that_is_not_finite_stops_the_run(tmp_path, monkeypatch, name, kind):
    """In a line that names it, before a checkpoint has it: when it is mended, the same command goes on to its end."""
    spec = gym.envs.registration.EnvSpec("NotFinite-v0", NotFinite, max_episode_steps=100)
    monkeypatch.setitem(gym.registry, "NotFinite-v0", spec)
    command = f"{COMMANDS[name]} --env NotFinite-v0 --threads 1"
    for step_number, status in (({"ppo": 300, "ddpg": 2100, "sac": 1100}[name], 2), (0, 0)):
        for attribute, value in (("steps", 0), ("step_number", step_number), ("kind", kind)):
            monkeypatch.setattr(NotFinite, attribute, value)
        out, err = run(command, tmp_path, status)
        path = only_run(tmp_path)
        parts = torch.load(path / "checkpoint.pt", weights_only=True)["parts"]
        assert all(np.isfinite(baselines.SavedRun(path).table("log.csv")["return"]))
        assert all(value.double().isfinite().all() for part in parts.values() for value in part.values()
                   if isinstance(value, torch.Tensor))  # fmt: skip
        assert not status or "environment's reward" in err and "NotFinite-v0" in err and err.count("\n") == 1
    assert "is resumed after" in out


@pytest.mark.parametrize(("train", "args", "total"), [
    (baselines.ddpg, baselines.DDPGArgs(updates=1, warm_up=1000), 4000),
    (baselines.sac, baselines.SACArgs(warm_up=2980, batch_size=8), 3000),
    (dpd.train, dpd.Args(updates=1, warm_up=1000), 8000),
    (piekd_cikd.train, piekd_cikd.Args(warm_up=2980, batch_size=8, ensemble_size=2, interval=10), 3000),
])  # fmt: skip
def test_episodes_longer_than_the_replay_buffer(monkeypatch, quiet, train, args, total):
    """Resumed in the middle of one, a run ends as if it had never been stopped."""
    spec = dataclasses.replace(gym.spec("HalfCheetah-v4"), id="Long-v0", max_episode_steps=2900)
    monkeypatch.setitem(gym.registry, "Long-v0", spec)
    options = {"env": "Long-v0", "buffer_size": 700, "eval_domains": 1, "eps_te": (0.0,), "total_steps": total}
    args = dataclasses.replace(args, **options, checkpoint_every=1, threads=1, compile=False)
    train(dataclasses.replace(args, runs="whole"))
    stop_and_go_on(train, args, at=total)
    assert results(next(Path("runs").iterdir())) == results(next(Path("whole").iterdir()))


def test_a_full_disk_and_a_full_memory(tmp_path):
    """One line each; the last checkpoint stays, and nothing that is half written."""
    command = f"ulimit -f 60; exec {sys.executable} {ROOT / 'baselines.py'} --algo sac {TINY_SAC}"
    process = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 2 and process.stderr.count("\n") == 1, process.stderr
    assert re.search(r"cannot write .*\.pt; .* Is the disk full\?", process.stderr)
    assert not list(only_run(tmp_path).glob(".*.new"))
    _, err = run("baselines.py --algo sac --env Humanoid-v4 --buffer-size 4e9 --total-steps 4e9", tmp_path, status=2)
    assert "Unable to allocate" in err and err.count("\n") == 1


def test_cores_are_those_that_the_process_may_use(monkeypatch):
    """As taskset and Slurm allot them; all, where a system does not say."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3}, raising=False)
    assert baselines.cores() == 1
    run_of = baselines.Run(p2pdrl.Args(compile=False), "p2pdrl", 2)
    assert run_of.args.threads == 1 and len(run_of.test_envs) == 1
    monkeypatch.delattr(os, "sched_getaffinity")
    assert baselines.cores() == os.cpu_count()


def test_sigterm_is_like_ctrl_c(tmp_path):
    """One line, status 143, no process left."""
    for command, folder in ((COMMANDS["ppo"], "one"), (f"{COMMANDS['ppo']} --seeds 0 1", "two")):
        (tmp_path / folder).mkdir()
        process = start(f"{command} --total-steps 128000", tmp_path / folder)
        while not list(tmp_path.glob(f"{folder}/runs/*seed0/checkpoint.pt")):
            time.sleep(0.02)
        process.terminate()
        out, err = process.communicate(timeout=60)
        assert process.returncode == 143 and err == (
            "baselines.py: stopped; the same command, without --overwrite, goes on from the last checkpoint\n"
        )
    for path in tmp_path.glob("*/runs/*"):
        with open(path / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # which raises where a process is at work


def test_a_folder_without_locks(tmp_path, monkeypatch):
    """Some file systems have none: training goes on."""
    monkeypatch.setattr(fcntl, "flock", mock.Mock(side_effect=OSError(37, "No locks available")))
    run(f"baselines.py {TINY_PPO} --total-steps 256", tmp_path)


BAD = [
    ("p2pdrl.py --env Nowhere-v1", "Nowhere"), ("p2pdrl.py --env CartPole-v1", "not a MuJoCo environment"),
    ("p2pdrl.py --eps-tr 1.5", "argument --eps-tr: 1.5 is no float between 0 and 1"),
    ("p2pdrl.py --eps-te 0 2", "argument --eps-te: 2 is no float between 0 and 1"),
    ("p2pdrl.py --ranges 5 .2 .3 1 1", "mass positive"), ("p2pdrl.py --ranges 5", "--ranges: expected 5 arguments"),
    ("p2pdrl.py --eps-te", "argument --eps-te: expected at least one"), ("p2pdrl.py --agents 1", "at least 2"),
    ("p2pdrl.py --agents 0", "argument --agents: 0 is no int between 1 and"), ("p2pdrl.py --gamma nan", "--gamma: nan"),
    ("p2pdrl.py --alpha -1", "--alpha: -1 is no float"), ("p2pdrl.py --entropy-coef inf", "--entropy-coef: inf is"),
    ("p2pdrl.py --total-steps 8000", "must be at least 8192"), ("p2pdrl.py --total-steps 1.5", "1.5 is no int"),
    ("p2pdrl.py --minibatches 4096", "at least two steps"), ("baselines.py --minibatches 4096", "at least two steps"),
    ("p2pdrl.py --device cuda", "no CUDA device"), ("p2pdrl.py --seed -1", "--seed: -1 is no int"),
    ("p2pdrl.py --method other", "other"), ("p2pdrl.py --figure 4", "no finished runs"),
    ("p2pdrl.py --watch nowhere", "nowhere"), ("p2pdrl.py --xml-file missing.xml --env Hopper-v5", "missing.xml"),
    ("p2pdrl.py --runs taken/runs", "taken"), ("p2pdrl.py --unknown 1", "--unknown"), ("p2pdrl.py --gif", "--gif"),
    ("baselines.py --algo ppo --tau 0.1", "--tau"), ("baselines.py --algo sac --clip 1", "--clip"),
    ("baselines.py --algo sac --total-steps 10999", "least 11000"), ("baselines.py --figure curves", "no finished"),
    ("dpd.py --total-steps 23000", "at least 24000"), ("dpd.py --figure table-1", "no finished runs"),
    ("dpd.py --figure 3", "no finished"), ("dpd.py --base td3", "td3"), ("dpd.py --gif nowhere", "nowhere"),
    ("piekd_cikd.py --ensemble-size 1", "needs --ensemble-size 2"), ("piekd_cikd.py --interval 0", "--interval"),
    ("piekd_cikd.py --figure piekd-9", "piekd-9"), ("piekd_cikd.py --figure cikd-5", "no finished runs"),
    ("piekd_cikd.py --interval 5500 --total-steps 15500", "15000 steps leave no --interval 5500 after --warm-up 10000"),
    ("piekd_cikd.py --batch-size 11500 --interval 1000 --total-steps 11999", "--batch-size 11500"),
    ("piekd_cikd.py --batch-size 3000 --buffer-size 2000 --total-steps 20000", "--batch-size 3000"),
    ("randomised_envs.py --env Walker3d-v1", "Walker3d"), ("randomised_envs.py --env CartPole-v1", "not a MuJoCo"),
    ("randomised_envs.py --eps 2", "eps"), ("randomised_envs.py --eps much", "eps"),
    ("randomised_envs.py --init hands", "init"), ("randomised_envs.py --seed -1", "non-negative"),
    ("randomised_envs.py --env Walker2d-v5 --xml-file missing.xml", "missing.xml"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "word"), BAD)
def test_bad_input(tmp_path, capfd, command, word):
    """One clear line, exit status 2, nothing left behind."""
    if "cuda" in command and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    (tmp_path / "taken").write_text("a file where a folder should go")
    _, err = run(command, tmp_path, status=2)
    assert word in err and err.count("\n") == 1, err
    assert command.startswith("p2pdrl.py") or "--agents" not in err, err  # which only that script has
    assert capfd.readouterr().err == "" and [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize(("module", "Args", "command"), [
    (p2pdrl, p2pdrl.Args, "p2pdrl.py"), (dpd, dpd.Args, "dpd.py"), (piekd_cikd, piekd_cikd.Args, "piekd_cikd.py"),
    (baselines, baselines.PPOArgs, "baselines.py"), (baselines, baselines.DDPGArgs, "baselines.py --algo ddpg"),
    (baselines, baselines.SACArgs, "baselines.py --algo sac"),
])  # fmt: skip
def test_help_says_what_every_option_means(tmp_path, module, Args, command):
    """Every option is there with its own comment, under its heading, below the script's own description."""
    out, _ = run(f"{command} --help", tmp_path)
    text = " ".join(out.split())
    for name in Args.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text
    assert "a Gymnasium MuJoCo environment" in text and module.__doc__.splitlines()[0].split()[0] in text
    headings = re.findall(r"^(\w.*):$", out, re.M)
    wanted = {line for each in Args.__mro__[:-1] for line in re.findall(r"^    # (.+)$", inspect.getsource(each), re.M)}
    assert len(headings) == len(set(headings)) and set(headings) == wanted | {"options"}
    of_piekd = "rows of the log, of 1000 steps each, between checkpoints (default: 5)" in text
    assert of_piekd == (module is piekd_cikd) != ("iterations (rows of the log) between checkpoints" in text)


def test_parsing_by_type(monkeypatch):
    """Numbers as 2e6, lists, in which each level and seed counts once, switches, what may be None."""
    line = "p2pdrl.py --total-steps 2e6 --ranges 1 .2 .2 .3 0 --eps-te 0 .5 0.5 0 --no-compile"
    line += " --learning-rate 1e-3 --seeds 2 1 2 1 1 --gradient-variance"
    monkeypatch.setattr(sys, "argv", line.split())
    monkeypatch.setattr(sys.modules["__main__"], "__doc__", "x")
    args = baselines.parse_args(p2pdrl.Args, p2pdrl.FIGURES)
    assert (args.total_steps, args.eps_te, args.compile, args.learning_rate) == (2_000_000, (0.0, 0.5), False, 1e-3)
    assert args.seeds == (2, 1) and args.gradient_variance and isinstance(args.total_steps, int)
    assert args.ranges == (1.0, 0.2, 0.2, 0.3, 0.0) and (args.figure, args.watch, args.gif) == ("", "", ())


@pytest.mark.parametrize(("name", "figure"), [
    ("p2pdrl", "4"), ("ppo", "curves"), ("dpd-ppo", "2"), ("piekd", "piekd-3"),
])  # fmt: skip
def test_figures_of_real_runs(finished, name, figure):
    """Drawn from what the run wrote, into the folder of all runs."""
    path, *_ = finished(name)
    out, _ = run(f"{COMMANDS[name]} --figure {figure}", path.parents[1])
    (drawn,) = re.findall(r"figure: (.*)", out)
    assert (path.parents[1] / drawn).stat().st_size > 20_000


def test_table_1_of_real_runs(finished):
    """Printed, with no figure; what has no runs yet is said."""
    path, *_ = finished("dpd-ppo")
    out, _ = run(f"{COMMANDS['dpd-ppo']} --figure table-1", path.parents[1])
    assert "no finished runs of vanilla; dpd, all states alike on Hopper-v4" in out and "figure" not in out
    lines = re.findall(r"^dpd, (.*): -?\d+ \[-?\d+, -?\d+\], 1$", out, re.M)
    assert len(lines) == 4 and "deterministic, better learner" in lines


@pytest.mark.parametrize("names", ["p2pdrl", "ppo ddpg sac", "dpd-ddpg", "piekd"])
def test_gif_or_one_line(finished, names):
    """One moving picture of some runs' policies, in the first one's folder, four domains of each, or where there is no
    OpenGL one line; without a screen --watch says so."""
    path, *others = paths = [finished(name)[0] for name in names.split()]
    script = COMMANDS[names.split()[0]].split()[0]
    process = start(f"{script} --gif {' '.join(map(str, paths))}", path.parent)
    out, err = process.communicate(timeout=200)
    if process.returncode == 0:
        assert (path / "policy.gif").read_bytes()[:3] == b"GIF" and f"moving picture: {path / 'policy.gif'}\n" in out
        assert [out.count(f"{each.name}: Domain(") for each in paths] == [4] * len(paths)
        assert not any((other / "policy.gif").exists() for other in others)
    else:
        assert process.returncode == 2 and "OpenGL" in err and err.count("\n") == 1
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        _, err = run(f"{script} --watch {path}", path.parent, status=2)
        assert "--gif" in err and err.count("\n") == 1


def meaning(thing):
    """The syntax tree, without docstrings and comments."""
    tree = ast.parse(inspect.getsource(thing))
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


@pytest.mark.parametrize(("module", "other", "names"), [
    (p2pdrl, baselines, "tanh_network GaussianActor ValueCritic gaussian_log_prob ppo_loss value_loss "
     "normalise_advantages Batch compute_advantages make_batch shuffle"),
    (dpd, baselines, "tanh_network relu_network DeterministicActor GaussianActor ActionCritic"),
    (piekd_cikd, baselines, "glorot two_layers SquashedActor TwinCritic"), (p2pdrl, piekd_cikd, "gaussian_kl"),
])  # fmt: skip
def test_what_two_scripts_define_is_the_same(module, other, names):
    """So that the tests of one hold for the other."""
    for name in names.split():
        assert getattr(module, name) is not getattr(other, name)
        assert meaning(getattr(module, name)) == meaning(getattr(other, name)), name


@pytest.mark.parametrize("script", ["randomised_envs", "baselines", "p2pdrl", "dpd", "piekd_cikd"])
def test_the_form_of_a_script(script):
    """No long lines. A paper's script imports no other one's, not much of baselines.py, and its code begins early."""
    text = (ROOT / f"{script}.py").read_text()
    assert max(map(len, text.splitlines())) <= 120
    papers = {"p2pdrl", "dpd", "piekd_cikd"}
    if script in papers:
        imports = [node for node in ast.parse(text).body if isinstance(node, (ast.Import, ast.ImportFrom))]
        shared = [each.name for node in imports if getattr(node, "module", "") == "baselines" for each in node.names]
        assert imports[0].lineno <= 65 and 0 < len(shared) <= 20
        assert not papers & set(re.findall(r"^ *(?:from|import) (\w+)", text, re.M))
