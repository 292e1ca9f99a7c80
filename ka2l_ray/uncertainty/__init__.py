"""Uncertainty scores beside semantic entropy, and how well each ranks."""
