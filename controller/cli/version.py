"""`canaryctl version`."""

from __future__ import annotations

from controller.cli.output import Output, OutputOption, emit_data
from controller.installed import own_version


def version(output: OutputOption = Output.TABLE) -> None:
    """Print the version."""
    if output.is_text:
        print(own_version())
    else:
        emit_data({"version": own_version()}, output)
