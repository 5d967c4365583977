"""The two loops around a model: one drafts, one verifies."""
