"""Ranking metrics over tags and images."""
