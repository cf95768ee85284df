"""The table of an evaluation in the terminal."""

from rich.table import Table

from swav_trainer import report
from swav_trainer.config import Config
from swav_trainer.evaluation import Scores


def scores_table(config: Config, scores: dict[str, Scores]) -> Table:
    """A row for each kind of features, a column for each figure."""
    table = Table("per cent right", title=None)
    for title in report.FIGURES.values():
        table.add_column(title, justify="right")
    for kind, title in report.kinds(config).items():
        table.add_row(title, *(f"{scores[kind][name]:.1f}" for name in report.FIGURES))
    return table
