"""Decisions as they were recorded, and what another setting would have decided."""
