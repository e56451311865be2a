"""Where a value goes: addresses of inputs in a graph of the API format."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

Graph = Mapping[str, Mapping[str, Any]]


def find_node(graph: Graph, name: str) -> str:
    """The id of the node that `name` means: an id, else a title, else a class type that only one node has.

    Raises:
        ValueError: no node is called so, or several are; the message lists what there is.
    """
    if name in graph:
        return name
    for called in (_title, _kind):
        found = [node_id for node_id, node in graph.items() if called(node) == name]
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(
                f"{len(found)} nodes are called {name!r} ({', '.join(found)}): say the id, or give one of them a title"
            )
    known = ", ".join(f"{node_id} {_title(node) or _kind(node)}" for node_id, node in graph.items())
    raise ValueError(f"no node is called {name!r}: expected an id, a title or a class type. The graph has: {known}")


def with_inputs(graph: Graph, values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the graph with inputs set: {"node.input": value}, node as in `find_node`.

    Raises:
        ValueError: there is no such node or input, or the input is wired, so that a value would be lost on it.
    """
    changed: dict[str, Any] = copy.deepcopy(dict(graph))
    for address, value in values.items():
        name, dot, input_name = address.rpartition(".")
        if not dot:
            raise ValueError(f"{address!r} is no address: expected node.input, such as LikenessTrainLoRA.rank")
        node_id = find_node(graph, name)
        inputs = changed[node_id]["inputs"]
        if input_name not in inputs:
            raise ValueError(f"node {name!r} has no input {input_name!r}; it has {', '.join(sorted(inputs)) or 'none'}")
        if is_link(graph, inputs[input_name]):
            origin = inputs[input_name][0]
            raise ValueError(
                f"{address} is wired from node {origin} ({_title(graph[origin]) or _kind(graph[origin])}): "
                "set that node's input, or unwire it"
            )
        inputs[input_name] = value
    return changed


def is_link(graph: Graph, value: Any) -> bool:
    """Whether an input's value is a wire: [node id, output]."""
    return isinstance(value, list) and len(value) == 2 and str(value[0]) in graph and isinstance(value[1], int)


def filled(value: Any, words: Mapping[str, Any]) -> Any:
    """A text with {word} replaced for each known word; other braces, and other values, stay as they are."""
    if not isinstance(value, str):
        return value
    for word, meaning in words.items():
        value = value.replace(f"{{{word}}}", str(meaning))
    return value


def _title(node: Mapping[str, Any]) -> str:
    return str((node.get("_meta") or {}).get("title") or "")


def _kind(node: Mapping[str, Any]) -> str:
    return str(node.get("class_type") or "")
