"""jaxkit: ten published methods as a functional toolkit on jax, flax, optax, chex and orbax.

Each room is a package of its own, imported by name (``from jaxkit import schedules``); importing
`jaxkit` itself loads none of them.
"""

__version__ = "0.1.0"
