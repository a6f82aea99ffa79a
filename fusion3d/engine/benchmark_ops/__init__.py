"""How fast each operation is, against those that others offer for the same work: ``fusion3d benchmark ops``."""
