r"""Predict a whole loss curve under any learning-rate schedule, and choose the schedule.

The loss of a training run follows
$L(s) = L_0 + A S_1(s)^{-\alpha} - C S_2(s)$, with $S_1$ the area under the learning rate up to step
s and $S_2$ the delayed area by which it has come down (arXiv 2408.11029). `fit` finds the constants
on one or two cheap runs, `predict` gives the loss of every step of any other schedule, `score`
compares the two; `rank_schedules`, `optimal_decay_length` and `optimal_schedule` choose, and
`chosen_schedule` is an `optax.Schedule` to train with. A published law (`law`) serves wherever a
fitted one does. How to choose a law:
`Annealing(decay)` for nearly everything, fitted on a constant and a decaying run;
`MultiPower()` where three or more curves are at hand and the rate stays above 0; `ModelSize(decay)`
for three or more model sizes; `RateSumPower()` and `StepPower()` are the baselines that know no
annealing. How to choose a warm-up mode: `"peak"` when the warm-up is below 3 % of the run,
`"s2_peak"` when it is longer. Sharp edges: lambda belongs to one optimizer step, so never thin a
schedule without changing it, and `profile_decay` anew for another batch size; a law holds for the
peak rate it was fitted at; the annealing law lets the loss fall during steps of rate 0, so its free
optimum is degenerate; one single curve does not identify it; `prediction_interval` needs three
curves or more to know the error of an unseen schedule; compare laws on schedules that no fit has
seen; `read_curve` must be told the warm-up.
"""

from jaxkit.losscurves.areas import annealing_areas
from jaxkit.losscurves.choosing import (
    chosen_schedule,
    optimal_decay_length,
    optimal_zero_tail,
    rank_schedules,
)
from jaxkit.losscurves.curves import LossCurve, loss_curve, rates_of, read_curve
from jaxkit.losscurves.figures import areas_figure, decay_fraction_figure, prediction_figure
from jaxkit.losscurves.fitting import Law, fit, law, predict
from jaxkit.losscurves.forms import Annealing, Form, ModelSize, RateSumPower, StepPower
from jaxkit.losscurves.law_files import read_law, write_law
from jaxkit.losscurves.multi_power import MultiPower
from jaxkit.losscurves.optimizing import optimal_schedule
from jaxkit.losscurves.scoring import ComparisonTable, comparison_table, score
from jaxkit.losscurves.uncertainty import (
    bootstrap_fit,
    leave_one_out,
    prediction_interval,
    profile_decay,
)

__all__ = [
    "Annealing",
    "ComparisonTable",
    "Form",
    "Law",
    "LossCurve",
    "ModelSize",
    "MultiPower",
    "RateSumPower",
    "StepPower",
    "annealing_areas",
    "areas_figure",
    "bootstrap_fit",
    "chosen_schedule",
    "comparison_table",
    "decay_fraction_figure",
    "fit",
    "law",
    "leave_one_out",
    "loss_curve",
    "optimal_decay_length",
    "optimal_schedule",
    "optimal_zero_tail",
    "predict",
    "prediction_figure",
    "prediction_interval",
    "profile_decay",
    "rank_schedules",
    "rates_of",
    "read_curve",
    "read_law",
    "score",
    "write_law",
]
