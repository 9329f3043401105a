"""The console script `sqbench`. `sqbench run ...` does what `python -m sqbench.run ...` does, and so for every command."""

import runpy
import sys

from sqbench import __version__
from sqbench.errors import known

COMMANDS = {
    "run": "compute a point; with -m first, a sweep",
    "recommend": "say which format to use, from the records",
    "collect": "make tables from records",
    "plot": "draw pictures",
    "report": "make one HTML page from records",
    "claims": "test statements",
    "formats": "list the number formats, and draw them",
    "export": "write a point as a folder that other programs load",
    "points": "list, compare, explain and clear away points",
}

USAGE = (
    "sqbench COMMAND [key=value ...]\n\n"
    + "".join(f"  {name:<10} {does}\n" for name, does in COMMANDS.items())
    + "\n`sqbench COMMAND --help` explains a command. `python -m sqbench.COMMAND` does the same.\n"
)


def main() -> int:
    """Run the command that the first argument names. An unknown or a missing one is refused with exit status 2."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return 0
    if name == "--version":
        sys.stdout.write(f"sqbench {__version__}\n")
        return 0
    if name not in COMMANDS:
        sys.stderr.write(f"error: {name or 'sqbench'}: {'is no command' if name else 'needs a command'}; {known(name, COMMANDS)}\n")
        return 2
    del sys.argv[1]
    runpy.run_module(f"sqbench.{name}", run_name="__main__", alter_sys=True)  # Hydra and child processes look for `__main__`
    return 0
