"""Differentially private optimisation and private stationary points (arXiv 2206.00846).

A private step is three values: a `ClippedGradient` (`clipped_grad_sum` for any loss,
at about the cost of a plain gradient, `glm_clipped_grad_sum` for linear models), a `Sampling`
(`poisson_sampling`, `fixed_sampling`, `full_batches`), and noise as an optax piece (`dp_sgd`,
`dp_adam`, `dp_ftrl`, or `privatize_sum` before any optimizer). `calibrate_dp_sgd` turns a budget
into a noise multiplier, `dp_sgd_mechanism` with `epsilon_spent` tells what k steps cost, and
`privacy_statement` says it in words. How to choose an algorithm: DP-SGD or DP-Adam for networks;
`spiderboost` with full anchors for slow, ill-conditioned smooth problems with a large n epsilon /
sqrt(d), where it reaches smaller gradients at equal cost; `dp_ftrl` where batches cannot be random;
`tree_spider` for a single pass; `jl_embed` before SpiderBoost for linear models of low rank in high
dimension; `recursive_regularization` for study. Practical SpiderBoost: calibrate, q = T/10, full
anchors, batches of 1-5 % for variations, eta around 1/L1 to 4/L1. Sharp edges: divide by the
expected batch size, never by the number of examples drawn; with several devices add noise once, to
the sum over all, never on each; a loss that mixes rows (in-batch negatives) is trained
on rows alone; every run of a hyper-parameter search
spends budget; losses, norms and counts in `BoundedSum` are not private; Lipschitz constants and
radii must be declared, never measured on the data; floating-point noise is not the real Gaussian
and JAX's generator is not cryptographic, so neither resists an attacker who sees every bit; a key
must serve one run; a binding clip on differences biases the estimate until the next anchor; bounded
losses let the iterates run to infinity, where gradients vanish: watch the loss and ||w|| as well.
"""

from jaxkit.privacy.accounting import epsilon_spent, gaussian_delta
from jaxkit.privacy.anchored_estimates import (
    SpiderBoost,
    SpiderBoostRun,
    SpiderBoostState,
    StepRecord,
    run_spiderboost,
    spiderboost,
)
from jaxkit.privacy.auditing import Audit, audit_llr, spiderboost_scores
from jaxkit.privacy.batches import (
    Batch,
    Sampling,
    fixed_batch,
    fixed_sampling,
    full_batches,
    padded_batch_size,
    poisson_batch,
    poisson_sampling,
)
from jaxkit.privacy.calibration import (
    SpiderBoostNoise,
    calibrate,
    calibrate_dp_sgd,
    calibrate_one_pass,
    calibrate_spiderboost,
)
from jaxkit.privacy.clipped_gradients import BoundedSum, ClippedGradient, clipped_grad_sum
from jaxkit.privacy.clipping import clip_per_example
from jaxkit.privacy.glm import glm_clipped_grad_sum, logistic_loss, sigmoid_loss
from jaxkit.privacy.mechanisms import (
    Mechanism,
    dp_ftrl_mechanism,
    dp_sgd_mechanism,
    one_pass_mechanism,
    spiderboost_counts,
    spiderboost_mechanism,
)
from jaxkit.privacy.noise import (
    NoiseState,
    add_gaussian_noise,
    add_tree_noise,
    dp_aggregate,
    gaussian_draw,
    privatize_sum,
)
from jaxkit.privacy.one_pass_trees import TreeSpiderRun, tree_examples, tree_spider, tree_visits
from jaxkit.privacy.optimizers import dp_adam, dp_ftrl, dp_sgd
from jaxkit.privacy.projections import jl_dimension, jl_embed, jl_lift, projection
from jaxkit.privacy.recursive_rounds import (
    RecursiveRun,
    noisy_gd,
    recursive_noise,
    recursive_regularization,
    selector_weights,
)
from jaxkit.privacy.statement import privacy_statement
from jaxkit.privacy.theory import (
    spiderboost_paper_noise,
    spiderboost_theory,
    tree_spider_theory,
)

__all__ = [
    "Audit",
    "Batch",
    "BoundedSum",
    "ClippedGradient",
    "Mechanism",
    "NoiseState",
    "RecursiveRun",
    "Sampling",
    "SpiderBoost",
    "SpiderBoostNoise",
    "SpiderBoostRun",
    "SpiderBoostState",
    "StepRecord",
    "TreeSpiderRun",
    "add_gaussian_noise",
    "add_tree_noise",
    "audit_llr",
    "calibrate",
    "calibrate_dp_sgd",
    "calibrate_one_pass",
    "calibrate_spiderboost",
    "clip_per_example",
    "clipped_grad_sum",
    "dp_adam",
    "dp_aggregate",
    "dp_ftrl",
    "dp_ftrl_mechanism",
    "dp_sgd",
    "dp_sgd_mechanism",
    "epsilon_spent",
    "fixed_batch",
    "fixed_sampling",
    "full_batches",
    "gaussian_delta",
    "gaussian_draw",
    "glm_clipped_grad_sum",
    "jl_dimension",
    "jl_embed",
    "jl_lift",
    "logistic_loss",
    "noisy_gd",
    "one_pass_mechanism",
    "padded_batch_size",
    "poisson_batch",
    "poisson_sampling",
    "privacy_statement",
    "privatize_sum",
    "projection",
    "recursive_noise",
    "recursive_regularization",
    "run_spiderboost",
    "selector_weights",
    "sigmoid_loss",
    "spiderboost",
    "spiderboost_counts",
    "spiderboost_mechanism",
    "spiderboost_paper_noise",
    "spiderboost_scores",
    "spiderboost_theory",
    "tree_examples",
    "tree_spider",
    "tree_spider_theory",
    "tree_visits",
]
