"""Learning-rate schedules (being filled)."""

from jaxkit.schedules.named import (
    SCHEDULES,
    constant_schedule,
    cosine_schedule,
    delayed_linear_schedule,
    exponential_schedule,
    linear_decay_schedule,
    onecycle_momentum_schedule,
    onecycle_schedule,
    polynomial_schedule,
    rex_schedule,
    schedule_by_name,
    step_schedule,
    wsd_schedule,
)
from jaxkit.schedules.profile_schedules import Schedule, schedule_from_profile
from jaxkit.schedules.recorder import (
    GradientNormState,
    gradient_norm,
    record_gradient_norms,
    recorded_norms,
)

__all__ = [
    "SCHEDULES",
    "GradientNormState",
    "Schedule",
    "constant_schedule",
    "cosine_schedule",
    "delayed_linear_schedule",
    "exponential_schedule",
    "gradient_norm",
    "linear_decay_schedule",
    "onecycle_momentum_schedule",
    "onecycle_schedule",
    "polynomial_schedule",
    "record_gradient_norms",
    "recorded_norms",
    "rex_schedule",
    "schedule_by_name",
    "schedule_from_profile",
    "step_schedule",
    "wsd_schedule",
]
