"""What all tests of the worker have."""

from __future__ import annotations

from fakes.workers_loop import the_workers_event_loop

__all__ = ["the_workers_event_loop"]
