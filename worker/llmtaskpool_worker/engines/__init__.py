"""Engines: what runs tasks of one model in a child process."""
