"""Running tasks: books, lanes, engines' slots and events, calls. ``pool`` is its seam to HTTP."""
