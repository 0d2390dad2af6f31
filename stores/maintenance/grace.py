"""How long files are kept that nothing needs. Nothing here imports more than Python has."""

GRACE_DAYS = 7.0
"""Default number of days; with fewer, a slow writer or reader could lose a file."""

GRACE_SECONDS = GRACE_DAYS * 24 * 3600
