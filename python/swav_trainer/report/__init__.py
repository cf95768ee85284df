"""One self-contained HTML page to read runs by, alone or side by side."""

from swav_trainer.report.page import write
from swav_trainer.report.tables import FIGURES, KINDS, METHODS, kinds
from swav_trainer.report.view import NAME, Sight, View

__all__ = ["FIGURES", "KINDS", "METHODS", "NAME", "Sight", "View", "kinds", "write"]
