"""``fusion3d benchmark metrics``: scoring and loading of full size, against the official devkit in the same run.

crowd   detections and truth of the size of the validation split
tables  tables of the size of v1.0-trainval
run     the verb
"""
