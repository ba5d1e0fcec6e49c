"""Draft."""

from jaxkit.submodular.constraints import knapsack_greedy, partition_matroid_greedy
from jaxkit.submodular.coverage import (
    probabilistic_coverage,
    saturated_coverage,
    weighted_coverage,
)
from jaxkit.submodular.facility_location import (
    facility_location,
    facility_location_from_features,
    facility_location_from_neighbors,
    facility_location_mutual_information,
    facility_location_query,
)
from jaxkit.submodular.graph_cut import cut, graph_cut
from jaxkit.submodular.greedy import (
    greedy,
    lazy_greedy,
    random_greedy,
    stochastic_greedy,
    stochastic_sample_size,
)
from jaxkit.submodular.kernels import nearest_neighbors, similarity_matrix
from jaxkit.submodular.log_det import information_gain, log_det
from jaxkit.submodular.mixture import mixture
from jaxkit.submodular.modular import feature_based, modular
from jaxkit.submodular.queries import QueryCount
from jaxkit.submodular.selection import Guarantee, Selection
from jaxkit.submodular.set_functions import (
    SetFunction,
    check_monotone,
    check_submodular,
    evaluate,
)
from jaxkit.submodular.threshold import threshold_greedy
from jaxkit.submodular.dynamic import DynamicMaximiser
