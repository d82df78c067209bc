"""The `headrace` command. Hub and workers are started as processes, never imported."""

from __future__ import annotations


def main() -> None:
    """Run the command line of this process and exit with its status."""
    import sys

    from hub.cli.commands import run

    sys.exit(run(sys.argv[1:]))
