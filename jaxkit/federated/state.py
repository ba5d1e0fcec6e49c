"""Everything a federated run needs to go on, and where it lives."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key, PyTree

from jaxkit import validation
from jaxkit.federated import algorithm, backends, perturbation


class FederatedState(NamedTuple):
    """State of a federated run: arrays only.

    Attributes:
        round: rounds made, int32 scalar.
        params: the global model x.
        shared: what the server holds beside it, vectors by name.
        server_optimizer_state: state of the server's optimizer, in float32 or wider.
        clients: what clients hold, each leaf [rows, ...]: `"memory"`, and where the algorithm has
            them `"last_params"` and `"optimizer_state"`. Rows past the clients are padding.
        num_clients: m, int32 scalar.
        key: typed key of the run; round t uses `fold_in(key, t)`.
    """

    round: Int[Array, ""]
    params: PyTree
    shared: PyTree
    server_optimizer_state: PyTree
    clients: PyTree
    num_clients: Int[Array, ""]
    key: Key[Array, ""]


def init_state(
    method: algorithm.FederatedAlgorithm,
    params: PyTree,
    num_clients: int,
    key: Key[Array, ""],
    *,
    mesh: Mesh | None = None,
) -> FederatedState:
    """The state before the first round.

    Args:
        method: the algorithm.
        params: the first global model, floating point.
        num_clients: m >= 1.
        key: typed key of the run.
        mesh: with an axis `"clients"`: client rows are made on it, padded to a multiple of it, and
            everything else is copied to every device.

    Raises:
        TypeError: if a parameter is not floating point, `method` no algorithm or `key` no key.
        ValueError: if `num_clients` is not positive or there is no parameter.

    Example:
        >>> from jaxkit.federated.fedspeed import fedspeed
        >>> state = init_state(fedspeed(), {"w": jnp.ones(3)}, 5, jax.random.key(0))
        >>> state.clients["memory"]["dual"]["w"].shape
        (5, 3)
    """
    if not isinstance(method, algorithm.FederatedAlgorithm):
        raise TypeError(f"method must be a federated algorithm, fedavg() say, got {method!r}")
    if not hasattr(key, "dtype"):
        raise TypeError(f"key must be made by jax.random.key, got {key!r}")
    validation.integer("num_clients", num_clients, minimum=1)
    algorithm.check_floating("params", params)
    params = jax.tree.map(jnp.asarray, params)
    rows = num_clients + (-num_clients % mesh.shape[backends.AXIS] if mesh else 0)

    def spread(params):
        return jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (rows, *leaf.shape)), client_row(method, params)
        )

    state = FederatedState(
        round=jnp.zeros((), jnp.int32),
        params=params,
        shared=method.init_shared(params),
        server_optimizer_state=method.server_optimizer.init(
            jax.tree.map(perturbation.widen, params)
        ),
        clients=(),
        num_clients=jnp.asarray(num_clients, jnp.int32),
        key=key,
    )
    # Copies: the state is donated round by round, the caller's parameters are not.
    state, by_client = jax.tree.map(jnp.array, state), None
    if mesh is not None:
        state = backends.place(state, mesh, by_client=False)
        by_client = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(backends.AXIS))
    # Made where they stay: the rows of all clients may be most of what a device holds.
    return state._replace(clients=jax.jit(spread, out_shardings=by_client)(state.params))


def client_row(method: algorithm.FederatedAlgorithm, params: PyTree) -> dict[str, Any]:
    """What one client holds before it first takes part."""
    row: dict[str, Any] = {"memory": method.init_memory(params)}
    if method.relaxation is not None:
        row["last_params"] = params
    if method.keep_optimizer_state:
        row["optimizer_state"] = method.descent.init(params)
    return row
