"""Reading results: frontiers, claims, figures, exports. No torch, no Ray, no MLflow.

import analysis
records = analysis.open("results")
print(records.frontier(x="flops_nominal", by="method").table("markdown"))
"""

from analysis.choice import Choice, Edge, axis_curves, choose
from analysis.curves import hill_and_river, import_curves, trunk
from analysis.frontier import Frontier, FrontierPoint, frontier, frontiers
from analysis.opening import combine
from analysis.opening import open_records as open
from analysis.records import Records, RecordsError

__all__ = [
    "Choice",
    "Edge",
    "Frontier",
    "FrontierPoint",
    "Records",
    "RecordsError",
    "axis_curves",
    "choose",
    "combine",
    "frontier",
    "frontiers",
    "hill_and_river",
    "import_curves",
    "open",
    "trunk",
]
