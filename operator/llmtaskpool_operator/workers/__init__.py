"""What the operator asks of workers and tells them, wherever they run."""
