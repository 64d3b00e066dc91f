"""Brokers: what holds accepted tasks until a lane takes them."""
