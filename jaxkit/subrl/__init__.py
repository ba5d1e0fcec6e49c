"""Submodular reinforcement learning: policies for rewards with diminishing returns.

How to choose: make a world (`two_rooms_world`, `coverage_world` with `gp_weights` or a map of your
own, `item_world`, `design_world`, `car_world`, `point_mass_world`, `ant_world`, `gymnax_world`; or
`named_world`; or your own dynamics and any set function of `jaxkit.submodular` by
`make_environment`), a policy (`CategoricalPolicy`, `GaussianPolicy`, `TabularPolicy`, or any Flax
module with their methods) and `make_training(world, policy, optax.adam(...))`. Its `run` is a whole
training in one program, to `jit` and to `vmap` over seeds or over params of the world; `fit` runs
it in chunks with progress, metrics and checkpoints. `features="position"` makes a Markovian policy
(SubPO-M): start there; `"visited"` adds memory (SubPO-NM), needed where what to do depends on what
has been done (two rooms). `Estimator(objective="modular")` is the additive baseline ModPO. The
default credit, `"to_go"` with the mean of the batch as baseline, follows the gradient of the
objective; `"one_step"` and `"prefix"` (what the published grid-world program computes) do not.
`replay` gives the episodes of your own actions. Compare with `greedy_plan`, `beam_plan`,
`modular_plan` and, on tiny worlds, `exhaustive_plan`. The parts stand in modules of their own:
`credit` (signals, baselines, losses), `trees` (exact values, which `jax.grad` differentiates),
`planning` (also curvature), `bandits`, `cells`, `grids`, `fields` and `information`.

Sharp edges: the horizon H counts *states*, so an episode has H - 1 actions, and s_0 is in the set;
covered squares lie to the lower right of a state; raw state numbers as features (`"official_..."`)
saturate a network and are there to compare; in `design_world` a second visit is a second
measurement and earns something; the mean of the batch contains the sample itself, a bias of 1/B
(`"leave_one_out"` has none); nothing can tell in general that a set function is submodular: ask
`submodular.check_submodular`. The room's set functions follow `submodular.SetFunction`.
"""

from jaxkit.subrl import bandits as bandits
from jaxkit.subrl.car import car_world
from jaxkit.subrl.environments import Dynamics, SubmodularEnvironment, make_environment
from jaxkit.subrl.fields import gp_weights, random_groups, random_posterior
from jaxkit.subrl.figures import draw_curves, paths_figure
from jaxkit.subrl.fitting import fit
from jaxkit.subrl.gymnax_worlds import gymnax_world
from jaxkit.subrl.information import measurements
from jaxkit.subrl.occupancy import ant_world, occupancy_world, point_mass_world
from jaxkit.subrl.planning import beam_plan, greedy_plan, modular_plan
from jaxkit.subrl.policies import CategoricalPolicy, Critic, GaussianPolicy, TabularPolicy
from jaxkit.subrl.rollouts import replay, rollout
from jaxkit.subrl.subpo import Estimator, Training, make_training
from jaxkit.subrl.tables import table_dynamics
from jaxkit.subrl.trees import exhaustive_plan
from jaxkit.subrl.worlds import (
    WORLDS,
    coverage_world,
    design_world,
    grid_world,
    item_world,
    named_world,
    two_rooms_world,
)

__all__ = [
    "WORLDS",
    "CategoricalPolicy",
    "Critic",
    "Dynamics",
    "Estimator",
    "GaussianPolicy",
    "SubmodularEnvironment",
    "TabularPolicy",
    "Training",
    "ant_world",
    "beam_plan",
    "car_world",
    "coverage_world",
    "design_world",
    "draw_curves",
    "exhaustive_plan",
    "fit",
    "gp_weights",
    "greedy_plan",
    "grid_world",
    "gymnax_world",
    "item_world",
    "make_environment",
    "make_training",
    "measurements",
    "modular_plan",
    "named_world",
    "occupancy_world",
    "paths_figure",
    "point_mass_world",
    "random_groups",
    "random_posterior",
    "replay",
    "rollout",
    "table_dynamics",
    "two_rooms_world",
]
