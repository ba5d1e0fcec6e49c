"""What the commands of the command line do, as functions: train, evaluate, sample, decipher.

`train(TrainConfig(...))` makes or resumes the run in `runs/NAME`; `open_run` gives its model,
parameters and tokenizer back.
"""

from jaxkit.jobs.config import TrainConfig
from jaxkit.jobs.deciphering import decipher_run
from jaxkit.jobs.evaluation import evaluate_run
from jaxkit.jobs.runs import Run, open_run
from jaxkit.jobs.sampling import sample_run
from jaxkit.jobs.train import train

__all__ = [
    "Run",
    "TrainConfig",
    "decipher_run",
    "evaluate_run",
    "open_run",
    "sample_run",
    "train",
]
