"""Subset selection: set functions, maximisers, sieves for streams, and a fully dynamic maximiser.

How to choose: exemplars of a table in one call, `select` (or `SubsetSelector`, with the methods of
scikit-learn). Otherwise make a set function: `facility_location` where all items are to be
represented (`..._from_features` or `..._from_neighbors` from about 20 000 items on),
`weighted_coverage` and its relatives for concepts, `feature_based` for counts, `graph_cut` or
`log_det` for diversity, `mixture` for several of them; and maximise it: `lazy_greedy` first,
`stochastic_greedy` when that is slow, `random_greedy` when the function is not monotone,
`knapsack_greedy` and `partition_matroid_greedy` under other constraints, `shard_candidates` for
many devices, `sieve_streaming_pp` for one pass over a stream. Items that come *and go*:
`DynamicMaximiser`, whose queries for an update do not grow with n. It pays when k is large, when
deletions aim at the chosen items, or when a promise for the worst stream is needed; on benign
streams with k = 10, redoing greedy from the first step that changed wins on value and queries.
Sharp edges: graph cuts count ordered pairs with the diagonal and put lambda on the second term;
facility location wants similarities >= 0; a `LogDet` state takes `4 max_size n` bytes;
poly-logarithmic is about oracle queries, not about seconds, and only for streams that do not react
to the solution; guarantees of greedy are for monotone functions, and a `Selection` says which one
it has; under `jit` the values of traced arrays cannot be checked.
"""

from typing import TYPE_CHECKING, Any

from jaxkit.submodular.cardinality import (
    greedy,
    lazy_greedy,
    random_greedy,
    stochastic_greedy,
    threshold_greedy,
)
from jaxkit.submodular.concave import (
    feature_based,
    modular,
    probabilistic_coverage,
    saturated_coverage,
    weighted_coverage,
)
from jaxkit.submodular.constraints import knapsack_greedy, partition_matroid_greedy
from jaxkit.submodular.cuts import cut, graph_cut
from jaxkit.submodular.determinants import information_gain, log_det
from jaxkit.submodular.dynamic import DynamicMaximiser
from jaxkit.submodular.exemplars import select
from jaxkit.submodular.facilities import (
    facility_location,
    facility_location_from_features,
    facility_location_from_neighbors,
    facility_location_mutual_information,
)
from jaxkit.submodular.figures import selection_figure
from jaxkit.submodular.kernels import nearest_neighbors, similarity_matrix
from jaxkit.submodular.levels import LevelSettings
from jaxkit.submodular.mixtures import Restriction, mixture
from jaxkit.submodular.scan import dynamic_scan, dynamic_start
from jaxkit.submodular.selection import Selection
from jaxkit.submodular.set_functions import SetFunction, check_monotone, check_submodular, evaluate
from jaxkit.submodular.sharding import shard_candidates
from jaxkit.submodular.streaming import sieve_streaming, sieve_streaming_pp

if TYPE_CHECKING:
    from jaxkit.submodular.selector import SubsetSelector

__all__ = [
    "DynamicMaximiser",
    "LevelSettings",
    "Restriction",
    "Selection",
    "SetFunction",
    "SubsetSelector",
    "check_monotone",
    "check_submodular",
    "cut",
    "dynamic_scan",
    "dynamic_start",
    "evaluate",
    "facility_location",
    "facility_location_from_features",
    "facility_location_from_neighbors",
    "facility_location_mutual_information",
    "feature_based",
    "graph_cut",
    "greedy",
    "information_gain",
    "knapsack_greedy",
    "lazy_greedy",
    "log_det",
    "mixture",
    "modular",
    "nearest_neighbors",
    "partition_matroid_greedy",
    "probabilistic_coverage",
    "random_greedy",
    "saturated_coverage",
    "select",
    "selection_figure",
    "shard_candidates",
    "sieve_streaming",
    "sieve_streaming_pp",
    "similarity_matrix",
    "stochastic_greedy",
    "threshold_greedy",
    "weighted_coverage",
]


def __getattr__(name: str) -> Any:
    # Its base class is scikit-learn's, which the rest of the room does without.
    if name == "SubsetSelector":
        from jaxkit.submodular.selector import SubsetSelector

        return SubsetSelector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
