"""The suites find what they must cover by what functions say they return: so all must say it."""

import inspect
import typing

#: Why some say nothing, or `Any`.
UNSPECIFIC = {
    "subrl.ant_world": "an environment, as its name says",
    "subrl.named_world": "an environment, as its name says",
    "training.distributed_run": "a context manager",
    "training.parameter_shardings": "shardings, in the structure of the parameters",
    "training.terminal": "a console of Rich, which is imported where it is used",
}


def test_every_public_function_says_what_it_returns(public):
    def says_nothing(value):
        nothing = (inspect.Signature.empty, typing.Any, "Any")
        return inspect.isfunction(value) and (inspect.signature(value).return_annotation in nothing)

    assert public(says_nothing) == set(UNSPECIFIC)
