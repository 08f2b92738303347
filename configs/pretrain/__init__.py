"""Additions to ``pretrain.yaml``; ``huvr fit --config pretrain.yaml --config pretrain/NAME.yaml`` trains with one or several."""
