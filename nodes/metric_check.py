"""LikenessMetricCheck: what a metric can tell apart."""

from __future__ import annotations

from typing import Any

import comfy.utils
from comfy_api.latest import io, ui

from ..experiments.separation_plot import separation_plot
from ..metrics.rows import Rows, json_safe
from ..metrics.separation import OTHERS, SAME_CLASS, separation, separation_rows, separation_table
from .host.evaluate import loose_pictures, reference_features, subjects_of
from .host.interrupt import Interrupt, InterruptProcessingException
from .host.reports import as_images
from .types import Dataset, MetricModel, Metrics


class LikenessMetricCheck(io.ComfyNode):
    """A MetricModel and three sets of photos -> their distributions of scores."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        return io.Schema(
            node_id="LikenessMetricCheck",
            display_name="Metric Check (Likeness)",
            category="Likeness/metrics",
            description="Can this metric tell your subject from others at all? Scores real photos: the subject's "
            "against each other, others of its class, other classes. Where they overlap, the metric's verdict on "
            "generated pictures means little.",
            is_output_node=True,
            inputs=[
                MetricModel.Input("metric_model", tooltip="The network to be checked."),
                io.Image.Input("references", optional=True, tooltip="Photos of the subject, two or more."),
                Dataset.Input("dataset", optional=True, tooltip="In place of references: the dataset's pictures."),
                io.Image.Input(
                    "same_class", optional=True, tooltip="Photos of others of its class: other dogs, if it is a dog."
                ),
                io.Image.Input("other_classes", optional=True, tooltip="Photos of anything else."),
                Metrics.Input("metrics", optional=True, tooltip="Rows so far; they come first."),
            ],
            outputs=[
                Metrics.Output(display_name="metrics", tooltip="A row a picture, and AUC and d′ of each set."),
                io.Image.Output(display_name="plot", tooltip="The distributions with their means. Also on the node."),
                io.String.Output(display_name="table", tooltip="Means, AUC, d′, overlap. Markdown."),
                io.Float.Output(
                    display_name="auc",
                    tooltip="How often the subject scores higher than one of its class (without those: than any "
                    "other). 0.5 is chance, 1 is always.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        metric_model: Any,
        references: Any = None,
        dataset: Any = None,
        same_class: Any = None,
        other_classes: Any = None,
        metrics: Rows = (),
    ) -> io.NodeOutput:
        """Embed, compare, draw."""
        subjects = subjects_of(dataset, references, "", "", "")
        if len(subjects) > 1:
            raise ValueError(
                "The dataset has several subjects: check one at a time, with the Dataset node of that one."
            )
        sets = {SAME_CLASS: same_class, OTHERS: other_classes}
        others = [loose_pictures(each, name) for name, each in sets.items() if each is not None]
        wanted = [subjects[0].references, *others]
        bar, interrupt, features = comfy.utils.ProgressBar(len(wanted)), Interrupt(), []
        if not wanted[0]:
            raise ValueError("There are no pictures of the subject: wire references or a dataset.")
        for pictures in wanted:
            if interrupt.cancelled():
                raise InterruptProcessingException()
            features.append(reference_features(metric_model, pictures))
            bar.update(1)
        names = [name for name, each in sets.items() if each is not None]
        found = separation(features[0], dict(zip(names, features[1:], strict=True)))
        model = metric_model.description
        rows = separation_rows(found, metric_model.subject_metric, model, subjects[0].name)
        plot = as_images({"plot": separation_plot(found, model)})
        table = separation_table(found, model)
        auc = next(iter(found.gaps.values())).auc
        shown = ui.PreviewImage(plot, cls=cls).as_dict() | {"text": [table], "metrics": json_safe(rows)}
        return io.NodeOutput((*(metrics or ()), *rows), plot, table, auc, ui=shown)
