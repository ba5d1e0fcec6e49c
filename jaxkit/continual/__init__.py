"""Continual learning without rehearsal: SEMA, a frozen vision transformer that grows adapters.

`SEMALearner` puts the method of arXiv 2403.18886 on a `Stream`; `run_stream` tests it after each
task, saves it and resumes it. Beneath lie pure functions on a `SEMAState` of constant shapes:
`adapted_forward`, `expansion_scores`, `add_adapter`, `classification_step`, `description_step`. How
to choose: `SimpleCIL` first, it needs no training and is hard to beat where a backbone's features
already separate the classes; `AdaptedPrototypes` where the first task is like the rest;
`SEMALearner` where domains shift; the policies `"never"`, `"every_task"` and `"finetune"` are its
baselines, and so is `L2P`, which learns prompts instead of adapters. Weights:
`load_vision_transformer` for files of timm and Hugging Face, `pretrain_backbone` without one. Sharp
edges: images are in [0, 1] and are not normalised unless the model's `input_mean` and `input_std`
say so; familiar data score about 0.8, so a threshold below 1 grows on everything; a block that is
full raises, `capacity` one a task is always enough; the descriptors' learning rate is bounded by
the size of the residual stream, a divergence raises; `forgetting` weighs tasks, `pooled_accuracies`
weighs samples; growing the capacity compiles anew.
"""

from jaxkit.continual.adapters import Adapter, functional_adapter, init_adapter, mixture_of_adapters
from jaxkit.continual.descriptors import Descriptor, init_descriptor, representation_error
from jaxkit.continual.error_records import (
    ErrorRecords,
    empty_records,
    record_errors,
    record_statistics,
    shift_score,
    z_scores,
)
from jaxkit.continual.expandable_state import (
    FunctionalParams,
    Head,
    SEMAConfig,
    SEMAState,
    active_slots,
    add_adapter,
    grow_capacity,
    init_sema,
)
from jaxkit.continual.figures import (
    accuracy_matrix_figure,
    expansion_figure,
    router_weights_by_task,
    router_weights_figure,
)
from jaxkit.continual.forward_pass import (
    Forward,
    adapted_forward,
    class_logits,
    descriptor_errors,
    expansion_scores,
    frozen_prefix,
)
from jaxkit.continual.freezing import Trainable, newest_slots, trainable_mask, where_trainable
from jaxkit.continual.image_folders import folder_stream
from jaxkit.continual.learners import Advance, Learner
from jaxkit.continual.parameter_counts import ParameterCounts, parameter_counts
from jaxkit.continual.phases import (
    Learning,
    classification_step,
    description_step,
    init_learning,
    local_cross_entropy,
    sgd,
)
from jaxkit.continual.pretraining import (
    photometric_augment,
    pretrain_backbone,
    tiny_vision_transformer,
)
from jaxkit.continual.prompts import (
    L2P,
    PromptPool,
    choose_prompts,
    init_prompt_pool,
    prompt_logits,
    prompted_features,
)
from jaxkit.continual.prototypes import (
    AdaptedPrototypes,
    Prototypes,
    SimpleCIL,
    add_to_prototypes,
    cosine_scores,
    frozen_features,
)
from jaxkit.continual.published_weights import (
    WeightReport,
    compare_weights,
    convert_weights,
    load_vision_transformer,
    read_safetensors,
    resize_position_embedding,
)
from jaxkit.continual.routers import Router, router_weights
from jaxkit.continual.sema_learner import SEMALearner
from jaxkit.continual.sema_programs import Programs, sema_programs
from jaxkit.continual.sema_settings import SEMASettings, cosine_rates
from jaxkit.continual.shift_detection import first_trigger, require_finite_statistics
from jaxkit.continual.step_batches import StepBatches, draw_batches
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
    "Adapter",
    "Advance",
    "Descriptor",
    "ErrorRecords",
    "Forward",
    "FunctionalParams",
    "Head",
    "Learner",
    "Learning",
    "ParameterCounts",
    "Programs",
    "PromptPool",
    "Prototypes",
    "Router",
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
    "WeightReport",
    "accuracy_matrix_figure",
    "active_slots",
    "adapted_forward",
    "add_adapter",
    "add_to_prototypes",
    "average_accuracy",
    "average_incremental_accuracy",
    "backward_transfer",
    "choose_prompts",
    "class_incremental_stream",
    "class_logits",
    "classification_step",
    "compare_weights",
    "convert_weights",
    "cosine_rates",
    "cosine_scores",
    "description_step",
    "descriptor_errors",
    "digits_stream",
    "domain_incremental_stream",
    "draw_batches",
    "empty_records",
    "expansion_figure",
    "expansion_scores",
    "first_trigger",
    "folder_stream",
    "forgetting",
    "frozen_features",
    "frozen_prefix",
    "functional_adapter",
    "grow_capacity",
    "init_adapter",
    "init_descriptor",
    "init_learning",
    "init_prompt_pool",
    "init_sema",
    "load_vision_transformer",
    "local_cross_entropy",
    "mixture_of_adapters",
    "newest_slots",
    "parameter_counts",
    "photometric_augment",
    "pooled_accuracies",
    "pretrain_backbone",
    "prompt_logits",
    "prompted_features",
    "read_safetensors",
    "record_errors",
    "record_statistics",
    "representation_error",
    "require_finite_statistics",
    "resize_position_embedding",
    "router_weights",
    "router_weights_by_task",
    "router_weights_figure",
    "run_stream",
    "sema_programs",
    "sgd",
    "shift_score",
    "stage_accuracies",
    "task_accuracy",
    "tiny_vision_transformer",
    "trainable_mask",
    "where_trainable",
    "z_scores",
]
