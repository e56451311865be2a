"""The sockets of Merge LoRAs in the real page: as many as are connected and one more."""

from __future__ import annotations

from typing import Any

SOCKETS = """() => app.graph._nodes.find(n => n.type === 'LikenessMergeLoRAs').inputs
    .map(i => i.name).filter(n => n.startsWith('lora_')).map(n => Number(n.slice(5)))"""
CONNECT = """async () => {
    app.graph.clear()
    const node = LiteGraph.createNode('LikenessMergeLoRAs'), counts = []
    app.graph.add(node)
    for (let i = 0; i <= 16; i++) {
        counts.push(node.inputs.filter(input => input.name.startsWith('lora_')).length)
        if (i === 16) break
        const from = LiteGraph.createNode('LikenessLoadLoRA')
        app.graph.add(from)
        from.connect(0, node, node.inputs.findIndex(input => input.name === `lora_${i + 1}`))
        await Promise.resolve()
    }
    return counts }"""
DISCONNECT = """numbers => { const node = app.graph._nodes.find(n => n.type === 'LikenessMergeLoRAs')
    for (const n of numbers) node.disconnectInput(node.inputs.findIndex(i => i.name === `lora_${n}`)) }"""
RELOAD = "async () => { await app.loadGraphData(JSON.parse(JSON.stringify(app.graph.serialize()))) }"


def test_sockets_grow_and_shrink_and_survive_a_reload(comfy_page: Any) -> None:
    """Fails if all sixteen stay, the last connected one has no free one after it, or a saved graph loses links."""
    page = comfy_page.open().page
    assert page.evaluate(CONNECT) == [2, 2, *range(3, 17), 16]
    page.evaluate(RELOAD)
    assert len(page.evaluate(SOCKETS)) == 16
    page.evaluate(DISCONNECT, [3, 4, *range(6, 17)])
    page.wait_for_function(f"() => ({SOCKETS})().length === 6")
    page.evaluate(RELOAD)
    page.wait_for_function(f"() => ({SOCKETS})().length === 6")
    graph = page.evaluate("app.graphToPrompt().then(p => p.output)")
    (node,) = [node for node in graph.values() if node["class_type"] == "LikenessMergeLoRAs"]
    wired = {name: value[0] for name, value in node["inputs"].items() if name.startswith("lora_")}
    assert list(wired) == ["lora_1", "lora_2", "lora_5"] and len(set(wired.values())) == 3
