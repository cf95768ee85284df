"""The public ops: argument checks, backend choice, autograd."""
