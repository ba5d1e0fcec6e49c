"""Everything a federated run needs to go on, and where it lives."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key, PyTree

from jaxkit import validation
from jaxkit.federated import algorithm, mapping


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

    Returns:
        The state.

    Raises:
        TypeError: if a parameter is not floating point.
        ValueError: if `num_clients` is not positive.

    Example:
        >>> from jaxkit.federated import duals
        >>> state = init_state(duals.fedspeed(), {"w": jnp.ones(3)}, 5, jax.random.key(0))
        >>> state.clients["memory"]["dual"]["w"].shape
        (5, 3)
    """
    validation.integer("num_clients", num_clients, minimum=1)
    check_params(params)
    params = jax.tree.map(jnp.asarray, params)
    rows = num_clients + (-num_clients % mesh.shape[mapping.AXIS] if mesh else 0)

    def spread(params):
        return jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (rows, *leaf.shape)), client_row(method, params)
        )

    state = FederatedState(
        round=jnp.zeros((), jnp.int32),
        # A copy: the state is donated round by round, the caller's parameters are not.
        params=jax.tree.map(jnp.array, params),
        shared=method.init_shared(params),
        server_optimizer_state=method.server_optimizer.init(algorithm.widened(params)),
        clients=(),
        num_clients=jnp.asarray(num_clients, jnp.int32),
        key=key,
    )
    if mesh is None:
        return jax.tree.map(jnp.array, state._replace(clients=spread(params)))
    state = mapping.place(state, mesh, by_client=False)
    by_client = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mapping.AXIS))
    clients = jax.jit(spread, out_shardings=by_client)(state.params)
    return state._replace(clients=clients)


def client_row(method: algorithm.FederatedAlgorithm, params: PyTree) -> dict[str, Any]:
    """What one client holds before it first takes part.

    Args:
        method: the algorithm.
        params: the first global model.

    Returns:
        `"memory"`, and where the algorithm has them `"last_params"` and `"optimizer_state"`.

    Example:
        >>> from jaxkit.federated import averaging
        >>> client_row(averaging.fedavg(), {"w": jnp.ones(3)})
        {'memory': {}}
    """
    row: dict[str, Any] = {"memory": method.init_memory(params)}
    if method.relaxation is not None:
        row["last_params"] = params
    if method.keep_optimizer_state:
        row["optimizer_state"] = method.client_optimizer.init(params)
    return row


def check_params(params: PyTree) -> None:
    """Refuse parameters that cannot be averaged.

    Raises:
        TypeError: if a leaf is not floating point, naming it.

    Example:
        >>> check_params({"w": jnp.ones(3)})
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"params must be floating point, got {jnp.result_type(leaf)} at "
                f"params{jax.tree_util.keystr(path)}"
            )


def check_state(method: algorithm.FederatedAlgorithm, state: FederatedState) -> None:
    """Refuse a state that does not fit its algorithm and parameters: another run's, say.

    Args:
        method: the algorithm.
        state: the state.

    Raises:
        TypeError: if a parameter is not floating point.
        ValueError: if the rows of the clients or the server's vectors differ from what the
            algorithm holds for these parameters, naming the first difference.

    Example:
        >>> from jaxkit.federated import duals
        >>> method = duals.fedspeed()
        >>> state = init_state(method, {"w": jnp.ones(3)}, 5, jax.random.key(0))
        >>> check_state(method, state._replace(params={"w": jnp.ones(4)}))
        Traceback (most recent call last):
        ValueError: state.shared['dual_mean']['w'] must be float32[4] for...
    """
    check_params(state.params)
    row = jax.eval_shape(lambda params: client_row(method, params), state.params)
    held = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), state.clients)
    shared = jax.eval_shape(method.init_shared, state.params)
    server = jax.eval_shape(
        lambda params: method.server_optimizer.init(algorithm.widened(params)), state.params
    )
    for name, expected, got in (
        ("shared", shared, state.shared),
        ("clients", row, held),
        ("server_optimizer_state", server, state.server_optimizer_state),
    ):
        _check_alike(f"state.{name}", method.name, expected, got)


def _check_alike(name: str, method: str, expected: PyTree, got: PyTree) -> None:
    if jax.tree.structure(expected) != jax.tree.structure(got):
        raise ValueError(
            f"{name} must have the structure {jax.tree.structure(expected)} for {method} and these "
            f"params, got {jax.tree.structure(got)}"
        )
    leaves = zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(got), strict=True)
    for (path, want), have in leaves:
        if (want.shape, want.dtype) != (have.shape, have.dtype):
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} must be {_describe(want)} for {method} and "
                f"these params, got {_describe(have)}"
            )


def _describe(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"
