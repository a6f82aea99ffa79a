"""Why a model says what it says: Grad-CAM of any head's output on the maps of its sensors.

``targets.py`` turns a name such as ``car@12,-3`` into the number that is explained, ``gradcam.py`` explains it, and
``main.py`` is the verb ``explain``.
"""
