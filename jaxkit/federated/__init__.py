"""Federated optimisation over simulated clients: FedSpeed (arXiv 2302.10429) and its baselines.

An algorithm is a value (`fedspeed(local_sgd(0.1), rho=0.1)`), `local_training` says what a client
does with its data, a sampler who takes part, a client map how clients are run; `federated_round`
is one round, `run_rounds` many in one program, `simulate` a run with progress, metrics and
checkpoints. `with_relaxed_start` and `with_client_privacy` change any algorithm. How to choose an
algorithm: `fedspeed` or `feddyn` where clients can keep one vector and there are many local steps;
`scaffold` where clients differ most and a second vector may be sent; `fedavg` or `fedadam` where
clients are seen once. How to choose a backend: `vmap_clients` for small models on one device,
`chunked_clients` for large or convolutional ones, `shard_clients` for several devices or hosts,
with `stratified_sampler` so that client state stays where it is; `pmap_clients` only for code that
needs `pmap`. Sharp edges: `prox_coef` is 1/lambda; `dual_average="active"` is the printed algorithm
and breaks down under partial participation; clients weigh the same whatever their size; decay the
learning rate slowly (0.9995 a round) in long runs of dual methods; `clip_mode="simulator"` clips
the position of the model too; a loss that couples the examples of a batch needs equal clients and
`drop_remainder`; donate the state when compiling rounds yourself; client state is one or two
models a client; metrics are not protected by client-level privacy.
"""

from jaxkit.federated.algorithm import (
    Aggregate,
    FederatedAlgorithm,
    LocalResult,
    displacement_algorithm,
    with_relaxed_start,
)
from jaxkit.federated.averaging import (
    fedadam,
    fedavg,
    fedprox,
    fedsam,
    scale_by_uncorrected_adam,
)
from jaxkit.federated.client_privacy import (
    ClientPrivacy,
    client_epsilon,
    with_client_privacy,
)
from jaxkit.federated.client_step import ClientStep, local_optimizer, local_sgd
from jaxkit.federated.clients import ClientData, client_data, place_data, stack_clients
from jaxkit.federated.cohorts import (
    Cohort,
    Sampler,
    bernoulli_sampler,
    fixed_sampler,
    make_cohort,
    simulator_cohort,
    stratified_sampler,
    uniform_sampler,
)
from jaxkit.federated.control_variates import fedgamma, scaffold
from jaxkit.federated.corrections import (
    add_control_variate,
    add_prox_correction,
    add_prox_offset,
    mix_client_momentum,
    scale_by_round_rate,
)
from jaxkit.federated.duals import fedadmm, feddyn, fedpd, fedsmoo, fedspeed
from jaxkit.federated.figures import accuracy_figure, label_distribution_figure
from jaxkit.federated.fitness import check_run
from jaxkit.federated.local_steps import LocalTraining, local_training, weighted_gradient
from jaxkit.federated.mapping import (
    ClientMap,
    chunked_clients,
    clients_mesh,
    pmap_clients,
    shard_clients,
    vmap_clients,
)
from jaxkit.federated.named import ALGORITHMS, algorithm_by_name
from jaxkit.federated.partitions import (
    heterogeneity,
    iid_partition,
    label_counts,
    per_class_dirichlet_partition,
    refilled_dirichlet_partition,
    refilled_partition,
    refilled_pathological_partition,
)
from jaxkit.federated.perturbation import ascent_step, quasi_gradient, tied_perturbation
from jaxkit.federated.rounds import RoundMetrics, cohort_round, federated_round, run_rounds
from jaxkit.federated.server_momentum import fedcm, mofedsam
from jaxkit.federated.simulation import SimulationResult, simulate
from jaxkit.federated.state import FederatedState, check_state, init_state

__all__ = [
    "ALGORITHMS",
    "Aggregate",
    "ClientData",
    "ClientMap",
    "ClientPrivacy",
    "ClientStep",
    "Cohort",
    "FederatedAlgorithm",
    "FederatedState",
    "LocalResult",
    "LocalTraining",
    "RoundMetrics",
    "Sampler",
    "SimulationResult",
    "accuracy_figure",
    "add_control_variate",
    "add_prox_correction",
    "add_prox_offset",
    "algorithm_by_name",
    "ascent_step",
    "bernoulli_sampler",
    "check_run",
    "check_state",
    "chunked_clients",
    "client_data",
    "client_epsilon",
    "clients_mesh",
    "cohort_round",
    "displacement_algorithm",
    "fedadam",
    "fedadmm",
    "fedavg",
    "fedcm",
    "feddyn",
    "federated_round",
    "fedgamma",
    "fedpd",
    "fedprox",
    "fedsam",
    "fedsmoo",
    "fedspeed",
    "fixed_sampler",
    "heterogeneity",
    "iid_partition",
    "init_state",
    "label_counts",
    "label_distribution_figure",
    "local_optimizer",
    "local_sgd",
    "local_training",
    "make_cohort",
    "mix_client_momentum",
    "mofedsam",
    "per_class_dirichlet_partition",
    "place_data",
    "pmap_clients",
    "quasi_gradient",
    "refilled_dirichlet_partition",
    "refilled_partition",
    "refilled_pathological_partition",
    "run_rounds",
    "scaffold",
    "scale_by_round_rate",
    "scale_by_uncorrected_adam",
    "shard_clients",
    "simulate",
    "simulator_cohort",
    "stack_clients",
    "stratified_sampler",
    "tied_perturbation",
    "uniform_sampler",
    "vmap_clients",
    "weighted_gradient",
    "with_client_privacy",
    "with_relaxed_start",
]
