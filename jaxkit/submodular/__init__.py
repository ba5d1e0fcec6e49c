"""Draft."""

from jaxkit.submodular.cardinality import (
    greedy,
    lazy_greedy,
    random_greedy,
    stochastic_greedy,
    stochastic_sample_size,
)
from jaxkit.submodular.concave import feature_based, modular
from jaxkit.submodular.constraints import knapsack_greedy, partition_matroid_greedy
from jaxkit.submodular.coverage import (
    probabilistic_coverage,
    saturated_coverage,
    weighted_coverage,
)
from jaxkit.submodular.cuts import cut, graph_cut
from jaxkit.submodular.determinants import information_gain, log_det
from jaxkit.submodular.dynamic import DynamicMaximiser
from jaxkit.submodular.facilities import (
    facility_location,
    facility_location_from_features,
    facility_location_from_neighbors,
    facility_location_mutual_information,
    facility_location_query,
)
from jaxkit.submodular.kernels import nearest_neighbors, similarity_matrix
from jaxkit.submodular.mixtures import mixture
from jaxkit.submodular.queries import QueryCount
from jaxkit.submodular.selection import Guarantee, Selection
from jaxkit.submodular.set_functions import (
    SetFunction,
    check_monotone,
    check_submodular,
    evaluate,
)
from jaxkit.submodular.threshold import threshold_greedy
from jaxkit.submodular.dynamic_scan import dynamic_scan, dynamic_start
from jaxkit.submodular.levels import LevelSettings
from jaxkit.submodular.streaming import sieve_streaming, sieve_streaming_pp
