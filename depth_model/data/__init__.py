"""Samples, readers and transforms that feed training and evaluation."""
