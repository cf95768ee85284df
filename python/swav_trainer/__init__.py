"""Train SwAV on images with one command, `swav train`, and see whether it learned.

The trainer calls public `swav_kernels` names only. Importing this package needs nothing beyond
torch and numpy; the libraries of its extra are imported by the command that uses them.
"""

import os

# Threads that spin while they wait make training ten times slower on a machine that does anything
# else beside it. Read when torch is loaded, so only the command `swav` is sure to set it in time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
