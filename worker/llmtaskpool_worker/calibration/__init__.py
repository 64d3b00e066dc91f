"""Measuring a model's curves on this machine, as a profile for scheduler and simulator."""
