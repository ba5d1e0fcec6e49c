"""What a private run may claim, in words that can be printed beside its results."""

from __future__ import annotations

from typing import Any

from jaxkit.privacy import accounting
from jaxkit.privacy.mechanisms import Mechanism

_RELATIONS = {
    "add_or_remove": "differ by adding or removing one {unit}",
    "zero_out": "differ by replacing one {unit} with one that contributes nothing",
    "replace": "differ by replacing one {unit} with any other",
}


def privacy_statement(
    mechanism: Mechanism,
    delta: float,
    *,
    unit: str = "example",
    accountant: accounting.Accountant | None = None,
    released: str = "all iterates and private gradients, hence the parameters",
) -> str:
    """Write the guarantee of a run: its numbers, its unit, what it covers and what not.

    Args:
        mechanism: what the run released.
        delta: in (0, 1).
        unit: what one row of the data set is: an example, a window of text, a document.
        accountant: as in `epsilon_spent`.
        released: what the guarantee covers.

    Returns:
        Several lines of text.

    Raises:
        ImportError: without the `privacy` extra.
        ValueError: as `epsilon_spent`.

    Example:
        >>> from jaxkit.privacy import batches, mechanisms
        >>> mechanism = mechanisms.dp_sgd_mechanism(batches.full_batches(1000), 10.0, 100)
        >>> print(privacy_statement(mechanism, 1e-5).splitlines()[0])
        (epsilon, delta)-differential privacy with epsilon = 4.3772, delta = 1e-05
    """
    epsilon = accounting.epsilon_spent(mechanism, delta, accountant=accountant)
    which: Any = accounting.accountant_used(mechanism, accountant)
    exact = "exact Gaussian" if which == "pld" and mechanism.gaussian is not None else which.upper()
    lines = [
        f"(epsilon, delta)-differential privacy with epsilon = {epsilon:.4f}, delta = {delta:g}",
        f"Unit and relation: data sets that {_RELATIONS[mechanism.neighbours].format(unit=unit)}.",
        f"Mechanism: {mechanism.description}.",
        f"Accounting: {exact}, by dp-accounting.",
    ]
    if mechanism.lost:
        lines.append(
            f"Batches that overflow are truncated at random (probability at most "
            f"{mechanism.lost:.1e} in the run, within 1 % of delta)."
        )
    lines += [
        f"Covered: {released} of this one run.",
        "Not covered: losses, norms and counts that were looked at or logged without noise; other "
        "runs on the same data, such as a search for hyper-parameters; constants measured on the "
        f"data; several rows that belong to one person where the unit is one {unit}; the rounding "
        "of floating-point noise; the pseudo-random generator, which is not cryptographic.",
    ]
    return "\n".join(lines)
