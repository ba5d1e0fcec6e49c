"""AdamW whose learning rate and weight decay transfer across width (arXiv 2510.15262).

Tune `(learning_rate, weight_decay)` on a narrow model, call `width_scaling` on the shapes of both
models and train the wide one with `adamw_width_scaled` and the same two numbers: matrices get the
learning rate 1/m and the decay sqrt(m), embeddings, readout, gains and biases the base learning
rate and no decay; `width_report` prints what each parameter trains with, and why. The wide model
also needs muP's forward pass and start: logits times `readout_multiplier`, attention scores times
`attention_scale`, and `match_initial_scale`. How to choose a rule: `robust` for runs much longer
than `steady_state_time`, where decay sets the scale of the weights; `mup_fixed` for short runs or
hardly any decay; `mup_independent` if `fit_singular_value_exponent` finds an exponent near 1;
otherwise a `WidthRule` with `weight_decay_exponent` of the exponent it finds. 0.75 is a property of
language-like features, not a law, so look: `top_singular_values` of both trained models and
`gain_invariance` say whether the rule held, `coordinate_check` both that and whether the
parametrisation does. Any tree of arrays will do: `nnx.state(model, nnx.Param)`, Haiku's nested
dictionaries, `equinox.filter(model, equinox.is_array)`, whose `weight` is (out, in).
Sharp edges: a model at its base width shows no width axis, so pass `delta` there; without `delta`
an axis that differs for another reason (vocabulary, depth) is taken for a width axis; weight decay
is coupled to the learning rate, an independent decay lambda' is passed as lambda' / peak learning
rate; an initialiser that already divides by sqrt(fan-in) needs no `init_std` on matrices; a kernel
in another layout than Flax's needs `fan_in_axes`, above all one where several axes of a single side
grow.
"""

from jaxkit.width.adamw import (
    adamw_width_scaled,
    add_width_scaled_decayed_weights,
    scale_by_width,
)
from jaxkit.width.coordinates import Probe, coordinate_check, coordinate_figure
from jaxkit.width.gains import corrected_weight_decay, gain_invariance, sublayer_gain
from jaxkit.width.initial import (
    attention_scale,
    match_initial_scale,
    readout_multiplier,
)
from jaxkit.width.rules import (
    RULES,
    WidthRule,
    WidthScaling,
    weight_decay_exponent,
    width_report,
    width_scaling,
)
from jaxkit.width.spectra import top_singular_values
from jaxkit.width.steady_state import (
    fit_singular_value_exponent,
    predicted_singular_value_ratio,
    steady_state_time,
)

__all__ = [
    "RULES",
    "Probe",
    "WidthRule",
    "WidthScaling",
    "adamw_width_scaled",
    "add_width_scaled_decayed_weights",
    "attention_scale",
    "coordinate_check",
    "coordinate_figure",
    "corrected_weight_decay",
    "fit_singular_value_exponent",
    "gain_invariance",
    "match_initial_scale",
    "predicted_singular_value_ratio",
    "readout_multiplier",
    "scale_by_width",
    "steady_state_time",
    "sublayer_gain",
    "top_singular_values",
    "weight_decay_exponent",
    "width_report",
    "width_scaling",
]
