"""What a stream raises when its data or its options are wrong."""


class StreamDataError(ValueError):
    """A user's mistake or missing data, told in one line that says what to change."""
