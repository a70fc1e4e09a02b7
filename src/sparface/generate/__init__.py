"""Make a larger shard set from a shard set with a trained generator.

`settings` has the options, `layout` assigns samples to shards, `variants` makes the faces, `filters` rejects
some of them, `folder` is the set on disk, `make` the pipeline, `run` a process, `report` the statistics.
"""
