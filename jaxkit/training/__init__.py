"""The one training loop: state, step, mesh and sharding, checkpoints, metrics, progress.

`make_mesh` arranges the devices, `init_state` makes every array where it will live,
`make_train_step` compiles one donated update of any pure loss with any optax optimizer, and `fit`
drives it: metrics as JSON lines, atomic checkpoints in the background, a clean stop on SIGTERM,
exact resumption. A lone loop needs only `make_train_step`.

Sharp edges: the state given to a step is consumed; `total_steps` counts optimizer updates, not
microbatches; put the `tensor` axis of a mesh inside a process.
"""

from jaxkit.training.checkpoints import Checkpoints, Restored
from jaxkit.training.chips import (
    CHIPS,
    Roofline,
    model_flops_utilization,
    roofline,
    topology_devices,
)
from jaxkit.training.host_memory import keep_freed_memory
from jaxkit.training.loop import Batches, Cadence, FitResult, fit
from jaxkit.training.mesh import (
    AXES,
    RULES,
    any_process,
    batch_sharding,
    constrain,
    distributed_run,
    initialize_distributed,
    local_rows,
    make_mesh,
    mesh_in_use,
    parameter_shardings,
    parse_mesh,
    partition_count,
    place_batch,
    replicated,
)
from jaxkit.training.metrics import (
    MetricsLog,
    NonFiniteLossError,
    read_metrics,
    require_finite,
)
from jaxkit.training.programs import Collective, ProgramCost, program_cost
from jaxkit.training.progress import Console, Progress, Silent
from jaxkit.training.step import (
    StepMetrics,
    TrainState,
    abstract_state,
    init_state,
    make_train_step,
    state_shardings,
)

__all__ = [
    "AXES",
    "CHIPS",
    "RULES",
    "Batches",
    "Cadence",
    "Checkpoints",
    "Collective",
    "Console",
    "FitResult",
    "MetricsLog",
    "NonFiniteLossError",
    "ProgramCost",
    "Progress",
    "Restored",
    "Roofline",
    "Silent",
    "StepMetrics",
    "TrainState",
    "abstract_state",
    "any_process",
    "batch_sharding",
    "constrain",
    "distributed_run",
    "fit",
    "init_state",
    "initialize_distributed",
    "keep_freed_memory",
    "local_rows",
    "make_mesh",
    "make_train_step",
    "mesh_in_use",
    "model_flops_utilization",
    "parameter_shardings",
    "parse_mesh",
    "partition_count",
    "place_batch",
    "program_cost",
    "read_metrics",
    "replicated",
    "require_finite",
    "roofline",
    "state_shardings",
    "topology_devices",
]
