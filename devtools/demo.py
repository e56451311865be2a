"""`./demo`: a real ComfyUI runs workflows/quickstart.json, and what came out is laid side by side and scored."""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import signal
import sys
import time
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from PIL import Image

from ..experiments import workflow
from ..experiments.client import Client, Interrupted, Rejected, Run, RunFailed
from . import grid, scores
from .checkpoint import link_checkpoint, link_hypernetwork, reference_pictures
from .install import say
from .paths import DEMO_OUTPUT, HOST_BASES, ROOT, host_path, users_host, venv_python
from .progress import Bar
from .server import CPU_FLAGS, HEADLESS_FLAGS, Server, ServerFailed, free_port, linked_pack, make_base

QUICKSTART = ROOT / "workflows" / "quickstart.json"
SUBJECT = "panda"  # held out of tinyworld: the base model has never seen one
SEEDS = (7, 8)
PORT = 8188
LOG = HOST_BASES / "demo-server.log"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="./demo", description=__doc__)
    parser.add_argument("--serve", action="store_true", help="leave ComfyUI open in the browser instead")
    parser.add_argument("--port", type=int, help=f"the port of --serve ({PORT} where it is free)")
    parser.add_argument("--steps", type=int, help="train fewer steps than the workflow says (for a quick look)")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    signal.signal(signal.SIGTERM, _stop)
    try:
        base = prepare()
        if options.serve:
            return serve(base, options.port)
        return headless(base, options.steps, start)
    except (ValueError, ServerFailed, Rejected, RunFailed, Interrupted, ConnectionError, TimeoutError) as error:
        print(f"./demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped")
        return 130


def prepare() -> Path:
    """The base folder with the pack, the small model and the reference pictures in it."""
    base = make_base(users_host() or HOST_BASES / "demo")
    say("putting the small model and the reference pictures in place")
    link_checkpoint(base)
    link_hypernetwork(base)
    reference_pictures(base, SUBJECT)
    return base


def device_flags() -> tuple[str, ...]:
    """ComfyUI's flags for a machine without a GPU; none where torch sees one."""
    import torch

    return () if torch.cuda.is_available() or torch.backends.mps.is_available() else CPU_FLAGS


def serve(base: Path, port: int | None) -> int:
    """Leave ComfyUI open until Ctrl-C."""
    server = Server(host_path(), base, python=venv_python(), port=port or _port(), flags=device_flags(), log=LOG)
    say("starting ComfyUI")
    with server:
        address = f"{server.address}/?template=quickstart&source={(linked_pack(base) or ROOT).name}"
        say(f"ComfyUI is open at {address}")
        say("the workflows are under Workflow > Browse Templates > likeness; Ctrl-C ends it")
        if sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
            webbrowser.open(address)  # elsewhere it would be a text browser, in this terminal
        while server.alive():
            time.sleep(1)
    raise ServerFailed(f"ComfyUI ended.\n{server.log_tail()}")


def headless(base: Path, steps: int | None, start: float) -> int:
    """Run the quickstart over HTTP and write demo-output/."""
    pack = linked_pack(base)
    flags = (*device_flags(), *HEADLESS_FLAGS, "--disable-all-custom-nodes", "--whitelist-custom-nodes", pack.name)
    server = Server(host_path(), base, python=venv_python(), flags=flags, log=LOG)
    say("starting ComfyUI, headless")
    with server:
        client = Client(server.address)
        saved = json.loads(QUICKSTART.read_text("utf-8"))
        graph = workflow.to_api(saved, client.object_info())
        if steps:
            workflow.set_inputs(graph, "LikenessTrainLoRA", steps=steps)
        runs = []
        for seed in SEEDS:  # the second time, what was taught is still there: only the pictures are new
            say(f"{QUICKSTART.name}, seed {seed}")
            set_seed(graph, seed)
            runs.append(follow(client, graph, saved))
        result = collect(client, graph, runs, base)
    result["seconds"] = round(time.monotonic() - start, 1)
    write(DEMO_OUTPUT / "result.json", result)
    report(result)
    return 0


def set_seed(graph: dict[str, Any], seed: int) -> None:
    """The seed of every sampler, whether it comes from one node that all share or stands in each."""
    for node in graph.values():
        if node["class_type"] != "KSampler":
            continue
        wired = node["inputs"]["seed"]
        if isinstance(wired, list):
            graph[wired[0]]["inputs"]["value"] = seed
        else:
            node["inputs"]["seed"] = seed


def follow(client: Client, graph: dict[str, Any], saved: dict[str, Any]) -> Run:
    bar = Bar(graph)
    try:
        return client.run(graph, on_event=bar, timeout=3600, workflow=saved)
    finally:
        bar.close()


@dataclass(frozen=True)
class Drawn:
    """The pictures of one SaveImage node named before_N or after_N."""

    side: str
    prompt: str
    pictures: list[Image.Image]


def drawn(client: Client, graph: dict[str, Any], run: Run) -> list[Drawn]:
    found = []
    for node_id, node in graph.items():
        prefix = str(node["inputs"].get("filename_prefix", "")).split("/")[-1]
        side = prefix.split("_")[0]
        if node["class_type"] != "SaveImage" or side not in ("before", "after"):
            continue
        pictures = [Image.open(io.BytesIO(client.view(file))).convert("RGB") for file in run.files(node_id)]
        found.append(Drawn(side, prompt_of(graph, node_id), pictures))
    return found


def prompt_of(graph: dict[str, Any], node_id: str) -> str:
    """The positive prompt behind a node: up through images, samples and positive to the text."""
    inputs = graph[node_id]["inputs"]
    if isinstance(inputs.get("text"), str):
        return inputs["text"]
    for name in ("images", "samples", "positive"):
        if isinstance(inputs.get(name), list):
            return prompt_of(graph, inputs[name][0])
    raise ValueError(f"no prompt leads to node {node_id} ({graph[node_id]['class_type']})")


def collect(client: Client, graph: dict[str, Any], runs: Sequence[Run], base: Path) -> dict[str, Any]:
    """Copy the LoRA and the loss plot, draw the grid, score before and after; what result.json says."""
    DEMO_OUTPUT.mkdir(exist_ok=True)
    train = graph[workflow.find(graph, "LikenessTrainLoRA")]["inputs"]
    lora = copy_lora(graph, runs[0], base)
    for node_id, node in graph.items():
        if node["class_type"] == "SaveImage" and "loss" in str(node["inputs"].get("filename_prefix", "")):
            (DEMO_OUTPUT / "loss.png").write_bytes(client.view(runs[0].files(node_id)[0]))
    references = [grid.open_rgb(path) for path in reference_pictures(base, SUBJECT)]
    rows, sides = [], {"before": [], "after": []}
    for seed, run in zip(SEEDS, runs, strict=True):
        by_prompt: dict[str, dict[str, list[Image.Image]]] = {}
        for part in drawn(client, graph, run):
            by_prompt.setdefault(part.prompt, {})[part.side] = part.pictures
            sides[part.side].append(part)
        rows += [grid.Row(f"“{text}”, seed {seed}", two["before"], two["after"]) for text, two in by_prompt.items()]
    rows.sort(key=lambda row: row.label)
    title = f"Likeness: a model that had never seen a {SUBJECT} learns it from {len(references)} pictures"
    measured = scores.before_and_after(references, *([p for d in sides[s] for p in d.pictures] for s in sides))
    footer = f"subject similarity {measured['before']:.3f} before, {measured['after']:.3f} after ({measured['metric']})"
    grid.draw(references, rows, title, footer).save(DEMO_OUTPUT / "grid.png")
    return {
        "subject": SUBJECT,
        "scores": measured,
        "prompts": sorted({part.prompt for part in sides["after"]}),
        "seeds": list(SEEDS),
        "pictures": {side: sum(len(part.pictures) for part in parts) for side, parts in sides.items()},
        "training": {key: train[key] for key in ("steps", "learning_rate", "rank", "alpha", "batch_size", "seed")},
        "seconds_workflow": [round(run.seconds, 1) for run in runs],
        "files": {"lora": lora, "grid": "grid.png", "loss": "loss.png"},
    }


def copy_lora(graph: dict[str, Any], run: Run, base: Path) -> str:
    """Copy the saved LoRA to demo-output/; the node shows its path."""
    shown = Path(run.text(workflow.find(graph, "LikenessSaveLoRA")).strip())
    path = next((p for p in (shown, base / "models" / "loras" / shown) if p.is_file()), None)
    if path is None:
        raise ValueError(f"LikenessSaveLoRA says it wrote {shown}, but there is no such file")
    shutil.copyfile(path, DEMO_OUTPUT / path.name)
    return path.name


def write(path: Path, result: dict[str, Any]) -> None:
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", "utf-8")


def report(result: dict[str, Any]) -> None:
    measured = result["scores"]
    say(f"subject similarity: {measured['before']:.3f} before, {measured['after']:.3f} after")
    for name in (*result["files"].values(), "result.json"):
        say(f"{DEMO_OUTPUT.name}/{name}")
    say(f"done in {result['seconds']:.0f} s; ./demo --serve opens the same graph in the browser")


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt  # so that the server is stopped too


def _port() -> int:
    """ComfyUI's usual port where it is free."""
    import socket

    with socket.socket() as probe:
        return free_port() if probe.connect_ex(("127.0.0.1", PORT)) == 0 else PORT
