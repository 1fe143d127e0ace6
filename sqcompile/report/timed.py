"""Times that `sqcompile bench` measures, put into the report of the run folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqcompile.report import data, html

_KEPT = ("device", "environment", "runs", "roofs")
"""What a report holds of a measurement: the same that `compile --bench` puts there."""


def put(timing: Mapping[str, Any], folder: str | Path) -> Path:
    """Write a measurement in place of the report's times, into report.json and then report.html,
    each whole or not at all -> the page's path. Raises UsageError for a folder without a report of
    this version, OSError for one that cannot be written."""
    report = data.read(folder)
    report["timing"] = {name: timing[name] for name in _KEPT}
    data.write(report, folder)
    return html.write_again(report, folder)
