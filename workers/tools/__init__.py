"""Tools of your own that run in the worker: what a module named in `HEADRACE_TOOLS` needs."""

from workers.tools.asker import Caller, caller
from workers.tools.declared import ToolError, tool

__all__ = ["Caller", "ToolError", "caller", "tool"]
