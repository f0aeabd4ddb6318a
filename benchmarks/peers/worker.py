"""What every worker of a benchmark does: read commands, answer in JSON."""

from __future__ import annotations

import json
import resource
import sys
import time
import traceback
from collections.abc import Callable

import numpy as np

WARM = 3.0  # seconds of calls before the first that counts


def resident() -> int:
    """Return the resident bytes of this process now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def serve(prepare: Callable[[], Callable[[], object]]) -> None:
    """Answer commands until the input ends; ``prepare`` returns the call to be timed."""
    run = base = result = None
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        try:
            start = time.perf_counter()
            if command in ("prepare", "first"):
                run = prepare()
                base = resident()
                start = time.perf_counter()
                result = run()
                answer = {"seconds": time.perf_counter() - start}
                if command == "first":
                    continue
                if answer["seconds"] < 30:  # what is compiled or written out for later calls is so then
                    result = run()
                warm = time.perf_counter()
                while answer["seconds"] < 30 and time.perf_counter() - warm < WARM:
                    result = run()
            elif command == "run":
                if answer["seconds"] < 2:  # what lay idle while others ran is fetched again
                    run()
                    start = time.perf_counter()
                result = run()
                answer = {"seconds": time.perf_counter() - start}
            else:
                np.save(argument, np.asarray(result))
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
                answer = {"peak": peak - base, "gradients": getattr(run, "gradients", 0)}
        except Exception as error:
            traceback.print_exc()
            answer = {"failure": f"{type(error).__name__}: {error}"}
        finally:
            print(json.dumps(answer), flush=True)
