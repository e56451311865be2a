"""A workflow as the page saves it (UI format) -> the graph that the server runs (API format).

The same as the page's own `graphToPrompt`: widget values are laid out in the order of the node's inputs in
/object_info, with one more value after a seed (its "control after generate") and after an upload combo (the button);
muted nodes fall away, bypassed ones hand on their first input of the output's type; Reroute and Primitive nodes are
seen through; notes are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MUTED, BYPASSED = 2, 4
NOTES = {"Note", "MarkdownNote"}
REROUTE, PRIMITIVE = "Reroute", "PrimitiveNode"
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
EXTRA_VALUES = {
    "control": ("fixed", "increment", "decrement", "randomize", "increment-wrap"),
    "upload": ("image", "video", "audio", "file", None, ""),
}
UPLOADS = ("image_upload", "video_upload", "audio_upload", "file_upload")

Json = dict[str, Any]


@dataclass(frozen=True)
class Link:
    origin: str
    origin_slot: int
    type: str


def to_api(workflow: Mapping[str, Any], object_info: Mapping[str, Any]) -> dict[str, Json]:
    """Turn a UI-format workflow into an API-format graph.

    Args:
        workflow: the saved JSON, with "nodes" and "links".
        object_info: the server's /object_info.

    Returns:
        node id -> {"class_type", "inputs", "_meta": {"title"}}; only nodes that run.

    Raises:
        ValueError: a node is of a type that the server does not have, or a subgraph; its widget values do not fit.
    """
    nodes = {str(node["id"]): node for node in workflow["nodes"]}
    links = {str(link_id): link for link_id, link in _links(workflow)}
    graph: dict[str, Json] = {}
    for node_id, node in nodes.items():
        kind = node["type"]
        if kind in NOTES or kind in (REROUTE, PRIMITIVE) or node.get("mode", 0) in (MUTED, BYPASSED):
            continue
        if kind not in object_info:
            known = "a subgraph" if _is_subgraph(workflow, kind) else "not a node that this server has"
            raise ValueError(f"node {node_id} is of type {kind!r}: {known}")
        inputs = widget_values(node, object_info[kind])
        for slot in node.get("inputs") or []:
            value = _resolve(slot.get("link"), nodes, links)
            if value is not None:
                inputs[slot["name"]] = value
        title = node.get("title") or object_info[kind].get("display_name") or kind
        graph[node_id] = {"class_type": kind, "inputs": inputs, "_meta": {"title": title}}
    return graph


def widget_values(node: Mapping[str, Any], schema: Mapping[str, Any]) -> Json:
    """The values of a node's widgets by input name; inputs without a saved value keep the schema's default."""
    saved = node.get("widgets_values") or []
    names = _widget_layout(schema)
    if isinstance(saved, Mapping):  # some nodes save by name
        return {name: saved[name] for name, _, _ in names if name in saved}
    values: Json = {}
    left = list(saved)
    for name, spec, extra in names:
        if not left:
            if "default" in spec:
                values[name] = spec["default"]
            continue
        values[name] = left.pop(0)
        if left and left[0] in EXTRA_VALUES.get(extra, ()):
            left.pop(0)
    if left and any(value is not None for value in left):
        raise ValueError(
            f"node {node['id']} ({node['type']}) has {len(saved)} widget values, "
            f"{len(left)} more than its inputs take: it was saved with another version of the node"
        )
    return values


def set_inputs(graph: dict[str, Json], class_type: str, **inputs: Any) -> None:
    """Change inputs of every node of a type, in place, e.g. set_inputs(graph, "LikenessTrainLoRA", steps=2).

    Raises:
        ValueError: the graph has no node of that type.
    """
    found = [node for node in graph.values() if node["class_type"] == class_type]
    if not found:
        raise ValueError(f"the graph has no {class_type}; it has {sorted({n['class_type'] for n in graph.values()})}")
    for node in found:
        node["inputs"].update(inputs)


def find(graph: Mapping[str, Json], class_type: str) -> str:
    """The id of the only node of a type.

    Raises:
        ValueError: there is none, or more than one.
    """
    found = [node_id for node_id, node in graph.items() if node["class_type"] == class_type]
    if len(found) != 1:
        raise ValueError(f"expected one {class_type} in the graph, found {len(found)}")
    return found[0]


def _links(workflow: Mapping[str, Any]) -> list[tuple[str, Link]]:
    """Links come as [id, origin, origin slot, target, target slot, type] or as objects with those names."""
    found = []
    for link in workflow.get("links") or []:
        if isinstance(link, Mapping):
            found.append((str(link["id"]), Link(str(link["origin_id"]), int(link["origin_slot"]), str(link["type"]))))
        else:
            found.append((str(link[0]), Link(str(link[1]), int(link[2]), str(link[5]))))
    return found


def _is_subgraph(workflow: Mapping[str, Any], kind: str) -> bool:
    subgraphs = (workflow.get("definitions") or {}).get("subgraphs") or []
    return any(subgraph.get("id") == kind for subgraph in subgraphs)


def _widget_layout(schema: Mapping[str, Any]) -> list[tuple[str, Json, str]]:
    """(input name, its options, "" | "control" | "upload") of each input that is a widget, in the page's order."""
    layout = []
    for group in ("required", "optional"):
        described = (schema.get("input") or {}).get(group) or {}
        order = (schema.get("input_order") or {}).get(group) or list(described)
        for name in order:
            spec = described[name]
            kind, options = spec[0], dict(spec[1]) if len(spec) > 1 and isinstance(spec[1], Mapping) else {}
            if options.get("forceInput") or not (isinstance(kind, list) or str(kind) in WIDGET_TYPES):
                continue
            extra = ""
            if options.get("control_after_generate") or (kind == "INT" and name in ("seed", "noise_seed")):
                extra = "control"
            elif any(options.get(upload) for upload in UPLOADS):
                extra = "upload"
            layout.append((name, options, extra))
    return layout


def _resolve(link_id: Any, nodes: Mapping[str, Json], links: Mapping[str, Link]) -> Any:
    """What a link brings: [node id, slot], a Primitive's value, or None when it brings nothing."""
    seen: set[str] = set()
    while link_id is not None and str(link_id) not in seen:
        seen.add(str(link_id))
        link = links.get(str(link_id))
        origin = nodes.get(link.origin) if link else None
        if link is None or origin is None or origin.get("mode", 0) == MUTED:
            return None
        inputs = origin.get("inputs") or []
        if origin["type"] == PRIMITIVE:
            return (origin.get("widgets_values") or [None])[0]
        if origin["type"] == REROUTE:
            link_id = inputs[0].get("link") if inputs else None
        elif origin.get("mode", 0) == BYPASSED:
            link_id = _handed_on(origin, link, inputs)
        else:
            return [link.origin, link.origin_slot]
    return None


def _handed_on(node: Json, link: Link, inputs: list[Json]) -> Any:
    """The link that a bypassed node hands on: the input at its place if of its type, else the first that is."""
    same_place = inputs[link.origin_slot : link.origin_slot + 1]
    outputs = node.get("outputs") or []
    wanted = outputs[link.origin_slot]["type"] if link.origin_slot < len(outputs) else link.type
    for slot in [*same_place, *inputs]:
        if slot.get("type") == wanted and slot.get("link") is not None:
            return slot["link"]
    return None
