"""What a private run may claim, in words that can be printed beside its results."""

from __future__ import annotations

from jaxkit.privacy import accounting
from jaxkit.privacy.mechanisms import Mechanism
from jaxkit.privacy.randomness import NoiseSource

_RELATIONS = {
    "add_or_remove": "differ by adding or removing one {unit}",
    "zero_out": "differ by replacing one {unit} with one that contributes nothing",
    "replace": "differ by replacing one {unit} with any other",
}


def of_run(mechanism: Mechanism, delta: float, unit: str, source: NoiseSource | None = None) -> str:
    """The guarantee of a run: its numbers, its unit, what it covers and what not.

    Noise from a public source gives no guarantee, and the text says so.
    """
    epsilon, words = accounting.analysis(mechanism, delta)
    accounting.check_lost(mechanism, epsilon, delta)
    claim = f"(epsilon, delta)-differential privacy with epsilon = {epsilon:.4f}, delta = {delta:g}"
    if source is not None and not source.is_secret:
        claim = (
            "NOT PRIVATE: epsilon = none, since the noise can be recomputed from a public seed. "
            f"With secret noise it would be: {claim}"
        )
    lines = [
        claim,
        f"Unit and relation: data sets that {_RELATIONS[mechanism.neighbours].format(unit=unit)}.",
        f"Mechanism: {mechanism.description}.",
        f"Accounting: {words}, by dp-accounting.",
    ]
    if mechanism.lost:
        lines.append(
            f"Batches that overflow are truncated at random (probability at most "
            f"{mechanism.lost:.1e} in the run, within 1 % of delta)."
        )
    lines += [
        "Covered: all iterates and private gradients, hence the parameters of this one run.",
        "Not covered: losses, norms and counts that were looked at or logged without noise; other "
        "runs on the same data, such as a search for hyper-parameters; constants measured on the "
        f"data; several rows that belong to one person where the unit is one {unit}; the rounding "
        "of floating-point noise (an attack on its last bits); the pseudo-random generator, whose "
        "keys of 64 bits are secret but which is not cryptographic.",
    ]
    return "\n".join(lines)
