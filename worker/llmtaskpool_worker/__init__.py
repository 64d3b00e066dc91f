"""The torch worker of llmtaskpool: prioritized queues, lanes and engines behind HTTP."""
