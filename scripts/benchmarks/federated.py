"""FedSpeed rounds beside a PyTorch loop of the same arithmetic, and how rounds scale."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import timing

from jaxkit import federated
from jaxkit.experiments.evidence import Table

# The workload: 10 of 100 clients, 50 examples each, batches of 10, 5 epochs, MLP 64-64-10.
CLIENTS, COHORT, EXAMPLES, BATCH, EPOCHS, HIDDEN = 100, 10, 50, 10, 5, 64
STEPS = EPOCHS * EXAMPLES // BATCH
LEARNING_RATE, DECAY, PROX, RHO, CLIP = 0.1, 1e-3, 0.1, 0.1, 10.0


def run() -> list[Table]:
    """CPU-seconds a round against PyTorch, and a table of scaling."""
    return [against_torch(), scaling()]


def against_torch(repetitions: int = 15) -> Table:
    """Median CPU-seconds a round of all sides, interleaved in one process."""
    import torch

    torch.set_num_threads(1)
    inputs, labels = examples(CLIENTS)
    params = mlp_params(64, HIDDEN)
    rows = []
    for name, make, dual in (
        ("FedAvg", lambda c: federated.fedavg(c), False),
        ("FedSpeed", lambda c: federated.fedspeed(c, prox_coef=PROX, rho=RHO), True),
    ):
        client = federated.local_sgd(LEARNING_RATE, weight_decay=DECAY, clip_norm=CLIP)
        ours = jax_rounds(make(client), params, inputs, labels, rounds=10)
        theirs = []
        for local_step in (usual_step, foreach_step):
            check_same(make(client), params, inputs, labels, local_step, dual=dual)
            theirs.append(torch_rounds(params, inputs, labels, local_step, dual=dual))
        turns = [
            (timing.cpu_seconds(ours) / 10, *(timing.cpu_seconds(side) for side in theirs))
            for _ in range(repetitions)
        ]
        for index, peer in enumerate(("torch.optim.SGD", "foreach operations"), start=1):
            ratios = [turn[index] / turn[0] for turn in turns]
            rows.append(
                (
                    name,
                    peer,
                    f"{statistics.median(turn[index] for turn in turns):.4f}",
                    f"{statistics.median(turn[0] for turn in turns):.5f}",
                    f"{statistics.median(ratios):.1f} [{min(ratios):.1f}, {max(ratios):.1f}]",
                )
            )
    return Table(
        f"CPU-seconds a round, one thread: {COHORT} of {CLIENTS} clients, {STEPS} steps each, "
        "MLP 64-64-10 (4,810 parameters)",
        ("method", "PyTorch loop with", "PyTorch", "jaxkit, scan of 10 rounds", "ratio [range]"),
        rows,
    )


def scaling() -> Table:
    """A round of FedSpeed over clients, cohort and model size, with the memory of client state."""
    rows = []
    for hidden, clients, cohort in (
        (64, 10, 10),
        (64, 100, 10),
        (64, 1000, 10),
        (64, 1000, 100),
        (64, 1000, 1000),
        (960, 10, 10),
        (960, 100, 10),
        (960, 1000, 10),
    ):
        layers = (hidden,) if hidden == 64 else (hidden, hidden)
        params = mlp_params(64, *layers)
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        inputs, labels = examples(clients)
        chunk = cohort if size < 100_000 else 1
        method = federated.fedspeed()
        compiled, step, state = compiled_round(method, params, inputs, labels, cohort, chunk)
        memory = compiled.memory_analysis()
        state, _ = jax.block_until_ready(step(state))
        seconds = []
        for _ in range(3):
            start = time.process_time()
            state, _ = jax.block_until_ready(step(state))
            seconds.append(time.process_time() - start)
        held = sum(leaf.nbytes for leaf in jax.tree.leaves(state.clients))
        rows.append(
            (
                f"{size:,}",
                clients,
                cohort,
                f"{statistics.median(seconds):.4f}",
                f"{statistics.median(seconds) / cohort * 1e3:.2f}",
                f"{held / 2**20:.1f}",
                f"{memory.temp_size_in_bytes / 2**20:.1f}",
            )
        )
        del state, step, compiled
    return Table(
        f"one FedSpeed round, {STEPS} steps a client",
        (
            "parameters",
            "clients",
            "cohort",
            "CPU-s a round",
            "CPU-ms a client",
            "client state, MiB",
            "scratch, MiB",
        ),
        rows,
    )


def examples(clients: int) -> tuple[np.ndarray, np.ndarray]:
    """Random inputs [clients, 50, 64] and labels."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(clients, EXAMPLES, 64)).astype(np.float32)
    return inputs, rng.integers(0, 10, size=(clients, EXAMPLES)).astype(np.int32)


def mlp_params(*widths: int) -> list[dict[str, jax.Array]]:
    """Layers `widths` - 10."""
    rng = np.random.default_rng(1)
    return [
        {
            "w": jnp.asarray(rng.normal(size=(m, n)) / np.sqrt(m), jnp.float32),
            "b": jnp.zeros(n, jnp.float32),
        }
        for m, n in zip(widths, (*widths[1:], 10), strict=True)
    ]


def loss_fn(params: Any, batch: Any, key: Any) -> Any:
    """Mean cross-entropy of the MLP."""
    del key
    hidden = batch["x"]
    for layer in params[:-1]:
        hidden = jax.nn.relu(hidden @ layer["w"] + layer["b"])
    logits = hidden @ params[-1]["w"] + params[-1]["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()


def compiled_round(
    method: Any, params: Any, inputs: Any, labels: Any, cohort: int, chunk: int
) -> tuple[Any, Any, Any]:
    """A compiled round, the function that calls it and consumes its state, the first state."""
    training = federated.LocalTraining(loss_fn, batch_size=BATCH, num_epochs=EPOCHS)
    data = federated.stack_clients({"x": inputs, "y": labels})
    sampler = federated.uniform_sampler(len(inputs), cohort)
    mapped = federated.vmap_clients(chunk)
    state = federated.init_state(method, params, len(inputs), jax.random.key(0))
    step = jax.jit(
        lambda s, data: federated.federated_round(method, training, s, data, sampler, mapped),
        donate_argnums=0,
    )
    compiled = step.lower(state, data).compile()
    return compiled, lambda s: compiled(s, data), state


def jax_rounds(
    method: Any, params: Any, inputs: Any, labels: Any, rounds: int
) -> Callable[[], Any]:
    """A function that makes so many rounds, compiled and warm; shuffling included."""
    training = federated.LocalTraining(loss_fn, batch_size=BATCH, num_epochs=EPOCHS)
    data = federated.stack_clients({"x": inputs, "y": labels})
    sampler = federated.uniform_sampler(len(inputs), COHORT)
    state = federated.init_state(method, params, len(inputs), jax.random.key(0))
    step = jax.jit(
        lambda s: federated.run_rounds(
            method,
            training,
            s,
            data,
            sampler,
            federated.vmap_clients(),
            num_rounds=rounds,
        ),
        donate_argnums=0,
    )

    def more_rounds():
        nonlocal state
        state, _ = jax.block_until_ready(step(state))

    more_rounds()
    return more_rounds


def torch_rounds(
    params: Any,
    inputs: np.ndarray,
    labels: np.ndarray,
    local_step: Callable[..., None],
    *,
    dual: bool,
    shuffle: bool = True,
) -> Callable[..., Any]:
    """One round in PyTorch: clients one after another, a module and autograd."""
    import torch

    rng = np.random.default_rng(2)
    x, y = torch.from_numpy(inputs), torch.from_numpy(labels).long()
    model = torch.nn.Sequential(
        torch.nn.Linear(64, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, 10)
    )
    leaves = [
        torch.from_numpy(np.array(leaf))
        for layer in params
        for leaf in (np.asarray(layer["w"]).T, layer["b"])
    ]
    duals = [[torch.zeros_like(leaf) for leaf in leaves] for _ in range(len(inputs))]

    def one_client(client):
        weights = list(model.parameters())
        with torch.no_grad():
            torch._foreach_copy_(weights, leaves)
        optimizer = torch.optim.SGD(weights, lr=LEARNING_RATE, weight_decay=DECAY)
        pull = (leaves, duals[client]) if dual else None
        for _ in range(EPOCHS):
            order = rng.permutation(EXAMPLES) if shuffle else np.arange(EXAMPLES)
            for start in range(0, EXAMPLES, BATCH):
                rows = torch.from_numpy(order[start : start + BATCH])
                local_step(model, optimizer, x[client, rows], y[client, rows], pull)
        with torch.no_grad():
            delta = torch._foreach_sub(weights, leaves)
            if dual:
                torch._foreach_add_(duals[client], delta)
        return delta

    def one_round(cohort=None):
        cohort = rng.permutation(len(inputs))[:COHORT] if cohort is None else cohort
        deltas = [one_client(client) for client in cohort]
        with torch.no_grad():
            for index, leaf in enumerate(leaves):
                leaf += torch.stack([delta[index] for delta in deltas]).mean(0)
                if dual:
                    leaf += torch.stack([h[index] for h in duals]).mean(0)
        return leaves

    if shuffle:
        one_round()
    return one_round


def usual_step(model: Any, optimizer: Any, rows: Any, targets: Any, pull: Any) -> None:
    """A local step as a PyTorch user writes it, with `torch.optim.SGD` and `clip_grad_norm_`.

    `pull` holds the model at the start of the round and the client's dual, or is None for FedAvg.
    """
    import torch

    weights = list(model.parameters())
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(rows), targets).backward()
    if pull is not None:
        with torch.no_grad():
            norm = torch.norm(torch.stack([w.grad.norm() for w in weights]))
            ascent = [w.grad * (RHO / (norm + 1e-7)) for w in weights]
            for weight, step in zip(weights, ascent, strict=True):
                weight.add_(step)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(rows), targets).backward()
        with torch.no_grad():
            for weight, step in zip(weights, ascent, strict=True):
                weight.sub_(step)
    torch.nn.utils.clip_grad_norm_(weights, CLIP)
    if pull is not None:
        with torch.no_grad():
            for weight, anchor, dual in zip(weights, *pull, strict=True):
                weight.grad.add_(weight - anchor + dual, alpha=PROX)
    optimizer.step()


def foreach_step(model: Any, optimizer: Any, rows: Any, targets: Any, pull: Any) -> None:
    """The same step with one fused call for all parameters wherever PyTorch has one."""
    import torch

    del optimizer
    weights = list(model.parameters())

    def gradient():
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(rows), targets).backward()
        return [w.grad.clone() for w in weights]

    direction = gradient()
    if pull is not None:
        norm = torch.nn.utils.get_total_norm(direction)
        ascent = torch._foreach_mul(direction, RHO / (norm + 1e-7))
        with torch.no_grad():
            torch._foreach_add_(weights, ascent)
        direction = gradient()
        with torch.no_grad():
            torch._foreach_sub_(weights, ascent)
    norm = torch.nn.utils.get_total_norm(direction)
    torch._foreach_mul_(direction, torch.clamp(CLIP / (norm + 1e-6), max=1.0))
    with torch.no_grad():
        torch._foreach_add_(direction, weights, alpha=DECAY)
        if pull is not None:
            anchor, dual = pull
            pulled = torch._foreach_sub(weights, anchor)
            torch._foreach_add_(pulled, dual)
            torch._foreach_add_(direction, pulled, alpha=PROX)
        torch._foreach_add_(weights, direction, alpha=-LEARNING_RATE)


def check_same(
    method: Any,
    params: Any,
    inputs: Any,
    labels: Any,
    local_step: Callable[..., None],
    *,
    dual: bool,
) -> None:
    """Refuse to compare speeds unless two rounds of both sides, unshuffled, agree to 1e-4."""
    training = federated.LocalTraining(loss_fn, batch_size=BATCH, num_epochs=EPOCHS, shuffle=False)
    data = federated.stack_clients({"x": inputs, "y": labels})
    cohorts = [list(range(COHORT)), list(range(5, 5 + COHORT))]
    state = federated.init_state(method, params, len(inputs), jax.random.key(0))
    sampler = federated.cohorts.fixed_sampler(cohorts, len(inputs))
    state, _ = jax.jit(
        lambda s: federated.run_rounds(method, training, s, data, sampler, num_rounds=2)
    )(state)
    theirs = torch_rounds(params, inputs, labels, local_step, dual=dual, shuffle=False)
    theirs(cohorts[0])
    leaves = theirs(cohorts[1])
    ours = [np.asarray(v) for layer in state.params for v in (layer["w"].T, layer["b"])]
    gap = max(float(np.abs(a - b.numpy()).max()) for a, b in zip(ours, leaves, strict=True))
    if gap > 1e-4:
        raise AssertionError(f"both sides must make the same rounds, got a gap of {gap:.1e}")
