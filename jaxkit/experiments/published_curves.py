"""Loss curves of real language-model runs, read where they lie beside the project."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxkit import losscurves, schedules

CURVES = pathlib.Path(__file__).parents[3] / "shared" / "data" / "loss_curves"


def full_losses(folder: pathlib.Path = CURVES) -> dict[str, float]:
    """Read final losses on the whole validation set of the 124M runs at rate 0.001."""
    index = json.loads((folder / "llama_124m" / "index.json").read_text("utf-8"))
    return {
        name: about["final_full_validation_loss"]
        for name, about in index.items()
        if about["base_lr"] == 1e-3 and about["final_full_validation_loss"]
    }


def real_curves(
    folder: pathlib.Path = CURVES,
) -> dict[str, dict[str, losscurves.LossCurve]] | None:
    """Read published curves from a folder beside the project, by source and name, or None."""
    if not folder.is_dir():
        return None
    found: dict[str, dict[str, losscurves.LossCurve]] = {}
    for size in ("25m", "100m", "400m"):
        found[f"llama2 {size.upper()}"] = {
            path.stem: llama2_curve(path) for path in sorted((folder / f"llama2_{size}").iterdir())
        }
    index = json.loads((folder / "llama_124m" / "index.json").read_text("utf-8"))
    found["124M, rate 0.001"] = {
        name: losscurves.read_curve(
            folder / "llama_124m" / f"{name}.csv",
            learning_rates=rates_124m(about),
            first_step=1000,
        )
        for name, about in index.items()
        if about["base_lr"] == 1e-3
    }
    return found


def llama2_curve(path: pathlib.Path) -> losscurves.LossCurve:
    """Read a curve of the Multi-Power Law repository; its schedule follows from its name."""
    total = 16000 if path.stem.startswith("wsdcon") else 24000
    s, peak, final = np.arange(total + 1.0), 3e-4, 3e-5
    if path.stem.startswith("cosine"):
        rates = final + (peak - final) / 2 * (1 + np.cos(np.pi * (s - 2160) / (total - 2160)))
    elif path.stem.startswith("wsd_"):
        rates = peak * (final / peak) ** np.clip((s - 20000) / 4000, 0, 1)
    elif path.stem.startswith("wsdcon"):
        rates = np.where(s < 8000, peak, float(path.stem.split("_")[1]) * 1e-5)
    else:
        rates = np.full(total + 1, peak)
    rates[:2160] = np.linspace(0, peak, 2160)
    curve = losscurves.read_curve(path, learning_rates=rates)
    return cut(curve, curve.steps < total)  # the published evaluation drops the last step


def cut(curve: losscurves.LossCurve, keep: np.ndarray) -> losscurves.LossCurve:
    """Leave these of a curve's points."""
    kept = {name: getattr(curve, name)[keep] for name in ("steps", "losses", "weights")}
    return curve._replace(**kept)


def rates_124m(about: Mapping[str, Any]) -> np.ndarray:
    """Rebuild the rates of a 124M run from its entry in the index."""
    base, total = about["base_lr"], about["total_steps"]
    s = np.arange(total + 1.0)
    if about["kind"] == "cosine":
        final = about["final_lr"]
        rates = final + (base - final) / 2 * (1 + np.cos(np.pi * (s - 300) / (total - 300)))
        warm = (1 - np.cos(np.pi * np.minimum(s / 299, 1))) / 2
    elif about["kind"] == "wsd":
        shape = {"linear": "linear", "sqrt": "sqrt"}[about["decay_shape"]]
        cooldown = int(about["decay_fraction"] * total) / total
        rates = losscurves.rates_of(
            schedules.schedule_from_profile("wsd", base, total, cooldown=cooldown, shape=shape)
        )
        warm = s / 300
    else:
        rates, warm = np.full(total + 1, base), s / 300
    return np.where(s <= 300, base * (0.01 + 0.99 * warm), rates)
