"""While tests run, checks calls in `jaxkit` against annotations, unless `JAXTYPING_DISABLE`."""

import functools
import inspect
import os

import jaxtyping
from jaxtyping import jaxtyped


def jaxtyped_when_called(*, typechecker):
    """As `jaxtyped`, but read the annotations of a function when it is first called.

    To read them all takes longer than to collect the tests, and most are not called by the few
    tests that one process runs.
    """

    def decorate(found):
        if not inspect.isfunction(found):
            return jaxtyped(found, typechecker=typechecker)

        @functools.cache
        def checked():
            return jaxtyped(found, typechecker=typechecker)

        @functools.wraps(found)
        def call(*args, **kwargs):
            return checked()(*args, **kwargs)

        return call

    return decorate


if not os.environ.get("JAXTYPING_DISABLE"):
    jaxtyping.jaxtyped = jaxtyped_when_called
    jaxtyping.install_import_hook(
        "jaxkit", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
    )
