"""Kinds of panels: the Grafana settings that all panels of a kind share."""

from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from monitoring.queries import declared_in

DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
HEIGHT = 8

Query = tuple[str, str]
"""An expression, and the legend of its series."""

Panel = Any
"""The panel builders of the SDK have no common base class."""


def graph(
    title: str, text: str, unit: str, *queries: Query, span: int = 8, stacked: bool = False, limit: float | None = None,
    limit_text: str = "", maximum: float | None = None,
) -> Panel:  # fmt: skip
    """Return lines over time.

    Args:
        title: of the panel.
        text: what it shows, and what to do with it.
        unit: of Grafana.
        queries: one or more.
        span: width in 24ths of the page.
        stacked: whether series add up.
        limit: a horizontal line.
        limit_text: what it means.
        maximum: upper end of the axis.
    """
    panel = timeseries.Panel().title(title).unit(unit).span(span).height(HEIGHT).datasource(DATASOURCE).min(0)
    panel.description(_description(f"{text} {limit_text}".strip(), queries))
    panel.line_width(1).fill_opacity(60 if stacked else 8).show_points(common_models.VisibilityMode.NEVER)
    panel.legend(
        common.VizLegendOptions().show_legend(True).placement(common_models.LegendPlacement.BOTTOM)
        .display_mode(common_models.LegendDisplayMode.TABLE).calcs(["mean", "max", "lastNotNull"])
    )  # fmt: skip
    panel.tooltip(
        common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI).sort(common_models.SortOrder.DESCENDING)
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL).group("A"))
    if maximum is not None:
        panel.max(maximum)
    if limit is not None:
        panel.thresholds(_steps(("transparent", None), ("red", limit)))
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(common_models.GraphTresholdsStyleMode.DASHED))
    return _with_queries(panel, queries)


def number(
    title: str, text: str, unit: str, expression: str, *steps: tuple[str, float | None], span: int = 4, decimals: int | None = None
) -> Panel:  # fmt: skip
    """Return the current value, coloured by thresholds: colours, and the value from which each holds (``None``: the lowest)."""
    panel = stat.Panel().title(title).unit(unit).span(span).height(4).datasource(DATASOURCE).no_value("no requests")
    panel.description(_description(text, ((expression, ""),)))
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    panel.graph_mode(common_models.BigValueGraphMode.NONE).color_mode(common_models.BigValueColorMode.VALUE)
    panel.color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
    panel.thresholds(_steps(*steps))
    if decimals is not None:
        panel.decimals(decimals)
    return _with_queries(panel, ((expression, ""),))


def rows(title: str, text: str, expression: str, *, span: int = 8) -> Panel:
    """Return a table with one row for each series, and its labels as columns."""
    panel = table.Panel().title(title).span(span).height(HEIGHT).datasource(DATASOURCE)
    panel.description(_description(text, ((expression, ""),)))
    query = _query(expression, "", 0).instant().format(PromQueryFormat.TABLE)
    hidden = dict.fromkeys(("Time", "Value", "__name__", "job", "pod", "container", "endpoint", "service"), True)
    panel.with_transformation(models.DataTransformerConfig(id_val="organize", options={"excludeByName": hidden}))
    return panel.with_target(query)


def heat(title: str, text: str, expression: str, *, span: int = 8) -> Panel:
    """Return a heatmap of the buckets of a histogram of seconds."""
    panel = heatmap.Panel().title(title).span(span).height(HEIGHT).datasource(DATASOURCE).hide_legend()
    panel.description(_description(text, ((expression, ""),)))
    panel.calculate(False)
    panel.y_axis(heatmap.YAxisConfig().unit(units.Seconds))
    panel.color(heatmap.HeatmapColorOptions().scheme("Blues").mode(HeatmapColorMode.SCHEME).steps(64).exponent(0.5))
    return panel.with_target(_query(expression, "{{le}}", 0).format(PromQueryFormat.HEATMAP))


def _with_queries(panel: Panel, queries: tuple[Query, ...]) -> Panel:
    for place, (expression, legend) in enumerate(queries):
        panel.with_target(_query(expression, legend, place))
    return panel


def _query(expression: str, legend: str, place: int) -> prometheus.Dataquery:
    return (
        prometheus.Dataquery().datasource(DATASOURCE).expr(expression).legend_format(legend).ref_id(chr(ord("A") + place))
    )  # fmt: skip


def _description(text: str, queries: tuple[Query, ...]) -> str:
    """Return a text that ends with the help texts of the metrics that the queries read."""
    specs = {spec.name: spec for expression, _ in queries for spec in declared_in(expression)}
    helps = [f"- `{spec.name}{'_total' * (spec.kind == 'counter')}`: {spec.text}" for spec in specs.values()]
    return "\n".join([text, "", *helps]) if helps else text


def _steps(*steps: tuple[str, float | None]) -> dashboard.ThresholdsConfig:
    thresholds = [models.Threshold(color=color, value=value) for color, value in steps]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(thresholds)
