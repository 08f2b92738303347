"""Protocols of the tasks; ``huvr probe --task NAME`` follows NAME.yaml."""
