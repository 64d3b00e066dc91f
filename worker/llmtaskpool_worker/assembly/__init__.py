"""The whole worker put together from the rooms below, by its settings."""
