"""Ground-truth paste: objects of the training split, cut out once, set into other samples.

``make`` cuts them out, ``database`` reads them, ``place`` sets them into a sample, ``images`` paints them.
"""
