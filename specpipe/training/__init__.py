"""Making models: training from text, and drafts that learn from their target."""
