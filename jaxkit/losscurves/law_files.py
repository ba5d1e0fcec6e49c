"""Laws kept in files, so that the command that fits and the one that trains share them."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import Any

import numpy as np

from jaxkit import files, validation
from jaxkit.losscurves import areas, fitting, forms, multi_power

_FORMS: dict[str, Any] = {
    "annealing": forms.Annealing,
    "model_size": forms.ModelSize,
    "rate_sum_power": forms.RateSumPower,
    "step_power": forms.StepPower,
    "multi_power": multi_power.MultiPower,
}


@dataclasses.dataclass(frozen=True)
class LawRecord:
    """What a file says of a law; the fields are those of `Law`."""

    form: str
    constants: dict[str, float]
    warmup: str
    warmup_steps: list[float]
    options: dict[str, float] = dataclasses.field(default_factory=dict)
    peak: float | None = None
    extent: dict[str, float] | None = None
    sizes: list[float] | None = None
    samples: dict[str, list[float]] | None = None
    misfit: float | None = None


def write_law(path: str | os.PathLike[str], law: fitting.Law) -> pathlib.Path:
    """Write a law as JSON: its constants, and how far to trust them.

    Example:
        >>> import tempfile
        >>> law = fitting.law(forms.StepPower(), floor=2.0, scale=1.0, exponent=0.5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     read_law(write_law(f"{folder}/law.json", law)).constants.floor
        2.0
    """
    validation.instance("law", law, fitting.Law, "a Law, as fit and law make it")
    names = {maker: name for name, maker in _FORMS.items()}
    form: Any = law.form
    seen, samples = law.seen, law.samples
    record = LawRecord(
        names[type(form)],
        {name: float(value) for name, value in law.constants._asdict().items()},
        law.warmup,
        [float(steps) for steps in law.warmup_steps],
        dataclasses.asdict(form),
        None if law.peak is None else float(law.peak),
        None if seen is None else {"forward": seen.forward, "lowest": seen.lowest},
        None if seen is None or seen.sizes is None else list(seen.sizes),
        None if samples is None else {n: v.tolist() for n, v in samples._asdict().items()},
        law.misfit,
    )
    text = json.dumps(dataclasses.asdict(record), indent=1)
    return files.write_atomically(path, text + "\n")


def read_law(path: str | os.PathLike[str]) -> fitting.Law:
    """Read a law that `write_law` or `jaxkit fit-curve` wrote.

    Args:
        path: the file, or the folder with `law.json` in it.

    Returns:
        The law; what is known only while fitting (residuals, objective) is not kept.

    Raises:
        ValueError: if the file does not hold a law, naming file, line and field.
        OSError: if it cannot be read.

    Example:
        >>> import tempfile
        >>> law = fitting.law(forms.Annealing(0.99), floor=2, scale=1, annealing=3, exponent=0.5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     read_law(write_law(f"{folder}/law.json", law)).form
        Annealing(decay=0.99)
    """
    path = pathlib.Path(path)
    if path.is_dir():
        path = path / "law.json"
    record = files.read_record(path, LawRecord)
    try:
        maker = _FORMS[validation.choice("form", record.form, _FORMS)]
        form = maker(**{n: int(v) if n == "group" else v for n, v in record.options.items()})
        law = fitting.law(
            form,
            peak_value=record.peak,
            warmup=validation.choice("warmup", record.warmup, areas.WARMUPS),  # type: ignore
            **record.constants,
        )
        extent = None
        if record.extent is not None:
            sizes = None if record.sizes is None else (record.sizes[0], record.sizes[1])
            extent = fitting.Extent(record.extent["forward"], record.extent["lowest"], sizes)
        samples = None
        if record.samples is not None:
            samples = type(law.constants)(**{n: np.array(v) for n, v in record.samples.items()})
        for steps in record.warmup_steps:
            validation.number("warmup_steps", steps, minimum=0)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    return dataclasses.replace(
        law, warmup_steps=tuple(record.warmup_steps) or (0,), seen=extent, samples=samples,
        misfit=record.misfit,
    )  # fmt: skip
