"""Execution and persistence of training: device, precision, compilation, CUDA graphs, ranks, seeds, files and
run folder.

Import from the modules by name, such as `from engine.runtime import make_runtime` and `from engine.run_folder
import RunFolder`.
"""
