"""Methods of modules on meshes with explicit axes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import flax.linen as nn
import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxkit import training

F = TypeVar("F", bound=Callable[..., Any])


def on_automatic_axes(method: F) -> F:
    """Let a method of a module run where the mesh has explicit axes, see `automatic_axes`."""

    @functools.wraps(method)
    def run(self: nn.Module, *arguments: Any, **options: Any) -> Any:
        mesh = (
            None
            if self.scope is None
            else training.explicit_mesh(self.variables, arguments, options)
        )
        if mesh is None:
            return method(self, *arguments, **options)
        if self.is_initializing():
            # Whole on every device, so that nothing is ambiguous; parameters are placed later.
            whole = NamedSharding(mesh, P())
            arguments, options = jax.tree.map(
                lambda x: jax.sharding.reshard(x, whole), (arguments, options)
            )
            return method(self, *arguments, **options)
        module, variables = self.unbind()

        def apply(variables: Any, arguments: Any, options: Any) -> Any:
            return module.apply(variables, *arguments, **options, method=method)

        return training.automatic_axes(apply)(variables, arguments, options)

    return run  # type: ignore[return-value]
