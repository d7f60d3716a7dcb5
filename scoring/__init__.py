"""Evaluation of images in stage 3: recipes, trainer, sources of images, distilled files, storage, and the
rows and table of results.

Import from the modules by name, such as `from scoring.evaluation import validate_group` and `from
scoring.sources import Generated`.
"""
