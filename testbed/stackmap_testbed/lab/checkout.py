"""The folder that this project is in."""

from __future__ import annotations

from pathlib import Path

#: A checkout; of an installed package, a folder that holds nothing else of the project.
CHECKOUT = Path(__file__).resolve().parents[3]
