"""LikenessReport: scores -> the table, the tests and the plots."""

from __future__ import annotations

import comfy.utils
from comfy_api.latest import io

from ..experiments.statistics import INTERVALS
from ..experiments.summary import UNITS, summarise
from ..metrics.rows import Rows
from .host.reports import write_report
from .types import Metrics


class LikenessReport(io.ComfyNode):
    """METRICS -> table, CSV, JSON, plots."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        return io.Schema(
            node_id="LikenessReport",
            display_name="Report (Likeness)",
            category="Likeness/metrics",
            description="Scores as a table: for each method and metric the mean, standard error and 95% interval, "
            "paired tests between methods, and plots. Saved to the output folder and shown on the node.",
            is_output_node=True,
            inputs=[
                Metrics.Input("metrics", tooltip="From any node that scores pictures. Rows accumulate along a chain."),
                io.String.Input(
                    "name",
                    default="report",
                    tooltip="Folder below output/likeness. A report of that name is replaced.",
                ),
                io.Combo.Input(
                    "interval",
                    options=["bootstrap", *(name for name in INTERVALS if name != "bootstrap")],
                    tooltip="How the 95% interval is made. bootstrap: percentiles of resampled means. bca: corrected "
                    "for bias and skew. t: Student's, the better one for fewer than ten values.",
                ),
                io.Combo.Input(
                    "units",
                    options=list(UNITS),
                    tooltip="What is independent of each other. auto: subjects where there are five or more, else "
                    "pictures. Pictures of one subject are alike, so that intervals over pictures speak of it alone.",
                ),
                io.String.Input(
                    "baseline",
                    default="",
                    tooltip="The method that the others are tested against. Empty: all pairs; with more than four "
                    "methods, each with the first.",
                ),
                Metrics.Input("metrics_2", optional=True, tooltip="Rows of another branch, e.g. of another method."),
                Metrics.Input("metrics_3", optional=True, tooltip="Rows of a third branch."),
                io.String.Input(
                    "subject_metric",
                    optional=True,
                    default="",
                    tooltip="Horizontal axis of the Pareto plot, e.g. face_distance. Empty: a usual one that is there.",
                ),
                io.String.Input(
                    "prompt_metric",
                    optional=True,
                    default="",
                    tooltip="Vertical axis of the Pareto plot, e.g. clip_t. Empty: a usual one that is there.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="plots",
                    tooltip="Bars with intervals; where the rows have them, subject against prompt fidelity with the "
                    "Pareto front, and scores over training steps.",
                ),
                io.String.Output(display_name="table", tooltip="Markdown: means, tests, what each metric is, notes."),
                io.String.Output(display_name="csv", tooltip="A line for each method and metric."),
                io.String.Output(display_name="json", tooltip="Figures, tests, notes and every row."),
            ],
        )

    @classmethod
    def execute(
        cls,
        metrics: Rows,
        name: str,
        interval: str,
        units: str,
        baseline: str,
        metrics_2: Rows = (),
        metrics_3: Rows = (),
        subject_metric: str = "",
        prompt_metric: str = "",
    ) -> io.NodeOutput:
        """Summarise, draw, write."""
        bar = comfy.utils.ProgressBar(2)
        rows = tuple(dict.fromkeys((*metrics, *(metrics_2 or ()), *(metrics_3 or ()))))
        summary = summarise(rows, interval=interval, unit=units, baseline=baseline.strip())
        bar.update(1)
        report = write_report(name, summary, rows, prompt_metric.strip(), subject_metric.strip())
        bar.update(1)
        return io.NodeOutput(report.pictures, report.table, report.csv, report.json, ui=report.ui)
