r"""Predict a whole loss curve under any learning-rate schedule, and choose the schedule.

The loss of a training run follows
$L(s) = L_0 + A S_1(s)^{-\alpha} - C S_2(s)$, with $S_1$ the area under the learning rate up to step
s and $S_2$ the delayed area by which it has come down (arXiv 2408.11029). `fit` finds the constants
on one or two cheap runs, `predict` gives the loss of every step of any other schedule, `score`
compares the two; `rank_schedules`, `optimal_decay_length` and `optimize_schedule` choose, and
`tabulated_schedule` turns the choice into an `optax.Schedule`. How to choose a law:
`Annealing(decay)` for nearly everything, fitted on a constant and a decaying run;
`MultiPower()` where three or more curves are at hand and the rate stays above 0; `ModelSize(decay)`
for three or more model sizes; `RateSumPower()` and `StepPower()` are the baselines that know no
annealing. How to choose a warm-up mode: `"peak"` when the warm-up is below 3 % of the run,
`"s2_peak"` when it is longer. Sharp edges: lambda belongs to one optimizer step, so never thin a
schedule without changing it, and `profile_decay` anew for another batch size; a law holds for the
peak rate it was fitted at; the annealing law lets the loss fall during steps of rate 0, so its free
optimum is degenerate; one single curve does not identify it; bootstrap bands cover noise only,
`leave_one_out` measures the error to expect; compare laws on schedules that no fit has seen.
"""

from jaxkit.losscurves.areas import (
    AnnealingAreas,
    annealing_areas,
    final_areas,
    warmed_up_rates,
    warmup_at_peak,
)
from jaxkit.losscurves.choosing import (
    DecayLength,
    RankedSchedule,
    ZeroTail,
    optimal_decay_length,
    optimal_zero_tail,
    rank_schedules,
    tabulated_schedule,
)
from jaxkit.losscurves.curves import LossCurve, loss_curve, rates_of, read_curve
from jaxkit.losscurves.figures import areas_figure, decay_fraction_figure, prediction_figure
from jaxkit.losscurves.fitting import LawFit, fit, predict
from jaxkit.losscurves.forms import (
    Annealing,
    Form,
    InstantAnnealing,
    ModelSize,
    RateSumPower,
    StepPower,
)
from jaxkit.losscurves.laws import (
    AnnealingLaw,
    PowerLaw,
    SizeLaw,
    annealing_loss,
    predict_loss,
)
from jaxkit.losscurves.multi_power import MultiPower, MultiPowerLaw, predict_multi_power_loss
from jaxkit.losscurves.optimizing import OptimizedSchedule, optimize_schedule
from jaxkit.losscurves.posing import Prior
from jaxkit.losscurves.scoring import ComparisonTable, PredictionScore, comparison_table, score
from jaxkit.losscurves.shapes import (
    DECAY_SHAPES,
    constant_rates,
    cosine_rates,
    cyclic_rates,
    hold_then_decay,
    piecewise_rates,
    rewarmed_rates,
    standard_schedules,
    with_warmup,
)
from jaxkit.losscurves.uncertainty import (
    DecayProfile,
    bootstrap_fit,
    leave_one_out,
    profile_decay,
)

__all__ = [
    "DECAY_SHAPES",
    "Annealing",
    "AnnealingAreas",
    "AnnealingLaw",
    "ComparisonTable",
    "DecayLength",
    "DecayProfile",
    "Form",
    "InstantAnnealing",
    "LawFit",
    "LossCurve",
    "ModelSize",
    "MultiPower",
    "MultiPowerLaw",
    "OptimizedSchedule",
    "PowerLaw",
    "PredictionScore",
    "Prior",
    "RankedSchedule",
    "RateSumPower",
    "SizeLaw",
    "StepPower",
    "ZeroTail",
    "annealing_areas",
    "annealing_loss",
    "areas_figure",
    "bootstrap_fit",
    "comparison_table",
    "constant_rates",
    "cosine_rates",
    "cyclic_rates",
    "decay_fraction_figure",
    "final_areas",
    "fit",
    "hold_then_decay",
    "leave_one_out",
    "loss_curve",
    "optimal_decay_length",
    "optimal_zero_tail",
    "optimize_schedule",
    "piecewise_rates",
    "predict",
    "predict_loss",
    "predict_multi_power_loss",
    "prediction_figure",
    "profile_decay",
    "rank_schedules",
    "rates_of",
    "read_curve",
    "rewarmed_rates",
    "score",
    "standard_schedules",
    "tabulated_schedule",
    "warmed_up_rates",
    "warmup_at_peak",
    "with_warmup",
]
