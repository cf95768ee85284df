"""Train SwAV on images with one command, `swav train`, and see whether it learned.

The trainer calls public `swav_kernels` names only. Importing this package needs nothing beyond
torch and numpy; the libraries of its extra are imported by the command that uses them.
"""
