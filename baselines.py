"""Single-agent baselines, and the plumbing that every script here shares.

    python baselines.py --algo ppo --env Hopper-v4                     # a million steps, minutes on a laptop
    python baselines.py --algo ppo --env Hopper-v4 --seeds 0 1 2 --jobs 2
    python baselines.py --algo ddpg --env HalfCheetah-v4 --total-steps 3e5
    python baselines.py --algo sac --env Hopper-v4 --total-steps 2e5
    python baselines.py --curves                     # learning curves of all runs that have a million steps
    python baselines.py --curves --total-steps 3e5   # or of those that have these: other settings likewise

Part 1 is what is *not* the algorithms: command line, run folder, rollouts, advantages, evaluation, curves.
A reader of an algorithm can take it on trust: each piece says in its first line what it does.
Part 2 is PPO, DDPG and SAC for one agent, each written to be read on its own.

PPO: Schulman et al., "Proximal Policy Optimization Algorithms" (2017); equation numbers refer to it.

    code                | paper            | shape
    obs, actions        | s_t, a_t         | (N, obs), (N, act)
    ratio               | r_t(theta)       | (N,)
    advantages          | A_t              | (N,)
    targets             | V_t^targ         | (N,)

    L^CLIP = E[min(r_t A_t, clip(r_t, 1 - clip, 1 + clip) A_t)]                                        Eq. (7)
    L^VF   = (V(s_t) - V_t^targ)^2                                                                     Eq. (9)
    A_t    = sum_l (gamma gae_lambda)^l delta_{t+l},  delta_t = r_t + gamma V(s_{t+1}) - V(s_t)   Eq. (11), (12)

DDPG: Lillicrap et al., "Continuous control with deep reinforcement learning" (2016); equation numbers refer to it,
settings to OpenAI's baselines: layers are normalised, and the exploration is noise on the actor's weights (Plappert et
al., "Parameter space noise for exploration", 2018). Not from there: random steps at the beginning, and that noise is
drawn for 100 steps at least, where theirs is drawn for each episode. Without normalised layers one seed in four never
learned to run, whichever noise it had: the L2 regularisation shrank the critic's hidden weights for good. With them all
that were tried did. (Noise on weights and on actions were compared without them only.)

    actor, critic       | mu(s), Q(s, a)   | (N, act), (N,)
    target_actor, ...   | mu', Q'          |
    targets             | y                | (N,)

SAC: Haarnoja et al., "Soft actor-critic algorithms and applications" (2018); equation numbers refer to it. Networks
begin with Glorot's uniform weights and biases of 0. All gradients of an update are taken where the parameters are
before it, so that they can be worked out at the same time. (Elsewhere the actor's goes through the new critic.)

    L^Q     = E[1/2 (Q_i(s, a) - y)^2],  y = r + gamma (min_j Q'_j(s', a') - alpha log pi(a'|s'))      Eq. (5), (6)
    L^pi    = E[alpha log pi(a|s) - min_j Q_j(s, a)]                                                       Eq. (9)
    L^alpha = -alpha E[log pi(a|s) - dim(A)]                                                              Eq. (18)

    actor, critic       | pi(a|s), Q_1, Q_2 | (N, act) mean and log_std before the squash, (2, N)
    target_critic       | Q'_1, Q'_2        |
    targets             | y                 | (N,)
    alpha               | alpha             | (1,) the temperature, what entropy is worth
    log_probs           | log pi(a|s)       | (N,) of actions in (-1, 1), before they are scaled to the robot's

You should know
---------------
* A time limit is not a death. When an episode is cut (by the limit, or because PPO's batch is full), its future
  is still worth what the critic says of the last observation; only where the robot really fell is it worth nothing.
* An observation normaliser is part of the policy and saved with it. PPO's is frozen while a batch is in use, so that
  the policy that collected the data is the policy in the ratio's denominator. SAC has none.
* PPO divides rewards by the running standard deviation of the discounted return, and never shifts them: shifting
  would change which behaviour is best wherever episodes can end early. DDPG and SAC take them as they are.
* Initial weights come from torch's generator; every other random number from one of its own, keyed by seed, agent and
  iteration (or episode). So a run needs no hidden state to be resumed to the bit, and the number of threads cannot
  change it.
"""

import argparse
import copy
import csv
import dataclasses
import hashlib
import inspect
import json
import math
import os
import platform
import queue
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
import typing
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import gymnasium as gym
import mujoco
import numpy as np
import torch
from torch import nn
from torch.optim.adam import adam

from randomised_envs import Domain, Parser, RandomisedEnv, check_eps, make_env, sample_domain

try:
    import fcntl
except ImportError:  # Windows, where nothing here keeps two processes out of one folder
    fcntl = None

# =========================================================================================================
# Part 1: plumbing
# =========================================================================================================


# ---------------------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------------------


def fail(message: str, status: int = 2) -> typing.NoReturn:
    """End the program with one line on stderr; status 2 is the caller's mistake."""
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr, flush=True)
    raise SystemExit(status)


def whole_number(text: str) -> int:
    """int, but 2e6 and 2_000_000 are numbers too."""
    value = float(text)
    if not value.is_integer():  # nan and inf are none
        raise ValueError(text)
    return int(value)


def parse_args(Args: type, description: str):
    """Fill the dataclass `Args` from the command line.

    `steps: int = 4096  # of each agent` becomes `--steps`, with the comment as its help; a comment on a line of
    its own begins a group. Booleans become `--flag/--no-flag`, Literals choices, tuples lists.
    """
    parser = group = Parser(description=description)
    hints = typing.get_type_hints(Args)
    for line in inspect.getsource(Args).splitlines():
        if heading := re.fullmatch(r" +# (.+)", line):
            group = parser.add_argument_group(heading[1])
        elif field := re.fullmatch(r" +(\w+): .+? = .+?  # (.+)", line):
            name, comment = field[1], field[2].replace("%", "%%")
            kind, default, options = hints[name], getattr(Args, name), {}
            if isinstance(kind, types.UnionType):  # float | None
                kind = typing.get_args(kind)[0]
            if kind is bool:
                options["action"] = argparse.BooleanOptionalAction
            elif typing.get_origin(kind) is Literal:
                options["choices"] = typing.get_args(kind)
            elif typing.get_origin(kind) is tuple:
                options.update(nargs="*", type=whole_number if int in typing.get_args(kind) else float)
            else:
                options["type"] = whole_number if kind is int else kind
            if kind is str:
                options["metavar"] = name.upper()
            group.add_argument("--" + name.replace("_", "-"), default=default, help=comment, **options)
    values = vars(parser.parse_args())
    return Args(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def run_seeds(seeds: tuple[int, ...], jobs: int):
    """Run this very command once for each seed, `jobs` processes at a time, and pass on what they print.

    Ctrl-C, which reaches them too, ends those that run and begins no others.
    """
    turns, failed, stopped = threading.Semaphore(jobs), [], threading.Event()
    threads = max(1, (os.cpu_count() or 1) // min(jobs, len(seeds)))

    def run(seed):
        with turns:
            if stopped.is_set():
                return
            # Of two --threads the last one counts, so that the user's own goes before ours.
            ours, changed = ["--threads", str(threads)], ["--seeds", "--seed", str(seed)]
            command = [sys.executable, sys.argv[0], *ours, *sys.argv[1:], *changed]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
                for line in process.stdout:
                    print(f"seed {seed} | {line}", end="", flush=True)
            if process.returncode in (130, -signal.SIGINT):
                stopped.set()
            if process.returncode:
                failed.append(process.returncode)

    workers = [threading.Thread(target=run, args=(seed,)) for seed in seeds]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    except KeyboardInterrupt:
        stopped.set()
        raise
    if failed:
        raise SystemExit(max(failed))


# ---------------------------------------------------------------------------------------------------------
# Run folder: config.json, log.csv, eval.csv, checkpoint.pt, figure.png
# ---------------------------------------------------------------------------------------------------------

# Settings that may differ between a run and its continuation: they cannot change its result.
FREE_SETTINGS = {"seeds", "jobs", "threads", "overwrite", "runs", "checkpoint_every", "figure", "curves", "watch", "gif",
                 "table"}
# Settings in which the runs of one line in a figure may differ beside these.
COMPARED = {"seed", "learning_rate", "device", "compile", "eval_domains", "evaluations", "gradient_variance"}


def settings_of(args) -> dict:
    """All settings as config.json holds them."""
    return json.loads(json.dumps(dataclasses.asdict(args)))


def fingerprint(xml_file: str) -> str | None:
    """Of the content of the user's own MJCF file, if there is one: its name says little."""
    path = Path(xml_file)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__, "gymnasium": gym.__version__,
            "mujoco": mujoco.__version__, "numpy": np.__version__}


class Run:
    """A run's folder on disk. Opening it finds out whether the run is new, to be resumed or finished.

    A checkpoint remembers how long the logs were when it was written; opening cuts them back to that length. So
    whatever a killed process wrote after its last checkpoint is gone, and is written again, identically. Everything
    is written beside its target and renamed over it.
    """

    def __init__(self, args, script: str, method: str, logs: tuple[str, ...] = ("log.csv", "eval.csv")):
        """logs: names of the tables that it writes."""
        self.path = Path(args.runs) / f"{script}-{method}-{args.env}-eps{args.eps_tr:g}-seed{args.seed}"
        self.args = args
        self.config = {"script": script, "settings": settings_of(args), "versions": versions()}
        self.config["robot"] = fingerprint(args.xml_file)
        self.state, self.iteration, self.finished, self.seconds = None, 0, False, 0.0
        self.unlock = None
        self.sizes = dict.fromkeys(logs, 0)
        self.overwrite = args.overwrite and (self.path / "config.json").exists()
        if (self.path / "config.json").exists() and not self.overwrite:
            self._compare()
            self._load()

    def _compare(self):
        try:
            old = json.loads((self.path / "config.json").read_text())
            before, now = dict(old["settings"]), self.config["settings"]
        except (OSError, ValueError, KeyError, TypeError):
            fail(f"{self.path}/config.json is damaged: start anew with --overwrite, or choose another --runs folder")
        changed = [name for name in now if name not in FREE_SETTINGS and before.get(name) != now[name]]
        if changed:
            differences = ", ".join(f"{name} was {before.get(name)}, is now {now[name]}" for name in changed)
            fail(f"{self.path} has other settings ({differences}): --overwrite it or choose another --runs folder")
        if old.get("robot") != self.config["robot"]:
            fail(f"{self.args.xml_file} is not what it was when {self.path} was begun: --overwrite it or choose another --runs folder")
        if old.get("versions") != self.config["versions"]:
            print(f"note: {self.path} was begun with other versions of Python or packages; the last bits may differ")

    def _load(self):
        path = self.path / "checkpoint.pt"
        if not path.exists():
            return  # killed before its first checkpoint
        try:
            saved = torch.load(path, weights_only=True, map_location="cpu")
            self.state, self.iteration, self.finished = saved["state"], saved["iteration"], saved["finished"]
            self.seconds, self.sizes = saved["seconds"], saved["sizes"]
            self.compiled = saved["compiled"]
        except Exception as error:  # torch.load has no common class for what a damaged file raises
            fail(f"{path} is damaged ({type(error).__name__}): start anew with --overwrite, or put a good copy in its place")
        for name, size in self.sizes.items():
            if not (self.path / name).exists() or (self.path / name).stat().st_size < size:
                fail(f"{self.path / name} is shorter than its checkpoint says: start anew with --overwrite")

    def make_folder(self, room: int = 0):
        """Make the run's folder if it is not there, anew if asked to, and keep other processes out of it.

        room: how many bytes are going to be needed. Nothing has been written before, and nothing is if they are not there.
        """
        try:
            there = [file for file in self.path.glob("*") if file.is_file()]
            parent = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
            if shutil.disk_usage(parent).free + sum(file.stat().st_size for file in there) < room:
                fail(f"no room for a replay buffer of {room / 1e9:.1f} GB in {self.path}: see --buffer-size")
            self.path.mkdir(parents=True, exist_ok=True)
            if self.unlock is None:
                self._lock()
            if self.overwrite:  # only now that nothing else can be wrong
                for file in there:
                    file.unlink()
                self.overwrite = False
        except OSError as error:
            fail(f"cannot write to {self.path}: {error.strerror}")

    def _lock(self):
        """Refuse a folder that another process is training in: both would write the same files."""
        if fcntl is None:
            return
        folder = os.open(self.path, os.O_RDONLY)
        self.unlock = weakref.finalize(self, os.close, folder)  # with this object, or its process, the lock ends
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fail(f"another process is training in {self.path}: wait for it, or choose another --runs folder")
        except OSError:
            pass  # a file system that knows no locks

    def resume(self, parts: dict, steps_per_iteration: int) -> int:
        """Make or reopen the folder, and put a checkpoint's state into `parts`; the number of iterations done.

        Until here nothing has been written, but for replay buffers.
        """
        if self.state:
            try:
                for name, part in parts.items():
                    part.load_state_dict(self.state[name])
            except (KeyError, RuntimeError, ValueError) as error:
                fail(f"{self.path}/checkpoint.pt does not fit ({type(error).__name__}): start anew with --overwrite")
            print(f"resuming {self.path} after {self.iteration * steps_per_iteration:,} steps")
            if self.compiled != self.args.compile:  # a compiler has been installed since, or removed
                print(f"note: {self.path} was {'' if self.compiled else 'not '}compiled so far; the last bits may differ")
        try:
            self.make_folder()
            if not (self.path / "config.json").exists():
                self._replace("config.json", lambda path: path.write_text(json.dumps(self.config, indent=1) + "\n"))
            self.files = {}
            for name, size in self.sizes.items():
                (self.path / name).touch()
                os.truncate(self.path / name, size)  # before opening: an open file would not notice
                self.files[name] = open(self.path / name, "a", newline="")
        except OSError as error:
            fail(f"cannot write to {self.path}: {error.strerror}")
        self.began = time.perf_counter() - self.seconds
        return self.iteration

    def check_finite(self, step: int, agent: int | str, values: list[float], parameters: torch.Tensor):
        """End the program, leaving the last good checkpoint, if a loss, a return or a weight is not a number."""
        if not (np.all(np.isfinite(values)) and parameters.isfinite().all()):
            what = f"step {step}, agent {agent}: a loss, return or weight is not finite"
            fail(f"{what}; {self.path} keeps its last checkpoint", status=1)

    def elapsed(self) -> float:
        """Seconds of training so far, over all the processes that took part."""
        return time.perf_counter() - self.began

    def write(self, name: str, rows: list[dict]):
        """Append rows to one of the logs."""
        file = self.files[name]
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerows(rows)
        file.flush()

    def save(self, parts: dict, iteration: int, finished: bool):
        """Write a checkpoint of all `parts` (whatever has a state_dict): tensors and plain numbers only."""
        self.sizes = {name: file.tell() for name, file in self.files.items()}
        state = {name: part.state_dict() for name, part in parts.items()}
        saved = {"state": state, "iteration": iteration, "finished": finished}
        saved |= {"seconds": self.elapsed(), "sizes": self.sizes, "compiled": self.args.compile}
        self._replace("checkpoint.pt", lambda path: torch.save(saved, path))

    def snapshot(self, step: int, actors: list[nn.Module]):
        """Keep these policies as they are at this step, in policies-<step>.pt."""
        states = [actor.state_dict() for actor in actors]
        self._replace(f"policies-{step}.pt", lambda path: torch.save(states, path))

    def _replace(self, name, write):
        beside = self.path / f".{name}.new"
        write(beside)
        with open(beside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(beside, self.path / name)


def read_csv(path: Path) -> dict[str, np.ndarray]:
    """Columns of a log.csv or eval.csv as float arrays, all of one length."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in (rows[0] if rows else ())}


def steps_of(path: Path) -> list[int]:
    """The steps at which a run kept its policies."""
    return sorted(int(file.stem.removeprefix("policies-")) for file in path.glob("policies-*.pt"))


def find_runs(args, script: str, by: tuple[str, ...]) -> dict[tuple, list[Path]]:
    """Finished runs of `script` below args.runs by the values of the settings `by`, seeds in order.

    All other settings are those of `args`, but for those in COMPARED, which may be whatever they are. Says how many
    runs it passed over.
    """
    ignored = FREE_SETTINGS | COMPARED | set(by)
    wanted = {name: value for name, value in settings_of(args).items() if name not in ignored}
    found, others = {}, 0
    for config in Path(args.runs).glob("**/config.json"):
        try:
            content = json.loads(config.read_text())
            settings = content["settings"]
            if content["script"] != script:
                continue
            same = all(settings.get(name) == value for name, value in wanted.items())
            if same and torch.load(config.parent / "checkpoint.pt", weights_only=True, map_location="cpu")["finished"]:
                found.setdefault(tuple(settings[name] for name in by), []).append((settings, config.parent))
            else:
                others += 1
        except Exception:  # unfinished, damaged or not one of ours: a figure can do without it
            others += 1
    if others:
        print(f"note: {others} runs below {args.runs}/ are unfinished or have other settings, and are left out")
    chosen = {}
    for key, runs in sorted(found.items()):
        if len({settings.get("learning_rate") for settings, _ in runs}) > 1:  # which one is meant?
            what = ", ".join(f"{name} {value}" for name, value in zip(by, key))
            fail(f"runs of {what} below {args.runs}/ have different learning rates: choose among them with --runs")
        # Of two runs of one seed, which then differ in nothing that matters here, the one evaluated more often.
        runs.sort(key=lambda run: (run[0]["seed"], run[0].get("evaluations", 0), str(run[1])))
        chosen[key] = list({settings["seed"]: path for settings, path in runs}.values())
    return chosen


def given(args, without: set[str]) -> dict:
    """The settings of this command line that are not as usual, but for `without` and what changes no result."""
    left_out = FREE_SETTINGS - {"runs"} | without
    return {name: value for name, value in vars(args).items() if name not in left_out and value != getattr(type(args), name)}


def as_command(script: str, settings: dict) -> str:
    """The command line that says these settings; where the runs are and their seeds come last."""
    words = ["python", script]
    for name in sorted(settings, key=("runs", "seeds").__contains__):
        value = settings[name]
        words.append(("--no-" if value is False else "--") + name.replace("_", "-"))
        if not isinstance(value, bool):
            words += map(str, value if isinstance(value, tuple) else (value,))
    return shlex.join(words)


class Progress:
    """One line that says how far a run is: rewritten in a terminal, a line every ten seconds elsewhere."""

    def __init__(self, total_steps: int, step: int):
        self.total, self.first, self.began, self.shown = total_steps, step, time.perf_counter(), -math.inf

    def show(self, step: int, mean_return: float):
        now = time.perf_counter()
        last = step >= self.total
        if not (sys.stdout.isatty() or last or now - self.shown > 10):
            return
        self.shown = now
        rate = (step - self.first) / (now - self.began)
        seconds = round((self.total - step) / rate)
        left = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"  # may be days
        line = f"{step:>11,} of {self.total:,} steps   return {mean_return:8.1f}   {rate:7,.0f} steps/s   {left} left"
        if sys.stdout.isatty():
            print("\r\x1b[K" + line, end="\n" if last else "", flush=True)
        else:
            print(line, flush=True)


# ---------------------------------------------------------------------------------------------------------
# Torch: determinism, compilation, normalisation
# ---------------------------------------------------------------------------------------------------------


def set_up_torch(args):
    """Seeded, the compiler tried once, and one thread for each product, because small ones gain nothing from more.

    `args.device` is checked; `args.compile` becomes False, with a line that says so, where nothing can compile.
    """
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    try:
        torch.zeros(1, device=args.device)
    except (RuntimeError, AssertionError) as error:
        fail(f"device {args.device!r} cannot be used: {str(error).splitlines()[0]}")
    if args.compile:
        from torch import _dynamo, _inductor

        _dynamo.config.trace_autograd_ops = True  # autograd.grad inside a full graph
        _dynamo.config.recompile_limit = 64  # one graph for each number of peers
        _inductor.config.compile_threads = 1  # no pool of processes for two small graphs
        _inductor.config.cpp_wrapper = args.device == "cpu"  # a fifth less time for each call
        try:
            torch.compile(lambda x: x + 1)(torch.zeros(1, device=args.device))
        except Exception as error:  # no compiler, no Python headers, no Triton: each raises a class of its own
            print(f"note: running without torch.compile, which failed here ({type(error).__name__}); about half the speed")
            args.compile = False


def compiled(function, args):
    """The function as one compiled graph, which is made when it is first called; itself where args.compile is False."""
    return torch.compile(function, fullgraph=True, dynamic=False) if args.compile else function


def workers(number: int) -> ThreadPoolExecutor:
    """Threads for work that goes on at the same time, each of which computes by itself."""
    return ThreadPoolExecutor(number, initializer=torch.set_num_threads, initargs=(1,))


class RunningNorm(nn.Module):
    """Running mean and variance over all data absorbed so far, and the map x -> (x - mean) / std, clipped.

    The statistics are buffers: they are saved with the module, and change in `absorb` only.
    """

    def __init__(self, shape: tuple[int, ...], clip: float = 10.0):
        super().__init__()
        self.clip = clip
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("var", torch.ones(shape, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, x):  # (N, *shape) -> (N, *shape)
        return ((x - self.mean.float()) / self.std().float()).clamp(-self.clip, self.clip)

    def std(self):
        return (self.var + 1e-8).sqrt()

    def absorb(self, x: np.ndarray):
        """Take the rows of x (N, *shape) into the statistics (parallel variance, Chan et al. 1979)."""
        x = torch.as_tensor(x, dtype=torch.float64, device=self.mean.device)
        mean, var, count = x.mean(0), x.var(0, correction=0), len(x)
        total = self.count + count
        delta = mean - self.mean
        self.var.copy_((self.var * self.count + var * count + delta**2 * self.count * count / total) / total)
        self.mean.add_(delta * count / total)
        self.count.copy_(total)


def one_vector(*modules: nn.Module) -> nn.Parameter:
    """All parameters of the modules as one vector, of which each parameter becomes a view."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    vector = nn.Parameter(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    pieces = vector.data.split([parameter.numel() for parameter in parameters])
    for parameter, piece in zip(parameters, pieces):
        parameter.data = piece.view_as(parameter)
    return vector


class Adam(nn.Module):
    """Adam (Kingma and Ba 2015) on one vector, as a function that can stand inside a compiled graph.

    The arithmetic is torch's. Its optimiser object works outside of a graph only, where its bookkeeping takes ten
    times as long as its arithmetic does for networks of this size.
    """

    def __init__(self, parameters: torch.Tensor, learning_rate: float, eps: float = 1e-8):
        super().__init__()
        self.learning_rate, self.eps = learning_rate, eps
        self.register_buffer("mean", torch.zeros_like(parameters, requires_grad=False))
        self.register_buffer("square", torch.zeros_like(parameters, requires_grad=False))
        self.register_buffer("steps", torch.zeros((), device=parameters.device))

    def forward(self, parameters, gradient):
        """The parameters (n,) after one step against the gradient (n,); the running means change, the argument does not."""
        new = parameters.detach().clone()
        adam(
            [new], [gradient], [self.mean], [self.square], [], [self.steps], amsgrad=False, beta1=0.9, beta2=0.999,
            lr=self.learning_rate, weight_decay=0, eps=self.eps, maximize=False, foreach=False,
        )
        return new


# ---------------------------------------------------------------------------------------------------------
# Rollouts: numpy and threads, no torch
# ---------------------------------------------------------------------------------------------------------


def numpy_network(net: nn.Sequential, copy: bool = True):
    """Linear layers and activations as a function of one vector (inputs,) -> (outputs,) float32, in numpy.

    For a single vector numpy takes 3 us where torch takes 18. A copy does not change while it is used.
    """
    layers = []
    for module in net:
        weights = [parameter.detach().cpu().numpy() for parameter in module.parameters()]
        weights = [weight.copy() for weight in weights] if copy else weights
        if isinstance(module, nn.Linear):
            layers.append((*weights, []))  # and what is done to its outputs
        elif isinstance(module, nn.LayerNorm):
            layers[-1][2].append(partial(layer_norm, weight=weights[0], bias=weights[1], eps=np.float32(module.eps)))
        else:
            layers[-1][2].append({nn.Tanh: np.tanh, nn.ReLU: rectify}[type(module)])

    def network(x):
        for weight, bias, functions in layers:
            x = weight.dot(x)
            x += bias
            for function in functions:
                function(x, x)
        return x

    return network


def rectify(x, out):
    """max(x, 0)."""
    np.maximum(x, np.float32(0), out=out)


def layer_norm(x, out, weight, bias, eps):
    """x less its mean, over its standard deviation, times weight, plus bias."""
    size = np.float32(len(x))
    np.subtract(x, x.sum() / size, out=out)
    out *= weight / np.sqrt(out.dot(out) / size + eps)
    out += bias


def numpy_policy(actor: nn.Module):
    """A copy of `actor.norm` and `actor.net` as a function obs (obs,) -> mean action (act,), in numpy."""
    mean = actor.norm.mean.cpu().numpy().copy()
    scale = 1 / actor.norm.std().cpu().numpy()
    low, high = np.float64(-actor.norm.clip), np.float64(actor.norm.clip)
    network = numpy_network(actor.net)
    reach = actor.reach.cpu().numpy().copy() if hasattr(actor, "reach") else None

    def policy(obs):
        x = obs - mean
        x *= scale
        np.maximum(x, low, out=x)
        x = network(np.minimum(x, high, out=x).astype(np.float32))
        return x if reach is None else x * reach

    return policy


class Rollout(NamedTuple):
    """T steps of one policy in one domain; episodes follow each other."""

    obs: np.ndarray  # (T, obs) float32
    actions: np.ndarray  # (T, act) float32, before clipping to the action space
    rewards: np.ndarray  # (T,)
    next_obs: np.ndarray  # (T, obs) float32, where an episode ends its last observation
    terminated: np.ndarray  # (T,) bool: died
    ends: np.ndarray  # (T,) bool: died, ran out of time, or last step of the rollout
    returns: np.ndarray  # (E,) undiscounted returns of the finished episodes; of the unfinished one if there is none


def rollout(env: RandomisedEnv, policy, std: np.ndarray, domain: Domain, steps: int, rng: np.random.Generator) -> Rollout:
    """Act for `steps` steps in `domain` with actions policy(obs) + std * noise, from a fresh reset."""
    low, high = env.action_space.low, env.action_space.high
    actions = std * rng.standard_normal((steps, len(low)), dtype=np.float32)
    obs = np.empty((steps, *env.observation_space.shape), np.float32)
    next_obs, rewards = np.empty_like(obs), np.empty(steps)
    terminated, ends = np.zeros(steps, bool), np.zeros(steps, bool)
    returns, episode_return = [], 0.0

    options = {"domain": domain}
    now, _ = env.reset(seed=int(rng.integers(2**31)), options=options)
    for t in range(steps):
        obs[t] = now
        actions[t] += policy(now)
        now, reward, died, out_of_time, _ = env.step(np.minimum(np.maximum(actions[t], low), high))
        next_obs[t], rewards[t] = now, reward
        episode_return += reward
        if died or out_of_time:
            terminated[t], ends[t] = died, True
            returns.append(episode_return)
            episode_return = 0.0
            now, _ = env.reset(options=options)
    ends[-1] = True
    return Rollout(obs, actions, rewards, next_obs, terminated, ends, np.array(returns or [episode_return]))


def discounted_sums(rewards: np.ndarray, ends: np.ndarray, gamma: float) -> np.ndarray:
    """At each step the discounted sum of the episode's rewards so far (T,); its spread is the scale of rewards."""
    sums, running = np.empty(len(rewards)), 0.0
    for t in range(len(rewards)):
        running = gamma * running + rewards[t]
        sums[t] = running
        if ends[t]:
            running = 0.0
    return sums


def gae(rewards, values, next_values, terminated, ends, gamma: float, gae_lambda: float) -> np.ndarray:
    """Generalised advantage estimates (Schulman et al. 2016, eq. 16), shape (T,) like all arguments.

    Where an episode ended (`ends`) the sum stops; where it ended by death (`terminated`) the future is worth
    nothing, but where it was merely cut, by a time limit or the end of the batch, it is worth next_values.
    """
    deltas = rewards + gamma * next_values * ~terminated - values
    factors = gamma * gae_lambda * ~ends
    advantages, running = [], 0.0
    for delta, factor in zip(deltas[::-1].tolist(), factors[::-1].tolist()):  # lists: four times faster than arrays
        running = delta + factor * running
        advantages.append(running)
    return np.array(advantages[::-1])


# ---------------------------------------------------------------------------------------------------------
# Off-policy data: episodes that go on, a replay buffer that is its own checkpoint
# ---------------------------------------------------------------------------------------------------------


CYCLE, CYCLES = 100, 20  # DDPG acts for 100 steps, then learns; a row of the log for every 20 times
SPARE = 100_000  # rows of a replay buffer's file beyond those that are remembered


class Transitions(NamedTuple):
    """N steps, as the replay buffer gives them."""

    obs: torch.Tensor  # (N, obs)
    actions: torch.Tensor  # (N, act)
    rewards: torch.Tensor  # (N,)
    next_obs: torch.Tensor  # (N, obs)
    terminated: torch.Tensor  # (N,) 1 where the robot died; 0 at a time limit, which is not the end of the world


class ReplayBuffer:
    """The latest `size` transitions, one row of float32 each, in a file that is mapped into memory.

    The file is the checkpoint: nothing needs to be copied when the rest of a run is saved, and a killed run finds its
    rows again. It has room for SPARE rows more, at least as many as are added between two checkpoints: so what is
    overwritten after a checkpoint was no longer in use when it was made.
    """

    @staticmethod
    def bytes(obs_size: int, action_size: int, size: int) -> int:
        """Length of its file."""
        return 4 * (size + SPARE) * (2 * obs_size + action_size + 2)

    def __init__(self, path: Path, obs_size: int, action_size: int, size: int, resuming: bool):
        self.widths = obs_size, action_size, 1, obs_size, 1
        self.size, self.count = size, 0
        length = self.bytes(obs_size, action_size, size)
        if resuming and (not path.exists() or path.stat().st_size != length):
            fail(f"{path} is missing or has another length than its checkpoint needs: start anew with --overwrite")
        path.touch()
        try:
            os.truncate(path, length)
            if hasattr(os, "posix_fallocate"):  # else a full disk would be noticed in mid-training, by a dead process
                with path.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, length)
        except OSError as error:
            if not resuming:
                path.unlink()
            fail(f"no room for a replay buffer of {length / 1e9:.1f} GB at {path} ({error.strerror})")
        self.rows = np.memmap(path, np.float32, "r+").reshape(size + SPARE, sum(self.widths))

    def __len__(self):
        return min(self.count, self.size)

    def add(self, rows: np.ndarray):
        """Append rows (N, width), in order."""
        self.rows[(self.count + np.arange(len(rows))) % len(self.rows)] = rows
        self.count += len(rows)

    def latest(self, number: int) -> np.ndarray:
        """The last `number` rows, oldest first."""
        return self.rows[(self.count - number + np.arange(number)) % len(self.rows)]

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator, among: int | None = None) -> np.ndarray:
        """Rows (*shape, width), each drawn uniformly from the latest `among`, or from all."""
        number = min(len(self), among or self.size)
        return self.at(rng.integers(number, size=shape))

    def at(self, ages: np.ndarray) -> np.ndarray:
        """The rows (*ages.shape, width) that were added so many rows ago; 0 is the newest."""
        return self.rows[(self.count - 1 - ages) % len(self.rows)]

    def split(self, rows: torch.Tensor) -> Transitions:
        obs, actions, rewards, next_obs, terminated = rows.split(self.widths, dim=-1)
        return Transitions(obs, actions, rewards.squeeze(-1), next_obs, terminated.squeeze(-1))

    def state_dict(self):
        self.rows.flush()
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


class Stream:
    """One learner's episodes, one after the other, a few steps at a time.

    An episode is determined by its number (its start and domain) and its actions. So to resume, the present one is
    played again from its beginning, with the actions that the replay buffer holds.
    """

    def __init__(self, env: RandomisedEnv, seed: int, agent: int, buffer: ReplayBuffer):
        self.env, self.key, self.buffer = env, (seed, agent), buffer
        self.episode, self.steps, self.last_return = 0, 0, math.nan
        self._begin()

    def _begin(self):
        rng = np.random.default_rng([*self.key, self.episode, 2])
        domain = sample_domain(self.env.eps, rng, self.env.position_draws)
        self.obs, _ = self.env.reset(seed=int(rng.integers(2**31)), options={"domain": domain})
        self.steps, self.total = 0, 0.0

    def _step(self, action):
        obs, reward, died, out_of_time, _ = self.env.step(action)
        row = np.concatenate([self.obs, action, [reward], obs, [died]], dtype=np.float32)
        self.obs, self.steps, self.total = obs, self.steps + 1, self.total + float(reward)
        return row, died or out_of_time

    def _next(self):
        self.episode, self.last_return = self.episode + 1, self.total
        self._begin()
        return self.last_return

    def collect(self, policy, noise: np.ndarray) -> tuple[np.ndarray, list[float]]:
        """len(noise) steps with actions policy(obs) + noise, into the buffer; the rows, and finished episodes' returns."""
        low, high = self.env.action_space.low, self.env.action_space.high
        rows, returns = [], []
        for each in noise:
            row, over = self._step(np.minimum(np.maximum(policy(self.obs) + each, low), high))
            rows.append(row)
            if over:
                returns.append(self._next())
        self.buffer.add(np.stack(rows))
        return np.stack(rows), returns

    def step(self, action: np.ndarray) -> float | None:
        """One step, into the buffer. If it ends the episode, that episode's return; the next one has then begun."""
        row, over = self._step(np.clip(action, self.env.action_space.low, self.env.action_space.high))
        self.buffer.add(row[None])
        return self._next() if over else None

    def state_dict(self):
        return {"episode": self.episode, "steps": self.steps, "last_return": self.last_return}

    def load_state_dict(self, state):
        self.episode, self.last_return = state["episode"], state["last_return"]
        self._begin()
        obs_size, action_size = self.buffer.widths[:2]
        for old in self.buffer.latest(state["steps"]):
            row, _ = self._step(old[obs_size : obs_size + action_size])
            if not np.array_equal(row, old):
                return print("note: the episode at hand went another way before; was it on another machine, or version?")


# ---------------------------------------------------------------------------------------------------------
# Evaluation in held-out domains
# ---------------------------------------------------------------------------------------------------------

HELD_OUT = 2**32 - 1  # no training run is keyed by it: seeds are smaller


def held_out_domains(eps: float, number: int, hinges: int | None = None) -> list[Domain]:
    """The test domains at strength eps: always the same ones, whoever asks."""
    return [sample_domain(eps, np.random.default_rng([HELD_OUT, round(eps * 10_000), i]), hinges) for i in range(number)]


def episode_return(env: RandomisedEnv, policy, domain: Domain, seed: int) -> float:
    """Undiscounted return of one episode with mean actions."""
    low, high = env.action_space.low, env.action_space.high
    obs, _ = env.reset(seed=seed, options={"domain": domain})
    total, over = 0.0, False
    while not over:
        obs, reward, died, out_of_time, _ = env.step(np.minimum(np.maximum(policy(obs), low), high))
        total += float(reward)
        over = died or out_of_time
    return total


def episode_returns(envs: list[RandomisedEnv], jobs: list[tuple]) -> list[float]:
    """Return of one episode for each job (policy, domain, seed), in the order of the jobs.

    They are shared out among the environments, one thread each; which one does which changes nothing.
    """
    free = queue.SimpleQueue()
    for env in envs:
        free.put(env)

    def play(job):
        env = free.get()
        try:
            return episode_return(env, *job)
        finally:
            free.put(env)

    with ThreadPoolExecutor(len(envs)) as pool:
        return list(pool.map(play, jobs))


def evaluate(envs: list[RandomisedEnv], policies: list, eps_te: tuple[float, ...], number: int, step: int) -> list[dict]:
    """Every policy, mean action, one episode in each of `number` held-out domains for each eps: eval.csv's rows."""
    domains = {eps: held_out_domains(eps, number, envs[0].position_draws) for eps in eps_te}
    places = [(agent, eps, i) for agent in range(len(policies)) for eps in eps_te for i in range(number)]
    returns = episode_returns(envs, [(policies[agent], domains[eps][i], i) for agent, eps, i in places])
    return [
        {"step": step, "agent": agent, "eps_te": eps, "domain": i, "return": value}
        for (agent, eps, i), value in zip(places, returns)
    ]


# Limits of settings, checked wherever a script has a setting of that name.
AT_LEAST_ONE = (
    "total_steps", "steps_per_iteration", "epochs", "minibatches", "eval_domains", "evaluations", "evaluate_every", "jobs",
    "checkpoint_every", "updates", "batch_size", "ensemble_size", "interval", "recent", "distill_epochs",
)
POSITIVE = "learning_rate", "clip", "max_grad_norm", "actor_learning_rate", "critic_learning_rate", "distill_lr"
NOT_NEGATIVE = "critic_decay", "noise", "warm_up", "distill_updates"
FRACTIONS = "gamma", "gae_lambda"


def check_args(args, domains: int = 1, steps: int | None = None):
    """Refuse settings that cannot be meant, before anything is made.

    domains: how many share an iteration of PPO. steps: of an iteration in all; PPO's if not given.
    """
    for names, limits, holds in (
        (AT_LEAST_ONE, "must be at least 1", lambda value: value >= 1),
        (POSITIVE, "must be positive and less than 1e30", lambda value: 0 < value < 1e30),  # too much for single precision
        (NOT_NEGATIVE, "must be neither negative nor infinite", lambda value: 0 <= value < math.inf),
        (FRACTIONS, "must lie in [0, 1]", lambda value: 0 <= value <= 1),
    ):
        for name in names:
            if getattr(args, name, None) is not None and not holds(getattr(args, name)):
                fail(f"--{name.replace('_', '-')} {limits}, but is {getattr(args, name)}")
    if hasattr(args, "minibatches"):
        size = domains * args.minibatches
        if args.steps_per_iteration % size:
            parts = f"{domains} x {args.minibatches} minibatches"
            fail(f"--steps-per-iteration {args.steps_per_iteration} does not divide by {parts}")
        if args.steps_per_iteration // size < 2:
            fail("a minibatch needs at least two steps: fewer --minibatches or more --steps-per-iteration")
    steps = steps or args.steps_per_iteration
    if args.total_steps < steps:
        fail(f"--total-steps {args.total_steps} is less than one iteration of {steps}")
    if hasattr(args, "evaluations"):
        args.evaluations = min(args.evaluations, args.total_steps // steps)  # at most one for each iteration
    if not args.eps_te:
        fail("--eps-te needs at least one strength")
    if min(args.seed, *args.seeds, 0) < 0 or max(args.seed, *args.seeds, 0) >= HELD_OUT:
        fail(f"seeds must lie in [0, {HELD_OUT})")
    if len(set(args.seeds)) < len(args.seeds):
        fail("--seeds names a seed twice")
    args.threads = args.threads or os.cpu_count() or 1
    if args.threads < 0:
        fail("--threads must not be negative")


def check_buffer_args(args, steps: int, learners: int = 1):
    """Refuse settings of a replay buffer that cannot be meant. steps: into one buffer, for each row of the log."""
    if args.warm_up >= args.total_steps // learners:
        each = f", {args.total_steps // learners} for each learner," if learners > 1 else ""
        fail(f"--total-steps {args.total_steps}{each} end before the --warm-up of {args.warm_up} does: nothing would be learned")
    if args.buffer_size < 1000:  # the present episode must fit
        fail(f"--buffer-size must be at least 1000, but is {args.buffer_size}")
    if args.checkpoint_every * steps > SPARE:
        fail(f"--checkpoint-every must be at most {SPARE // steps}, but is {args.checkpoint_every}")
    if not 0 < args.tau <= 1:
        fail(f"--tau must lie in (0, 1], but is {args.tau}")


def make_envs(args, number: int, **kwargs) -> list[RandomisedEnv]:
    """`number` environments of the kind that `args` names; whatever is wrong with it ends the program in one line."""
    try:
        check_eps(args.eps_tr)
        for eps in args.eps_te:
            check_eps(eps)
        if args.xml_file:
            kwargs["xml_file"] = os.path.abspath(args.xml_file)
        envs = [make_env(args.env, args.eps_tr, args.init, **kwargs) for _ in range(number)]
    except ValueError as error:
        fail(str(error))
    spaces = envs[0].action_space, envs[0].observation_space
    if not all(isinstance(space, gym.spaces.Box) and len(space.shape) == 1 for space in spaces):
        fail(f"{args.env} has actions {spaces[0]} and observations {spaces[1]}: both must be vectors")
    return envs


def reach_of(env) -> np.ndarray:
    """How far actions go from 0 in both directions, (act,): what a squashed policy is scaled by."""
    low, high = env.action_space.low, env.action_space.high
    if not (np.array_equal(low, -high) and np.isfinite(high).all()):
        fail(f"actions lie between {low} and {high}: DDPG and SAC need limits that are symmetric about 0, as PPO does not")
    return high


CENTRE = -1  # agent's number in eval.csv of a policy that has no data of its own


def name_of(agent: float) -> str:
    return "centre " if agent == CENTRE else f"agent {agent:.0f}"


def print_table(evaluation: dict[str, np.ndarray]):
    """Return by agent and eps_te at the last evaluation: mean over the held-out domains +- standard deviation."""
    last = evaluation["step"] == evaluation["step"].max()
    strengths = sorted(set(evaluation["eps_te"]))
    print(f"\nafter {evaluation['step'].max():,.0f} steps, return with mean actions in held-out domains,")
    print("mean +- standard deviation over domains, by eps_te, the strength of their randomisation:")
    print("eps_te " + "".join(f"{eps:>15g}" for eps in strengths))
    for agent in sorted(set(evaluation["agent"])):
        cells = []
        for eps in strengths:
            values = evaluation["return"][last & (evaluation["agent"] == agent) & (evaluation["eps_te"] == eps)]
            cells.append(f"{values.mean():>8.0f} +-{values.std():>5.0f}")
        print(name_of(agent) + "".join(cells))


# ---------------------------------------------------------------------------------------------------------
# Curves
# ---------------------------------------------------------------------------------------------------------

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito: safe for most eyes
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))  # and on a grey printer


def bootstrap(values: np.ndarray, draws: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile bootstrap interval of the mean over axis 0, of values (seeds, points): two arrays (points,)."""
    picks = np.random.default_rng(0).integers(len(values), size=(draws, len(values)))
    low, high = np.percentile(values[picks].mean(1), (2.5, 97.5), axis=0)
    return low, high


def plot_interval(axis, x, values: np.ndarray, label: str, index: int, **style):
    """Mean over seeds of values (seeds, points) as a line, its bootstrap interval as a band (if seeds > 1)."""
    colour, line = COLOURS[index % len(COLOURS)], STYLES[index % len(STYLES)]
    axis.plot(x, values.mean(0), color=colour, linestyle=line, label=label, **style)
    if len(values) > 1:
        axis.fill_between(x, *bootstrap(values), color=colour, alpha=0.2, linewidth=0)


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last `window` values at each point, of fewer at the beginning."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def training_curve(path: Path, points, agent: int | None = None, column: str = "return", rows: int = 20) -> np.ndarray:
    """A column of log.csv at the given steps, each a mean of so many rows: of one agent, or the mean over agents.

    Beyond the end of the run: nan.
    """
    log = read_csv(path / "log.csv")
    agents = sorted(set(log["agent"])) if agent is None else [agent]
    curves = []
    for each in agents:
        own = log["agent"] == each
        curves.append(np.interp(points, log["step"][own], smooth(log[column][own], rows), right=np.nan))
    return np.mean(curves, axis=0)


def test_returns(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Strengths eps_te, and the mean return at each over peers and held-out domains, at the end of a run."""
    evaluation = read_csv(path / "eval.csv")
    last = evaluation["step"] == evaluation["step"].max()
    strengths = np.unique(evaluation["eps_te"])
    return strengths, np.array([evaluation["return"][last & (evaluation["eps_te"] == eps)].mean() for eps in strengths])


def test_curve(path: Path, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Steps of the evaluations, and the mean return at each over peers and held-out domains of strength eps."""
    evaluation = read_csv(path / "eval.csv")
    wanted, steps = evaluation["eps_te"] == eps, np.unique(evaluation["step"])
    return steps, np.array([evaluation["return"][wanted & (evaluation["step"] == step)].mean() for step in steps])


def new_figure(columns: int = 1, rows: int = 1):
    """A matplotlib figure that needs no screen, and its axes as a flat list."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, columns, figsize=(5.2 * columns, 3.9 * rows), layout="constrained", squeeze=False)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    return figure, list(axes.flat)


def with_seeds(label: str, number: int) -> str:
    """A label that says of how many seeds it is."""
    return f"{label}, {number} seed" + ("s" if number != 1 else "")


def millions(axis):
    """Label a horizontal axis of environment steps."""
    from matplotlib.ticker import EngFormatter

    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.set_xlabel("environment steps, all agents")


def save_figure(figure, path: Path):
    """Write it, make its folder if need be, and let go of its memory."""
    import matplotlib.pyplot as plt

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except OSError as error:
        fail(f"cannot write {path}: {error.strerror}")
    plt.close(figure)


def report(run: Run, title: str):
    """What a run ends with: a table on the terminal and figure.png in its folder."""
    for buffer in run.path.glob("buffer*.dat"):
        buffer.unlink()  # only a run that goes on needs it
    print_table(read_csv(run.path / "eval.csv"))
    draw_run(run.path, title)
    print(f"\n{run.path}: config.json, log.csv, eval.csv, checkpoint.pt, figure.png")


def draw_run(path: Path, title: str):
    """figure.png of one run: each agent's learning curve, and its return against the strength of the test domains.

    Where all test domains have one strength, its return at each evaluation.
    """
    log, evaluation = read_csv(path / "log.csv"), read_csv(path / "eval.csv")
    figure, (left, right) = new_figure(columns=2)
    points = np.unique(log["step"])
    last = evaluation["step"] == evaluation["step"].max()
    one_strength = len(set(evaluation["eps_te"])) == 1
    against, shown = ("step", np.ones_like(last)) if one_strength else ("eps_te", last)
    for index, agent in enumerate(sorted(set(log["agent"]) | set(evaluation["agent"][last]))):
        colour, style = COLOURS[index % len(COLOURS)], STYLES[index % len(STYLES)]
        if agent in log["agent"]:
            left.plot(points, training_curve(path, points, agent), color=colour, linestyle=style, label=name_of(agent))
        own = shown & (evaluation["agent"] == agent)
        if own.any():
            places = np.unique(evaluation[against][own])
            table = np.stack([evaluation["return"][own & (evaluation[against] == place)] for place in places], axis=1)
            plot_interval(right, places, table, name_of(agent), index, marker="o", markersize=4)
    millions(left)
    left.set(ylabel="return", title="training domains, sampled actions")
    right.set(xlabel="eps_te, strength of the randomisation", ylabel="return", title="held-out domains, mean action")
    if one_strength:
        millions(right)
        right.set_title(f"held-out domains, eps_te = {evaluation['eps_te'][0]:g}, mean action")
    right.set_ylim(bottom=min(0, right.get_ylim()[0]))
    for axis in (left, right):
        axis.legend(loc="best")
    explained = "left: mean of 20 rows of the log; right: band = 95 % bootstrap interval of the mean over domains"
    figure.suptitle(f"{title}\n{explained}", fontsize=10)
    save_figure(figure, path / "figure.png")


# =========================================================================================================
# Part 2: algorithms for one agent
# =========================================================================================================


@dataclasses.dataclass
class Args:
    # what
    algo: Literal["ppo", "ddpg", "sac"] = "ppo"  # the algorithm
    env: str = "Hopper-v4"  # a Gymnasium MuJoCo environment
    xml_file: str = ""  # an MJCF file of your own in place of the environment's (v5 environments)
    eps_tr: float = 0.0  # strength of the randomisation in training, in [0, 1]; a new domain for each iteration (PPO) or episode
    init: Literal["root", "joints"] = "root"  # what randomisation moves as initial position

    # all
    total_steps: int = 1_000_000  # environment steps
    gamma: float = 0.99  # discount factor

    # PPO and SAC
    learning_rate: float = 3e-4  # Adam's

    # PPO
    steps_per_iteration: int = 2048  # environment steps between updates
    epochs: int = 10  # passes over an iteration's data
    minibatches: int = 32  # for each epoch
    clip: float = 0.2  # of Eq. (7)
    gae_lambda: float = 0.95  # of Eq. (11)
    max_grad_norm: float = 0.5  # gradients are scaled down to this norm

    # DDPG and SAC
    tau: float | None = None  # part of the way to the networks that targets go at each update; .01 (DDPG) or .005
    batch_size: int | None = None  # transitions for an update; 64 or 256
    warm_up: int = 10_000  # steps with random actions at the beginning
    buffer_size: int = 1_000_000  # transitions that are remembered

    # SAC
    matmul_precision: Literal["highest", "high", "medium"] = "highest"  # of float32 products; less may mean bfloat16

    # DDPG
    actor_learning_rate: float = 1e-4  # Adam's
    critic_learning_rate: float = 1e-3  # Adam's
    critic_decay: float = 1e-2  # L2 regularisation of the critic's hidden weights
    updates: int = 50  # for every 100 steps
    exploration: Literal["parameter", "action"] = "parameter"  # noise on the actor's weights, or on its actions
    noise: float = 0.2  # by how much either changes the actions, root mean square, in parts of their reach (half the range)

    # evaluation
    eps_te: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # strengths of the test domains
    eval_domains: int = 10  # held-out domains for each strength, one episode in each
    evaluations: int = 4  # evenly spaced over training, the last one at its end

    # run
    seed: int = 0  # of everything random
    seeds: tuple[int, ...] = ()  # several seeds, each in a process of its own
    jobs: int = 2  # how many of these at a time
    threads: int = 0  # threads that work at the same time; 0: one for each core
    device: str = "cpu"  # of the networks: cpu or cuda
    compile: bool = True  # compile the gradient computation where a C++ compiler is found
    checkpoint_every: int = 20  # iterations between checkpoints
    runs: str = "runs"  # folder of all runs
    overwrite: bool = False  # start anew instead of resuming

    # instead of training
    curves: bool = False  # draw the learning curves of the runs that exist, and print their final returns


# Settings that not every algorithm has.
OWN = {
    ("ppo",): ("steps_per_iteration", "epochs", "minibatches", "clip", "gae_lambda", "max_grad_norm"),
    ("ppo", "sac"): ("learning_rate",),
    ("ddpg", "sac"): ("tau", "batch_size", "warm_up", "buffer_size"),
    ("sac",): ("matmul_precision",),
    ("ddpg",): ("actor_learning_rate", "critic_learning_rate", "critic_decay", "updates", "exploration", "noise"),
}

# What is None in Args, by algorithm.
USUAL = {
    "ppo": {},
    "ddpg": {"tau": 0.01, "batch_size": 64},
    "sac": {"tau": 0.005, "batch_size": 256},
}


# ---------------------------------------------------------------------------------------------------------
# PPO: networks
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
# PPO: losses
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


def ppo_loss(policy, batch, clip):                                                                      # Eq. (7)
    """Clipped surrogate, negated: to be minimised. Scalar."""
    ratio = (gaussian_log_prob(*policy, batch.actions) - batch.log_probs).exp()                         # (N,)
    assert ratio.shape == batch.advantages.shape
    return -torch.min(ratio * batch.advantages, ratio.clamp(1 - clip, 1 + clip) * batch.advantages).mean()


def value_loss(critic, batch):                                                                           # Eq. (9)
    """Mean square error of the critic. Scalar."""
    values = critic(batch.obs)
    assert values.shape == batch.targets.shape
    return ((values - batch.targets) ** 2).mean()


# ---------------------------------------------------------------------------------------------------------
# PPO: update and loop
# ---------------------------------------------------------------------------------------------------------


def clip_norm(gradient, max_norm):
    """Scale a gradient so that its norm is at most max_norm."""
    return gradient * (max_norm / (gradient.norm() + 1e-6)).clamp(max=1.0)


def gradient_of(loss, network):
    """Gradient of a loss by a network's parameters, as one vector."""
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, tuple(network.parameters()))])


def ppo_gradients(actor, critic, batch, clip, max_grad_norm):
    """Gradient of both losses on a minibatch, as one vector, and what the log tells of them."""
    spread = batch.advantages.std() + 1e-8
    batch = batch._replace(advantages=(batch.advantages - batch.advantages.mean()) / spread)
    surrogate, critic_loss = ppo_loss(actor(batch.obs), batch, clip), value_loss(critic, batch)
    actor_gradient, critic_gradient = gradient_of(surrogate, actor), gradient_of(critic_loss, critic)
    told = torch.stack([surrogate, critic_loss, actor.log_std.mean()]).detach()
    return torch.cat([clip_norm(actor_gradient, max_grad_norm), clip_norm(critic_gradient, max_grad_norm)]), told


def ppo_adam_step(actor, critic, adam, parameters, batch, clip, max_grad_norm):
    """The vector of both networks' parameters after one step of Adam, and what the log tells. Compiled as one graph."""
    gradient, told = ppo_gradients(actor, critic, batch, clip, max_grad_norm)
    return adam(parameters, gradient), told


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


def ppo(args):
    """Proximal policy optimisation: act, estimate advantages, take small steps on the clipped surrogate, repeat."""
    run = Run(args, "baselines", "ppo")
    title = f"ppo, {args.env}, eps_tr = {args.eps_tr:g}, seed {args.seed}"
    if run.finished:
        print(f"{run.path} is finished: nothing to do (--overwrite starts anew)")
        return report(run, title)
    envs = make_envs(args, args.threads)
    set_up_torch(args)

    actor = GaussianActor(envs[0].observation_space.shape[0], envs[0].action_space.shape[0]).to(args.device)
    critic = ValueCritic(envs[0].observation_space.shape[0]).to(args.device)
    reward_scale = RunningNorm(())
    parameters = one_vector(actor, critic)
    adam = Adam(parameters, args.learning_rate, eps=1e-5)
    compiled_step = compiled(ppo_adam_step, args)

    parts = {"actor": actor, "critic": critic, "reward_scale": reward_scale, "adam": adam}
    iterations = args.total_steps // args.steps_per_iteration
    evaluate_at = {round(iterations * i / args.evaluations) for i in range(1, args.evaluations + 1)}
    first = run.resume(parts, args.steps_per_iteration)
    progress = Progress(iterations * args.steps_per_iteration, first * args.steps_per_iteration)

    for iteration in range(first, iterations):
        rng = np.random.default_rng([args.seed, 0, iteration])
        domain = sample_domain(args.eps_tr, rng, envs[0].position_draws)
        std = actor.log_std.exp().detach().cpu().numpy()
        data = rollout(envs[0], numpy_policy(actor), std, domain, args.steps_per_iteration, rng)
        batch = prepare(actor, reward_scale, [data], args.gamma)
        batch = estimate(batch, critic, reward_scale, [data], args.gamma, args.gae_lambda)

        told = torch.zeros(3, device=args.device)
        # The first iteration only gathers the normaliser's statistics: no step is taken on raw observations.
        for _ in range(args.epochs if iteration > 0 else 0):
            for minibatch in shuffle(batch, args.minibatches, rng):
                new, tells = compiled_step(actor, critic, adam, parameters, minibatch, args.clip, args.max_grad_norm)
                parameters.data.copy_(new)  # and with it both networks
                told += tells
        actor.norm.absorb(data.obs)  # only now: this data was collected, and used, with the old statistics
        critic.norm.absorb(data.obs)

        step = (iteration + 1) * args.steps_per_iteration
        losses = (told / (args.epochs * args.minibatches)).tolist()
        run.check_finite(step, 0, [*losses, *data.returns], parameters)
        run.write("log.csv", [{  # the losses are means over the iteration's minibatches, 0 in the first, which has none
            "step": step, "agent": 0,
            # Of this iteration's finished episodes; if there is none, of the one that was cut.
            "return": data.returns.mean(), "episodes": len(data.returns),
            "surrogate": losses[0],  # Eq. (7), negated
            "value_loss": losses[1],  # Eq. (9), in units of scaled reward, squared
            "log_std": losses[2],  # mean over action dimensions
            "seconds": round(run.elapsed(), 3),  # wall clock
        }])
        if iteration + 1 in evaluate_at:
            run.write("eval.csv", evaluate(envs, [numpy_policy(actor)], args.eps_te, args.eval_domains, step))
        if (iteration + 1) % args.checkpoint_every == 0 or iteration + 1 == iterations:
            run.save(parts, iteration + 1, finished=iteration + 1 == iterations)
        progress.show(step, data.returns.mean())
    report(run, title)


# ---------------------------------------------------------------------------------------------------------
# DDPG: networks
# ---------------------------------------------------------------------------------------------------------


def relu_network(inputs: int, outputs: int) -> nn.Sequential:
    """Three hidden layers of 64 ReLU, each normalised, and last weights so small that the first outputs are near zero."""
    net = nn.Sequential(
        nn.Linear(inputs, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU(),
        nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, outputs),
    )
    nn.init.uniform_(net[-1].weight, -3e-3, 3e-3)
    nn.init.uniform_(net[-1].bias, -3e-3, 3e-3)
    return net


class DeterministicActor(nn.Module):
    """mu(s), from raw observations: the normaliser is part of the policy."""

    def __init__(self, obs_size: int, reach: np.ndarray):
        super().__init__()
        self.norm = RunningNorm((obs_size,), clip=5.0)
        self.net = relu_network(obs_size, len(reach)).append(nn.Tanh())
        self.register_buffer("reach", torch.as_tensor(reach))  # actions lie in [-reach, reach]

    def forward(self, obs):  # (N, obs) -> (N, act)
        return self.net(self.norm(obs)) * self.reach


class ActionCritic(nn.Module):
    """Q(s, a), with the statistics of the actor's normaliser."""

    def __init__(self, obs_size: int, action_size: int):
        super().__init__()
        self.norm = RunningNorm((obs_size,), clip=5.0)
        self.net = relu_network(obs_size + action_size, 1)

    def forward(self, obs, actions):  # (N, obs), (N, act) -> (N,)
        return self.net(torch.cat([self.norm(obs), actions], dim=-1)).squeeze(-1)


# ---------------------------------------------------------------------------------------------------------
# DDPG: losses
# ---------------------------------------------------------------------------------------------------------


def ddpg_targets(target_actor, target_critic, batch, gamma):                                             # Eq. (5)
    """y = r + gamma Q'(s', mu'(s')), and just r where the robot died. (N,)"""
    futures = target_critic(batch.next_obs, target_actor(batch.next_obs))
    assert futures.shape == batch.rewards.shape == batch.terminated.shape
    return (batch.rewards + gamma * (1 - batch.terminated) * futures).detach()


def ddpg_critic_loss(critic, batch, targets, decay):                                                     # Eq. (4)
    """Mean square error, and half the squares of the hidden layers' weights."""
    values = critic(batch.obs, batch.actions)
    assert values.shape == targets.shape
    weights = [layer.weight for layer in critic.net[:-1] if isinstance(layer, nn.Linear)]
    return ((values - targets) ** 2).mean() + decay * sum((weight**2).sum() for weight in weights) / 2


def ddpg_actor_loss(actor, critic, batch):                                                               # Eq. (6)
    """Minus what the critic says of the actor's own actions."""
    return -critic(batch.obs, actor(batch.obs)).mean()


# ---------------------------------------------------------------------------------------------------------
# DDPG: update and loop
# ---------------------------------------------------------------------------------------------------------


class DDPGLearner:
    """Networks, their slowly following targets, an Adam for each of the two, and one normaliser for all four."""

    def __init__(self, obs_size: int, reach: np.ndarray, args):
        self.actor, self.critic = DeterministicActor(obs_size, reach), ActionCritic(obs_size, len(reach))
        self.critic.norm = self.actor.norm
        self.target_actor, self.target_critic = copy.deepcopy((self.actor, self.critic))
        self.target_actor.norm = self.target_critic.norm = self.actor.norm
        networks = self.actor, self.critic, self.target_actor, self.target_critic
        self.vectors = [one_vector(network.to(args.device)) for network in networks]
        self.actor_adam = Adam(self.vectors[0], args.actor_learning_rate)
        self.critic_adam = Adam(self.vectors[1], args.critic_learning_rate)
        self.networks = (*networks, self.actor_adam, self.critic_adam)

    def parts(self) -> dict:
        """What a checkpoint holds, by name."""
        names = "actor", "critic", "target_actor", "target_critic", "actor_adam", "critic_adam"
        return dict(zip(names, self.networks))


def ddpg_step(actor, critic, target_actor, target_critic, actor_adam, critic_adam, vectors, batch, gamma, tau, decay):
    """All four vectors of parameters after one update, and what the log tells. Compiled as one graph."""
    targets = ddpg_targets(target_actor, target_critic, batch, gamma)
    critic_loss, actor_loss = ddpg_critic_loss(critic, batch, targets, decay), ddpg_actor_loss(actor, critic, batch)
    new_actor = actor_adam(vectors[0], gradient_of(actor_loss, actor))
    new_critic = critic_adam(vectors[1], gradient_of(critic_loss, critic))
    new_targets = [old.detach().lerp(new, tau) for old, new in zip(vectors[2:], (new_actor, new_critic))]
    return [new_actor, new_critic, *new_targets], torch.stack([critic_loss, -actor_loss]).detach()


def ddpg_update(learner, batch, compiled_step, args):
    """One step of both networks, and of their targets after them."""
    new, told = compiled_step(*learner.networks, learner.vectors, batch, args.gamma, args.tau, args.critic_decay)
    for vector, value in zip(learner.vectors, new):
        vector.data.copy_(value)
    return told


class ParameterNoise:
    """Adaptive noise on the actor's weights (Plappert et al. 2018), drawn anew when an episode has ended.

    It is asked for when 100 steps begin, so that short episodes share a draw, and one that begins in between changes to
    its own at the next hundred.

    An actor that is perturbed as a whole tries another gait, where noise on each action by itself only trembles.
    """

    def __init__(self, actor: DeterministicActor, noise: float, key: tuple[int, int]):
        self.actor, self.noise, self.key = actor, noise, key
        self.perturbed = copy.deepcopy(actor)
        self.perturbed.norm = actor.norm
        self.sigma = noise  # standard deviation of the noise on the weights

    @torch.no_grad()
    def policy(self, episode: int, obs: np.ndarray):
        """The actor with this episode's noise, as it is now, in numpy; the parameters of its layers' normalisation have none.

        Brings sigma nearer to where actions in obs (N, obs) change by as much as they should.
        """
        rng = np.random.default_rng([*self.key, episode, 3])
        for layer, noisy_layer in zip(self.actor.net, self.perturbed.net):
            for weight, noisy in zip(layer.parameters(), noisy_layer.parameters()):
                draw = torch.as_tensor(rng.standard_normal(weight.shape, dtype=np.float32), device=weight.device)
                noisy.copy_(weight + self.sigma * draw * isinstance(layer, nn.Linear))
        obs = torch.as_tensor(obs, device=self.actor.reach.device)
        change = (self.perturbed(obs) - self.actor(obs)) / self.actor.reach
        self.sigma *= 1.01 if change.square().mean().sqrt().item() < self.noise else 1 / 1.01
        return numpy_policy(self.perturbed)

    def state_dict(self):
        return {"sigma": self.sigma}

    def load_state_dict(self, state):
        self.sigma = state["sigma"]


def exploration(shape, scale: float, reach: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise for actions, `scale` in parts of their reach."""
    return scale * reach * rng.standard_normal((*shape, len(reach)), dtype=np.float32)


def ddpg(args):
    """Deep deterministic policy gradient: act with noise, remember, climb the critic's slope, repeat."""
    run = Run(args, "baselines", "ddpg")
    title = f"ddpg, {args.env}, eps_tr = {args.eps_tr:g}, seed {args.seed}"
    if run.finished:
        print(f"{run.path} is finished: nothing to do (--overwrite starts anew)")
        return report(run, title)
    envs = make_envs(args, args.threads + 1)
    set_up_torch(args)
    compiled_step = compiled(ddpg_step, args)

    obs_size, reach = envs[0].observation_space.shape[0], reach_of(envs[0])
    learner = DDPGLearner(obs_size, reach, args)
    interval = CYCLE * CYCLES
    iterations = args.total_steps // interval
    evaluate_at = {round(iterations * i / args.evaluations) for i in range(1, args.evaluations + 1)}
    size = min(args.buffer_size, args.total_steps)
    run.make_folder(room=ReplayBuffer.bytes(obs_size, len(reach), size))
    buffer = ReplayBuffer(run.path / "buffer.dat", obs_size, len(reach), size, resuming=run.state is not None)
    stream = Stream(envs[-1], args.seed, 0, buffer)
    weight_noise = ParameterNoise(learner.actor, args.noise, (args.seed, 0))
    parts = learner.parts() | {"buffer": buffer, "stream": stream, "weight_noise": weight_noise}
    first = run.resume(parts, interval)
    progress = Progress(iterations * interval, first * interval)

    for iteration in range(first, iterations):
        told, updates, returns = torch.zeros(2, device=args.device), 0, []
        for cycle in range(CYCLES * iteration, CYCLES * (iteration + 1)):
            rng = np.random.default_rng([args.seed, 0, cycle])
            if cycle * CYCLE < args.warm_up:
                policy, noise = lambda obs: 0, rng.uniform(-reach, reach, (CYCLE, len(reach))).astype(np.float32)
            elif args.exploration == "action":
                policy, noise = numpy_policy(learner.actor), exploration((CYCLE,), args.noise, reach, rng)
            else:
                policy = weight_noise.policy(stream.episode, buffer.latest(args.batch_size)[:, :obs_size])
                noise = np.zeros((CYCLE, len(reach)), np.float32)
            rows, finished = stream.collect(policy, noise)
            returns += finished
            learner.actor.norm.absorb(rows[:, :obs_size])
            if cycle * CYCLE < args.warm_up:
                continue  # to learn much from random actions alone makes the critic expect too much of others
            drawn = torch.as_tensor(buffer.draw((args.updates, args.batch_size), rng), device=args.device)
            for minibatch in drawn.unbind():
                told += ddpg_update(learner, buffer.split(minibatch), compiled_step, args)
            updates += args.updates
            run.check_finite(CYCLE * (cycle + 1), 0, told.tolist(), torch.cat([vector.detach() for vector in learner.vectors]))
        step = (iteration + 1) * interval
        losses = (told / max(updates, 1)).tolist()
        mean_return = float(np.mean(returns)) if returns else stream.last_return
        run.write("log.csv", [{
            "step": step, "agent": 0,
            "return": mean_return, "episodes": len(returns),  # of the episodes that ended; the last one's if none did
            "critic_loss": losses[0],  # Eq. (4); losses are means over the row's updates, 0 if there were none
            "value": losses[1],  # Q(s, mu(s)), mean over minibatches
            "seconds": round(run.elapsed(), 3),  # wall clock
        }])
        if iteration + 1 in evaluate_at:
            run.write("eval.csv", evaluate(envs[:-1], [numpy_policy(learner.actor)], args.eps_te, args.eval_domains, step))
        if (iteration + 1) % args.checkpoint_every == 0 or iteration + 1 == iterations:
            run.save(parts, iteration + 1, finished=iteration + 1 == iterations)
        progress.show(step, mean_return)
    report(run, title)


# ---------------------------------------------------------------------------------------------------------
# SAC: networks
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
# SAC: losses
# ---------------------------------------------------------------------------------------------------------


def squash(policy, noise):                                                                             # App. C
    """Actions tanh(mean + std * noise) (N, act) in (-1, 1), and their log-probabilities (N,).

    log(1 - tanh(u)^2) is written as 2 (log 2 - u - softplus(-2u)), which is finite wherever tanh(u) rounds to 1.
    """
    mean, log_std = policy
    u = mean + log_std.exp() * noise
    log_normal = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
    log_slope = 2 * (math.log(2) - u - nn.functional.softplus(-2 * u))
    return u.tanh(), (log_normal - log_slope).sum(-1)


def sac_targets(actor, target_critic, alpha, batch, noise, gamma):                                     # Eq. (6)
    """y = r + gamma (min_i Q'_i(s', a') - alpha log pi(a'|s')), and just r where the robot died. (N,)"""
    actions, log_probs = squash(actor(batch.next_obs), noise)
    futures = target_critic(batch.next_obs, actor.action_scale * actions).min(0).values - alpha * log_probs
    assert futures.shape == batch.rewards.shape == batch.terminated.shape
    return (batch.rewards + gamma * (1 - batch.terminated) * futures).detach()


def sac_critic_loss(critic, batch, targets):                                                           # Eq. (5)
    """Half the mean square error, summed over the two critics."""
    values = critic(batch.obs, batch.actions)
    assert values.shape == (2, *targets.shape)
    return 0.5 * ((values - targets) ** 2).mean(1).sum()


def sac_actor_loss(actor, critic, alpha, obs, noise):                                                  # Eq. (9)
    """Mean of alpha log pi(a|s) - min_i Q_i(s, a) over the actor's own actions, and the log-probabilities (N,)."""
    actions, log_probs = squash(actor(obs), noise)
    values = critic(obs, actor.action_scale * actions).min(0).values
    assert values.shape == log_probs.shape
    return (alpha * log_probs - values).mean(), log_probs


def temperature_loss(log_alpha, log_probs, target_entropy):                                            # Eq. (18)
    """alpha grows while the entropy -log pi is below its target. Scalar."""
    return -(log_alpha.exp() * (log_probs.detach() + target_entropy)).mean()


# ---------------------------------------------------------------------------------------------------------
# SAC: update and loop
# ---------------------------------------------------------------------------------------------------------


ROW = 1000  # steps of SAC for each row of the log


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


def sac(args):
    """Soft actor-critic: a step in the environment, a step of learning, repeat."""
    run = Run(args, "baselines", "sac")
    title = f"sac, {args.env}, eps_tr = {args.eps_tr:g}, seed {args.seed}"
    if run.finished:
        print(f"{run.path} is finished: nothing to do (--overwrite starts anew)")
        return report(run, title)
    envs = make_envs(args, args.threads + 1)
    set_up_torch(args)
    update = SACUpdate(args)

    obs_size, scale = envs[0].observation_space.shape[0], reach_of(envs[0])
    learner = SACLearner(obs_size, scale, args)
    iterations = args.total_steps // ROW
    evaluate_at = {round(iterations * i / args.evaluations) for i in range(1, args.evaluations + 1)}
    size = min(args.buffer_size, args.total_steps)
    run.make_folder(room=ReplayBuffer.bytes(obs_size, len(scale), size))
    buffer = ReplayBuffer(run.path / "buffer.dat", obs_size, len(scale), size, resuming=run.state is not None)
    stream = Stream(envs[-1], args.seed, 0, buffer)
    parts = learner.parts() | {"buffer": buffer, "stream": stream}
    first = run.resume(parts, ROW)
    progress = Progress(iterations * ROW, first * ROW)

    for iteration in range(first, iterations):
        acting, rng = (np.random.default_rng([args.seed, 0, iteration, use]) for use in (1, 0))
        told, updates, returns = torch.zeros(4, device=args.device), 0, []
        for step in range(ROW * iteration, ROW * (iteration + 1)):
            if step < args.warm_up:
                action = acting.uniform(-scale, scale).astype(np.float32)
            else:
                action = squashed_policy(learner.actor)(stream.obs, acting.standard_normal(len(scale), dtype=np.float32))
            finished = stream.step(action)
            if finished is not None:
                returns.append(finished)
            if step >= args.warm_up:
                told += update(learner, *sac_batch(buffer, args, rng))
                updates += 1
        step = (iteration + 1) * ROW
        means = (told / max(updates, 1)).tolist()
        mean_return = float(np.mean(returns)) if returns else stream.last_return
        run.check_finite(step, 0, means, torch.cat([vector.detach() for vector in learner.vectors]))
        run.write("log.csv", [{
            "step": step, "agent": 0,
            "return": mean_return, "episodes": len(returns),  # of the episodes that ended; the last one's if none did
            # The next four are means over the row's updates, 0 if there were none.
            "critic_loss": means[0], "actor_loss": means[1],  # Eq. (5), (9)
            "entropy": means[2],  # of the squashed policy, in nats
            "alpha": means[3],  # the temperature
            "seconds": round(run.elapsed(), 3),  # wall clock
        }])
        if iteration + 1 in evaluate_at:
            run.write("eval.csv", evaluate(envs[:-1], [squashed_policy(learner.actor)], args.eps_te, args.eval_domains, step))
        if (iteration + 1) % args.checkpoint_every == 0 or iteration + 1 == iterations:
            run.save(parts, iteration + 1, finished=iteration + 1 == iterations)
        progress.show(step, mean_return)
    report(run, title)


# ---------------------------------------------------------------------------------------------------------
# Curves and main
# ---------------------------------------------------------------------------------------------------------


def with_usual(args, algo: str):
    """The settings of this algorithm: what is None is as usual for it."""
    return dataclasses.replace(args, **{name: value for name, value in USUAL[algo].items() if getattr(args, name) is None})


def draw_curves(args):
    """Learning curves of all finished runs with these settings, a panel for each environment; final returns as text."""
    found = {}
    for (env, algo, *values), paths in find_runs(args, "baselines", ("env", "algo", "tau", "batch_size")).items():
        if values == [getattr(with_usual(args, algo), name) for name in ("tau", "batch_size")]:
            found[env, algo] = paths
    if not found:
        settings = {"algo": args.algo, "env": args.env} | given(args, {"seed"}) | {"seeds": (0, 1, 2)}
        command = as_command("baselines.py", settings)
        fail(f"no finished runs below {args.runs}/ with these settings: {command} makes some")
    environments = sorted({env for env, _ in found})
    figure, axes = new_figure(columns=len(environments))
    for axis, env in zip(axes, environments):
        for index, algo in enumerate(algo for each, algo in found if each == env):
            paths = found[env, algo]
            points = np.unique(read_csv(paths[0] / "log.csv")["step"])
            curves = np.stack([training_curve(path, points) for path in paths])
            plot_interval(axis, points, curves, with_seeds(algo, len(paths)), index)
            finals = [test_returns(path)[1][0] for path in paths]  # at the smallest eps_te
            print(f"{env} {algo}: return with mean actions at eps_te = {min(args.eps_te):g}, by seed: "
                  f"{' '.join(f'{value:.0f}' for value in finals)}; mean {np.mean(finals):.0f}, "
                  f"standard deviation over seeds {np.std(finals):.0f}")
        millions(axis)
        axis.set(title=env, ylabel="training return")
        axis.legend(loc="best")
    figure.suptitle("mean over seeds, 95 % bootstrap interval; each curve a mean of 20 rows of the log", fontsize=10)
    path = Path(args.runs) / "curves.png"
    save_figure(figure, path)
    print(f"figure: {path}")


def main():
    asked = parse_args(Args, "PPO, DDPG or SAC for one agent.")
    for algorithms, names in OWN.items():
        for name in names:
            if not (asked.curves or asked.algo in algorithms or getattr(asked, name) == getattr(Args, name)):
                fail(f"--{name.replace('_', '-')} is for --algo {' or '.join(algorithms)}: {asked.algo} has no use for it")
    args = with_usual(asked, asked.algo)
    steps = {"ppo": args.steps_per_iteration, "ddpg": CYCLE * CYCLES, "sac": ROW}[args.algo]
    check_args(args, steps=steps)
    if args.algo != "ppo":
        check_buffer_args(args, steps)
    if args.curves:
        draw_curves(asked)
    elif args.seeds:
        make_envs(args, 1)
        run_seeds(args.seeds, args.jobs)
    else:
        {"ppo": ppo, "ddpg": ddpg, "sac": sac}[args.algo](args)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        fail("stopped; the same command, without --overwrite, goes on from the last checkpoint", status=130)
