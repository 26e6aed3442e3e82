"""Time, memory and work of HireMLP and its inference form, side by side with other backbones.

from hire_mlp_mm.bench import Settings, measure, table
settings = Settings(arch="tiny", size=(512, 512))
print(table(measure(["plain", "fused", "reference"], settings), settings))
"""

from .candidates import PEERS, Candidate, Figures, Settings, parse_name
from .report import setting, table, table_of_kinds
from .runs import measure

__all__ = [
    "PEERS",
    "Candidate",
    "Figures",
    "Settings",
    "measure",
    "parse_name",
    "setting",
    "table",
    "table_of_kinds",
]
