"""Measuring models on this machine."""
