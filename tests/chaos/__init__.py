"""A run under faults: many processes, viewers that record what they see, and a checker that reads it afterwards.

`python -m tests.chaos --help` says how to run one.
"""
