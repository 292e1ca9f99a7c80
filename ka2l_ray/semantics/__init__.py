"""Meaning: who says that two answers are equivalent, how they cluster, how uncertain that makes the model."""
