"""Figures, drawn from tables alone and saved with a sidecar that names what they were drawn from. No torch."""

from lab.figures.compare import headline
from lab.figures.provenance import save
from lab.figures.style import COMPARE_ARMS, ArmStyle

__all__ = ["COMPARE_ARMS", "ArmStyle", "headline", "save"]
