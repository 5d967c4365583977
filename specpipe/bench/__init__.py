"""Measuring models, pairs and the pipeline on this machine."""
