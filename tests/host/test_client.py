"""The devtools' own server and client, on the host's own nodes: what all other host tests stand on."""

from __future__ import annotations

import pytest

from likeness.experiments.client import Client, Rejected, RunFailed


def picture(width: int = 16) -> dict:
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": width, "height": 16, "batch_size": 1, "color": 255}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "client"}},
    }


def test_a_graph_runs_and_its_file_comes_back(client: Client, base):
    """Fails if events, history or /view are not followed: no file, or not the one on the disk."""
    kinds = []
    run = client.run(picture(), on_event=lambda event: kinds.append(event.kind), timeout=60)
    (file,) = run.files("2")
    assert client.view(file) == (base / "output" / file["filename"]).read_bytes()
    assert kinds[-1] == "execution_success" and "executing" in kinds


def test_a_bad_graph_is_refused_with_its_reason(client: Client):
    """Fails if the server's 400 is passed on without the node's name and input."""
    with pytest.raises(Rejected, match=r"EmptyImage \(node 1\).*width"):
        client.run(picture(width=0), timeout=60)


def test_a_node_that_raises_is_named(client: Client):
    """Fails if an execution error looks like success or loses the node's type."""
    graph = picture()
    graph["2"]["inputs"]["filename_prefix"] = "../../outside"
    with pytest.raises(RunFailed, match="outside the output folder") as caught:
        client.run(graph, timeout=60)
    assert (caught.value.node_id, caught.value.node_type) == ("2", "SaveImage")
