"""What a replay elsewhere is held to."""

from mechsafety.core.result import Result


def without_tolerance(result: Result) -> set[str]:
    """Metrics of which the study does not say what a replay elsewhere may differ by."""
    metrics = {row.metric.partition("@")[0] for table in result.tables for row in table}
    assert len(metrics) > 10  # there is much to declare
    return metrics - set(result.tolerances.metrics)
