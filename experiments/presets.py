"""Designs that people ask for. A sweep that says "preset": "ranks" starts from one; what it says itself comes first."""

from __future__ import annotations

from typing import Any

_TRAIN = "LikenessTrainLoRA"
_RANK = [f"{_TRAIN}.rank", f"{_TRAIN}.alpha"]  # together, so that the scale alpha / rank stays 1

_RATE_RANK_STEPS_SCHEDULE = (  # Table 1 of the study, by experiment's number
    (1e-3, 8, 500, "cosine"),
    (1e-4, 32, 1500, "cosine"),
    (5e-4, 16, 1000, "cosine"),
    (1e-3, 8, 1000, "cosine"),
    (1e-4, 32, 1000, "cosine"),
    (5e-4, 16, 500, "cosine"),
    (5e-4, 16, 1500, "cosine"),
    (1e-3, 32, 1000, "cosine"),
    (1e-4, 8, 1000, "cosine"),
    (1e-3, 32, 500, "cosine"),
    (5e-4, 16, 1000, "constant"),
)
_STUDY_AXES: dict[str, Any] = {
    "learning_rate": {"inputs": f"{_TRAIN}.learning_rate", "values": [1e-3, 5e-4, 1e-4]},
    "rank": {"inputs": _RANK, "values": [8, 16, 32]},
    "steps": {"inputs": f"{_TRAIN}.steps", "values": [500, 1000, 1500]},
    "schedule": {"inputs": "LikenessTrainingOptions.schedule", "values": ["cosine", "constant"]},
}

PRESETS: dict[str, dict[str, Any]] = {
    "flux-study": {
        "about": "the 11 experiments of a FLUX.1-dev personalisation study (learning rate, rank, steps, schedule), "
        "picked in place of the whole grid: extremes, one thing at a time, and fast against expressive",
        "design": "rows",
        "axes": _STUDY_AXES,
        "rows": [
            dict(zip(("learning_rate", "rank", "steps", "schedule"), row, strict=True))
            for row in _RATE_RANK_STEPS_SCHEDULE
        ],
    },
    "flux-study-pairs": {
        "about": "the same values, every pair of them met at least once",
        "design": "pairs",
        "axes": _STUDY_AXES,
    },
    "ranks": {
        "about": "ranks 4 to 64, alpha with them",
        "axes": {"rank": {"inputs": _RANK, "values": [4, 8, 16, 32, 64]}},
    },
    "steps": {
        "about": "100, 200 and 400 steps",
        "axes": {"steps": {"inputs": f"{_TRAIN}.steps", "values": [100, 200, 400]}},
    },
    "learning-rates": {
        "about": "five learning rates from 5e-5 to 1e-3",
        "axes": {
            "learning_rate": {"inputs": f"{_TRAIN}.learning_rate", "values": [5e-5, 1e-4, 2e-4, 5e-4, 1e-3]},
        },
    },
    "prior-weights": {
        "about": "λ of the prior: how much is kept against how much is learned",
        "axes": {"prior_weight": {"inputs": "LikenessPriorPreservation.weight", "values": [0.25, 0.5, 0.75, 1.0]}},
    },
    "seeds": {
        "about": "the same training three times, for error bars",
        "axes": {"seed": {"inputs": f"{_TRAIN}.seed", "values": [1, 2, 3]}},
        "replicates": ["seed"],
    },
    "lora-library": {
        "about": "one LoRA for each folder of pictures in subjects/; the name of the folder is trigger word and file, "
        "as Train LoRA.rar and Route LoRAs want them",
        "axes": {"subject": {"inputs": "LikenessDataset.trigger", "folders": "subjects"}},
        "uploads": {"library": "subjects"},
        "set": {"LikenessDataset.folder": "library/{subject}", "LikenessSaveLoRA.filename": "library/{subject}"},
        "results": {"megabytes": {"file": "LikenessSaveLoRA"}},
    },
}


def with_presets(described: dict[str, Any]) -> dict[str, Any]:
    """A sweep's description with its "preset" (a name or several) filled in below what it says itself.

    Raises:
        ValueError: no preset is called so.
    """
    named = described.get("preset") or []
    merged: dict[str, Any] = {"axes": {}, "replicates": []}
    for name in [named] if isinstance(named, str) else named:
        if name not in PRESETS:
            raise ValueError(f"no preset is called {name!r}; there are {', '.join(PRESETS)}")
        preset = {key: value for key, value in PRESETS[name].items() if key != "about"}
        axes = {**merged["axes"], **preset.pop("axes")}
        replicates = [*merged["replicates"], *preset.pop("replicates", [])]
        merged = {**merged, **preset, "axes": axes, "replicates": replicates}
    own = {key: value for key, value in described.items() if key != "preset"}
    axes = {**merged["axes"], **(own.pop("axes", None) or {})}
    return {**merged, **own, "axes": axes}
