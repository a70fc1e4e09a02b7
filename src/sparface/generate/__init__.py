"""A trained generator and a shard set → an augmented shard set.

`settings` what is asked for, `layout` which sample goes where, `variants` the faces, `filters` which of
them may stay, `folder` what is on disk, `make` the pipeline, `report` what came out.
"""
