// Shows on the node itself what a node of ours says as text: which layers the targets meet, where a file was written.
// The host sends such text with "executed"; the page shows it for its own Preview as Text alone.
import { app } from '../../scripts/app.js'
import { ComfyWidgets } from '../../scripts/widgets.js'

const WAITING = {
  LikenessCaptions: 'After a run: the captions.',
  LikenessEvaluate: 'After a run: the means of this method.',
  LikenessFindTokens: 'After a run: the words.',
  LikenessJudge: 'After a run: the verdicts.',
  LikenessMetricCheck: 'After a run: what the metric tells apart.',
  LikenessReport: 'After a run: the table.',
  LikenessScorePairs: 'After a run: the scores.',
  LikenessScorePrompt: 'After a run: the scores.',
  LikenessScoreFaces: 'After a run: the scores.',
  LikenessScoreQuality: 'After a run: the scores.',
  LikenessScoreSets: 'After a run: the scores.',
  LikenessScoreSubject: 'After a run: the scores.',
  LikenessTrainingOptions: 'After a run: which layers learn.',
  LikenessSaveLoRA: 'After a run: where the file was written.',
  LikenessLoadLoRA: 'After a run: what the file says of itself.'
}

app.registerExtension({
  name: 'Likeness.ShowText',

  beforeRegisterNodeDef(nodeType, nodeData) {
    const waiting = WAITING[nodeData.name]
    if (!waiting) return

    const created = nodeType.prototype.onNodeCreated
    nodeType.prototype.onNodeCreated = function (...args) {
      created?.apply(this, args)
      const { widget } = ComfyWidgets.STRING(this, 'likeness_text', ['STRING', { multiline: true }], app)
      widget.label = ''
      widget.options.serialize = false // not sent to the server
      widget.serialize = false // nor saved in the workflow
      widget.value = ''
      const area = widget.element ?? widget.inputEl
      if (area) {
        area.readOnly = true
        area.placeholder = waiting
        area.style.opacity = 0.8
      }
      // No socket: nothing is to be connected to a text that is only shown.
      const socket = this.inputs?.findIndex((input) => input.name === 'likeness_text') ?? -1
      if (socket >= 0) this.removeInput(socket)
    }

    const executed = nodeType.prototype.onExecuted
    nodeType.prototype.onExecuted = function (message) {
      executed?.apply(this, [message])
      const widget = this.widgets?.find((candidate) => candidate.name === 'likeness_text')
      if (widget && message?.text) widget.value = [message.text].flat().join('\n')
    }
  }
})
