"""The subcommands of ``llmtaskpool``: each parses, calls a room below, and prints. No logic."""
