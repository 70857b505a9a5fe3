"""How well a dubbed video does: metrics, a judge that runs on PyTorch, and the report."""
