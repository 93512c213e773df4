"""Dispensaries, their rooms and beds."""
