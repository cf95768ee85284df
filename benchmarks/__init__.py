"""What each op costs on this machine, beside the code that people run today."""
