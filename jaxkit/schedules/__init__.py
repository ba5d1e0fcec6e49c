r"""Learning-rate schedules: every profile at every sampling rate, and schedules refined for a run.

A schedule is an ordinary `optax.Schedule` made of a *profile* (a shape on progress z in [0, 1]), a
*sampling rate* (how often it is read) and a warm-up: `schedule_from_profile("rex", 3e-3, 1000)`.

How to choose: `rex` for a short budget or none to tune with; `linear` where theory should vouch for
the last iterate; `wsd` when the horizon may still grow; `cosine` to match older work;
`standard_schedules` to compare them all. If a run can be repeated and its gradient norms change a
lot (text models with a rough start), record them by `record_gradient_norms`, make a
`refined_schedule`, and tune its peak again. `bound_table` and `last_iterate_bound` compare
schedules in theory before any training. Phases of any kind are joined by `optax.join_schedules`,
cosine cycles are `optax.sgdr_schedule`, decay on plateau is `optax.contrib.reduce_on_plateau`.

Sharp edges: `total_steps` counts optimizer updates, warm-up included (not epochs, not
micro-batches); resuming with a longer one makes the rate jump up. A warm-up from 0 spends its first
update at rate 0. `exponential`, `step` and `onecycle` do not end at 0. The recorder must come first
in the chain and inside `optax.MultiSteps`. Refinement improves a worst case for convex problems:
where norms are flat it *is* linear decay, and on problems that forget early noise it can lose.
"""

from jaxkit.schedules.bounds import bound_table, last_iterate_bound, refinement_gain
from jaxkit.schedules.figures import plot_schedules, refined_schedule_figure
from jaxkit.schedules.gradient_logs import read_gradient_norms
from jaxkit.schedules.profile_schedules import (
    Schedule,
    onecycle_momentum_schedule,
    schedule_from_profile,
    schedule_from_values,
    standard_schedules,
)
from jaxkit.schedules.profiles import profile_by_name
from jaxkit.schedules.recorder import gradient_norm, record_gradient_norms, recorded_norms
from jaxkit.schedules.refinement import refine_schedule, refined_schedule, smooth_norms

__all__ = [
    "Schedule",
    "bound_table",
    "gradient_norm",
    "last_iterate_bound",
    "onecycle_momentum_schedule",
    "plot_schedules",
    "profile_by_name",
    "read_gradient_norms",
    "record_gradient_norms",
    "recorded_norms",
    "refine_schedule",
    "refined_schedule",
    "refined_schedule_figure",
    "refinement_gain",
    "schedule_from_profile",
    "schedule_from_values",
    "smooth_norms",
    "standard_schedules",
]
