"""Python tells when a pickle names a class, which is how one runs code: nothing of ours may be what reads it.

Libraries unpickle what they wrote themselves a moment ago (multiprocessing, joblib), so only the direct caller counts. The search
of source files in test_security finds what no test runs; this finds what no search does, such as a reader passed on as a value.
"""

import sys
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).parents[1]
OURS = tuple(f"{ROOT / part}/" for part in ("sqbench", "hydra_plugins", "scripts", "benchmarks"))

unpickled: list[str] = []  # what was read by whom


def _listen(event: str, arguments: tuple[object, ...]) -> None:
    if event != "pickle.find_class":
        return
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") == "pickle":
        frame = frame.f_back
    if frame is not None and frame.f_code.co_filename.startswith(OURS):
        unpickled.append(f"{frame.f_code.co_filename}:{frame.f_lineno} unpickles {'.'.join(map(str, arguments))}")


sys.addaudithook(_listen)
