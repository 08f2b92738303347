"""The tasks: what frozen encoders are measured by. One file a task; ``huvr tasks`` lists them."""
