"""A pytest plugin of tools/mutate.py: what every op gives must keep shape, dtype and finiteness.

A planted fault that changed those would be caught by any test at all. Without the file that
SWAV_MUTATION_SHAPES names, it is written; else what differs from it ends the run with DIFFERENT.
"""

import json
import os
import sys
from pathlib import Path

import pytest

DIFFERENT = 9  # exit status, beside pytest's own 0 to 5
SIZES = (3, 9, 16, 7)  # V, B, D, K
# one way through each kernel, where they are interpreted: a launch takes 50 ms
ENOUGH = ("prototype_scores", "sinkhorn", "sinkhorn hard", "swapped_cross_entropy", "swav_loss")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Call every op, before any test."""
    sys.path.insert(0, str(session.config.rootpath / "tests"))
    import every_op

    found = {
        f"{name} on {backend}": [
            [list(x.shape), str(x.dtype), bool(x.isfinite().all())] for x in call()
        ]
        for backend in os.environ["SWAV_MUTATION_BACKENDS"].split(",")
        for name, call in every_op.calls(backend, "cpu", SIZES).items()
        if backend != "triton" or name in ENOUGH
    }
    file = Path(os.environ["SWAV_MUTATION_SHAPES"])
    if not file.exists():
        file.write_text(json.dumps(found))
        return
    wanted = json.loads(file.read_text())
    different = [name for name in wanted if found.get(name) != wanted[name]]
    if different:
        pytest.exit(f"shape, dtype or finiteness changes: {different}", returncode=DIFFERENT)
