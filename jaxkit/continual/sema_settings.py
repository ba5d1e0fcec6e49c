"""How SEMA trains and when it grows."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from jaxkit import validation

#: When adapters are added: where descriptors notice a shift, never after the first task, in every
#: expandable block at every task; or never, while the first adapters go on training.
POLICIES = ("on_shift", "never", "every_task", "finetune")


@dataclasses.dataclass(frozen=True)
class SEMASettings:
    """How SEMA trains and when it grows; the defaults are the official program's.

    Attributes:
        policy: `"on_shift"` is SEMA; `"never"`, `"every_task"` and `"finetune"` are its baselines.
        threshold: score above which a block grows; infinity never does. Familiar data score about
            0.8 with the default score, so thresholds below 1 grow on everything.
        train_epochs: passes of a classification phase.
        train_learning_rate: at its start; a cosine to 0, constant within a pass.
        describe_epochs: passes of a description phase.
        describe_learning_rate: at its start. Raw residual streams are large: too high a rate makes
            the errors infinite, which raises.
        momentum: of both optimizers.
        weight_decay: of both, coupled.
        batch_size: images of a training step; the last one of a pass may be smaller.
        scan_batch_size: images that are scored together.
        steps_per_call: steps in one call of a compiled program.

    Raises:
        ValueError: if a number is out of range or the policy unknown.

    Example:
        >>> SEMASettings(threshold=2.0).policy
        'on_shift'
    """

    policy: str = "on_shift"
    threshold: float = 1.0
    train_epochs: int = 20
    train_learning_rate: float = 0.005
    describe_epochs: int = 20
    describe_learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 32
    scan_batch_size: int = 128
    steps_per_call: int = 32

    def __post_init__(self):
        validation.choice("policy", self.policy, POLICIES)
        if not self.threshold >= 0:
            raise ValueError(f"threshold must be >= 0 (infinity is allowed), got {self.threshold}")
        for name in ("train_epochs", "describe_epochs", "batch_size", "scan_batch_size",
                     "steps_per_call"):  # fmt: skip
            validation.integer(name, getattr(self, name), minimum=1)
        for name in ("train_learning_rate", "describe_learning_rate", "weight_decay"):
            validation.number(name, getattr(self, name), minimum=0)
        validation.number("momentum", self.momentum, minimum=0, maximum=1, open_maximum=True)


def cosine_rates(
    learning_rate: float, num_epochs: int, minimum: float = 0.0
) -> Float[np.ndarray, " num_epochs"]:
    r"""Rate of each pass: $\eta_e = \eta_{min} + (\eta_0 - \eta_{min})(1 + \cos(\pi e/E))/2$.

    Args:
        learning_rate: $\eta_0$.
        num_epochs: $E$.
        minimum: $\eta_{min}$, which no pass reaches.

    Returns:
        One rate a pass.

    Example:
        >>> cosine_rates(1.0, 2).tolist()
        [1.0, 0.5]
    """
    angle = np.pi * np.arange(num_epochs) / num_epochs
    return minimum + (learning_rate - minimum) * (1 + np.cos(angle)) / 2
