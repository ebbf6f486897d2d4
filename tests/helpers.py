"""What several files of tests need."""

import gc
import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

import baselines
from randomised_envs import make_env


def flat(tensors):
    """All entries of some tensors, or of a network's parameters, as one vector."""
    tensors = tensors.parameters() if isinstance(tensors, torch.nn.Module) else tensors
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def hopper(limit, eps=0.0):
    """With a limit of few steps some episodes of nod end by a fall, some by the limit."""
    return make_env("Hopper-v4", eps, max_episode_steps=limit)


def nod(obs):
    """A policy: some function of the observation, with values outside the action space too."""
    return (1.5 * np.sin(3 * obs[:3] + obs[5:8])).astype(np.float32)


def finite_difference(function, parameter, index, step=1e-6):
    """Central difference of function() with respect to one entry of a parameter."""
    entries = parameter.data.view(-1)
    before, values = entries[index].item(), []
    for sign in (1, -1):
        entries[index] = before + sign * step
        values.append(function().item())
    entries[index] = before
    return (values[0] - values[1]) / (2 * step)


def stop_and_go_on(train, args, at):
    """A run that fails before this step is logged, when all else of its iteration is done, and is started again."""
    log = baselines.Run.log
    with mock.patch.object(baselines.Run, "log", lambda run, *rest: 1 / 0 if run.step >= at else log(run, *rest)):
        with pytest.raises(ZeroDivisionError):
            train(args)
    gc.collect()  # the lock on the folder goes with the run
    train(args)


def write_run(args, script, policies=None, **tables):
    """A finished run's folder by hand: networks by step, and tables {name without .csv: [header, *rows]}."""
    path = Path(args.runs) / baselines.run_name(args, script, args.seed)
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"settings": vars(args)}))
    for name, rows in tables.items():
        (path / f"{name}.csv").write_text("\n".join(",".join(map(str, row)) for row in rows) + "\n")
    for step, networks in (policies or {}).items():
        torch.save([network.state_dict() for network in networks], path / f"policies-{step}.pt")
    (path / "figure.png").touch()
    return baselines.SavedRun(path)
