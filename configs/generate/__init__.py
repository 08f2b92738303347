"""Generators of TinToks; ``huvr fit --config generate/NAME.yaml`` trains one."""
