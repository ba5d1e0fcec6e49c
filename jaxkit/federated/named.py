"""Every algorithm by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxkit import validation
from jaxkit.federated import algorithm, averaging, control_variates, duals, server_momentum

#: Constructors by the name of their algorithm in lower case.
ALGORITHMS: dict[str, Callable[..., algorithm.FederatedAlgorithm]] = {
    "fedavg": averaging.fedavg,
    "fedprox": averaging.fedprox,
    "fedadam": averaging.fedadam,
    "fedsam": averaging.fedsam,
    "scaffold": control_variates.scaffold,
    "fedgamma": control_variates.fedgamma,
    "fedcm": server_momentum.fedcm,
    "mofedsam": server_momentum.mofedsam,
    "feddyn": duals.feddyn,
    "fedspeed": duals.fedspeed,
    "fedsmoo": duals.fedsmoo,
    "fedpd": duals.fedpd,
    "fedadmm": duals.fedadmm,
}


def algorithm_by_name(name: str, *args: Any, **options: Any) -> algorithm.FederatedAlgorithm:
    """Make an algorithm from its name, from a configuration say.

    Args:
        name: a key of `ALGORITHMS`.
        *args: passed to the constructor; the first is the client's local step.
        **options: passed to the constructor.

    Returns:
        The algorithm.

    Raises:
        ValueError: if the name is unknown, with the closest one.

    Example:
        >>> algorithm_by_name("fedprox", prox_coef=0.01).name
        'FedProx'
    """
    return ALGORITHMS[validation.choice("name", name, ALGORITHMS)](*args, **options)
