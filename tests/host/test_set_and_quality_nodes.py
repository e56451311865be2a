"""Nodes that score sets, quality and faces, and the judge, on a running server: what reaches /history."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from likeness.experiments.client import Client, RunFailed
from likeness.metrics.brisque import brisque, load_machine
from likeness.metrics.fid import fid_distance
from likeness.metrics.inception import STATE_FILE, Inception, InceptionFeatures, load_inception
from likeness.metrics.kid import kid_distance
from likeness.metrics.niqe import niqe

Graph = dict[str, dict[str, Any]]
KEY = "sk-host-secret-98765"


def noise(seed: int, size: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def tensor(*pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures)).movedim(-1, 1).float() / 255


def batch(graph: Graph, base: Path, name: str, pictures: list[np.ndarray]) -> list[Any]:
    """Nodes that load these pictures and join them to one IMAGE."""
    link: list[Any] = []
    for number, pixels in enumerate(pictures):
        file = f"scores_{name}_{number}.png"
        Image.fromarray(pixels).save(base / "input" / file)
        graph[f"{name} {number}"] = {"class_type": "LoadImage", "inputs": {"image": file}}
        if link:
            joined = {"image1": link, "image2": [f"{name} {number}", 0]}
            graph[f"{name} to {number}"] = {"class_type": "ImageBatch", "inputs": joined}
        link = [f"{name} to {number}" if link else f"{name} {number}", 0]
    return link


def rows(run: Any, node: str) -> list[dict[str, Any]]:
    """What /history has, read as any program does: strict JSON."""
    found: list[dict[str, Any]] = json.loads(json.dumps(run.outputs[node]["metrics"], allow_nan=False))
    return found


@pytest.fixture(scope="module")
def folder(base: Path) -> Path:
    place = base / "models" / "metrics"
    place.mkdir(exist_ok=True)
    return place


def test_sets_are_scored_as_the_functions_score_them(client: Client, base: Path, folder: Path) -> None:
    """Fails if the node embeds other pixels than the pictures', swaps sets, or hides what a small set costs; or if a
    missing network or missing references do not say what to do. Grey and alpha come as the host loads them."""
    made, real = [noise(n) for n in range(3)], [noise(n) // 2 for n in range(3, 7)]
    graph: Graph = {}
    sets = {"pictures": batch(graph, base, "made", made), "references": batch(graph, base, "real", real)}
    switches = {"fid": True, "kid": True, "inception_score": True, "resize": "clean"}
    graph["sets"] = {"class_type": "LikenessScoreSets", "inputs": {**sets, **switches, "method": "ours", "step": 40}}
    with pytest.raises(RunFailed, match=STATE_FILE):
        client.run(graph)
    torch.manual_seed(0)
    path = folder / STATE_FILE
    torch.save(Inception().state_dict(), path)
    run = client.run(graph)
    features = InceptionFeatures(load_inception(path))
    a, b = features(tensor(*made)), features(tensor(*real))
    found = {row["metric"]: row for row in rows(run, "sets")}
    assert found["fid"]["value"] == pytest.approx(fid_distance(a, b), rel=1e-3)
    assert found["kid"]["value"] == pytest.approx(kid_distance(a, b), rel=1e-3)
    assert found["inception_score"]["value"] >= 1
    assert "3 pictures, fewer than 2048: biased upwards; halves of the references (2 each):" in found["fid"]["note"]
    assert {(row["method"], row["step"], row["model"]) for row in found.values()} == {
        ("ours", 40, "Inception 2015, clean")
    }
    assert "ours" in run.text("sets") and "biased upwards" in run.text("sets")
    del graph["sets"]["inputs"]["references"]
    with pytest.raises(RunFailed, match="FID and KID compare with references"):
        client.run(graph)
    path.unlink()


def test_quality_of_each_picture_in_history(client: Client, base: Path, folder: Path) -> None:
    """Fails if a picture's score is another's, one without texture breaks the batch or JSON, or a missing file is not
    named."""
    photo = pytest.importorskip("skimage.data").astronaut()[:200, :200]
    flat = np.full_like(photo, 128)
    graph: Graph = {}
    pictures = batch(graph, base, "quality", [photo, flat])
    switches = {"niqe": False, "brisque": True, "aesthetic": False}
    graph["brisque"] = {"class_type": "LikenessScoreQuality", "inputs": {"pictures": pictures, **switches}}
    with pytest.raises(RunFailed, match=r"put brisque.safetensors or allmodel"):
        client.run(graph)
    chance = torch.Generator().manual_seed(0)
    sv = torch.randn(4, 36, generator=chance, dtype=torch.float64)
    save_file({"sv": sv, "sv_coef": torch.tensor([1.0, 2, -3, 4]).double()}, folder / "brisque.safetensors")
    switches = {"niqe": True, "brisque": False, "aesthetic": False}
    graph["niqe"] = {
        "class_type": "LikenessScoreQuality",
        "inputs": {"pictures": pictures, **switches, "metrics": ["brisque", 0], "method": "ours"},
    }
    graph["again"] = {
        "class_type": "LikenessScoreQuality",
        "inputs": {"pictures": pictures, **switches, "aesthetic": True},
    }
    with pytest.raises(RunFailed, match="wire it to clip"):
        client.run(graph)
    del graph["again"]
    run = client.run(graph)
    both = tensor(photo, flat)
    machine = load_machine(folder / "brisque.safetensors")
    assert [row["value"] for row in rows(run, "niqe")] == [pytest.approx(float(niqe(both)[0])), None]
    assert [row["value"] for row in rows(run, "brisque")] == [pytest.approx(float(brisque(both, machine)[0])), None]
    assert rows(run, "niqe")[1]["note"] == "no texture to measure" and "N/A" in run.text("niqe")
    assert [row["picture"] for row in rows(run, "niqe")] == [0, 1]
    (folder / "brisque.safetensors").unlink()


def test_faces_are_found_and_the_faceless_counted(client: Client, base: Path) -> None:
    """Fails if a face is missed or made up, the picture output has no place for the faceless, or references without a
    network are silently ignored."""
    pytest.importorskip("facenet_pytorch", reason="NOT TESTED: pip install --no-deps facenet-pytorch==2.6.0")
    data = pytest.importorskip("skimage.data")
    graph: Graph = {}
    face = data.astronaut()[:256, 96:352]
    coffee = np.array(Image.fromarray(data.coffee()).resize((256, 256)))
    pictures = batch(graph, base, "faces", [face, coffee])
    none = {"distance_network": "none", "similarity_network": "none"}
    graph["faces"] = {"class_type": "LikenessScoreFaces", "inputs": {"pictures": pictures, **none}}
    graph["seen"] = {"class_type": "PreviewImage", "inputs": {"images": ["faces", 2]}}
    run = client.run(graph)
    assert [row["value"] for row in rows(run, "faces")] == [0.0, 1.0]
    assert rows(run, "faces")[1]["note"] == "no face was found" and len(run.files("seen")) == 2
    graph["faces"]["inputs"]["references"] = pictures
    with pytest.raises(RunFailed, match="no network compares faces"):
        client.run(graph)


class JudgeHandler(BaseHTTPRequestHandler):
    """Yes to every photo; of the style by turns yes, no, perhaps. `busy`: what it says first instead."""

    seen: list[dict[str, Any]]
    busy: list[int]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append({"key": self.headers.get("Authorization"), "body": body})
        if self.busy:
            status, says = self.busy.pop(), f"busy {KEY}"
        else:
            style = "style?" in body["messages"][0]["content"][-1]["text"]
            answer = ("Yes, it is.", "No.", "No.", "Perhaps")[len(self.seen) % 4] if style else "Yes."
            usage = {"prompt_tokens": 100, "completion_tokens": 3}
            status, says = 200, json.dumps({"choices": [{"message": {"content": answer}}], "usage": usage})
        raw = says.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture()
def judge_url() -> Iterator[tuple[str, type[JudgeHandler]]]:
    handler = type("Handler", (JudgeHandler,), {"seen": [], "busy": [503]})
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_address[1]}/v1", handler
    running.shutdown()
    running.server_close()
    thread.join()


def test_a_judge_behind_an_address(
    client: Client, base: Path, server: Any, judge_url: tuple[str, type[JudgeHandler]]
) -> None:
    """Two pictures, two photos, one example of the style: six questions, one of them asked twice. Fails if a question
    is lost, unclear is a yes, the busy server is not asked again, the cost is not counted, or a graph gets a key
    sent."""
    url, handler = judge_url
    graph: Graph = {}
    pictures = batch(graph, base, "judged", [noise(1), noise(2)])
    graph["judge"] = {
        "class_type": "LikenessJudge",
        "inputs": {
            "pictures": pictures, "subject_references": batch(graph, base, "photos", [noise(3), noise(4)]),
            "style_references": batch(graph, base, "styles", [noise(5)]), "backend": "address", "model": "vlm",
            "url": url, "key_variable": "", "class_noun": "dog", "prompt_price": 5.0, "answer_price": 10.0,
        },
    }  # fmt: skip
    graph["transcript"] = {"class_type": "PreviewAny", "inputs": {"source": ["judge", 2]}}
    run = client.run(graph)
    told = json.loads(run.text("transcript"))
    assert len(told["questions"]) == 6 and len(handler.seen) == 7
    assert [one["answer"] for one in told["questions"]] == ["Yes.", "Yes.", "Yes, it is.", "Yes.", "Yes.", "Perhaps"]
    assert "very same dog?" in told["questions"][0]["question"]
    assert (told["average"], told["best_of_n"], told["attempts"], told["unclear"]) == (0.5, True, 1, 1)
    assert told["usage"]["retries"] == 1 and told["usage"]["cost"] == pytest.approx((600 * 5 + 18 * 10) / 1e6)
    found = {(row["metric"], row["picture"]): row["value"] for row in rows(run, "judge")}
    assert found["judge", 0] == 1.0 and found["judge", 1] == 0.0 and found["judge_attempts", None] == 1.0
    assert found["judge_subject", 1] == 1.0 and found["judge_style", 1] == 0.0

    graph["judge"]["inputs"]["key_variable"] = "PATH"
    with pytest.raises(RunFailed, match=r"is not sent to '127.0.0.1'"):
        client.run(graph)
    assert len(handler.seen) == 7
    graph["judge"]["inputs"] |= {"key_variable": "", "retries": 0}
    handler.busy += [401]
    with pytest.raises(RunFailed, match=r"the judge did not answer: .* says 401"):
        client.run(graph)
    graph["judge"]["inputs"]["backend"] = "TextGenerate"
    with pytest.raises(RunFailed, match=r"no TextGenerate|wire clip"):
        client.run(graph)
    graph["judge"]["inputs"] |= {"backend": "folder", "model": "no such model"}
    with pytest.raises(RunFailed, match=r"there is no model 'LLM/no such model'"):
        client.run(graph)
