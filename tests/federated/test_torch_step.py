"""The paper's network and step beside PyTorch."""

import importlib
import pathlib

import jax
import numpy as np
import pytest

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"


@pytest.mark.slow
def test_a_fedspeed_step_of_resnet18_with_groupnorm_is_pytorchs_to_1e_4(monkeypatch):
    pytest.importorskip("torch", reason="the extra benchmark is not installed")
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.syspath_prepend(str(SCRIPTS / "benchmarks"))
    peer = importlib.import_module("federated_networks")
    problem = peer.resnet_problem(batch=4)
    ours, theirs = peer.jax_step(*problem)(), peer.torch_step(*problem)()
    start = jax.tree.leaves(problem[0])
    pairs = list(zip(jax.tree.leaves(ours), theirs, start, strict=True))
    gaps = np.concatenate([np.ravel(mine - other) for mine, other, _ in pairs])
    moved = np.concatenate([np.ravel(other - first) for _, other, first in pairs])
    assert np.abs(gaps).max() <= 1e-4
    assert np.linalg.norm(gaps) <= 1e-2 * np.linalg.norm(moved)
