"""A subject's LoRA and a style's in one: graphs, one sweep a family, and how their pictures are scored."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ...experiments.scoring import Finished
from ...experiments.sweep import Sweep, from_mapping
from ...metrics.similarity import compare, cosine_similarities
from ..split import STYLES, load_split
from ..truth import TRIGGER, reference_styles
from .graphs import Graph, draw, features, node, start, true_tensor

SUBJECTS = ("dolphin", "framed-picture", "battery", "peach", "radio", "canoe", "bathtub", "bat")
STYLE_TRIGGER = "style"
"""A word that pretraining never read. Most made-up ones, "zwx" say, cost the small model half of the subject."""
PROMPT = f"a {STYLE_TRIGGER} picture of a {TRIGGER}"
SCORING = "truth, subject, style 1"  # another text when `score` changes
TRAIN, ZIP, RAR = "LikenessTrainLoRA", "LikenessZipLoRA", "LikenessLoRARar"
PAIRS, LIBRARY = "likeness/merges", "likeness/library"
"""Folders of LoRAs, with subjects/ and styles/ in each: those that are merged, those that a network learns from."""
STYLE_BATCH = 4
"""Pictures a step of a style, which has 24; a subject, with its five, has one."""
NETWORK = "likeness/merges"
"""The file of the hypernetwork that `library` makes."""

DIRECT: dict[str, dict[str, Any]] = {
    "subject alone": {"merge.weights": "1 0"},
    "style alone": {"merge.weights": "0 1"},
    "direct": {},
    "direct, half each": {"merge.weights": "0.5"},
    "svd": {"merge.method": "svd", "merge.output_rank": "number"},
    "ties": {"merge.method": "ties"},
    "dare": {"merge.method": "dare"},
    "dare-ties": {"merge.method": "dare-ties"},
    "knots-ties": {"merge.method": "knots-ties"},
}
"""Method -> inputs of LikenessMergeLoRAs that are not its defaults."""


def joint(info: Mapping[str, Any], args: Namespace, subjects: Sequence[str], styles: Sequence[str]) -> Sweep:
    """Both taught in one run, of as many steps as the two runs have together, and as many pictures."""
    graph = start(info)
    graph["subject"], graph["style"] = dataset(info, TRIGGER), dataset(info, STYLE_TRIGGER)
    graph["data"] = node(info, "LikenessCombineDatasets", dataset_1=["subject", 0], dataset_2=["style", 0])
    steps = args.steps + args.style_steps
    train(info, args, graph, steps, round((args.steps + args.style_steps * STYLE_BATCH) / steps))
    save_and_draw(info, graph, trained(info), ["train", 0])
    return pairs(graph, [{"label": "joint training", "set": {}}], subjects, styles)


def direct(info: Mapping[str, Any], args: Namespace, subjects: Sequence[str], styles: Sequence[str]) -> Sweep:
    """Every method of LikenessMergeLoRAs that the published tables have."""
    graph = loaded(info)
    graph["merge"] = node(
        info, "LikenessMergeLoRAs", lora_1=["load subject", 0], lora_2=["load style", 0], rank=args.rank
    )
    merged = ["merge", info["LikenessMergeLoRAs"]["output_name"].index("lora")]
    graph["apply"] = node(info, "LoraModelLoader", model=["model", 0], lora=merged, strength_model=1.0)
    save_and_draw(info, graph, merged, ["apply", 0])
    return pairs(graph, [{"label": name, "set": given} for name, given in DIRECT.items()], subjects, styles)


def dataset(info: Mapping[str, Any], trigger: str) -> dict[str, Any]:
    return node(
        info, "LikenessDataset", folder="", trigger=trigger, class_noun="", resolution=64, repeats=1, flip=False
    )


def train(info: Mapping[str, Any], args: Namespace, graph: Graph, steps: int, batch: int) -> None:
    """Add a training run on the node "data", of attention layers alone, as the published merges have them."""
    graph["options"] = node(info, "LikenessTrainingOptions", targets="attention")
    wires = {"model": ["model", 0], "clip": ["model", 1], "vae": ["model", 2], "dataset": ["data", 0]}
    given = {
        "steps": steps,
        "batch_size": batch,
        "rank": args.rank,
        "alpha": float(args.rank),
        "seed": 1,
        "options": ["options", 0],
    }
    graph["train"] = node(info, TRAIN, **wires, **given)


def trained(info: Mapping[str, Any]) -> list[Any]:
    return ["train", info[TRAIN]["output_name"].index("lora")]


def loaded(info: Mapping[str, Any]) -> Graph:
    graph = start(info)
    for name in ("subject", "style"):
        graph[f"load {name}"] = node(info, "LikenessLoadLoRA", lora_name="")
    return graph


def lora_file(folder: str, kind: str, label: str) -> str:
    """Below models/loras, without its ending; its pictures are in a folder of that name below input."""
    return f"{folder}/{kind}s/{label}"


def pairs(graph: Graph, methods: Sequence[Any], subjects: Sequence[str], styles: Sequence[str]) -> Sweep:
    """Methods x subjects x styles; each pair's files or pictures, whichever the graph has nodes for."""

    def settings(kind: str, label: str) -> dict[str, Any]:
        name = lora_file(PAIRS, kind, label)
        pictures = {f"{kind}.folder": name} if kind in graph else {}
        return pictures | ({f"load {kind}.lora_name": f"{name}.safetensors"} if f"load {kind}" in graph else {})

    return from_mapping(
        {
            "name": "merges",
            "graph": graph,
            "set": {"save.filename": "likeness/merges/{method} {subject} {style}"},
            "axes": {
                "method": {"values": list(methods)},
                "subject": {"values": [{"label": s, "set": settings("subject", s)} for s in subjects]},
                "style": {"values": [{"label": s, "set": settings("style", s)} for s in styles]},
            },
            "replicates": ["subject", "style"],
        }
    )


def zipped(info: Mapping[str, Any], args: Namespace, subjects: Sequence[str], styles: Sequence[str]) -> Sweep:
    """LikenessZipLoRA with the pictures that both were taught with."""
    graph = loaded(info)
    graph["subject"], graph["style"] = dataset(info, TRIGGER), dataset(info, STYLE_TRIGGER)
    graph["zip"] = node(
        info,
        ZIP,
        **{"model": ["model", 0], "clip": ["model", 1], "vae": ["model", 2]},
        **{"subject_lora": ["load subject", 0], "style_lora": ["load style", 0]},
        **{"subject_prompt": f"a picture of a {TRIGGER}", "style_prompt": f"a {STYLE_TRIGGER} picture"},
        **{"subject_dataset": ["subject", 0], "style_dataset": ["style", 0]},
        steps=args.zip_steps,
    )
    outputs = info[ZIP]["output_name"]
    save_and_draw(info, graph, ["zip", outputs.index("lora")], ["zip", outputs.index("model")])
    methods = [
        {"label": f"ZipLoRA, λ {weight:g}" if number else "ZipLoRA", "set": {"zip.overlap_weight": weight}}
        for number, weight in enumerate(args.overlaps)
    ]
    return pairs(graph, methods, subjects, styles)


def predicted(info: Mapping[str, Any], args: Namespace, subjects: Sequence[str], styles: Sequence[str]) -> Sweep:
    """LikenessLoRARar with the hypernetwork `args.network`, a file below models/hypernetworks without its ending."""
    graph = loaded(info)
    graph["rar"] = node(
        info,
        RAR,
        **{"subject_lora": ["load subject", 0], "style_lora": ["load style", 0]},
        hypernetwork=f"{args.network}.safetensors",
    )
    merged = ["rar", info[RAR]["output_name"].index("lora")]
    graph["apply"] = node(info, "LoraModelLoader", model=["model", 0], lora=merged, strength_model=1.0)
    save_and_draw(info, graph, merged, ["apply", 0])
    return pairs(graph, [{"label": "LoRA.rar", "set": {}}], subjects, styles)


FAMILIES: dict[str, Callable[..., Sweep]] = {"direct": direct, "joint": joint, "zip": zipped, "rar": predicted}
LEARNED = ("ZipLoRA", "LoRA.rar")


def save_and_draw(info: Mapping[str, Any], graph: Graph, lora: list[Any], model: list[Any], pictures: int = 8) -> None:
    graph["save"] = node(info, "LikenessSaveLoRA", lora=lora, filename="")
    graph["latent"] = node(info, "EmptyLatentImage", width=64, height=64, batch_size=pictures)
    draw(info, graph, model, PROMPT, 70)


def score(finished: Finished) -> dict[str, float]:
    """What benchmarks/compare_merges.py says it scores, of a run's pictures."""
    subject, style = str(finished.values["subject"]), str(finished.values["style"])
    drawn = finished.pictures("draw")
    seen, held = features()(drawn), load_split().held_out_subjects
    of_subjects = cosine_similarities(seen, in_style(style)).cosines
    of_styles = cosine_similarities(seen, of_subject(subject)).cosines
    place, kind = held.index(subject), list(STYLES).index(style)
    truth = true_tensor(subject, style)
    references = torch.stack([true_tensor(subject, known) for known in reference_styles()])
    others = torch.cat([in_style(style)[:place], in_style(style)[place + 1 :]])
    return {
        "truth": float(of_subjects[:, place].mean()),
        "pixels": float((drawn - truth).square().mean(dim=(1, 2, 3)).sqrt().mean()),
        "subject": float((of_subjects.argmax(1) == place).float().mean()),
        "style": float((of_styles.argmax(1) == kind).float().mean()),
        "subject similarity": compare(drawn, references, features()).mean,
        "style similarity": float(cosine_similarities(seen, others).cosines.mean()),
        "megabytes": finished.size("save") / 1e6,
    }


@cache
def in_style(style: str) -> Tensor:
    """(45, D): features of every held-out subject's true picture in one style."""
    return features()(torch.stack([true_tensor(subject, style) for subject in load_split().held_out_subjects]))


@cache
def of_subject(subject: str) -> Tensor:
    """(8, D): features of one subject's true picture in every style."""
    return features()(torch.stack([true_tensor(subject, style) for style in STYLES]))
