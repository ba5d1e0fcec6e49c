"""Federated optimisation over simulated clients: FedSpeed (arXiv 2302.10429) and its baselines.

An algorithm is a value (`fedspeed(local_sgd(0.1), rho=0.1)`), `LocalTraining` says what a client
does with its data, a sampler who takes part, a client map how clients are run; `federated_round` is
one round, `run_rounds` many in one program, `simulate` a run with progress, metrics and
checkpoints. `with_relaxed_start`, `with_model_state` and `with_client_privacy` change any
algorithm. How to choose an algorithm: `fedspeed` or `feddyn` where clients can keep one vector and
there are many local steps; `scaffold` where clients differ most and a second vector may be sent;
`fedavg` or `fedadam` where clients are seen once; `fednova` where they make different numbers of
steps. How to give data: `client_data` for one pool and a partition of it, `stack_clients` for
arrays or a list by client, `read_clients` for LEAF and tables. How to choose a backend:
`vmap_clients` for small models on one device, in chunks for large or convolutional ones,
`shard_clients` for several devices or hosts, with `stratified_sampler` so that client state stays
where it is. Sharp edges: without a client step algorithms take `simulator_sgd()`, which decays,
clips and shrinks; `prox_coef` is 1/lambda; `dual_average="active"` is the printed algorithm and
breaks down under partial participation; clients weigh the same unless `weighting="examples"`; decay
the learning rate slowly (0.9995 a round) in long runs of dual methods; `clip_mode="simulator"`
clips the position of the model too; a loss is the mean over its batch (a sum steps as many times
further, and is refused where mini-batches are not full); one that couples the examples of a batch
(BatchNorm) needs full mini-batches and `with_model_state`; donate the state when compiling rounds
yourself; client state is one or two models a client; metrics are not protected by client-level
privacy.
"""

from jaxkit.federated.algorithm import (
    FederatedAlgorithm,
    with_model_state,
    with_relaxed_start,
)
from jaxkit.federated.backends import clients_mesh, shard_clients, vmap_clients
from jaxkit.federated.client_files import read_clients
from jaxkit.federated.client_privacy import with_client_privacy
from jaxkit.federated.client_step import local_optimizer, local_sgd, simulator_sgd
from jaxkit.federated.clients import client_data, stack_clients
from jaxkit.federated.cohorts import (
    bernoulli_sampler,
    stratified_sampler,
    uniform_sampler,
)
from jaxkit.federated.fedadmm import fedadmm, fedpd
from jaxkit.federated.fedavg import fedavg
from jaxkit.federated.fedcm import fedcm, mofedsam
from jaxkit.federated.fednova import fednova
from jaxkit.federated.fedopt import fedadam, fedavgm, fedyogi
from jaxkit.federated.fedprox import fedprox
from jaxkit.federated.fedsam import fedsam
from jaxkit.federated.fedsmoo import fedsmoo
from jaxkit.federated.fedspeed import feddyn, fedspeed
from jaxkit.federated.figures import accuracy_figure, label_distribution_figure
from jaxkit.federated.local_training import LocalTraining
from jaxkit.federated.partitions import (
    class_dirichlet_partition,
    dirichlet_partition,
    iid_partition,
    label_counts,
    pathological_partition,
)
from jaxkit.federated.perturbation import quasi_gradient
from jaxkit.federated.rounds import federated_round, run_rounds
from jaxkit.federated.scaffold import fedgamma, scaffold
from jaxkit.federated.simulation import simulate
from jaxkit.federated.state import init_state

#: Every algorithm by its name in lower case.
ALGORITHMS = {
    make.__name__: make
    for make in (
        fedavg, fedprox, fedavgm, fedadam, fedyogi, fednova, fedsam, scaffold, fedgamma, fedcm,
        mofedsam, feddyn, fedspeed, fedsmoo, fedpd, fedadmm,
    )
}  # fmt: skip

__all__ = [
    "ALGORITHMS",
    "FederatedAlgorithm",
    "LocalTraining",
    "accuracy_figure",
    "bernoulli_sampler",
    "class_dirichlet_partition",
    "client_data",
    "clients_mesh",
    "dirichlet_partition",
    "fedadam",
    "fedadmm",
    "fedavg",
    "fedavgm",
    "fedcm",
    "feddyn",
    "federated_round",
    "fedgamma",
    "fednova",
    "fedpd",
    "fedprox",
    "fedsam",
    "fedsmoo",
    "fedspeed",
    "fedyogi",
    "iid_partition",
    "init_state",
    "label_counts",
    "label_distribution_figure",
    "local_optimizer",
    "local_sgd",
    "mofedsam",
    "pathological_partition",
    "quasi_gradient",
    "read_clients",
    "run_rounds",
    "scaffold",
    "shard_clients",
    "simulate",
    "simulator_sgd",
    "stack_clients",
    "stratified_sampler",
    "uniform_sampler",
    "vmap_clients",
    "with_client_privacy",
    "with_model_state",
    "with_relaxed_start",
]
