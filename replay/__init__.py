"""Continual learning in stage 4: the learner, its tasks, methods, memory, metrics and results.

Import from the modules by name, such as `from replay.methods import METHODS` and `from replay.memory import
Memory`.
"""
