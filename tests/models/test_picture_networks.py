"""Networks beside PyTorch: `golden/networks.json` holds what the same layers return there."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkit import models

NETWORKS = {
    "resnet18": models.resnet18(10),
    "resnet20": models.resnet20(10),
    "wide_resnet": models.wide_resnet(10, depth=10, width=1),
    "lenet": models.LeNet(10),
    "vgg11": models.VGG11(10),
}
BASIC = ["conv1", "norm1", "conv2", "norm2", "shortcut", "shortcut_norm"]
PREACTIVATION = ["norm1", "conv1", "norm2", "conv2", "shortcut"]


def wave(number, shape, kind):
    """Parameters without a random number: the formula that filled PyTorch's tensors."""
    n = int(np.prod(shape))
    found = np.sin(0.7 * np.arange(n) + number + np.arange(n) ** 2 % 7)
    if kind == "kernel":
        return (found * np.sqrt(4 / (n / shape[0]))).reshape(shape)
    return (1 + 0.3 * found if kind in ("scale", "var") else 0.2 * found).reshape(shape)


def pictures(size):
    n = 2 * size * size * 3
    found = np.cos(0.37 * np.arange(n) + (np.arange(n) // size) % 5)
    return found.reshape(2, size, size, 3).astype(np.float32)


def place(block):
    """Where a layer comes in PyTorch's order."""

    def key(name):
        if match := re.fullmatch(r"stage(\d)_block(\d)_(.*)", name):
            return 1, int(match[1]), int(match[2]), block.index(match[3])
        return 2 if name in ("head", "last_norm") else 0, name != "last_norm", name

    return key


def filled(model, size):
    shapes = jax.eval_shape(model.init, jax.random.key(0), pictures(size))
    block = PREACTIVATION if getattr(model, "block", "") == "preactivation" else BASIC
    params, stats, number = {}, {}, 0
    for name in sorted(shapes["params"], key=place(block)):
        layer = shapes["params"][name]
        params[name] = {}
        for kind in ("kernel", "scale", "bias"):
            if kind not in layer:
                continue
            shape = layer[kind].shape
            if kind == "kernel":  # PyTorch keeps outputs first
                turned = wave(number, (*shape[:-3:-1], *shape[:-2]), kind)
                axes = (2, 3, 1, 0) if len(shape) == 4 else (1, 0)
                params[name][kind] = jnp.asarray(turned.transpose(axes), jnp.float32)
            else:
                params[name][kind] = jnp.asarray(wave(number, shape, kind), jnp.float32)
            number += 1
        if name in shapes.get("batch_stats", {}):
            stats[name] = {}
            for kind in ("mean", "var"):
                values = wave(number, shapes["batch_stats"][name][kind].shape, kind)
                stats[name][kind] = jnp.asarray(values, jnp.float32)
                number += 1
    return {"params": params, "batch_stats": stats}


@pytest.mark.parametrize(
    "name",
    [
        *(f"{name}-32" for name in NETWORKS),
        pytest.param("resnet18-64", marks=pytest.mark.slow),
    ],
)
def test_logits_are_those_of_pytorch(golden, name):
    model, size = NETWORKS[name.split("-")[0]], int(name.split("-")[1])
    found = jax.jit(model.apply)(filled(model, size), pictures(size))
    expected = np.array(golden("networks")[name])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("model", "size", "count"),
    [
        (models.resnet18(10), 32, 11_181_642),
        (models.resnet18(100), 32, 11_227_812),
        (models.resnet18(200), 64, 11_279_112),
        (models.wide_resnet(10), 96, 10_961_370),
        (models.VGG11(10, (512, 512)), 32, 9_750_922),
        (models.MLP(10, ()), 28, 28 * 28 * 3 * 10 + 10),
    ],
)
def test_parameters_are_as_many_as_published(model, size, count):
    shapes = jax.eval_shape(model.init, jax.random.key(0), pictures(size))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == count


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_products_in_bfloat16_leave_parameters_and_logits_in_float32(norm):
    plain = models.ResNet(3, (8, 16), (1, 1), "cifar", norm=norm)
    narrow = plain.clone(dtype=jnp.bfloat16)
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    variables = narrow.init(jax.random.key(1), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    both = [model.apply(variables, images) for model in (plain, narrow)]
    assert both[1].dtype == jnp.float32
    np.testing.assert_allclose(both[1], both[0], rtol=0.05, atol=0.02)
    assert float(jnp.abs(both[1] - both[0]).max()) > 0
    program = str(jax.make_jaxpr(lambda x: narrow.apply(variables, x))(images))
    products = [line for line in program.splitlines() if "conv_general_dilated[" in line]
    assert len(products) == 6
    assert all("bf16" in line for line in products)


def test_running_statistics_follow_the_batches():
    model = models.ResNet(2, (4,), (1,), "cifar", norm="batch")
    images = jnp.asarray(pictures(8)) + 3
    variables = model.init(jax.random.key(0), images)
    assert set(variables) == {"params", "batch_stats"}
    apply = jax.jit(lambda v: model.apply(v, images, train=True, mutable=["batch_stats"]))
    logits = None
    for _ in range(60):
        logits, moved = apply(variables)
        variables = {**variables, **moved}
    np.testing.assert_allclose(model.apply(variables, images), logits, rtol=0.02, atol=0.02)
    assert models.resnet18(10).norm == "group"


def apply(model, shape):
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, "float32"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.ResNet(10, (4, 8), (1,)), "blocks must be 2 like widths"),
        (lambda: models.ResNet(10, norm="layer"), "norm must be one of 'group', 'batch'"),
        (lambda: apply(models.LeNet(10), (1, 8, 8, 3)), r"H and W of at least 16, got \(1, 8, 8"),
        (lambda: apply(models.VGG11(10), (1, 8, 8, 3)), r"H and W of at least 32, got \(1, 8, 8"),
        (lambda: apply(models.resnet20(10), (1, 32, 32)), r"\[B, H, W, C\] .* got \(1, 32, 32\)"),
        (lambda: apply(models.MLP(0), (1, 2, 2, 1)), "num_classes must be an integer >= 1"),
        (lambda: apply(models.MLP(2, (0,)), (1, 2, 2, 1)), "hidden must be an integer >= 1"),
        (lambda: models.wide_resnet(10, depth=17), r"depth must be 6 n \+ 4 .* got 17"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(bad_input, make, message):
    with pytest.raises(ValueError, match=message):
        make()
