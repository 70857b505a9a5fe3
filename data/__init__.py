"""Preprocessing, data sets and input pipelines."""
