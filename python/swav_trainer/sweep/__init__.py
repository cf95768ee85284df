"""A grid of settings over seeds: which cells, how they are run, and the tables of them."""
