"""The way home of a source that was failed over."""
