"""The graphs of compare_ranks.py, one sweep a family of methods, and how their pictures are scored."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from likeness.experiments.scoring import Finished
from likeness.experiments.sweep import Sweep, from_mapping
from likeness.metrics.similarity import compare, cosine_similarities
from likeness.tinyworld.bench.graphs import Graph, draw, features, judge, node, start, true_tensor
from likeness.tinyworld.dataset import caption
from likeness.tinyworld.split import load_split
from likeness.tinyworld.truth import TRIGGER, reference_styles

# random.Random(4).sample of the held-out subjects, without the demo's
SUBJECTS = (
    *("dolphin", "framed-picture", "battery", "peach", "radio", "canoe"),
    *("bathtub", "bat", "backpack", "steaming-bowl", "egg", "baseball"),
)
PICTURES = 2  # a prompt
SCORING = "fidelity, truth, prompt 1"  # another number when `score` changes
TRAIN, ADAPTIVE, RESIZE = "LikenessTrainLoRA", "LikenessTrainAdaptiveLoRA", "LikenessResizeLoRA"
SAVED = "likeness/ranks/{method} {subject} {seed}"


def sweeps(info: Mapping[str, Any], args: Namespace, subjects: Sequence[str]) -> dict[str, Sweep]:
    """family -> its sweep; families whose node the host has not are left out, with a word."""
    largest = max(args.ranks)
    found = {"fixed": _sweep(training(info, args, TRAIN), ranked(args), subjects, args)}
    resized = resizing(info)
    smaller = [rank for rank in args.resized if rank < largest]
    families = {
        "adaptive": (training(info, args, ADAPTIVE, **json.loads(args.adaptive)), targeted(args)),
        "adalora": (adalora(info, args), budgeted(args)),
        "resized": (resized, cut(smaller, args.energies, largest)),
    }
    for family, (graph, methods) in families.items():
        if graph is None:
            print(f"== {family}: this checkout has no node for it, left out", flush=True)
        elif methods:
            found[family] = _sweep(graph, methods, subjects, args)
    return found


def ranked(args: Namespace) -> list[Any]:
    return [{"label": f"rank {r}", "set": {"train.rank": r, "train.alpha": args.alpha or float(r)}} for r in args.ranks]


def targeted(args: Namespace) -> list[Any]:
    """Adaptive rank begins with twice its target and has its node's alpha, unless `--adaptive` says otherwise."""
    said = json.loads(args.adaptive)
    exports: dict[str, dict[str, Any]] = {"": {}}
    for energy in args.truncated:
        exports[f", energy {energy:g}"] = {"train.export_truncation": "energy", "train.export_energy": energy}
    return [
        {
            "label": f"adaptive {r}{name}",
            "set": {
                "train.target_rank": r,
                "train.initial_rank": said.get("initial_rank", 2 * r),
                "train.alpha": said.get("alpha", args.alpha or 16.0),
                **export,
            },
        }
        for r in args.targets
        for name, export in exports.items()
    ]


def budgeted(args: Namespace) -> list[Any]:
    """AdaLoRA begins with one and a half times the rank that it keeps on average, as its paper does."""
    more = {r: -(-3 * r // 2) for r in args.adalora}
    alphas = {"train.alpha": args.alpha} if args.alpha else {}
    return [
        {
            "label": f"adalora {r}",
            "set": {"train.rank": n, "train.alpha": float(n), "algorithm.target_rank": r, **alphas},
        }
        for r, n in more.items()
    ]


def cut(ranks: Sequence[int], energies: Sequence[float], largest: int) -> list[Any]:
    """The largest fixed rank's file, each layer cut to a rank, or to the smallest that keeps a share of its energy."""
    loaded = {"load.lora_name": f"{SAVED.replace('{method}', f'rank {largest}')}.safetensors"}
    settings = {f"{largest} cut to {rank}": {"resize.mode": "rank", "resize.rank": rank} for rank in ranks}
    settings |= {f"{largest} cut to energy {e:g}": {"resize.mode": "energy", "resize.energy": e} for e in energies}
    return [{"label": label, "set": {**loaded, **given}} for label, given in settings.items()]


def training(info: Mapping[str, Any], args: Namespace, kind: str, **more: Any) -> Graph | None:
    """Train by a node with LikenessTrainLoRA's sockets, save, draw. None where the host has no such node."""
    if kind not in info:
        return None
    graph = start(info)
    graph["data"] = node(
        info,
        "LikenessDataset",
        folder="",
        trigger=TRIGGER,
        class_noun="",
        caption_template="a picture of a {trigger}",
        resolution=64,
        repeats=1,
        flip=False,
    )
    wires = {"model": ["model", 0], "clip": ["model", 1], "vae": ["model", 2], "dataset": ["data", 0]}
    shown = {"steps": args.steps, "learning_rate": args.learning_rate, "batch_size": args.batch, "seed": 0}
    if kind == ADAPTIVE:
        shown["target_rank"] = 0  # the sweep's
    graph["options"] = node(info, "LikenessTrainingOptions", targets="attention", schedule="constant")
    graph["train"] = node(info, kind, **{**wires, **shown, **more}, options=["options", 0])
    if args.prior:
        graph["keep"] = node(info, "LikenessPriorPreservation", mode="prior prediction", weight=args.prior, prompts="")
        graph["train"]["inputs"]["prior"] = ["keep", 0]
    for index, output in enumerate(info[kind]["output_name"]):
        if output in ("report", "rank_table"):
            graph[output] = {"class_type": "PreviewAny", "inputs": {"source": ["train", index]}}
    _save_and_draw(info, graph, ["train", info[kind]["output_name"].index("lora")], ["train", 0])
    return graph


def adalora(info: Mapping[str, Any], args: Namespace) -> Graph | None:
    """The usual trainer with AdaLoRA for its algorithm. None where Adapter Options has no such algorithm."""
    schema = info["LikenessAdapterOptions"]["input"]
    offered = {**(schema.get("required") or {}), **(schema.get("optional") or {})}
    spec = offered["algorithm"]
    if "target_rank" not in offered or "adalora" not in (spec[0] if isinstance(spec[0], list) else spec[1]["options"]):
        return None
    graph = training(info, args, TRAIN)
    assert graph is not None
    graph["algorithm"] = node(info, "LikenessAdapterOptions", algorithm="adalora", options=["options", 0])
    graph["train"]["inputs"]["options"] = ["algorithm", 0]
    graph["train"]["inputs"]["learning_rate"] = args.adalora_learning_rate or args.learning_rate
    return graph


def resizing(info: Mapping[str, Any]) -> Graph | None:
    """Cut a saved LoRA to a rank, save, draw; nothing is trained. None where the host has no such node."""
    if RESIZE not in info:
        return None
    graph = start(info)
    graph["load"] = node(info, "LikenessLoadLoRA", lora_name="")
    graph["resize"] = node(info, RESIZE, lora=["load", 0], rank=1)
    resized = ["resize", info[RESIZE]["output"].index("LORA_MODEL")]
    graph["apply"] = node(info, "LoraModelLoader", model=["model", 0], lora=resized, strength_model=1.0)
    _save_and_draw(info, graph, resized, ["apply", 0])
    return graph


def prompts() -> list[tuple[str, str]]:
    """(style, prompt): the subject in each style of pretraining, one of which no reference shows."""
    return [(style, caption(TRIGGER, style, None, k % 3)) for k, style in enumerate(load_split().pretrain_styles)]


def score(finished: Finished) -> dict[str, float]:
    """What compare_ranks.py says it scores, of a run's pictures."""
    subject = str(finished.values["subject"])
    drawn = [finished.pictures(f"draw {style}") for style, _ in prompts()]
    together = torch.cat(drawn)
    shown = torch.tensor([i for i, part in enumerate(drawn) for _ in part])
    with torch.no_grad():
        named = judge()(together)[1].argmax(1)
    truths = features()(torch.stack([true_tensor(subject, style) for style, _ in prompts()]))
    seen = features()(together)
    references = torch.stack([true_tensor(subject, style) for style in reference_styles()])
    return {
        "fidelity": compare(together, references, features()).mean,
        "truth": float(cosine_similarities(seen, truths).cosines[torch.arange(len(shown)), shown].mean()),
        "prompt": float((named == shown).float().mean()),
        "megabytes": finished.size("save") / 1e6,
    }


def _save_and_draw(info: Mapping[str, Any], graph: Graph, lora: list[Any], model: list[Any]) -> None:
    graph["save"] = node(info, "LikenessSaveLoRA", lora=lora, filename=SAVED, naming="kohya", dtype="fp16")
    graph["latent"] = node(info, "EmptyLatentImage", width=64, height=64, batch_size=PICTURES)
    for k, (style, prompt) in enumerate(prompts()):
        draw(info, graph, model, prompt, 50 + k, f" {style}")


def _sweep(graph: Graph | None, methods: Sequence[Any], subjects: Sequence[str], args: Namespace) -> Sweep:
    assert graph is not None
    trains = "train" in graph
    about_subject = [
        {"label": subject, "set": {"data.folder": f"ranks_{subject}"} if trains else {}} for subject in subjects
    ]
    seeds = [{"label": seed, "set": {"train.seed": seed} if trains else {}} for seed in range(1, args.seeds + 1)]
    return from_mapping(
        {
            "name": "ranks",
            "graph": graph,
            "set": {"save.filename": SAVED},
            "axes": {
                "method": {"values": list(methods)},
                "subject": {"values": about_subject},
                "seed": {"values": seeds},
            },
            "replicates": ["subject", "seed"],
        }
    )
