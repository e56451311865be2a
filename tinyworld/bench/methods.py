"""The methods: families of graphs, a sweep each, all over the same subjects and asked for the same pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...experiments.sweep import Sweep, from_mapping
from ..split import load_split
from ..truth import TRIGGER
from .alchemy import WHOLE, of_noun, pipeline, ways
from .graphs import Graph, node, start
from .protocol import PLAIN, SCENES, draw_all

TRAIN, ADAPTIVE = "LikenessTrainLoRA", "LikenessTrainAdaptiveLoRA"
RATE = 1e-3  # of attention on tiny-unet, constant, so that steps are steps of one run
STEPS, OVERFIT = 200, 400
PLAIN_LORA, OVERFITTED = (f"LoRA, {n} steps" for n in (STEPS, OVERFIT))
"""What the others are compared with, and the method whose LoRA Image-Alchemy uses."""

ADAPTED = f"adaptive rank, {STEPS} steps"


@dataclass(frozen=True)
class Plan:
    """What a form of the bench runs.

    Attributes:
        steps: of the curve of fidelity against editability; `OVERFIT` is always among them, for Image-Alchemy.
        ranks: besides 16, at `STEPS` steps.
        priors: λ of DreamBooth's loss with class pictures that the model draws, at `prior_steps`.
        kinds: adapters besides LoRA, at `STEPS` steps.
        scene_modes: how Image-Alchemy puts the subject in, times two blurs.
    """

    steps: tuple[int, ...]
    ranks: tuple[int, ...]
    priors: tuple[float, ...]
    kinds: tuple[str, ...]
    scene_modes: tuple[str, ...]
    prior_steps: int = OVERFIT


LONG = Plan((50, 100, 200, 400, 800), (4, 64), (0.25, 0.5, 0.75, 1.0), ("dora", "lokr"), (WHOLE, "masked"))
SHORT = Plan((100, OVERFIT), (), (0.5,), (), ("masked",))


def folder(subject: str) -> str:
    """Of a subject's references, below input."""
    return f"bench_{subject}"


def saved(method: str, subject: str) -> str:
    """A LoRA's file below models/loras, without its ending."""
    return f"likeness/bench/{method} {subject}"


def base(info: Mapping[str, Any], plan: Plan, subjects: Sequence[str]) -> Sweep:
    """Nothing is taught: the model is asked for the class noun."""
    graph = start(info)
    draw_all(info, graph, ["model", 0], TRIGGER)
    split = load_split()
    values = []
    for subject in subjects:
        texts = {f"text {asked.name}.text": asked.prompt(split.class_of[subject]) for asked in (*PLAIN, *SCENES)}
        values.append({"label": subject, "set": texts})
    return _sweep(graph, [{"label": "base, class noun", "set": {}}], values)


def lora(info: Mapping[str, Any], plan: Plan, subjects: Sequence[str]) -> Sweep:
    """LikenessTrainLoRA: steps, ranks, kinds of adapter."""
    methods = [{"label": f"LoRA, {n} steps", "set": {"train.steps": n}} for n in plan.steps]
    methods += [
        {"label": f"LoRA, rank {r}, {STEPS} steps", "set": {"train.rank": r, "train.alpha": float(r)}}
        for r in plan.ranks
    ]
    methods += [{"label": f"{kind}, {STEPS} steps", "set": {"adapter.algorithm": kind}} for kind in plan.kinds]
    return _sweep(_taught(info, TRAIN, steps=STEPS), methods, _subjects(subjects))


def prior(info: Mapping[str, Any], plan: Plan, subjects: Sequence[str]) -> Sweep:
    """The same with DreamBooth's prior preservation: class pictures that the base model draws once for each noun."""
    graph = _taught(info, TRAIN, steps=plan.prior_steps)
    graph["keep"] = node(
        info,
        "LikenessPriorPreservation",
        mode="generated pictures",
        prompts="a picture of a {class}",
        steps=10,
        cfg=3.0,
    )
    graph["train"]["inputs"]["prior"] = ["keep", 0]
    methods = [
        {"label": f"LoRA, prior λ {weight:g}, {plan.prior_steps} steps", "set": {"keep.weight": weight}}
        for weight in plan.priors
    ]
    return _sweep(graph, methods, _subjects(subjects))


def adaptive(info: Mapping[str, Any], plan: Plan, subjects: Sequence[str]) -> Sweep:
    """LikenessTrainAdaptiveLoRA at its defaults but for the rate."""
    graph = _taught(info, ADAPTIVE, steps=STEPS)
    return _sweep(graph, [{"label": ADAPTED, "set": {}}], _subjects(subjects))


def alchemy(info: Mapping[str, Any], plan: Plan, subjects: Sequence[str]) -> Sweep:
    """Image-Alchemy: the base model draws the scene with the class noun, the object is found and blurred away, and the
    overfitted LoRA (of `lora`) paints the subject there."""
    graph = pipeline(info)
    split = load_split()
    values = []
    for subject in subjects:
        file = f"{saved(OVERFITTED, subject)}.safetensors"
        values.append({"label": subject, "set": {**of_noun(split.class_of[subject]), "load.lora_name": file}})
    return _sweep(graph, ways(plan.scene_modes), values, save=False)


FAMILIES: dict[str, Callable[[Mapping[str, Any], Plan, Sequence[str]], Sweep]] = {
    "base": base,
    "lora": lora,
    "prior": prior,
    "adaptive": adaptive,
    "alchemy": alchemy,
}


def _subjects(subjects: Sequence[str]) -> list[dict[str, Any]]:
    split = load_split()
    return [
        {"label": name, "set": {"data.folder": folder(name), "data.class_noun": split.class_of[name]}}
        for name in subjects
    ]


def _taught(info: Mapping[str, Any], kind: str, **shown: Any) -> Graph:
    """Train by a node with LikenessTrainLoRA's sockets, save, draw all that is asked."""
    graph = start(info)
    graph["data"] = node(
        info, "LikenessDataset", folder="", trigger=TRIGGER, class_noun="", resolution=64, repeats=1, flip=False
    )
    graph["options"] = node(info, "LikenessTrainingOptions", targets="attention", schedule="constant")
    graph["adapter"] = node(info, "LikenessAdapterOptions", options=["options", 0])
    wires = {"model": ["model", 0], "clip": ["model", 1], "vae": ["model", 2], "dataset": ["data", 0]}
    graph["train"] = node(info, kind, **wires, **shown, learning_rate=RATE, batch_size=1, options=["adapter", 0])
    trained = ["train", info[kind]["output_name"].index("lora")]
    graph["save"] = node(info, "LikenessSaveLoRA", lora=trained, filename="", naming="kohya", dtype="fp16")
    draw_all(info, graph, ["train", 0], TRIGGER)
    return graph


def _sweep(graph: Graph, methods: Sequence[Any], subjects: Sequence[Any], save: bool = True) -> Sweep:
    return from_mapping(
        {
            "name": "bench",
            "graph": graph,
            "set": {"save.filename": saved("{method}", "{subject}")} if save and "save" in graph else {},
            "axes": {"method": {"values": list(methods)}, "subject": {"values": list(subjects)}},
            "replicates": ["subject"],
        }
    )
