"""How fast is the main job, and where does its time go?

    python tests/benchmark.py                        # a quarter of an hour; no test, and no threshold: it prints tables
    python tests/benchmark.py --tables ddpg sac      # some of them

main-job: after each iteration of `python p2pdrl.py --env Walker2d-v4` the physics of its rollouts is played again,
the same trajectories, a thread for each rollout as in training, which calls nothing but `mj_step`: no program that
trains on this physics in this way can be faster. The ratio is the median over iterations of rate / physics alone.
methods: the methods of p2pdrl.py, and a cohort of eight. ddpg, sac: environment steps, or updates of agents, each
second; the learners take turns, and each number is the median over rounds. Where Stable-Baselines3 or SBX is installed,
it joins at the same batch, updates for each step, and networks as wide; its PPO steps two environments in one thread.
"""

import argparse
import copy
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
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


def skip_the_end_of_runs():
    """No run draws and prints what it has found."""
    import baselines

    baselines.SavedRun.draw, baselines.print_table = lambda self: None, lambda rows: None


def measure_main_job(args, compiled: bool, warm_up: int = 5) -> dict:
    """Run p2pdrl.train, and after each iteration its physics again; medians over iterations after warm-up."""
    import p2pdrl
    from baselines import Run

    rollout, iterations_of = p2pdrl.rollout, Run.iterations
    calls, seconds, pool = [], [], ThreadPoolExecutor(os.cpu_count())

    def noted_rollout(env, policy, std, domain, steps, rng):
        before = copy.deepcopy(rng)
        data = rollout(env, policy, std, domain, steps, rng)
        before.standard_normal(data.actions.shape, dtype=np.float32)  # drawn before the seed of the reset
        calls.append((env, domain, data, int(before.integers(2**31))))
        return data

    def timed_iterations(*arguments):
        for iteration in iterations_of(*arguments):
            began = time.perf_counter()
            yield iteration
            ended = time.perf_counter()
            list(pool.map(replay, *zip(*calls)))
            seconds.append((ended - began, time.perf_counter() - ended))
            calls.clear()

    p2pdrl.rollout, Run.iterations = noted_rollout, timed_iterations
    skip_the_end_of_runs()
    with tempfile.TemporaryDirectory() as folder:
        p2pdrl.train(p2pdrl.Args(
            env=args.env, method=args.method, agents=args.agents, compile=compiled, runs=folder, evaluations=1,
            total_steps=4096 * (args.iterations + warm_up), eval_domains=1, eps_te=(0.2,),
        ))  # fmt: skip
    total, physics = np.array(seconds[warm_up:-1]).T  # the last iteration holds the evaluation
    return {"rate": 4096 / np.median(total), "alone": 4096 / np.median(physics), "ratio": np.median(physics / total)}


def measure_learner(args, module: str, command: str, interval: int, warm_up: int, agents: int = 1) -> dict:
    """Environment steps (of all learners) and steps of agents by the second, after warm-up, through the command line.

    interval: steps between progress lines. agents: how many learn at each of the steps that are counted.
    """
    from baselines import Run, launch

    marks, iterations_of = [], Run.iterations

    def timed_iterations(self, parts, steps):
        for iteration in iterations_of(self, parts, steps):
            yield iteration
            marks.append(((iteration + 1) * steps, time.perf_counter()))

    Run.iterations = timed_iterations
    skip_the_end_of_runs()
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = [f"{module}.py", *command.split(), "--env", args.env, "--runs", folder]
        sys.argv += ["--total-steps", str(warm_up + args.steps + interval), "--warm-up", "1000"]
        sys.argv += "--eval-domains 1 --eps-te 0 --checkpoint-every 5".split()
        script = importlib.import_module(module)
        script.main() if module == "baselines" else launch(script.Args, script.train, {}, None)
    kept = [mark for mark in marks[:-1] if mark[0] >= warm_up]  # the last iteration holds the evaluation
    (first, began), (last, ended) = kept[0], kept[-1]
    rate = (last - first) / (ended - began)
    return {"rate": rate, "updates": agents * rate}


def measure_distillation(args) -> dict:
    """Minibatches by the second with which piekd_cikd.py teaches all students, after two phases for warm-up."""
    from baselines import Run, SACAgent, Stream
    from piekd_cikd import Args, SquashedActor, TwinCritic, teach

    run = Run(Args(env=args.env, buffer_size=100_000, distil_updates=args.steps // 4), "piekd_cikd")
    stream = Stream(run.envs[0], run.args, 0)
    obs_size, scale, buffer = len(stream.obs), stream.action_scale, stream.buffer
    networks = [(SquashedActor(obs_size, scale), TwinCritic(obs_size, len(scale))) for _ in range(3)]
    agents = [SACAgent(*each, run.args) for each in networks]
    entries = buffer.rows.view(np.float32)
    entries[:] = np.random.default_rng(0).standard_normal(entries.shape, dtype=np.float32)
    buffer.count = len(buffer.rows)
    for phase in range(3):
        began = time.perf_counter()
        teach(agents, 0, buffer, run.args, phase, run.pool)
        seconds = time.perf_counter() - began
    return {"rate": run.args.distil_updates * (len(agents) - 1) / seconds}


def measure_rival(args, package: str, algorithm: str, warm_up: int, layers, **settings) -> dict:
    """Environment steps by the second of another library's learner; SAC makes as many updates."""
    import torch
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.noise import NormalActionNoise

    if algorithm != "SAC":  # which has wider layers
        torch.set_num_threads(1)
    env = make_vec_env(args.env, n_envs=2 if algorithm == "PPO" else 1, seed=0)
    if algorithm == "DDPG":
        zero = np.zeros(env.action_space.shape)
        settings["action_noise"] = NormalActionNoise(zero, zero + 0.1)
    make = getattr(importlib.import_module(package), algorithm)
    learner = make("MlpPolicy", env, policy_kwargs={"net_arch": layers}, seed=0, device="cpu", **settings)
    steps = args.iterations // 4 * 4096 if algorithm == "PPO" else args.steps
    learner.learn(warm_up)
    began = time.perf_counter()
    learner.learn(steps, reset_num_timesteps=False)  # else it would wait for learning_starts again
    rate = steps / (time.perf_counter() - began)
    return {"rate": rate, "updates": rate}


STABLE = "stable_baselines3"
SAC = {"warm_up": 2000, "layers": [256, 256], "batch_size": 256, "train_freq": 1, "gradient_steps": 1,
       "learning_starts": 1000}  # fmt: skip
MEASUREMENTS = {  # a label, and what is called with the command line's arguments
    "eager": ("p2pdrl.py --no-compile", partial(measure_main_job, compiled=False)),
    "compiled": ("p2pdrl.py", partial(measure_main_job, compiled=True)),
    "sb3": ("Stable-Baselines3 PPO", partial(
        measure_rival, package=STABLE, algorithm="PPO", warm_up=2 * 4096, layers={"pi": [64, 64], "vf": [64, 64]},
        n_steps=2048, batch_size=128, n_epochs=10)),
    "ddpg": ("baselines.py, DDPG", partial(
        measure_learner, module="baselines", command="--algo ddpg --evaluations 1", interval=2000, warm_up=4000)),
    "dpd": ("dpd.py, two DDPG", partial(
        measure_learner, module="dpd", command="--base ddpg --evaluations 1", interval=4000, warm_up=4000)),
    "sb3-ddpg": ("Stable-Baselines3 DDPG", partial(
        measure_rival, package=STABLE, algorithm="DDPG", warm_up=4000, layers=[64, 64, 64], batch_size=64,
        train_freq=(100, "step"), gradient_steps=50, learning_starts=1000, tau=0.01, buffer_size=1_000_000)),
    "sac": ("baselines.py, SAC", partial(
        measure_learner, module="baselines", command="--algo sac --evaluations 1", interval=1000, warm_up=2000)),
    "ensemble": ("piekd_cikd.py, three SAC", partial(
        measure_learner, module="piekd_cikd", command="--method ensemble --evaluate-every 1000000", interval=1000,
        warm_up=2000, agents=3)),
    "sb3-sac": ("Stable-Baselines3 SAC", partial(measure_rival, package=STABLE, algorithm="SAC", **SAC)),
    "sbx-sac": ("SBX SAC (JAX)", partial(measure_rival, package="sbx", algorithm="SAC", **SAC)),
    "distillation": ("piekd_cikd.py, a phase", measure_distillation),
}  # fmt: skip


def in_a_process(only: str, **options) -> dict | None:
    """Call this file for one measurement: memory and compilation of one do not touch the next. None if it failed."""
    command = [sys.executable, __file__, "--only", only]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    lines = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout.splitlines()
    return json.loads(lines[-1]) if lines and lines[-1].startswith("{") else None


def print_row(label: str, *cells):
    print(f"{label:30}" + "".join(f"{cell:>14}" for cell in cells or ["failed, or not installed: see --only"]))


def print_main_job(args):
    """The main job with and without compilation, and Stable-Baselines3's PPO."""
    print_row(f"{args.env}, K = {args.agents}, {os.cpu_count()} cores", "steps/s", "physics alone", "ratio")
    for name in ("eager", "compiled", "sb3"):
        result, cells = in_a_process(name, env=args.env, agents=args.agents, iterations=args.iterations), []
        if result:
            cells = [f"{result['rate']:,.0f}"]
            cells += [f"{result['alone']:,.0f}", f"{result['ratio']:.1%}"] if name != "sb3" else []
        print_row(MEASUREMENTS[name][0], *cells)


def print_methods(args):
    """The methods of p2pdrl.py, and a cohort of eight, against the main job."""
    print_row("compiled, 4096 steps", "steps/s", "of main job")
    main_job = None
    methods = "p2pdrl", "ppo", "ppo-union", "distributed-ppo", "self-kl", "distral", "dnc", "p2pdrl"
    for method, agents in zip(methods, (2, 2, 2, 2, 2, 2, 2, 8)):
        result = in_a_process("compiled", env=args.env, agents=agents, iterations=args.iterations, method=method)
        main_job = main_job or result
        cells = [f"{result['rate']:,.0f}", f"{result['rate'] / main_job['rate']:.0%}"] if result else []
        print_row(f"{method}, K = {agents}", *cells)


def print_by_turns(args, names: tuple, what: str, heading: str):
    """Measurements that take turns: medians over the rounds, and medians of the ratios to Stable-Baselines3's."""
    results = [{name: in_a_process(name, env=args.env, steps=args.steps) for name in names} for _ in range(args.rounds)]
    print_row(heading, "a second", "least", "most", "of SB3's")
    for name in names:
        cells = []
        if all(result[name] for result in results):
            rates = [result[name][what] for result in results]
            cells = [f"{rate:,.0f}" for rate in (np.median(rates), min(rates), max(rates))]
            ratios = [result[name][what] / result[names[0]][what] for result in results if result[names[0]]]
            cells += [f"{np.median(ratios):.2f}x"] if ratios else []
        print_row(MEASUREMENTS[name][0], *cells)


def print_sac(args):
    """SAC and an ensemble of three against two other libraries, and the minibatches of a phase of distillation."""
    args = argparse.Namespace(env="Hopper-v4", steps=args.steps // 8, rounds=args.rounds)
    print_by_turns(args, ("sb3-sac", "sac", "ensemble", "sbx-sac"), "updates", "Hopper-v4, updates of agents")
    result = in_a_process("distillation", env=args.env, steps=args.steps)
    print_row("distillation, minibatches", *([f"{result['rate']:,.0f}"] if result else []))


def print_ddpg(args):
    """DDPG, and dual policy distillation on it, against Stable-Baselines3's DDPG."""
    print_by_turns(args, ("sb3-ddpg", "ddpg", "dpd"), "rate", f"{args.env}, 50 updates in 100")


TABLES = {"main-job": print_main_job, "methods": print_methods, "ddpg": print_ddpg, "sac": print_sac}


def main():
    parser = argparse.ArgumentParser(description="Measure the speed of the main job and of the other learners.")
    parser.add_argument("--env", default="Walker2d-v4")
    parser.add_argument("--agents", type=int, default=2, help="K")
    parser.add_argument("--method", default="p2pdrl")
    parser.add_argument("--iterations", type=int, default=40, help="measured, after 5 of warm-up")
    parser.add_argument("--steps", type=int, default=24_000, help="measured of DDPG; an eighth of it of SAC")
    parser.add_argument("--rounds", type=int, default=3, help="of the tables of DDPG and SAC")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES), help="all if not given")
    parser.add_argument("--only", choices=MEASUREMENTS, help="one measurement, as JSON")
    args = parser.parse_args()
    if args.only:
        return print(json.dumps(MEASUREMENTS[args.only][1](args)))
    for number, table in enumerate(args.tables):
        print(end="\n" if number else "")
        TABLES[table](args)


if __name__ == "__main__":
    main()
