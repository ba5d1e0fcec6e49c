r"""Learning-rate schedules: every profile at every sampling rate, and schedules refined for a run.

A schedule is an ordinary `optax.Schedule` made of a *profile* (a shape on progress z in [0, 1]), a
*sampling rate* (how often it is read) and a warm-up.

How to choose: `rex_schedule` for a short budget or none to tune with; `linear_decay_schedule`
where theory should vouch for the last iterate; `wsd_schedule` when the horizon may still grow;
`cosine_schedule` to match older work. If a run can be repeated and its gradient norms change a lot
(text models with a rough start), record them by `record_gradient_norms`, make a
`refined_schedule`, and tune its peak again. `bound_table` and `last_iterate_bound` compare
schedules in theory before any training. For decay on plateau use `optax.contrib.reduce_on_plateau`.

Sharp edges: `total_steps` counts optimiser updates, warm-up included (not epochs, not
micro-batches); resuming with a longer one makes the rate jump up. A warm-up from 0 spends its first
update at rate 0. `exponential_schedule`, `step_schedule` and `onecycle_schedule` do not end at 0.
The recorder must come first in the chain and inside `optax.MultiSteps`. Refinement improves a
worst case for convex problems: where norms are flat it *is* linear decay, and on problems that
forget early noise it can lose.
"""

from jaxkit.schedules.bounds import (
    ScheduleBound,
    best_last_iterate_bound,
    bound_table,
    last_iterate_bound,
    last_iterate_path,
    optimal_step_scale,
    refinement_gain,
    theoretical_steps,
    weighted_bound,
)
from jaxkit.schedules.decay_schedules import (
    cosine_schedule,
    exponential_schedule,
    linear_decay_schedule,
    polynomial_schedule,
    rex_schedule,
    step_schedule,
)
from jaxkit.schedules.figures import plot_schedules, refined_schedule_figure
from jaxkit.schedules.gradient_logs import GradientLog, read_gradient_norms
from jaxkit.schedules.median_filter import sliding_median
from jaxkit.schedules.named import SCHEDULES, schedule_by_name
from jaxkit.schedules.phase_schedules import (
    constant_schedule,
    delayed_linear_schedule,
    onecycle_momentum_schedule,
    onecycle_schedule,
    wsd_schedule,
)
from jaxkit.schedules.profile_schedules import Schedule, schedule_from_profile
from jaxkit.schedules.profiles import (
    PROFILES,
    cosine_profile,
    delayed_profile,
    exponential_profile,
    linear_profile,
    onecycle_profile,
    polynomial_profile,
    profile_by_name,
    rex_profile,
    step_profile,
    wsd_profile,
)
from jaxkit.schedules.recorder import (
    GradientNormState,
    gradient_norm,
    record_gradient_norms,
    recorded_norms,
)
from jaxkit.schedules.refinement import (
    median_width,
    refine_schedule,
    refined_schedule,
    refinement_weights,
    smooth_norms,
)
from jaxkit.schedules.tabulated import schedule_from_values

__all__ = [
    "PROFILES",
    "SCHEDULES",
    "GradientLog",
    "GradientNormState",
    "Schedule",
    "ScheduleBound",
    "best_last_iterate_bound",
    "bound_table",
    "constant_schedule",
    "cosine_profile",
    "cosine_schedule",
    "delayed_linear_schedule",
    "delayed_profile",
    "exponential_profile",
    "exponential_schedule",
    "gradient_norm",
    "last_iterate_bound",
    "last_iterate_path",
    "linear_decay_schedule",
    "linear_profile",
    "median_width",
    "onecycle_momentum_schedule",
    "onecycle_profile",
    "onecycle_schedule",
    "optimal_step_scale",
    "plot_schedules",
    "polynomial_profile",
    "polynomial_schedule",
    "profile_by_name",
    "read_gradient_norms",
    "record_gradient_norms",
    "recorded_norms",
    "refine_schedule",
    "refined_schedule",
    "refined_schedule_figure",
    "refinement_gain",
    "refinement_weights",
    "rex_profile",
    "rex_schedule",
    "schedule_by_name",
    "schedule_from_profile",
    "schedule_from_values",
    "sliding_median",
    "smooth_norms",
    "step_profile",
    "step_schedule",
    "theoretical_steps",
    "weighted_bound",
    "wsd_profile",
    "wsd_schedule",
]
