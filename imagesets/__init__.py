"""What data.py leans on: the table of image sets, their readers, folders of pictures, batches, the held-out split.

Import these names from `data`, which hands them on.
"""
