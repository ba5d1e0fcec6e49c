"""One thing has one name in every room: the public vocabulary of the toolkit."""

import contextlib
import importlib
import inspect
import pkgutil

import pytest

import jaxkit

ROOMS = [
    module.name
    for module in pkgutil.iter_modules(jaxkit.__path__)
    if module.ispkg and module.name != "experiments"
]
#: Synonym -> the word of this toolkit.
SYNONYMS = {
    "lr": "learning_rate",
    "peak_lr": "peak_value",
    "peak_learning_rate": "peak_value",
    "warmup_updates": "warmup_steps",
    "num_warmup_steps": "warmup_steps",
    "num_updates": "num_steps",
    "n_steps": "num_steps",
    "epochs": "num_epochs",
    "n_epochs": "num_epochs",
    "optimiser": "optimizer",
    "tx": "optimizer",
    "optimizer_state": "opt_state",
    "beta1": "b1",
    "beta2": "b2",
    "decay_rate": "weight_decay",
    "wd": "weight_decay",
    "hidden_size": "d_model",
    "embed_dim": "d_model",
    "n_layers": "num_layers",
    "n_heads": "num_heads",
    "ff_dim": "d_ff",
    "vocabulary_size": "vocab_size",
    "n_classes": "num_classes",
    "rng": "key",
    "prng_key": "key",
    "parameters": "params",
    "valid": "mask",
    "clip": "clip_norm",
    "l2_norm_clip": "clip_norm",
    "max_grad_norm": "clip_norm",
    "noise_scale": "noise_multiplier",
    "directory": "folder",
    "run_dir": "folder",
    "filename": "path",
    "file": "path",
}
#: Names that mean something else where they stand, or wait for their room.
KEPT = {"Selection(valid)"}


def _words(value):
    """Names of the arguments and fields of a public function or class and of its methods."""
    members = [value]
    if inspect.isclass(value):
        members += [m for name, m in vars(value).items() if not name.startswith("_")]
    found = set()
    for member in filter(callable, members):
        with contextlib.suppress(TypeError, ValueError):
            found |= set(inspect.signature(member).parameters)
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_the_same_thing_has_the_same_name(room):
    module = importlib.import_module(f"jaxkit.{room}")
    wrong = {
        f"{name}({word})": SYNONYMS[word]
        for name in module.__all__
        for word in sorted(_words(getattr(module, name)) & set(SYNONYMS))
        if f"{name}({word})" not in KEPT
    }
    assert not wrong
