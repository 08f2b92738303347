"""Shipped experiment configurations; found by name from any folder."""
