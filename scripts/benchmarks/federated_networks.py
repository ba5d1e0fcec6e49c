"""Federated learning of the paper's networks: a local step beside PyTorch, memory, all methods."""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import timing

from jaxkit import federated, models
from jaxkit.experiments.evidence import Table
from jaxkit.jobs.federated import FederatedConfig, federate

RHO, PROX, CLIP, RATE, DECAY = 0.1, 0.1, 10.0, 0.1, 1e-3


def run() -> list[Table]:
    """The local step of ResNet-18-GN; the other tables are asked for by name."""
    return [resnet_step()]


def resnet_step(batch: int = 50, rounds: int = 5, size: int = 32, steps: int = 4) -> Table:
    """A local step of FedSpeed on ResNet-18-GN, one of several of a round, beside PyTorch."""
    import torch

    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    torch.set_num_threads(threads)
    alone = resnet_problem(1, batch, size)
    gap = max(
        float(np.abs(np.asarray(a) - b).max())
        for a, b in zip(
            jax.tree.leaves(jax_steps(*alone)()),
            jax.tree.leaves(torch_steps(*alone)()),
            strict=True,
        )
    )
    if gap > 1e-4:
        raise AssertionError(f"both sides must make the same step, got a gap of {gap:.1e}")
    problem = resnet_problem(steps, batch, size)
    ours, theirs = jax_steps(*problem), torch_steps(*problem)
    times = timing.interleaved({"PyTorch": theirs, "jaxkit": ours}, rounds)
    ratio = timing.spread(times["PyTorch"] / times["jaxkit"])
    rows = [(name, timing.spread(seconds / steps)) for name, seconds in times.items()]
    return Table(
        f"a FedSpeed step of ResNet-18-GN, one of {steps}, batch {batch}, {size} x {size}, "
        f"{threads} threads: PyTorch / jaxkit {ratio}, largest difference {gap:.1e}",
        ("side", "seconds a step (range)"),
        rows,
    )


def memory(clients: int = 100, cohort: int = 10, chunk: int = 1, devices: int = 1) -> Table:
    """What a device holds in a round of FedSpeed, read from the compiled program alone.

    More than one device needs `XLA_FLAGS=--xla_force_host_platform_device_count=N`.
    """
    model, method = models.resnet18(10), federated.fedspeed()
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    mesh = federated.clients_mesh(jax.devices()[:devices])
    mapped = federated.shard_clients(mesh, chunk_size=chunk)
    rows = clients + -clients % devices
    state = jax.eval_shape(
        lambda p: federated.init_state(method, p, rows, jax.random.key(0)), shapes
    )
    places = jax.sharding.PartitionSpec

    def put(tree, spec):
        sharding = jax.sharding.NamedSharding(mesh, spec)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
        )

    placed = put(state, places())._replace(clients=put(state.clients, places("clients")))
    data = jax.eval_shape(
        federated.stack_clients,
        {
            "x": jax.ShapeDtypeStruct((rows, 500, 32, 32, 3), jnp.uint8),
            "y": jax.ShapeDtypeStruct((rows, 500), jnp.int32),
        },
    )
    training = federated.LocalTraining(bytes_loss(model), batch_size=50, num_epochs=5)
    sampler = federated.stratified_sampler(rows, cohort + -cohort % devices, devices)
    compiled = (
        jax.jit(
            lambda s, d: federated.federated_round(method, training, s, d, sampler, mapped),
            donate_argnums=0,
        )
        .lower(placed, put(data, places("clients")))
        .compile()
    )
    used = compiled.memory_analysis()
    mib = lambda count: f"{count / 2**20:,.0f}"  # noqa: E731
    return Table(
        f"a device in a round of FedSpeed, ResNet-18-GN, {clients} clients of 500 pictures, "
        f"{cohort} in a cohort, {chunk} at a time, {devices} devices",
        ("state and pictures, MiB", "scratch, MiB"),
        [(mib(used.argument_size_in_bytes), mib(used.temp_size_in_bytes))],
    )


def methods_on_pictures(
    data: str,
    rounds: int = 40,
    seeds: int = 3,
    model: str = "mlp",
    samples_per_client: int | None = 200,
    batch_size: int = 20,
    local_epochs: int = 5,
    runs: str = "runs",
) -> Table:
    """Every method on pictures of 100 clients, Dirichlet 0.3, 10 in a cohort; it may be resumed."""
    config = FederatedConfig(
        data=data, partition="dirichlet:0.3", samples_per_client=samples_per_client,
        cohort_size=10, method=("all",), model=model, recipe="mnist",  # type: ignore[arg-type]
        local_epochs=local_epochs, batch_size=batch_size, rounds=rounds, evaluate_every=5,
        checkpoint_every=rounds, seeds=seeds, runs=runs, name="methods_on_pictures",
    )  # fmt: skip
    found = federate(config)
    percent = lambda values: f"{100 * np.mean(values):.2f}"  # noqa: E731
    rows = [
        (
            name,
            *(percent([s[k] for s in scores]) for k in ("best", "last", "client_10th_percentile")),
            f"{100 * np.std([s['best'] for s in scores], ddof=1):.2f}",
        )
        for name, scores in found.scores.items()
    ]
    return Table(
        f"test accuracy in percent, {model}, {rounds} rounds, {seeds} seeds",
        ("method", "best", "last", "10th percentile of clients", "sd of best over seeds"),
        sorted(rows, key=lambda row: -float(row[1])),
    )


def bytes_loss(model: Any) -> Any:
    """Mean cross-entropy of pictures in bytes."""

    def loss_fn(params, batch, key):
        del key
        logits = model.apply({"params": params}, batch["x"].astype(jnp.float32) / 255)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()

    return loss_fn


def resnet_problem(steps: int, batch: int, size: int) -> tuple[Any, ...]:
    """First weights, a dual vector, pictures in bytes and labels of each step."""
    model = models.resnet18(10)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, size, size, 3)))["params"]
    rng = np.random.default_rng(0)
    dual = jax.tree.map(lambda w: 0.01 * rng.normal(size=w.shape).astype(np.float32), params)
    x = rng.integers(0, 256, (steps, batch, size, size, 3), np.uint8)
    return params, dual, x, rng.integers(0, 10, (steps, batch)).astype(np.int32)


def jax_steps(params: Any, dual: Any, x: np.ndarray, y: np.ndarray) -> Any:
    """A function that makes a client's local steps, in a round of one client."""
    method = federated.fedspeed(
        federated.local_sgd(RATE, weight_decay=DECAY, clip_norm=CLIP), rho=RHO, prox_coef=PROX
    )
    training = federated.LocalTraining(
        bytes_loss(models.resnet18(10)), batch_size=y.shape[1], num_epochs=1, shuffle=False
    )
    rows = {"x": x.reshape(1, -1, *x.shape[2:]), "y": y.reshape(1, -1)}
    data = federated.stack_clients(rows)
    sampler = federated.uniform_sampler(1, 1)
    state = federated.init_state(method, params, 1, jax.random.key(0))
    held = jax.tree.map(lambda h: jnp.asarray(h)[None], dual)
    state = state._replace(clients={"memory": {"dual": held}})
    step = jax.jit(
        lambda s, d: (
            federated.federated_round(
                method, training, s, d, sampler, federated.vmap_clients(1), keep_local=True
            )[1].local.params
        )  # type: ignore[union-attr]
    )

    def call():
        return jax.tree.map(lambda leaf: leaf[0], step(state, data))

    return call


def torch_steps(params: Any, dual: Any, x: np.ndarray, y: np.ndarray) -> Any:
    """The same steps in PyTorch, channels first; returns weights in the order and layout of JAX."""
    import torch

    def tensor(leaf):
        found = torch.from_numpy(np.array(leaf))
        return found.permute(3, 2, 0, 1).contiguous() if found.ndim == 4 else found

    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    start = [tensor(leaf) for leaf in jax.tree.leaves(params)]
    duals = [tensor(leaf) for leaf in jax.tree.leaves(dual)]
    pictures = torch.from_numpy(x).permute(0, 1, 4, 2, 3).float() / 255
    classes = torch.from_numpy(y).long()

    def gradient(weights, images, labels):
        leaves = [w.detach().requires_grad_() for w in weights]
        logits = torch_logits(dict(zip(names, leaves, strict=True)), images)
        return torch.autograd.grad(torch.nn.functional.cross_entropy(logits, labels), leaves)

    def step(weights, images, labels):
        first = gradient(weights, images, labels)
        scale = RHO / (torch.nn.utils.get_total_norm(first) + 1e-7)
        moved = [w + scale * g for w, g in zip(weights, first, strict=True)]
        second = gradient(moved, images, labels)
        share = min(1.0, CLIP / float(torch.nn.utils.get_total_norm(second)))
        return [
            w - RATE * (share * g + PROX * (h + w - s) + DECAY * w)
            for w, g, h, s in zip(weights, second, duals, start, strict=True)
        ]

    def call():
        weights = start
        for images, labels in zip(pictures, classes, strict=True):
            weights = step(weights, images, labels)
        back = [w.permute(2, 3, 1, 0) if w.ndim == 4 else w for w in weights]
        return [leaf.numpy() for leaf in back]

    return call


def torch_logits(weights: dict[str, Any], images: Any) -> Any:
    """ResNet-18 with two groups of GroupNorm, as the official program builds it."""
    from torch.nn import functional

    def convolution(x, name, stride=1):
        kernel = weights[f"['{name}']['kernel']"]
        return functional.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    def norm(x, name):
        scale, bias = (weights[f"['{name}']['{kind}']"] for kind in ("scale", "bias"))
        return functional.group_norm(x, 2, scale, bias, eps=1e-5)

    x = functional.relu(norm(convolution(images, "stem", 2), "stem_norm"))
    x = functional.max_pool2d(x, 3, 2, 1)
    for stage in (1, 2, 3, 4):
        for block in (1, 2):
            at, stride = f"stage{stage}_block{block}", 2 if stage > 1 and block == 1 else 1
            y = functional.relu(norm(convolution(x, f"{at}_conv1", stride), f"{at}_norm1"))
            y = norm(convolution(y, f"{at}_conv2"), f"{at}_norm2")
            if stride == 2:
                x = norm(convolution(x, f"{at}_shortcut", 2), f"{at}_shortcut_norm")
            x = functional.relu(x + y)
    head = (weights[f"['head']['{kind}']"] for kind in ("kernel", "bias"))
    kernel, bias = head
    return x.mean((2, 3)) @ kernel + bias
