"""The geometry doctor: does a data set's geometry hold together?

Each check compares two things that know the answer independently: calibration with the channel's name, poses with
times, clouds with boxes, edges in depth with edges in images, Doppler with ego motion. ``examine`` runs them all and
yields findings; nothing is ever changed.
"""

from fusion3d.data.doctor.examine import examine
from fusion3d.data.doctor.finding import Finding

__all__ = ["Finding", "examine"]
