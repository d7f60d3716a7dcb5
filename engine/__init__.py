"""Execution and persistence of training: device, precision, graphs, ranks, seeds, files, run folder.

Import from the modules by name, such as `from engine.runtime import make_runtime` and `from engine.run_folder
import RunFolder`.
"""
