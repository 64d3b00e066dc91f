"""Who runs next and why: priority P = W / T, queues, costs. Pure."""
