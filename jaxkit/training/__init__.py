"""The one driver: run folder, mesh and sharding, step, checkpoints of any pytree, clean stops.

`make_mesh` arranges the devices, `init_state` makes every array where it will live and
`make_train_step` compiles one donated update of any pure loss with any optax optimizer. `Run` is a
folder claimed by one writer: it knows which run it holds, keeps proved checkpoints of any pytree
and logs. `drive` advances a state in it: metrics as JSON lines, checkpoints in the background, a
clean stop on SIGTERM, exact resumption. `read_run` reads a run, also while it is trained. A lone
loop needs only `make_train_step`.

Sharp edges: the state given to a step is consumed; `num_steps` counts optimizer updates, not
microbatches; put the `tensor` axis of a mesh inside a process.
"""

from jaxkit.training.chips import Roofline, model_flops_utilization, roofline, topology_devices
from jaxkit.training.driver import Cadence, Lap, drive
from jaxkit.training.event_files import EventFiles
from jaxkit.training.host_memory import keep_freed_memory, share_freed_memory
from jaxkit.training.identities import fingerprint, program_fingerprint
from jaxkit.training.mesh import AXES, distributed_run, make_mesh, mesh_in_use
from jaxkit.training.metrics import NonFiniteLossError, read_metrics, require_finite
from jaxkit.training.programs import ProgramCost, program_cost
from jaxkit.training.progress import Console, Progress, Silent, say, terminal
from jaxkit.training.runs import Keep, Run, read_run
from jaxkit.training.sharding import (
    RULES,
    automatic_axes,
    batch_sharding,
    constrain,
    explicit_mesh,
    local_rows,
    parameter_shardings,
    partition_count,
    place_batch,
    replicated,
)
from jaxkit.training.step import (
    TrainState,
    abstract_state,
    init_state,
    make_train_step,
    state_shardings,
)

__all__ = [
    "AXES",
    "RULES",
    "Cadence",
    "Console",
    "EventFiles",
    "Keep",
    "Lap",
    "NonFiniteLossError",
    "ProgramCost",
    "Progress",
    "Roofline",
    "Run",
    "Silent",
    "TrainState",
    "abstract_state",
    "automatic_axes",
    "batch_sharding",
    "constrain",
    "distributed_run",
    "drive",
    "explicit_mesh",
    "fingerprint",
    "init_state",
    "keep_freed_memory",
    "local_rows",
    "make_mesh",
    "make_train_step",
    "mesh_in_use",
    "model_flops_utilization",
    "parameter_shardings",
    "partition_count",
    "place_batch",
    "program_cost",
    "program_fingerprint",
    "read_metrics",
    "read_run",
    "replicated",
    "require_finite",
    "roofline",
    "say",
    "share_freed_memory",
    "state_shardings",
    "terminal",
    "topology_devices",
]
