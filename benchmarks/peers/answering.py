"""The other end of `process.py`: a process that is held to some cores and answers with lines.

What belongs here: what every such process does first; not what it is asked for.
"""

import json
import os
from collections.abc import Callable


def answering(cores: int) -> Callable[[dict], None]:
    """Holds this process to that many cores, and gives what answers on the real standard output.

    Whatever is printed from then on goes to standard error. To be called before any library starts
    its threads.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cores:])
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(value: dict) -> None:
        lines.write(json.dumps(value) + "\n")

    return answer
