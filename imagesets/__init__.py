"""Image sets: their table and readers, folders of pictures, batches, the held-out split.

Import these names from `data`, which hands them on.
"""
