"""The operator of llmtaskpool: it observes a pool, decides its size, plans and applies."""
