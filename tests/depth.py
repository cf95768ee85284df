"""How much a test tries: a little on every run, the full count under SWAV_TESTS_DEEP=1."""

import os

DEEP = os.environ.get("SWAV_TESTS_DEEP") == "1"


def count(quick: int, deep: int) -> int:
    """Return the number of examples, shapes or points of this run."""
    return deep if DEEP else quick
