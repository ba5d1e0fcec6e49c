"""Continual learning without rehearsal: SEMA, a frozen vision transformer that grows adapters.

`SEMALearner` puts the method of arXiv 2403.18886 on a `Stream`; `run_stream` tests it after each
task, saves it and resumes it. Beneath lie pure functions on a `SEMAState` of constant shapes:
`adapted_forward`, `expansion_scores`, `add_adapter`.

How to choose:

- `SimpleCIL` first: it needs no training and is hard to beat where a backbone's features already
  separate the classes;
- `AdaptedPrototypes` where the first task is like the rest;
- `SEMALearner` where domains shift; `never_grow`, `grow_every_task` and `finetune_adapters` in the
  place of `grow_on_shift` are its baselines;
- `RanPAC` solves a ridge on random projections: strong, no training, memory of M^2;
- `PromptLearner` learns prompts instead of adapters: `L2P`, `DualPrompt` or `CODAPrompt`;
- pictures: `folder_stream` decodes them when they are needed, and knows published class orders;
- weights: `models.load_vision_transformer` for published files, `pretrain_backbone` without one.

Sharp edges:

- images are in [0, 1] and are normalized as the model's `input_mean` and `input_std` say;
- familiar data score about 0.8, so a threshold below 1 grows on everything;
- a block that is full raises; a `capacity` of one a task is always enough;
- the descriptors' learning rate is bounded by the size of the residual stream; divergence raises;
- `forgetting` weighs tasks, `pooled_accuracies` weighs samples.
"""

from jaxkit.continual.coda_prompt import CODAPrompt
from jaxkit.continual.dual_prompt import DualPrompt
from jaxkit.continual.expandable_state import (
    SEMAConfig,
    SEMAState,
    active_slots,
    add_adapter,
    init_sema,
    parameter_counts,
)
from jaxkit.continual.figures import (
    accuracy_matrix_figure,
    expansion_figure,
    growth_pictures_figure,
    router_weights_figure,
)
from jaxkit.continual.forward_pass import adapted_forward, expansion_scores
from jaxkit.continual.image_folders import folder_stream
from jaxkit.continual.l2p import L2P
from jaxkit.continual.pretraining import pretrain_backbone, tiny_vision_transformer
from jaxkit.continual.prompts import PromptLearner
from jaxkit.continual.prototypes import AdaptedPrototypes, SimpleCIL
from jaxkit.continual.ranpac import RanPAC
from jaxkit.continual.sema import (
    SEMALearner,
    finetune_adapters,
    grow_every_task,
    grow_on_shift,
    never_grow,
)
from jaxkit.continual.sema_programs import where_trainable
from jaxkit.continual.stream_metrics import (
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    forgetting,
    pooled_accuracies,
    stage_accuracies,
)
from jaxkit.continual.stream_runs import Advance, Learner, Phase, StreamResult, run_stream
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
    "CODAPrompt",
    "DualPrompt",
    "Learner",
    "Phase",
    "PromptLearner",
    "RanPAC",
    "SEMAConfig",
    "SEMALearner",
    "SEMAState",
    "SimpleCIL",
    "Stream",
    "StreamResult",
    "Task",
    "accuracy_matrix_figure",
    "active_slots",
    "adapted_forward",
    "add_adapter",
    "average_accuracy",
    "average_incremental_accuracy",
    "backward_transfer",
    "class_incremental_stream",
    "digits_stream",
    "domain_incremental_stream",
    "expansion_figure",
    "expansion_scores",
    "finetune_adapters",
    "folder_stream",
    "forgetting",
    "grow_every_task",
    "grow_on_shift",
    "growth_pictures_figure",
    "init_sema",
    "never_grow",
    "parameter_counts",
    "pooled_accuracies",
    "pretrain_backbone",
    "router_weights_figure",
    "run_stream",
    "stage_accuracies",
    "tiny_vision_transformer",
    "where_trainable",
]
