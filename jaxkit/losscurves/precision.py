"""Where fits are made: in float64, on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def float64_on_cpu() -> Iterator[None]:
    """Compute in float64 on the CPU, whatever device is the default.

    TPUs compute pairs of float32, have no float64 factorisation of a matrix and need minutes to
    compile a sort; a fit takes milliseconds on any CPU.
    """
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        yield
