"""Parameters of the official program (torch layout) as this room holds them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import continual, models
from jaxkit.continual.adapters import Adapter, Router
from jaxkit.continual.descriptors import Descriptor, ErrorRecords
from jaxkit.continual.expandable_state import FunctionalParams, Head
from jaxkit.models import tensor_names


def adapter_of(params, prefix):
    """A functional adapter: torch weights are [out, in]."""
    get = lambda name: np.asarray(params[prefix + name])  # noqa: E731
    return Adapter(
        get("down_proj.weight").T, get("down_proj.bias"), get("up_proj.weight").T,
        get("up_proj.bias"),
    )  # fmt: skip


def descriptor_of(params, prefix):
    """A representation descriptor."""
    get = lambda name: np.asarray(params[prefix + name])  # noqa: E731
    return Descriptor(
        get("encoder.weight").T, get("encoder.bias"), get("decoder.weight").T,
        get("decoder.bias"),
    )  # fmt: skip


def stacked(parts, capacity, garbage=0.0):
    """Stack parts along a leading slot axis, the rest of it filled with `garbage`."""

    def stack(*leaves):
        rest = [np.full_like(leaves[0], garbage)] * (capacity - len(leaves))
        return np.stack([*leaves, *rest])

    return jax.tree.map(stack, *parts)


def records_of(histories, capacity, size=None):
    """Records holding the given errors, one list a slot."""
    size = size or max(map(len, histories))
    values = np.zeros((capacity, size))
    for slot, history in enumerate(histories):
        values[slot, : len(history)] = history
    count = np.array([len(h) for h in histories] + [0] * (capacity - len(histories)), np.int32)
    return ErrorRecords(values, count)


def official_state(golden, *, capacity=3, garbage=0.0):
    """The state and variables of the golden transformer, block 0 single, blocks 1 and 2 growing."""
    params, fc = golden["params"], golden["fc"]
    config = golden["config"]
    model = models.VisionTransformer(
        config["img"], config["patch"], config["chans"], config["d"], config["depth"],
        config["heads"], round(config["d"] * config["mlp_ratio"]), 0,
    )  # fmt: skip
    sema_config = continual.SEMAConfig(
        model, config["ncls"], config["r"], config["rd"], config["lo"], config["hi"], capacity,
        config["buf"],
    )  # fmt: skip
    adapters, descriptors, kernels, biases = [], [], [], []
    for block in sema_config.expandable:
        base, count = f"blocks.{block}.adapter_module.", golden["n_adapters"][block]
        slots = [f"{base}adapters.{k}." for k in range(count)]
        adapters.append(
            stacked([adapter_of(params, s + "functional.") for s in slots], capacity, garbage)
        )
        descriptors.append(stacked([descriptor_of(params, s + "rd.") for s in slots], capacity,
                                   garbage))  # fmt: skip
        rows = np.full((capacity, config["d"]), garbage)
        rows[:count] = params[base + "router.weight"]
        kernels.append(rows.T)
        bias = np.full(capacity, garbage)
        bias[:count] = params[base + "router.bias"]
        biases.append(bias)
    join = lambda *leaves: np.stack(leaves)  # noqa: E731
    single = adapter_of(params, "blocks.0.adapter_module.adapters.0.functional.")
    state = continual.SEMAState(
        FunctionalParams(
            stacked([single], 1),
            jax.tree.map(join, *adapters),
            Router(np.stack(kernels), np.stack(biases)),
            Head(np.asarray(fc["weight"]).T, np.asarray(fc["bias"])),
        ),
        jax.tree.map(join, *descriptors),
        ErrorRecords(np.zeros((2, capacity, config["buf"])), np.zeros((2, capacity), np.int32)),
        np.array([golden["n_adapters"][b] for b in sema_config.expandable], np.int32),
    )
    tensors = {}
    for name, value in params.items():
        if "adapter_module" in name:
            continue
        name = name.replace(".fc1", ".mlp.fc1").replace(".fc2", ".mlp.fc2")
        tensors[name] = np.asarray(value)
    for block in range(config["depth"]):
        for kind in ("weight", "bias"):
            base = f"blocks.{block}.attn."
            parts = [tensors.pop(f"{base}{part}_proj.{kind}") for part in "qkv"]
            tensors[f"{base}qkv.{kind}"] = np.concatenate(parts)
    return sema_config, tensor_names.convert("timm", tensors, model), state


def as_arrays(tree, dtype):
    """Floating leaves of a tree as JAX arrays of a type, others as they are."""
    return jax.tree.map(
        lambda x: jnp.asarray(
            x, dtype if np.issubdtype(np.asarray(x).dtype, np.floating) else None
        ),
        tree,
    )


@pytest.fixture(scope="session")
def sema_golden(golden):
    """Vectors of the official modules."""
    return golden("sema")


@pytest.fixture(scope="session")
def official():
    """The translations above."""
    import types

    return types.SimpleNamespace(
        adapter=adapter_of, descriptor=descriptor_of, stacked=stacked, records=records_of,
        state=official_state, arrays=as_arrays,
    )  # fmt: skip


@pytest.fixture(scope="session")
def random_backbone():
    """`random_backbone(model)`: weights of moderate size for a vision transformer."""

    def make(model):
        rng = np.random.default_rng(1)
        image = np.zeros((1, model.image_size, model.image_size, model.channels), np.float32)
        shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), image))
        return jax.tree.map(lambda x: (0.4 * rng.normal(size=x.shape)).astype(x.dtype), shapes)

    return make
