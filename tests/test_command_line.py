"""Tests through the real command line: learning, folders, kill and resume, bad input, figures."""

import ast
import contextlib
import copy
import csv
import gc
import inspect
import io
import json
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

import numpy as np
import pytest
import torch

import baselines
import dpd
import p2pdrl
import piekd_cikd

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
    "dpd-ppo": f"dpd.py --base ppo --distill-steps 4 {TINY_PPO}",
    "piekd": f"piekd_cikd.py {TINY_SAC} --warm-up 1850 --ensemble-size 2 --interval 20 --distill-updates 3",
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
    assert all(np.isfinite(column).all() for table in (log, evaluation) for column in table.values())
    total = saved.settings["total_steps"]
    assert log["step"].max() == total and set(evaluation["step"]) >= {total}
    if saved.settings.get("evaluations") == 2 and "dpd" not in name:
        assert sorted(set(evaluation["step"])) == [total // 2, total]
    assert f"{total:,} of {total:,} steps" in out and (path / "figure.png").stat().st_size > 20_000
    assert ("central " in out) == (name == "dnc") and ("agent 0 " in out) == (name != "dnc")
    parts = torch.load(path / "checkpoint.pt", weights_only=True)["parts"]
    learners = {agent for agent in parts if agent.startswith("agent")} | ({"central"} if name == "dnc" else set())
    ends = "weight", "bias", "log_std"
    weights = [(agent, key) for agent in learners for key in parts[agent] if key.endswith(ends)]
    assert len(learners) == {"ppo": 1, "ddpg": 1, "sac": 1, "dnc": 3}.get(name, 2) and len(weights) > 12
    for agent, key in weights:
        assert 1e-6 < (parts[agent][key] - first[agent][key]).abs().max() < 1, (agent, key)
    learning = log["step"] > total / 2
    if name in ("p2pdrl", "dpd-ppo", "dpd-ddpg"):
        assert (log["distillation"][learning] > 0).all()
    if name == "piekd":
        assert len(saved.table("distillation.csv")["step"]) > 4
    assert saved.settings == json.loads((path / "config.json").read_text())["settings"]


@pytest.mark.parametrize("method", ["ppo --alpha .5", "ppo-union", "distributed-ppo", "self-kl", "distral"])
def test_the_other_methods_run(tmp_path, method):
    """They learn, and those that distil do. An option of another method is no mistake."""
    run(f"p2pdrl.py {TINY_PPO} --method {method} --reset-every 3 --total-steps 384", tmp_path)
    log = baselines.SavedRun(only_run(tmp_path)).table("log.csv")
    assert (log["distillation"][-1] > 0) == (method in ("self-kl", "distral")) and (log["approx_kl"][-1] > 0)


def test_compiled_steps_are_the_eager_ones(tmp_path):
    """Up to rounding, for as long as that stays small."""
    short = f"{COMMANDS['p2pdrl']} --total-steps 256 --epochs 1"
    out, _ = run(f"{short} --compile", tmp_path)
    if "without torch.compile" in out:
        pytest.skip("nothing compiles here")
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
    args = p2pdrl.Args(seed=3, threads=7, runs="x", jobs=5, compile=False, checkpoint_every=3)
    assert baselines.run_name(args, "p2pdrl") == "p2pdrl-Walker2d-v4-seed3"
    args = p2pdrl.Args(method="ppo", alpha=2.0, eps_te=(0.0, 0.5), xml_file="a/b.xml", gradient_variance=True)
    assert baselines.run_name(args, "p2pdrl") == (
        "p2pdrl-Walker2d-v4-xml_file=a_b.xml-eps_te=0+0.5-method=ppo-alpha=2-gradient_variance=True-seed0"
    )
    assert baselines.run_name(baselines.DDPGArgs(algo="ddpg"), "baselines") == "baselines-Hopper-v4-algo=ddpg-seed0"


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
    run(COMMANDS["ppo"].replace("--checkpoint-every 2", "--checkpoint-every 4"), tmp_path)
    path, reference = only_run(tmp_path), results(finished("ppo")[0])
    assert results(path) == reference  # checkpoints at other times change nothing
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


BAD = [
    ("p2pdrl.py --env Nowhere-v1", "Nowhere"), ("p2pdrl.py --env CartPole-v1", "not a MuJoCo environment"),
    ("p2pdrl.py --eps-tr 1.5", "--eps-tr must lie between 0 and 1"), ("p2pdrl.py --eps-te 0 2", "--eps-te"),
    ("p2pdrl.py --eps-te", "--eps-te needs"), ("p2pdrl.py --agents 1", "at least 2"),
    ("p2pdrl.py --agents 0", "--agents"), ("p2pdrl.py --gamma nan", "--gamma"), ("p2pdrl.py --alpha -1", "--alpha"),
    ("p2pdrl.py --learning-rate 0", "--learning-rate"), ("p2pdrl.py --entropy-coef inf", "--entropy-coef"),
    ("p2pdrl.py --total-steps 8000", "must be at least 8192"), ("p2pdrl.py --total-steps 1.5", "1.5"),
    ("p2pdrl.py --minibatches 4096", "at least two steps"), ("p2pdrl.py --seeds 1 1", "twice"),
    ("p2pdrl.py --device cuda", "'cuda' cannot be used"), ("p2pdrl.py --seed -1", "--seed"),
    ("p2pdrl.py --method other", "other"), ("p2pdrl.py --figure 4", "no finished runs"),
    ("p2pdrl.py --watch nowhere", "nowhere"), ("p2pdrl.py --xml-file missing.xml --env Hopper-v5", "missing.xml"),
    ("p2pdrl.py --runs taken/runs", "taken"), ("p2pdrl.py --unknown 1", "--unknown"),
    ("baselines.py --algo ppo --tau 0.1", "--tau"), ("baselines.py --algo sac --clip 1", "--clip"),
    ("baselines.py --algo sac --total-steps 10999", "least 11000"), ("baselines.py --figure curves", "no finished"),
    ("baselines.py --algo ddpg --buffer-size 10", "--buffer-size"), ("dpd.py --total-steps 23000", "at least 24000"),
    ("dpd.py --figure 3", "no finished"), ("dpd.py --base td3", "td3"), ("dpd.py --gif nowhere", "nowhere"),
    ("piekd_cikd.py --ensemble-size 1", "at least 2"), ("piekd_cikd.py --interval 0", "--interval"),
    ("piekd_cikd.py --figure piekd-9", "piekd-9"), ("piekd_cikd.py --figure cikd-5", "no finished runs"),
    ("piekd_cikd.py --interval 1e6 --total-steps 2e4", "end before --warm-up 10000"),
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
    assert capfd.readouterr().err == "" and [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("command", [
    f"dpd.py --method vanilla --base ppo --alpha 2 {TINY_PPO} --total-steps 256",
    f"piekd_cikd.py --method ensemble --interval 200000 --distil policy {TINY_SAC} --warm-up 950 --total-steps 1000",
])  # fmt: skip
def test_options_without_effect_are_ignored(tmp_path, command):
    """An option of another method is no mistake."""
    run(command, tmp_path)


@pytest.mark.parametrize("module", [p2pdrl, dpd, piekd_cikd])
def test_help_says_what_every_option_means(tmp_path, module):
    """Every option is there, below the script's own description."""
    text = " ".join(run(f"{module.__name__}.py --help", tmp_path)[0].split())
    for name in module.Args.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text
    assert "a Gymnasium MuJoCo environment" in text and module.__doc__.splitlines()[0].split()[0] in text


def test_parsing_by_type(monkeypatch):
    """Numbers as 2e6, lists, switches, what may be None."""
    line = "p2pdrl.py --total-steps 2e6 --eps-te 0 .5 --no-compile --learning-rate 1e-3 --seeds 1 2 --gradient-variance"
    monkeypatch.setattr(sys, "argv", line.split())
    monkeypatch.setattr(sys.modules["__main__"], "__doc__", "x")
    args = baselines.parse_args(p2pdrl.Args)
    assert (args.total_steps, args.eps_te, args.compile, args.learning_rate) == (2_000_000, (0.0, 0.5), False, 1e-3)
    assert args.seeds == (1, 2) and args.gradient_variance and isinstance(args.total_steps, int)
    assert args.threads == os.cpu_count()


@pytest.mark.parametrize(("name", "figure"), [
    ("p2pdrl", "4"), ("ppo", "curves"), ("dpd-ppo", "2"), ("piekd", "piekd-3"),
])  # fmt: skip
def test_figures_of_real_runs(finished, name, figure):
    """Drawn from what the run wrote, into the folder of all runs."""
    path, *_ = finished(name)
    out, _ = run(f"{COMMANDS[name]} --figure {figure}", path.parents[1])
    (drawn,) = re.findall(r"figure: (.*)", out)
    assert (path.parents[1] / drawn).stat().st_size > 20_000


@pytest.mark.parametrize("name", ["p2pdrl", "dpd-ddpg", "piekd"])
def test_gif_or_one_line(finished, name):
    """A moving picture of a policy, or where there is no OpenGL one line; without a screen --watch says so."""
    path, *_ = finished(name)
    script = COMMANDS[name].split()[0]
    process = start(f"{script} --gif {path}", path.parent)
    out, err = process.communicate(timeout=200)
    if process.returncode == 0:
        assert (path / "policy.gif").read_bytes()[:3] == b"GIF" and "return" in out
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


@pytest.mark.parametrize(("module", "names"), [
    (p2pdrl, "linear tanh_network GaussianActor ValueCritic gaussian_log_prob ppo_loss value_loss "
     "normalise_advantages Batch compute_advantages make_batch"),
    (dpd, "linear relu_network DeterministicActor ActionCritic"),
    (piekd_cikd, "glorot two_layers SquashedActor TwinCritic"),
])  # fmt: skip
def test_what_two_scripts_define_is_the_same(module, names):
    """So that the tests of one hold for the other; and no script imports another one."""
    for name in names.split():
        assert getattr(module, name) is not getattr(baselines, name)
        assert meaning(getattr(module, name)) == meaning(getattr(baselines, name))
    siblings = {"p2pdrl", "dpd", "piekd_cikd"} - {module.__name__}
    assert not siblings & set(re.findall(r"^(?:from|import) (\w+)", inspect.getsource(module), re.M))


def test_the_tables_of_the_readme_are_those_of_its_rows():
    made = runpy.run_path(str(ROOT / ".github" / "tables.py"))
    text = made["README"].read_text()
    for name, tables in made["tables"]().items():
        start, end = made["block_of"](text, name)
        assert [table.group() for table in made["tables_in"](text[start:end])] == tables, name

    command = "python p2pdrl.py --env Walker2d-v4 --eval-domains 100{} --total-steps 4000000 --evaluations 2 --seed "
    ours, theirs = ({row["command"][-1]: float(row["training_return"]) for row in made["ROWS"]
                     if row["command"][:-1] == command.format(method) and row["step"] == "3997696"}
                    for method in ("", " --method ppo"))  # fmt: skip
    cell = baselines.compare(ours, theirs).replace("probability of improvement ", "")
    assert len(ours) >= 3 and f"| p2pdrl - ppo, the paper's learning rates | {cell} |" in text.replace("*", "")
