"""Engines that run a model once over each input: one loop, and a head for each task."""
