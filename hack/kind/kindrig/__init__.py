"""Real kind, with or without a registry and with or without a running Docker."""
