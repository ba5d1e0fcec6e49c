"""Continual learning without rehearsal: SEMA, a frozen vision transformer that grows adapters.

`SEMALearner` puts the method of arXiv 2403.18886 on a `Stream`; `run_stream` tests it after each
task, saves it and resumes it. Beneath lie pure functions on a `SEMAState` of constant shapes:
`adapted_forward`, `expansion_scores`, `add_adapter`, `classification_step`, `description_step`. How
to choose: `SimpleCIL` first, it needs no training and is hard to beat where a backbone's features
already separate the classes; `AdaptedPrototypes` where the first task is like the rest;
`SEMALearner` where domains shift; the policies `"never"`, `"every_task"` and `"finetune"` are its
baselines, and so is `L2P`, which learns prompts instead of adapters. Weights:
`models.load_vision_transformer` for published files, `pretrain_backbone` without one. Sharp edges:
images are in [0, 1] and are normalized as the model's `input_mean` and `input_std` say; familiar
data score about 0.8, so a threshold below 1 grows on everything; a block that is full raises,
`capacity` one a task is always enough; the descriptors' learning rate is bounded by the size of the
residual stream, a divergence raises; `forgetting` weighs tasks, `pooled_accuracies` weighs samples;
growing the capacity compiles anew.
"""

from jaxkit.continual.adapters import functional_adapter, mixture_of_adapters
from jaxkit.continual.expandable_state import (
    SEMAConfig,
    SEMAState,
    active_slots,
    add_adapter,
    init_sema,
)
from jaxkit.continual.figures import (
    accuracy_matrix_figure,
    expansion_figure,
    router_weights_by_task,
    router_weights_figure,
)
from jaxkit.continual.forward_pass import adapted_forward, expansion_scores, frozen_prefix
from jaxkit.continual.freezing import Trainable, where_trainable
from jaxkit.continual.image_folders import folder_stream
from jaxkit.continual.learners import Advance, Learner
from jaxkit.continual.parameter_counts import parameter_counts
from jaxkit.continual.phases import classification_step, description_step, init_learning, sgd
from jaxkit.continual.pretraining import (
    photometric_augment,
    pretrain_backbone,
    tiny_vision_transformer,
)
from jaxkit.continual.prompts import L2P
from jaxkit.continual.prototypes import AdaptedPrototypes, SimpleCIL
from jaxkit.continual.sema_learner import SEMALearner
from jaxkit.continual.sema_programs import sema_programs
from jaxkit.continual.sema_settings import SEMASettings
from jaxkit.continual.step_batches import StepBatches
from jaxkit.continual.stream_metrics import (
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    forgetting,
    pooled_accuracies,
    stage_accuracies,
)
from jaxkit.continual.stream_runs import StreamResult, run_stream, task_accuracy
from jaxkit.continual.streams import (
    Stream,
    Task,
    class_incremental_stream,
    digits_stream,
    domain_incremental_stream,
)

__all__ = [
    "L2P",
    "AdaptedPrototypes",
    "Advance",
    "Learner",
    "SEMAConfig",
    "SEMALearner",
    "SEMASettings",
    "SEMAState",
    "SimpleCIL",
    "StepBatches",
    "Stream",
    "StreamResult",
    "Task",
    "Trainable",
    "accuracy_matrix_figure",
    "active_slots",
    "adapted_forward",
    "add_adapter",
    "average_accuracy",
    "average_incremental_accuracy",
    "backward_transfer",
    "class_incremental_stream",
    "classification_step",
    "description_step",
    "digits_stream",
    "domain_incremental_stream",
    "expansion_figure",
    "expansion_scores",
    "folder_stream",
    "forgetting",
    "frozen_prefix",
    "functional_adapter",
    "init_learning",
    "init_sema",
    "mixture_of_adapters",
    "parameter_counts",
    "photometric_augment",
    "pooled_accuracies",
    "pretrain_backbone",
    "router_weights_by_task",
    "router_weights_figure",
    "run_stream",
    "sema_programs",
    "sgd",
    "stage_accuracies",
    "task_accuracy",
    "tiny_vision_transformer",
    "where_trainable",
]
