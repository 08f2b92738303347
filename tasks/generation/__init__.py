"""Diffusion transformers that generate TinToks, which the frozen HUVR network then draws."""
