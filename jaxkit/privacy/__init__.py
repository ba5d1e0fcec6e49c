"""Differentially private optimisation and private stationary points (arXiv 2206.00846).

A `PrivacyPlan` holds what belongs together: a clipped gradient that knows its bound, a sampling
that draws the batches, the noise, and what they cost. Nothing is asked twice, so that the noise
cannot miss the bound nor the claim the batches.

Example:
    >>> import jax.numpy as jnp, optax
    >>> loss = lambda params, batch, key: jnp.mean((params - batch) ** 2)
    >>> gradient = clipped_grad_sum(loss, clip_norm=1.0)
    >>> plan = dp_sgd(gradient, full_batches(100), num_steps=3, epsilon=8.0, delta=1e-5)
    >>> source, data, params = NoiseSource.from_os(), jnp.linspace(0, 1, 100), jnp.zeros(())
    >>> optimizer = plan.optimizer(optax.sgd(0.1))
    >>> state = optimizer.init(params)
    >>> for step in range(plan.num_steps):
    ...     batch = plan.draw(source, step)
    ...     total = plan.gradient(params, data[batch.indices], None, batch.mask)
    ...     key = plan.noise_key(source, step)
    ...     updates, state = optimizer.update(total, state, params, key=key)
    ...     params = optax.apply_updates(params, updates)
    >>> print(plan.statement(source).splitlines()[0])
    (epsilon, delta)-differential privacy with epsilon = 8.0000, delta = 1e-05

How to choose:

- networks: `clipped_grad_sum`, which takes any loss, with `dp_sgd` and any optax optimizer;
- linear models: `glm_clipped_grad_sum`, in closed form;
- slow, ill-conditioned smooth problems with a large n epsilon / sqrt(d): `spiderboost` with full
  anchors, q = T/10, batches of 1-5 % for variations, eta around 1/L1 to 4/L1: smaller gradients at
  equal cost;
- an unknown clip norm: `dp_sgd` with a `count_noise_multiplier`, and `PrivacyPlan.next_clip_norm`;
- batches that cannot be random: `dp_ftrl`;
- a single pass over the data: `tree_spider`, planned by `one_pass`;
- linear models of low rank in high dimension: `jl_embed` before SpiderBoost;
- for study: `recursive_regularization`.

Sharp edges:

- `noise_multiplier` is always the noise on a sum over the bound on one example's part of it;
- divide by the expected batch size, never by the number of examples drawn;
- a loss that mixes rows (in-batch negatives) is trained on rows alone: `check_private` tells;
- the trained parameters are the argument `params`; all else is closed over and not clipped;
- averaging updates over calls (`optax.MultiSteps`) goes around the noise, and is refused;
- several rows of one person need `unit="user"`;
- every run of a hyper-parameter search spends budget;
- losses, counts and `aux` of a `BoundedSum` are not private;
- Lipschitz constants and radii must be declared, never measured on the data;
- who knows the key of a simulation (`privatize_sum(key=...)`) or a public seed can subtract the
  noise: a real run takes its keys from `NoiseSource.from_os`;
- a `NoiseSource` gives each key once, and one that is `stored` serves one data set, by one process
  at a time; a run that goes on draws the noise of its steps again;
- only `BoundedSum.scale` keeps a bound: `jax.tree.map` over a sum voids it;
- a sum over B examples is rounded like one addition of float32: a last bit of a large sum may move
  by B 2^-24 of the bound;
- floating-point noise is not the real Gaussian: its last bits can be attacked;
- a binding clip on differences biases the estimate until the next anchor;
- bounded losses let the iterates run to infinity, where gradients vanish: watch the loss and the
  norm as well.
"""

from jaxkit.privacy.accounting import epsilon_spent
from jaxkit.privacy.auditing import audit_llr, audit_noise, spiderboost_scores
from jaxkit.privacy.batches import Sampling, fixed_sampling, full_batches, poisson_sampling
from jaxkit.privacy.bounded_sums import BoundedSum, ClippedGradient
from jaxkit.privacy.checks import check_private
from jaxkit.privacy.clipped_gradients import clipped_grad_sum
from jaxkit.privacy.clipping import clip_per_example
from jaxkit.privacy.glm import glm_clipped_grad_sum, logistic_loss
from jaxkit.privacy.mechanisms import dp_sgd_mechanism
from jaxkit.privacy.noise import privatize_sum
from jaxkit.privacy.one_pass import one_pass
from jaxkit.privacy.plans import PrivacyPlan, dp_ftrl, dp_sgd
from jaxkit.privacy.projections import jl_embed, jl_lift, projection
from jaxkit.privacy.randomness import NoiseSource
from jaxkit.privacy.recursive_regularization import recursive_regularization
from jaxkit.privacy.spiderboost import run_spiderboost, spiderboost
from jaxkit.privacy.theory import spiderboost_theory
from jaxkit.privacy.tree_spider import tree_examples, tree_spider

__all__ = [
    "BoundedSum",
    "ClippedGradient",
    "NoiseSource",
    "PrivacyPlan",
    "Sampling",
    "audit_llr",
    "audit_noise",
    "check_private",
    "clip_per_example",
    "clipped_grad_sum",
    "dp_ftrl",
    "dp_sgd",
    "dp_sgd_mechanism",
    "epsilon_spent",
    "fixed_sampling",
    "full_batches",
    "glm_clipped_grad_sum",
    "jl_embed",
    "jl_lift",
    "logistic_loss",
    "one_pass",
    "poisson_sampling",
    "privatize_sum",
    "projection",
    "recursive_regularization",
    "run_spiderboost",
    "spiderboost",
    "spiderboost_scores",
    "spiderboost_theory",
    "tree_examples",
    "tree_spider",
]
