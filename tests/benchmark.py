"""How fast is the main job, and where does its time go?

    python tests/benchmark.py                        # a quarter of an hour; no test, and no threshold: it prints tables
    python tests/benchmark.py --tables ddpg sac      # some of them

Everything is measured in one run, because a laptop's speed changes from minute to minute. After each iteration of
`python p2pdrl.py --env Walker2d-v4` the physics of its rollouts is played again, the same trajectories, by a thread for
each rollout as in training, which calls nothing but `mj_step`: no program that trains on this physics in this way can be
faster. Each ratio is the median over iterations of (rate / physics alone, just after).

The second table holds the methods of p2pdrl.py, and a cohort of eight, against the main job in the same run.

The other two hold the learners with a replay buffer: DDPG by environment steps per second, updates included, SAC by
updates of agents per second, environment steps included. They take turns, and each number is the median over rounds.

Where Stable-Baselines3 happens to be installed, its PPO joins the first table at the same batch, minibatches, epochs
and networks (two environments, which it steps one after the other in one thread, as it does unless told otherwise), its
DDPG and SAC the others at the same batch, updates for each step, and layers as wide; so does SBX's SAC.
"""

import argparse
import copy
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mujoco
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def replay(env, domain, data, seed) -> None:
    """The physics of a rollout and nothing else: mj_step with the recorded actions, resets where episodes ended."""
    low, high = env.action_space.low, env.action_space.high
    controls = np.clip(data.actions, low, high).astype(np.float64)
    model, state, frame_skip = env.model, env.data, env.unwrapped.frame_skip
    options = {"domain": domain}
    env.reset(seed=seed, options=options)
    for control, end in zip(controls, data.ends):
        state.ctrl[:] = control
        mujoco.mj_step(model, state, nstep=frame_skip)
        if end:
            env.reset(options=options)


def measure_main_job(env_id: str, method: str, agents: int, compiled: bool, iterations: int, warm_up: int) -> dict:
    """Run p2pdrl.train with a stopwatch in its functions; medians over the iterations after warm-up."""
    import resource

    import p2pdrl
    from baselines import Run, SavedRun, set_up_torch

    spans, updates, rows, calls = [], [], [], []
    rollout, update, iterations_of, pool = p2pdrl.rollout, p2pdrl.Agent.update, Run.iterations, ThreadPoolExecutor(os.cpu_count())

    def timed_rollout(env, policy, std, domain, steps, rng):
        before = copy.deepcopy(rng)
        began = time.perf_counter()
        data = rollout(env, policy, std, domain, steps, rng)
        spans.append((began, time.perf_counter()))
        before.standard_normal(data.actions.shape, dtype=np.float32)  # what a rollout draws before the seed of its reset
        calls.append((env, domain, data, int(before.integers(2**31))))
        return data

    def timed_update(*arguments):
        began = time.perf_counter()
        metrics = update(*arguments)
        updates.append(time.perf_counter() - began)
        return metrics

    def timed_iterations(*arguments):
        for iteration in iterations_of(*arguments):
            started = time.perf_counter()
            yield iteration
            total = time.perf_counter() - started
            collecting = max(end for _, end in spans) - min(begin for begin, _ in spans)
            began = time.perf_counter()
            list(pool.map(replay, *zip(*calls)))
            alone = time.perf_counter() - began
            rows.append({"total": total, "physics": alone, "policy": collecting - alone, "update": sum(updates),
                         "rest": total - collecting - sum(updates)})
            for record in (spans, updates, calls):
                record.clear()

    p2pdrl.rollout, p2pdrl.Agent.update, Run.iterations = timed_rollout, timed_update, timed_iterations
    SavedRun.draw = SavedRun.print_table = lambda self: None
    with tempfile.TemporaryDirectory() as folder:
        args = p2pdrl.Args(
            env=env_id, method=method, agents=agents, compile=compiled, total_steps=4096 * (iterations + warm_up),
            learning_rate=1e-4, threads=os.cpu_count(), runs=folder, evaluations=1, eval_domains=1, eps_te=(0.2,),
        )
        set_up_torch(args)
        p2pdrl.train(args)
    kept = rows[warm_up:-1]  # the last iteration holds the evaluation
    seconds = {name: float(np.median([row[name] for row in kept])) for name in kept[0]}
    return {
        "rate": 4096 / seconds["total"],
        "alone": 4096 / seconds["physics"],
        "ratio": float(np.median([row["physics"] / row["total"] for row in kept])),
        "seconds": seconds,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def measure_stable_baselines(env_id: str, iterations: int) -> dict:
    """Stable-Baselines3's PPO: two environments, batches of 4096, 32 minibatches, 10 epochs, 64-64 tanh networks."""
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(1)
    envs = make_vec_env(env_id, n_envs=2, seed=0)
    networks = {"net_arch": {"pi": [64, 64], "vf": [64, 64]}}
    learner = PPO("MlpPolicy", envs, n_steps=2048, batch_size=128, n_epochs=10, policy_kwargs=networks, seed=0, device="cpu")
    learner.learn(2 * 4096)  # warm-up
    began = time.perf_counter()
    learner.learn(4096 * iterations)
    return {"rate": 4096 * iterations / (time.perf_counter() - began)}


# The learners with a replay buffer: script, its command, how many agents learn at each of the steps that it counts, and
# how many steps lie between its progress lines.
LEARNERS = {
    "ddpg": ("baselines", "--algo ddpg --evaluations 1 --warm-up 1000", 1, 2000),
    "dpd": ("dpd", "--base ddpg --evaluations 1 --warm-up 1000", 1, 4000),
    "sac": ("baselines", "--algo sac --evaluations 1 --warm-up 1000", 1, 1000),
    "ensemble": ("piekd_cikd", "--method ensemble --evaluate-every 1000000 --warm-up 1000", 3, 1000),
}


def measure_learner(learner: str, env_id: str, steps: int, warm_up: int) -> dict:
    """Environment steps (of all learners) and steps of agents by the second, after warm-up, through the command line."""
    from baselines import Run, SavedRun

    script, command, agents, interval = LEARNERS[learner]
    marks, iterations_of = [], Run.iterations

    def timed_iterations(self, parts, steps, *rest):
        for iteration in iterations_of(self, parts, steps, *rest):
            yield iteration
            marks.append(((iteration + 1) * steps, time.perf_counter()))

    Run.iterations = timed_iterations
    SavedRun.draw = SavedRun.print_table = lambda self: None
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = [script + ".py", *command.split(), "--env", env_id, "--total-steps", str(warm_up + steps + interval)]
        sys.argv += ["--runs", folder, *"--eval-domains 1 --eps-te 0 --checkpoint-every 5".split()]
        runpy.run_path(ROOT / (script + ".py"), run_name="__main__")
    kept = [mark for mark in marks[:-1] if mark[0] >= warm_up]  # the last iteration holds the evaluation
    (first, began), (last, ended) = kept[0], kept[-1]
    rate = (last - first) / (ended - began)
    return {"rate": rate, "updates": agents * rate}


def measure_distillation(env_id: str, minibatches: int) -> dict:
    """Minibatches by the second with which students of piekd_cikd.py are taught, all together, after two phases for warm-up."""
    import piekd_cikd
    from baselines import ReplayBuffer, SACAgent, make_envs, set_up_torch, symmetric_action_scale, workers

    args = piekd_cikd.Args(env=env_id, threads=os.cpu_count(), distill_updates=minibatches)
    set_up_torch(args)
    (env,) = make_envs(args, 1)
    obs_size, scale = env.observation_space.shape[0], symmetric_action_scale(env)
    networks = [(piekd_cikd.SquashedActor(obs_size, scale), piekd_cikd.TwinCritic(obs_size, len(scale))) for _ in range(3)]
    agents = [SACAgent(*each, args) for each in networks]
    buffer = ReplayBuffer(obs_size, len(scale), 100_000)
    buffer.rows[:] = np.random.default_rng(0).standard_normal(buffer.rows.shape, dtype=np.float32)
    buffer.count = len(buffer.rows)
    for phase in range(3):
        began = time.perf_counter()
        piekd_cikd.teach(agents, 0, buffer, args, phase, workers(args.threads))
        seconds = time.perf_counter() - began
    return {"rate": minibatches * (len(agents) - 1) / seconds}


def measure_stable_baselines_ddpg(env_id: str, steps: int, warm_up: int) -> dict:
    """Stable-Baselines3's DDPG: 50 updates of 64 transitions for every 100 steps, 64-64-64 ReLU networks."""
    import torch
    from stable_baselines3 import DDPG
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.noise import NormalActionNoise

    torch.set_num_threads(1)
    env = make_vec_env(env_id, n_envs=1, seed=0)
    actions = env.action_space.shape
    learner = DDPG(
        "MlpPolicy", env, batch_size=64, train_freq=(100, "step"), gradient_steps=50, learning_starts=1000, tau=0.01,
        buffer_size=1_000_000, action_noise=NormalActionNoise(np.zeros(actions), np.full(actions, 0.1)),
        policy_kwargs={"net_arch": [64, 64, 64]}, seed=0, device="cpu",
    )
    learner.learn(warm_up)
    began = time.perf_counter()
    learner.learn(steps, reset_num_timesteps=False)  # else it would wait for learning_starts again
    return {"rate": steps / (time.perf_counter() - began)}


def measure_other_sac(library: str, env_id: str, steps: int, warm_up: int) -> dict:
    """SAC of Stable-Baselines3 or of SBX (in JAX): an update of 256 transitions for each step, 256-256 ReLU networks."""
    import importlib

    SAC = importlib.import_module(library).SAC
    settings = {"batch_size": 256, "train_freq": 1, "gradient_steps": 1, "learning_starts": 1000, "seed": 0}
    settings["policy_kwargs"] = {"net_arch": [256, 256]}
    learner = SAC("MlpPolicy", env_id, device="cpu", **settings)
    learner.learn(warm_up)
    began = time.perf_counter()
    learner.learn(steps, reset_num_timesteps=False)
    rate = steps / (time.perf_counter() - began)
    return {"rate": rate, "updates": rate}


def in_a_process(arguments: list[str]) -> dict | None:
    """Call this file for one measurement: memory and compilation of one do not touch the next."""
    command = [sys.executable, __file__, *arguments]
    lines = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout.splitlines()
    return json.loads(lines[-1]) if lines and lines[-1].startswith("{") else None


def seconds_to_first_line(env_id: str) -> float:
    """From the command, without compilation, to the first progress line."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, ROOT / "p2pdrl.py", "--env", env_id, "--no-compile", "--runs", folder]
        began = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            process.stdout.readline()
            waited = time.perf_counter() - began
            process.kill()
    return waited


def print_main_job(args):
    """The main job with and without compilation, where its time goes, and Stable-Baselines3's PPO."""
    common = ["--env", args.env, "--agents", str(args.agents), "--iterations", str(args.iterations)]
    print(f"{args.env}, K = {args.agents}, 4096 steps per iteration, {os.cpu_count()} cores\n")
    print(f"start to first progress line, eager: {seconds_to_first_line(args.env):.1f} s\n")
    print(f"{'':24}{'steps/s':>9}{'physics alone':>15}{'ratio':>8}   seconds for each iteration{'':26}{'memory':>8}")
    print(f"{'':56}   {'physics':>9}{'policy':>9}{'update':>9}{'rest':>9}")
    for name in ("eager", "compiled"):
        result = in_a_process([*common, "--only", name])
        if result is None:
            print(f"p2pdrl.py, {name}: failed; see python {Path(__file__).name} --only {name}")
            continue
        parts = "".join(f"{result['seconds'][part]:9.3f}" for part in ("physics", "policy", "update", "rest"))
        print(f"{'p2pdrl.py, ' + name:24}{result['rate']:9,.0f}{result['alone']:15,.0f}{result['ratio']:8.1%}   ", end="")
        print(f"{parts}{result['memory']:14.0f} MB")
    other = in_a_process([*common, "--only", "sb3"])
    if other:
        print(f"{'Stable-Baselines3 PPO':24}{other['rate']:9,.0f}")
    else:
        print("Stable-Baselines3 is not installed: not compared")


def print_methods(args):
    """The methods of p2pdrl.py, and a cohort of eight, against the main job."""
    print(f"{'compiled, 4096 steps':24}{'steps/s':>9}{'of p2pdrl, K = 2':>20}")
    main_job = None
    methods = "p2pdrl", "ppo", "ppo-union", "distributed-ppo", "self-kl", "distral", "dnc", "p2pdrl"
    for method, agents in zip(methods, (2, 2, 2, 2, 2, 2, 2, 8)):
        common = ["--env", args.env, "--agents", str(agents), "--iterations", str(args.iterations), "--method", method]
        result = in_a_process([*common, "--only", "compiled"])
        if result is None:
            print(f"{method}, K = {agents}: failed")
            continue
        main_job = main_job or result
        print(f"{f'{method}, K = {agents}':24}{result['rate']:9,.0f}{result['rate'] / main_job['rate']:20.0%}")


def print_by_turns(names: dict[str, str], reference: str, what: str, heading: str, rounds: int, common: list[str]):
    """A table of measurements that take turns: medians over the rounds, and medians of the ratios to the reference's."""
    results = [{name: in_a_process([*common, "--only", name]) for name in names} for _ in range(rounds)]
    print(f"{heading:28}{'a second':>9}{'least':>9}{'most':>9}{'of ' + names[reference]:>34}")
    for name, label in names.items():
        if not all(result[name] for result in results):
            print(f"{label}: failed, or not installed; see python {Path(__file__).name} --only {name}")
            continue
        rates = [result[name][what] for result in results]
        print(f"{label:28}{np.median(rates):9,.0f}{min(rates):9,.0f}{max(rates):9,.0f}", end="")
        ratios = [rate / result[reference][what] for rate, result in zip(rates, results) if result[reference]]
        print(f"{np.median(ratios):33.2f}x" if ratios else "")


def print_ddpg(args):
    """DDPG and dual policy distillation on it against Stable-Baselines3's DDPG: environment steps by the second."""
    names = {"ddpg": "baselines.py, DDPG", "dpd": "dpd.py, two DDPG", "sb3-ddpg": "Stable-Baselines3 DDPG"}
    heading, common = f"{args.env}, steps, 50 updates in 100", ["--env", args.env, "--steps", str(args.steps)]
    print_by_turns(names, "sb3-ddpg", "rate", heading, args.rounds, common)


def print_sac(args):
    """SAC and an ensemble of three against two other libraries: updates of agents by the second."""
    names = {"sac": "baselines.py, SAC", "ensemble": "piekd_cikd.py, three SAC"}
    names |= {"sb3-sac": "Stable-Baselines3 SAC", "sbx-sac": "SBX SAC (JAX)"}
    heading, common = "Hopper-v4, updates of agents", ["--env", "Hopper-v4", "--steps", str(args.steps // 8)]
    print_by_turns(names, "sb3-sac", "updates", heading, args.rounds, common)
    distillation = in_a_process([*common, "--only", "distillation"])
    if distillation:
        print(f"in a phase of distillation, minibatches of students (policy and critics): {distillation['rate']:,.0f} a second")


TABLES = {"main-job": print_main_job, "methods": print_methods, "ddpg": print_ddpg, "sac": print_sac}


def main():
    parser = argparse.ArgumentParser(description="Measure the speed of the main job and of the other learners.")
    parser.add_argument("--env", default="Walker2d-v4")
    parser.add_argument("--agents", type=int, default=2, help="K")
    parser.add_argument("--method", default="p2pdrl")
    parser.add_argument("--iterations", type=int, default=40, help="measured, after 5 of warm-up")
    parser.add_argument("--steps", type=int, default=24_000, help="measured of DDPG; an eighth of it of SAC")
    parser.add_argument("--rounds", type=int, default=3, help="of the tables of DDPG and SAC")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES), help="which to print; all if not given")
    choices = "compiled", "eager", "sb3", "sb3-ddpg", "sb3-sac", "sbx-sac", "distillation", *LEARNERS
    parser.add_argument("--only", choices=choices, help="one measurement, as JSON")
    args = parser.parse_args()
    if args.only == "sb3":
        result = measure_stable_baselines(args.env, args.iterations // 4)
    elif args.only == "sb3-ddpg":
        result = measure_stable_baselines_ddpg(args.env, args.steps, warm_up=4000)
    elif args.only in ("sb3-sac", "sbx-sac"):
        library = {"sb3-sac": "stable_baselines3", "sbx-sac": "sbx"}[args.only]
        result = measure_other_sac(library, args.env, args.steps, warm_up=2000)
    elif args.only == "distillation":
        result = measure_distillation(args.env, args.steps // 4)
    elif args.only in LEARNERS:
        result = measure_learner(args.only, args.env, args.steps, warm_up=2000 if args.only in ("sac", "ensemble") else 4000)
    elif args.only:
        compiled = args.only == "compiled"
        result = measure_main_job(args.env, args.method, args.agents, compiled, args.iterations, warm_up=5)
    if args.only:
        return print(json.dumps(result))
    for number, table in enumerate(args.tables):
        print(end="\n" if number else "")
        TABLES[table](args)


if __name__ == "__main__":
    main()
