"""Measure time, memory and work of HireMLP, side by side with other backbones.

from hire_mlp_mm.bench import Settings, measure, table
settings = Settings(arch="tiny", size=(512, 512))
print(table(measure(["plain", "fused", "reference"], settings), settings))
"""

from .candidates import PEERS, Candidate, Settings
from .report import setting, table, table_of_kinds, table_of_parts
from .runs import measure

__all__ = [
    "PEERS",
    "Candidate",
    "Settings",
    "measure",
    "setting",
    "table",
    "table_of_kinds",
    "table_of_parts",
]
