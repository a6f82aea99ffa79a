"""The errors a user can meet. Each message names the thing, what was found, what was expected and what to do."""


class Fusion3DError(Exception):
    """Base of every error that fusion3d raises on purpose."""


class ConfigError(Fusion3DError):
    """A configuration file or override that does not fit the schema."""


class DataError(Fusion3DError):
    """A data set, table or sensor file that is missing, damaged or inconsistent."""


class CheckpointError(Fusion3DError):
    """A checkpoint that is missing, damaged or belongs to another configuration."""


class TrainingError(Fusion3DError):
    """Training that cannot go on, such as a loss that is not finite."""
