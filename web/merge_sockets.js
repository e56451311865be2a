// Sockets that grow: Merge LoRAs shows one LoRA socket more than are connected, of the sixteen that the server takes.
import { app } from '../../scripts/app.js'

const NODES = { LikenessMergeLoRAs: 'lora_' }
const FEWEST = 2
const OPTIONAL = 7 // LiteGraph's hollow circle

app.registerExtension({
  name: 'Likeness.MergeSockets',

  beforeRegisterNodeDef(nodeType, nodeData) {
    const prefix = NODES[nodeData.name]
    if (!prefix) return
    const specs = Object.entries(nodeData.input.optional).filter(([name]) => name.startsWith(prefix))

    function fit(node) {
      const at = (name) => node.inputs.findIndex((input) => input.name === name)
      const connected = specs.map(([name]) => node.inputs[at(name)]?.link != null)
      const wanted = Math.max(FEWEST, connected.lastIndexOf(true) + 2)
      specs.forEach(([name, [type, options]], index) => {
        if (index < wanted && at(name) < 0) node.addInput(name, type, { shape: OPTIONAL, tooltip: options?.tooltip })
      })
      for (const [name] of specs.slice(wanted).reverse()) {
        if (at(name) >= 0) node.removeInput(at(name))
      }
      node.setDirtyCanvas(true, true)
    }

    const created = nodeType.prototype.onNodeCreated
    nodeType.prototype.onNodeCreated = function (...args) {
      created?.apply(this, args)
      fit(this)
      this.setSize([this.size[0], this.computeSize()[1]])
    }

    // Later: while a graph is being loaded, its links are not all there yet.
    for (const moment of ['onConfigure', 'onConnectionsChange']) {
      const before = nodeType.prototype[moment]
      nodeType.prototype[moment] = function (...args) {
        before?.apply(this, args)
        queueMicrotask(() => {
          if (!this.graph) return // removed meanwhile
          fit(this)
          this.setSize([this.size[0], Math.max(this.size[1], this.computeSize()[1])])
        })
      }
    }
  }
})
